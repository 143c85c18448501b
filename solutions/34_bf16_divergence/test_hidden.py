"""What the functions of this lab must do: the part that only the grader has. It has other recorded runs, too."""
from __future__ import annotations

import math
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course.spec import assert_close, assert_that, exercise
from course.spec.load import import_file

visible = import_file(Path(__file__).with_name("test_visible.py"))
some, few, generators, normal, wide, small_formats = (
    visible.some, visible.few, visible.generators, visible.normal, visible.wide, visible.small_formats)
BF16, FP16 = torch.bfloat16, torch.float16


# ---------------------------------------------------------------- decode_float, round_to_format

@exercise("decode_float", points=2)
@some
@given(fmt=st.tuples(st.integers(2, 8), st.integers(1, 11), st.booleans()), random=generators())
def test_any_split_of_the_bits_is_understood(student, fmt, random):
    """Nothing may be fixed to one format: masks, shifts and bias follow from the two numbers of bits. Any shape of codes."""
    codes = torch.randint(2 ** (1 + fmt[0] + fmt[1]), (4, 10), generator=random)
    visible.assert_decodes(student, codes, fmt, f"the values of codes in the format {fmt}")


@exercise("round_to_format", points=2)
@some
@given(fmt=small_formats, random=generators())
def test_no_number_of_the_format_is_nearer(student, fmt, random):
    """Of all numbers of the format, the result is the nearest. And what already is a number of the format stays."""
    numbers = visible.positive(fmt)
    numbers = torch.cat([-numbers.flip(0), numbers])
    x = 0.7 * float(numbers.max()) * normal((6, 10), random).clamp(-1.4, 1.4) * torch.exp2(-torch.randint(8, (6, 10), generator=random).float())
    got = student.round_to_format(x, *fmt)
    nearest = (numbers - x.double()[..., None]).abs().amin(-1)
    assert_close((got.double() - x.double()).abs(), nearest, f"the distance from x to its rounding in the format {fmt}", rtol=1e-6, atol=0)
    assert_close(student.round_to_format(numbers.float(), *fmt), numbers.float(), f"the numbers of the format {fmt}, rounded", rtol=0, atol=0)


# ---------------------------------------------------------------- swamped_sum

@exercise("swamped_sum", points=2)
@few
@given(random=generators(), n=st.sampled_from([1, 2, 5, 31]), rest=st.sampled_from([(), (1,), (2, 3)]))
def test_any_number_of_terms_and_any_shape_can_be_added(student, random, n, rest):
    """One term is its own sum; halves need not be equal; only the first dimension goes away."""
    x = normal((n, *rest), random, torch.float32).abs().to(FP16) + 1
    for method in ("naive", "pairwise", "kahan"):
        got = student.swamped_sum(x, method)
        true = x.double().sum(0)
        assert_close(got.double() if isinstance(got, torch.Tensor) else got, true, f"the {method} sum of {n} terms of shape {list(rest)}", rtol=n * 2.0**-11, atol=0)
    x = torch.cat([torch.full((1, *rest), 2048.0), torch.ones(n, *rest)]).to(FP16)      # fp16's numbers are 2 apart there
    assert_close(student.swamped_sum(x), torch.full(rest, 2048.0).to(FP16), "2048 and then ones, in fp16, without a method given", rtol=0)


# ---------------------------------------------------------------- bf16_update, stochastic_round, master_weight_step

@exercise("bf16_update", points=1)
@few
@given(random=generators(), shape=st.sampled_from([(8,), (3, 4), ()]))
def test_the_share_is_one_of_the_updates_that_are_not_zero(student, random, shape):
    """Updates of 0 count neither as lost nor as updates, in whatever shape; without any other the share is 0.0."""
    weight = normal(shape, random, BF16)
    assert_close(student.bf16_update(weight, torch.zeros(shape)), (weight, 0.0), "weight and share after updates of 0")
    one = torch.tensor([1.0, 2.0]).to(BF16)
    assert_close(student.bf16_update(one, torch.tensor([1e-4, 0.0]))[1], 1.0, "the share of lost updates, where the only one is lost")
    large = weight.float() / 2
    assert_close(student.bf16_update(weight, large)[1], 0.0, "the share of lost updates that halve every weight")


