"""Known wrong answers of lab 34. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from course.spec import mistake

BF16, FP16 = torch.bfloat16, torch.float16

# ---------------------------------------------------------------- decode_float


def _decode(codes, exponent_bits, mantissa_bits, infinities=True, *, bias=None, hidden_one=True, subnormal=0, sign=True, special=True,
            top_is_special=None, e_first=True):
    b = 2 ** (exponent_bits - 1) - 1 if bias is None else bias
    e = (codes // 2**mantissa_bits) % 2**exponent_bits
    m = codes % 2**mantissa_bits
    f = m.double() / 2**mantissa_bits
    value = torch.pow(torch.tensor(2.0, dtype=torch.float64), (e - b).double()) * (int(hidden_one) + f)
    if subnormal is not None:
        value = torch.where(e == 0, 2.0 ** (1 - b - subnormal) * f, value)
    top = e == 2**exponent_bits - 1
    if special and (infinities if top_is_special is None else top_is_special):
        value = torch.where(top, torch.where(m == 0, math.inf, math.nan), value)
    elif special:
        value = torch.where(top & (m == 2**mantissa_bits - 1), math.nan, value)
    return torch.where(codes >= 2 ** (exponent_bits + mantissa_bits), -value, value) if sign else value


@mistake("decode_float", caught_by="test_every_code_of_sixteen_bits_means_what_torch_reads")
def bias_one_too_large(codes, exponent_bits, mantissa_bits, infinities=True):
    """Your numbers are half of what they should be: your bias is 2**(E - 1). It is one less, 15 for five bits and 127 for eight, so
    that 1.0 has the exponent field 01...1."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities, bias=2 ** (exponent_bits - 1))


@mistake("decode_float", caught_by="test_every_code_of_sixteen_bits_means_what_torch_reads")
def without_the_hidden_one(codes, exponent_bits, mantissa_bits, infinities=True):
    """You read the mantissa as m / 2**M for all numbers. An ordinary number (e > 0) has a leading 1 that is not stored: 1 + m / 2**M."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities, hidden_one=False)


@mistake("decode_float", caught_by="test_numbers_go_on_evenly_down_to_zero")
def no_subnormal_numbers(codes, exponent_bits, mantissa_bits, infinities=True):
    """You give the codes with e = 0 a hidden 1 as well, so that there is no zero, and a gap around it. With e = 0 the value is
    2**(1 - b) * m / 2**M."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities, subnormal=None)


@mistake("decode_float", caught_by="test_numbers_go_on_evenly_down_to_zero")
def subnormals_with_the_exponent_minus_b(codes, exponent_bits, mantissa_bits, infinities=True):
    """Your subnormal numbers are half of what they should be. Their exponent is 1 - b, that of e = 1, and not 0 - b: only so do they
    go on at the distance of their neighbours."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities, subnormal=1)


@mistake("decode_float", caught_by="test_every_code_of_sixteen_bits_means_what_torch_reads")
def sign_forgotten(codes, exponent_bits, mantissa_bits, infinities=True):
    """All your numbers are positive. The highest bit is the sign: codes of 2**(E + M) and more are negative."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities, sign=False)


@mistake("decode_float", caught_by="test_every_code_of_sixteen_bits_means_what_torch_reads")
def no_infinity(codes, exponent_bits, mantissa_bits, infinities=True):
    """You read the largest exponent as an ordinary one. With infinities it is set apart: m = 0 is infinity, any other m is NaN."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities, special=False)


@mistake("decode_float", caught_by="test_every_code_of_sixteen_bits_means_what_torch_reads")
def decoded_in_float32(codes, exponent_bits, mantissa_bits, infinities=True):
    """Your values are right, but their dtype is float32. Return float64, in which the numbers of every format here have room: .double(), or
    dtype=torch.float64."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities).float()


