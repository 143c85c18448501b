"""What the functions of this lab must do: the part that a student has too.

Integers are compared exactly wherever two right programs must agree: with scales that are powers of two, or far from the
middle between two codes. Elsewhere a code may be either of the two that are as near as makes no difference. Inputs are
random; the probes at the end have fixed ones.
"""
from __future__ import annotations

import math

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from course import device, kernels, timing
from course.spec import assert_close, assert_that, exercise, probe, speed, work
from course.spec.student import StudentError

# Every example costs calls, and a call in grading a millisecond or more.
some, few = settings(max_examples=10), settings(max_examples=5)
widths = st.integers(2, 8)
SHAPES = [(5,), (3, 4), (2, 3, 2), (1,)]


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def normal(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random)


def integers(low: int, high: int, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.int8) -> Tensor:
    """low <= number < high"""
    return torch.randint(low, high, shape, generator=random).to(dtype)


def codes(shape: tuple[int, ...], random: torch.Generator, bits: int = 8) -> Tensor:
    return integers(-2 ** (bits - 1), 2 ** (bits - 1), shape, random)


def random_scale(random: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
    """Scales between 0.001 and 10."""
    return 10 ** (4 * torch.rand(shape, generator=random) - 3)


def whole(x) -> Tensor:
    return torch.as_tensor(x, dtype=torch.int32)


def assert_codes(got, shape: tuple[int, ...], what: str) -> None:
    assert_that(isinstance(got, Tensor) and got.dtype == torch.int8 and tuple(got.shape) == tuple(shape),
                f"{what} must be an int8 tensor of shape {list(shape)}; "
                f"it is {f'{got.dtype} of shape {list(got.shape)}' if isinstance(got, Tensor) else type(got).__name__}.")


def assert_nearest(got, exact: Tensor, bits: int, what: str) -> None:
    """Each code is a whole number nearest to `exact`, or the last code where that lies beyond the end."""
    assert_codes(got, exact.shape, what)
    end = 1 << (bits - 1)
    wanted = exact.clamp(-end, end - 1)
    if bool(((got.double() - wanted).abs() > 0.5 + 1e-3).any()):
        assert_close(got, torch.round(wanted).to(torch.int8), what)


# ---------------------------------------------------------------- quantize_affine

@exercise("quantize_affine", points=4)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), bits=widths)
def test_every_number_gets_the_code_nearest_to_it(student, random, shape, bits):
    """Divide by the scale, round, add the zero-point, clamp to -2**(bits - 1) ... 2**(bits - 1) - 1, convert to int8."""
    scale, zero = random_scale(random), whole(codes((), random, bits))
    x = scale * 2**bits * normal(shape, random)
    got = student.quantize_affine(x, scale, zero, bits)
    assert_nearest(got, x.double() / scale.double() + zero, bits, "q")


@exercise("quantize_affine", points=3)
@some
@given(random=generators(), power=st.integers(-6, 3), zero=st.integers(-5, 5))
def test_halves_go_to_the_even_code_before_the_zero_point_is_added(student, random, power, zero):
    """torch.round rounds 0.5 to 0 and 1.5 to 2, as the hardware does. Round x / S, and add Z only then: with an odd Z it
    makes a difference."""
    halves, scale = torch.arange(-6, 6) + 0.5, torch.tensor(2.0**power)
    expected = (torch.round(halves) + zero).to(torch.int8)
    assert_close(student.quantize_affine(halves * scale, scale, whole(zero)), expected, "codes of halves")


@exercise("quantize_affine", points=1)
@few
@given(random=generators(), bits=widths, zero=st.integers(-2, 1))
def test_what_is_out_of_range_gets_the_last_code(student, random, bits, zero):
    """Clamp before the conversion to int8: a conversion keeps the last eight bits and makes -126 of 130. Numbers as large
    as 1e12, or infinity, do not even fit into int32."""
    end = 1 << (bits - 1)
    x = torch.tensor([150.0, 300.0, 1e5, 1e12, math.inf])
    expected = torch.tensor([end - 1] * 5 + [-end] * 5, dtype=torch.int8)
    got = student.quantize_affine(torch.cat([x, -x]), torch.tensor(0.5), whole(zero), bits)
    assert_close(got, expected, "codes of large numbers")


@exercise("quantize_affine", points=2)
@few
@given(random=generators(), bits=widths)
def test_each_channel_may_have_a_grid_of_its_own(student, random, bits):
    """Scale and zero-point may be tensors that broadcast against x: use them as they come, without .item()."""
    scale, zero = random_scale(random, (3, 1)), whole(codes((3, 1), random, bits))
    x = scale * 2**bits * normal((3, 4), random)
    assert_nearest(student.quantize_affine(x, scale, zero, bits), x.double() / scale.double() + zero, bits, "q")


# ---------------------------------------------------------------- dequantize

def assert_real(got, expected: Tensor, what: str) -> None:
    """Zero exactly where it should be; elsewhere up to the rounding of float32."""
    assert_that(isinstance(got, Tensor) and got.dtype == torch.float32, f"{what} must be a float32 tensor.")
    assert_close(got.double(), expected, what, rtol=1e-5, atol=0)


@exercise("dequantize", points=2)
@some
@given(random=generators(), zero=st.integers(-128, 127))
def test_every_code_comes_back_as_its_number(student, random, zero):
    """S * (q - Z). The difference of two int8 numbers can be as large as 255: convert q to int32 or to float32 before you
    subtract."""
    q, scale = torch.arange(-128, 128).to(torch.int8), random_scale(random)
    assert_real(student.dequantize(q, scale, whole(zero)), scale.double() * (q.double() - zero), "r")


