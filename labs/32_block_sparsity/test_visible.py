"""What the functions of this lab must do: the part that a student has too.

The plain matrix, in float64, says what is right: whatever is stored is spread out again and compared with it. Inputs are
random; the probes at the end have fixed ones.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course import kernels, timing
from course.device import describe
from course.spec import assert_close, assert_that, exercise, probe, speed
from course.spec.student import StudentError

some, few = settings(max_examples=10), settings(max_examples=4)
NORMAL = {"rtol": 1e-6, "atol": 1e-9}       # in float64
SINGLE = {"rtol": 1e-4, "atol": 1e-4}       # in float32: sums of tens of numbers of size 1
SHAPES = [(4, 6), (6, 4), (7, 7), (5, 3)]
THIN = [(1, 7), (5, 1)]
DENSITIES = [0.2, 0.5, 0.8]


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def fresh() -> torch.Generator:
    """For tests that walk through all their special cases in every run, with other numbers each time."""
    return torch.Generator().manual_seed(torch.initial_seed())


def timed(function: Callable, *args, enough: float) -> tuple:
    """(result, seconds), of the first of three calls that is quick enough, else of the last: on a busy machine a quick one may have to wait."""
    for _ in range(3):
        begin = time.perf_counter()
        result = function(*args)
        seconds = time.perf_counter() - begin
        if seconds < enough:
            break
    return result, seconds


def normal(shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def sparse(m: int, k: int, density: float, random: torch.Generator, b: int = 1) -> Tensor:
    """[m, k] float64 whose b x b blocks are zero, each with probability 1 - density."""
    kept = torch.rand(-(-m // b), -(-k // b), generator=random) < density
    return normal((m, k), random) * kept.repeat_interleave(b, 0).repeat_interleave(b, 1)[:m, :k]


def fields(result, shapes: dict[str, int], shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """The tensors of a stored matrix, if they are there, with so many dimensions each; all but the first are integers."""
    wanted = [*shapes, "shape"]
    assert_that(type(result) is dict and set(wanted) <= set(result), f"A dict with {', '.join(wanted)} must be returned.")
    for place, (name, ndim) in enumerate(shapes.items()):
        t = result[name]
        assert_that(isinstance(t, Tensor) and t.ndim == ndim, f"{name} must be a tensor with {ndim} dimension{'s' * (ndim > 1)}.")
        nothing = "" if t.numel() else f" This is of a matrix without numbers: an empty list becomes a tensor of {t.dtype} unless it is told a dtype."
        assert_that(place == 0 or not t.is_floating_point(), f"{name} must hold integers, not {t.dtype}.{nothing}")
    assert_that(type(result["shape"]) in (tuple, list), "shape must be a tuple of two numbers.")
    assert_that(tuple(result["shape"]) == tuple(shape), f"shape must be {tuple(shape)}, not {tuple(result['shape'])}.")
    return tuple(result[name] for name in shapes)


def assert_indices(name: str, t: Tensor, count: int, below: int) -> None:
    assert_that(len(t) == count, f"{name} has {len(t)} entries; {count} are needed.")
    assert_that(not t.numel() or (t.min() >= 0 and t.max() < below), f"{name} must lie in 0 to {below - 1}.")


def assert_starts(starts: Tensor, rows: int, last: int) -> None:
    assert_that(len(starts) == rows + 1, f"starts has {len(starts)} numbers; {rows + 1} are needed, one for each row and one more.")
    assert_that(bool(starts[0] == 0 and starts[-1] == last and (starts.diff() >= 0).all()),
                f"starts must begin with 0, never fall, and end with {last}, the number of entries.")


def csr(w: Tensor) -> dict:
    """The right answer, by another way than the solution's."""
    rows = [row.nonzero().flatten() for row in w]
    starts = torch.tensor([0, *[len(r) for r in rows]]).cumsum(0)
    columns = torch.cat(rows)
    return {"values": torch.cat([w[i][r] for i, r in enumerate(rows)]), "columns": columns, "starts": starts, "shape": tuple(w.shape)}


def tiled(w: Tensor, b: int) -> Tensor:
    """[block rows, block columns, b, b], filled up with zeros."""
    m, k = w.shape
    return F.pad(w, (0, -k % b, 0, -m % b)).unfold(0, b, b).unfold(1, b, b)


def bsr(w: Tensor, b: int) -> dict:
    tiles = tiled(w, b)
    kept = (tiles.abs().amax((2, 3)) > 0)
    places = kept.nonzero()
    starts = torch.searchsorted(places[:, 0].contiguous(), torch.arange(len(tiles) + 1))
    return {"blocks": tiles[places[:, 0], places[:, 1]].contiguous(), "columns": places[:, 1].contiguous(), "starts": starts, "shape": tuple(w.shape)}


# ---------------------------------------------------------------- to_csr

CSR = {"values": 1, "columns": 1, "starts": 1}


@exercise("to_csr", points=4)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), density=st.sampled_from([0.3, 0.7]))
def test_values_and_columns_follow_the_rows_from_left_to_right(student, random, shape, density):
    """nonzero() finds the places row after row, from left to right; values are the numbers there, columns the second index."""
    w = sparse(*shape, density, random)
    values, columns, _ = fields(student.to_csr(w), CSR, shape)
    expected = csr(w)
    assert_close(values, expected["values"], "values", **NORMAL)
    assert_close(columns.long(), expected["columns"], "columns")


@exercise("to_csr", points=4)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), density=st.sampled_from(DENSITIES))
def test_starts_tell_where_each_row_begins_and_ends(student, random, shape, density):
    """Count the non-zeros of each row and add the counts up, with a 0 in front: m + 1 numbers, the last of them z. An empty row
    begins where it ends."""
    for w in (sparse(*shape, density, random), sparse(1, 7, density, random), torch.zeros(3, 2).double()):
        _, _, starts = fields(student.to_csr(w), CSR, w.shape)
        assert_close(starts.long(), csr(w)["starts"], "starts")


# ---------------------------------------------------------------- csr_spmv