@mistake("decode_float", caught_by="test_numbers_go_on_evenly_down_to_zero")
def one_zero_only(codes, exponent_bits, mantissa_bits, infinities=True):
    """Your zero has lost its sign: the code with only the sign bit set is -0.0. It is there so that a small negative number that becomes zero
    stays negative. Multiply by the sign, or negate, at the end; adding 0 loses it."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities) + 0.0


@mistake("decode_float", caught_by="test_e4m3_spends_one_code_on_nan_and_none_on_infinity")
def infinities_everywhere(codes, exponent_bits, mantissa_bits, infinities=True):
    """You do not look at `infinities`. E4M3 has none: its codes with the largest e are ordinary numbers up to 448, and only m = all ones is
    NaN."""
    return _decode(codes, exponent_bits, mantissa_bits, infinities, top_is_special=True)


# ---------------------------------------------------------------- round_to_format

def _round(x, exponent_bits, mantissa_bits, infinities=True, *, to=torch.round, least=0, flush=False, top="format", log=False, early=False, shift=0, nan=True, end="format"):
    b = 2 ** (exponent_bits - 1) - 1
    wide = x.double()
    if log:     # the power of two above instead of the one below
        exponent = torch.ceil(torch.log2(wide.abs().clamp(min=1e-300)))
    else:
        exponent = torch.frexp(wide)[1].double() - 1
    if least is not None:
        exponent = exponent.clamp(min=1 - b + least)
    q = torch.exp2(exponent - mantissa_bits + shift)
    y = to(wide / q) * q
    largest = 2.0**b * (2 - 2.0**-mantissa_bits) if infinities or end == "ieee" else 2.0 ** (b + 1) * (2 - 2.0 ** (1 - mantissa_bits))
    if end == "nan" and not infinities:
        largest = 2.0 ** (b + 1) * (2 - 2.0**-mantissa_bits)
    if top == "largest" or (top == "format" and not infinities):
        y = y.clamp(-largest, largest)
    elif top == "infinite":
        y = torch.where(y.abs() > largest, torch.where(y < 0, -math.inf, math.inf), y)
    elif top == "format":
        y = torch.where((wide if early else y).abs() > largest, torch.where(y < 0, -math.inf, math.inf), y)
    if flush:
        y = torch.where(wide.abs() < 2.0 ** (1 - b), 0.0, y)
    return (y if nan else y.nan_to_num(0.0, math.inf, -math.inf)).float()


@mistake("round_to_format", caught_by="test_numbers_go_where_torch_puts_them")
def cut_off(x, exponent_bits, mantissa_bits, infinities=True):
    """You cut the digits off, so every number moves towards zero, by up to a whole distance. Round to the nearest: torch.round."""
    return _round(x, exponent_bits, mantissa_bits, infinities, to=torch.trunc)


@mistake("round_to_format", caught_by="test_halves_go_to_the_even_neighbour")
def halves_away_from_zero(x, exponent_bits, mantissa_bits, infinities=True):
    """You round halves away from zero. The hardware takes the even neighbour, as torch.round does: then halves go up as often as down,
    and a long sum does not drift."""
    return _round(x, exponent_bits, mantissa_bits, infinities, to=lambda y: torch.sign(y) * torch.floor(y.abs() + 0.5))


@mistake("round_to_format", caught_by="test_numbers_go_where_torch_puts_them")
def exponent_of_frexp(x, exponent_bits, mantissa_bits, infinities=True):
    """Your distance is twice too large, a bit of precision is lost: torch.frexp writes |x| as 0.5...1 times 2**exponent, so that the power
    of two below |x| is exponent - 1."""
    return _round(x, exponent_bits, mantissa_bits, infinities, shift=1)


@mistake("round_to_format", caught_by="test_below_the_smallest_normal_number_the_distance_stays")
def ever_finer(x, exponent_bits, mantissa_bits, infinities=True):
    """Your format has no smallest number: q shrinks with x without end. Take e no smaller than 1 - b; below it all numbers have one
    distance, and the smallest become zero."""
    return _round(x, exponent_bits, mantissa_bits, infinities, least=None)


@mistake("round_to_format", caught_by="test_below_the_smallest_normal_number_the_distance_stays")
def subnormals_flushed(x, exponent_bits, mantissa_bits, infinities=True):
    """You set everything below the smallest normal number to zero. Some hardware does so, the formats do not: the subnormal numbers go on
    evenly down to zero."""
    return _round(x, exponent_bits, mantissa_bits, infinities, flush=True)


@mistake("round_to_format", caught_by="test_what_is_too_large_becomes_infinite_or_the_largest")
def no_largest_number(x, exponent_bits, mantissa_bits, infinities=True):
    """Nothing is too large for you: 70000 stays near 70000 in fp16. Beyond the largest number comes infinity, or the largest number
    where there are no infinities."""
    return _round(x, exponent_bits, mantissa_bits, infinities, top="none")


@mistake("round_to_format", caught_by="test_what_is_too_large_becomes_infinite_or_the_largest")
def always_saturated(x, exponent_bits, mantissa_bits, infinities=True):
    """You replace what is too large by the largest number in every format. Where there are infinities it becomes infinite; this is how an
    overflow is noticed at all."""
    return _round(x, exponent_bits, mantissa_bits, infinities, top="largest")


@mistake("round_to_format", caught_by="test_what_is_too_large_becomes_infinite_or_the_largest")
def too_large_before_rounding(x, exponent_bits, mantissa_bits, infinities=True):
    """You compare x itself with the largest number. 65519 in fp16 is larger than 65504 and still rounds to it: compare after
    rounding."""
    return _round(x, exponent_bits, mantissa_bits, infinities, early=True)


@mistake("round_to_format", caught_by="test_what_is_too_large_becomes_infinite_or_the_largest")
def e4m3_ends_at_240(x, exponent_bits, mantissa_bits, infinities=True):
    """Without infinities your format ends a power of two too early (240 in E4M3). No code is spent on infinity there: those with the largest e
    are ordinary numbers, but for the one that is NaN, so that E4M3 ends at 448."""
    return _round(x, exponent_bits, mantissa_bits, infinities, end="ieee")


@mistake("round_to_format", caught_by="test_what_is_too_large_becomes_infinite_or_the_largest")
def e4m3_ends_at_480(x, exponent_bits, mantissa_bits, infinities=True):
    """Without infinities your largest number is the one whose bits are all ones (480 in E4M3). That code is NaN: the largest number is the one
    before it, 448."""
    return _round(x, exponent_bits, mantissa_bits, infinities, end="nan")


@mistake("round_to_format", caught_by="test_what_is_too_large_becomes_infinite_or_the_largest")
def infinity_kept(x, exponent_bits, mantissa_bits, infinities=True):
    """You leave an infinite x as it is, in a format that has no infinity. It is too large as any other: take the largest number."""
    return torch.where(x.isinf(), x, _round(x, exponent_bits, mantissa_bits, infinities))


@mistake("round_to_format", caught_by="test_what_is_too_large_becomes_infinite_or_the_largest")
def infinite_without_infinities(x, exponent_bits, mantissa_bits, infinities=True):
    """You return infinity in a format that has none. Where `infinities` is False, take the largest number instead."""
    return _round(x, exponent_bits, mantissa_bits, infinities, top="infinite")


# ---------------------------------------------------------------- swamped_sum

def _sums(x, method, naive=None, pairwise=None, kahan=None):
    """The right sums, but for those that are given."""
    def halves(x):
        return x[0] if len(x) == 1 else halves(x[:len(x) // 2]) + halves(x[len(x) // 2:])

    def one_after_the_other(x):
        total = x[0]
        for row in x[1:]:
            total = total + row
        return total

    def compensated(x):
        total, missing = x[0], torch.zeros_like(x[0])
        for row in x[1:]:
            row = row + missing
            old, total = total, total + row
            missing = row - (total - old)
        return total
    return {"naive": naive or one_after_the_other, "pairwise": pairwise or halves, "kahan": kahan or compensated}[method](x)


@mistake("swamped_sum", caught_by="test_naive_adds_from_left_to_right_and_rounds_each_time")
def torch_sum(x, method="naive"):
    """Your naive sum was rounded only once: torch.sum, and cumsum as well, add up in float32, which is a cure and not the disease. Write the
    loop, one addition for each term."""
    return _sums(x, method, naive=lambda x: x.float().sum(0).to(x.dtype))


@mistake("swamped_sum", caught_by="test_kahan_hands_on_what_was_lost")
def compensation_added(x, method="naive"):
    """In Kahan's sum you add c to the next term. c = (t - s) - y is what the sum got *too much*: subtract it, y = x - c."""
    def kahan(x):
        s, c = x[0], torch.zeros_like(x[0])
        for term in x[1:]:
            y = term + c
            t = s + y
            s, c = t, (t - s) - y
        return s
    return _sums(x, method, kahan=kahan)


