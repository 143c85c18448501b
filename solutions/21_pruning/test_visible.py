"""What the functions of this lab must do: the part that a student has too.

Counts are exact. Which of several equal weights goes is free, and so is the order of sums. Surgery is judged by what the
small network computes, against the large one with its filters masked. Inputs are random; the probes at the end have
fixed ones.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course import pruning, timing
from course.spec import assert_close, assert_that, exercise, probe, speed, work

# Every example costs calls, and a call in grading a millisecond or more.
some, few = settings(max_examples=10), settings(max_examples=5)
SHAPES = [(7,), (3, 4), (4, 2, 3, 3), (1, 5)]


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def normal(shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=random, dtype=dtype)


def integer(low: int, high: int, random: torch.Generator) -> int:
    """low <= number <= high"""
    return int(torch.randint(low, high + 1, (), generator=random))


# ---------------------------------------------------------------- magnitude_mask

def a_share(n: int, random: torch.Generator) -> tuple[float, int]:
    """A sparsity, and how many of n weights it prunes: never near a half, where two right roundings may differ."""
    k = integer(0, n, random)
    sparsity = (k + 0.7 * float(torch.rand((), generator=random)) - 0.35) / n
    return min(max(sparsity, 0.0), 1.0), k


def assert_mask(mask, weight: Tensor, what: str = "The mask") -> None:
    assert_that(isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == weight.shape,
                f"{what} must be a tensor of bool with the shape of the weight, {list(weight.shape)}; it is "
                f"{f'{mask.dtype} of shape {list(mask.shape)}' if isinstance(mask, Tensor) else type(mask).__name__}.")


def assert_count(masks: list[Tensor], k: int) -> None:
    n, gone = sum(m.numel() for m in masks), sum(int((~m).sum()) for m in masks)
    assert_that(gone == k, f"{k} of {n} weights should be pruned (False in the mask); {gone} are.")


def assert_smallest_gone(masks: list[Tensor], weights: list[Tensor]) -> None:
    mask, size = torch.cat([m.flatten() for m in masks]), torch.cat([w.flatten() for w in weights]).abs()
    if bool(mask.any()) and not bool(mask.all()):
        gone, kept = size[~mask].max().item(), size[mask].min().item()
        assert_that(gone <= kept, f"A weight of size {gone:.4g} is pruned while one of size {kept:.4g} stays.")


@exercise("magnitude_mask", points=4)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES))
def test_the_mask_prunes_exactly_the_share_that_is_asked_for(student, random, shape):
    """round(sparsity * n) of the n weights are pruned: so many entries of the mask are False, all others True."""
    weight = normal(shape, random)
    sparsity, k = a_share(weight.numel(), random)
    mask = student.magnitude_mask(weight, sparsity)
    assert_mask(mask, weight)
    assert_count([mask], k)


@exercise("magnitude_mask", points=4)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES))
def test_the_smallest_weights_go_whatever_their_sign(student, random, shape):
    """Order the weights by |w|, over the whole tensor and not row by row. A weight of -3 is a large one."""
    weight = normal(shape, random)
    mask = student.magnitude_mask(weight, integer(1, weight.numel() - 1, random) / weight.numel())
    assert_mask(mask, weight)
    assert_smallest_gone([mask], [weight])


@exercise("magnitude_mask", points=3)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES))
def test_equal_weights_are_counted_one_by_one(student, random, shape):
    """A threshold takes all equal weights or none. Take the first k of the sorted order (argsort, topk) instead: then the
    number is exact, and which of equal ones goes is free."""
    weight = torch.randint(-1, 2, shape, generator=random) * 0.5
    sparsity, k = a_share(weight.numel(), random)
    mask = student.magnitude_mask(weight, sparsity)
    assert_mask(mask, weight)
    assert_count([mask], k)
    assert_smallest_gone([mask], [weight])


# ---------------------------------------------------------------- global_magnitude_masks

def several(random: torch.Generator) -> list[Tensor]:
    """Weights of different shapes and sizes, as the layers of a network have them."""
    shapes = [(2, 1, 3, 3), (3, 2, 3, 3), (4, 3)]
    return [normal(shape, random) * scale for shape, scale in zip(shapes, (1.0, 0.3, 0.6))]


def masks_of(student, weights: list[Tensor], sparsity: float) -> list[Tensor]:
    masks = student.global_magnitude_masks(weights, sparsity)
    assert_that(type(masks) in (list, tuple) and len(masks) == len(weights), f"{len(weights)} masks are wanted, one for each weight, as a list.")
    for i, (mask, weight) in enumerate(zip(masks, weights)):
        assert_mask(mask, weight, f"Mask {i}")
    return list(masks)


@exercise("global_magnitude_masks", points=5)
@some
@given(random=generators())
def test_no_weight_is_pruned_while_a_smaller_one_stays_in_any_tensor(student, random):
    """One order for the weights of all tensors: join them (flatten, torch.cat), and choose among all."""
    weights = several(random)
    sparsity = integer(10, 70, random) / 84
    assert_smallest_gone(masks_of(student, weights, sparsity), weights)


@exercise("global_magnitude_masks", points=4)
@some
@given(random=generators())
def test_the_share_is_that_of_all_weights_together(student, random):
    """round(sparsity * n) weights are pruned, where n counts the weights of all tensors."""
    weights = several(random)
    sparsity, k = a_share(84, random)
    assert_count(masks_of(student, weights, sparsity), k)


@exercise("global_magnitude_masks", points=2)
@few
@given(random=generators())
def test_equal_weights_in_different_tensors_are_counted_one_by_one(student, random):
    """A threshold takes all equal weights or none, and after a first pruning many are equal: they are zero. Take the first k of
    the sorted order of all."""
    weights = [w * (torch.rand(w.shape, generator=random) < 0.2) for w in several(random)]
    k = integer(5, 45, random)
    masks = masks_of(student, weights, k / 84)
    assert_count(masks, k)
    assert_smallest_gone(masks, weights)


@exercise("global_magnitude_masks", points=1)
@few
@given(random=generators())
def test_sparsity_zero_keeps_all_weights_and_one_keeps_none(student, random):
    """Both ends are allowed: masks that are True everywhere, and masks that are False everywhere."""
    weights = several(random)
    for sparsity, k in ((0.0, 0), (1.0, 84)):
        assert_count(masks_of(student, weights, sparsity), k)


@exercise("global_magnitude_masks", points=1)
@few
@given(random=generators())
def test_a_tensor_of_small_weights_may_lose_them_all(student, random):
    """The tensors share one threshold. Where all weights are below it, none stays, and that is as it should be here."""
    large, small = 2 + torch.rand(3, 4, generator=random), torch.rand(12, generator=random).view(2, 6)
    masks = masks_of(student, [large, small], 0.5)
    assert_close(masks, [torch.ones(3, 4, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)], "masks")


# ---------------------------------------------------------------- masked_step

STEPS = 4


def walk(student, param: Tensor, grads: list[Tensor], masks: list[Tensor], lr: float | list[float], **hyper: float) -> list[Tensor]:
    """The parameter after each step; lr may be one for all of them, or a list."""
    places, state = [], {}
    for grad, mask, rate in zip(grads, masks, each(lr)):
        result = student.masked_step(param, grad, state, mask, lr=rate, **hyper)
        assert_that(type(result) in (tuple, list) and len(result) == 2, "masked_step must return two things: the new parameter and the new state.")
        param, state = result
        assert_that(isinstance(param, Tensor) and param.shape == grad.shape, f"The new parameter must be a tensor of shape {list(grad.shape)}.")
        places.append(param)
    return places


def each(lr: float | list[float]) -> list[float]:
    return lr if type(lr) is list else [lr] * STEPS


def torch_walk(param: Tensor, grads: list[Tensor], lr: float | list[float], **hyper: float) -> list[Tensor]:
    free = param.clone()
    optimizer, places = torch.optim.SGD([free], lr=1.0, **hyper), []
    for grad, rate in zip(grads, each(lr)):
        optimizer.param_groups[0]["lr"] = rate
        free.grad = grad.clone()
        optimizer.step()
        places.append(free.clone())
    return places


@st.composite
def walks(draw) -> tuple:
    """A parameter, gradients, a mask, and hyperparameters, in float64."""
    random, shape = draw(generators()), draw(st.sampled_from([(9,), (3, 4), (2, 2, 3, 3)]))
    grads = [normal(shape, random, torch.float64) for _ in range(STEPS)]
    hyper = {"lr": draw(st.floats(0.05, 0.5)), "momentum": draw(st.floats(0.3, 0.95)), "weight_decay": draw(st.floats(0.1, 1.0))}
    mask = torch.rand(shape, generator=random) < 0.6
    mask.view(-1)[:2] = torch.tensor([True, False])
    return normal(shape, random, torch.float64), grads, mask, hyper, random


@exercise("masked_step", points=4)
@some
@given(problem=walks())
def test_surviving_weights_step_as_in_torch(student, problem):
    """With the weight decay in the gradient: g = grad + weight_decay * param; then v = momentum * v + g, and the parameter
    moves by -lr * v."""
    param, grads, mask, hyper, _ = problem
    both = zip(walk(student, param, grads, [mask] * STEPS, **hyper), torch_walk(param, grads, **hyper))
    for number, (got, expected) in enumerate(both, start=1):
        assert_close(got[mask].double(), expected[mask], f"surviving weights after step {number}", rtol=1e-5, atol=1e-6)


@exercise("masked_step", points=3)
@some
@given(problem=walks())
def test_pruned_weights_are_zero_after_every_step(student, problem):
    """Multiply the new parameter by the mask, at the last. To mask the gradient is not enough: a weight that has just been
    pruned still has its old value."""
    param, grads, mask, hyper, _ = problem
    for number, got in enumerate(walk(student, param, grads, [mask] * STEPS, **hyper), start=1):
        assert_close(got[~mask].double(), torch.zeros(int((~mask).sum()), dtype=torch.float64), f"pruned weights after step {number}",
                     atol=0)


@exercise("masked_step", points=2)
@few
@given(problem=walks())
def test_a_weight_pruned_on_the_way_stops_at_once(student, problem):
    """The mask of each step counts. A weight that is pruned at the third step has a velocity, and must be zero all the same."""
    param, grads, mask, hyper, _ = problem
    everything = torch.ones_like(mask)
    for got in walk(student, param, grads, [everything, everything, mask, mask], **hyper)[2:]:
        assert_close(got[~mask].double(), torch.zeros(int((~mask).sum()), dtype=torch.float64), "weights pruned at step 3", atol=0)


@exercise("masked_step", points=3)
@few
@given(problem=walks())
def test_a_weight_that_comes_back_starts_from_rest(student, problem):
    """Its velocity must be zero too, and not wait in the state: mask all of v, its past as well. Here a weight is pruned at the second
    step, and comes back at the third with no gradient: it must stay where it is, at zero."""
    param, grads, mask, hyper, _ = problem
    everything = torch.ones_like(mask)
    grads = grads[:2] + [g * mask for g in grads[2:]]
    for number, got in enumerate(walk(student, param, grads, [everything, mask, everything, everything], **hyper)[2:], start=3):
        assert_close(got[~mask].double(), torch.zeros(int((~mask).sum()), dtype=torch.float64), f"weights that came back, after step {number}",
                     atol=1e-12)


@exercise("masked_step", points=2)
@few
@given(problem=walks())
def test_the_learning_rate_is_that_of_the_step(student, problem):
    """It falls while a network is trained. The velocity is a sum of gradients, and is multiplied by the learning rate of each step
    when the parameter moves."""
    param, grads, mask, hyper, _ = problem
    hyper |= {"lr": [hyper["lr"] / number for number in range(1, STEPS + 1)]}
    both = zip(walk(student, param, grads, [mask] * STEPS, **hyper), torch_walk(param, grads, **hyper))
    for number, (got, expected) in enumerate(both, start=1):
        assert_close(got[mask].double(), expected[mask], f"surviving weights after step {number}, at a falling rate", rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- cubic_sparsity

@st.composite
def schedules(draw) -> tuple[int, int, float, float]:
    """begin, end, final, initial"""
    begin = draw(st.integers(0, 200))
    initial = draw(st.floats(0.05, 0.5))
    return begin, begin + draw(st.integers(5, 300)), draw(st.floats(0.6, 0.99)), initial


def sparsity_at(student, *args: float) -> float:
    value = student.cubic_sparsity(*args)
    assert_that(type(value) in (int, float) or isinstance(value, Tensor) and value.numel() == 1, "cubic_sparsity must return one number.")
    return float(value)


@exercise("cubic_sparsity", points=4)
@some
@given(schedule=schedules(), share=st.floats(0.02, 0.98))
def test_what_is_left_of_the_way_shrinks_with_the_third_power(student, schedule, share):
    """What is left of the way from the initial to the final sparsity shrinks as (1 - t)**3, where t goes from 0 at `begin` to 1
    at `end`."""
    begin, end, final, initial = schedule
    step = round(begin + share * (end - begin))
    left = ((end - step) / (end - begin)) ** 3
    assert_close(sparsity_at(student, step, begin, end, final, initial), left * initial + (1 - left) * final, "sparsity", rtol=1e-6)


@exercise("cubic_sparsity", points=3)
@some
@given(schedule=schedules(), beyond=st.integers(0, 500))
def test_it_is_flat_before_begin_and_after_end(student, schedule, beyond):
    """Before `begin` it is the initial sparsity, from `end` on the final one: clamp the share of the way to 0 ... 1."""
    begin, end, final, initial = schedule
    assert_close(sparsity_at(student, begin - beyond, begin, end, final, initial), initial, f"sparsity {beyond} steps before begin", rtol=1e-6)
    assert_close(sparsity_at(student, end + beyond, begin, end, final, initial), final, f"sparsity {beyond} steps after end", rtol=1e-6)


@exercise("cubic_sparsity", points=1)
@few
@given(schedule=schedules())
def test_half_way_seven_eighths_are_done(student, schedule):
    """(1/2)**3 = 1/8 is left at half time: it prunes fast at first, when there is much to choose from, and slowly at last."""
    begin, end, final, _ = schedule
    end += (end - begin) % 2
    assert_close(sparsity_at(student, (begin + end) // 2, begin, end, final), 7 / 8 * final, "sparsity half way from 0", rtol=1e-6)


# ---------------------------------------------------------------- storage_bytes

def bytes_of(student, *args) -> dict:
    found = student.storage_bytes(*args)
    assert_that(type(found) is dict and set(found) == {"dense", "bitmask", "index"},
                'The result must be a dict with the keys "dense", "bitmask" and "index".')
    return {name: float(value) for name, value in found.items()}


@exercise("storage_bytes", points=1)
@few
@given(random=generators())
def test_dense_stores_every_number(student, random):
    """n numbers of value_bytes each, zeros too."""
    n = integer(1, 10**6, random)
    assert_close(bytes_of(student, n, integer(0, n, random))["dense"], 4.0 * n, f"bytes of {n} numbers, dense")


@exercise("storage_bytes", points=3)
@some
@given(random=generators(), size=st.sampled_from([20, 10**4, 10**7]))
def test_bitmask_adds_one_bit_for_each_place_in_whole_bytes(student, random, size):
    """The kept numbers, and one bit for each of the n places, eight to a byte: n / 8, rounded up."""
    whole = integer(1, size, random) // 8 * 8
    for n in (whole + 1, whole + integer(2, 7, random), whole + 8):  # one bit more than whole bytes, some more, and just enough
        kept = integer(0, n, random)
        assert_close(bytes_of(student, n, kept)["bitmask"], 4.0 * kept + math.ceil(n / 8), f"bytes of {kept} of {n} numbers, bitmask")


@exercise("storage_bytes", points=2)
@some
@given(random=generators(), size=st.sampled_from([200, 60_000, 10**8]))
def test_index_adds_the_fewest_whole_bytes_that_can_name_every_place(student, random, size):
    """Each kept number comes with its place, 0 ... n - 1: in 1 byte if n is at most 256, in 2 up to 65536, in 4, or in 8."""
    n, kept = integer(size // 2, size, random), integer(1, 100, random)
    width = 1 if n <= 2**8 else 2 if n <= 2**16 else 4
    assert_close(bytes_of(student, n, kept)["index"], float(kept * (4 + width)), f"bytes of {kept} of {n} numbers, index")


@exercise("storage_bytes", points=2)
def test_a_place_has_as_many_bytes_as_it_needs_and_no_more(student):
    """n places are 0 ... n - 1, never negative: with 256 of them one byte is just enough, with 257 it takes two. Above 65536 it takes four,
    as a processor has no integers of three bytes."""
    for n, width in ((200, 1), (256, 1), (257, 2), (40_000, 2), (65536, 2), (65537, 4), (97_056, 4)):
        assert_close(bytes_of(student, n, 10)["index"], 10.0 * (4 + width), f"bytes of 10 of {n} numbers, index")


# ---------------------------------------------------------------- filter_importance

FILTERS = [(3, 2, 3, 3), (4, 1, 3, 3), (2, 5, 1, 1)]


def assert_importance(got, expected: Tensor, what: str = "importance") -> None:
    assert_that(isinstance(got, Tensor) and got.shape == expected.shape,
                f"The importance must be a tensor of shape {list(expected.shape)}, one number for each filter; its shape is "
                f"{list(got.shape) if isinstance(got, Tensor) else type(got).__name__}.")
    assert_close(got.double(), expected.double(), what, rtol=1e-4, atol=1e-7)


@exercise("filter_importance", points=4)
@some
@given(random=generators(), shape=st.sampled_from(FILTERS))
def test_a_filter_counts_by_the_sum_of_its_absolute_weights(student, random, shape):
    """Filter o is weight[o], all of its input channels and places: abs, then the sum over every dimension but the first."""
    weight = normal(shape, random)
    assert_importance(student.filter_importance(weight), torch.stack([w.double().abs().sum() for w in weight]))


@exercise("filter_importance", points=3)
@some
@given(random=generators(), shape=st.sampled_from(FILTERS))
def test_the_gain_of_batchnorm_multiplies_the_sum(student, random, shape):
    """Multiply each filter's sum by the size of its gain: what leaves the BatchNorm is the filter's output times the gain."""
    weight, gain = normal(shape, random), 0.2 + torch.rand(shape[0], generator=random)
    expected = torch.stack([g.double() * w.double().abs().sum() for w, g in zip(weight, gain)])
    assert_importance(student.filter_importance(weight, gain), expected)


@exercise("filter_importance", points=2)
@few
@given(random=generators())
def test_a_negative_gain_counts_like_a_positive_one(student, random):
    """BatchNorm may turn the sign; what matters is how large the output is. Take the absolute value of the gain."""
    weight, gain = normal((4, 2, 3, 3), random), -0.2 - torch.rand(4, generator=random)
    expected = torch.stack([-g.double() * w.double().abs().sum() for w, g in zip(weight, gain)])
    assert_importance(student.filter_importance(weight, gain), expected)


@exercise("filter_importance", points=1)
@few
@given(random=generators())
def test_a_row_of_a_matrix_is_a_filter_too(student, random):
    """The weight is [o, *rest], whatever rest is: a linear layer's is [o, i]. Sum over all dimensions but the first, however many they are."""
    weight, gain = normal((3, 4), random), 0.2 + torch.rand(3, generator=random)
    sums = torch.stack([w.double().abs().sum() for w in weight])
    assert_importance(student.filter_importance(weight), sums)
    assert_importance(student.filter_importance(weight, gain), gain.double() * sums)


