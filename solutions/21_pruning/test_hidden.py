"""What the functions of this lab must do: the part that only the grader has."""
from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from course.spec import assert_close, assert_that, exercise
from course.spec.load import import_file

visible = import_file(Path(__file__).with_name("test_visible.py"))
some, few, generators, normal, integer, several, walks, walk = (
    visible.some, visible.few, visible.generators, visible.normal, visible.integer, visible.several, visible.walks, visible.walk)


# ---------------------------------------------------------------- magnitude_mask, global_magnitude_masks

@exercise("magnitude_mask", points=2)
@few
@given(random=generators(), shape=st.sampled_from(visible.SHAPES))
def test_sparsity_zero_keeps_all_and_one_keeps_none(student, random, shape):
    """Both ends are allowed: a mask that is True everywhere, and one that is False everywhere."""
    weight = normal(shape, random)
    assert_close(student.magnitude_mask(weight, 0.0), torch.ones(shape, dtype=torch.bool), "mask of sparsity 0")
    assert_close(student.magnitude_mask(weight, 1.0), torch.zeros(shape, dtype=torch.bool), "mask of sparsity 1")


@exercise("magnitude_mask", points=2)
@few
@given(random=generators(), shape=st.sampled_from(visible.SHAPES))
def test_weights_that_are_zero_already_are_counted_too(student, random, shape):
    """A zero is a weight of size 0: it goes before all others, and it is one of those that are counted."""
    weight = torch.where(torch.rand(shape, generator=random) < 0.7, 0.0, normal(shape, random))
    sparsity, k = visible.a_share(weight.numel(), random)
    mask = student.magnitude_mask(weight, sparsity)
    visible.assert_mask(mask, weight)
    visible.assert_count([mask], k)
    visible.assert_smallest_gone([mask], [weight])


@exercise("global_magnitude_masks", points=2)
@few
@given(random=generators())
def test_masks_come_in_the_order_and_shapes_of_the_weights(student, random):
    """Mask i belongs to weight i: split the joint mask again where the tensors were joined, and give each part its shape."""
    weights, k = several(random), integer(20, 60, random)
    size = torch.cat([w.flatten() for w in weights]).abs().sort().values[k]
    assert_close(visible.masks_of(student, weights, k / 84), [w.abs() >= size for w in weights], "masks")


# ---------------------------------------------------------------- masked_step