@mistake("swamped_sum", caught_by="test_kahan_hands_on_what_was_lost")
def compensation_never_used(x, method="naive"):
    """Your Kahan sum is no better than the naive one: c is computed, if at all, and never handed on. Subtract it from the next term."""
    return _sums(x, "naive" if method == "kahan" else method)


@mistake("swamped_sum", caught_by="test_kahan_hands_on_what_was_lost")
def compensation_of_the_term(x, method="naive"):
    """In Kahan's sum you compute c from the term x instead of from y, so that what was handed on before is forgotten: c = (t - s) - y."""
    def kahan(x):
        s, c = x[0], torch.zeros_like(x[0])
        for term in x[1:]:
            t = s + (term - c)
            s, c = t, (t - s) - term
        return s
    return _sums(x, method, kahan=kahan)


@mistake("swamped_sum", caught_by="test_kahan_hands_on_what_was_lost")
def kahan_in_float32(x, method="naive"):
    """Your Kahan sum runs in float32, where there is nothing to compensate. Each of its four results must be rounded to x's dtype: do not
    convert."""
    return _sums(x, method, kahan=lambda x: x.float().sum(0).to(x.dtype))


@mistake("swamped_sum", caught_by="test_pairwise_sums_are_rounded_on_the_way")
def pairwise_in_float32(x, method="naive"):
    """Your pairwise sum is rounded only at its end. Let each addition be rounded to x's dtype: do not convert."""
    return _sums(x, method, pairwise=lambda x: x.float().sum(0).to(x.dtype))


@mistake("swamped_sum", caught_by="test_a_pairwise_sum_is_wrong_by_a_rounding_for_each_level")
def naive_halves(x, method="naive"):
    """You split once and add up each half naively. The halves are swamped just as well: split them again, down to single terms."""
    half = len(x) // 2
    naive = lambda x: _sums(x, "naive")
    return _sums(x, method, pairwise=lambda x: naive(x[:half]) + naive(x[half:]) if half else x[0])


@mistake("swamped_sum", caught_by="test_a_pairwise_sum_is_wrong_by_a_rounding_for_each_level")
def last_term_lost(x, method="naive"):
    """Your pairwise sum loses a term when the number of terms is odd. The two parts need not be equally long: x[:half] and x[half:]."""
    def halves(x):
        half = len(x) // 2
        return x[0] if half == 0 else halves(x[:half]) + halves(x[half:2 * half])
    return _sums(x, method, pairwise=halves)


# ---------------------------------------------------------------- bf16_update

def _share(lost, of):
    return (lost.sum() / max(int(of.sum()), 1)).item()


@mistake("bf16_update", caught_by="test_the_new_weight_is_rounded_once")
def update_rounded_first(weight, update):
    """You round the update to bf16 before you subtract it, so that the result is rounded twice. Compute weight - update in float32, and
    round that."""
    new = weight - update.to(BF16)
    return new, _share((new == weight) & (update != 0), update != 0)


@mistake("bf16_update", caught_by="test_the_new_weight_is_rounded_once")
def update_added(weight, update):
    """You add the update. Here it is what has to be subtracted: weight - update."""
    new = (weight.float() + update).to(BF16)
    return new, _share((new == weight) & (update != 0), update != 0)


@mistake("bf16_update", caught_by="test_the_new_weight_is_rounded_once")
def weight_left_in_float32(weight, update):
    """Your new weight is float32. It has to be stored in 16 bits: round it to torch.bfloat16, and then look which updates were lost."""
    new = weight.float() - update
    return new, _share((new.to(BF16) == weight) & (update != 0), update != 0)


@mistake("bf16_update", caught_by="test_an_update_that_leaves_its_weight_is_lost")
def share_of_all(weight, update):
    """You divide by the number of all updates, zeros included. A zero has nothing to lose: divide by the number of those that are not 0."""
    new = (weight.float() - update).to(BF16)
    return new, ((new == weight) & (update != 0)).float().mean().item()


@mistake("bf16_update", caught_by="test_an_update_that_leaves_its_weight_is_lost")
def zeros_called_lost(weight, update):
    """You count a weight that did not change as a lost update even where the update was 0. Count only nonzero ones."""
    new = (weight.float() - update).to(BF16)
    return new, (new == weight).float().mean().item()


@mistake("bf16_update", caught_by="test_an_update_that_leaves_its_weight_is_lost")
def share_that_arrived(weight, update):
    """You return the share of the updates that changed their weight. Wanted is the share of the others, those that are lost."""
    new = (weight.float() - update).to(BF16)
    return new, _share((new != weight) & (update != 0), update != 0)


@mistake("bf16_update", caught_by="test_where_nothing_moves_nothing_is_lost")
def nothing_divided_by_nothing(weight, update):
    """If all updates are 0 you divide 0 by 0 and get NaN. Nothing is lost then: return 0.0."""
    new = (weight.float() - update).to(BF16)
    moves = update != 0
    return new, (((new == weight) & moves).sum() / moves.sum()).item()


# ---------------------------------------------------------------- stochastic_round

def _between(x):
    """The neighbour towards zero, the distance to the other, and the place between them."""
    distance = torch.exp2(torch.frexp(x)[1].double() - 8)
    inner = torch.trunc(x.double() / distance) * distance
    return inner, distance * torch.sign(x), (x.double() - inner).abs() / distance


@mistake("stochastic_round", caught_by="test_on_average_nothing_is_lost")
def to_the_nearest(x, u):
    """You round to the nearest, u plays no part. Then an update of less than half a distance is lost every time; on average too."""
    return x.to(BF16)


@mistake("stochastic_round", caught_by="test_on_average_nothing_is_lost")
def a_fair_coin(x, u):
    """You take either neighbour with probability one half. Then a number close to one of them is moved far, and on average all become the
    middle. Compare u with the place f."""
    inner, step, f = _between(x)
    return torch.where((u < 0.5) & (f > 0), inner + step, inner).to(BF16)