@exercise("filter_importance", points=1)
@few
@given(random=generators(), factor=st.floats(0.1, 10))
def test_a_filter_twice_as_large_with_half_the_gain_counts_the_same(student, random, factor):
    """BatchNorm divides by the size of what comes in: the two networks compute the same, so the importance must be the same."""
    weight, gain = normal((3, 2, 3, 3), random), 0.2 + torch.rand(3, generator=random)
    got = student.filter_importance(factor * weight, gain / factor)
    expected = torch.stack([g.double() * w.double().abs().sum() for w, g in zip(weight, gain)])
    assert_importance(got, expected, f"importance of filters {factor:.3g} times as large")


# ---------------------------------------------------------------- taylor_importance

def weight_and_grads(random: torch.Generator, shape: tuple[int, ...], batches: int = 3) -> tuple[Tensor, Tensor]:
    return normal(shape, random), normal((batches, *shape), random)


def assert_taylor(got, expected: Tensor, what: str = "importance") -> None:
    assert_that(isinstance(got, Tensor) and got.shape == expected.shape,
                f"The importance must be a tensor of shape {list(expected.shape)}; its shape is "
                f"{list(got.shape) if isinstance(got, Tensor) else type(got).__name__}.")
    assert_close(got.double(), expected.double(), what, rtol=1e-3, atol=1e-5)