@exercise("csr_spmv", points=5)
@some
@given(random=generators(), shape=st.sampled_from([*SHAPES, (9, 4)]), density=st.sampled_from(DENSITIES))
def test_each_row_is_the_sum_of_its_products(student, random, shape, density):
    """values * x[columns], each added to the row that it belongs to. Rows without numbers give 0."""
    w, x = sparse(*shape, density, random), normal((shape[1],), random)
    w[-1] = 0
    assert_close(student.csr_spmv(csr(w), x), w @ x, "y", **NORMAL)
    large = large_before_small(random)
    x = normal((40,), random, torch.float32)
    got = student.csr_spmv(csr(large), x)
    assert_close(got, large @ x, "y, in float32", rtol=1e-4, atol=1.0)
    assert_close(got[-1:], large[-1:] @ x, "the last row, of small numbers after rows of large ones", **SINGLE)


def large_before_small(random: torch.Generator) -> Tensor:
    """Twenty rows of numbers of size ten thousand, then one of size 1: a running sum over all of them loses the last."""
    w = normal((21, 40), random, torch.float32)
    w[:20] = 10_000 * (1 + w[:20].abs())
    return w


@exercise("csr_spmv", points=3)
def test_a_hundred_thousand_rows_need_no_loop(student):
    """A Python loop over rows or numbers takes a second here. torch.repeat_interleave and index_add_ do all at once."""
    random, m = fresh(), 100_000
    lengths = torch.randint(0, 3, (m,), generator=random)
    starts = F.pad(lengths.cumsum(0), (1, 0))
    z = int(starts[-1])
    second = torch.arange(z) - torch.repeat_interleave(starts[:-1], lengths)     # 0 for the first number of a row, 1 for the second
    columns = torch.randint(25, (z,), generator=random) + 25 * second
    a = {"values": torch.randn(z, generator=random), "columns": columns, "starts": starts, "shape": (m, 51)}
    x = torch.randn(51, generator=random)
    x[50] = math.inf    # where the matrix has no number
    y, seconds = timed(student.csr_spmv, a, x, enough=0.4)
    expected = torch.zeros(m).index_add(0, torch.repeat_interleave(torch.arange(m), lengths), a["values"] * x[columns])
    assert_that(not isinstance(y, Tensor) or not bool(y.isnan().any()),
                "y is NaN: x is infinite in a column where the matrix has no number, and 0 times infinity is NaN. The zeros are multiplied too.")
    assert_close(y, expected, "y", **SINGLE)
    assert_that(seconds < 0.4, f"100,000 rows took {seconds:.1f} s; a few thousandths are enough.")


# ---------------------------------------------------------------- to_bsr

BSR = {"blocks": 3, "columns": 1, "starts": 1}
EVEN = [((4, 6), 2), ((6, 3), 3), ((4, 8), 4), ((2, 6), 1)]
RAGGED = [((5, 6), 2), ((4, 7), 3), ((7, 5), 4), ((3, 3), 4), ((1, 5), 2)]


@exercise("to_bsr", points=5)
@some
@given(random=generators(), case=st.sampled_from(EVEN), density=st.sampled_from([0.4, 0.8, 1.0]))
def test_blocks_that_hold_a_number_are_kept_in_order(student, random, case, density):
    """Cut the matrix into blocks [block rows, block columns, b, b] (unflatten both dimensions, then move the inner ones to the end);
    keep those with any number that is not zero, block row by block row."""
    shape, b = case
    w = sparse(*shape, density, random, b)
    blocks, columns, _ = fields(student.to_bsr(w, b), BSR, shape)
    expected = bsr(w, b)
    assert_close(blocks, expected["blocks"], "blocks", **NORMAL)
    assert_close(columns.long(), expected["columns"], "columns")


@exercise("to_bsr", points=3)
@few
@given(random=generators(), density=st.sampled_from(DENSITIES))
def test_starts_count_the_blocks_of_each_block_row(student, random, density):
    """As in CSR, with blocks for numbers and block rows for rows: ceil(m / b) + 1 of them."""
    for shape, b in (*EVEN, *RAGGED):
        w = sparse(*shape, density, random, b)
        _, _, starts = fields(student.to_bsr(w, b), BSR, shape)
        assert_close(starts.long(), bsr(w, b)["starts"], "starts")


@exercise("to_bsr", points=3)
@few
@given(random=generators())
def test_blocks_at_the_ragged_edge_are_filled_with_zeros(student, random):
    """Pad below and to the right, up to the next multiple of b: F.pad(w, (0, -k % b, 0, -m % b)). `shape` stays (m, k)."""
    for shape, b in RAGGED:
        w = sparse(*shape, 0.8, random)
        w[0, 0] = 1
        blocks, columns, _ = fields(student.to_bsr(w, b), BSR, shape)
        assert_close(blocks, bsr(w, b)["blocks"], "blocks", **NORMAL)
        assert_close(columns.long(), bsr(w, b)["columns"], "columns")


@exercise("to_bsr", points=2)
@few
@given(random=generators(), b=st.sampled_from([2, 3]))
def test_a_block_whose_numbers_cancel_is_kept(student, random, b):
    """Is any number not zero? The sum of a block may be zero although its numbers are not."""
    w = torch.zeros(6, 6, dtype=torch.float64)
    w[0, 0], w[0, 1], w[4, 5], w[5, 4] = 1.5, -1.5, 2.0, -2.0
    w[2, 2] = normal((1,), random)[0]
    blocks, columns, _ = fields(student.to_bsr(w, b), BSR, (6, 6))
    expected = bsr(w, b)
    assert_close([blocks, columns.long()], [expected["blocks"], expected["columns"]], "blocks and columns", **NORMAL)


# ---------------------------------------------------------------- bsr_matmul

@exercise("bsr_matmul", points=5)
@some
@given(random=generators(), case=st.sampled_from(EVEN), n=st.integers(1, 4), density=st.sampled_from([0.4, 1.0]))
def test_block_rows_are_sums_of_block_products(student, random, case, n, density):
    """blocks @ pieces, where pieces are the b rows of X that belong to each block's column; then add each product to its block row."""
    (m, k), b = case
    w, x = sparse(m, k, density, random, b), normal((k, n), random)
    assert_close(student.bsr_matmul(bsr(w, b), x), w @ x, "Y", **NORMAL)


