"""What the functions of this lab must do: the part that a student has too.

Torch's own 16-bit and 8-bit types say what a bit pattern means and where a number is rounded to; float64 says what attention
and linear layers give; recorded training runs, diverging and healthy, say what a warning is worth. Inputs are random; the
probes at the end have fixed ones.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from course import device, timing
from course.spec import assert_close, assert_that, exercise, probe, speed, work
from course.spec.values import walk

some, few = settings(max_examples=8), settings(max_examples=4)
BF16, FP16 = torch.bfloat16, torch.float16

# name: exponent bits, mantissa bits, infinities
FORMATS = {"fp16": (5, 10, True), "bf16": (8, 7, True), "tf32": (8, 10, True), "E5M2": (5, 2, True), "E4M3": (4, 3, False)}
TORCH = {"fp16": (torch.int16, FP16), "bf16": (torch.int16, BF16), "E5M2": (torch.uint8, torch.float8_e5m2),
         "E4M3": (torch.uint8, torch.float8_e4m3fn)}


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def normal(shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=random).to(dtype)


def wide(n: int, random: torch.Generator, low: int = -30, high: int = 20) -> Tensor:
    """Numbers of all sizes from 2**low to 2**high, float32."""
    return normal((n,), random) * torch.exp2(torch.randint(low, high, (n,), generator=random).float())


# ---------------------------------------------------------------- decode_float

def read_by_torch(codes: Tensor, name: str) -> Tensor:
    integer, dtype = TORCH[name]
    return codes.to(torch.int32).to(integer).view(dtype).float().double()


def value_of(code: int, exponent_bits: int, mantissa_bits: int, infinities: bool) -> float:
    """One code, read with Python's own integers."""
    digits = format(code, f"0{1 + exponent_bits + mantissa_bits}b")
    e, m = int(digits[1:1 + exponent_bits], 2), int(digits[1 + exponent_bits:], 2)
    least = 2 - 2 ** (exponent_bits - 1) - mantissa_bits        # the exponent of the smallest number
    size = math.ldexp(m, least) if e == 0 else math.ldexp(2**mantissa_bits + m, least + e - 1)
    if "0" not in digits[1:1 + exponent_bits]:
        if infinities:
            size = math.nan if m else math.inf
        elif "0" not in digits[1:]:
            size = math.nan
    return -size if digits[0] == "1" else size


def assert_decodes(student, codes: Tensor, fmt: tuple, words: str) -> None:
    got = student.decode_float(codes, *fmt)
    expected = torch.tensor([value_of(code, *fmt) for code in codes.flatten().tolist()], dtype=torch.float64).view(codes.shape)
    assert_close(got, expected, words, rtol=0, atol=0)


@exercise("decode_float", points=4)
def test_every_code_of_sixteen_bits_means_what_torch_reads(student):
    """Take the three fields out with shifts and masks. Is the hidden 1 there for e > 0, and the bias 2**(E - 1) - 1?"""
    codes = torch.arange(2**16)
    for name in ("fp16", "bf16"):
        assert_close(student.decode_float(codes, *FORMATS[name]), read_by_torch(codes, name), f"the values of all {name} codes", rtol=0, atol=0)


@exercise("decode_float", points=2)
def test_numbers_go_on_evenly_down_to_zero(student):
    """With e = 0 there is no hidden 1, and the exponent is 1 - b as for e = 1: the smallest numbers keep one distance."""
    for name, fmt in FORMATS.items():
        codes = torch.arange(2 ** (fmt[1] + 1))     # e is 0 or 1
        assert_decodes(student, codes, fmt, f"the smallest numbers of {name}")
        zeros = student.decode_float(torch.tensor([0, 2 ** (fmt[0] + fmt[1])]), *fmt)
        assert_that(zeros.signbit().tolist() == [False, True], f"{name} has two zeros: the code with only the sign bit set is -0.0. Multiply by the sign, which keeps it.")


@exercise("decode_float", points=2)
def test_e4m3_spends_one_code_on_nan_and_none_on_infinity(student):
    """Without infinities the codes with the largest e are ordinary numbers, but for the one whose mantissa is all ones."""
    for name in ("E4M3", "E5M2"):
        codes = torch.arange(2**8)
        assert_close(student.decode_float(codes, *FORMATS[name]), read_by_torch(codes, name), f"the values of all {name} codes", rtol=0, atol=0)


# ---------------------------------------------------------------- round_to_format

def rounded_by_torch(x: Tensor, name: str) -> Tensor:
    if name == "tf32":      # the numbers of float32 whose last 13 bits are zero
        whole = x.view(torch.int32)
        return ((whole + 0xFFF + (whole >> 13 & 1)) & -0x2000).view(torch.float32)
    return x.to(TORCH[name][1]).float()


def positive(fmt: tuple) -> Tensor:
    """All finite numbers of a format from zero up, as float64: their places in the list are their codes."""
    exponent_bits, mantissa_bits, infinities = fmt
    end = (2**exponent_bits - 1 << mantissa_bits) if infinities else 2 ** (exponent_bits + mantissa_bits) - 1
    return torch.tensor([value_of(code, *fmt) for code in range(end)], dtype=torch.float64)


small_formats = st.tuples(st.integers(2, 5), st.integers(1, 4), st.booleans())
with_infinities = st.tuples(st.integers(2, 5), st.integers(1, 4), st.just(True))        # what else has no infinities has another end


@exercise("round_to_format", points=4)
@some
@given(random=generators(), name=st.sampled_from(["fp16", "bf16", "tf32", "E5M2"]))
def test_numbers_go_where_torch_puts_them(student, random, name):
    """Which q belongs to this x? e is the exponent of the power of two just below |x|; then q = 2**(e - M)."""
    x = wide(200, random, -12, 14)
    assert_close(student.round_to_format(x, *FORMATS[name]), rounded_by_torch(x, name), f"x rounded to {name}", rtol=0, atol=0)


@exercise("round_to_format", points=3)
@few
@given(fmt=with_infinities)
def test_halves_go_to_the_even_neighbour(student, fmt):
    """Exactly between two numbers the one whose last mantissa bit is 0 is taken: torch.round does it so."""
    numbers = positive(fmt)
    middles = (numbers[:-1] + numbers[1:]) / 2
    codes = torch.arange(len(middles))
    expected = numbers[codes + codes % 2].float()
    for sign in (1, -1):
        got = student.round_to_format(sign * middles.float(), *fmt)
        assert_close(got, sign * expected, f"the middles between the numbers of the format {fmt}, rounded", rtol=0, atol=0)