@exercise("taylor_importance", points=4)
@some
@given(random=generators(), shape=st.sampled_from([(3, 4), (2, 3, 3, 3)]))
def test_each_weight_counts_by_the_mean_square_of_weight_times_gradient(student, random, shape):
    """Multiply the weight with each batch's gradient, square, and take the mean over the batches, the first dimension of grads."""
    weight, grads = weight_and_grads(random, shape)
    expected = sum((weight.double() * g.double()) ** 2 for g in grads) / len(grads)
    assert_taylor(student.taylor_importance(weight, grads), expected)


@exercise("taylor_importance", points=4)
@some
@given(random=generators(), shape=st.sampled_from([(3, 2, 3, 3), (4, 1, 2, 2)]))
def test_a_filter_is_summed_before_it_is_squared(student, random, shape):
    """All weights of a filter go together: what one of them adds to the loss another may take away. Sum weight times gradient
    over the filter, then square, then take the mean over the batches."""
    weight, grads = weight_and_grads(random, shape)
    expected = sum((weight.double() * g.double()).flatten(1).sum(1) ** 2 for g in grads) / len(grads)
    assert_taylor(student.taylor_importance(weight, grads, per_filter=True), expected)


@exercise("taylor_importance", points=1)
@few
@given(random=generators())
def test_a_row_of_a_matrix_is_summed_too(student, random):
    """The weight is [o, *rest], whatever rest is: a linear layer's is [o, i]. With per_filter, sum over all dimensions after that of the
    outputs, however many they are."""
    weight, grads = weight_and_grads(random, (3, 4))
    expected = sum((weight.double() * g.double()).sum(1) ** 2 for g in grads) / len(grads)
    assert_taylor(student.taylor_importance(weight, grads, per_filter=True), expected)