@exercise("bsr_matmul", points=4)
@few
@given(random=generators(), n=st.integers(1, 4))
def test_ragged_products_have_the_size_of_the_matrix(student, random, n):
    """Pad X below, so that its rows can be cut into pieces of b, and leave out the rows of Y from m on."""
    for (m, k), b in RAGGED:
        w, x = sparse(m, k, 0.8, random), normal((k, n), random)
        assert_close(student.bsr_matmul(bsr(w, b), x), w @ x, "Y", **NORMAL)


@exercise("bsr_matmul", points=3)
@few
@given(random=generators(), case=st.sampled_from([*EVEN, *RAGGED]))
def test_block_rows_without_blocks_are_zero(student, random, case):
    """Begin with zeros for every block row, also for those that no block adds to; with no block at all, Y is zero."""
    (m, k), b = case
    for gone in (slice(0, m), slice((m - 1) // b * b, m), slice(0, b)):     # all, the last, the first
        w, x = sparse(m, k, 1.0, random), normal((k, 3), random)
        w[gone] = 0
        assert_close(student.bsr_matmul(bsr(w, b), x), w @ x, "Y", **NORMAL)


# ---------------------------------------------------------------- block_sparse_matmul

HALVES = [torch.float16, torch.bfloat16] if describe().gpu is None or describe().bf16 else [torch.float16]


def single(w: Tensor, b: int, dtype: torch.dtype = torch.float32) -> dict:
    stored = bsr(w, b)
    return stored | {"blocks": stored["blocks"].to(dtype)}


def assert_stored(result, where: str) -> None:
    """The lab fills the result with NaN before the launch, where the interpreter runs."""
    assert_that(not isinstance(result, Tensor) or not bool(result.isnan().any()),
                f"There is NaN in the result, which was filled with it before the launch: no program stores there. Look at {where}.")


def assert_product(student, w: Tensor, x: Tensor, b: int = 16) -> None:
    got = student.block_sparse_matmul(single(w, b), x.float())
    assert_stored(got, "the grid (a program for each block row and each tile of N columns), and at where and when you store")
    assert_close(got, (w @ x).float(), "Y", **SINGLE)


@exercise("block_sparse_matmul", points=7, requires=kernels.without_triton)
def test_the_kernel_sums_the_blocks_of_its_row(student):
    """Block s begins at blocks_ptr + s * B * B; the piece of x that it wants begins at row columns[s] * B. The sum is stored in the
    rows row * B + i of y."""
    random = fresh()
    for n in (16, 32):
        assert_product(student, sparse(48, 32, 0.8, random, 16), normal((32, n), random))


@exercise("block_sparse_matmul", points=5, requires=kernels.without_triton)
def test_edges_of_the_kernel_are_masked(student):
    """Rows of x from k on and columns from n on are loaded as 0 (mask and other=0.0), and nothing is stored in rows from m on or columns
    from n on."""
    random = fresh()
    for m, k, n in ((20, 33, 5), (17, 40, 18), (31, 20, 70)):
        w = sparse(m, k, 0.9, random, 16)
        w[-1, -1] = 1
        assert_product(student, w, normal((k, n), random))


@exercise("block_sparse_matmul", points=4, requires=kernels.without_triton)
def test_programs_without_blocks_store_zeros(student):
    """The store stands after the loop and happens always. With no block at all, Y is zero."""
    random = fresh()
    for gone in (slice(0, 16), slice(16, 32), slice(0, 40)):
        w, x = sparse(40, 32, 1.0, random), normal((32, 17), random)
        w[gone] = 0
        assert_product(student, w, x)


def cancelling(shape: tuple[int, int], random: torch.Generator, dtype: torch.dtype) -> list[Tensor]:
    """Large D + E, -D and -E, and a small C as the second of them: what is rounded before all four are added up is seen in the
    sum. Multiples of a sixteenth, so that D + E is exact in 16 bits."""
    d, e = ((16 * normal(shape, random)).round().clamp(-127, 127) / 16 for _ in range(2))
    return [d + e, normal(shape, random).to(dtype).double(), -d, -e]


def assert_sum_in_float32(student, random: torch.Generator, dtype: torch.dtype) -> None:
    w = torch.cat(cancelling((16, 16), random, dtype), 1)
    large, small = ((size * normal((16, 3), random)).to(dtype).double() for size in (50, 1))
    x = torch.cat([large, small, large, large])
    got = student.block_sparse_matmul(single(w, 16, dtype), x.to(dtype))
    assert_that(isinstance(got, Tensor) and got.dtype == dtype, f"The result of {dtype} must be {dtype} again.")
    assert_close(got.double(), w @ x, "Y", rtol=1.01 * torch.finfo(dtype).eps, atol=2e-3)


@exercise("block_sparse_matmul", points=3, requires=kernels.without_triton)
def test_half_precision_is_summed_in_float32(student):
    """Begin with tl.zeros((B, N), dtype=tl.float32) and give the sum to tl.dot; it is rounded once, when it is stored."""
    random = fresh()
    for dtype in HALVES:
        assert_sum_in_float32(student, random, dtype)


@exercise("block_sparse_matmul", points=1, requires=kernels.without_triton)
def test_the_product_is_the_kernels(student):
    """Launch the kernel and return what it has stored. Autograd knows nothing of a kernel; what torch's own functions computed, it would
    know."""
    random = fresh()
    w, x = single(sparse(16, 16, 1.0, random), 16), normal((16, 4), random, torch.float32)
    _, through = student.block_sparse_matmul.vjp(w, x, cotangent=torch.ones(16, 4))
    assert_that(all(g is None for g in through), "The result was computed by torch's operations and not by a kernel.")


# ---------------------------------------------------------------- bsr_transpose

def spread(stored: dict, b: int) -> Tensor:
    """The plain matrix of a BSR that was checked before."""
    m, k = stored["shape"]
    tiles = stored["blocks"].new_zeros(-(-m // b), -(-k // b), b, b)
    rows = torch.repeat_interleave(torch.arange(len(tiles)), stored["starts"].long().diff())
    tiles[rows, stored["columns"].long()] = stored["blocks"]
    return tiles.transpose(1, 2).flatten(2).flatten(0, 1)[:m, :k]


def transposed(student, w: Tensor, b: int) -> dict:
    m, k = w.shape
    stored = bsr(w, b)
    result = student.bsr_transpose(stored)
    blocks, columns, starts = fields(result, BSR, (k, m))
    p = len(stored["blocks"])
    assert_close(list(blocks.shape), [p, b, b], "the shape of blocks")
    assert_indices("columns", columns, p, -(-m // b))
    assert_starts(starts, -(-k // b), p)
    return result


@exercise("bsr_transpose", points=5)
@some
@given(random=generators(), case=st.sampled_from(EVEN), density=st.sampled_from([0.4, 0.8]))
def test_spread_out_it_is_the_transposed_matrix(student, random, case, density):
    """Sort the blocks by their column, transpose each, and let their old block rows be the new columns; count how many each old column
    had for the new starts."""
    shape, b = case
    w = sparse(*shape, density, random, b)
    assert_close(spread(transposed(student, w, b), b), w.T, "the matrix that comes out", **NORMAL)


@exercise("bsr_transpose", points=2)
@few
@given(random=generators())
def test_columns_of_the_transpose_still_rise(student, random):
    """In each block row from left to right: argsort with stable=True keeps the old order among equals. (Or sort by column first and row
    second.)"""
    for shape, b in (*EVEN, *RAGGED):
        w = sparse(*shape, 0.8, random, b)
        assert_close(transposed(student, w, b)["columns"].long(), bsr(w.T, b)["columns"], "columns")


# ---------------------------------------------------------------- sampled_matmul

def assert_sampled(student, w: Tensor, n: int, random: torch.Generator, b: int = 16) -> None:
    m, k = w.shape
    g, x, stored = normal((m, n), random), normal((k, n), random), single(w, b)
    tiles, rows = tiled(g @ x.T, b), torch.repeat_interleave(torch.arange(-(-m // b)), stored["starts"].diff())
    got = student.sampled_matmul(g.float(), x.float(), stored)
    assert_stored(got, "the grid (a program for each block), and at where and when you store")
    assert_close(got, tiles[rows, stored["columns"]].float(), "the gradient of the blocks", **SINGLE)


@exercise("sampled_matmul", points=5, requires=kernels.without_triton)
def test_each_block_gets_the_product_of_its_rows_and_columns(student):
    """The rows row of g times the rows column of x, transposed, stored from out_ptr + s * B * B on."""
    random = fresh()
    for n in (16, 32):
        w = sparse(48, 32, 0.7, random, 16)
        w[:16, 16:] = 1
        assert_sampled(student, w, n, random)


@exercise("sampled_matmul", points=4, requires=kernels.without_triton)
def test_what_is_not_there_adds_nothing_to_a_gradient(student):
    """Mask rows of g from m on, rows of x from k on, and columns of both from n on; load 0 there. Blocks themselves are stored as a whole."""
    random = fresh()
    for m, k, n in ((20, 33, 5), (17, 40, 18)):
        w = sparse(m, k, 0.9, random, 16)
        w[-1, -1] = 1
        assert_sampled(student, w, n, random)


@exercise("sampled_matmul", points=3, requires=kernels.without_triton)
def test_all_examples_count(student):
    """N is at most 64: walk over the n columns in steps of N, the last of which may be a short one, and add up."""
    random = fresh()
    for n in (70, 130):
        assert_sampled(student, sparse(16, 32, 1.0, random), n, random)


@exercise("sampled_matmul", points=1, requires=kernels.without_triton)
def test_gradients_of_half_precision_are_summed_in_float32(student):
    """Begin with tl.zeros((B, B), dtype=tl.float32). Large products of one step are cancelled by those of later ones here, with small
    ones between."""
    random = fresh()
    g = torch.cat(cancelling((16, 64), random, torch.float16), 1)
    large, small = ((size * normal((16, 64), random)).half().double() for size in (10, 0.5))
    x = torch.cat([large, small, large, large], 1)
    got = student.sampled_matmul(g.half(), x.half(), single(torch.ones(16, 16, dtype=torch.float64), 16, torch.float16))
    assert_that(isinstance(got, Tensor) and got.dtype == torch.float16, "The gradient of float16 must be float16 again.")
    assert_close(got.double(), (g @ x.T)[None], "the gradient", rtol=1e-3, atol=2e-3)


@exercise("sampled_matmul", points=1, requires=kernels.without_triton)
def test_the_gradient_is_the_kernels(student):
    """Launch the kernel and return what it has stored in out."""
    random = fresh()
    w, g, x = single(sparse(16, 16, 1.0, random), 16), normal((16, 4), random, torch.float32), normal((16, 4), random, torch.float32)
    _, through = student.sampled_matmul.vjp(g, x, w, cotangent=torch.ones(1, 16, 16))
    assert_that(all(t is None for t in through), "The result was computed by torch's operations and not by a kernel.")


# ---------------------------------------------------------------- prune_2_4

def magnitudes(m: int, k: int, random: torch.Generator) -> Tensor:
    """Numbers whose magnitudes all differ by a hundredth or more, in any order and with any sign."""
    order = torch.randperm(m * k, generator=random).double().view(m, k)
    sign = torch.randint(2, (m, k), generator=random) * 2 - 1
    return (1 + order) / 100 * sign


@exercise("prune_2_4", points=5)
@some
@given(random=generators(), m=st.integers(1, 5), groups=st.integers(1, 4))
def test_the_two_largest_magnitudes_of_each_group_stay_as_they_are(student, random, m, groups):
    """Groups are four neighbours of a row. Compare magnitudes, keep the numbers with their sign, set the others to 0."""
    w = magnitudes(m, 4 * groups, random)
    tiles = w.view(m, groups, 4)
    second = tiles.abs().sort(-1).values[..., 2:3]
    assert_close(student.prune_2_4(w), torch.where(tiles.abs() >= second, tiles, 0.0).view(m, -1), "the pruned matrix", **NORMAL)


@exercise("prune_2_4", points=2)
@few
@given(random=generators(), m=st.integers(1, 3))
def test_of_equal_numbers_two_stay(student, random, m):
    """Comparing with the second-largest magnitude keeps three or four where numbers are equal. topk(2) takes two."""
    w = (normal((m, 1), random).sign() * torch.tensor([2.0, 2, 2, 2, 1, 3, 1, 1])).float()
    got = student.prune_2_4(w)
    assert_that(isinstance(got, Tensor) and got.shape == w.shape, f"A tensor of shape {list(w.shape)} must be returned.")
    assert_close((got != 0).view(m, 2, 4).sum(2), torch.full((m, 2), 2), "how many stay in each group")
    assert_that(bool(((got == w) | (got == 0)).all()), "What stays must stay as it was.")


# ---------------------------------------------------------------- compress_2_4

def decompressed(result, shape: tuple[int, int]) -> Tensor:
    m, k = shape
    assert_that(type(result) is dict and {"values", "indices", "shape"} <= set(result), "A dict with values, indices, shape must be returned.")
    values, indices = result["values"], result["indices"]
    assert_that(isinstance(values, Tensor) and list(values.shape) == [m, k // 2], f"values must have the shape [{m}, {k // 2}]: two for each group of four.")
    assert_that(isinstance(indices, Tensor) and list(indices.shape) == [m, k // 8], f"indices must have the shape [{m}, {k // 8}]: a byte for two groups.")
    assert_that(indices.dtype == torch.uint8, f"indices must be uint8, not {indices.dtype}.")
    places = torch.stack([indices.long() // 4**i % 4 for i in range(4)], -1).view(m, k // 4, 2)
    assert_that(bool((places[..., 0] < places[..., 1]).all()), "In each group the first place must be lower than the second; the first is in the lower bits.")
    return values.new_zeros(m, k // 4, 4).scatter(2, places, values.view(m, k // 4, 2)).view(m, k)


def two_of_four(m: int, groups: int, random: torch.Generator) -> Tensor:
    """Two numbers in each group, in random places."""
    order = torch.rand(m, groups, 4, generator=random).argsort(-1)
    return (normal((m, groups, 4), random) * (order < 2)).view(m, -1)


@exercise("compress_2_4", points=5)
@some
@given(random=generators(), m=st.integers(1, 5), pairs=st.integers(1, 4))
def test_values_and_places_give_the_matrix_back(student, random, m, pairs):
    """Places from left to right in each group; the byte of two groups is p0 + 4 p1 + 16 q0 + 64 q1."""
    w = two_of_four(m, 2 * pairs, random)
    assert_close(decompressed(student.compress_2_4(w), w.shape), w, "the matrix, decompressed", **NORMAL)


@exercise("compress_2_4", points=2)
@some
@given(random=generators(), density=st.sampled_from([0.0, 0.3, 0.6]))
def test_groups_with_fewer_numbers_are_filled_with_zeros(student, random, density):
    """A group may have one number or none: its places must still be two different ones, in order. topk(2) of the magnitudes finds two in
    any case."""
    w = two_of_four(3, 4, random) * (torch.rand(3, 16, generator=random) < density)
    assert_close(decompressed(student.compress_2_4(w), w.shape), w, "the matrix, decompressed", **NORMAL)


# ---------------------------------------------------------------- transposable_mask_4x4

def cut(mask: Tensor) -> Tensor:
    return mask.unfold(0, 4, 4).unfold(1, 4, 4)


def is_mask(mask, w: Tensor) -> Tensor:
    assert_that(isinstance(mask, Tensor) and mask.shape == w.shape, f"A mask of shape {list(w.shape)} must be returned.")
    assert_that(mask.dtype == torch.bool, f"The mask must be of dtype bool, not {mask.dtype}.")
    return mask


SQUARES = [(4, 4), (8, 4), (4, 12), (8, 8)]


@exercise("transposable_mask_4x4", points=3)
@some
@given(random=generators(), shape=st.sampled_from(SQUARES))
def test_every_row_and_column_of_a_block_keeps_two(student, random, shape):
    """Blocks are 4 x 4: cut both dimensions, move the inner ones to the end, and put them back in the same way."""
    w = normal(shape, random)
    tiles = cut(is_mask(student.transposable_mask_4x4(w), w)).long()
    for direction, where in ((3, "row"), (2, "column")):
        assert_close(tiles.sum(direction), torch.full(tiles.shape[:3], 2), f"how many are kept in each {where} of each block")


def most_of_all_patterns(w: Tensor) -> Tensor:
    """The largest magnitude that any pattern of two in every row and column keeps, of each 4 x 4 block."""
    pairs = [0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100]
    rows = torch.tensor([[(pair >> i) & 1 for i in range(4)] for pair in pairs])
    choice = torch.cartesian_prod(*[torch.arange(6)] * 4)
    patterns = rows[choice]
    patterns = patterns[(patterns.sum(1) == 2).all(1)].double()
    return torch.einsum("rcij,pij->rcp", cut(w.abs().double()), patterns).amax(2)


@exercise("transposable_mask_4x4", points=4)
@some
@given(random=generators(), shape=st.sampled_from([(16, 32), (24, 16)]), kind=st.sampled_from(["normal", "heavy", "normal", "equal"]))
def test_no_pattern_keeps_more_magnitude(student, random, shape, kind):
    """Magnitudes, not numbers with a sign and not squares; all 90 patterns, for each block its own."""
    w = normal(shape, random)
    w = {"normal": w, "heavy": w**3, "equal": w.sign()}[kind]
    mask = is_mask(student.transposable_mask_4x4(w), w)
    kept = (cut(w.abs()) * cut(mask)).sum((2, 3))
    assert_close(kept, most_of_all_patterns(w), "the magnitude that is kept of each block", **NORMAL)


# ---------------------------------------------------------------- optional: coo, ell, dia

COO = {"values": 1, "rows": 1, "columns": 1}


@exercise("to_coo", points=0)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), density=st.sampled_from(DENSITIES))
def test_every_number_has_its_two_indices(student, random, shape, density):
    """nonzero(as_tuple=True) gives the two lists."""
    for w in (sparse(*shape, density, random), torch.zeros(2, 3).double()):
        values, rows, columns = fields(student.to_coo(w), COO, w.shape)
        z = int((w != 0).sum())
        assert_that(len(values) == z, f"values has {len(values)} entries; {z} numbers are not zero.")
        assert_indices("rows", rows, z, w.shape[0])
        assert_indices("columns", columns, z, w.shape[1])
        out = torch.zeros(w.shape, dtype=values.dtype)
        out[rows.long(), columns.long()] = values
        assert_close(out, w, "the matrix, spread out", **NORMAL)


@exercise("coo_spmv", points=0)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), density=st.sampled_from(DENSITIES))
def test_products_are_added_to_their_rows_in_any_order(student, random, shape, density):
    """index_add_ takes rows in any order, and as often as they come. y[rows] += ... does not: it keeps the last one only."""
    w, x = sparse(*shape, density, random), normal((shape[1],), random)
    places = w.nonzero()[torch.randperm(int((w != 0).sum()), generator=random)]
    a = {"values": w[places[:, 0], places[:, 1]], "rows": places[:, 0].contiguous(), "columns": places[:, 1].contiguous(), "shape": tuple(shape)}
    assert_close(student.coo_spmv(a, x), w @ x, "y", **NORMAL)


ELL = {"values": 2, "columns": 2}


@exercise("to_ell", points=0)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), density=st.sampled_from(DENSITIES))
def test_rows_are_as_wide_as_the_longest(student, random, shape, density):
    """As many places for each row as the longest row needs. Unused places have the value 0 and any column that exists."""
    for w in (sparse(*shape, density, random), sparse(1, 7, density, random), torch.tensor([[1.0], [0.0]]).double(), torch.zeros(2, 3).double()):
        values, columns = fields(student.to_ell(w), ELL, w.shape)
        width = int((w != 0).sum(1).max())
        assert_close([list(values.shape), list(columns.shape)], [[w.shape[0], width]] * 2, "the shapes of values and columns")
        assert_that(not columns.numel() or bool(columns.min() >= 0 and columns.max() < w.shape[1]), f"columns must lie in 0 to {w.shape[1] - 1}.")
        assert_close(torch.zeros(w.shape, dtype=values.dtype).scatter_add(1, columns.long(), values), w, "the matrix, spread out", **NORMAL)


def ell(w: Tensor) -> dict:
    """The longest row decides; unused places point to column 0, where x is not zero."""
    width = int((w != 0).sum(1).max())
    rows = [row.nonzero().flatten() for row in w]
    columns = torch.stack([F.pad(r, (0, width - len(r))) for r in rows])
    values = torch.stack([F.pad(row[r], (0, width - len(r))) for row, r in zip(w, rows)])
    return {"values": values, "columns": columns, "shape": tuple(w.shape)}


@exercise("ell_spmv", points=0)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), density=st.sampled_from(DENSITIES))
def test_a_table_of_products_is_summed_along_its_rows(student, random, shape, density):
    """values * x[columns], both [m, width], summed over the width."""
    w, x = sparse(*shape, density, random), normal((shape[1],), random)
    assert_close(student.ell_spmv(ell(w), x), w @ x, "y", **NORMAL)


DIA = {"values": 2, "offsets": 1}
BANDS = [((5, 5), (-1, 0, 2)), ((4, 6), (-2, 3, 5)), ((6, 3), (-5, -2, 1)), ((5, 5), (-3, 1))]


def banded(shape: tuple[int, int], offsets: tuple[int, ...], random: torch.Generator) -> Tensor:
    return sum((normal(shape, random).tril(o).triu(o) for o in offsets), torch.zeros(shape, dtype=torch.float64))


@exercise("to_dia", points=0)
@some
@given(random=generators(), case=st.sampled_from(BANDS))
def test_diagonals_that_hold_a_number_are_kept(student, random, case):
    """offsets are column minus row, each once and rising; values[j, i] is the number of row i on diagonal j, 0 where the diagonal is outside
    of the matrix."""
    (m, k), offsets = case
    w = banded((m, k), offsets, random)
    values, found = fields(student.to_dia(w), DIA, (m, k))
    assert_close(found.long(), torch.tensor(offsets, dtype=torch.int64), "offsets")
    expected = torch.stack([F.pad(w, (m, m))[torch.arange(m), m + torch.arange(m) + o] for o in offsets])
    assert_close(values, expected, "values", **NORMAL)


@exercise("dia_spmv", points=0)
@some
@given(random=generators(), case=st.sampled_from(BANDS))
def test_every_diagonal_meets_a_shifted_x(student, random, case):
    """Row i and diagonal j want x[i + offsets[j]]. Where that is outside of x the value is 0: any x will do, such as that of clamp."""
    (m, k), offsets = case
    w, x = banded((m, k), offsets, random), normal((k,), random)
    values = torch.stack([F.pad(w, (m, m))[torch.arange(m), m + torch.arange(m) + o] for o in offsets])
    a = {"values": values, "offsets": torch.tensor(offsets, dtype=torch.int64), "shape": (m, k)}
    assert_close(student.dia_spmv(a, x), w @ x, "y", **NORMAL)


# ---------------------------------------------------------------- optional: sparse_activation

def unpacked(result, x: Tensor) -> Tensor:
    values, bits = fields(result, {"values": 1, "bits": 1}, x.shape)
    assert_that(bits.dtype == torch.uint8 and len(bits) == -(-x.numel() // 8), f"bits must be uint8, {-(-x.numel() // 8)} of them: a bit for each number.")
    kept = torch.stack([bits.long() // 2**i % 2 for i in range(8)], -1).flatten().bool()
    assert_that(not bool(kept[x.numel():].any()), "The bits beyond the last number must be 0.")
    assert_that(int(kept.sum()) == len(values), f"{int(kept.sum())} bits are set, but there are {len(values)} values.")
    out = values.new_zeros(x.numel())
    out[kept[:x.numel()]] = values
    return out.view(x.shape)


@exercise("sparse_activation", points=0)
@some
@given(random=generators(), shape=st.sampled_from([(3, 5), (2, 8), (1, 1), (4, 7)]), threshold=st.sampled_from([0.0, 0.5, 1.0, 9.0]))
def test_large_numbers_are_kept_and_a_bit_for_each(student, random, shape, threshold):
    """Kept is what has a magnitude above the threshold. Bit i of byte j tells of number 8 j + i."""
    x = normal(shape, random)
    x[0, 0] = threshold     # not above it
    result = student.sparse_activation(x, threshold)
    assert_close(unpacked(result, x), torch.where(x.abs() > threshold, x, 0.0), "the activations, spread out", **NORMAL)
    count = int((x.abs() > threshold).sum())
    assert_that(len(result["values"]) == count, f"values has {len(result['values'])} numbers; {count} are above the threshold.")


# ---------------------------------------------------------------- speed

SIZE, EXAMPLES, CALLS = 2048, 128, 16


def layers(seed: int, size: int = SIZE, n: int = EXAMPLES, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[dict, Tensor]:
    """A square matrix, nine in ten of its blocks of 64 zero, in BSR and (under "dense", for the baseline) plain; and x."""
    random, b = torch.Generator(device).manual_seed(seed), 64
    side = size // b
    grid = torch.rand(side, side, generator=random, device=device)
    kept = grid <= grid.flatten().kthvalue(side * side // 10).values
    places = kept.nonzero()
    # As large as keeps the size of x about 1 when it goes through many times.
    blocks = (torch.randn(len(places), b, b, generator=random, device=device) / (size / 10) ** 0.5).to(dtype)
    dense = torch.zeros(size, size, device=device, dtype=dtype)
    dense.view(side, b, side, b)[places[:, 0], :, places[:, 1]] = blocks
    starts = torch.searchsorted(places[:, 0].contiguous(), torch.arange(side + 1, device=device))
    w = {"blocks": blocks, "columns": places[:, 1].contiguous(), "starts": starts, "shape": (size, size),
         "dense": dense}
    return w, torch.randn(size, n, generator=random, device=device).to(dtype)


def one_after_the_other(product: Callable, w: dict, x: Tensor) -> Tensor:
    for _ in range(CALLS):
        x = product(w, x)
    return x


def nonzero_blocks_limit() -> tuple[float, str]:
    operations = 2 * CALLS * (SIZE // 64) ** 2 // 10 * 64**2 * EXAMPLES
    return operations / timing.peak_flops("cpu"), f"{operations / 1e9:.1f} billion operations, those of the blocks, at this machine's peak"


@speed("bsr_matmul", points=10, ratio=2, inputs=layers, work=one_after_the_other, limit=nonzero_blocks_limit, rtol=1e-2, atol=1e-3)
def plain_product(w, x):
    """2048 x 2048 weights, nine in ten blocks of 64 zero, times 128 examples, against the plain product."""
    return w["dense"] @ x


GPU_SIZE = 4096


def gpu_type() -> torch.dtype:
    return torch.bfloat16 if describe().bf16_tensor_cores else torch.float16


def gpu_layers(seed: int) -> tuple[dict, Tensor]:
    return layers(seed, GPU_SIZE, GPU_SIZE, "cuda", gpu_type())


def gpu_work(product: Callable, w: dict, x: Tensor) -> Tensor:
    """The mean square of every row and column, so that little has to be handed over."""
    squares = one_after_the_other(product, w, x).float().square()
    return torch.cat([squares.mean(1), squares.mean(0)])


def gpu_limit() -> tuple[float, str]:
    operations = 2 * CALLS * (GPU_SIZE // 64) ** 2 // 10 * 64**2 * GPU_SIZE
    moved = CALLS * 2 * (2 * GPU_SIZE**2 + GPU_SIZE**2 // 10)
    arithmetic, memory = operations / timing.peak_flops("cuda", gpu_type()), moved / timing.memory_bandwidth("cuda")
    return max(arithmetic, memory), (f"{operations / 1e9:.0f} billion operations at this GPU's peak" if arithmetic > memory else
                                     f"{moved / 1e6:.0f} MB, each number once, at the speed of a copy")


@speed("block_sparse_matmul", points=5, ratio=3, inputs=gpu_layers, work=gpu_work, limit=gpu_limit, requires=kernels.without_gpu,
       rtol=5e-2, atol=5e-2)
def cublas_product(w, x):
    """4096 x 4096 weights in 16 bits, nine in ten blocks of 64 zero, times 4096 examples on the GPU, against the plain product."""
    return w["dense"] @ x


# ---------------------------------------------------------------- probes

def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Fixed numbers of some size and sign, float64."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase).reshape(shape)


def holes(m: int, k: int, b: int, phase: float = 0.0) -> Tensor:
    """A fixed matrix with a third of its blocks zero, the last block row and the last block column among them."""
    rows, columns = torch.arange(m)[:, None] // b, torch.arange(k) // b
    kept = ((rows + 2 * columns) % 3 != 1) & (rows < -(-m // b) - 1) & (columns < -(-k // b) - 1)
    return waves(m, k, phase=phase) * kept


def attempt(function: Callable, *args):
    """What came, or that an exception came: that is an answer too."""
    try:
        return function(*args)
    except StudentError:
        return "an exception"


def coarse(result):
    """Rounded: kernels do not agree in every digit."""
    return result if type(result) is str else result.double().mul(1e3).round().div(1e3)


SMALL = holes(6, 5, 1)


@probe("to_csr")
def csr_of_a_matrix(student):
    return student.to_csr(SMALL), attempt(student.to_csr, waves(3, 4, phase=0.5))


@probe("csr_spmv")
def spmv_of_squares(student):
    return student.csr_spmv(csr(holes(6, 6, 1)), waves(6, phase=1.0)), attempt(student.csr_spmv, csr(SMALL), waves(5, phase=1.0))


@probe("csr_spmv")
def spmv_that_loses_digits_or_multiplies_zeros(student):
    w, x = torch.ones(21, 40), waves(40, phase=1.0).float()
    w[:20] = 10_000 * (2 + waves(20, 40)).float()
    y = attempt(student.csr_spmv, csr(w), x)
    infinite = attempt(student.csr_spmv, csr(torch.eye(3, 4)), torch.tensor([1.0, 2, 3, math.inf]))
    return [a if type(a) is str else right(a) for a, right in ((y, lambda a: bool((a[-1] - x.sum()).abs() < 1e-3)),
                                                                (infinite, lambda a: bool(a.isfinite().all())))]


@probe("csr_spmv")
def many_rows_at_once(student):
    m = 30_000
    a = {"values": torch.ones(m), "columns": torch.zeros(m, dtype=torch.int64), "starts": torch.arange(m + 1), "shape": (m, 1)}
    y, seconds = timed(attempt, student.csr_spmv, a, torch.ones(1), enough=0.1)
    return y if type(y) is str else ("fast" if seconds < 0.1 else "slow", y.sum())


@probe("to_bsr")
def bsr_of_matrices(student):
    return [attempt(student.to_bsr, holes(m, k, 2), 2) for m, k in ((6, 6), (5, 7))]


@probe("to_bsr")
def bsr_of_what_cancels(student):
    return attempt(student.to_bsr, torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]), 2)


@probe("bsr_matmul")
def bsr_products(student):
    return [attempt(student.bsr_matmul, bsr(w, 2), waves(w.shape[1], 3, phase=2.0)) for w in (waves(6, 6), holes(6, 6, 2), waves(5, 7), holes(5, 7, 2))]


@probe("block_sparse_matmul")
def kernel_products(student):
    if kernels.without_triton():
        return "no Triton"
    return [coarse(attempt(student.block_sparse_matmul, single(w, 16), waves(w.shape[1], n, phase=2.0).float()))
            for w, n in ((waves(32, 32), 16), (waves(20, 40), 7), (waves(16, 16), 70))]


@probe("block_sparse_matmul")
def kernel_traps(student):
    """An empty block row, half precision, and autograd, coarsely."""
    if kernels.without_triton():
        return "no Triton"
    w = waves(32, 32)
    w[16:] = 0
    empty = attempt(student.block_sparse_matmul, single(w, 16), waves(32, 16).float())
    a, d = waves(16, 16).half().double(), (16 * waves(16, 16, phase=2.0)).round() / 16
    e, x = (16 * waves(16, 16, phase=3.0)).round() / 16, (50 * waves(16, 4, phase=0.5)).half()
    half = attempt(student.block_sparse_matmul, single(torch.cat([d + e, a, -d, -e], 1), 16, torch.float16), torch.cat([x, x / 64, x, x]))
    off = "an exception" if type(half) is str else bool((half.double() - a @ (x / 64).double()).abs().max() < 5e-3)
    _, through = student.block_sparse_matmul.vjp(single(waves(16, 16), 16), waves(16, 4).float(), cotangent=torch.ones(16, 4))
    return type(empty) is not str and bool((empty[16:] == 0).all()), off, all(g is None for g in through)


@probe("bsr_transpose")
def bsr_transposed(student):
    return [attempt(student.bsr_transpose, bsr(w, 2)) for w in (waves(6, 4), holes(6, 8, 2), holes(5, 7, 2))]


@probe("sampled_matmul")
def sampled_products(student):
    if kernels.without_triton():
        return "no Triton"
    return [coarse(attempt(student.sampled_matmul, waves(m, n).float(), waves(k, n, phase=1.0).float(), single(waves(m, k, phase=0.5), 16)))
            for m, k, n in ((16, 32, 16), (20, 16, 7), (16, 16, 70))]


@probe("sampled_matmul")
def sampled_traps(student):
    """Half precision and autograd, coarsely."""
    if kernels.without_triton():
        return "no Triton"
    g, x, w = waves(16, 64).half(), (10 * waves(16, 64, phase=1.0)).half(), single(waves(16, 16), 16, torch.float16)
    d, e = ((16 * waves(16, 64, phase=phase)).round() / 16 for phase in (2.0, 3.0))
    half = attempt(student.sampled_matmul, torch.cat([d + e, g, -d, -e], 1).half(), torch.cat([x, x / 64, x, x], 1), w)
    expected = g.double() @ (x / 64).double().T
    off = "an exception" if type(half) is str else bool((half[0].double() - expected).abs().max() < 5e-3)
    _, through = student.sampled_matmul.vjp(g[:, :4].float(), x[:, :4].float(), single(waves(16, 16), 16), cotangent=torch.ones(1, 16, 16))
    return off, all(t is None for t in through)


@probe("prune_2_4")
def pruned(student):
    return student.prune_2_4(waves(4, 8) * torch.tensor([1.0, 1, 1, 1, 5, 5, 5, 5])), (attempt(student.prune_2_4, torch.ones(4, 4)) != 0).sum()


@probe("compress_2_4")
def compressed(student):
    w = waves(2, 16, phase=0.3) * torch.tensor([1.0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0])     # two in every group
    less = torch.tensor([[0.0, 0, 0, 1, 0, 0, 0, 0]])   # which place a zero gets is free
    return attempt(student.compress_2_4, w), type(attempt(student.compress_2_4, less)) is str


@probe("transposable_mask_4x4")
def masks(student):
    return [attempt(student.transposable_mask_4x4, waves(8, 12, phase=phase) ** 3) for phase in (0.0, 23.0)]


@probe("to_coo")
def coo_of_a_matrix(student):
    return student.to_coo(SMALL)


@probe("coo_spmv")
def coo_product(student):
    w = holes(6, 6, 1)
    places = w.nonzero().T.contiguous()
    return student.coo_spmv({"values": w[w != 0], "rows": places[0], "columns": places[1], "shape": (6, 6)}, waves(6, phase=1.0))


@probe("to_ell")
def ell_of_a_matrix(student):
    return student.to_ell(SMALL)


@probe("ell_spmv")
def ell_product(student):
    return attempt(student.ell_spmv, ell(holes(6, 6, 1)), waves(6, phase=1.0))


@probe("to_dia")
def dia_of_a_matrix(student):
    w = sum(waves(5, 5, phase=float(o)).tril(o).triu(o) for o in (-2, 0, 1))
    return student.to_dia(w)


@probe("dia_spmv")
def dia_product(student):
    cases = [((5, 5), [-2, 0, 1]), ((3, 6), [0, 2, 3])]     # the second stays inside of the matrix
    return [attempt(student.dia_spmv, {"values": waves(3, shape[0]), "offsets": torch.tensor(offsets), "shape": shape}, waves(shape[1], phase=1.0))
            for shape, offsets in cases]


@probe("sparse_activation")
def sparse_activations(student):
    return student.sparse_activation(waves(3, 5), 0.5)