@exercise("round_to_format", points=2)
@few
@given(random=generators(), name=st.sampled_from(["fp16", "E5M2", "E4M3"]))
def test_below_the_smallest_normal_number_the_distance_stays(student, random, name):
    """Subnormal numbers: e is never taken smaller than 1 - b. Half of the smallest of them, and less, becomes 0."""
    fmt = FORMATS[name]
    smallest = 2.0 ** (2 - 2 ** (fmt[0] - 1) - fmt[1])
    x = smallest * 2 ** fmt[1] * normal((100,), random)
    expected = (torch.round(x.double() / smallest) * smallest).float()
    inside = x.abs() < smallest * 2 ** fmt[1]
    assert_close(student.round_to_format(x[inside], *fmt), expected[inside], f"x rounded to {name}", rtol=0, atol=0)


@exercise("round_to_format", points=3)
def test_what_is_too_large_becomes_infinite_or_the_largest(student):
    """Decide after rounding: what still rounds to the largest number is not too large yet. NaN stays NaN."""
    for fmt in (FORMATS["fp16"], FORMATS["E4M3"], (3, 2, True), (5, 2, False)):
        numbers = positive(fmt)
        largest, beyond = float(numbers[-1]), float(2 * numbers[-1] - numbers[-2])
        end = math.inf if fmt[2] else largest
        just = 0.25 * largest + 0.75 * (largest + beyond) / 2       # beyond the largest, and still nearer to it
        x = torch.tensor([largest, just, (largest + beyond) / 2, beyond, 3 * largest, math.inf, math.nan, 0.0])
        expected = torch.tensor([largest, largest, end, end, end, end, math.nan, 0.0])
        got = student.round_to_format(torch.cat([x, -x]), *fmt)
        assert_close(got, torch.cat([expected, -expected]), f"large numbers in the format {fmt}, whose largest is {largest:g}", rtol=0, atol=0)


# ---------------------------------------------------------------- swamped_sum

def one_by_one(x: Tensor, compensated: bool = False) -> Tensor:
    """Left to right; every result is rounded because x's dtype is all there is."""
    total = lost = torch.zeros_like(x[0])
    for i in range(len(x)):
        wanted = torch.sub(x[i], lost)
        new = torch.add(total, wanted)
        if compensated:
            lost = torch.sub(torch.sub(new, total), wanted)
        total = new
    return total


lengths = st.sampled_from([1, 2, 3, 7, 64])
formats16 = st.sampled_from([BF16, FP16])