@exercise("taylor_importance", points=2)
@few
@given(random=generators())
def test_a_linear_loss_changes_by_the_root_of_the_importance(student, random):
    """If the loss is a sum of c * w, its gradient is c, and without filter o it changes by exactly the sum of c * w over that
    filter: the first order is then the whole truth."""
    weight, c = normal((3, 2, 3, 3), random), normal((3, 2, 3, 3), random)
    loss = lambda w: (c.double() * w.double()).sum()
    changes = []
    for o in range(3):
        without = weight.clone()
        without[o] = 0
        changes.append((loss(weight) - loss(without)) ** 2)
    assert_taylor(student.taylor_importance(weight, c[None], per_filter=True), torch.stack(changes), "squared change of the loss")


# ---------------------------------------------------------------- prune_filters

def random_network(random: torch.Generator, channels: tuple[int, ...], classes: int = 3, dtype: torch.dtype = torch.float64) -> dict:
    """A state as models.ConvNet has one, with BatchNorms that do something."""
    state, before = {}, 1
    for k, c in enumerate(channels):
        state[f"convs.{k}.weight"] = normal((c, before, 3, 3), random, dtype)
        for part in ("weight", "bias", "running_mean"):
            state[f"norms.{k}.{part}"] = 0.3 + normal((c,), random, dtype)
        state[f"norms.{k}.running_var"] = 0.5 + 2 * torch.rand(c, generator=random, dtype=dtype)
        before = c
    return state | {"head.weight": normal((classes, before), random, dtype), "head.bias": normal((classes,), random, dtype)}