@exercise("stochastic_round", points=3)
@some
@given(random=generators(), shape=st.sampled_from([(64,), (4, 16)]))
def test_the_outer_neighbour_comes_exactly_where_u_is_below_the_fraction(student, random, shape):
    """Compare u with f itself: u < f takes the neighbour away from zero, for negative x too."""
    x, u = wide(64, random).view(shape), torch.rand(shape, generator=random)
    inner, outer, f = visible.neighbours(x)
    u = torch.where((u.double() - f).abs() < 2.0**-14, 0.0, u)
    got = student.stochastic_round(x, u)
    assert_close(got.double(), torch.where(u.double() < f, outer, inner), "x rounded with the given u", rtol=0, atol=0)


@exercise("master_weight_step", points=2)
@few
@given(random=generators())
def test_weights_cross_powers_of_two_and_zero(student, random):
    """The distance of bf16's neighbours changes at a power of two, and the sign at zero: the master must not notice."""
    weight = (torch.tensor([1.0, -1.0, 0.5, 2.0]).repeat(4) * (1 + 2.0**-7 * torch.randint(-2, 3, (16,), generator=random))).to(BF16)
    steps = [0.004 * normal((16,), random) for _ in range(8)] + [weight.float() * 0.7] * 2 + [0.01 * normal((16,), random) for _ in range(4)]
    master = weight.float()
    for number, (got, update) in enumerate(zip(visible.master_walk(student, weight, steps), steps), start=1):
        master = master - update
        visible.assert_neighbours_of(got, master, f"After step {number}")


@exercise("master_weight_step", points=2)
@settings(max_examples=2)
@given(random=generators())
def test_each_weight_has_a_state_of_its_own(student, random):
    """Whatever must be remembered goes into the state that you return, and comes from the state that you are given."""
    first, second = normal((4, 5), random, BF16), normal((7,), random, BF16)
    state_1, state_2, exact_1, exact_2 = {}, {}, first.float(), second.float()
    for _ in range(20):
        update_1, update_2 = 0.001 * exact_1.abs(), -0.001 * exact_2.abs()
        exact_1, exact_2 = exact_1 - update_1, exact_2 - update_2
        first, state_1 = student.master_weight_step(first, update_1, state_1)
        second, state_2 = student.master_weight_step(second, update_2, state_2)
    visible.assert_neighbours_of(first.flatten(), exact_1.flatten(), "After 20 steps of two weights in turn")
    visible.assert_neighbours_of(second, exact_2, "After 20 steps of two weights in turn")


# ---------------------------------------------------------------- dynamic_loss_scale

@exercise("dynamic_loss_scale", points=4)
@few
@given(random=generators(), interval=st.integers(1, 4))
def test_growing_and_backing_off_go_on_for_ever(student, random, interval):
    """An overflow begins the count anew; a scale that has grown begins the count anew; nothing else does."""
    scale, good, expected_scale, row = 512.0, 0, 512.0, 0
    for step in range(12):
        grads = visible.scaled_gradients(random, scale)
        overflow = bool(torch.rand((), generator=random) < 0.3)
        true, scale, good = student.dynamic_loss_scale(visible.spoilt(grads, random, visible.BAD[step % 3]) if overflow else grads, scale, good, interval)
        row = 0 if overflow else row + 1
        expected_scale *= 0.5 if overflow else 2.0 if row == interval else 1.0
        row %= interval
        assert_close((true is None, scale, good), (overflow, expected_scale, row), f"skipped, scale and good steps after step {step}, interval {interval}")


# ---------------------------------------------------------------- stable_softmax_attention