@mistake("stochastic_round", caught_by="test_on_average_nothing_is_lost")
def probabilities_exchanged(x, u):
    """You take the outer neighbour where u >= f, which is more seldom the nearer x is to it. It is u < f."""
    inner, step, f = _between(x)
    return torch.where((u >= f) & (f > 0), inner + step, inner).to(BF16)


@mistake("stochastic_round", caught_by="test_a_number_of_bf16_stays_as_it_is")
def exact_numbers_moved(x, u):
    """You compare with u <= f, so that with u = 0 even a number that bf16 has is moved to the next one. With u < f it stays."""
    inner, step, f = _between(x)
    return torch.where(u <= f, inner + step, inner).to(BF16)


@mistake("stochastic_round", caught_by="test_the_outer_neighbour_comes_exactly_where_u_is_below_the_fraction")
def upwards_instead_of_outwards(x, u):
    """For negative numbers you count f from the lower neighbour, which is the outer one. Here f is the place seen from zero, for both signs;
    the bits do it by themselves."""
    inner, step, f = _between(x)
    out = torch.where(x < 0, (u >= 1 - f) & (f > 0), u < f)
    return torch.where(out, inner + step, inner).to(BF16)


@mistake("stochastic_round", caught_by="test_the_result_is_one_of_the_two_neighbours")
def noise_and_then_nearest(x, u):
    """You add noise and then round to the nearest, which rounds twice: add at most one distance and then *cut off*. Set the lower 16 bits to
    zero, and add 2**16 where u < f."""
    inner, step, f = _between(x)
    return (x + (u * step).float()).to(BF16)


@mistake("stochastic_round", caught_by="test_on_average_nothing_is_lost")
def always_towards_zero(x, u):
    """You always take the neighbour towards zero: the lower 16 bits are cut off, u plays no part, and every number shrinks."""
    return _between(x)[0].to(BF16)


# ---------------------------------------------------------------- master_weight_step

@mistake("master_weight_step", caught_by="test_updates_too_small_for_bf16_add_up")
def no_master(weight, update, state):
    """You update the bf16 weight itself. An update smaller than half of the distance to the next number is lost every time. Keep the
    float32 result, or what is needed to restore it, in the state."""
    return (weight.float() - update).to(BF16), {}


@mistake("master_weight_step", caught_by="test_updates_too_small_for_bf16_add_up")
def master_from_the_weight(weight, update, state):
    """You keep a master in the state, but at each step you start from the weight instead of from it. Take the master from the state
    if there is one."""
    master = weight.float() - update
    return master.to(BF16), {"master": master}


@mistake("master_weight_step", caught_by="test_updates_too_small_for_bf16_add_up")
def master_in_sixteen_bits(weight, update, state):
    """Your master is bf16 too, so that it loses just what the weight loses. Keep it in float32."""
    master = (state.get("master", weight).float() - update).to(BF16)
    return master, {"master": master}


@mistake("master_weight_step", caught_by="test_the_weight_follows_a_master_in_float32")
def weight_one_step_late(weight, update, state):
    """You return the old master rounded, and update it afterwards: the weight is always one step late. Update first."""
    master = state.get("master", weight.float())
    return master.to(BF16), {"master": master - update}


@mistake("master_weight_step", caught_by="test_the_weight_follows_a_master_in_float32")
def master_update_added(weight, update, state):
    """You add the update to the master. It has to be subtracted: master - update."""
    master = state.get("master", weight.float()) + update
    return master.to(BF16), {"master": master}


@mistake("master_weight_step", caught_by="test_the_weight_follows_a_master_in_float32")
def lower_half_with_the_wrong_sign(weight, update, state):
    """Your two halves do not fit together: the lower 16 bits have a sign when they are stored as int16, and joined to the upper half a negative
    one changes that as well. Mask it with 0xFFFF when you join them."""
    low = state.get("low", torch.zeros_like(weight, dtype=torch.int16))
    bits = (weight.view(torch.int16).to(torch.int32) << 16) | low.to(torch.int32)
    bits = (bits.view(torch.float32) - update).view(torch.int32)
    return ((bits & -65536).view(torch.float32)).to(BF16), {"low": ((bits & 0xFFFF) - ((bits & 0x8000) << 1)).to(torch.int16)}


@mistake("master_weight_step", caught_by="test_updates_too_small_for_bf16_add_up")
def rounded_and_cut(weight, update, state):
    """You store the lower 16 bits of the master beside a weight that was *rounded*. Where it was rounded up, the two no longer make the
    master. Cut the weight off, so that it is exactly the upper half."""
    low = state.get("low", torch.zeros_like(weight, dtype=torch.int16))
    bits = (weight.view(torch.int16).to(torch.int32) << 16) | (low.to(torch.int32) & 0xFFFF)
    master = bits.view(torch.float32) - update
    bits = master.view(torch.int32)
    return master.to(BF16), {"low": ((bits & 0xFFFF) - ((bits & 0x8000) << 1)).to(torch.int16)}


@mistake("master_weight_step", caught_by="test_not_even_the_smallest_steps_of_float32_are_lost")
def remainder_in_fp16(weight, update, state):
    """Your remainder has 11 bits; 16 are needed: the weight has 8 of float32's 24. And fp16 ends at 6e-8, so that the remainder of a small weight
    is zero. Keep the lower 16 bits of float32 as they are, as an integer, or the remainder in float32."""
    master = weight.float() + state.get("rest", torch.zeros_like(weight)).float() - update
    new = master.to(BF16)
    return new, {"rest": (master - new.float()).to(FP16)}


@mistake("master_weight_step", caught_by="test_not_even_the_smallest_steps_of_float32_are_lost")
def remainder_in_bf16(weight, update, state):
    """Your remainder has 8 bits; 16 are needed: the weight has 8 of float32's 24. Small updates are lost again once the remainder is large.
    Keep the lower 16 bits of float32 as they are, as an integer, or the remainder in float32."""
    master = weight.float() + state.get("rest", torch.zeros_like(weight)).float() - update
    new = master.to(BF16)
    return new, {"rest": (master - new.float()).to(BF16)}


