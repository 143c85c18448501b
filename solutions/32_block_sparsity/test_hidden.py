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
some, few, generators, fresh, normal, sparse = (visible.some, visible.few, visible.generators, visible.fresh, visible.normal, visible.sparse)
NORMAL, SINGLE, SHAPES, EVEN, RAGGED, HALVES = (visible.NORMAL, visible.SINGLE, visible.SHAPES, visible.EVEN, visible.RAGGED, visible.HALVES)
fields, csr, bsr, single, spread, tiled = visible.fields, visible.csr, visible.bsr, visible.single, visible.spread, visible.tiled


def assert_int64(*named: tuple[str, torch.Tensor]) -> None:
    for name, t in named:
        assert_that(t.dtype == torch.int64, f"{name} must be int64, not {t.dtype}.")


# ---------------------------------------------------------------- csr

@exercise("to_csr", points=2)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_values_keep_their_type_and_a_matrix_of_zeros_has_none(student, random, dtype):
    """values have the dtype of w, columns and starts are int64. Of zeros only m + 1 starts are left."""
    w = sparse(5, 4, 0.6, random).to(dtype)
    for matrix in (w, torch.zeros(3, 2, dtype=dtype)):
        values, columns, starts = fields(student.to_csr(matrix), visible.CSR, tuple(matrix.shape))
        assert_int64(("columns", columns), ("starts", starts))
        expected = csr(matrix)
        assert_close([values, columns, starts], [expected[name] for name in visible.CSR], "values, columns, starts")


@exercise("csr_spmv", points=2)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_product_has_the_type_of_its_factors(student, random, dtype):
    """float32 stays float32; a matrix without any number gives m zeros."""
    w, x = sparse(7, 5, 0.5, random).to(dtype), normal((5,), random, dtype)
    assert_close(student.csr_spmv(csr(w), x), w @ x, "y", **SINGLE)
    assert_close(student.csr_spmv(csr(torch.zeros(7, 5, dtype=dtype)), x), torch.zeros(7, dtype=dtype), "y of zeros")


# ---------------------------------------------------------------- bsr

@exercise("to_bsr", points=1)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_blocks_keep_their_type_and_may_be_larger_than_the_matrix(student, random, dtype):
    """blocks have the dtype of w, columns and starts are int64. A matrix of zeros has blocks of shape [0, b, b]."""
    w = sparse(3, 5, 0.6, random).to(dtype)
    w[0, 0] = 1
    for matrix in (w, torch.zeros(3, 5, dtype=dtype)):
        blocks, columns, starts = fields(student.to_bsr(matrix, 8), visible.BSR, (3, 5))
        assert_int64(("columns", columns), ("starts", starts))
        expected = bsr(matrix, 8)
        assert_close([blocks, columns, starts], [expected[name] for name in visible.BSR], "blocks, columns, starts")


@exercise("bsr_matmul", points=2)
@few
@given(random=generators(), case=st.sampled_from([(33, 20, 16), (20, 50, 8)]), n=st.integers(1, 9))
def test_larger_products_in_float32(student, random, case, n):
    """float32 stays float32, whatever the size of the blocks."""
    m, k, b = case
    w, x = sparse(m, k, 0.4, random, b), normal((k, n), random)
    assert_close(student.bsr_matmul(single(w, b), x.float()), (w @ x).float(), "Y", **SINGLE)


@exercise("block_sparse_matmul", points=2, requires=kernels.without_triton)
def test_blocks_may_be_of_another_size(student):
    """B comes with the launch: b is 16, 32 or 64."""
    random = fresh()
    for b in (32, 64):
        w, x = sparse(b + 5, 2 * b - 3, 0.8, random, b), normal((2 * b - 3, 9), random)
        visible.assert_product(student, w, x, b)


@exercise("block_sparse_matmul", points=1, requires=kernels.without_triton)
def test_every_tile_of_columns_has_a_program(student):
    """The grid is (block rows, ceil(n / N)), and tile number t begins at column t * N."""
    random = fresh()
    for n in (66, 129):
        visible.assert_product(student, sparse(16, 20, 1.0, random), normal((20, n), random))


@exercise("bsr_transpose", points=3)
@few
@given(random=generators(), density=st.sampled_from([0.0, 0.5, 1.0]))
def test_twice_transposed_is_as_before(student, random, density):
    """Ragged edges and empty rows and columns too: the new matrix has ceil(k / b) block rows and the shape (k, m)."""
    for (shape, b), share in ((case, share) for case in RAGGED for share in {0.0, density}):
        w = sparse(*shape, share, random, b)
        turned = visible.transposed(student, w, b)
        assert_close(spread(turned, b), w.T, "the transposed matrix", **NORMAL)
        assert_int64(("columns", turned["columns"]), ("starts", turned["starts"]))
        again = student.bsr_transpose({name: turned[name] for name in (*visible.BSR, "shape")})
        assert_close({name: again[name] for name in visible.BSR}, {name: bsr(w, b)[name] for name in visible.BSR}, "the transpose of the transpose", **NORMAL)


@exercise("sampled_matmul", points=1, requires=kernels.without_triton)
def test_gradients_of_larger_blocks(student):
    """B comes with the launch, and N is not B. A matrix without blocks has no gradient: shape [0, b, b]."""
    random = fresh()
    for b in (32, 64):
        visible.assert_sampled(student, sparse(b + 3, b - 2, 1.0, random, b), 20, random, b)
        empty = student.sampled_matmul(torch.ones(4, 3), torch.ones(5, 3), single(torch.zeros(4, 5, dtype=torch.float64), b))
        assert_close(empty, torch.zeros(0, b, b), "the gradient without blocks")


# ---------------------------------------------------------------- 2:4

@exercise("prune_2_4", points=1)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_the_pruned_matrix_keeps_its_type(student, random, dtype):
    """Zeros of the dtype of w, and groups of zeros stay zeros."""
    w = visible.magnitudes(3, 8, random).to(dtype)
    w[1, :4] = 0
    got = student.prune_2_4(w)
    tiles = w.view(3, 2, 4)
    second = tiles.abs().sort(-1).values[..., 2:3]
    assert_close(got, torch.where(tiles.abs() >= second, tiles, 0.0).view(3, 8), "the pruned matrix")


@exercise("compress_2_4", points=1)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_compressed_values_keep_their_type(student, random, dtype):
    """values have the dtype of w; negative numbers count by their magnitude."""
    w = -visible.two_of_four(4, 6, random).abs().to(dtype)
    result = student.compress_2_4(w)
    assert_close(visible.decompressed(result, (4, 24)), w, "the matrix, decompressed")
    assert_that(tuple(result["shape"]) == (4, 24), f"shape must be (4, 24), not {result['shape']}.")


@exercise("transposable_mask_4x4", points=1)
@few
@given(random=generators(), shape=st.sampled_from([(8, 12), (16, 4)]))
def test_masks_of_float32_weights(student, random, shape):
    """The patterns are bool, the weights float32: convert the patterns for the product."""
    w = normal(shape, random, torch.float32)
    mask = visible.is_mask(student.transposable_mask_4x4(w), w)
    kept = (visible.cut(w.abs()) * visible.cut(mask)).sum((2, 3)).double()
    assert_close(kept, visible.most_of_all_patterns(w), "the magnitude that is kept of each block", rtol=1e-5)