@exercise("dequantize", points=1)
@few
@given(random=generators())
def test_a_grid_for_each_channel_works_on_the_way_back(student, random):
    """Scale and zero-point may be tensors that broadcast against q."""
    q, scale, zero = codes((3, 4), random), random_scale(random, (3, 1)), whole(codes((3, 1), random))
    assert_real(student.dequantize(q, scale, zero), scale.double() * (q.double() - zero), "r")


# ---------------------------------------------------------------- symmetric_scale

@exercise("symmetric_scale", points=3)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), bits=widths)
def test_the_largest_size_gets_the_last_positive_code(student, random, shape, bits):
    """The largest |x|, over all elements and whatever its sign, divided by 2**(bits - 1) - 1."""
    x = random_scale(random) * normal(shape, random)
    x.view(-1)[0] = 3 * x.abs().max() * (-1) ** bits
    expected = x.double().abs().max().item() / (2 ** (bits - 1) - 1)
    got = student.symmetric_scale(x, bits)
    assert_that(isinstance(got, Tensor) and got.ndim == 0, "The scale must be a tensor without dimensions: one number for all of x.")
    assert_close(float(got), expected, "S", rtol=1e-5)


@exercise("symmetric_scale", points=2)
def test_a_tensor_of_zeros_has_the_scale_one(student):
    """0 / 127 is 0, and to divide by it later gives NaN. Return 1 for a tensor of zeros."""
    assert_close(float(student.symmetric_scale(torch.zeros(2, 3))), 1.0, "S of zeros")


# ---------------------------------------------------------------- per_channel_scales

WEIGHTS = [(3, 4), (2, 3, 1, 2), (4, 1, 3, 3), (5, 1), (1, 6)]


def assert_scales(got, w: Tensor, bits: int, axis: int) -> None:
    shape = [n if d == axis else 1 for d, n in enumerate(w.shape)]
    assert_that(isinstance(got, Tensor) and list(got.shape) == shape,
                f"The scales of a weight {list(w.shape)} along axis {axis} must have shape {shape}, so that they broadcast; "
                f"theirs is {list(got.shape) if isinstance(got, Tensor) else type(got).__name__}.")
    largest = torch.stack([channel.abs().max() for channel in w.double().unbind(axis)])
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    assert_close(got.double(), scale.view(shape), "scales", rtol=1e-5)


@exercise("per_channel_scales", points=8)
@some
@given(random=generators(), shape=st.sampled_from(WEIGHTS), bits=widths)
def test_each_channel_has_the_scale_that_it_would_have_alone(student, random, shape, bits):
    """The largest |w| over all dimensions but `axis`, with keepdim, divided by 2**(bits - 1) - 1."""
    w = normal(shape, random) * random_scale(random, (shape[0],) + (1,) * (len(shape) - 1))
    assert_scales(student.per_channel_scales(w, bits), w, bits, 0)


@exercise("per_channel_scales", points=3)
@few
@given(random=generators(), shape=st.sampled_from([(3, 4), (2, 3, 1, 2), (4, 2, 3)]))
def test_any_dimension_can_be_that_of_the_channels(student, random, shape):
    """`axis` says which dimension is kept; the maximum goes over all others."""
    w = normal(shape, random) * random_scale(random, (1, shape[1]) + (1,) * (len(shape) - 2))
    assert_scales(student.per_channel_scales(w, 8, axis=1), w, 8, 1)


@exercise("per_channel_scales", points=2)
@few
@given(random=generators())
def test_a_channel_of_zeros_has_the_scale_one(student, random):
    """A channel that was pruned away has the maximum 0. Give it the scale 1, not 0, and leave the others alone."""
    w = normal((3, 2, 2), random)
    w[1] = 0
    assert_scales(student.per_channel_scales(w), w, 8, 0)


# ---------------------------------------------------------------- calibrate

KINDS = ("mostly positive", "positive", "negative")


def values(random: torch.Generator, kind: str = "", n: int = 400) -> Tensor:
    """Many small numbers, a few large ones."""
    x = normal((n,), random) * torch.exp(0.7 * normal((n,), random))
    kind = kind or KINDS[int(integers(0, 3, (), random))]
    return {"mostly positive": x + 0.5, "positive": x.abs() + 0.1, "negative": -x.abs() - 0.1}[kind]


def each_kind(**arguments):
    """An example of every kind of numbers, whatever else is drawn."""
    def add(test):
        for kind in KINDS:
            test = example(random=torch.Generator(), kind=kind, **arguments)(test)
        return test
    return add


def range_of(student, x: Tensor, **options) -> tuple[float, float]:
    """low and high, checked for form."""
    result = student.calibrate(x, **options)
    assert_that(type(result) in (tuple, list) and len(result) == 2, "calibrate must return two numbers: low and high.")
    for end in result:
        assert_that(type(end) in (int, float) or isinstance(end, Tensor) and end.numel() == 1, "low and high must be one number each.")
    return float(result[0]), float(result[1])


def with_zero(low, high) -> tuple[float, float]:
    return min(float(low), 0.0), max(float(high), 0.0)


@exercise("calibrate", points=4)
@some
@each_kind()
@given(random=generators(), kind=st.sampled_from(KINDS))
def test_minmax_reaches_from_the_smallest_to_the_largest(student, random, kind):
    """The smallest and the largest number; but 0 must lie in the range, so that low is at most 0 and high at least 0."""
    x = values(random, kind)
    assert_close(range_of(student, x, method="minmax"), with_zero(x.min(), x.max()), "low, high", rtol=1e-5)