def random_keep(random: torch.Generator, channels: tuple[int, ...]) -> list[Tensor]:
    """At least one filter of each layer, and never just the first ones."""
    keep = []
    for c in channels:
        rows = torch.randperm(c, generator=random)[:integer(1, c - 1, random)].sort().values
        keep.append(rows + 1 if int(rows[-1]) == len(rows) - 1 else rows)
    return keep


def gates(state: dict, keep: list[Tensor]) -> list[Tensor]:
    """1 for a filter that is kept, 0 for the others."""
    made = [torch.zeros_like(state[f"norms.{k}.bias"]) for k in range(len(keep))]
    return [gate.index_fill(0, rows, 1.0) for gate, rows in zip(made, keep)]


def assert_sizes(small, state: dict, keep: list[Tensor]) -> None:
    assert_that(type(small) is dict and set(small) == set(state), f"The small network must have the same {len(state)} names as the large one.")
    before = 1
    for k, rows in enumerate(keep):
        sizes = {f"convs.{k}.weight": [len(rows), before, 3, 3]}
        sizes |= {f"norms.{k}.{part}": [len(rows)] for part in ("weight", "bias", "running_mean", "running_var")}
        before = len(rows)
        if k + 1 == len(keep):
            sizes |= {"head.weight": [len(state["head.bias"]), before], "head.bias": [len(state["head.bias"])]}
        for name, size in sizes.items():
            got = small[name]
            assert_that(isinstance(got, Tensor) and list(got.shape) == size,
                        f"{name} must have shape {size} when the layers keep {', '.join(str(len(r)) for r in keep)} filters; it has "
                        f"{list(got.shape) if isinstance(got, Tensor) else type(got).__name__}.")


def assert_same_output(student, random: torch.Generator, channels: tuple[int, ...]) -> None:
    state, keep = random_network(random, channels), random_keep(random, channels)
    small = student.prune_filters(state, keep)
    assert_sizes(small, state, keep)
    x = normal((2, 1, 8, 8), random, torch.float64)
    assert_close(pruning.forward(small, x), pruning.forward(state, x, gates(state, keep)), "logits of the small network", rtol=1e-5, atol=1e-7)


@exercise("prune_filters", points=8)
@some
@given(random=generators(), channels=st.sampled_from([(4, 5), (3, 4, 5)]))
def test_the_small_network_computes_what_masking_computes(student, random, channels):
    """A filter that goes takes its row of the weight and its four numbers of the BatchNorm with it, and the next layer loses the
    input channel that it fed. The numbers that stay are the same."""
    assert_same_output(student, random, channels)


@exercise("prune_filters", points=4)
@few
@given(random=generators())
def test_every_tensor_is_as_large_as_what_is_left(student, random):
    """weight[keep] for the outputs, weight[:, keep of the layer before] for the inputs, and [keep] for each vector of the
    BatchNorm. The head has inputs too."""
    channels = (4, 6, 5)
    state, keep = random_network(random, channels), random_keep(random, channels)
    assert_sizes(student.prune_filters(state, keep), state, keep)


@exercise("prune_filters", points=2)
@few
@given(random=generators())
def test_each_filter_keeps_its_own_batchnorm(student, random):
    """Gamma, beta, running mean and running variance are indexed with the same `keep` as the filters."""
    channels = (5, 4)
    state, keep = random_network(random, channels), random_keep(random, channels)
    small = student.prune_filters(state, keep)
    assert_sizes(small, state, keep)
    for k, rows in enumerate(keep):
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert_close(small[f"norms.{k}.{part}"], state[f"norms.{k}.{part}"][rows], f"norms.{k}.{part}", rtol=1e-6)