def terms(n: int, random: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Positive terms, so that the sum outgrows them, in 8 columns."""
    return (0.5 + torch.rand(n, 8, generator=random)).to(dtype)


@exercise("swamped_sum", points=3)
@few
@given(random=generators(), n=lengths, dtype=formats16)
def test_naive_adds_from_left_to_right_and_rounds_each_time(student, random, n, dtype):
    """One accumulator of x's own dtype. torch.sum would add up in float32 and round once."""
    for x in (terms(n, random, dtype), terms(300, random, dtype)):
        assert_close(student.swamped_sum(x, "naive"), one_by_one(x), f"the naive sum of {len(x)} terms", rtol=0, atol=0)


@exercise("swamped_sum", points=4)
@few
@given(random=generators(), n=lengths, dtype=formats16)
def test_kahan_hands_on_what_was_lost(student, random, n, dtype):
    """Four lines for each term, in this order: y = x - c, t = s + y, c = (t - s) - y, s = t, all in x's dtype."""
    for x in (terms(n, random, dtype), terms(300, random, dtype)):
        assert_close(student.swamped_sum(x, "kahan"), one_by_one(x, compensated=True), f"Kahan's sum of {len(x)} terms", rtol=0, atol=0)


@exercise("swamped_sum", points=3)
@few
@given(random=generators(), n=lengths, dtype=formats16)
def test_a_pairwise_sum_is_wrong_by_a_rounding_for_each_level(student, random, n, dtype):
    """Split in halves down to single terms: then a term passes through log2(n) additions only, not through n."""
    for x in (terms(n, random, dtype), (0.6 * terms(1000, random, torch.float32)).to(BF16)):
        true = x.double().sum(0)
        got = student.swamped_sum(x, "pairwise")
        assert_close(got, got.to(x.dtype) if isinstance(got, Tensor) else true.to(x.dtype), "the dtype of the pairwise sum")
        bound = math.ceil(math.log2(len(x))) * torch.finfo(x.dtype).eps / 2 * 1.1
        assert_close(got.double(), true, f"the pairwise sum of {len(x)} terms", rtol=bound, atol=0)


@exercise("swamped_sum", points=2)
def test_pairwise_sums_are_rounded_on_the_way(student):
    """Add in x's own dtype. Whoever converts to float32 first, or calls torch.sum, gets a result that was rounded only once."""
    x = terms(128, torch.Generator().manual_seed(int(torch.randint(2**31, ()))), BF16)
    x = torch.cat([x, terms(128, torch.Generator().manual_seed(int(torch.randint(2**31, ()))), BF16)], 1)   # 16 columns
    got = student.swamped_sum(x, "pairwise")
    once = x.double().sum(0).to(BF16)
    assert_that(not torch.equal(got, once), "All 16 pairwise sums of 128 terms came out as if rounded only once, at the end.")


# ---------------------------------------------------------------- bf16_update

def updates(random: torch.Generator, n: int = 64) -> tuple[Tensor, Tensor]:
    """Weights in bf16, and updates from far too small to large; some are zero. At the end one a little more than half a distance."""
    weight = normal((n,), random, BF16)
    update = weight.float() * 2.0 ** torch.randint(-13, -3, (n,), generator=random) * normal((n,), random)
    update = torch.where(torch.rand(n, generator=random) < 0.2, 0.0, update)
    return torch.cat([weight, torch.ones(1).to(BF16)]), torch.cat([update, torch.tensor([-BARELY])])


BARELY = 2.0**-8 * (1 + 2.0**-10)     # seen from 1.0: rounded to bf16 it is exactly half of the distance upwards, and is lost


@exercise("bf16_update", points=1)
@some
@given(random=generators())
def test_the_new_weight_is_rounded_once(student, random):
    """weight - update in float32, then to bf16. An update that is rounded first is rounded twice."""
    weight, update = updates(random)
    assert_close(student.bf16_update(weight, update)[0], torch.sub(weight, update).to(BF16), "the new weight", rtol=0, atol=0)


@exercise("bf16_update", points=2)
@some
@given(random=generators())
def test_an_update_that_leaves_its_weight_is_lost(student, random):
    """Count where the new weight equals the old one although the update is not 0; divide by the number of nonzero updates."""
    weight, update = updates(random)
    pairs = [(w, u) for w, u in zip(weight.tolist(), update.tolist()) if u != 0]
    lost = [torch.tensor(w - u, dtype=torch.float32).to(BF16).item() == w for w, u in pairs]
    assert_close(student.bf16_update(weight, update)[1], sum(lost) / len(lost), "the share of lost updates", rtol=1e-5)


@exercise("bf16_update", points=1)
def test_where_nothing_moves_nothing_is_lost(student):
    """Updates of 0 count neither as lost nor as updates; if there are no others, the share is 0.0, not NaN."""
    weight = torch.linspace(-1, 1, 8).to(BF16)
    assert_close(student.bf16_update(weight, torch.zeros(8)), (weight, 0.0), "weight and share after updates of 0")


# ---------------------------------------------------------------- stochastic_round

def neighbours(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """bf16's neighbours of float32 numbers, towards zero and away from it, and the place between them, in float64."""
    _, exponent = torch.frexp(x)
    distance = torch.exp2(exponent.double() - 8)
    inner = torch.trunc(x.double() / distance) * distance
    return inner, inner + distance * x.sign(), (x.double() - inner).abs() / distance


@exercise("stochastic_round", points=3)
@some
@given(random=generators())
def test_the_result_is_one_of_the_two_neighbours(student, random):
    """bf16 keeps the upper 16 bits: with the lower 16 bits zero x becomes the neighbour towards zero; 2**16 more is the other."""
    x = wide(64, random)
    got = student.stochastic_round(x, torch.rand(64, generator=random))
    assert_close(got, got.to(BF16) if isinstance(got, Tensor) else got, "x rounded")
    inner, outer, _ = neighbours(x)
    wrong = (got.double() != inner) & (got.double() != outer)
    assert_that(not wrong.any(), f"{int(wrong.sum())} of 64 results are none of the two bf16 numbers around x.")


@exercise("stochastic_round", points=2)
@few
@given(random=generators())
def test_a_number_of_bf16_stays_as_it_is(student, random):
    """Its fraction f is 0, and u < 0 never holds."""
    x = wide(64, random).to(BF16)
    u = torch.rand(64, generator=random) * (torch.arange(64) % 2)       # half of them exactly 0
    assert_close(student.stochastic_round(x.float(), u), x, "bf16 numbers rounded", rtol=0, atol=0)


@exercise("stochastic_round", points=3)
@few
@given(random=generators(), sign=st.sampled_from([1, -1]))
def test_on_average_nothing_is_lost(student, random, sign):
    """The neighbour away from zero must come with probability f: the nearer x is to it, the more often."""
    x = sign * (1 + torch.rand(8, generator=random))
    u = (torch.arange(512) + 0.5) / 512
    got = student.stochastic_round(x.expand(512, 8).contiguous(), u[torch.randperm(512, generator=random)][:, None].expand(512, 8).contiguous())
    assert_close(got.double().mean(0), x.double(), "the mean of 512 roundings of each number", rtol=0, atol=2**-15)


# ---------------------------------------------------------------- master_weight_step

def master_walk(student, weight: Tensor, steps: list[Tensor]) -> list[Tensor]:
    """The bf16 weight after each step."""
    state, walk_ = {}, []
    for update in steps:
        result = student.master_weight_step(weight, update, state)
        assert_that(type(result) in (tuple, list) and len(result) == 2, "master_weight_step must return two things: the weight and the new state.")
        weight, state = result
        assert_that(isinstance(weight, Tensor) and weight.dtype == BF16, "The weight that master_weight_step returns must be bfloat16.")
        walk_.append(weight)
    return walk_


def assert_neighbours_of(got: Tensor, master: Tensor, words: str) -> None:
    """Is bf16 `got` the number just below or above float32 `master`?"""
    inner, outer, fraction = neighbours(master)
    slack = 2.0**-8 * (outer - inner).abs()     # float32 subtractions that were done in another order
    low, high = torch.minimum(inner, outer) - slack, torch.maximum(inner, outer) + slack
    low = torch.where(fraction < 2.0**-8, low - (outer - inner).abs(), low)
    wrong = ~((got.double() >= low) & (got.double() <= high))     # a NaN is wrong, too
    if wrong.any():
        i = int(wrong.nonzero()[0])
        assert_that(False, f"{words}: the master is {master[i].item():.7g} in float32, the weight {got[i].item():.7g} is no neighbour of it.")


@exercise("master_weight_step", points=3)
@settings(max_examples=2)
@given(random=generators())
def test_updates_too_small_for_bf16_add_up(student, random):
    """Fifty updates of a tenth of bf16's distance move the weight by five distances. Where is the master between two calls?"""
    sign = torch.tensor([1.0, -1.0]).repeat(8)
    weight, update = (sign * (1.05 + 0.4 * torch.rand(16, generator=random))).to(BF16), sign * -0.1 * 2.0**-7
    got = master_walk(student, weight, [update] * 50)
    assert_neighbours_of(got[-1], weight.float() - 50 * update, "After 50 equal updates")


@exercise("master_weight_step", points=3)
@settings(max_examples=3)
@given(random=generators())
def test_the_weight_follows_a_master_in_float32(student, random):
    """At every step the weight is a bf16 neighbour of what float32 alone would have. Update the master, never the weight."""
    sizes = torch.tensor([1e-5, 1e-3, 0.1, 3.0]).repeat(8)
    master, steps = normal((32,), random, BF16).float(), [sizes * normal((32,), random) for _ in range(12)]
    for number, (got, update) in enumerate(zip(master_walk(student, master.to(BF16), steps), steps), start=1):
        master = master - update
        assert_neighbours_of(got, master, f"After step {number}")


def smallest_steps(weight: Tensor) -> list[Tensor]:
    """A few thousand of float32's own distances at each weight, six times three of them, and then all the rest of it: what is left is the
    sum of the six, if nothing was lost. Every master on the way is a float32 number, in whatever order it is computed."""
    distance = torch.exp2(torch.frexp(weight.float())[1].double() - 24)        # of float32's numbers around each weight
    steps = [20000 * distance] + [3 * distance] * 6
    return [step.float() for step in (*steps, weight.double() - 20000 * distance)]


def assert_keeps_the_smallest_steps(step: Callable) -> None:
    """Of weights large and small; `step` is master_weight_step."""
    weight = torch.tensor([1.25, -1.375, 0.02, -0.3, 1e-4, 1.3e-6]).to(BF16)
    steps, state, new = smallest_steps(weight), {}, weight
    for update in steps:
        new, state = step(new, update, state)
    assert_neighbours_of(new, -18 * steps[1] / 3, "After six updates of three float32 steps each, and one that takes away all but these six")


@exercise("master_weight_step", points=2)
def test_not_even_the_smallest_steps_of_float32_are_lost(student):
    """float32 has 24 bits and bf16 8: whatever you keep beside the weight must hold the other 16, for small weights too."""
    assert_keeps_the_smallest_steps(student.master_weight_step)


# ---------------------------------------------------------------- dynamic_loss_scale

def scaled_gradients(random: torch.Generator, scale: float) -> list[Tensor]:
    """Gradients as they come out of fp16, some of them so small that they are zero once divided by the scale in fp16."""
    return [(normal(shape, random) * 10.0 ** torch.randint(-4, 3, shape, generator=random)).to(FP16) for shape in [(3, 4), (5,), ()]]


scales = st.sampled_from([2.0**k for k in range(0, 17, 4)])


BAD = (math.inf, -math.inf, math.nan)


def spoilt(grads: list[Tensor], random: torch.Generator, bad: float = math.inf) -> list[Tensor]:
    """The same with one number that is infinite or NaN."""
    which = int(torch.randint(len(grads), (), generator=random))
    flat = grads[which].flatten().clone()
    flat[int(torch.randint(len(flat), (), generator=random))] = bad
    return [flat.view_as(g) if i == which else g for i, g in enumerate(grads)]


@exercise("dynamic_loss_scale", points=4)
@some
@given(random=generators(), scale=scales)
def test_gradients_are_divided_by_the_scale_in_float32(student, random, scale):
    """Convert to float32 first, then divide by the scale with which they were made. In fp16 they would underflow again."""
    grads = scaled_gradients(random, scale)
    got, *_ = student.dynamic_loss_scale(grads, scale, 1, interval=2)       # this step makes the scale grow
    assert_close(got, [g.float() * (1 / scale) for g in grads], "the true gradients", rtol=1e-6, atol=0)
    large = [torch.tensor([6e4, 5e4, 4e4]).to(FP16), torch.tensor([3e4]).to(FP16)]      # finite, but not their sum in fp16
    got, *_ = student.dynamic_loss_scale(large, scale, 0)
    assert_close(got, [g.float() * (1 / scale) for g in large], "the true gradients, of large but finite ones", rtol=1e-6, atol=0)


@exercise("dynamic_loss_scale", points=3)
@few
@given(random=generators(), scale=scales, good=st.integers(1, 5), factor=st.sampled_from([2.0, 4.0]))
def test_an_overflow_skips_the_step_and_lowers_the_scale(student, random, scale, good, factor):
    """One infinite or NaN number in any gradient is enough: (None, scale / factor, 0)."""
    for bad in BAD:
        got = student.dynamic_loss_scale(spoilt(scaled_gradients(random, scale), random, bad), scale, good, interval=6, factor=factor)
        assert_close(got, (None, scale / factor, 0), "gradients, scale and good steps after an overflow")


@exercise("dynamic_loss_scale", points=3)
@few
@given(random=generators(), scale=scales, interval=st.integers(2, 5))
def test_the_scale_grows_after_enough_good_steps_in_a_row(student, random, scale, interval):
    """Count this step, then compare: when the count reaches interval the scale is multiplied by factor, and the count is 0."""
    start, good = scale, 0
    for step in range(1, interval + 1):
        _, scale, good = student.dynamic_loss_scale(scaled_gradients(random, scale), scale, good, interval=interval)
        expected = (start, step) if step < interval else (2 * start, 0)
        assert_close((scale, good), expected, f"scale and count after good step {step}, interval {interval}")


# ---------------------------------------------------------------- stable_softmax_attention

def attention64(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)


def assert_rounded_once(got: Tensor, true: Tensor, dtype: torch.dtype, largest: float, words: str) -> None:
    """Within half a distance of dtype's numbers, and a little for float32's own rounding."""
    half = torch.finfo(dtype).eps / 2
    assert_close(got, got.to(dtype) if isinstance(got, Tensor) else true.to(dtype), f"the dtype of {words}")
    assert_close(got.double(), true, words, rtol=1.01 * half, atol=4e-6 * largest + float(torch.finfo(dtype).tiny))


@st.composite
def attention_inputs(draw, size: float = 1.0, dtypes=(BF16, FP16)) -> tuple[Tensor, Tensor, Tensor]:
    random, dtype = draw(generators()), draw(st.sampled_from(dtypes))
    shape = (*draw(st.sampled_from([(), (2,), (2, 3)])), draw(st.integers(1, 9)), draw(st.sampled_from([4, 7, 16])))
    return tuple((factor * normal(shape, random)).to(dtype) for factor in (size, 1.0, 1.0))


@exercise("stable_softmax_attention", points=3)
@few
@given(qkv=attention_inputs(), random=generators())
def test_no_place_sees_a_later_one(student, qkv, random):
    """Mask the scores with -inf above the diagonal, before the softmax."""
    q, k, v = qkv
    t = q.shape[-2]
    seen = torch.arange(t) <= t // 2
    other_k, other_v = (torch.where(seen[:, None], x, normal(x.shape, random, x.dtype)) for x in (k, v))
    first, second = (student.stable_softmax_attention(q, *kv) for kv in ((k, v), (other_k, other_v)))
    assert_close(second[..., seen, :], first[..., seen, :], f"the first {int(seen.sum())} of {t} places, after keys and values of later ones changed",
                 rtol=1e-2, atol=1e-2)


@exercise("stable_softmax_attention", points=5)
@some
@given(qkv=attention_inputs(size=4.0))
def test_attention_is_exact_up_to_one_rounding(student, qkv):
    """Convert q, k and v to float32 before the first product, and round only the result."""
    assert_rounded_once(student.stable_softmax_attention(*qkv), attention64(*qkv), qkv[0].dtype, float(qkv[2].abs().max()), "the attention")


@exercise("stable_softmax_attention", points=3)
@few
@given(random=generators())
def test_scores_of_a_thousand_are_no_problem(student, random):
    """Subtract each row's maximum, over the places that are seen, before exp: then every row keeps at least one weight of 1."""
    q, k, v = ((30 * normal((2, 6, 8), random)).to(BF16), (30 * normal((2, 6, 8), random)).to(BF16), normal((2, 6, 8), random, BF16))
    assert_rounded_once(student.stable_softmax_attention(q, k, v), attention64(q, k, v), BF16, 100 * float(v.abs().max()), "the attention with large scores")


# ---------------------------------------------------------------- thermometer

@exercise("thermometer", points=2)
@some
@given(random=generators(), dtype=st.sampled_from([BF16, FP16, torch.float32]))
def test_each_activation_shows_its_largest_size(student, random, dtype):
    """The largest absolute value: a large negative number is as dangerous as a positive one. Under the same names."""
    activations = {f"block {i} {name}": normal((2, 3, 4), random, dtype) - 2 for i in range(2) for name in ("scores", "down")}
    got = student.thermometer(activations, [normal((3,), random)])
    expected = {name: max(abs(number) for number in x.flatten().tolist()) for name, x in activations.items()}
    assert_close(_numbers(got, [*activations, "gradient norm"]) | {"gradient norm": 0.0}, expected | {"gradient norm": 0.0}, "the readings", rtol=1e-6)


@exercise("thermometer", points=2)
@some
@given(random=generators())
def test_the_gradient_norm_is_that_of_one_long_vector(student, random):
    """The root of the sum of all squares of all gradients: neither the sum nor the largest of their norms."""
    grads = [normal(shape, random) for shape in [(3, 4), (7,), ()]]
    for grads, words in ((grads, "the gradient norm"), ([], "the gradient norm of no gradients")):
        got = _numbers(student.thermometer({}, grads), ["gradient norm"])
        assert_close(got["gradient norm"], math.sqrt(sum(x * x for g in grads for x in g.flatten().tolist())), words, rtol=1e-5)


@exercise("thermometer", points=1)
@few
@given(random=generators())
def test_a_nan_is_not_hidden(student, random):
    """A comparison with NaN is false, so that Python's own max may pass over it. torch's maximum keeps it. And an infinity is infinite."""
    bad, single = normal((4, 5), random), torch.tensor([1.0, 2.0, math.nan, 3.0])
    bad[2, 3] = math.nan
    infinite = torch.where(torch.arange(5) == 3, -math.inf, normal((5,), random))
    got = _numbers(student.thermometer({"up": bad, "gelu": single, "down": infinite}, [normal((3,), random), bad]), ["up", "gelu", "down", "gradient norm"])
    assert_close(got, {"up": math.nan, "gelu": math.nan, "down": math.inf, "gradient norm": math.nan}, "the readings with a NaN and an infinity inside")


@exercise("thermometer", points=1)
@few
@given(random=generators())
def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16(student, random):
    """Convert to float32 first, .float(), then square and add up: a norm in bf16 is wrong by up to 0.4%."""
    grads = [(scale * normal((30, 40), random)).to(BF16) for scale in (1.0, 0.5, 0.3)]
    got = _numbers(student.thermometer({}, grads), ["gradient norm"])
    true = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    assert_close(got["gradient norm"], true, "the gradient norm of bfloat16 gradients", rtol=2e-5)


def _numbers(readings, names: list[str]) -> dict:
    assert_that(type(readings) is dict and set(readings) == set(names), f"thermometer must return a dict with the names {', '.join(names)}.")
    for name, x in readings.items():
        assert_that(type(x) in (int, float), f"The reading {name!r} must be a number of Python, a float, which .item() gives. It is "
                    f"{'a tensor' if isinstance(x, Tensor) else type(x).__name__}.")
    return readings


# ---------------------------------------------------------------- early_warning: recorded runs

THERMOMETERS = ("scores", "residual", "logits", "gradient norm")
AHEAD = 5           # steps before the loss shows it: that late a warning is still of use


class Recorded:
    """Training runs from record_runs.py: what the thermometers read, and when the loss showed that the run diverges (-1: it never did)."""

    def __init__(self, path: Path):
        tensors = load_file(path)
        self.shown = tensors["shown"].tolist()
        self.runs = [{name: heat[k].float() for k, name in enumerate(THERMOMETERS)} for heat in tensors["heat"]]   # heat: [runs, 4, steps]
        for heat, end in zip(self.runs, tensors["steps"].tolist()):
            heat.update({name: readings[:end] for name, readings in heat.items()})

    def alarms(self, student, diverging: bool) -> list[tuple[int | None, int]]:
        """(alarm, when the loss showed it) of each run of the one kind or of the other."""
        return [(alarm_of(student.early_warning(heat), heat), shown) for heat, shown in zip(self.runs, self.shown) if (shown >= 0) == diverging]


def alarm_of(answer, heat: dict[str, Tensor]) -> int | None:
    steps = len(heat["scores"])
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    assert_that(answer is None or type(answer) is int and 0 <= answer < steps, f"early_warning must return a step from 0 to {steps - 1}, or None.")
    return answer


RUNS = Recorded(Path(__file__).with_name("runs.safetensors"))


def assert_most_are_warned_of(student, recorded: Recorded, share: float) -> None:
    alarms = recorded.alarms(student, diverging=True)
    caught = [alarm is not None and alarm <= shown - AHEAD for alarm, shown in alarms]
    assert_that(sum(caught) >= share * len(caught), f"{sum(caught)} of {len(caught)} diverging runs got a warning {AHEAD} steps or more before "
                f"the loss showed it; at least {math.ceil(share * len(caught))} should.")


def assert_few_false_alarms(student, recorded: Recorded, most: int) -> None:
    alarms = recorded.alarms(student, diverging=False)
    false = sum(alarm is not None for alarm, _ in alarms)
    assert_that(false <= most, f"{false} of {len(alarms)} healthy runs got an alarm; at most {most} may.")


@exercise("early_warning", points=3)
def test_most_diverging_runs_are_warned_of_in_time(student):
    """Plot the readings of a diverging run against the step, on a logarithmic scale. Which one rises first, and how far?"""
    assert_most_are_warned_of(student, RUNS, 0.8)


@exercise("early_warning", points=3)
def test_healthy_runs_are_left_alone(student):
    """An alarm that costs a rollback must be rare. How high do the readings go in the healthy runs?"""
    assert_few_false_alarms(student, RUNS, 1)


@exercise("early_warning", points=1)
def test_an_alarm_knows_nothing_of_the_future(student):
    """Cut the readings off after the alarm, and it must come at the same step; cut them off before it, and there is none yet."""
    assert_no_future(student, RUNS)


def assert_no_future(student, recorded: Recorded, most: int = 6) -> None:
    for heat in [heat for heat, shown in zip(recorded.runs, recorded.shown) if shown >= 0][:most]:
        alarm = alarm_of(student.early_warning(heat), heat)
        if alarm is not None:
            for end, expected in ((alarm + 1, alarm), (alarm, None)):
                if end:
                    cut = {name: readings[:end] for name, readings in heat.items()}
                    got = alarm_of(student.early_warning(cut), cut)
                    assert_that(got == expected, f"The alarm came at step {alarm}. With the readings of the first {end} steps only, the answer "
                                f"should be {expected}; it was {got}.")


# ---------------------------------------------------------------- mixed_linear

@st.composite
def layers(draw) -> tuple[Tensor, Tensor, Tensor]:
    random, (n, i, o) = draw(generators()), draw(st.sampled_from([(1, 5, 3), (4, 16, 8), (7, 64, 2)]))
    return normal((n, i), random), normal((o, i), random), normal((o,), random)


def product64(x: Tensor, weight: Tensor) -> Tensor:
    """The exact product of what bf16 makes of the inputs."""
    return x.to(BF16).double() @ weight.to(BF16).double().mT


def assert_bf16_product(got: Tensor, x: Tensor, weight: Tensor, words: str) -> None:
    """Up to the rounding of the result to bf16, and bf16's rounding of partial sums on some machines."""
    true = product64(x, weight)
    size = x.double().abs() @ weight.double().abs().mT
    assert_close(got, got.float() if isinstance(got, Tensor) else true.float(), f"the dtype of {words}")
    wrong = (got.double() - true).abs() > 2.0**-8 * true.abs() + 2.0**-12 * size
    assert_that(got.shape == true.shape and not wrong.any(), f"{words}: {int(wrong.sum())} of {wrong.numel()} numbers are not the product of the "
                "rounded inputs." if got.shape == true.shape else f"{words} has the shape {list(got.shape)}, wanted is {list(true.shape)}.")


@exercise("mixed_linear", points=3)
@some
@given(layer=layers())
def test_the_product_is_that_of_the_rounded_inputs(student, layer):
    """Both factors to bf16, one product, and the result back to float32. weight is [o, i]: x @ weight.T."""
    x, weight, _ = layer
    assert_bf16_product(student.mixed_linear(x, weight), x, weight, "x @ weight.T")


@exercise("mixed_linear", points=1)
@few
@given(layer=layers())
def test_the_bias_is_not_rounded(student, layer):
    """Add the bias after the product has come back to float32."""
    x, weight, bias = layer
    fine = 1000 + bias     # bf16 would round it to a multiple of 4
    got = student.mixed_linear(torch.zeros_like(x), weight, fine)
    assert_close(got, fine.expand_as(got), "a product of zeros plus the bias", rtol=1e-6)


# ---------------------------------------------------------------- optional: rollback, lamb_step, length_curriculum

def checkpoints(steps: list[int]) -> dict[int, dict[str, Tensor]]:
    return {step: {"weights": torch.full((3,), float(step)), "m": torch.tensor([step / 7])} for step in steps}


saved_steps = st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True).map(lambda steps: [10 * step for step in steps])


def expected_rollback(saved: list[int], alarm: int, margin: int, skip: int) -> tuple:
    step = max((step for step in saved if alarm - step >= margin), default=min(saved))
    return checkpoints([step])[step], step, alarm + skip


@exercise("rollback", points=0)
@some
@given(saved=saved_steps, which=st.integers(0, 5), late=st.sampled_from([0, 0, 1, 9, 25]), margin=st.integers(0, 60), skip=st.integers(0, 30))
def test_the_newest_checkpoint_before_the_trouble_is_taken(student, saved, which, late, margin, skip):
    """The trouble began before the alarm: only a checkpoint of step alarm - margin or earlier is safe, and of those the newest."""
    for saved, alarm, margin in ((saved, saved[which % len(saved)] + margin + late, margin), ([0, 50, 100, 120], 130, 20)):
        assert_close(student.rollback(checkpoints(saved), alarm, margin, skip), expected_rollback(saved, alarm, margin, skip), "state, step, next batch")


@exercise("rollback", points=0)
@few
@given(saved=saved_steps, margin=st.integers(5, 60), early=st.integers(1, 5))
def test_without_an_early_checkpoint_the_oldest_must_do(student, saved, margin, early):
    """No checkpoint is that old: take the oldest that there is."""
    alarm = min(saved) + margin - early
    assert_close(student.rollback(checkpoints(saved), alarm, margin), expected_rollback(saved, alarm, margin, 10), "state, step, next batch")


def lamb_reference(param: Tensor, grads: list[Tensor], lr, beta1, beta2, eps, weight_decay) -> list[Tensor]:
    """By torch's own Adam, whose step is the direction r, and then the two lengths."""
    places, probe_ = [], torch.nn.Parameter(torch.zeros_like(param))
    adam = torch.optim.Adam([probe_], lr=1.0, betas=(beta1, beta2), eps=eps)
    for grad in grads:
        before = probe_.detach().clone()
        probe_.grad = grad.clone()
        adam.step()
        direction = before - probe_.detach() + weight_decay * param
        lengths = float(torch.linalg.vector_norm(param)), float(torch.linalg.vector_norm(direction))
        param = param - lr * (lengths[0] / lengths[1] if 0 not in lengths else 1.0) * direction
        places.append(param)
    return places


def lamb_walk(student, param: Tensor, grads: list[Tensor], **hyper) -> list[Tensor]:
    state, places = {}, []
    for grad in grads:
        result = student.lamb_step(param, grad, state, **hyper)
        assert_that(type(result) in (tuple, list) and len(result) == 2, "lamb_step must return two things: the parameter and the new state.")
        param, state = result
        places.append(param)
    return places


@exercise("lamb_step", points=0)
@some
@given(random=generators(), shape=st.sampled_from([(7,), (3, 4)]), decay=st.sampled_from([0.0, 0.1, 1.0]), eps=st.sampled_from([1e-6, 0.1]))
def test_lamb_steps_have_the_direction_of_adam_and_the_length_of_the_layer(student, random, shape, decay, eps):
    """r is Adam's m_hat / (sqrt(v_hat) + eps) plus weight_decay * param; the step is lr * |param| / |r| * r."""
    hyper = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": eps, "weight_decay": decay}
    param, grads = 0.1 * normal(shape, random, torch.float64), [normal(shape, random, torch.float64) for _ in range(4)]
    for number, (got, expected) in enumerate(zip(lamb_walk(student, param, grads, **hyper), lamb_reference(param, grads, **hyper)), start=1):
        assert_close(got, expected, f"parameter after step {number}", rtol=1e-4, atol=1e-5)


@exercise("lamb_step", points=0)
@few
@given(random=generators())
def test_a_layer_that_is_zero_still_moves(student, random):
    """If |param| or |r| is 0 the factor is 1: biases start at zero, and must be able to leave it."""
    grad = normal((5,), random, torch.float64)
    got, *_ = lamb_walk(student, torch.zeros(5, dtype=torch.float64), [grad], lr=0.1, eps=1e-9)
    assert_close(got, -0.1 * grad.sign(), "a parameter that was zero, after a step", rtol=1e-4, atol=1e-5)
    still, *_ = lamb_walk(student, grad, [torch.zeros_like(grad)], lr=0.1, weight_decay=0.0)
    assert_close(still, grad, "a parameter without gradient and decay")


@exercise("length_curriculum", points=0)
@few
@given(percent=st.integers(20, 80), warmup=st.sampled_from([50, 100, 200]), shortest=st.integers(1, 4), more=st.integers(2, 12),
       multiple=st.sampled_from([4, 8]))
def test_texts_grow_in_a_straight_line_and_then_stay(student, percent, warmup, shortest, more, multiple):
    """shortest + (longest - shortest) * step / warmup, no further than longest, rounded down to a multiple."""
    shortest, longest = multiple * shortest, multiple * (shortest + more)
    for step, warmup in ((0, warmup), (warmup * percent // 100, warmup), (warmup - 1, warmup), (warmup, warmup), (2 * warmup, warmup), (0, 1), (1, 1)):
        exact = shortest + (longest - shortest) * min(step / warmup, 1.0)
        got = student.length_curriculum(step, warmup, longest, shortest, multiple)
        assert_that(type(got) is int, "length_curriculum must return a whole number.")
        allowed = {int((exact + slip) // multiple) * multiple for slip in (-1e-9, 1e-9)}     # a float may fall just short of a whole number
        assert_that(got in allowed and got <= longest, f"At step {step} of {warmup}, from {shortest} to {longest} in multiples of {multiple}, the length "
                    f"is {max(allowed)}. It was {got}.")


# ---------------------------------------------------------------- speed and bytes

def without_fast_bf16() -> str | None:
    card = device.describe()
    if card.gpu is not None:
        return None if card.bf16_tensor_cores else "this GPU has no tensor cores for bfloat16."
    fast = {"avx512_bf16", "amx_bf16", "bf16"} & set(card.cpu_features)
    return None if fast else "this processor has no instructions for bfloat16 (avx512_bf16 or amx_bf16)."


def wanted_ratio() -> float:
    """What a matrix unit reaches with ease (a GPU's tensor cores, AMX). avx512_bf16 alone gains two at the very most, and much
    less while other programs use the memory."""
    card = device.describe()
    return 2.5 if card.bf16_tensor_cores or "amx_bf16" in card.cpu_features else 1.3


ROWS, WIDTH = 1024, 2048


def rows_and_weight(seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(ROWS, WIDTH, generator=random), torch.randn(WIDTH, WIDTH, generator=random) / WIDTH**0.5
    return x.to(device.default_device()), weight.to(device.default_device())


def positive_part(linear, x: Tensor, weight: Tensor) -> Tensor:
    """Depends on every number of the product, and not in a way that a shorter product would do."""
    return linear(x, weight).relu().sum(0)


def products_at_their_best() -> tuple[float, str]:
    operations, where = 2 * ROWS * WIDTH**2, device.default_device()
    return operations / timing.peak_flops(where, BF16), f"{operations / 1e9:.1f} billion operations at the best rate of torch's bfloat16 product"


@speed("mixed_linear", points=10, ratio=wanted_ratio(), inputs=rows_and_weight, work=positive_part, limit=products_at_their_best,
       requires=without_fast_bf16, rtol=2e-2, atol=1.0)
def float32_linear(x, weight, bias=None):
    """A linear layer of 2048 by 2048 for 1024 rows, all conversions included, against float32."""
    return torch.nn.functional.linear(x, weight, bias)


def bytes_of_a_weight(function) -> float:
    """Bytes that a weight and what is remembered beside it take, after two steps that bf16 alone would lose."""
    n, state = 256, {}
    weight = torch.linspace(1.05, 1.95, n).to(BF16)
    start, update = weight.float(), torch.full((n,), 0.3 * 2.0**-7)
    for _ in range(8):
        weight, state = function(weight, update, state)
    assert_that(isinstance(weight, Tensor) and weight.dtype == BF16, "The weight must be bfloat16.")
    assert_neighbours_of(weight, start - 8 * update, "After 8 equal updates")
    assert_keeps_the_smallest_steps(function)
    leaves = [leaf for _, leaf in walk(state)]
    numbers = sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
    return weight.element_size() + (numbers + sum(len(str(leaf)) for leaf in leaves if not isinstance(leaf, Tensor))) / n


@work("master_weight_step", points=5, ratio=1.5, cost=bytes_of_a_weight, unit="bytes a weight",
      limit=lambda: (4.0, "32 bits of the master, of which the weight is the upper half"))
def float32_master(weight, update, state):
    """Bytes for each weight, against a bf16 weight and a float32 master beside it."""
    master = state.get("master", weight.float()) - update
    return master.to(BF16), {"master": master}


# ---------------------------------------------------------------- probes: fixed questions that tell mistakes apart

def waves(*shape: int, phase: float = 0.0, factor: float = 1.0) -> Tensor:
    """Fixed numbers of some size and sign."""
    return (torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase) * factor).float().reshape(shape)


def seen(x: Tensor) -> Tensor:
    """For the record: whatever is not finite as a number of its own."""
    return x.double().nan_to_num(nan=7e77, posinf=8e88, neginf=-8e88)


@probe("decode_float")
def decoded(student):
    """Subnormal, normal, largest, infinite, NaN, negative, in four formats."""
    codes = {"fp16": [0, 1, 0x3FF, 0x400, 0x3C00, 0x3E00, 0x7BFF, 0x7C00, 0x7C01, 0xC000, 0xFC00], "bf16": [1, 0x80, 0x3F80, 0x4048, 0x7F7F, 0x7F80, 0xBFC0],
             "E4M3": [1, 7, 8, 0x38, 0x77, 0x78, 0x7E, 0x7F, 0xB8, 0xFF], "E5M2": [1, 4, 0x3C, 0x7B, 0x7C, 0x7D, 0xBC]}
    values = [student.decode_float(torch.tensor(row), *FORMATS[name]) for name, row in codes.items()]
    zero = student.decode_float(torch.tensor([0x80]), *FORMATS["E4M3"])
    return [seen(x) for x in values], str(values[0].dtype), zero.signbit().tolist()


@probe("round_to_format")
def rounded_numbers(student):
    """Ordinary numbers, ties, subnormal, just below a power of two, large, infinite, NaN."""
    x = torch.tensor([1.0, 3.14159, -0.1, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1.9999, -1.9999, 5e-8, 2e-8, 7.3e-6, 65504.0, 65519.0, 65520.0, 7e4, math.inf, math.nan, 0.0, -3.3])
    small = torch.tensor([1.0, 1.0625, 1.1875, 1.3, 0.013, 0.001, 0.0009, 448.0, 463.0, 470.0, -1e4, 240.0, 255.0, math.inf])
    return [seen(student.round_to_format(x, *FORMATS["fp16"])), seen(student.round_to_format(small, *FORMATS["E4M3"])),
            seen(student.round_to_format(small, *FORMATS["E5M2"])), seen(student.round_to_format(x[:7], *FORMATS["bf16"]))]


@probe("swamped_sum")
def sums(student):
    x = (0.4 + waves(1000, 3) / 8).to(BF16)
    return [seen(student.swamped_sum(x, method)) for method in ("naive", "pairwise", "kahan")]


@probe("swamped_sum")
def sums_of_few(student):
    x = torch.tensor([[256.0, 1.0], [1.0, 4096.0], [1.0, 1.0], [3.0, -4096.0]]).to(BF16)
    return [seen(student.swamped_sum(x[:n], method)) for method in ("naive", "pairwise", "kahan") for n in (1, 3, 4)]


@probe("bf16_update")
def updated(student):
    """Updates in sixteenths of the distance, so that double rounding shows; zeros; nothing at all."""
    weight = (1.3 + waves(24) / 4).to(BF16)
    weight[0], update = 1.0, 2.0**-7 * (torch.arange(24) - 6).float() * 0.0830001
    update[0] = -BARELY
    new, lost = student.bf16_update(weight, update)
    _, none = student.bf16_update(weight, torch.zeros(24))
    return seen(new), torch.tensor(float(lost), dtype=torch.float64), seen(torch.tensor(float(none)))


@probe("stochastic_round")
def rounded_at_random(student):
    x = torch.cat([waves(20, factor=3.0), torch.tensor([1.0, -2.5, 0.0])])
    return [seen(student.stochastic_round(x, torch.full_like(x, u))) for u in (0.0, 0.1, 0.3, 0.6, 0.95)]


@probe("master_weight_step")
def masters(student):
    """Small updates, then large ones, then small ones back."""
    steps = [torch.full((6,), s) for s in (0.001, 0.001, 0.001, 0.0013, 0.5, -0.25, -0.001, -0.001)]
    return [(seen(w) * 64).round() for w in master_walk(student, (1.3 + waves(6) / 4).to(BF16), steps)]


@probe("master_weight_step")
def master_alone(student):
    """One update below half a distance, six times: how far did the weight come?"""
    return (seen(master_walk(student, torch.tensor([1.0, 2.0, -1.5]).to(BF16), [torch.tensor([0.002, 0.003, -0.003])] * 6)[-1]) * 256).round()


@probe("master_weight_step")
def smallest_steps_kept(student):
    """In float32's distances: how many of 18 are left?"""
    weight = torch.tensor([1.25, -1.375, 0.02, 1e-4]).to(BF16)
    steps = smallest_steps(weight)
    return [(seen(w) / steps[1].double() * 3).round() for w in master_walk(student, weight, steps)[-1:]]


@probe("master_weight_step")
def bytes_remembered(student):
    """Which kind of state is it?"""
    _, state = student.master_weight_step(torch.ones(3).to(BF16), torch.tensor([0.002, 0.003, -0.003]), {})
    return sum(leaf.numel() * leaf.element_size() for _, leaf in walk(state) if isinstance(leaf, Tensor))


@probe("dynamic_loss_scale")
def scaled_steps(student):
    """A good step, one that makes the scale grow, one past it, an infinite and a NaN gradient."""
    good, tiny = [waves(4).to(FP16), (1e-4 * waves(2, 2)).to(FP16)], [(1e-6 * waves(3)).to(FP16)]
    bad, worse = [good[0], torch.tensor([math.inf, 1.0]).to(FP16)], [torch.tensor([math.nan, 1.0]).to(FP16), good[0]]
    large = [torch.full((4,), 4e4).to(FP16)]
    answers = []
    for grads, count in ((good, 0), (good, 2), (good, 5), (tiny, 0), (bad, 1), (worse, 2), ([g.neg() for g in bad], 0), (large, 0)):
        true, scale, steps = student.dynamic_loss_scale(grads, 1024.0, count, interval=3, factor=4.0)
        answers.append((None if true is None else [seen(1e6 * t) for t in true], float(scale), steps))
    return answers


@probe("stable_softmax_attention")
def attended(student):
    q, k, v = ((waves(2, 5, 4, phase=p) * f).to(BF16) for p, f in ((0.0, 3.0), (1.0, 3.0), (2.0, 1.0)))
    got = student.stable_softmax_attention(q, k, v)
    return str(got.dtype), seen(got)


@probe("stable_softmax_attention")
def attended_with_large_scores(student):
    q, k, v = ((waves(4, 4, phase=p) * f).to(BF16) for p, f in ((0.0, 60.0), (1.0, 60.0), (2.0, 1.0)))
    growing = (torch.arange(4.0)[:, None] * torch.full((4, 4), 20.0)).to(BF16)       # later places have the larger scores
    return [seen(student.stable_softmax_attention(*qkv)) for qkv in ((q, k, v), (q / 12, k / 12, v), (torch.full_like(q, 20.0), growing, v))]


@probe("thermometer")
def readings(student):
    activations = {"scores": waves(5, phase=2.0) - 1, "down": waves(2, 3), "nan": torch.tensor([1.0, math.nan, 2.0])}
    grads = [waves(3), 300 * waves(2, 2).to(FP16), (torch.ones(600) * 0.1).to(BF16)]
    got = student.thermometer(activations, grads)
    return {name: (isinstance(x, Tensor), seen(torch.tensor(float(x)))) for name, x in got.items()}


@probe("thermometer")
def readings_of_bf16_gradients(student):
    return float(student.thermometer({}, [waves(40, 50).to(BF16), 1 + waves(300, factor=0.3).to(BF16)])["gradient norm"])


@probe("thermometer")
def reading_without_gradients(student):
    return seen(torch.tensor(float(student.thermometer({}, [])["gradient norm"])))


@probe("early_warning")
def alarms_of_recorded_runs(student):
    return [alarm if (alarm := alarm_of(student.early_warning(heat), heat)) is not None else -1 for heat in RUNS.runs]


@probe("early_warning")
def alarms_of_runs_cut_short(student):
    return [student.early_warning({name: readings[:60] for name, readings in heat.items()}) is None for heat in RUNS.runs]


@probe("early_warning")
def alarm_of_an_overflow(student):
    readings = torch.cat([torch.ones(30), torch.tensor([math.inf, math.inf])])
    return student.early_warning({name: readings for name in THERMOMETERS})


@probe("mixed_linear")
def linear_gradients(student):
    x, weight = waves(3, 4), waves(2, 4, phase=1.0)
    _, grads = student.mixed_linear.vjp(x, weight, cotangent=torch.ones(3, 2))
    return [None if g is None else (16 * g.float()).round() / 16 for g in grads]


@probe("mixed_linear")
def linear_outputs(student):
    x, weight, bias = waves(4, 4, factor=2.0), waves(4, 4, phase=1.0), 1000 + waves(4, phase=3.0)
    return [seen((student.mixed_linear(x, weight) * 1e4).round() / 1e4), seen(student.mixed_linear(x * 0, weight, bias)), seen(student.mixed_linear(0.01 * x, weight, bias))]


@probe("rollback")
def rolled_back(student):
    saved = checkpoints([50, 0, 100, 150])
    return [student.rollback(saved, *question) for question in ((120, 20, 10), (110, 20, 5), (170, 20, 10), (171, 20, 0), (10, 20, 10), (230, 20, 10))]


@probe("lamb_step")
def lamb_places(student):
    grads = [waves(2, 3, phase=p, factor=10.0**p).double() for p in range(3)]
    return [torch.stack(lamb_walk(student, (waves(2, 3, phase=1.0) * 5).double(), grads, lr=0.1, beta1=0.8, beta2=0.95, eps=0.01, weight_decay=d)) for d in (0.0, 0.5)]


@probe("lamb_step")
def lamb_from_zero(student):
    zero = torch.zeros(3, dtype=torch.float64)
    return [seen(lamb_walk(student, *start, lr=0.1, weight_decay=0.0)[0]) for start in ((zero, [zero + 2]), (zero + 2, [zero]))]


@probe("length_curriculum")
def lengths_of_texts(student):
    return [student.length_curriculum(step, 40, 64) for step in (0, 1, 13, 20, 39, 40, 41, 100)] + [student.length_curriculum(step, 10, 96, 32, 32) for step in (0, 4, 7, 20)]
