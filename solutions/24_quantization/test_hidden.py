"""What the functions of this lab must do: the part that only the grader has."""
from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from course import kernels
from course.spec import assert_close, assert_that, exercise
from course.spec.load import import_file

visible = import_file(Path(__file__).with_name("test_visible.py"))
some, few, widths, generators, layers = visible.some, visible.few, visible.widths, visible.generators, visible.layers
normal, integers, codes, random_scale, whole, values = (
    visible.normal, visible.integers, visible.codes, visible.random_scale, visible.whole, visible.values)
assert_nearest, assert_real, assert_scales, assert_output, assert_codes = (
    visible.assert_nearest, visible.assert_real, visible.assert_scales, visible.assert_output, visible.assert_codes)


# ---------------------------------------------------------------- quantize_affine, dequantize

@exercise("quantize_affine", points=2)
@few
@given(random=generators(), bits=widths, power=st.integers(-8, 3))
def test_a_number_on_the_grid_gets_its_own_code(student, random, bits, power):
    """S * (q - Z) is the number of code q, so q is its code."""
    q, zero, scale = codes((4, 3), random, bits), whole(codes((), random, bits)), torch.tensor(2.0**power)
    assert_close(student.quantize_affine(scale * (q.float() - zero), scale, zero, bits), q, "q")


@exercise("dequantize", points=1)
@few
@given(random=generators())
def test_without_a_zero_point_a_code_counts_steps_from_zero(student, random):
    """zero_point is 0 where none is given, a plain number."""
    q, scale = codes((2, 3), random), random_scale(random)
    assert_real(student.dequantize(q, scale), scale.double() * q.double(), "r")


# ---------------------------------------------------------------- calibrate

@exercise("calibrate", points=2)
@few
@given(random=generators(), method=st.sampled_from(["minmax", "percentile", "mse"]))
def test_zero_lies_in_every_range(student, random, method):
    """Zeros are everywhere, from padding and from ReLU: low is at most 0 and high at least 0, for every method."""
    x = 1 + values(random).abs()
    for x in (x, -x):
        low, high = visible.range_of(student, x, bits=4, method=method, tail=0.05)
        assert_that(low <= 0 <= high and low < high, f"The range {low:.4g} ... {high:.4g} of {method!r} does not reach from zero to the numbers.")


@exercise("calibrate", points=2)
@few
@given(random=generators(), bits=st.sampled_from([2, 6]))
def test_mse_cuts_off_as_many_as_the_bits_ask_for(student, random, bits):
    """With few bits a finer step is worth more than the largest numbers, with many it is not: quantise with `bits` bits."""
    visible.assert_least_error(student, 100 * values(random), bits)


# ---------------------------------------------------------------- int8_linear

@exercise("int8_linear", points=2)
@few
@given(layer=layers())
def test_every_output_channel_has_its_own_scale(student, layer):
    """M has one number for each output channel: s_x * s_w / s_y, and s_w [o] belongs to the columns of the sums [n, o]."""
    q_x, s_x, z_x, q_w, s_w, bias, s_y, z_y = layer
    s_w = s_w.max() * 4.0 ** -torch.arange(len(s_w))
    layer = (q_x, s_x, z_x, q_w, s_w, bias, s_y, z_y)
    assert_nearest(student.int8_linear(*layer), visible.real_output(*layer), 8, "q_y")


@exercise("int8_linear", points=2)
@few
@given(random=generators(), z_y=st.sampled_from([-3, 0, 5]))
def test_outputs_just_between_two_codes_go_to_the_even_one(student, random, z_y):
    """torch.round rounds halves to even; floor, truncation, or adding 0.5 do not. Round before z_y is added."""
    q_x, q_w = torch.eye(6).to(torch.int8), integers(-40, 41, (4, 6), random)
    expected = (torch.round(q_w.T.double() / 2) + z_y).to(torch.int8)
    one = torch.tensor(1.0)
    got = student.int8_linear(q_x, one, whole(0), q_w, torch.ones(4), torch.zeros(4, dtype=torch.int32), 2 * one, whole(z_y))
    assert_close(got, expected, "q_y with M = 1/2")


# ---------------------------------------------------------------- fake_quantize