@exercise("prune_filters", points=1)
@few
@given(random=generators())
def test_filters_come_in_the_order_in_which_keep_lists_them(student, random):
    """keep[k] = [3, 0] puts filter 3 before filter 0: index with `keep` as it is, and the next layer's inputs too."""
    state = random_network(random, (3, 4))
    keep = [torch.tensor([2, 0]), torch.tensor([3, 0, 1])]
    small = student.prune_filters(state, keep)
    assert_sizes(small, state, keep)
    assert_close(small["convs.0.weight"], state["convs.0.weight"][[2, 0]], "convs.0.weight", rtol=1e-6)
    assert_close(small["norms.1.running_mean"], state["norms.1.running_mean"][[3, 0, 1]], "norms.1.running_mean", rtol=1e-6)
    x = normal((2, 1, 8, 8), random, torch.float64)
    assert_close(pruning.forward(small, x), pruning.forward(state, x, gates(state, keep)), "logits of the small network", rtol=1e-5, atol=1e-7)


@exercise("prune_filters", points=1)
@few
@given(random=generators())
def test_keeping_every_filter_changes_nothing(student, random):
    """keep = [0, 1, 2, ...] for each layer gives the network back."""
    state = random_network(random, (3, 2, 4))
    small = student.prune_filters(state, [torch.arange(c) for c in (3, 2, 4)])
    assert_close(small, state, "the network")


# ---------------------------------------------------------------- optional exercises

@exercise("sensitivity", points=0)
@few
@given(random=generators())
def test_one_layer_at_a_time_is_pruned_and_all_others_are_whole(student, random):
    """For each layer and each sparsity start from the weights as they were given: mask one of them, and hand the whole list to
    `accuracy`."""
    weights, sparsities = several(random), [0.25, 0.5, 0.75]
    whole = [w.double().abs().sum() for w in weights]

    def accuracy(given: list[Tensor]) -> float:
        """A number by which the test recognises what it was given."""
        assert_that(type(given) in (list, tuple) and len(given) == 3, "accuracy wants the list of all weights.")
        return float(sum(10.0**k * (w.double().abs().sum() / total) for k, (w, total) in enumerate(zip(given, whole))))
    expected = torch.tensor([[111 - 10.0**k * float(smallest_sum(w, s) / total) for s in sparsities]
                             for k, (w, total) in enumerate(zip(weights, whole))])
    got = student.sensitivity(accuracy, weights, sparsities)
    assert_that(isinstance(got, Tensor) and got.shape == (3, 3), "The result must be a tensor [layers, sparsities].")
    assert_close(got.float(), expected, "accuracy by layer and sparsity", rtol=1e-5)


def smallest_sum(w: Tensor, sparsity: float) -> Tensor:
    """The sum of the sizes of what is pruned."""
    sizes = w.double().abs().flatten().sort().values
    return sizes[:round(sparsity * len(sizes))].sum()


@exercise("soft_threshold", points=0)
@some
@given(random=generators(), t=st.floats(0.05, 2.0))
def test_every_weight_comes_nearer_to_zero_by_t_and_stops_there(student, random, t):
    """sign(w) * max(|w| - t, 0)."""
    w = 2 * normal((3, 5), random)
    expected = torch.where(w > t, w - t, torch.where(w < -t, w + t, 0.0))
    got = student.soft_threshold(w, t)
    assert_that(isinstance(got, Tensor) and got.shape == w.shape, "The result must have the shape of w.")
    assert_close(got.double(), expected.double(), "w after the step", rtol=1e-5, atol=1e-6)


@exercise("hard_concrete_gate", points=0)
@some
@given(random=generators(), beta=st.floats(0.3, 1.0))
def test_the_sample_is_a_stretched_and_clamped_sigmoid(student, random, beta):
    """s = sigmoid((log u - log(1 - u) + log_alpha) / beta); z = s * (zeta - gamma) + gamma, clamped to 0 ... 1."""
    log_alpha, u = 2 * normal((8,), random), 0.02 + 0.96 * torch.rand(8, generator=random)
    a, r = log_alpha.double(), u.double()
    s = 1 / (1 + torch.exp(-(torch.log(r / (1 - r)) + a) / beta))
    assert_gate(student.hard_concrete_gate(log_alpha, u, beta), 0, (1.2 * s - 0.1).clamp(0, 1), "sample z")


def assert_gate(result, which: int, expected: Tensor, what: str, atol: float = 1e-5) -> None:
    assert_that(type(result) in (tuple, list) and len(result) == 3,
                "Return three things: the sample, the probability of not being zero, and the gate for evaluation.")
    got = result[which]
    assert_that(isinstance(got, Tensor) and got.shape == expected.shape, f"{what} must be a tensor of shape {list(expected.shape)}.")
    assert_close(got.double(), expected.double(), what, rtol=1e-4, atol=atol)


@exercise("hard_concrete_gate", points=0)
@few
@given(random=generators(), beta=st.floats(0.3, 1.0))
def test_the_probability_is_how_often_a_sample_is_not_zero(student, random, beta):
    """sigmoid(log_alpha - beta * log(-gamma / zeta)): the share of all u whose sample is above zero."""
    log_alpha = normal((4,), random)
    u = (torch.arange(20_000) + 0.5) / 20_000
    s = torch.sigmoid((torch.logit(u.double()) + log_alpha.double()[:, None]) / beta)
    counted = (1.2 * s - 0.1 > 0).double().mean(1)
    assert_gate(student.hard_concrete_gate(log_alpha, torch.full((4,), 0.5), beta), 1, counted, "probability that z is not zero", atol=2e-4)


@exercise("hard_concrete_gate", points=0)
@few
@given(random=generators(), beta=st.floats(0.3, 1.0))
def test_the_gate_for_evaluation_has_no_noise(student, random, beta):
    """sigmoid(log_alpha) * (zeta - gamma) + gamma, clamped to 0 ... 1: neither u nor beta is in it."""
    log_alpha = 3 * normal((8,), random)
    expected = (1.2 / (1 + torch.exp(-log_alpha.double())) - 0.1).clamp(0, 1)
    assert_gate(student.hard_concrete_gate(log_alpha, torch.rand(8, generator=random), beta), 2, expected, "gate for evaluation")