@exercise("stable_softmax_attention", points=3)
@few
@given(random=generators(), d=st.sampled_from([4, 7, 16]))
def test_weights_are_not_rounded_between_softmax_and_values(student, random, d):
    """Scores, weights and both sums stay in float32; only the result is rounded to the dtype of q."""
    for dtype in (BF16, FP16, torch.float32):
        q, k, v = ((factor * normal((2, 9, d), random)).to(dtype) for factor in (2.0, 1.0, 1.0))
        v = v + 8        # what the rows have in common shows every rounding of the weights
        visible.assert_rounded_once(student.stable_softmax_attention(q, k, v), visible.attention64(q, k, v), dtype, float(v.abs().max()), "the attention")


# ---------------------------------------------------------------- thermometer

@exercise("thermometer", points=1)
@few
@given(random=generators())
def test_the_gradient_norm_of_sixteen_bits_is_computed_in_float32(student, random):
    """A square of 300 overflows in fp16, and a sum of thousands of squares is swamped in bf16. Convert first."""
    for dtype in (BF16, FP16):
        grads = [(scale * normal((30, 40), random)).to(dtype) for scale in (300.0, 500.0)]
        got = visible._numbers(student.thermometer({"logits": grads[0]}, grads), ["logits", "gradient norm"])
        true = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        assert_close(got["gradient norm"], true, f"the gradient norm of {str(dtype)[6:]} gradients", rtol=2e-5)
    spoilt = torch.full((3, 3), math.nan)
    got = visible._numbers(student.thermometer({"up": spoilt[0], "down": torch.zeros(2)}, [torch.ones(2), spoilt]), ["up", "down", "gradient norm"])
    assert_close(got, {"up": math.nan, "down": 0.0, "gradient norm": math.nan}, "the readings with a NaN inside")


# ---------------------------------------------------------------- early_warning: other runs than the student has

# Called by their loss alone: one run of a healthy recipe is "diverging" here (a bump without a warm reading), and one that was about to diverge
# when its record ends is "healthy". The limits below leave room for both.
RUNS = visible.Recorded(Path(__file__).with_name(".runs_hidden.safetensors"))


@exercise("early_warning", points=3)
def test_runs_never_seen_before_are_warned_of_in_time(student):
    """A threshold that just fits the runs at hand fits no others: leave room on both sides."""
    visible.assert_most_are_warned_of(student, RUNS, 0.75)


@exercise("early_warning", points=3)
def test_healthy_runs_never_seen_before_are_left_alone(student):
    """A threshold that just fits the runs at hand fits no others: leave room on both sides."""
    visible.assert_few_false_alarms(student, RUNS, 2)


# ---------------------------------------------------------------- mixed_linear

@exercise("mixed_linear", points=1)
@few
@given(layer=visible.layers())
def test_the_gradients_come_back_in_float32(student, layer):
    """Convert with .to(), which lets gradients through: no .detach(), no .data, no new tensor from numbers."""
    x, weight, bias = layer
    cotangent = torch.ones(len(x), len(bias))
    _, (to_x, to_weight, to_bias) = student.mixed_linear.vjp(x, weight, bias, cotangent=cotangent)
    assert_that(all(isinstance(g, torch.Tensor) for g in (to_x, to_weight, to_bias)), "No gradient reaches x, weight or bias.")
    assert_close(to_x, weight.sum(0).expand_as(x), "the gradient of x", rtol=2e-2, atol=0.2)
    assert_close(to_weight, x.sum(0).expand_as(weight), "the gradient of weight", rtol=2e-2, atol=0.2)
    assert_close(to_bias, cotangent.sum(0), "the gradient of bias", rtol=1e-2)


@exercise("mixed_linear", points=1)
@few
@given(layer=visible.layers())
def test_the_factors_are_really_rounded(student, layer):
    """The point is the 16 bits: a product in float32 is more exact, and takes its time."""
    x, weight, bias = layer
    fine, coarse = torch.full_like(x, 1 + 2.0**-9), torch.ones_like(x)        # bf16 takes both for 1
    assert_close(student.mixed_linear(fine, weight, bias), student.mixed_linear(coarse, weight, bias), "the product with 1.002 in place of 1", rtol=0, atol=0)
    assert_close(student.mixed_linear(coarse, weight, bias), visible.product64(coarse, weight).float() + bias, "the product plus bias", rtol=2.0**-7, atol=0.02)