# ---------------------------------------------------------------- dynamic_loss_scale

def _finite(grads):
    return all(bool(torch.isfinite(g).all()) for g in grads)


@mistake("dynamic_loss_scale", caught_by="test_gradients_are_divided_by_the_scale_in_float32")
def divided_in_fp16(grads, scale, good_steps, interval=2000, factor=2.0):
    """You divide by the scale in fp16 and convert afterwards: what the scale had saved underflows there after all. Convert to float32
    first."""
    if not _finite(grads):
        return None, scale / factor, 0
    grow = good_steps + 1 >= interval
    return [(g / scale).float() for g in grads], scale * (factor if grow else 1), 0 if grow else good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_gradients_are_divided_by_the_scale_in_float32")
def divided_by_the_new_scale(grads, scale, good_steps, interval=2000, factor=2.0):
    """You divide by the new scale. These gradients were made with the old one: whenever the scale grows, that step comes out too
    short."""
    if not _finite(grads):
        return None, scale / factor, 0
    grow = good_steps + 1 >= interval
    new = scale * (factor if grow else 1)
    return [g.float() / new for g in grads], new, 0 if grow else good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_an_overflow_skips_the_step_and_lowers_the_scale")
def count_kept_after_an_overflow(grads, scale, good_steps, interval=2000, factor=2.0):
    """After an overflow your count of good steps goes on. It counts good steps *in a row*: begin again at 0."""
    if not _finite(grads):
        return None, scale / factor, good_steps
    grow = good_steps + 1 >= interval
    return [g.float() / scale for g in grads], scale * (factor if grow else 1), 0 if grow else good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_an_overflow_skips_the_step_and_lowers_the_scale")
def nan_not_noticed(grads, scale, good_steps, interval=2000, factor=2.0):
    """You look for infinities only. An overflow further up often arrives as NaN (infinity minus infinity): skip the step if anything is
    not finite."""
    if any(bool(g.isinf().any()) for g in grads):
        return None, scale / factor, 0
    grow = good_steps + 1 >= interval
    return [g.float() / scale for g in grads], scale * (factor if grow else 1), 0 if grow else good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_gradients_are_divided_by_the_scale_in_float32")
def sum_of_finite_numbers(grads, scale, good_steps, interval=2000, factor=2.0):
    """You look whether the sum of the gradients is finite. In fp16 finite numbers can have an infinite sum, and a good step is skipped: ask every
    number, g.isfinite().all()."""
    if not all(bool(torch.isfinite(g.sum())) for g in grads):
        return None, scale / factor, 0
    grow = good_steps + 1 >= interval
    return [g.float() / scale for g in grads], scale * (factor if grow else 1), 0 if grow else good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_an_overflow_skips_the_step_and_lowers_the_scale")
def infinite_numbers_replaced(grads, scale, good_steps, interval=2000, factor=2.0):
    """You repair gradients that are not finite and make the step. What overflowed is unknown, and the step would go anywhere: return None
    for the gradients, and lower the scale."""
    ok = _finite(grads)
    true = [g.float().nan_to_num(0.0, 0.0, 0.0) / scale for g in grads]
    if not ok:
        return true, scale / factor, 0
    grow = good_steps + 1 >= interval
    return true, scale * (factor if grow else 1), 0 if grow else good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_the_scale_grows_after_enough_good_steps_in_a_row")
def grows_one_step_late(grads, scale, good_steps, interval=2000, factor=2.0):
    """Your scale grows one step too late: you compare the count before this step is counted. With it, it is good_steps + 1."""
    if not _finite(grads):
        return None, scale / factor, 0
    grow = good_steps >= interval
    return [g.float() / scale for g in grads], scale * (factor if grow else 1), 0 if grow else good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_the_scale_grows_after_enough_good_steps_in_a_row")
def count_kept_after_growing(grads, scale, good_steps, interval=2000, factor=2.0):
    """When the scale has grown your count goes on, so that it grows again at every following step, until it overflows. Begin again
    at 0."""
    if not _finite(grads):
        return None, scale / factor, 0
    grow = good_steps + 1 >= interval
    return [g.float() / scale for g in grads], scale * (factor if grow else 1), good_steps + 1


@mistake("dynamic_loss_scale", caught_by="test_the_scale_grows_after_enough_good_steps_in_a_row")
def never_grows(grads, scale, good_steps, interval=2000, factor=2.0):
    """Your scale only falls. After `interval` good steps in a row try a larger one, or small gradients are lost for ever after the first
    overflow."""
    if not _finite(grads):
        return None, scale / factor, 0
    return [g.float() / scale for g in grads], scale, good_steps + 1


# ---------------------------------------------------------------- stable_softmax_attention

def _attention(q, k, v, *, scale=None, causal=True, maximum=True, scores_in=None, weights_in=None, out=None, strict=0, late_mask=False, early_maximum=False,
               upside_down=False):
    dtype, d = q.dtype, q.shape[-1]
    scores = torch.einsum("...id,...jd->...ij", q.float(), k.float()) * (d**-0.5 if scale is None else scale(q))
    if scores_in:
        scores = scores.to(scores_in).float()
    t = q.shape[-2]
    past = torch.tril(torch.ones(t, t, dtype=torch.bool), diagonal=-strict)
    if upside_down:
        past = past.T
    if early_maximum:
        scores, maximum = scores - scores.max(-1, keepdim=True).values, False
    if causal and not late_mask:
        scores = torch.where(past, scores, -math.inf)
    e = torch.exp(scores - scores.max(-1, keepdim=True).values if maximum else scores)
    weights = e / e.sum(-1, keepdim=True)
    if late_mask:
        weights = torch.where(past, weights, 0.0)
    if weights_in:
        weights = weights.to(weights_in).float()
    return torch.einsum("...ij,...jd->...id", weights, v.float()).to(out or dtype)


@mistake("stable_softmax_attention", caught_by="test_attention_is_exact_up_to_one_rounding")
def scores_rounded(q, k, v):
    """Your scores are rounded to 16 bits before the softmax, perhaps by a product of 16-bit tensors. A score of 50 is then wrong by up to 0.125,
    a weight by 13%. Convert q and k to float32 before the product."""
    return _attention(q, k, v, scores_in=q.dtype)


