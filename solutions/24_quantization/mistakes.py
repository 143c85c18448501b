"""Known wrong answers of lab 24. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import math

import torch

from course.kernels import tl, triton
from course.spec import mistake


def _codes(x, scale, zero_point=0, bits=8):
    end = 2 ** (bits - 1)
    return (torch.round(x / scale) + zero_point).clamp(-end, end - 1).to(torch.int8)


def _wrapped(x):
    """To int8 as a processor converts: the last eight bits are kept. (How torch converts large floats differs between machines.)"""
    return (x.double().remainder(256) + 128).remainder(256).sub(128).nan_to_num(0).to(torch.int8)


# ---------------------------------------------------------------- quantize_affine

@mistake("quantize_affine", caught_by="test_what_is_out_of_range_gets_the_last_code")
def converted_without_clamp(x, scale, zero_point=0, bits=8):
    """You do not clamp. A code beyond the end is not saturated by the conversion, it wraps around: 130 becomes -126, a large positive
    number a negative one. Clamp while it is still a floating-point number."""
    return _wrapped(torch.round(x / scale) + zero_point)


@mistake("quantize_affine", caught_by="test_every_number_gets_the_code_nearest_to_it")
def truncated(x, scale, zero_point=0, bits=8):
    """You convert x / S to an integer without rounding: that cuts the digits off, towards zero. The error is up to a whole step,
    and every number becomes smaller. Use torch.round first."""
    end = 2 ** (bits - 1)
    return (torch.trunc(x / scale) + zero_point).clamp(-end, end - 1).to(torch.int8)


@mistake("quantize_affine", caught_by="test_halves_go_to_the_even_code_before_the_zero_point_is_added")
def halves_upwards(x, scale, zero_point=0, bits=8):
    """You round halves upwards, as floor(x / S + 0.5) does. The hardware, and torch.round, take the even neighbour: 0.5 becomes 0, 1.5
    becomes 2. Always upwards would make sums a little too large."""
    end = 2 ** (bits - 1)
    return (torch.floor(x / scale + 0.5) + zero_point).clamp(-end, end - 1).to(torch.int8)


@mistake("quantize_affine", caught_by="test_halves_go_to_the_even_code_before_the_zero_point_is_added")
def zero_point_rounded_too(x, scale, zero_point=0, bits=8):
    """You add the zero-point before you round. For most numbers that is the same; with an odd Z a half goes to the other neighbour.
    round(x / S) + Z, not round(x / S + Z)."""
    end = 2 ** (bits - 1)
    return torch.round(x / scale + zero_point).clamp(-end, end - 1).to(torch.int8)


@mistake("quantize_affine", caught_by="test_every_number_gets_the_code_nearest_to_it")
def zero_point_subtracted(x, scale, zero_point=0, bits=8):
    """You subtract the zero-point. r = S (q - Z) solved for q is r / S + Z: the number 0 must get the code Z."""
    end = 2 ** (bits - 1)
    return (torch.round(x / scale) - zero_point).clamp(-end, end - 1).to(torch.int8)


@mistake("quantize_affine", caught_by="test_every_number_gets_the_code_nearest_to_it")
def clamped_before_the_zero_point(x, scale, zero_point=0, bits=8):
    """You clamp x / S and add the zero-point afterwards. It is the code q, with Z in it, that must lie in the range; now some codes
    lie beyond it, and others are cut too early."""
    end = 2 ** (bits - 1)
    return _wrapped(torch.round(x / scale).clamp(-end, end - 1) + zero_point)


@mistake("quantize_affine", caught_by="test_every_number_gets_the_code_nearest_to_it")
def unsigned_codes(x, scale, zero_point=0, bits=8):
    """Your codes are 0 ... 2**bits - 1. In this lab they are signed: -2**(bits - 1) ... 2**(bits - 1) - 1."""
    return _wrapped((torch.round(x / scale) + zero_point).clamp(0, 2**bits - 1))


@mistake("quantize_affine", caught_by="test_every_number_gets_the_code_nearest_to_it")
def always_eight_bits(x, scale, zero_point=0, bits=8):
    """You clamp to -128 ... 127 whatever `bits` is. With b bits the codes end at -2**(b - 1) and 2**(b - 1) - 1."""
    return _codes(x, scale, zero_point)


@mistake("quantize_affine", caught_by="test_every_number_gets_the_code_nearest_to_it")
def codes_left_as_floats(x, scale, zero_point=0, bits=8):
    """The numbers are right, but they are still floating-point: four bytes each, and nothing is saved. Convert to torch.int8."""
    return _codes(x, scale, zero_point, bits).float()


# ---------------------------------------------------------------- dequantize

@mistake("dequantize", caught_by="test_every_code_comes_back_as_its_number")
def difference_in_int8(q, scale, zero_point=0):
    """q - Z is computed in int8, because a tensor without dimensions does not change the type: 127 - (-128) is 255, and becomes -1.
    Convert q to int32 or to float32 first."""
    return scale * (q.to(torch.int32) - zero_point).to(torch.int8)


@mistake("dequantize", caught_by="test_every_code_comes_back_as_its_number")
def zero_point_added(q, scale, zero_point=0):
    """You add the zero-point. The code Z must come back as 0: r = S (q - Z)."""
    return scale * (q.to(torch.int32) + zero_point)


@mistake("dequantize", caught_by="test_every_code_comes_back_as_its_number")
def zero_point_not_scaled(q, scale, zero_point=0):
    """You multiply q by S and subtract Z afterwards. Z is a code too: the difference q - Z is multiplied by S."""
    return scale * q.to(torch.int32) - zero_point


@mistake("dequantize", caught_by="test_every_code_comes_back_as_its_number")
def zero_point_forgotten(q, scale, zero_point=0):
    """You leave out the zero-point: right for a symmetric grid only. r = S (q - Z)."""
    return scale * q.to(torch.int32)


@mistake("dequantize", caught_by="test_every_code_comes_back_as_its_number")
def divided_by_the_scale(q, scale, zero_point=0):
    """You divide by the scale. S is the distance of two neighbouring numbers: the way to the codes divides, the way back multiplies."""
    return (q.to(torch.int32) - zero_point) / scale


# ---------------------------------------------------------------- symmetric_scale

def _scale(largest, ends):
    return torch.where(largest > 0, largest / ends, 1.0)


@mistake("symmetric_scale", caught_by="test_the_largest_size_gets_the_last_positive_code")
def divided_by_128(x, bits=8):
    """You divide by 2**(bits - 1). The last positive code is one less, 127 for eight bits: with your scale the largest number would
    get the code 128, and be clamped."""
    return _scale(x.abs().max(), 2 ** (bits - 1))


@mistake("symmetric_scale", caught_by="test_the_largest_size_gets_the_last_positive_code")
def largest_without_its_sign(x, bits=8):
    """You take the maximum of x, not of |x|. A large negative number is then far outside the grid, and a tensor that is negative
    throughout has no sensible scale at all."""
    return _scale(x.max(), 2 ** (bits - 1) - 1)


@mistake("symmetric_scale", caught_by="test_the_largest_size_gets_the_last_positive_code")
def range_over_all_codes(x, bits=8):
    """You divide max - min by the number of steps. That is the scale of an affine grid; the symmetric one reaches equally far to both
    sides: max |x| / (2**(bits - 1) - 1)."""
    return _scale(x.max() - x.min(), 2**bits - 1)


@mistake("symmetric_scale", caught_by="test_the_largest_size_gets_the_last_positive_code")
def always_127(x, bits=8):
    """You divide by 127 whatever `bits` is. With b bits the last positive code is 2**(b - 1) - 1."""
    return _scale(x.abs().max(), 127)


@mistake("symmetric_scale", caught_by="test_a_tensor_of_zeros_has_the_scale_one")
def zero_for_zeros(x, bits=8):
    """A tensor of zeros gets the scale 0, and 0 / 0 is NaN later. Return 1 there."""
    return x.abs().max() / (2 ** (bits - 1) - 1)


@mistake("symmetric_scale", caught_by="test_the_largest_size_gets_the_last_positive_code")
def codes_per_unit(x, bits=8):
    """You return how many codes go into a unit, the inverse of the scale. S is the distance of two neighbouring numbers: max |x| divided
    by the last code."""
    return (2 ** (bits - 1) - 1) / x.abs().max() if bool(x.any()) else torch.tensor(1.0)


# ---------------------------------------------------------------- per_channel_scales

def _others(w, axis):
    return [d for d in range(w.ndim) if d != axis]


@mistake("per_channel_scales", caught_by="test_each_channel_has_the_scale_that_it_would_have_alone")
def maximum_over_the_channels(w, bits=8, axis=0):
    """You take the maximum *over* the channels, so that each other index gets a scale. `axis` is the dimension that stays; the maximum goes
    over all others."""
    return _scale(w.abs().amax(axis, keepdim=True), 2 ** (bits - 1) - 1)


@mistake("per_channel_scales", caught_by="test_each_channel_has_the_scale_that_it_would_have_alone")
def dimensions_dropped(w, bits=8, axis=0):
    """The scales are right, but their shape is [channels]. Divided into a weight [o, i, kh, kw] they would meet its *last* dimension: keep
    the others with size 1 (keepdim=True)."""
    return _scale(w.abs().amax(_others(w, axis)), 2 ** (bits - 1) - 1)


@mistake("per_channel_scales", caught_by="test_each_channel_has_the_scale_that_it_would_have_alone")
def one_for_all(w, bits=8, axis=0):
    """All channels have the same scale, that of the largest. Take the maximum of each channel on its own."""
    return _scale(w.abs().max(), 2 ** (bits - 1) - 1).expand([n if d == axis else 1 for d, n in enumerate(w.shape)]).clone()


@mistake("per_channel_scales", caught_by="test_each_channel_has_the_scale_that_it_would_have_alone")
def channels_divided_by_128(w, bits=8, axis=0):
    """You divide by 2**(bits - 1). The last positive code is one less, 127 for eight bits."""
    return _scale(w.abs().amax(_others(w, axis), keepdim=True), 2 ** (bits - 1))


@mistake("per_channel_scales", caught_by="test_each_channel_has_the_scale_that_it_would_have_alone")
def channels_without_sign(w, bits=8, axis=0):
    """You take the maximum of w, not of |w|: a channel's largest weight may be negative."""
    return _scale(w.amax(_others(w, axis), keepdim=True), 2 ** (bits - 1) - 1)