@exercise("hard_concrete_gate", points=0)
@few
@given(random=generators())
def test_the_gradient_of_the_sample_reaches_log_alpha(student, random):
    """Built of differentiable operations: inside 0 ... 1 the gate is learned by its sample. Do not detach it."""
    log_alpha, u = normal((6,), random), 0.3 + 0.4 * torch.rand(6, generator=random)
    a = log_alpha.double().requires_grad_()
    s = torch.sigmoid((torch.logit(u.double()) + a) / 0.7)
    (1.2 * s - 0.1).clamp(0, 1).sum().backward()
    _, gradients = student.hard_concrete_gate.vjp(log_alpha, u, 0.7, cotangent=(torch.ones(6), None, None))
    assert_that(gradients[0] is not None, "No gradient comes from the sample back to log_alpha.")
    assert_close(gradients[0].double(), a.grad, "gradient of the sample for log_alpha", rtol=1e-3, atol=1e-5)


@exercise("hard_concrete_gate", points=0)
@few
@given(random=generators(), gamma=st.floats(-0.5, -0.15), zeta=st.floats(1.15, 1.5))
def test_the_stretch_may_be_any(student, random, gamma, zeta):
    """gamma < 0 and zeta > 1 say how far the interval is stretched; all three results depend on them."""
    log_alpha, u = normal((6,), random), 0.05 + 0.9 * torch.rand(6, generator=random)
    a, s = log_alpha.double(), torch.sigmoid((torch.logit(u.double()) + log_alpha.double()) / 0.5)
    result = student.hard_concrete_gate(log_alpha, u, 0.5, gamma, zeta)
    within = lambda part: (gamma + (zeta - gamma) * part).clamp(0, 1)
    wanted = (within(s), torch.sigmoid(a - 0.5 * math.log(-gamma / zeta)), within(torch.sigmoid(a)))
    for which, (what, expected) in enumerate(zip(("sample", "probability", "gate for evaluation"), wanted)):
        assert_gate(result, which, expected, what)


# ---------------------------------------------------------------- work, and time

BATCH, BATCHES = 256, 2
CHANNELS, SIDE = pruning.CHANNELS, 14