@mistake("stable_softmax_attention", caught_by="test_weights_are_not_rounded_between_softmax_and_values")
def weights_rounded(q, k, v):
    """Your softmax is in float32, but its weights are rounded to 16 bits before they meet the values. They no longer add up to 1. Stay in
    float32 to the end."""
    return _attention(q, k, v, weights_in=q.dtype)


@mistake("stable_softmax_attention", caught_by="test_scores_of_a_thousand_are_no_problem")
def without_the_maximum(q, k, v):
    """You do not subtract the row's maximum. The exponential of a score above 88 is infinite in float32, and infinity over infinity is
    NaN."""
    return _attention(q, k, v, maximum=False)


@mistake("stable_softmax_attention", caught_by="test_attention_is_exact_up_to_one_rounding")
def without_the_root_of_d(q, k, v):
    """You do not divide the scores by sqrt(d). They grow with the width of a head, and the softmax becomes a hard choice."""
    return _attention(q, k, v, scale=lambda q: 1.0)


@mistake("stable_softmax_attention", caught_by="test_attention_is_exact_up_to_one_rounding")
def divided_by_d(q, k, v):
    """You divide the scores by d. It is the square root of d, the standard deviation of a product of d random pairs."""
    return _attention(q, k, v, scale=lambda q: 1 / q.shape[-1])


@mistake("stable_softmax_attention", caught_by="test_scores_of_a_thousand_are_no_problem")
def maximum_before_the_mask(q, k, v):
    """You subtract the largest of all scores of a row, masked ones too. If that one is masked, the others may lie so far below it that every
    exponential is 0, and 0 / 0 is NaN. Take the maximum over the places that are seen: mask first."""
    return _attention(q, k, v, early_maximum=True)


@mistake("stable_softmax_attention", caught_by="test_no_place_sees_a_later_one")
def mask_upside_down(q, k, v):
    """Your mask is the wrong way round: each place sees itself and the later ones. Set the scores *above* the diagonal to -inf, triu(1)."""
    return _attention(q, k, v, upside_down=True)


@mistake("stable_softmax_attention", caught_by="test_no_place_sees_a_later_one")
def the_future_is_seen(q, k, v):
    """Every place sees all others, later ones too: a network would only have to copy the next byte. Set the scores above the diagonal to
    -inf."""
    return _attention(q, k, v, causal=False)


@mistake("stable_softmax_attention", caught_by="test_attention_is_exact_up_to_one_rounding")
def masked_after_the_softmax(q, k, v):
    """You set the weights of later places to zero after the softmax, so that a row no longer adds up to 1. Mask the scores with -inf
    before it."""
    return _attention(q, k, v, late_mask=True)


@mistake("stable_softmax_attention", caught_by="test_attention_is_exact_up_to_one_rounding")
def returned_in_float32(q, k, v):
    """Your result is float32. What follows expects the 16 bits of q: round once at the end, .to(q.dtype)."""
    return _attention(q, k, v, out=torch.float32)


# ---------------------------------------------------------------- thermometer

def _read(activations, grads, largest=lambda x: x.abs().max().item(), norm=None):
    norm = norm or (lambda grads: math.sqrt(sum(g.double().square().sum().item() for g in grads)))
    return {**{name: largest(x) for name, x in activations.items()}, "gradient norm": norm(grads)}


@mistake("thermometer", caught_by="test_each_activation_shows_its_largest_size")
def sign_left_in(activations, grads):
    """You take the largest value, so that a large negative one is not seen. Take the absolute value first."""
    return _read(activations, grads, largest=lambda x: x.max().item())


@mistake("thermometer", caught_by="test_each_activation_shows_its_largest_size")
def mean_size(activations, grads):
    """You average the sizes. One number among thousands that overflows is enough, and the mean does not show it: take the largest."""
    return _read(activations, grads, largest=lambda x: x.float().abs().mean().item())


@mistake("thermometer", caught_by="test_a_nan_is_not_hidden")
def nan_passed_over(activations, grads):
    """Your reading passes over NaN, as Python's max can. A thermometer that shows a good value when all is lost is worse than none: use
    torch's maximum, which keeps NaN."""
    return _read(activations, grads, largest=lambda x: x.abs().nan_to_num(nan=0.0, posinf=math.inf).max().item())


@mistake("thermometer", caught_by="test_the_gradient_norm_is_that_of_one_long_vector")
def norms_added(activations, grads):
    """You add up the norms of the tensors. The norm of all gradients as one vector is the root of the sum of their *squares*."""
    return _read(activations, grads, norm=lambda grads: sum(g.double().norm().item() for g in grads))


@mistake("thermometer", caught_by="test_the_gradient_norm_is_that_of_one_long_vector")
def without_the_root(activations, grads):
    """You return the sum of the squares. Its root is missing."""
    return _read(activations, grads, norm=lambda grads: sum(g.double().square().sum().item() for g in grads))


@mistake("thermometer", caught_by="test_the_gradient_norm_of_sixteen_bits_is_computed_in_float32")
def squares_in_sixteen_bits(activations, grads):
    """You square the gradients in their own dtype. In fp16 the square of 300 is infinite, in bf16 each square is rounded. Convert to float32
    first."""
    return _read(activations, grads, norm=lambda grads: math.sqrt(sum((g * g).double().sum().item() for g in grads)))


@mistake("thermometer", caught_by="test_the_gradient_norm_is_that_of_one_long_vector")
def largest_norm_only(activations, grads):
    """You return the norm of the largest gradient tensor alone. Add up the squares of all of them, then take the root."""
    return _read(activations, grads, norm=lambda grads: max((g.double().norm().item() for g in grads), default=0.0))


@mistake("thermometer", caught_by="test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16")
def norms_in_sixteen_bits(activations, grads):
    """Your gradient norm is rounded to the 16 bits of the gradients, which is wrong by up to 0.4% in bf16. Convert the gradients to float32
    before you take squares or norms."""
    return _read(activations, grads, norm=lambda grads: math.sqrt(sum(g.norm().item() ** 2 for g in grads)))