@exercise("calibrate", points=5)
@some
@each_kind(tail=0.05)
@given(random=generators(), kind=st.sampled_from(KINDS), tail=st.sampled_from([0.01, 0.05, 0.2]))
def test_percentile_leaves_out_the_tail_at_either_end(student, random, kind, tail):
    """low is the number below which the share `tail` of all numbers lies, high the one above which it does; torch.quantile finds
    both. Zero must still be in the range."""
    x = values(random, kind)
    low, high = range_of(student, x, method="percentile", tail=tail)
    ordered, k = x.sort().values, tail * (len(x) - 1)
    # Between two neighbours every number leaves out the same share: allow one neighbour more.
    around = lambda k: (ordered[max(0, math.floor(k) - 1)], ordered[min(len(x) - 1, math.ceil(k) + 1)])
    for name, end, (a, b), place in (("low", low, around(k), 0), ("high", high, around(len(x) - 1 - k), 1)):
        a, b = with_zero(a, a)[place], with_zero(b, b)[place]
        assert_that(a - 1e-6 <= end <= b + 1e-6, f"{name} must lie between {a:.4g} and {b:.4g} to leave out {tail:.0%}; it is {end:.4g}.")


def error_of(x: Tensor, low: float, high: float, bits: int) -> float:
    """Mean square of what the grid from low to high does to x, in float64."""
    x, scale = x.double(), max(high - low, 1e-12) / (2**bits - 1)
    zero = round(-low / scale) - 2 ** (bits - 1)
    q = (torch.round(x / scale) + zero).clamp(-2 ** (bits - 1), 2 ** (bits - 1) - 1)
    return (scale * (q - zero) - x).square().mean().item()


def assert_least_error(student, x: Tensor, bits: int) -> None:
    low, high = range_of(student, x, bits=bits, method="mse")
    full = with_zero(x.min(), x.max())
    best, f = min((error_of(x, f * full[0] / 100, f * full[1] / 100, bits), f / 100) for f in range(1, 101))
    got = error_of(x, low, high, bits)
    assert_that(got <= 1.02 * best, f"With {bits} bits the range {low:.4g} ... {high:.4g} has a mean squared error of {got:.4g}; "
                                    f"{f * full[0]:.4g} ... {f * full[1]:.4g}, {f:g} times the whole range, has {best:.4g}.")


@exercise("calibrate", points=5)
@few
@example(random=torch.Generator(), bits=2)
@given(random=generators(), bits=st.sampled_from([2, 3, 4]))
def test_mse_finds_the_shrunk_range_with_the_least_squared_error(student, random, bits):
    """For each factor 0.01, 0.02, ..., 1.00: shrink the min-max range, quantise, dequantise, take the mean square of the
    difference to x; return the range with the least. The number of bits decides how much is cut off."""
    assert_least_error(student, values(random), bits)


@exercise("calibrate", points=1)
def test_the_whole_range_is_among_those_that_mse_tries(student):
    """f = 1.00 is the last of the factors. Numbers that lie on the grid already lose nothing with it, and something with any other."""
    for bits in (2, 3, 4):
        low, high = -2.0 ** (bits - 1), 2.0 ** (bits - 1) - 1
        got = range_of(student, torch.arange(low, high + 1), bits=bits, method="mse")
        assert_close(got, (low, high), f"the range of the {bits}-bit integers", rtol=1e-3)


@exercise("calibrate", points=1)
def test_an_unknown_method_is_refused(student):
    """A misspelled method must not pass for another one: raise ValueError."""
    for method in ("median", "quantile"):
        assert_refused(lambda method=method: student.calibrate(torch.ones(3), method=method), f"The method {method!r}")


def assert_refused(call, what: str) -> None:
    try:
        call()
    except StudentError as error:
        assert_that("ValueError" in str(error), f"{what} must raise ValueError itself.")
        return
    raise AssertionError(f"{what} must raise ValueError, but a result came back.")


# ---------------------------------------------------------------- int8_linear