@exercise("masked_step", points=2)
@few
@given(problem=walks())
def test_with_nothing_pruned_it_is_plain_sgd(student, problem):
    """With a mask that is True everywhere: torch.optim.SGD with momentum and weight decay."""
    param, grads, mask, hyper, _ = problem
    got = walk(student, param, grads, [torch.ones_like(mask)] * len(grads), **hyper)
    for number, (mine, theirs) in enumerate(zip(got, visible.torch_walk(param, grads, **hyper)), start=1):
        assert_close(mine.double(), theirs, f"weights after step {number}", rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- cubic_sparsity

@exercise("cubic_sparsity", points=2)
@few
@given(schedule=visible.schedules())
def test_without_an_initial_sparsity_it_starts_at_zero(student, schedule):
    """`initial` is 0 if nobody says otherwise: at `begin` nothing is pruned, and at `end` the final share."""
    begin, end, final, _ = schedule
    assert_close(visible.sparsity_at(student, begin, begin, end, final), 0.0, "sparsity at begin", atol=1e-9)
    assert_close(visible.sparsity_at(student, end, begin, end, final), final, "sparsity at end", rtol=1e-6)


@exercise("cubic_sparsity", points=2)
@few
@given(schedule=visible.schedules())
def test_each_step_prunes_less_than_the_one_before(student, schedule):
    """It rises all the way, and ever more slowly."""
    begin, end, final, initial = schedule
    steps = torch.linspace(begin, end, 6).round().tolist()
    values = [visible.sparsity_at(student, int(step), begin, end, final, initial) for step in steps]
    slopes = [(b - a) / (t - s) for a, b, s, t in zip(values, values[1:], steps, steps[1:])]
    assert_that(all(slope > 0 for slope in slopes), "The sparsity does not rise all the way from begin to end.")
    assert_that(all(a >= b - 1e-9 for a, b in zip(slopes, slopes[1:])), "The sparsity does not rise ever more slowly.")


# ---------------------------------------------------------------- storage_bytes

@exercise("storage_bytes", points=1)
def test_four_bytes_name_as_many_places_as_they_can_and_no_more(student):
    """n places are 0 ... n - 1: with 2**32 of them four bytes are just enough, with one more it takes eight."""
    for bits, width in ((8, 1), (16, 2), (32, 4)):
        for n, wanted in ((2**bits, width), (2**bits + 1, 2 * width)):
            assert_close(visible.bytes_of(student, n, 10)["index"], 10.0 * (4 + wanted), f"bytes of 10 of {n} numbers, index")


@exercise("storage_bytes", points=1)
@few
@given(random=generators(), width=st.sampled_from([1, 2, 8]))
def test_numbers_may_have_any_width(student, random, width):
    """value_bytes is what one stored number takes: 4 for float32, 2 for float16, 1 for int8. Bits and places stay as they are."""
    n = integer(300, 60_000, random)
    kept = integer(0, n, random)
    expected = {"dense": float(n * width), "bitmask": float(kept * width + -(-n // 8)), "index": float(kept * (width + 2))}
    assert_close(visible.bytes_of(student, n, kept, width), expected, f"bytes of {kept} of {n} numbers of {width} bytes")


# ---------------------------------------------------------------- filter_importance, taylor_importance

@exercise("filter_importance", points=1)
@few
@given(random=generators(), shape=st.sampled_from([(3, 4), (2, 3, 5), (3, 1, 1, 1)]))
def test_what_belongs_to_a_filter_may_have_any_shape(student, random, shape):
    """A row of a matrix, a filter in one dimension: sum over all dimensions but the first, however many they are."""
    weight = normal(shape, random)
    visible.assert_importance(student.filter_importance(weight), torch.stack([w.double().abs().sum() for w in weight]))


@exercise("taylor_importance", points=3)
@few
@given(random=generators(), per_filter=st.booleans())
def test_opposite_gradients_of_two_batches_do_not_cancel(student, random, per_filter):
    """A trained network's gradients are zero on average, not batch by batch. Square first, then take the mean over the batches."""
    weight, grads = visible.weight_and_grads(random, (3, 2, 3, 3), batches=1)
    once = student.taylor_importance(weight, grads, per_filter=per_filter)
    twice = student.taylor_importance(weight, torch.cat([grads, -grads]), per_filter=per_filter)
    product = weight.double() * grads[0].double()
    expected = product.flatten(1).sum(1) ** 2 if per_filter else product**2
    visible.assert_taylor(once, expected, "importance with one batch")
    visible.assert_taylor(twice, expected, "importance with two batches of opposite gradients")


@exercise("taylor_importance", points=1)
@few
@given(random=generators(), shape=st.sampled_from([(3, 4), (2, 3, 5), (3, 1, 2, 2)]))
def test_what_belongs_to_a_unit_may_have_any_shape(student, random, shape):
    """Rows of a matrix are units too: with per_filter, sum over all dimensions after that of the outputs."""
    weight, grads = visible.weight_and_grads(random, shape)
    expected = sum((weight.double() * g.double()).flatten(1).sum(1) ** 2 for g in grads) / len(grads)
    visible.assert_taylor(student.taylor_importance(weight, grads, per_filter=True), expected)


# ---------------------------------------------------------------- prune_filters

@exercise("prune_filters", points=3)
@few
@given(random=generators(), channels=st.sampled_from([(5,), (3, 4, 2, 5)]))
def test_a_network_of_any_depth_can_be_cut(student, random, channels):
    """`keep` has an entry for each convolution: with one of them the head follows at once, with four it follows the fourth."""
    visible.assert_same_output(student, random, channels)


@exercise("prune_filters", points=3)
@few
@given(random=generators())
def test_the_heads_inputs_go_with_the_last_filters(student, random):
    """The head reads one number from each filter of the last convolution: its columns go, its rows and its bias stay."""
    channels = (3, 6)
    state, keep = visible.random_network(random, channels), [torch.arange(3), visible.random_keep(random, (6,))[0]]
    small = student.prune_filters(state, keep)
    visible.assert_sizes(small, state, keep)
    assert_close(small["head.weight"], state["head.weight"][:, keep[1]], "head.weight", rtol=1e-6)
    assert_close(small["head.bias"], state["head.bias"], "head.bias", rtol=1e-6)


@exercise("prune_filters", points=3)
@few
@given(random=generators())
def test_only_a_layer_and_its_reader_change(student, random):
    """Where layer 1 alone loses filters, its own tensors and the inputs of layer 2 change, and nothing else."""
    channels = (3, 5, 4)
    state = visible.random_network(random, channels)
    keep = [torch.arange(3), visible.random_keep(random, (5,))[0], torch.arange(4)]
    small = student.prune_filters(state, keep)
    visible.assert_sizes(small, state, keep)
    for name in state:
        if not (name.startswith(("convs.1", "norms.1")) or name == "convs.2.weight"):
            assert_close(small[name], state[name], name, rtol=1e-6)
    assert_close(small["convs.2.weight"], state["convs.2.weight"][:, keep[1]], "convs.2.weight", rtol=1e-6)


# ---------------------------------------------------------------- optional exercises

@exercise("sensitivity", points=0)
@few
@given(random=generators())
def test_the_accuracy_is_returned_as_it_was_measured(student, random):
    """Row i is layer i, column j is sparsity j, and the entry is what `accuracy` said: no difference, no mean."""
    weights, said = several(random), iter(range(100))
    got = student.sensitivity(lambda given: float(next(said)), weights, [0.2, 0.9])
    assert_that(isinstance(got, torch.Tensor) and got.shape == (3, 2), "The result must be a tensor [layers, sparsities].")
    assert_that(len(set(got.flatten().tolist())) == 6, "Each entry must come from a measurement of its own.")


@exercise("soft_threshold", points=0)
@few
@given(random=generators(), t=st.floats(0.1, 1.0))
def test_it_is_the_best_compromise_between_staying_and_being_small(student, random, t):
    """It makes (x - w)**2 / 2 + t * |x| least: no other x does better."""
    w = 2 * normal((6,), random).double()
    cost = lambda x: (x - w) ** 2 / 2 + t * x.abs()
    x = student.soft_threshold(w, t)
    others = torch.linspace(-6, 6, 601, dtype=torch.float64)[:, None]
    assert_that(bool((cost(x) <= cost(others).amin(0) + 1e-9).all()), "Another x has a smaller (x - w)**2 / 2 + t * |x|.")


@exercise("hard_concrete_gate", points=0)
@few
@given(random=generators())
def test_the_gradient_of_the_probability_reaches_log_alpha(student, random):
    """The cost of an open gate is learned by the probability: p * (1 - p) is its derivative."""
    log_alpha = normal((6,), random)
    (_, p, _), gradients = student.hard_concrete_gate.vjp(log_alpha, torch.full((6,), 0.4), 0.7, cotangent=(None, torch.ones(6), None))
    assert_that(gradients[0] is not None, "No gradient comes from the probability back to log_alpha.")
    assert_close(gradients[0].double(), p.double() * (1 - p.double()), "gradient of the probability for log_alpha", rtol=1e-3, atol=1e-5)