@mistake("thermometer", caught_by="test_each_activation_shows_its_largest_size")
def tensors_instead_of_numbers(activations, grads):
    """Your readings are tensors. A thermometer that stays on for a long run would keep each of them, and the graph behind it: return numbers,
    .item()."""
    return {name: torch.tensor(x) for name, x in _read(activations, grads).items()}


@mistake("thermometer", caught_by="test_the_gradient_norm_is_that_of_one_long_vector")
def no_gradients_no_norm(activations, grads):
    """Without gradients your norm fails, or is NaN. The norm of nothing is 0.0; a step that was skipped has none."""
    return _read(activations, grads, norm=lambda grads: torch.cat([g.double().flatten() for g in grads]).norm().item() if grads else math.nan)


# ---------------------------------------------------------------- early_warning

def _first(condition):
    places = condition.nonzero()
    return int(places[0]) if len(places) else None


@mistake("early_warning", caught_by="test_most_diverging_runs_are_warned_of_in_time")
def never_an_alarm(heat):
    """You never give an alarm. That makes no false ones, and saves no run either."""
    return None


@mistake("early_warning", caught_by="test_healthy_runs_are_left_alone")
def alarm_at_once(heat):
    """You give an alarm at the first step of every run. That is early enough, but every healthy run would be rolled back for nothing."""
    return 0


@mistake("early_warning", caught_by="test_most_diverging_runs_are_warned_of_in_time")
def waiting_for_infinity(heat):
    """You wait until a reading is infinite or NaN. In float32 and bf16 the loss has exploded long before that."""
    return _first(~torch.stack(list(heat.values())).isfinite().all(0))


@mistake("early_warning", caught_by="test_most_diverging_runs_are_warned_of_in_time")
def gradient_norm_only(heat):
    """You wait until the gradient norm is ten times what it was at first. It is the thermometer that everybody has, and here it rises late and
    little, or in healthy runs as well. Look at the scores and at the residual."""
    return _first(heat["gradient norm"] > 10 * heat["gradient norm"][:10].mean())


@mistake("early_warning", caught_by="test_healthy_runs_are_left_alone")
def any_growth(heat):
    """You give an alarm when the scores are three times what they were at first. Attention scores grow in every healthy run, because the
    network learns to attend. How far do they go there?"""
    return _first(heat["scores"] > 3 * heat["scores"][:10].mean())


@mistake("early_warning", caught_by="test_an_alarm_knows_nothing_of_the_future")
def looking_ahead(heat):
    """You use the whole run to decide about a step: your alarm looks where it ends. While training runs nobody knows that: decide about a step
    from the readings up to it."""
    scores = heat["scores"]
    return _first(scores > 12) if float(scores[-1]) > 40 else None


# ---------------------------------------------------------------- mixed_linear

def _product(x, weight):
    return torch.mm(x.to(BF16), weight.to(BF16).t()).float()


@mistake("mixed_linear", caught_by="test_the_factors_are_really_rounded")
def all_in_float32(x, weight, bias=None):
    """You multiply in float32. That is more exact and takes several times as long: round x and weight to torch.bfloat16 before the
    product."""
    return F.linear(x, weight, bias)


@mistake("mixed_linear", caught_by="test_the_factors_are_really_rounded")
def only_the_result_rounded(x, weight, bias=None):
    """You multiply in float32 and round the result. That has the error of 16 bits and the cost of 32. Round what goes into the
    product."""
    out = torch.mm(x, weight.t()).to(BF16).float()
    return out if bias is None else out + bias


@mistake("mixed_linear", caught_by="test_the_bias_is_not_rounded")
def bias_in_sixteen_bits(x, weight, bias=None):
    """You add the bias in bf16, which rounds it. It costs next to nothing to add it in float32, after the product."""
    return _product(x, weight) if bias is None else (_product(x, weight).to(BF16) + bias.to(BF16)).float()


@mistake("mixed_linear", caught_by="test_the_product_is_that_of_the_rounded_inputs")
def left_in_sixteen_bits(x, weight, bias=None):
    """Your result is bf16. What follows (a residual sum, a loss) is in float32: convert the product back."""
    out = _product(x, weight).to(BF16)
    return out if bias is None else out + bias.to(BF16)


@mistake("mixed_linear", caught_by="test_the_gradients_come_back_in_float32")
def graph_cut(x, weight, bias=None):
    """Your product is right, but no gradient comes back to x and weight: .detach(), .data or torch.tensor cut the graph. Convert with
    .to(torch.bfloat16)."""
    out = _product(x.detach(), weight.detach())
    return out if bias is None else out + bias


@mistake("mixed_linear", caught_by="test_the_bias_is_not_rounded")
def bias_forgotten(x, weight, bias=None):
    """You never add the bias."""
    return _product(x, weight)


# ---------------------------------------------------------------- optional: rollback

@mistake("rollback", caught_by="test_the_newest_checkpoint_before_the_trouble_is_taken")
def newest_of_all(checkpoints, alarm, margin=20, skip=10):
    """You take the newest checkpoint of all. It was saved in the middle of the trouble, or even after the alarm."""
    step = max(checkpoints)
    return checkpoints[step], step, alarm + skip


@mistake("rollback", caught_by="test_the_newest_checkpoint_before_the_trouble_is_taken")
def without_margin(checkpoints, alarm, margin=20, skip=10):
    """You take the newest checkpoint before the alarm and forget the margin. What led to the alarm began some steps earlier."""
    step = max([s for s in checkpoints if s <= alarm], default=min(checkpoints))
    return checkpoints[step], step, alarm + skip


@mistake("rollback", caught_by="test_the_newest_checkpoint_before_the_trouble_is_taken")
def oldest_of_all(checkpoints, alarm, margin=20, skip=10):
    """You take the oldest checkpoint. That is safe, and throws away most of the training: take the newest that is old enough."""
    return checkpoints[min(checkpoints)], min(checkpoints), alarm + skip


@mistake("rollback", caught_by="test_the_newest_checkpoint_before_the_trouble_is_taken")
def same_batches_again(checkpoints, alarm, margin=20, skip=10):
    """You go on with the batch of the checkpoint: the run then sees the same batches again that it stumbled over. Go on with batch
    alarm + skip."""
    step = max([s for s in checkpoints if s <= alarm - margin], default=min(checkpoints))
    return checkpoints[step], step, step