@st.composite
def layers(draw, k: int | None = None) -> tuple:
    """The arguments of int8_linear, such that most outputs lie within the range."""
    random = draw(generators())
    n, o, k = draw(st.integers(1, 4)), draw(st.integers(2, 5)), k or draw(st.integers(2, 9))
    s_x, s_w = random_scale(random), random_scale(random, (o,))
    z_x, z_y = whole(codes((), random)), whole(codes((), random) // 2)
    q_x, q_w, bias = codes((n, k), random), integers(-127, 128, (o, k), random), integers(-9000, 9000, (o,), random, torch.int32)
    s_y = s_x * s_w.max() * 200 * k**0.5
    return q_x, s_x, z_x, q_w, s_w, bias, s_y, z_y


def real_output(q_x, s_x, z_x, q_w, s_w, q_bias, s_y, z_y) -> Tensor:
    """What the output's codes would be if they need not be whole, in float64."""
    sums = (q_x.double() - z_x) @ q_w.double().T + q_bias
    return sums * s_x.double() * s_w.double() / s_y.double() + z_y


@exercise("int8_linear", points=8)
@some
@given(layer=layers())
def test_codes_go_in_and_the_nearest_codes_come_out(student, layer):
    """sums = q_x @ q_w.T - z_x * (row sums of q_w) + q_bias in int32; times s_x * s_w / s_y, rounded; plus z_y, clamped, int8."""
    assert_nearest(student.int8_linear(*layer), real_output(*layer), 8, "q_y")


@exercise("int8_linear", points=5)
@few
@given(layer=layers(), shift=st.integers(1, 40))
def test_codes_and_zero_point_shifted_together_change_nothing(student, layer, shift):
    """(q_x + 1) - (z_x + 1) is the same number. So the zero-point's share, z_x times the sum of the weight's row, must be taken
    away for every output."""
    q_x, s_x, z_x, *rest = layer
    q_x = q_x.clamp(max=127 - shift)
    once, again = student.int8_linear(q_x, s_x, z_x, *rest), student.int8_linear(q_x + shift, s_x, z_x + shift, *rest)
    assert_close(again, once, f"q_y after a shift of q_x and z_x by {shift}")


@exercise("int8_linear", points=4)
@few
@given(random=generators(), k=st.integers(1500, 2000))
def test_sums_are_exact_beyond_24_bits(student, random, k):
    """1500 products of 127 * 127 make 24 million: float32 has no odd numbers above 16.7 million, int16 ends at 32767. Sum in
    int32."""
    q_x, q_w = integers(120, 128, (2, k), random), integers(120, 128, (3, k), random)
    sums = q_x.long() @ q_w.long().T
    bias = (integers(-60, 61, (3,), random, torch.int64) - sums[0]).to(torch.int32)  # leaves little of the first row's sums
    one, zero = torch.tensor(1.0), whole(0)
    got = student.int8_linear(q_x, one, zero, q_w, torch.ones(3), bias, one, zero)
    assert_close(got, (sums + bias).clamp(-128, 127).to(torch.int8), "q_y with all scales 1")


@exercise("int8_linear", points=3)
@few
@given(layer=layers())
def test_outputs_that_are_too_large_get_the_last_code(student, layer):
    """Clamp to -128 ... 127 after z_y is added, and before the conversion to int8."""
    *front, s_y, z_y = layer
    layer = (*front, s_y / 50, z_y)
    assert_nearest(student.int8_linear(*layer), real_output(*layer), 8, "q_y")


# ---------------------------------------------------------------- dynamic_int8_linear

def on_a_grid(random: torch.Generator, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Codes [n, k] of which each row's largest is 127 or -127, and the scale of each row, powers of two: [n, 1]."""
    q = integers(-127, 128, (n, k), random)
    q[:, 0] = 127 * (1 - 2 * integers(0, 2, (n,), random))
    return q, 2.0 ** integers(-12, 12, (n, 1), random, torch.int64)


def weight_of(random: torch.Generator, o: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return integers(-127, 128, (o, k), random), random_scale(random, (o,)), normal((o,), random)


def assert_output(got, expected: Tensor, atol, what: str = "y") -> None:
    assert_that(isinstance(got, Tensor) and got.dtype == torch.float32 and got.shape == expected.shape,
                f"The result must be a float32 tensor of shape {list(expected.shape)}.")
    wrong = (got.double() - expected).abs() > atol
    if bool(wrong.any()) or bool(got.isnan().any()):
        assert_close(got.double(), expected, what, rtol=1e-5, atol=1e-7)


@exercise("dynamic_int8_linear", points=6)
@some
@given(random=generators(), n=st.integers(1, 4), k=st.integers(2, 12), o=st.integers(1, 5))
def test_rows_that_lie_on_their_grid_are_multiplied_exactly(student, random, n, k, o):
    """A row's scale is its largest |x| divided by 127. Round x / s_n, multiply the integers, then multiply by s_n for each row and by
    s_w for each column, and add the bias."""
    (q, s), (q_w, s_w, bias) = on_a_grid(random, n, k), weight_of(random, o, k)
    terms = (q.double().abs() @ q_w.double().abs().T) * s * s_w + bias.abs()
    expected = (q.double() @ q_w.double().T) * s * s_w + bias
    assert_output(student.dynamic_int8_linear(q * s, q_w, s_w, bias), expected, 1e-5 * terms)


@exercise("dynamic_int8_linear", points=3)
@few
@given(random=generators(), k=st.integers(2, 10))
def test_what_is_below_half_a_step_is_gone(student, random, k):
    """The row is rounded to whole numbers of s_n before it is multiplied: a number less than half of s_n becomes 0."""
    (q, s), (q_w, s_w, _) = on_a_grid(random, 3, k), weight_of(random, 4, k)
    lost = (0.8 * torch.rand(3, k, generator=random) - 0.4) * (q.abs() < 127)  # of a step
    terms = (q.double().abs() @ q_w.double().abs().T) * s * s_w
    assert_output(student.dynamic_int8_linear((q + lost) * s, q_w, s_w), (q.double() @ q_w.double().T) * s * s_w, 1e-5 * terms)


@exercise("dynamic_int8_linear", points=3)
@few
@given(random=generators(), k=st.integers(3, 12))
def test_a_small_row_keeps_its_precision_beside_a_large_one(student, random, k):
    """Each row has a scale of its own: take the maximum over the last dimension only, with keepdim."""
    q_w, s_w, _ = weight_of(random, 4, k)
    x = normal((3, k), random) * torch.tensor([[1e-4], [1.0], [1e4]])
    w = q_w.double() * s_w[:, None]
    step = x.double().abs().amax(1, keepdim=True) / 127
    assert_output(student.dynamic_int8_linear(x, q_w, s_w), x.double() @ w.T, 0.51 * step * w.abs().sum(1) + 1e-12)


@exercise("dynamic_int8_linear", points=2)
@few
@given(random=generators(), k=st.integers(2, 8))
def test_a_row_of_zeros_gives_the_bias(student, random, k):
    """0 / 0 is NaN: keep the scale away from zero."""
    q_w, s_w, bias = weight_of(random, 3, k)
    x = normal((2, k), random)
    x[1] = 0
    got = student.dynamic_int8_linear(x, q_w, s_w, bias)
    assert_that(isinstance(got, Tensor) and tuple(got.shape) == (2, 3), "The result must have shape [n, o].")
    assert_close(got[1].double(), bias.double(), "y of a row of zeros", rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- fake_quantize

def inside_and_outside(random: torch.Generator, bits: int, n: int = 24) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers, a grid, and which of the numbers lie within it: never near its ends, where two right answers may differ."""
    end, scale = 1 << (bits - 1), random_scale(random)
    zero = whole(codes((), random, bits) // 2)
    steps = (torch.rand(n, generator=random) * 2 * end - end) * 2  # x / S + Z
    near = torch.minimum((steps + end).abs(), (steps - end + 1).abs()) < 0.75
    steps = torch.where(near, torch.where(steps < 0, -end + 0.9, end - 1.9), steps)
    steps[:4] = torch.tensor([3 * end, -3 * end, end - 0.2, -end - 0.8])  # far outside, and just outside
    inside = (steps > -end) & (steps < end - 1)
    return scale * (steps - zero), scale, zero, inside


@exercise("fake_quantize", points=5)
@some
@given(random=generators(), bits=widths)
def test_the_values_are_those_of_quantising_and_dequantising(student, random, bits):
    """S * (clamp(round(x / S) + Z) - Z), in floating point."""
    x, scale, zero, _ = inside_and_outside(random, bits)
    end = 1 << (bits - 1)
    steps = (x.double() / scale.double() + zero).clamp(-end, end - 1) - zero
    got = student.fake_quantize(x, scale, zero, bits)
    assert_that(isinstance(got, Tensor) and got.dtype == torch.float32 and got.shape == x.shape, "The result must be float32, like x.")
    back = got.double() / scale.double()
    if bool(((back - torch.round(back)).abs() > 1e-3).any()) or bool(((back - steps).abs() > 0.501).any()):
        assert_close(got.double(), torch.round(steps) * scale.double(), "y", rtol=1e-4)


def gradient_of(student, x: Tensor, scale: Tensor, zero: Tensor, bits: int, upstream: Tensor) -> Tensor:
    _, gradients = student.fake_quantize.vjp(x, scale=scale, zero_point=zero, bits=bits, cotangent=upstream)
    assert_that(gradients[0] is not None, "No gradient at all comes back to x: round and clamp need the straight-through estimator.")
    return gradients[0].double()


@exercise("fake_quantize", points=4)
@few
@given(random=generators(), bits=st.integers(3, 8))
def test_the_gradient_passes_straight_through_where_nothing_is_clamped(student, random, bits):
    """Value of the stairs, gradient of the line: line + (stairs - line).detach(). Without it, round has the gradient zero."""
    x, scale, zero, inside = inside_and_outside(random, bits)
    upstream = normal(x.shape, random)
    got = gradient_of(student, x, scale, zero, bits, upstream)
    assert_close(got[inside], upstream[inside].double(), "gradient for x within the range")


@exercise("fake_quantize", points=3)
@few
@given(random=generators(), bits=st.integers(3, 8))
def test_no_gradient_passes_where_the_code_was_clamped(student, random, bits):
    """A number beyond the last code can move and nothing changes: the line, too, must be clamped to the range."""
    x, scale, zero, inside = inside_and_outside(random, bits)
    got = gradient_of(student, x, scale, zero, bits, normal(x.shape, random))
    assert_close(got[~inside], torch.zeros(int((~inside).sum()), dtype=torch.float64), "gradient for x beyond the range")


# ---------------------------------------------------------------- pack_int4, unpack_int4

def packed_by_hand(q: Tensor) -> Tensor:
    rows = [sum((value % 16) << (4 * place) for place, value in enumerate(pair)) for pair in q.reshape(-1, 2).tolist()]
    return torch.tensor(rows, dtype=torch.uint8).reshape(*q.shape[:-1], q.shape[-1] // 2)


@exercise("pack_int4", points=5)
@some
@example(random=torch.Generator(), shape=(2, 4))
@given(random=generators(), shape=st.sampled_from([(2,), (4,), (10,), (2, 6)]))
def test_two_codes_share_a_byte_the_first_one_low(student, random, shape):
    """Number 2i in the low four bits, number 2i + 1 shifted left by four; `& 15` keeps the last four bits of a negative code."""
    q = codes(shape, random, 4)
    assert_close(student.pack_int4(q), packed_by_hand(q), "packed bytes")


@exercise("pack_int4", points=3)
@few
@example(random=torch.Generator(), what="odd")
@example(random=torch.Generator(), what=8)
@example(random=torch.Generator(), what=-9)
@given(random=generators(), what=st.sampled_from(["odd", 8, -9, 127]))
def test_what_cannot_be_packed_is_refused(student, random, what):
    """An odd number of codes leaves half a byte, and 8 would come back as -8: raise ValueError for both."""
    q = codes((2, 5 if what == "odd" else 6), random, 4)
    if what != "odd":
        q[1, 3] = what
    assert_refused(lambda: student.pack_int4(q), "An odd number of codes" if what == "odd" else f"The code {what}")


@exercise("unpack_int4", points=4)
@some
@example(random=torch.Generator(), shape=(2, 4))
@given(random=generators(), shape=st.sampled_from([(2,), (6,), (2, 4)]))
def test_unpacking_gives_back_what_was_packed(student, random, shape):
    """The low four bits first, then the high four, side by side. Four bits above 7 mean a number less by 16."""
    q = codes(shape, random, 4)
    assert_close(student.unpack_int4(packed_by_hand(q)), q, "codes")


# ---------------------------------------------------------------- optional exercises

@exercise("learned_step_gradient", points=0)
@some
@given(random=generators(), bits=widths)
def test_the_scale_gets_the_gradient_of_esser_and_others(student, random, bits):
    """Inside round(x / S) - x / S, beyond the ends the last code itself; times grad_y, summed, divided by the square root of
    n * (2**(bits - 1) - 1)."""
    x, scale, _, _ = inside_and_outside(random, bits)
    grad_y, end = normal(x.shape, random), 2 ** (bits - 1)
    shifted = x.double() / scale.double()  # not moved by a zero-point, so some lie near the ends: take these out
    keep = (torch.minimum((shifted + end).abs(), (shifted - end + 1).abs()) > 0.1) & ((shifted - torch.floor(shifted) - 0.5).abs() > 1e-3)
    x, grad_y, shifted = x[keep], grad_y[keep], shifted[keep]
    slope = torch.where((shifted > -end) & (shifted < end - 1), torch.round(shifted) - shifted, shifted.clamp(-end, end - 1))
    expected = (slope * grad_y.double()).sum().item() / math.sqrt(len(x) * (end - 1))
    assert_close(float(student.learned_step_gradient(x, scale, grad_y, bits)), expected, "gradient of S", rtol=1e-4, atol=1e-3 * end)


@exercise("learned_step_gradient", points=0)
@few
@given(random=generators(), bits=st.sampled_from([2, 4]), n=st.integers(2, 50))
def test_one_number_beyond_the_range_gives_the_last_code(student, random, bits, n):
    """Where x is clamped, y = S * last code, whose derivative for S is that code: 2**(bits - 1) - 1 above, -2**(bits - 1) below."""
    end, x, grad_y = 2 ** (bits - 1), torch.zeros(n), torch.zeros(n)
    above = float(integers(0, 2, (), random))
    x[0], grad_y[0] = (100.0 if above else -100.0), 1.0
    expected = (end - 1 if above else -end) / math.sqrt(n * (end - 1))
    assert_close(float(student.learned_step_gradient(x, torch.tensor(0.5), grad_y, bits)), expected, "gradient of S", rtol=1e-5)


@st.composite
def convolutions(draw) -> tuple:
    """weight, bias (or None), gamma, beta, mean, var."""
    random, (o, i, side) = draw(generators()), draw(st.sampled_from([(3, 2, 3), (4, 1, 3), (2, 5, 1)]))
    weight = normal((o, i, side, side), random) * random_scale(random, (o, 1, 1, 1))
    bias = normal((o,), random) if draw(st.booleans()) else None
    return weight, bias, normal((o,), random), normal((o,), random), normal((o,), random), random_scale(random, (o,))


@exercise("fold_then_quantize", points=0)
@some
@given(layer=convolutions(), bits=widths, eps=st.sampled_from([1e-5, 0.1]))
def test_codes_and_scales_are_those_of_the_folded_weight(student, layer, bits, eps):
    """gain = gamma / sqrt(var + eps), one for each output channel; first multiply the weight by it, then find scales and codes."""
    weight, bias, gamma, beta, mean, var = (None if t is None else t.double() for t in layer)
    gain = gamma * (var + eps) ** -0.5
    folded = gain[:, None, None, None] * weight
    scales = folded.abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    result = student.fold_then_quantize(*layer, eps=eps, bits=bits)
    assert_that(type(result) in (tuple, list) and len(result) == 3, "Return three things: codes, scales and bias.")
    assert_close(result[1].double(), scales, "scales", rtol=1e-4)
    assert_nearest(result[0], folded / scales, bits, "codes")


@exercise("fold_then_quantize", points=0)
@some
@given(layer=convolutions(), eps=st.sampled_from([1e-5, 0.1]))
def test_the_folded_bias_is_what_an_input_of_zeros_gives(student, layer, eps):
    """An input of zeros gives the convolution's bias, normalised: beta + gain * (bias - mean)."""
    weight, bias, gamma, beta, mean, var = (None if t is None else t.double() for t in layer)
    expected = beta + gamma / torch.sqrt(var + eps) * ((0 if bias is None else bias) - mean)
    result = student.fold_then_quantize(*layer, eps=eps)
    assert_that(type(result) in (tuple, list) and len(result) == 3, "Return three things: codes, scales and bias.")
    assert_close(result[2].double(), expected, "bias", rtol=1e-4, atol=1e-5)


@exercise("smooth_scales", points=0)
@some
@given(random=generators(), alpha=st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]))
def test_alpha_divides_the_trouble_between_input_and_weight(student, random, alpha):
    """x_max**alpha divided by w_max**(1 - alpha), where w_max is the largest |w| of each column."""
    x_max, w = random_scale(random, (5,)), normal((4, 5), random) * random_scale(random, (5,))
    expected = x_max.double() ** alpha / w.double().abs().amax(0) ** (1 - alpha)
    assert_close(student.smooth_scales(x_max, w, alpha).double(), expected, "s", rtol=1e-4)


@exercise("smooth_scales", points=0)
@few
@given(random=generators(), alpha=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_channel_without_signal_or_without_weight_is_left_alone(student, random, alpha):
    """0 / 0, and a division by 0, make NaN or infinity. Where x_max or w_max is zero, s is 1."""
    x_max, w = 1 + torch.rand(4, generator=random), normal((3, 4), random)
    x_max[1], w[:, 2] = 0, 0
    got = student.smooth_scales(x_max, w, alpha)
    assert_close(got[1:3].double(), torch.ones(2, dtype=torch.float64), "s where a maximum is zero")


@exercise("triton_int8_matmul", points=0, requires=kernels.without_triton)
@settings(max_examples=2)
@given(random=generators())
def test_the_kernel_gives_the_product_of_the_integers(student, random):
    """Walk along k in steps of BK, load a tile of a [BM, BK] and one of b [BK, BN], add their tl.dot to the sums. Masks for rows,
    columns and k: none of them is a multiple of 64."""
    for m, k, n in ((64, 64, 64), (3, 70, 65), (65, 130, 2), (1, 1, 1)):
        a, b = codes((m, k), random), codes((k, n), random)
        assert_close(student.triton_int8_matmul(a, b), (a.long() @ b.long()).to(torch.int32), "a @ b")


# ---------------------------------------------------------------- bytes, and time

PACKED = torch.arange(2**20).reshape(1024, 1024).remainder(16).sub(8).to(torch.int8)
SCALES = 2 * PACKED.numel() // 32  # bytes: float16, for groups of 32


def bytes_kept(function) -> float:
    """What is stored for a million weights: what the function returns, and the scales of the groups if that is integers."""
    kept = function(PACKED)
    assert_that(isinstance(kept, Tensor), "pack_int4 must return a tensor.")
    return kept.nbytes + (0 if kept.is_floating_point() else SCALES)


@work("pack_int4", points=5, ratio=7.0, cost=bytes_kept, unit="bytes", limit=lambda: (PACKED.numel() / 2, "half a byte for each weight, and no scales"))
def kept_in_float32(q):
    """Bytes of a million weights and a float16 scale for each 32 of them, against the weights in float32."""
    return q.float()


ROWS, WIDTH, CALLS = 256, 2048, 4


def without_fast_integers() -> str | None:
    fast = {"avx512_vnni", "amx_int8"} & set(device.describe().cpu_features)
    return None if fast else "this processor has no fast instructions for 8-bit products (avx512_vnni or amx_int8)."


def rows_and_weight(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of several calls, and the weight: codes and scales."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(CALLS, ROWS, WIDTH, generator=random)
    q_w = torch.randint(-127, 128, (WIDTH, WIDTH), generator=random, dtype=torch.int8)
    return x, q_w, (0.5 + torch.rand(WIDTH, generator=random)) / (127 * WIDTH**0.5)


def several_calls(linear, x: Tensor, q_w: Tensor, s_w: Tensor) -> Tensor:
    """The sum of the outputs, which depends on every call."""
    total = torch.zeros(ROWS, WIDTH)
    for rows in x:
        total += linear(rows, q_w, s_w)
    return total


def integers_at_their_best() -> tuple[float, str]:
    operations = 2 * CALLS * ROWS * WIDTH**2
    return operations / timing.peak_flops("cpu", torch.int8), f"{operations / 1e9:.1f} billion operations at the best rate of torch's integer product"


kept: dict = {}


@speed("dynamic_int8_linear", points=10, ratio=2.0, inputs=rows_and_weight, work=several_calls, limit=integers_at_their_best,
       requires=without_fast_integers, rtol=0, atol=0.15)
def float32_linear(x, q_w, s_w, bias=None):
    """A linear layer of 2048 by 2048 for 256 rows, quantising them included, against float32."""
    if kept.get("q_w") is not q_w:  # its weight is in float32 all the time, and is not converted at every call
        kept.update(q_w=q_w, w=q_w * s_w[:, None])
    return torch.nn.functional.linear(x, kept["w"], bias)


# ---------------------------------------------------------------- probes: fixed questions that tell mistakes apart

def waves(*shape: int, phase: float = 0.0, factor: float = 1.0) -> Tensor:
    """Fixed numbers of some size and sign, far from the middle of two codes."""
    x = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase) * factor
    return ((x * 64).round() / 64).float().reshape(shape)


def plain(result):
    """Codes as int64, so that a wrong dtype does not hide another mistake; tuples as lists."""
    if isinstance(result, Tensor):
        return result.long() if not result.is_floating_point() else result.double()
    return [plain(part) for part in result] if type(result) in (tuple, list) else result


def outcome(call):
    """The result, or the name of the exception, for mistakes that lie in what is raised."""
    try:
        return plain(call())
    except StudentError as error:
        return "ValueError" if "ValueError" in str(error) else "an exception"


QUARTER = torch.tensor(0.25)
GRID = torch.cat([torch.arange(-20, 20) / 8, torch.tensor([31.9, 33.0, -40.0, 1e4, -1e12])]).float()  # halves of S among them


@probe("quantize_affine")
def codes_of_a_grid(student):
    return [plain(student.quantize_affine(GRID, QUARTER, whole(z), bits)) for z, bits in ((0, 8), (-3, 8), (1, 3))]


@probe("quantize_affine")
def kind_of_codes(student):
    return str(student.quantize_affine(GRID, QUARTER, whole(-3)).dtype)


@probe("dequantize")
def numbers_of_all_codes(student):
    q = torch.tensor([-128, -100, -1, 0, 1, 100, 127], dtype=torch.int8)
    return [plain(student.dequantize(q, QUARTER, whole(z))) for z in (0, -128, 100)]


@probe("symmetric_scale")
def scales_of_tensors(student):
    return [plain(student.symmetric_scale(t, bits)) for t in (waves(6), -2 - waves(3, 4), torch.zeros(3)) for bits in (8, 3)]


@probe("per_channel_scales")
def scales_of_channels(student):
    w = waves(3, 2, 2) * torch.tensor([1.0, 4.0, 0.0])[:, None, None]
    return [plain(student.per_channel_scales(w, 8)), plain(student.per_channel_scales(w, 3)), plain(student.per_channel_scales(w, 8, axis=1))]


SKEWED = torch.cat([torch.linspace(0.1, 1, 40) ** 3, torch.tensor([1.9, 2.7, -0.4, -0.1])])


@probe("calibrate")
def ranges_by_every_method(student):
    x = (SKEWED, SKEWED.abs() + 0.2, -SKEWED.abs() - 0.2)
    return [[round(float(end), 3) for end in student.calibrate(t, bits, method, tail)] for t in x
            for bits, method, tail in ((8, "minmax", 0.1), (8, "percentile", 0.1), (3, "mse", 0.1), (4, "mse", 0.1))]


@probe("calibrate")
def unknown_method(student):
    return outcome(lambda: [float(end) for end in student.calibrate(SKEWED, 8, "median", 0.1)])


def fixed_layer(k: int, s_y: float, z_x: int = 5, z_y: int = -20, bias: tuple = (300, -7000, 50)) -> tuple:
    q_x, q_w = (waves(2, k, factor=120) + 3).to(torch.int8), waves(3, k, phase=1.0, factor=100).to(torch.int8)
    return (q_x, torch.tensor(0.125), whole(z_x), q_w, torch.tensor([0.5, 0.25, 1.0]), torch.tensor(bias, dtype=torch.int32),
            torch.tensor(s_y), whole(z_y))


@probe("int8_linear")
def codes_of_fixed_layers(student):
    return [plain(student.int8_linear(*fixed_layer(*layer))) for layer in ((7, 64.0), (7, 4.0), (7, 64.0, 60), (4, 37.0, 0, 0, (0, 0, 0)))]


@probe("int8_linear")
def large_sums(student):
    q, one = torch.full((1, 2001), 127, dtype=torch.int8), torch.tensor(1.0)
    bias = torch.tensor([20 - 2001 * 127 * 127], dtype=torch.int32)
    return plain(student.int8_linear(q, one, whole(0), q, torch.ones(1), bias, one, whole(0)))


@probe("dynamic_int8_linear")
def rows_of_many_sizes(student):
    x, q_w = waves(3, 6) * torch.tensor([[0.01], [1.0], [50.0]]), waves(2, 6, phase=2.0, factor=90).to(torch.int8)
    s_w, bias = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -3.0])
    return [plain(student.dynamic_int8_linear(x, q_w, s_w, b)) for b in (None, bias)]


@probe("dynamic_int8_linear")
def a_row_of_zeros(student):
    q_w = torch.tensor([[1, 2], [3, -4]], dtype=torch.int8)
    return plain(student.dynamic_int8_linear(torch.tensor([[0.0, 0.0], [1.0, 0.3]]), q_w, torch.ones(2)))


@probe("fake_quantize")
def values_and_gradients(student):
    x, up = waves(12, factor=3.0), waves(12, phase=0.5)
    found = []
    for z, bits in ((0, 4), (2, 4), (-1, 3)):
        value, gradients = student.fake_quantize.vjp(x, QUARTER, whole(z), bits, cotangent=up)
        found.append([plain(value).mul(1e5).round(), None if gradients[0] is None else plain(gradients[0])])
    return found


FOUR = torch.tensor([[-8, 7, 0, 3], [-1, -2, 5, -7]], dtype=torch.int8)


@probe("pack_int4")
def bytes_of_eight_codes(student):
    return plain(student.pack_int4(FOUR))


@probe("pack_int4")
def what_is_refused(student):
    return [outcome(lambda q=q: student.pack_int4(q)) for q in (FOUR[:, :3], FOUR + 3, FOUR - 2)]


@probe("pack_int4")
def kind_of_bytes(student):
    return str(student.pack_int4(FOUR).dtype)


@probe("unpack_int4")
def codes_of_all_bytes(student):
    return plain(student.unpack_int4(torch.arange(256, dtype=torch.uint8).reshape(2, 128)))


@probe("unpack_int4")
def kind_of_unpacked(student):
    return str(student.unpack_int4(torch.arange(4, dtype=torch.uint8)).dtype)


@probe("learned_step_gradient")
def gradients_of_the_step(student):
    x, up = waves(12, factor=3.0), waves(12, phase=0.5)
    return [float(student.learned_step_gradient(x, torch.tensor(0.3), up, bits)) for bits in (2, 3, 8)]


@probe("fold_then_quantize")
def folded_layers(student):
    w, vectors = waves(3, 2, 1, 1), [waves(3, phase=p) for p in (0.3, 0.9, 1.7, 2.4)]
    vectors[-1] = vectors[-1].abs() + 0.5
    return [plain(student.fold_then_quantize(w, bias, *vectors, eps=0.1, bits=bits)) for bias in (None, waves(3, phase=4.0)) for bits in (8, 4)]


@probe("smooth_scales")
def factors_of_channels(student):
    w = waves(3, 4)
    w[:, 0] = torch.tensor([0.5, -2.0, 1.0])
    w[:, 2] = 0
    return [plain(student.smooth_scales(torch.tensor([1.0, 30.0, 0.5, 0.0]), w, alpha)) for alpha in (0.0, 0.25, 1.0)]


@probe("triton_int8_matmul")
def products(student):
    if kernels.without_triton():
        return None
    small, odd, long = (waves(*shape, factor=120).to(torch.int8) for shape in ((4, 64), (3, 70), (2, 150)))
    lowest = torch.full((1, 70), -128, dtype=torch.int8)
    return [plain(student.triton_int8_matmul(a, b)) for a, b in ((small, small.T.contiguous()), (odd, odd.T.contiguous()), (long, long.T.contiguous()),
                                                                 (lowest, lowest.expand(66, 70).T.contiguous()))]