def half_the_filters(seed: int) -> tuple[dict, list[Tensor]]:
    random = torch.Generator().manual_seed(seed)
    state = random_network(random, CHANNELS, pruning.CLASSES, torch.float32)
    state |= {name: 0.1 * w for name, w in state.items() if "convs" in name}
    return state, [torch.randperm(c, generator=random)[:c // 2].sort().values for c in CHANNELS]


def masked_filters(state, keep):
    """Half of the filters of every layer set to zero, and the network as large as before."""
    masked = dict(state)
    for k, gate in enumerate(gates(state, keep)):
        masked |= {f"norms.{k}.{part}": state[f"norms.{k}.{part}"] * gate for part in ("weight", "bias")}
    return masked


def multiply_adds(function) -> float:
    """Of one image, from the shapes of what the function returns, which must compute what masking computes."""
    state, keep = half_the_filters(0)
    small, x = function(state, keep), waves(2, 1, SIDE, SIDE)
    assert_close(pruning.forward(small, x), pruning.forward(state, x, gates(state, keep)), "logits", rtol=1e-3, atol=1e-3)
    return float(pruning.multiply_adds(small, SIDE))


HALF = [c // 2 for c in CHANNELS]
SMALLEST = sum(9 * o * i * (SIDE // 2**k) ** 2 for k, (i, o) in enumerate(zip((1, *HALF), HALF))) + HALF[-1] * pruning.CLASSES


@work("prune_filters", points=5, ratio=3.5, cost=multiply_adds, unit="multiply-adds",
      limit=lambda: (SMALLEST, "half of the outputs of each layer, and half of the inputs of all but the first"))
def filters_that_are_masked(state, keep):
    """Multiply-adds for one image with half of the filters of each layer, against masking them."""
    return masked_filters(state, keep)


def images_too(seed: int) -> tuple[dict, list[Tensor], Tensor]:
    timing.keep_memory()
    random = torch.Generator().manual_seed(seed + 1)
    return *half_the_filters(seed), torch.rand(BATCHES, BATCH, 1, SIDE, SIDE, generator=random)


def surgery_and_batches(function, state: dict, keep: list[Tensor], batches: Tensor) -> Tensor:
    """The operation, then the network at work. The sum of the logits depends on every batch."""
    small, total = function(state, keep), torch.zeros(BATCH, pruning.CLASSES)
    for x in batches:
        total += pruning.forward(small, x)
    return total


def arithmetic_at_its_best() -> tuple[float, str]:
    operations = 2 * BATCHES * BATCH * SMALLEST
    return operations / timing.peak_flops("cpu"), f"{operations / 1e9:.2f} billion operations at the best rate of a matrix product"


@speed("prune_filters", points=10, ratio=2.2, inputs=images_too, work=surgery_and_batches, limit=arithmetic_at_its_best, rtol=1e-3, atol=1e-3)
def masked_network(state, keep):
    """Batches of 256 images through the network with half of its filters removed, against the same filters masked."""
    return masked_filters(state, keep)


# ---------------------------------------------------------------- probes: fixed questions that tell mistakes apart

def waves(*shape: int, phase: float = 0.0, factor: float = 1.0) -> Tensor:
    """Fixed numbers of different sizes and signs."""
    return (torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase) * factor).float().reshape(shape)


def plain(result):
    """Tensors as float64, so that a wrong dtype does not hide another mistake; tuples as lists."""
    if isinstance(result, Tensor):
        return result.double()
    return [plain(part) for part in result] if type(result) in (tuple, list) else result


TIES = torch.tensor([[0.5, -0.5, 0.5, 2.0], [-0.5, 0.5, -3.0, 0.5]])


@probe("magnitude_mask")
def masks_of_waves(student):
    return [plain(student.magnitude_mask(waves(3, 4), s)) for s in (0.0, 0.3, 0.48, 0.75, 1.0)]


@probe("magnitude_mask")
def counts_of_ties(student):
    return [float(plain(student.magnitude_mask(TIES, s)).sum()) for s in (0.25, 0.5)]


@probe("magnitude_mask")
def kind_of_mask(student):
    return str(student.magnitude_mask(waves(2, 3), 0.5).dtype)


@probe("global_magnitude_masks")
def masks_of_three(student):
    weights = [waves(2, 3), waves(3, 2, phase=1.0, factor=0.5) + 0.1, waves(4, phase=2.0, factor=2.0)]
    return [plain(student.global_magnitude_masks(weights, s)) for s in (0.3, 0.5, 0.8)]


@probe("global_magnitude_masks")
def counts_at_the_ends(student):
    return [sum(float(plain(mask).sum()) for mask in student.global_magnitude_masks([waves(2, 3), waves(4)], s)) for s in (0.0, 1.0)]


@probe("global_magnitude_masks")
def counts_of_ties_in_two(student):
    return [sum(float(plain(mask).sum()) for mask in student.global_magnitude_masks([TIES, TIES], s)) for s in (0.25, 0.5)]


@probe("masked_step")
def places_of_a_walk(student):
    found, param, state = [], waves(6), {}
    masks = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    for number, mask in enumerate(masks):
        param, state = student.masked_step(param, waves(6, phase=0.7 * number), state, mask, lr=0.5 / (number + 1), momentum=0.5, weight_decay=0.5)
        found.append(plain(param))
    return found


@probe("cubic_sparsity")
def sparsities_of_a_schedule(student):
    return [round(float(student.cubic_sparsity(step, 20, 60, 0.9, initial)), 6) for initial in (0.0, 0.3) for step in (0, 20, 25, 40, 55, 60, 80)]


@probe("storage_bytes")
def bytes_of_many(student):
    cases = ((100, 30, 4), (200, 10, 4), (40_000, 10, 4), (256, 10, 4), (257, 10, 2), (65536, 65536, 4), (65537, 100, 4), (1_000_001, 1000, 1), (9, 0, 4), (2**33, 5, 4))
    return [{name: float(value) for name, value in student.storage_bytes(*case).items()} for case in cases]


@probe("filter_importance")
def importance_of_filters(student):
    w = waves(3, 4, 3, 3)
    return [plain(student.filter_importance(w)), plain(student.filter_importance(w, torch.tensor([0.5, -2.0, 3.0])))]


@probe("taylor_importance")
def importance_by_gradient(student):
    w, g = waves(3, 4, 2, 2), waves(2, 3, 4, 2, 2, phase=0.4, factor=2.0)
    return [plain(student.taylor_importance(w, g)), plain(student.taylor_importance(w, g, per_filter=True)),
            plain(student.taylor_importance(w, torch.stack([g[0], -g[0]])))]


@probe("prune_filters")
def sizes_of_a_small_network(student):
    state = random_network(torch.Generator().manual_seed(0), (3, 4, 5))
    small = student.prune_filters(state, [torch.tensor(rows) for rows in ([0, 2], [1, 3], [0, 2, 3])])
    return {name: list(t.shape) for name, t in small.items()}


@probe("prune_filters")
def sums_of_a_small_network(student):
    state = random_network(torch.Generator().manual_seed(0), (3, 4, 5))
    small = student.prune_filters(state, [torch.tensor(rows) for rows in ([0, 2], [1, 3], [0, 2, 3])])
    return {name: float((t.double().flatten() * torch.arange(1, t.numel() + 1)).sum()) for name, t in small.items()}


@probe("prune_filters")
def order_of_a_small_network(student):
    state = random_network(torch.Generator().manual_seed(0), (3, 4))
    small = student.prune_filters(state, [torch.tensor([2, 0]), torch.tensor([3, 0, 1])])
    return {name: float((t.double().flatten() * torch.arange(1, t.numel() + 1)).sum()) for name, t in small.items()}


@probe("sensitivity")
def numbers_given_to_accuracy(student):
    weights = [waves(2, 3), waves(3, 2, phase=1.0), waves(4, phase=2.0)]
    return plain(student.sensitivity(lambda given: float(sum((k + 1) * w.abs().sum() for k, w in enumerate(given))), weights, [0.5, 0.75]))


@probe("soft_threshold")
def weights_after_the_step(student):
    return plain(student.soft_threshold(waves(12, factor=2.0), 0.6))


@probe("hard_concrete_gate")
def gates_of_all_kinds(student):
    log_alpha, u = waves(6, factor=3.0), torch.tensor([0.1, 0.3, 0.5, 0.6, 0.9, 0.2])
    return [plain(student.hard_concrete_gate(log_alpha, u, beta)) for beta in (0.5, 1.0)]


@probe("hard_concrete_gate")
def gates_of_another_stretch(student):
    return plain(student.hard_concrete_gate(waves(6, factor=3.0), torch.tensor([0.1, 0.3, 0.5, 0.6, 0.9, 0.2]), 0.5, -0.3, 1.4))


@probe("hard_concrete_gate")
def gradient_of_the_sample(student):
    gradient = student.hard_concrete_gate.vjp(waves(4), torch.tensor([0.3, 0.5, 0.6, 0.45]), 0.7, cotangent=(torch.ones(4), None, None))[1][0]
    return "none" if gradient is None else plain(gradient)