@mistake("rollback", caught_by="test_the_newest_checkpoint_before_the_trouble_is_taken")
def skipped_from_the_checkpoint(checkpoints, alarm, margin=20, skip=10):
    """You count the batches to skip from the checkpoint. The batches around the alarm would still be seen: go on with alarm + skip."""
    step = max([s for s in checkpoints if s <= alarm - margin], default=min(checkpoints))
    return checkpoints[step], step, step + skip


@mistake("rollback", caught_by="test_without_an_early_checkpoint_the_oldest_must_do")
def none_early_enough(checkpoints, alarm, margin=20, skip=10):
    """If no checkpoint is early enough you take the newest. The oldest of all is then the best that there is."""
    step = max([s for s in checkpoints if s <= alarm - margin], default=max(checkpoints))
    return checkpoints[step], step, alarm + skip


# ---------------------------------------------------------------- optional: lamb_step

def _lamb(param, grad, state, lr, beta1, beta2, eps, weight_decay, *, ratio=lambda p, r: p.norm() / r.norm() if p.norm() > 0 and r.norm() > 0 else 1.0,
          corrected=True, decay="inside"):
    t = state.get("t", 0) + 1
    m = torch.lerp(grad, state.get("m", torch.zeros_like(param)), beta1)
    v = torch.lerp(grad.square(), state.get("v", torch.zeros_like(param)), beta2)
    a, b = (1 - beta1**t, 1 - beta2**t) if corrected else (1.0, 1.0)
    r = (m / a) / (torch.sqrt(v / b) + eps)
    if decay == "inside":
        r = r + weight_decay * param
    new = param - lr * ratio(param, r) * r
    return (new - lr * weight_decay * param if decay == "outside" else new), {"m": m, "v": v, "t": t}


@mistake("lamb_step", caught_by="test_lamb_steps_have_the_direction_of_adam_and_the_length_of_the_layer")
def plain_adam(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    """This is AdamW: the factor |param| / |r| is missing, with which every layer moves by the same share of its own length."""
    return _lamb(param, grad, state, lr, beta1, beta2, eps, weight_decay, ratio=lambda p, r: 1.0)


@mistake("lamb_step", caught_by="test_lamb_steps_have_the_direction_of_adam_and_the_length_of_the_layer")
def ratio_upside_down(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    """Your factor is |r| / |param|. It is the other way round: long layers make long steps."""
    return _lamb(param, grad, state, lr, beta1, beta2, eps, weight_decay,
                 ratio=lambda p, r: r.norm() / p.norm() if p.norm() > 0 and r.norm() > 0 else 1.0)


@mistake("lamb_step", caught_by="test_lamb_steps_have_the_direction_of_adam_and_the_length_of_the_layer")
def uncorrected(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    """You use m and v as they are. Both start at zero: divide by 1 - beta**t first. The length hides it, because it is set anew, but the
    share of the decay and of eps in r is wrong."""
    return _lamb(param, grad, state, lr, beta1, beta2, eps, weight_decay, corrected=False)


@mistake("lamb_step", caught_by="test_lamb_steps_have_the_direction_of_adam_and_the_length_of_the_layer")
def decay_outside(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    """You apply the weight decay beside the scaled step, as AdamW does. In LAMB it is a part of r, before the length is taken."""
    return _lamb(param, grad, state, lr, beta1, beta2, eps, weight_decay, decay="outside")


@mistake("lamb_step", caught_by="test_a_layer_that_is_zero_still_moves")
def stuck_at_zero(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    """A parameter that is zero has length 0, and in your step it stays there for ever. If either length is 0 the factor is 1."""
    return _lamb(param, grad, state, lr, beta1, beta2, eps, weight_decay, ratio=lambda p, r: p.norm() / r.norm() if r.norm() > 0 else 1.0)


@mistake("lamb_step", caught_by="test_a_layer_that_is_zero_still_moves")
def zero_over_zero(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    """If r is zero you divide by its length, and the parameter becomes NaN. If either length is 0 the factor is 1."""
    return _lamb(param, grad, state, lr, beta1, beta2, eps, weight_decay, ratio=lambda p, r: p.norm() / r.norm() if p.norm() > 0 else 1.0)


# ---------------------------------------------------------------- optional: length_curriculum

@mistake("length_curriculum", caught_by="test_texts_grow_in_a_straight_line_and_then_stay")
def never_stops(step, warmup, longest, shortest=8, multiple=8):
    """Your texts go on growing after the warm-up, beyond `longest`, for which the network has no places. Stop at `longest`."""
    return (shortest + (longest - shortest) * step // warmup) // multiple * multiple


@mistake("length_curriculum", caught_by="test_texts_grow_in_a_straight_line_and_then_stay")
def from_nothing(step, warmup, longest, shortest=8, multiple=8):
    """You grow from 0 and keep `shortest` as a lower bound only. The line begins at `shortest`: shortest + (longest - shortest) * step / warmup."""
    return max(shortest, longest * min(step, warmup) // warmup // multiple * multiple)


@mistake("length_curriculum", caught_by="test_texts_grow_in_a_straight_line_and_then_stay")
def any_length(step, warmup, longest, shortest=8, multiple=8):
    """Your lengths are not multiples of `multiple`. Odd lengths are slow on most hardware: round down."""
    return shortest + (longest - shortest) * min(step, warmup) // warmup


@mistake("length_curriculum", caught_by="test_texts_grow_in_a_straight_line_and_then_stay")
def rounded_up(step, warmup, longest, shortest=8, multiple=8):
    """You round up to a multiple. Round down: a length must not be used before its time."""
    return -(-(shortest + (longest - shortest) * min(step, warmup) // warmup) // multiple) * multiple


@mistake("length_curriculum", caught_by="test_texts_grow_in_a_straight_line_and_then_stay")
def one_jump(step, warmup, longest, shortest=8, multiple=8):
    """You use short texts during the whole warm-up and then jump to long ones. Let the length grow in a straight line."""
    return shortest if step < warmup else longest