@mistake("per_channel_scales", caught_by="test_any_dimension_can_be_that_of_the_channels")
def axis_ignored(w, bits=8, axis=0):
    """You always take dimension 0 for that of the channels. `axis` says which one it is."""
    return _scale(w.abs().amax(_others(w, 0), keepdim=True), 2 ** (bits - 1) - 1)


@mistake("per_channel_scales", caught_by="test_a_channel_of_zeros_has_the_scale_one")
def zero_for_a_channel_of_zeros(w, bits=8, axis=0):
    """A channel of zeros, one that was pruned away, gets the scale 0, and 0 / 0 is NaN later. Its scale is 1."""
    return w.abs().amax(_others(w, axis), keepdim=True) / (2 ** (bits - 1) - 1)


# ---------------------------------------------------------------- calibrate

def _grid(low, high, bits):
    scale = max(high - low, 1e-12) / (2**bits - 1)
    return torch.tensor(scale), round(-low / scale) - 2 ** (bits - 1)


def _there_and_back(x, low, high, bits):
    scale, zero = _grid(low, high, bits)
    return scale * (_codes(x, scale, zero, bits).to(torch.int32) - zero)


def _calibrate(x, bits, method, tail, *, zero=True, ends=(True, True), spread=lambda e: e.square().mean().item()):
    """The reference with one thing made wrong."""
    low, high = x.min().item(), x.max().item()
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if method == "percentile":
        a, b = torch.quantile(x, torch.tensor([tail, 1 - tail])).tolist()
        low, high = (a if ends[0] else low), (b if ends[1] else high)
        return (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    if method == "mse":
        error = lambda f: spread(_there_and_back(x, f * low, f * high, bits) - x)
        best = min((f / 100 for f in range(1, 101)), key=error)
        return best * low, best * high
    if method != "minmax":
        raise ValueError(method)
    return low, high


@mistake("calibrate", caught_by="test_minmax_reaches_from_the_smallest_to_the_largest")
def zero_left_out(x, bits=8, method="minmax", tail=0.001):
    """Your range does not always include zero. If all numbers are positive, low must be 0: otherwise the zeros of padding and of ReLU
    have no code."""
    return _calibrate(x, bits, method, tail, zero=False)


@mistake("calibrate", caught_by="test_minmax_reaches_from_the_smallest_to_the_largest")
def always_symmetric(x, bits=8, method="minmax", tail=0.001):
    """Your range reaches equally far to both sides. After ReLU there is nothing below zero, and half of the codes would be wasted: low and
    high are found apart."""
    low, high = _calibrate(x, bits, method, tail)
    end = max(-low, high)
    return -end, end


@mistake("calibrate", caught_by="test_percentile_leaves_out_the_tail_at_either_end")
def tail_above_only(x, bits=8, method="minmax", tail=0.001):
    """Your percentile cuts at the upper end only. Outliers can be negative as well: leave out the share `tail` at either end."""
    return _calibrate(x, bits, method, tail, ends=(False, True))


@mistake("calibrate", caught_by="test_percentile_leaves_out_the_tail_at_either_end")
def tail_halved(x, bits=8, method="minmax", tail=0.001):
    """You leave out half of `tail` at either end, `tail` in all. Here it is the share `tail` below and as much above."""
    return _calibrate(x, bits, method, tail / 2)


@mistake("calibrate", caught_by="test_mse_finds_the_shrunk_range_with_the_least_squared_error")
def mean_absolute_error(x, bits=8, method="minmax", tail=0.001):
    """You minimise the mean of |error|, not of its square. The square minds the few numbers that are cut off far more, so its best range is
    wider."""
    return _calibrate(x, bits, method, tail, spread=lambda e: e.abs().mean().item())


@mistake("calibrate", caught_by="test_mse_finds_the_shrunk_range_with_the_least_squared_error")
def codes_of_eight_bits(x, bits=8, method="minmax", tail=0.001):
    """Your grid has `bits` bits, but the codes on it are clamped as eight bits are: quantize_affine did not get `bits`. So nothing seems to be
    cut off, and the smallest range seems best."""
    if method != "mse":
        return _calibrate(x, bits, method, tail)
    low, high = _calibrate(x, bits, "minmax", tail)

    def error(f):
        scale, zero = _grid(f * low, f * high, bits)
        return (scale * (_codes(x, scale, zero).to(torch.int32) - zero) - x).square().mean().item()
    best = min((f / 100 for f in range(1, 101)), key=error)
    return best * low, best * high


@mistake("calibrate", caught_by="test_mse_finds_the_shrunk_range_with_the_least_squared_error")
def never_shrunk(x, bits=8, method="minmax", tail=0.001):
    """Your "mse" returns the whole range. Either no smaller range is tried (take the factors 0.01, 0.02, ..., 1.00), or all of them are
    tried on a grid of eight bits, where the whole range wins: hand `bits` on to affine_grid and to quantize_affine."""
    return _calibrate(x, bits, "minmax" if method == "mse" else method, tail)


@mistake("calibrate", caught_by="test_mse_finds_the_shrunk_range_with_the_least_squared_error")
def error_without_the_cut(x, bits=8, method="minmax", tail=0.001):
    """You leave the numbers beyond the range out of the error, so that the smallest range looks best. What is cut off is the price:
    compare with x itself, all of it."""
    if method != "mse":
        return _calibrate(x, bits, method, tail)
    low, high = _calibrate(x, bits, "minmax", tail)
    clipped = lambda f: x.clamp(f * low, f * high)
    best = min((f / 100 for f in range(1, 101)), key=lambda f: (_there_and_back(clipped(f), f * low, f * high, bits) - clipped(f)).square().mean().item())
    return best * low, best * high


@mistake("calibrate", caught_by="test_an_unknown_method_is_refused")
def unknown_is_minmax(x, bits=8, method="minmax", tail=0.001):
    """You take any unknown method for one of the three. Somebody who misspells "percentile" must hear of it: raise ValueError."""
    return _calibrate(x, bits, method if method in ("minmax", "percentile", "mse") else "minmax", tail)


# ---------------------------------------------------------------- int8_linear

def _linear(q_x, s_x, z_x, q_w, s_w, q_bias, s_y, z_y, *, kind=torch.int64, correct=lambda q_w, z_x: z_x * q_w.sum(1), rounded=torch.round,
            factor=lambda s_x, s_w, s_y: s_x * s_w / s_y, shift=lambda z_y: z_y, convert=lambda y: y.clamp(-128, 127).to(torch.int8)):
    sums = (q_x.to(kind) @ q_w.to(kind).T) - correct(q_w.long(), z_x).to(kind) + q_bias.to(kind)
    return convert(rounded(sums * factor(s_x, s_w, s_y)) + shift(z_y))


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def sums_in_int8(*args):
    """Your product overflows: a product of int8 tensors is int8 in torch, and keeps the last eight bits of each sum. Convert both to
    int32 first."""
    q_x, s_x, z_x, q_w, s_w, q_bias, s_y, z_y = args
    sums = _wrapped(q_x.double() @ q_w.double().T).long() - z_x * q_w.long().sum(1) + q_bias
    return (torch.round(sums * (s_x * s_w / s_y)) + z_y).clamp(-128, 127).to(torch.int8)


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def difference_of_codes_in_int8(*args):
    """q_x - z_x does not fit into eight bits: between two codes lie up to 255 steps, and int8 keeps the last eight bits. Convert first, or
    take z_x * q_w.sum(1) from the sums."""
    q_x, s_x, z_x, q_w, s_w, q_bias, s_y, z_y = args
    sums = _wrapped(q_x.double() - z_x).long() @ q_w.long().T + q_bias
    return (torch.round(sums * (s_x * s_w / s_y)) + z_y).clamp(-128, 127).to(torch.int8)


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def factor_upside_down(*args):
    """Your M is upside down: a sum has the unit s_x * s_w, and one code of the output is s_y. M = s_x * s_w / s_y."""
    return _linear(*args, factor=lambda s_x, s_w, s_y: s_y / (s_x * s_w))


@mistake("int8_linear", caught_by="test_sums_are_exact_beyond_24_bits")
def sums_in_float32(*args):
    """You sum in float32, which holds whole numbers up to 2**24 only: beyond, a sum of a thousand products loses its last bits. Convert to
    torch.int32."""
    # Summed and rounded here as one would by hand, so that the answer does not depend on how a machine orders its sums.
    q_x, s_x, z_x, q_w, s_w, q_bias, s_y, z_y = args
    exact = q_x.double() @ q_w.double().T
    lost = torch.where(exact.abs() > 2**24, (exact / 8).round() * 8, exact)
    sums = lost - z_x * q_w.double().sum(1) + q_bias
    return (torch.round(sums * (s_x * s_w / s_y)) + z_y).clamp(-128, 127).to(torch.int8)


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def zero_point_of_the_input_forgotten(*args):
    """You do not correct for the zero-point of the inputs. The real inputs are S_x (q_x - Z_x): take z_x times the sum of each row of q_w
    away from the sums."""
    return _linear(*args, correct=lambda q_w, z_x: 0 * q_w.sum(1))


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def correction_with_the_wrong_sign(*args):
    """You add the correction for the zero-point. (q_x - z_x) @ q_w.T is q_x @ q_w.T *minus* z_x times the row sums of q_w."""
    return _linear(*args, correct=lambda q_w, z_x: -z_x * q_w.sum(1))


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def correction_summed_over_everything(*args):
    """You take z_x times the sum of the *whole* weight away, for every output. Each output has its own row of q_w: sum over dimension 1."""
    return _linear(*args, correct=lambda q_w, z_x: (z_x * q_w.sum()).expand(len(q_w)))


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def output_zero_point_forgotten(*args):
    """You do not add the zero-point of the outputs. The real number 0 must get the code z_y."""
    return _linear(*args, shift=lambda z_y: 0 * z_y)


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def output_scale_forgotten(*args):
    """You multiply by s_x * s_w and never divide by s_y: that is the real output, not its code. M = s_x * s_w / s_y."""
    return _linear(*args, factor=lambda s_x, s_w, s_y: s_x * s_w)


@mistake("int8_linear", caught_by="test_outputs_that_are_too_large_get_the_last_code")
def outputs_wrap_around(*args):
    """You convert to int8 without clamping: an output of 130 becomes -126. Clamp to -128 ... 127 first."""
    return _linear(*args, convert=_wrapped)


@mistake("int8_linear", caught_by="test_outputs_just_between_two_codes_go_to_the_even_one")
def outputs_cut_off(*args):
    """You convert M * sum to an integer without rounding, so that every output is up to a whole step too near to zero. Use torch.round."""
    return _linear(*args, rounded=torch.trunc)


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def bias_forgotten(*args):
    """You leave out the bias. It has the scale s_x * s_w already: add q_bias to the sums."""
    return _linear(*args[:5], 0 * args[5], *args[6:])


@mistake("int8_linear", caught_by="test_codes_go_in_and_the_nearest_codes_come_out")
def bias_added_at_the_end(*args):
    """You add q_bias to the output's codes. Its scale is s_x * s_w, that of the sums: add it before you multiply by M."""
    q_x, s_x, z_x, q_w, s_w, q_bias, s_y, z_y = args
    return _linear(q_x, s_x, z_x, q_w, s_w, 0 * q_bias, s_y, z_y, shift=lambda z: z + q_bias)


# ---------------------------------------------------------------- dynamic_int8_linear

def _dynamic(x, q_w, s_w, bias, s_x, *, rounded=torch.round, scale_back=True):
    y = (rounded(x / s_x).clamp(-128, 127).double() @ q_w.double().T).float() * s_w
    y = y * s_x if scale_back else y
    return y if bias is None else y + bias


def _row_scale(x, end=127):
    return (x.abs().amax(1, keepdim=True) / end).clamp(min=1e-30)


@mistake("dynamic_int8_linear", caught_by="test_a_small_row_keeps_its_precision_beside_a_large_one")
def one_scale_for_all_rows(x, q_w, s_w, bias=None):
    """You use one scale for the whole of x. A row of small numbers beside a large one becomes all zeros: take the maximum over the
    last dimension only."""
    return _dynamic(x, q_w, s_w, bias, (x.abs().max() / 127).clamp(min=1e-30))


@mistake("dynamic_int8_linear", caught_by="test_what_is_below_half_a_step_is_gone")
def inputs_not_quantised(x, q_w, s_w, bias=None):
    """You turn the weight back into floating point and multiply as ever. The result is more exact than it should be, and no faster: quantise the
    rows of x, and multiply integers."""
    y = (x.double() @ (q_w.double() * s_w[:, None]).T).float()
    return y if bias is None else y + bias


@mistake("dynamic_int8_linear", caught_by="test_rows_that_lie_on_their_grid_are_multiplied_exactly")
def inputs_scale_forgotten(x, q_w, s_w, bias=None):
    """You do not multiply by the scale of the rows at the end. The product of the integers has the unit s_n * s_w."""
    return _dynamic(x, q_w, s_w, bias, _row_scale(x), scale_back=False)


@mistake("dynamic_int8_linear", caught_by="test_rows_that_lie_on_their_grid_are_multiplied_exactly")
def weights_scale_forgotten(x, q_w, s_w, bias=None):
    """You do not multiply by the scales of the weight. The product of the integers has the unit s_n * s_w."""
    return _dynamic(x, q_w, torch.ones_like(s_w), bias, _row_scale(x))


@mistake("dynamic_int8_linear", caught_by="test_a_row_of_zeros_gives_the_bias")
def nan_for_zeros(x, q_w, s_w, bias=None):
    """A row of zeros has the scale 0, and 0 / 0 is NaN, which int8 does not even know. Keep the scale away from zero, with clamp(min=...)
    for example."""
    y = _dynamic(x, q_w, s_w, bias, _row_scale(x))
    return torch.where(x.abs().amax(1, keepdim=True) > 0, y, math.nan)


@mistake("dynamic_int8_linear", caught_by="test_rows_that_lie_on_their_grid_are_multiplied_exactly")
def row_divided_by_128(x, q_w, s_w, bias=None):
    """You divide the largest |x| by 128. It then has the code 128, which int8 does not have. The symmetric grid ends at 127."""
    return _dynamic(x, q_w, s_w, bias, _row_scale(x, 128))


@mistake("dynamic_int8_linear", caught_by="test_rows_that_lie_on_their_grid_are_multiplied_exactly")
def bias_left_out(x, q_w, s_w, bias=None):
    """You never add the bias. It is float32, and is added at the end, where there is one."""
    return _dynamic(x, q_w, s_w, None, _row_scale(x))


@mistake("dynamic_int8_linear", caught_by="test_what_is_below_half_a_step_is_gone")
def rows_cut_off(x, q_w, s_w, bias=None):
    """You convert x / s_n to int8 without rounding: that cuts the digits off, towards zero. Use torch.round first."""
    # A grain more than nothing, so that a code that is whole up to rounding errors stays as it is.
    return _dynamic(x, q_w, s_w, bias, _row_scale(x), rounded=lambda t: torch.trunc(t * (1 + 1e-6)))


@mistake("dynamic_int8_linear", caught_by="test_rows_that_lie_on_their_grid_are_multiplied_exactly")
def product_in_int8(x, q_w, s_w, bias=None):
    """Your product overflows: `@` of int8 tensors gives int8 in torch, the last eight bits of each sum. torch._int_mm sums in int32."""
    s_x = _row_scale(x)
    y = _wrapped(torch.round(x / s_x).double() @ q_w.double().T).float() * s_x * s_w
    return y if bias is None else y + bias


@mistake("dynamic_int8_linear", caught_by="test_rows_that_lie_on_their_grid_are_multiplied_exactly")
def largest_with_its_sign(x, q_w, s_w, bias=None):
    """You take the largest x of each row, not the largest |x|: a row whose number of largest size is negative does not fit on its grid."""
    return _dynamic(x, q_w, s_w, bias, (x.amax(1, keepdim=True) / 127).clamp(min=1e-30))


@mistake("dynamic_int8_linear", caught_by="test_a_small_row_keeps_its_precision_beside_a_large_one")
def scale_never_small(x, q_w, s_w, bias=None):
    """You keep the scale above a number that real rows fall below, so that a row of small numbers becomes all zeros. Keep it away from zero
    only: clamp(min=1e-30)."""
    return _dynamic(x, q_w, s_w, bias, (x.abs().amax(1, keepdim=True) / 127).clamp(min=1e-3))


# ---------------------------------------------------------------- fake_quantize

def _stairs(x, scale, zero_point, bits):
    end = 2 ** (bits - 1)
    return scale * ((torch.round(x / scale) + zero_point).clamp(-end, end - 1) - zero_point)


def _within(x, scale, zero_point, bits):
    end = 2 ** (bits - 1)
    return torch.minimum(torch.maximum(x, scale * (-end - zero_point)), scale * (end - 1 - zero_point))


@mistake("fake_quantize", caught_by="test_the_gradient_passes_straight_through_where_nothing_is_clamped")
def gradient_of_the_stairs(x, scale, zero_point=0, bits=8):
    """The values are right, but the gradient is that of the stairs: zero everywhere, and nothing can be learned. The rounding needs the
    gradient of the line: line + (stairs - line).detach()."""
    return _stairs(x, scale, zero_point, bits) + 0 * x


@mistake("fake_quantize", caught_by="test_no_gradient_passes_where_the_code_was_clamped")
def gradient_everywhere(x, scale, zero_point=0, bits=8):
    """Your gradient is 1 for every number, also for those beyond the range. They can move and the output stays: clamp the line too, with an
    operation that autograd sees."""
    return x + (_stairs(x, scale, zero_point, bits) - x).detach()


@mistake("fake_quantize", caught_by="test_the_values_are_those_of_quantising_and_dequantising")
def only_clamped(x, scale, zero_point=0, bits=8):
    """What comes out is not on the grid: you clamp, but the rounding is lost. Check what is inside .detach(): line + (stairs - line).detach()."""
    return _within(x, scale, zero_point, bits)


@mistake("fake_quantize", caught_by="test_the_values_are_those_of_quantising_and_dequantising")
def codes_returned(x, scale, zero_point=0, bits=8):
    """You return the codes, as floats. Fake quantisation goes there and back: the result has the units of x. Subtract Z, multiply by S."""
    line = _within(x, scale, zero_point, bits)
    return (line + (_stairs(x, scale, zero_point, bits) - line).detach()) / scale + zero_point


@mistake("fake_quantize", caught_by="test_the_values_are_those_of_quantising_and_dequantising")
def zero_point_left_in(x, scale, zero_point=0, bits=8):
    """You do not take the zero-point away again before you multiply by the scale: everything is moved by S * Z."""
    line = _within(x, scale, zero_point, bits)
    return line + (_stairs(x, scale, zero_point, bits) + scale * zero_point - line).detach()


@mistake("fake_quantize", caught_by="test_the_gradient_passes_straight_through_where_nothing_is_clamped")
def gradient_scaled(x, scale, zero_point=0, bits=8):
    """The gradient is too large by the factor 1 / S, or too small by S: the straight-through estimator skips the rounding only, and division and
    multiplication by S must cancel."""
    line = _within(x, scale, zero_point, bits)
    return line / scale + (_stairs(x, scale, zero_point, bits) - line / scale).detach()


@mistake("fake_quantize", caught_by="test_the_values_are_those_of_quantising_and_dequantising")
def fake_eight_bits(x, scale, zero_point=0, bits=8):
    """You clamp to -128 ... 127 whatever `bits` is."""
    line = _within(x, scale, zero_point, 8)
    return line + (_stairs(x, scale, zero_point, 8) - line).detach()


# ---------------------------------------------------------------- pack_int4

def _refuse(q):
    if q.shape[-1] % 2 or bool(((q < -8) | (q > 7)).any()):
        raise ValueError("odd, or out of range")


def _pack(low, high):
    return ((low.int() & 15) | ((high.int() & 15) << 4)).to(torch.uint8)


@mistake("pack_int4", caught_by="test_two_codes_share_a_byte_the_first_one_low")
def first_one_high(q):
    """Your first code is in the high four bits. Both orders are in use; here the first one is low."""
    _refuse(q)
    return _pack(q[..., 1::2], q[..., 0::2])


@mistake("pack_int4", caught_by="test_two_codes_share_a_byte_the_first_one_low")
def halves_of_the_row(q):
    """You pack the first half of the row with the second half. Neighbours share a byte: numbers 2i and 2i + 1."""
    _refuse(q)
    return _pack(*q.chunk(2, dim=-1))


@mistake("pack_int4", caught_by="test_two_codes_share_a_byte_the_first_one_low")
def sign_bits_left(q):
    """A negative code has ones in all its higher bits, and they overwrite its neighbour's. Keep the last four bits with `& 15` before you
    put the two together."""
    _refuse(q)
    return ((q[..., 0::2].int() | (q[..., 1::2].int() << 4)) & 255).to(torch.uint8)


@mistake("pack_int4", caught_by="test_two_codes_share_a_byte_the_first_one_low")
def moved_by_eight(q):
    """You add 8 to make the codes 0 ... 15. That is a format too, but here the last four bits of the code are kept: -1 is 1111, not 0111."""
    _refuse(q)
    return _pack(q[..., 0::2] + 8, q[..., 1::2] + 8)


@mistake("pack_int4", caught_by="test_what_cannot_be_packed_is_refused")
def overflow_packed(q):
    """A code like 8 is packed without a word, and comes back as -8. Raise ValueError if any code is below -8 or above 7."""
    if q.shape[-1] % 2:
        raise ValueError("odd")
    return _pack(q[..., 0::2], q[..., 1::2])


@mistake("pack_int4", caught_by="test_what_cannot_be_packed_is_refused")
def odd_row_padded(q):
    """An odd row is packed with a zero at its end, and comes back one code longer. Raise ValueError."""
    _refuse(q[..., : q.shape[-1] // 2 * 2])
    return _pack(*(torch.nn.functional.pad(q, (0, q.shape[-1] % 2))[..., i::2] for i in (0, 1)))


@mistake("pack_int4", caught_by="test_two_codes_share_a_byte_the_first_one_low")
def kept_as_int8(q):
    """The bits are right, but the dtype is not torch.uint8, so that a byte above 127 counts as negative."""
    _refuse(q)
    return _pack(q[..., 0::2], q[..., 1::2]).view(torch.int8)


@mistake("pack_int4", caught_by="test_every_row_is_packed_along_its_last_dimension")
def all_rows_in_one(q):
    """You flatten the tensor: all rows come back as one. Pack along the last dimension and leave the others as they are."""
    _refuse(q)
    return _pack(q.flatten()[0::2], q.flatten()[1::2])


# ---------------------------------------------------------------- unpack_int4

def _signed(nibbles):
    return torch.where(nibbles > 7, nibbles - 16, nibbles).to(torch.int8)


def _halves(packed):
    return packed.int() & 15, packed.int() >> 4


@mistake("unpack_int4", caught_by="test_unpacking_gives_back_what_was_packed")
def sign_lost(packed):
    """Your codes are 0 ... 15. Four bits above 7 stand for a number less by 16: 1111 is -1."""
    return torch.stack(_halves(packed), -1).flatten(-2).to(torch.int8)


@mistake("unpack_int4", caught_by="test_unpacking_gives_back_what_was_packed")
def neighbours_exchanged(packed):
    """Neighbours have changed places: the low four bits are the first code, the high four the second."""
    return _signed(torch.stack(_halves(packed)[::-1], -1).flatten(-2))


@mistake("unpack_int4", caught_by="test_unpacking_gives_back_what_was_packed")
def all_low_ones_first(packed):
    """You put all the low halves first and all the high ones after them. They alternate: stack them in a new last dimension and flatten it."""
    return _signed(torch.cat(_halves(packed), -1))


@mistake("unpack_int4", caught_by="test_unpacking_gives_back_what_was_packed")
def moved_back_by_eight(packed):
    """You subtract 8 from every half byte: that unpacks another format. Only what is above 7 is less by 16."""
    return (torch.stack(_halves(packed), -1).flatten(-2) - 8).to(torch.int8)


@mistake("unpack_int4", caught_by="test_unpacking_gives_back_what_was_packed")
def high_half_not_cut(packed):
    """The first code of each pair still has its neighbour's bits: keep the last four with `& 15`."""
    low, high = packed.int(), packed.int() >> 4
    return _wrapped(torch.stack([torch.where(low > 7, low - 16, low), torch.where(high > 7, high - 16, high)], -1).flatten(-2))


@mistake("unpack_int4", caught_by="test_unpacking_gives_back_what_was_packed")
def unpacked_to_int32(packed):
    """The codes are right, but they are not int8: four times the memory of what you packed to save it."""
    return _signed(torch.stack(_halves(packed), -1).flatten(-2)).to(torch.int32)


# ---------------------------------------------------------------- learned_step_gradient

def _step_gradient(x, scale, grad_y, bits, *, slope=None, norm=True, per_element=True):
    end, steps = 2 ** (bits - 1), x / scale
    inside = torch.round(steps) - steps if slope is None else slope(steps)
    full = torch.where((steps > -end) & (steps < end - 1), inside, steps.clamp(-end, end - 1))
    count = x.numel() if per_element else 1
    return (grad_y * full).sum() / (math.sqrt(count * (end - 1)) if norm else 1)


@mistake("learned_step_gradient", caught_by="test_the_scale_gets_the_gradient_of_esser_and_others")
def not_normalised(x, scale, grad_y, bits=8):
    """You do not divide by sqrt(n * (2**(bits - 1) - 1)). The scale collects the gradients of all n elements, and would jump while the
    weights creep."""
    return _step_gradient(x, scale, grad_y, bits, norm=False)


@mistake("learned_step_gradient", caught_by="test_the_scale_gets_the_gradient_of_esser_and_others")
def stairs_only(x, scale, grad_y, bits=8):
    """Your slope inside the range is round(x / S), as if the code did not change with S. With the straight-through estimator x / S moves too:
    round(x / S) - x / S."""
    return _step_gradient(x, scale, grad_y, bits, slope=torch.round)


@mistake("learned_step_gradient", caught_by="test_the_scale_gets_the_gradient_of_esser_and_others")
def slope_turned_round(x, scale, grad_y, bits=8):
    """The slope inside the range has the wrong sign: it is round(x / S) - x / S."""
    return _step_gradient(x, scale, grad_y, bits, slope=lambda steps: steps - torch.round(steps))


@mistake("learned_step_gradient", caught_by="test_one_number_beyond_the_range_gives_the_last_code")
def nothing_from_the_clamped(x, scale, grad_y, bits=8):
    """Numbers beyond the range give nothing to your gradient. They give the most: y = S * last code there, so its slope is the last code."""
    end, steps = 2 ** (bits - 1), x / scale
    slope = torch.where((steps > -end) & (steps < end - 1), torch.round(steps) - steps, 0.0)
    return (grad_y * slope).sum() / math.sqrt(x.numel() * (end - 1))


@mistake("learned_step_gradient", caught_by="test_large_tensors_move_the_scale_no_faster")
def size_forgotten(x, scale, grad_y, bits=8):
    """You divide by the root of 2**(bits - 1) - 1 only. The number of elements belongs under the root as well."""
    return _step_gradient(x, scale, grad_y, bits, per_element=False)


@mistake("learned_step_gradient", caught_by="test_the_scale_gets_the_gradient_of_esser_and_others")
def upstream_forgotten(x, scale, grad_y, bits=8):
    """You sum dy/dS alone. By the chain rule each element's share is multiplied by grad_y."""
    return _step_gradient(x, scale, torch.ones_like(grad_y), bits)


# ---------------------------------------------------------------- fold_then_quantize

def _channel_scales(w, bits):
    return _scale(w.abs().amax((1, 2, 3), keepdim=True), 2 ** (bits - 1) - 1)


def _fold(weight, bias, gamma, beta, mean, var, eps, bits, *, gain=None, shift=None):
    gain = gamma / torch.sqrt(var + eps) if gain is None else gain
    folded = weight * gain.view(-1, 1, 1, 1)
    bias = torch.zeros_like(beta) if bias is None else bias
    shift = beta + gain * (bias - mean) if shift is None else shift(gain, bias)
    scales = _channel_scales(folded, bits)
    return _codes(folded, scales, bits=bits), scales, shift


@mistake("fold_then_quantize", caught_by="test_codes_and_scales_are_those_of_the_folded_weight")
def quantised_without_folding(weight, bias, gamma, beta, mean, var, eps=1e-5, bits=8):
    """You quantise the weight as it was and fold only the bias. The gain belongs into the weight, before its scales are found."""
    _, _, shift = _fold(weight, bias, gamma, beta, mean, var, eps, bits)
    scales = _channel_scales(weight, bits)
    return _codes(weight, scales, bits=bits), scales, shift


@mistake("fold_then_quantize", caught_by="test_codes_and_scales_are_those_of_the_folded_weight")
def divided_by_the_variance(weight, bias, gamma, beta, mean, var, eps=1e-5, bits=8):
    """You divide by var + eps. BatchNorm divides by the standard deviation, its square root."""
    return _fold(weight, bias, gamma, beta, mean, var, eps, bits, gain=gamma / (var + eps))


@mistake("fold_then_quantize", caught_by="test_codes_and_scales_are_those_of_the_folded_weight")
def eps_outside_the_root(weight, bias, gamma, beta, mean, var, eps=1e-5, bits=8):
    """You add eps to the standard deviation. BatchNorm adds it to the variance, under the root."""
    return _fold(weight, bias, gamma, beta, mean, var, eps, bits, gain=gamma / (var.sqrt() + eps))


@mistake("fold_then_quantize", caught_by="test_the_folded_bias_is_what_an_input_of_zeros_gives")
def mean_forgotten(weight, bias, gamma, beta, mean, var, eps=1e-5, bits=8):
    """You do not subtract the running mean: the bias is beta + gain * (bias - mean)."""
    return _fold(weight, bias, gamma, beta, mean, var, eps, bits, shift=lambda gain, bias: beta + gain * bias)


@mistake("fold_then_quantize", caught_by="test_the_folded_bias_is_what_an_input_of_zeros_gives")
def bias_not_multiplied(weight, bias, gamma, beta, mean, var, eps=1e-5, bits=8):
    """The convolution's own bias goes through BatchNorm as well: it is multiplied by the gain, like the mean."""
    return _fold(weight, bias, gamma, beta, mean, var, eps, bits, shift=lambda gain, bias: beta + bias - gain * mean)


@mistake("fold_then_quantize", caught_by="test_codes_and_scales_are_those_of_the_folded_weight")
def folded_with_one_scale(weight, bias, gamma, beta, mean, var, eps=1e-5, bits=8):
    """You use one scale for the whole folded weight. Folding is just what makes the channels differ: a scale for each of them."""
    _, _, shift = _fold(weight, bias, gamma, beta, mean, var, eps, bits)
    folded = weight * (gamma / torch.sqrt(var + eps)).view(-1, 1, 1, 1)
    scale = _scale(folded.abs().max(), 2 ** (bits - 1) - 1)
    return _codes(folded, scale, bits=bits), scale.expand(len(weight), 1, 1, 1).clone(), shift


# ---------------------------------------------------------------- smooth_scales

def _smooth(x_max, w_max, alpha):
    return torch.where((x_max > 0) & (w_max > 0), x_max**alpha / w_max ** (1 - alpha), 1.0)


@mistake("smooth_scales", caught_by="test_alpha_divides_the_trouble_between_input_and_weight")
def alpha_exchanged(x_max, w, alpha=0.5):
    """alpha and 1 - alpha have changed places: with alpha = 1 all of the trouble is moved, s = x_max."""
    return _smooth(x_max, w.abs().amax(0), 1 - alpha)


@mistake("smooth_scales", caught_by="test_alpha_divides_the_trouble_between_input_and_weight")
def multiplied_by_the_weight(x_max, w, alpha=0.5):
    """You multiply by w_max**(1 - alpha). Divide by it: where the weight is small already, it can take more."""
    w_max = w.abs().amax(0)
    return torch.where((x_max > 0) & (w_max > 0), x_max**alpha * w_max ** (1 - alpha), 1.0)


@mistake("smooth_scales", caught_by="test_alpha_divides_the_trouble_between_input_and_weight")
def largest_of_the_whole_weight(x_max, w, alpha=0.5):
    """You take one maximum for the whole weight. Each input channel k meets column k of it: the maximum goes over dimension 0."""
    return _smooth(x_max, w.abs().max().expand(len(x_max)), alpha)


@mistake("smooth_scales", caught_by="test_alpha_divides_the_trouble_between_input_and_weight")
def weight_without_its_sign(x_max, w, alpha=0.5):
    """You take the maximum of w, not of |w|: a column's largest weight may be negative."""
    return _smooth(x_max, w.amax(0), alpha)


@mistake("smooth_scales", caught_by="test_a_channel_without_signal_or_without_weight_is_left_alone")
def zeros_divide(x_max, w, alpha=0.5):
    """A channel that is always 0, or that nothing reads, gives 0, infinity or NaN. Leave it alone: s = 1."""
    return x_max**alpha / w.abs().amax(0) ** (1 - alpha)


@mistake("smooth_scales", caught_by="test_alpha_divides_the_trouble_between_input_and_weight")
def inverse_factors(x_max, w, alpha=0.5):
    """You return 1 / s. The activations are divided by s, so s is large where they are."""
    return 1 / _smooth(x_max, w.abs().amax(0), alpha)


# ---------------------------------------------------------------- triton_int8_matmul

@triton.jit
def _kernel(a_ptr, b_ptr, c_ptr, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WRONG: tl.constexpr):
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    column = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    end = k
    if WRONG == "first":
        end = tl.minimum(k, BK)
    if WRONG == "rest":
        end = k // BK * BK
    for start in range(0, end, BK):
        across, down = start + tl.arange(0, BK)[None, :], start + tl.arange(0, BK)[:, None]
        a = tl.load(a_ptr + row * k + across, mask=(row < m) & (across < k), other=0)
        other = 0
        if WRONG == "ones":
            a = tl.load(a_ptr + row * k + across, mask=(row < m) & (across < k), other=1)
            other = 1
        b = tl.load(b_ptr + down * n + column, mask=(down < k) & (column < n), other=other)
        product = tl.dot(a, b, out_dtype=tl.int32)
        if WRONG == "overwritten":
            sums = product
        elif WRONG == "short":
            sums = (sums + product).to(tl.int16).to(tl.int32)
        else:
            sums += product
    tl.store(c_ptr + row * n + column, sums, mask=(row < m) & (column < n))


def _launch(a, b, wrong):
    from course.device import default_device
    home, (m, k), n = a.device, a.shape, b.shape[1]
    a, b = (t.to(default_device()).contiguous() for t in (a, b))
    c = torch.zeros(m, n, dtype=torch.int32, device=a.device)
    _kernel[(triton.cdiv(m, 64), triton.cdiv(n, 64))](a, b, c, m, n, k, BM=64, BN=64, BK=64, WRONG=wrong)
    return c.to(home)


@mistake("triton_int8_matmul", caught_by="test_the_kernel_gives_the_product_of_the_integers")
def only_the_first_step(a, b):
    """You multiply the first BK numbers only. Walk along k in a loop, range(0, k, BK), and add up."""
    return _launch(a, b, "first")


@mistake("triton_int8_matmul", caught_by="test_the_kernel_gives_the_product_of_the_integers")
def last_step_left_out(a, b):
    """The last, partial step along k is missing. Let the loop run to k, and mask what lies beyond it."""
    return _launch(a, b, "rest")


@mistake("triton_int8_matmul", caught_by="test_the_kernel_gives_the_product_of_the_integers")
def padding_of_ones(a, b):
    """What lies beyond k is not loaded as 0, and is added to the sums. Load with other=0."""
    return _launch(a, b, "ones")


@mistake("triton_int8_matmul", caught_by="test_the_kernel_gives_the_product_of_the_integers")
def sums_overwritten(a, b):
    """Each step overwrites the sums of the steps before. Add: sums += tl.dot(...)."""
    return _launch(a, b, "overwritten")


@mistake("triton_int8_matmul", caught_by="test_the_kernel_does_not_overflow")
def sums_in_int16(a, b):
    """Your sums overflow int16 at 32767. Two products of -128 by -128 are enough for that: keep the sums in int32."""
    return _launch(a, b, "short")