@exercise("fake_quantize", points=2)
@few
@given(random=generators(), bits=widths)
def test_each_channel_may_have_a_scale_of_its_own(student, random, bits):
    """The scale may be a tensor that broadcasts against x, as per_channel_scales gives it."""
    scale, end = random_scale(random, (3, 1)), 2 ** (bits - 1)
    steps = integers(-end, end, (3, 4), random).float() + 0.3 * torch.rand(3, 4, generator=random)
    got = student.fake_quantize(scale * steps, scale, 0, bits)
    assert_close(got.double(), scale.double() * torch.round(steps.double()).clamp(max=end - 1), "y", rtol=1e-4)


# ---------------------------------------------------------------- pack_int4, unpack_int4

@exercise("pack_int4", points=2)
@few
@given(random=generators(), shape=st.sampled_from([(3, 2), (2, 3, 4), (1, 8)]))
def test_every_row_is_packed_along_its_last_dimension(student, random, shape):
    """Neighbours in a row share a byte, whatever dimensions come before: use [..., 0::2] and [..., 1::2]."""
    q = codes(shape, random, 4)
    assert_close(student.pack_int4(q), visible.packed_by_hand(q), "packed bytes")


@exercise("unpack_int4", points=2)
def test_every_byte_has_its_two_codes(student):
    """All 256 bytes: low and high four bits, each from -8 to 7, as int8."""
    packed = torch.arange(256).to(torch.uint8)
    got = student.unpack_int4(packed)
    assert_codes(got, (512,), "the codes")
    pairs = [[(half + 8) % 16 - 8 for half in (byte % 16, byte // 16)] for byte in range(256)]
    assert_close(got, torch.tensor(pairs, dtype=torch.int8).flatten(), "codes")


# ---------------------------------------------------------------- optional exercises

@exercise("learned_step_gradient", points=0)
@few
@given(random=generators(), bits=st.sampled_from([3, 4]))
def test_large_tensors_move_the_scale_no_faster(student, random, bits):
    """The same numbers twice: the sum doubles, the square root of n grows by 1.41."""
    x, scale, _, _ = visible.inside_and_outside(random, bits)
    once = float(student.learned_step_gradient(x, scale, torch.ones_like(x), bits))
    twice = float(student.learned_step_gradient(torch.cat([x, x]), scale, torch.ones(2 * len(x)), bits))
    assert_close(twice, 2**0.5 * once, "gradient of S for twice as many numbers", rtol=1e-4, atol=1e-5)


@exercise("fold_then_quantize", points=0)
@few
@given(random=generators())
def test_a_channel_whose_gain_is_zero_does_no_harm(student, random):
    """gamma = 0 makes a channel of zeros: its scale is 1, its codes are 0, and nothing is NaN."""
    w, vector = normal((3, 2, 3, 3), random), lambda: normal((3,), random)
    gamma = torch.tensor([1.0, 0.0, -2.0])
    q, scales, _ = student.fold_then_quantize(w, None, gamma, vector(), vector(), torch.ones(3))
    assert_close(float(scales.flatten()[1]), 1.0, "scale of the channel of zeros")
    assert_close(q[1], torch.zeros(2, 3, 3, dtype=torch.int8), "codes of the channel of zeros")


@exercise("smooth_scales", points=0)
@few
@given(random=generators())
def test_half_and_half_makes_both_maxima_alike(student, random):
    """With alpha = 1/2, x / s and w * s have the same largest number in every channel: the square root of the product."""
    x_max, w = random_scale(random, (4,)), normal((3, 4), random)
    s = student.smooth_scales(x_max, w)
    assert_that(isinstance(s, torch.Tensor) and tuple(s.shape) == (4,), "There must be one factor for each input channel: shape [k].")
    assert_close((x_max / s).double(), (w * s).abs().amax(0).double(), "x_max / s, against max |w * s|", rtol=1e-4)


@exercise("triton_int8_matmul", points=0, requires=kernels.without_triton)
def test_the_kernel_does_not_overflow(student):
    """Products of -128 by -128, 300 of them: 4.9 million. Sums in int32, not int8 or int16."""
    a = torch.full((2, 300), -128, dtype=torch.int8)
    assert_close(student.triton_int8_matmul(a, a.T.contiguous()), torch.full((2, 2), 300 * 2**14, dtype=torch.int32), "a @ b")
