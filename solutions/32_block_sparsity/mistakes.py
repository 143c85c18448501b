"""Known wrong answers to lab 32. Each docstring speaks to the student who made the mistake."""
from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F

from course import kernels
from course.kernels import tl, triton
from course.spec import mistake


def _csr(values, columns, starts, w):
    return {"values": values, "columns": columns, "starts": starts, "shape": tuple(w.shape)}


def _starts(counts):
    return F.pad(counts.cumsum(0), (1, 0))


def _rows(starts):
    return torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())


# ---------------------------------------------------------------- to_csr

@mistake("to_csr", caught_by="test_starts_tell_where_each_row_begins_and_ends")
def counts_for_starts(w):
    """Your starts hold how many numbers each row has. They must tell where each row begins: add the counts up."""
    rows, columns = w.nonzero(as_tuple=True)
    return _csr(w[rows, columns], columns, F.pad((w != 0).sum(1), (1, 0)), w)


@mistake("to_csr", caught_by="test_starts_tell_where_each_row_begins_and_ends")
def starts_without_the_zero(w):
    """Your starts begin with the end of the first row. Put a 0 in front: m + 1 numbers."""
    rows, columns = w.nonzero(as_tuple=True)
    return _csr(w[rows, columns], columns, (w != 0).sum(1).cumsum(0), w)


@mistake("to_csr", caught_by="test_starts_tell_where_each_row_begins_and_ends")
def starts_without_the_end(w):
    """Your starts have m numbers: the end of the last row is missing, and it is nobody's beginning."""
    rows, columns = w.nonzero(as_tuple=True)
    return _csr(w[rows, columns], columns, _starts((w != 0).sum(1))[:-1], w)


@mistake("to_csr", caught_by="test_starts_tell_where_each_row_begins_and_ends")
def last_rows_not_counted(w):
    """bincount ends with the last row that has a number, so that your starts are too short where the last rows are empty. Give it
    minlength."""
    rows, columns = w.nonzero(as_tuple=True)
    return _csr(w[rows, columns], columns, _starts(torch.bincount(rows)), w)


@mistake("to_csr", caught_by="test_values_and_columns_follow_the_rows_from_left_to_right")
def column_after_column(w):
    """Your values go down the columns: that order belongs to CSC, compressed sparse columns. Go along the rows."""
    columns, rows = w.T.nonzero(as_tuple=True)
    return _csr(w[rows, columns], columns, _starts((w != 0).sum(1)), w)


@mistake("to_csr", caught_by="test_values_and_columns_follow_the_rows_from_left_to_right")
def rows_for_columns(w):
    """Your columns hold the row of each number. The rows are told by starts already; store the second index."""
    rows, columns = w.nonzero(as_tuple=True)
    return _csr(w[rows, columns], rows, _starts((w != 0).sum(1)), w)


@mistake("to_csr", caught_by="test_values_and_columns_follow_the_rows_from_left_to_right")
def negative_numbers_forgotten(w):
    """You keep what is larger than zero. Negative numbers are not zero either."""
    rows, columns = (w > 0).nonzero(as_tuple=True)
    return _csr(w[rows, columns], columns, _starts((w > 0).sum(1)), w)


# ---------------------------------------------------------------- csr_spmv

@mistake("csr_spmv", caught_by="test_a_hundred_thousand_rows_need_no_loop")
def loop_over_the_rows(a, x):
    """The numbers are right, but a Python loop over the rows makes them. Multiply all values at once, and add each product to its row
    with index_add_."""
    y, starts = a["values"].new_zeros(a["shape"][0]), a["starts"].tolist()
    for i, (first, end) in enumerate(zip(starts, starts[1:])):
        y[i] = (a["values"][first:end] * x[a["columns"][first:end]]).sum()
    return y


@mistake("csr_spmv", caught_by="test_a_hundred_thousand_rows_need_no_loop")
def by_the_plain_matrix(a, x):
    """You write the numbers into a plain matrix and multiply that, its zeros too: nothing is saved. Multiply the stored values only."""
    plain = a["values"].new_zeros(a["shape"])
    plain[_rows(a["starts"]), a["columns"]] = a["values"]
    return plain @ x


@mistake("csr_spmv", caught_by="test_each_row_is_the_sum_of_its_products")
def differences_of_running_sums(a, x):
    """Your rows are differences of one long running sum, and in float32 a row of small numbers after large ones loses its digits.
    Add each row up by itself: index_add_."""
    return F.pad((a["values"] * x[a["columns"]]).cumsum(0), (1, 0))[a["starts"]].diff()


@mistake("csr_spmv", caught_by="test_each_row_is_the_sum_of_its_products")
def x_of_the_row(a, x):
    """You multiply each value by the x of its row. It wants the x of its column: x[columns]."""
    rows = _rows(a["starts"])
    return a["values"].new_zeros(a["shape"][0]).index_add_(0, rows, a["values"] * x[rows])


@mistake("csr_spmv", caught_by="test_each_row_is_the_sum_of_its_products")
def last_product_only(a, x):
    """You assign the products to their rows, and of several for one row only one is left. Add them: index_add_."""
    y = a["values"].new_zeros(a["shape"][0])
    y[_rows(a["starts"])] = a["values"] * x[a["columns"]]
    return y


@mistake("csr_spmv", caught_by="test_each_row_is_the_sum_of_its_products")
def transposed_product(a, x):
    """You add the products up by column: that is the transposed matrix times x. Gather x by column, and add up by row."""
    rows = _rows(a["starts"])
    return a["values"].new_zeros(a["shape"][1]).index_add_(0, a["columns"], a["values"] * x[rows])


@mistake("csr_spmv", caught_by="test_each_row_is_the_sum_of_its_products")
def empty_rows_left_out(a, x):
    """Your y has no place for rows without numbers. It has m numbers, whatever is in the rows."""
    _, place = _rows(a["starts"]).unique(return_inverse=True)
    return a["values"].new_zeros(int(place.max()) + 1 if len(place) else 0).index_add_(0, place, a["values"] * x[a["columns"]])


@mistake("csr_spmv", caught_by="test_each_row_is_the_sum_of_its_products")
def without_x(a, x):
    """You add the values up and leave x out. Multiply each value by x[columns] first."""
    return a["values"].new_zeros(a["shape"][0]).index_add_(0, _rows(a["starts"]), a["values"])


# ---------------------------------------------------------------- to_bsr

def _tiles(w, b):
    m, k = w.shape
    return F.pad(w, (0, -k % b, 0, -m % b)).unflatten(0, (-1, b)).unflatten(2, (-1, b)).transpose(1, 2)


def _stored(tiles, kept, w, scale=1):
    return {"blocks": tiles[kept], "columns": scale * kept.nonzero()[:, 1], "starts": _starts(kept.sum(1)), "shape": tuple(w.shape)}


@mistake("to_bsr", caught_by="test_a_block_whose_numbers_cancel_is_kept")
def by_the_sum_of_the_block(w, b):
    """You keep blocks whose sum is not zero. 1 and -1 have the sum 0 and are not zero: ask whether any number is not."""
    tiles = _tiles(w, b)
    return _stored(tiles, tiles.sum((2, 3)) != 0, w)


@mistake("to_bsr", caught_by="test_blocks_at_the_ragged_edge_are_filled_with_zeros")
def edge_cut_off(w, b):
    """You drop what is left over at the edge. Pad the matrix up to the next multiple of b instead."""
    m, k = w.shape
    tiles = w[:m // b * b, :k // b * b].unfold(0, b, b).unfold(1, b, b) if m >= b and k >= b else w.new_zeros(m // b, k // b, b, b)
    return _stored(tiles, (tiles != 0).flatten(2).any(2), w)


@mistake("to_bsr", caught_by="test_blocks_at_the_ragged_edge_are_filled_with_zeros")
def padded_in_front(w, b):
    """You pad above and to the left, and all blocks are shifted. Pad below and to the right: F.pad takes left before right, and the last
    dimension first."""
    m, k = w.shape
    tiles = _tiles(F.pad(w, (-k % b, 0, -m % b, 0)), b)
    return _stored(tiles, (tiles != 0).flatten(2).any(2), w)


@mistake("to_bsr", caught_by="test_blocks_that_hold_a_number_are_kept_in_order")
def cut_like_a_ribbon(w, b):
    """You reshape to [..., b, b] without moving dimensions: b * b numbers that follow each other in a row are no block. Cut both dimensions, then
    transpose the two in the middle."""
    m, k = w.shape
    tiles = F.pad(w, (0, -k % b, 0, -m % b)).reshape(-(-m // b), -(-k // b), b, b)
    return _stored(tiles, (tiles != 0).flatten(2).any(2), w)


@mistake("to_bsr", caught_by="test_blocks_that_hold_a_number_are_kept_in_order")
def blocks_lie_on_their_side(w, b):
    """Each of your blocks is transposed. After the cut the order is block row, row in it, block column, column in it."""
    tiles = _tiles(w, b)
    return _stored(tiles.transpose(2, 3), (tiles != 0).flatten(2).any(2), w)


@mistake("to_bsr", caught_by="test_blocks_that_hold_a_number_are_kept_in_order")
def columns_in_numbers(w, b):
    """Your columns count single columns. Count blocks: divide by b."""
    tiles = _tiles(w, b)
    return _stored(tiles, (tiles != 0).flatten(2).any(2), w, b)


@mistake("to_bsr", caught_by="test_blocks_that_hold_a_number_are_kept_in_order")
def zero_blocks_kept(w, b):
    """You store every block, also those of zeros: nothing is saved."""
    tiles = _tiles(w, b)
    return _stored(tiles, torch.ones(tiles.shape[:2], dtype=torch.bool), w)


# ---------------------------------------------------------------- bsr_matmul

def _product(w, x, turned=False, by_row=False, uncut=False, front=False, overwritten=False, dropped=False):
    (m, k), b, rows = w["shape"], w["blocks"].shape[-1], _rows(w["starts"])
    gap = -k % b
    pieces = F.pad(x, (0, 0, gap, 0) if front else (0, 0, 0, gap)).unflatten(0, (-1, b))
    products = (w["blocks"].mT if turned else w["blocks"]) @ pieces[rows if by_row else w["columns"]]
    if dropped:
        rows = rows.unique(return_inverse=True)[1]
    y = products.new_zeros(int(rows.max()) + 1 if dropped and len(rows) else 0 if dropped else len(w["starts"]) - 1, b, x.shape[1])
    if overwritten:
        y[rows] = products
    else:
        y.index_add_(0, rows, products)
    return y.flatten(0, 1) if uncut else y.flatten(0, 1)[:m]


@mistake("bsr_matmul", caught_by="test_block_rows_are_sums_of_block_products")
def last_block_only(w, x):
    """You assign the products to their block rows, and of several only one is left. Add them: index_add_."""
    return _product(w, x, overwritten=True)


@mistake("bsr_matmul", caught_by="test_block_rows_are_sums_of_block_products")
def blocks_turned(w, x):
    """You multiply by the transposed blocks. blocks @ pieces, as they are."""
    return _product(w, x, turned=True)


@mistake("bsr_matmul", caught_by="test_block_rows_are_sums_of_block_products")
def pieces_of_the_row(w, x):
    """You take the piece of X that belongs to the block's row. Take that of its column: pieces[columns]."""
    return _product(w, x, by_row=True)


@mistake("bsr_matmul", caught_by="test_ragged_products_have_the_size_of_the_matrix")
def padding_left_in_the_result(w, x):
    """Your Y has the rows of the padding too. Leave out those from m on."""
    return _product(w, x, uncut=True)


@mistake("bsr_matmul", caught_by="test_ragged_products_have_the_size_of_the_matrix")
def x_padded_above(w, x):
    """You pad X above its first row, and every piece is shifted. Pad below: F.pad(x, (0, 0, 0, -k % b))."""
    return _product(w, x, front=True)


@mistake("bsr_matmul", caught_by="test_block_rows_without_blocks_are_zero")
def empty_block_rows_left_out(w, x):
    """Your Y has no place for block rows without blocks. Begin with zeros for all len(starts) - 1 of them."""
    return _product(w, x, dropped=True)


# ---------------------------------------------------------------- block_sparse_matmul

@triton.jit
def _kernel(blocks_ptr, columns_ptr, starts_ptr, x_ptr, y_ptr, m, k, n, B: tl.constexpr, N: tl.constexpr, WRONG: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    i, j = tl.arange(0, B), tile * N + tl.arange(0, N)
    if WRONG == "tile":
        j = tl.arange(0, N)
    total = tl.zeros((B, N), dtype=tl.float32)
    at_y = row * B + i
    if WRONG == "row":
        at_y = row + i
    for s in range(tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)):
        places = i[:, None] * B + i[None, :]
        if WRONG == "turned":
            places = i[None, :] * B + i[:, None]
        block = tl.load(blocks_ptr + s * B * B + places)
        at = tl.load(columns_ptr + s) * B + i
        if WRONG == "columns":
            at = tl.load(columns_ptr + s) + i
        there = k
        if WRONG == "m for k":
            there = tl.minimum(m, k)    # beyond k the interpreter would stop
        x = tl.load(x_ptr + at[:, None] * n + j[None, :], mask=(at[:, None] < there) & (j[None, :] < n), other=0.0)
        if WRONG == "first":
            total = tl.dot(block, x, input_precision="ieee")
        else:
            total = tl.dot(block, x, total, input_precision="ieee")
        if WRONG == "half":
            total = total.to(y_ptr.dtype.element_ty).to(tl.float32)
        if WRONG == "inside":
            tl.store(y_ptr + at_y[:, None] * n + j[None, :], total, mask=(at_y[:, None] < m) & (j[None, :] < n))
    if WRONG != "inside":
        tl.store(y_ptr + at_y[:, None] * n + j[None, :], total, mask=(at_y[:, None] < m) & (j[None, :] < n))


def _launch(w, x, wrong, N=0):
    (m, k), n, b = w["shape"], x.shape[1], w["blocks"].shape[-1]
    blocks, columns, starts, there = kernels.ready(w["blocks"], w["columns"], w["starts"], x)
    y = there.new_full((m, n), math.nan)    # what no program stores is anything
    N = N or min(64, max(16, triton.next_power_of_2(n)))
    _kernel[len(starts) - 1, triton.cdiv(n, N)](blocks, columns, starts, there, y, m, k, n, B=b, N=N, WRONG=wrong)
    return y.to(x.device, x.dtype)


@mistake("block_sparse_matmul", caught_by="test_programs_without_blocks_store_zeros")
def stored_inside_the_loop(w, x):
    """You store inside the loop. A row without blocks never gets there, and its part of Y holds whatever was in the memory before. Store once,
    after the loop."""
    return _launch(w, x, "inside")


@mistake("block_sparse_matmul", caught_by="test_the_kernel_sums_the_blocks_of_its_row")
def sum_begun_anew(w, x):
    """Each block's product replaces the one before. Give the sum to tl.dot as its third argument, or add the product to it."""
    return _launch(w, x, "first")


@mistake("block_sparse_matmul", caught_by="test_the_kernel_sums_the_blocks_of_its_row")
def column_not_times_b(w, x):
    """You load the rows of x from columns[s] on. columns counts blocks: the piece begins at row columns[s] * B."""
    return _launch(w, x, "columns")


@mistake("block_sparse_matmul", caught_by="test_the_kernel_sums_the_blocks_of_its_row")
def row_not_times_b(w, x):
    """You store from row number `row` of y on. Block row `row` begins at row * B."""
    return _launch(w, x, "row")


@mistake("block_sparse_matmul", caught_by="test_edges_of_the_kernel_are_masked")
def rows_of_x_below_m(w, x):
    """You mask the rows of x with m, the number of rows of y. X has k rows: at < k."""
    return _launch(w, x, "m for k")


@mistake("block_sparse_matmul", caught_by="test_the_kernel_sums_the_blocks_of_its_row")
def block_read_across(w, x):
    """You load each block transposed. Its rows follow each other in the memory: i[:, None] * B + i[None, :]."""
    return _launch(w, x, "turned")


@mistake("block_sparse_matmul", caught_by="test_half_precision_is_summed_in_float32")
def sum_in_half_precision(w, x):
    """Your sum is rounded to the type of y after each block, and what has been rounded off does not come back. Begin with
    tl.zeros((B, N), dtype=tl.float32)."""
    return _launch(w, x, "half")


@mistake("block_sparse_matmul", caught_by="test_every_tile_of_columns_has_a_program")
def first_tile_only(w, x):
    """All your programs work on the first N columns. A program's columns begin at tile * N."""
    return _launch(w, x, "tile")


@mistake("block_sparse_matmul", caught_by="test_the_product_is_the_kernels")
def torchs_product_for_the_kernel(w, x):
    """The numbers are right, but torch's own operations made them: no kernel of yours is at work. Launch block_sparse_kernel and return
    y, into which it stores."""
    return _product(w | {"blocks": w["blocks"].float()}, x.float()).to(x.dtype)


# ---------------------------------------------------------------- bsr_transpose

def _transpose(w, order=None, turned=True, columns=None, starts=None, shape=None):
    (m, k), b = w["shape"], w["blocks"].shape[-1]
    order = w["columns"].argsort(stable=True) if order is None else order
    blocks = w["blocks"][order]
    return {"blocks": blocks.transpose(1, 2) if turned else blocks, "columns": _rows(w["starts"])[order] if columns is None else columns(order),
            "starts": _starts(torch.bincount(w["columns"], minlength=-(-k // b))) if starts is None else starts, "shape": shape or (k, m)}


@mistake("bsr_transpose", caught_by="test_spread_out_it_is_the_transposed_matrix")
def blocks_stay_upright(w):
    """You move the blocks to their new places but do not transpose each of them."""
    return _transpose(w, turned=False)


@mistake("bsr_transpose", caught_by="test_spread_out_it_is_the_transposed_matrix")
def blocks_stay_in_order(w):
    """You transpose each block and leave them in their old order. In the new matrix those with the lowest old column come first: sort
    by columns."""
    return _transpose(w, order=torch.arange(len(w["columns"])))


@mistake("bsr_transpose", caught_by="test_spread_out_it_is_the_transposed_matrix")
def old_columns_sorted(w):
    """Your columns are the old columns, sorted. The new column of a block is its old block row."""
    (m, k), b = w["shape"], w["blocks"].shape[-1]
    return _transpose(w, columns=lambda order: w["columns"][order].clamp(max=-(-m // b) - 1))


@mistake("bsr_transpose", caught_by="test_spread_out_it_is_the_transposed_matrix")
def shape_not_swapped(w):
    """The shape of the transpose is (k, m); yours is still (m, k)."""
    return _transpose(w, shape=tuple(w["shape"]))


@mistake("bsr_transpose", caught_by="test_spread_out_it_is_the_transposed_matrix")
def starts_of_the_old_rows(w):
    """Your starts are those of the old block rows. Count how many blocks each old column has (torch.bincount), and add up."""
    return _transpose(w, starts=w["starts"].clone())


@mistake("bsr_transpose", caught_by="test_twice_transposed_is_as_before")
def last_columns_not_counted(w):
    """bincount ends with the largest column that occurs, so that your starts are too short where the last block columns are empty. Give it
    minlength."""
    return _transpose(w, starts=_starts(torch.bincount(w["columns"])))


@mistake("bsr_transpose", caught_by="test_columns_of_the_transpose_still_rise")
def order_of_equals_lost(w):
    """Blocks of one new block row are not in order from left to right: among equal columns your sort does not keep the old order. Use stable=True."""
    order = w["columns"].flip(0).argsort(stable=True)
    return _transpose(w, order=len(order) - 1 - order)


# ---------------------------------------------------------------- sampled_matmul

@triton.jit
def _sampled_kernel(g_ptr, x_ptr, rows_ptr, columns_ptr, out_ptr, m, k, n, B: tl.constexpr, N: tl.constexpr, WRONG: tl.constexpr):
    s, i = tl.program_id(0), tl.arange(0, B)
    row, column = tl.load(rows_ptr + s) * B + i, tl.load(columns_ptr + s) * B + i
    if WRONG == "swapped":
        row, column = tl.load(columns_ptr + s) * B + i, tl.load(rows_ptr + s) * B + i
    total = tl.zeros((B, B), dtype=tl.float32)
    end = n
    if WRONG == "first":
        end = N
    if WRONG == "full":
        end = n // N * N
    for first in range(0, end, N):
        j = first + tl.arange(0, N)
        g = tl.load(g_ptr + row[:, None] * n + j[None, :], mask=(row[:, None] < m) & (j[None, :] < n), other=0.0)
        x = tl.load(x_ptr + column[:, None] * n + j[None, :], mask=(column[:, None] < k) & (j[None, :] < n), other=0.0)
        if WRONG == "last":
            total = tl.dot(g, tl.trans(x), input_precision="ieee")
        else:
            total = tl.dot(g, tl.trans(x), total, input_precision="ieee")
        if WRONG == "half":
            total = total.to(out_ptr.dtype.element_ty).to(tl.float32)
    if WRONG == "mean":
        total = total / n
    places = i[:, None] * B + i[None, :]
    if WRONG == "turned":
        places = i[None, :] * B + i[:, None]
    tl.store(out_ptr + s * B * B + places, total)


def _sampled(g, x, w, wrong):
    (m, k), n, b = w["shape"], x.shape[1], w["blocks"].shape[-1]
    g, there, rows, columns = kernels.ready(g, x, _rows(w["starts"]), w["columns"])
    out, N = there.new_zeros(len(rows), b, b), min(64, max(16, triton.next_power_of_2(n)))
    if len(rows):
        _sampled_kernel[len(rows),](g, there, rows, columns, out, m, k, n, B=b, N=N, WRONG=wrong)
    return out.to(x.device, x.dtype)


@mistake("sampled_matmul", caught_by="test_all_examples_count")
def first_examples_only(g, x, w):
    """Only the first N examples are in your sum. Walk over all n, in steps of N."""
    return _sampled(g, x, w, "first")


@mistake("sampled_matmul", caught_by="test_all_examples_count")
def short_step_left_out(g, x, w):
    """Your loop ends with the last full step of N examples, and the rest of them is lost. Walk up to n; the mask takes care of what is
    beyond."""
    return _sampled(g, x, w, "full")


@mistake("sampled_matmul", caught_by="test_all_examples_count")
def last_examples_only(g, x, w):
    """Each step replaces the sum of those before, and only the last examples are left. Give the sum to tl.dot, or add to it."""
    return _sampled(g, x, w, "last")


@mistake("sampled_matmul", caught_by="test_each_block_gets_the_product_of_its_rows_and_columns")
def gradient_stored_across(g, x, w):
    """Each of your blocks is transposed: you compute x times g transposed, or store columns for rows. Wanted is g @ trans(x), row after row."""
    return _sampled(g, x, w, "turned")


@mistake("sampled_matmul", caught_by="test_each_block_gets_the_product_of_its_rows_and_columns")
def averaged_over_the_examples(g, x, w):
    """You divide by the number of examples. The gradient is a sum: if the loss is a mean, dL/dY has the division already."""
    return _sampled(g, x, w, "mean")


@mistake("sampled_matmul", caught_by="test_each_block_gets_the_product_of_its_rows_and_columns")
def rows_and_columns_swapped(g, x, w):
    """You take the rows of g by the block's column and those of x by its row. It is the other way round."""
    return _sampled(g, x, w, "swapped")


@mistake("sampled_matmul", caught_by="test_the_gradient_is_the_kernels")
def torchs_product_for_the_gradient(g, x, w):
    """The numbers are right, but torch's own operations made them: no kernel of yours is at work. Launch sampled_kernel and return out,
    into which it stores."""
    b = w["blocks"].shape[-1]
    tiles = _tiles(g.float() @ x.float().T, b)
    return tiles[_rows(w["starts"]), w["columns"]].to(x.dtype)


@mistake("sampled_matmul", caught_by="test_gradients_of_half_precision_are_summed_in_float32")
def gradient_summed_in_half_precision(g, x, w):
    """Your sum is rounded to the type of the result after each step. Begin with tl.zeros((B, B), dtype=tl.float32)."""
    return _sampled(g, x, w, "half")


# ---------------------------------------------------------------- prune_2_4

def _keep_two(groups, score):
    kept = score.topk(2, dim=-1).indices
    return torch.zeros_like(groups).scatter(-1, kept, groups.gather(-1, kept))


@mistake("prune_2_4", caught_by="test_of_equal_numbers_two_stay")
def all_that_reach_the_second(w):
    """You keep every number that is as large as the second-largest. Where numbers are equal that is three or four. Take two places, with
    topk(2)."""
    groups = w.unflatten(1, (-1, 4))
    return torch.where(groups.abs() >= groups.abs().topk(2, dim=2).values[..., 1:], groups, 0.0).flatten(1)


@mistake("prune_2_4", caught_by="test_the_two_largest_magnitudes_of_each_group_stay_as_they_are")
def numbers_and_not_magnitudes(w):
    """You keep the two largest numbers, and a large negative one goes. Compare magnitudes: abs()."""
    groups = w.unflatten(1, (-1, 4))
    return _keep_two(groups, groups).flatten(1)


@mistake("prune_2_4", caught_by="test_the_two_largest_magnitudes_of_each_group_stay_as_they_are")
def the_small_ones_kept(w):
    """You remove the two largest and keep the small ones."""
    groups = w.unflatten(1, (-1, 4))
    return _keep_two(groups, -groups.abs()).flatten(1)


@mistake("prune_2_4", caught_by="test_the_two_largest_magnitudes_of_each_group_stay_as_they_are")
def signs_lost(w):
    """Your numbers come out without their sign. Choose by magnitude, but take the numbers themselves."""
    groups = w.abs().unflatten(1, (-1, 4))
    return _keep_two(groups, groups).flatten(1)


@mistake("prune_2_4", caught_by="test_the_two_largest_magnitudes_of_each_group_stay_as_they_are")
def the_half_of_each_row(w):
    """You keep the larger half of each row. The two must be found in each group of four neighbours."""
    kept = w.abs().topk(w.shape[1] // 2, dim=1).indices
    return torch.zeros_like(w).scatter(1, kept, w.gather(1, kept))


@mistake("prune_2_4", caught_by="test_the_two_largest_magnitudes_of_each_group_stay_as_they_are")
def groups_across_the_row(w):
    """Your groups are of numbers that stand a quarter of the row apart. A group is four neighbours: unflatten to [m, k / 4, 4]."""
    groups = w.unflatten(1, (4, -1)).transpose(1, 2)
    return _keep_two(groups, groups.abs()).transpose(1, 2).flatten(1)


# ---------------------------------------------------------------- compress_2_4

def _compress(w, factors=(1, 4, 16, 64), sort=True):
    groups = w.unflatten(1, (-1, 4))
    places = groups.abs().topk(2, dim=2).indices
    places = places.sort(dim=2).values if sort else places
    indices = (places.reshape(w.shape[0], -1, 4) * torch.tensor(factors)).sum(2).to(torch.uint8)
    return {"values": groups.gather(2, places).flatten(1), "indices": indices, "shape": tuple(w.shape)}


@mistake("compress_2_4", caught_by="test_values_and_places_give_the_matrix_back")
def first_place_in_the_highest_bits(w):
    """Your byte has the first place in its highest bits. It belongs in the lowest: p0 + 4 p1 + 16 q0 + 64 q1."""
    return _compress(w, (64, 16, 4, 1))


@mistake("compress_2_4", caught_by="test_values_and_places_give_the_matrix_back")
def groups_in_the_wrong_half(w):
    """The two groups of a byte are swapped: the first belongs in the lower four bits."""
    return _compress(w, (16, 64, 1, 4))


@mistake("compress_2_4", caught_by="test_values_and_places_give_the_matrix_back")
def places_by_magnitude(w):
    """Your values stand in the order of their magnitude, as topk gives them. Sort the places of each group first."""
    return _compress(w, sort=False)


@mistake("compress_2_4", caught_by="test_values_and_places_give_the_matrix_back")
def a_byte_for_each_place(w):
    """You spend a byte on each place. Two bits are enough: four places in a byte, [m, k / 8]."""
    groups = w.unflatten(1, (-1, 4))
    places = groups.abs().topk(2, dim=2).indices.sort(dim=2).values
    return {"values": groups.gather(2, places).flatten(1), "indices": places.flatten(1).to(torch.uint8), "shape": tuple(w.shape)}


@mistake("compress_2_4", caught_by="test_groups_with_fewer_numbers_are_filled_with_zeros")
def only_what_is_not_zero(w):
    """You take the places from nonzero(), and a group with fewer than two numbers has too few of them. Every group stores two values, if need be a zero."""
    places = w.unflatten(1, (-1, 4)).nonzero()[:, 2].view(w.shape[0], -1, 2)
    if places.shape[1] != w.shape[1] // 4:
        raise ValueError("not two in every group")
    groups = w.unflatten(1, (-1, 4))
    indices = (places.reshape(w.shape[0], -1, 4) * torch.tensor((1, 4, 16, 64))).sum(2).to(torch.uint8)
    return {"values": groups.gather(2, places).flatten(1), "indices": indices, "shape": tuple(w.shape)}


# ---------------------------------------------------------------- transposable_mask_4x4

_TWO = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
_PATTERNS = torch.tensor([p for p in itertools.product(_TWO, repeat=4) if all(sum(c) == 2 for c in zip(*p))]).bool()


def _best(tiles, choose=torch.argmax):
    sums = tiles.flatten(2) @ _PATTERNS.flatten(1).T.to(tiles.dtype)
    return _PATTERNS[choose(sums, 2)].transpose(1, 2).flatten(2).flatten(0, 1)


def _squares(w):
    return w.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2)


@mistake("transposable_mask_4x4", caught_by="test_no_pattern_keeps_more_magnitude")
def signed_sums(w):
    """You sum the numbers with their sign. Sum their magnitudes: abs()."""
    return _best(_squares(w))


@mistake("transposable_mask_4x4", caught_by="test_no_pattern_keeps_more_magnitude")
def squared_sums(w):
    """You sum squares. They find nearly the same, but not always; wanted is the largest sum of magnitudes."""
    return _best(_squares(w.square()))


@mistake("transposable_mask_4x4", caught_by="test_no_pattern_keeps_more_magnitude")
def the_worst_pattern(w):
    """You choose the pattern that keeps least."""
    return _best(_squares(w.abs()), torch.argmin)


@mistake("transposable_mask_4x4", caught_by="test_no_pattern_keeps_more_magnitude")
def one_pattern_for_all_blocks(w):
    """You choose one pattern for the whole matrix. Each block has its own."""
    sums = (_squares(w.abs()).flatten(2) @ _PATTERNS.flatten(1).T.to(w.dtype)).sum((0, 1))
    return _PATTERNS[sums.argmax()].repeat(w.shape[0] // 4, w.shape[1] // 4)


@mistake("transposable_mask_4x4", caught_by="test_every_row_and_column_of_a_block_keeps_two")
def two_in_every_row_only(w):
    """You keep two in every row, but in the columns there may be more or fewer: the transpose is not 2:4. Choose among the 90 patterns."""
    groups = w.abs().unflatten(1, (-1, 4))
    return torch.zeros_like(groups).scatter(2, groups.topk(2, dim=2).indices, 1.0).flatten(1).bool()


@mistake("transposable_mask_4x4", caught_by="test_no_pattern_keeps_more_magnitude")
def patterns_put_back_turned(w):
    """Each of your patterns is transposed when you put it back: the four dimensions are block row, block column, row, column, and the middle
    two have to be swapped."""
    sums = _squares(w.abs()).flatten(2) @ _PATTERNS.flatten(1).T.to(w.dtype)
    return _PATTERNS[sums.argmax(2)].mT.transpose(1, 2).flatten(2).flatten(0, 1)


# ---------------------------------------------------------------- optional: coo, ell, dia

@mistake("to_coo", caught_by="test_every_number_has_its_two_indices")
def indices_swapped(w):
    """Your rows are columns and your columns are rows."""
    rows, columns = w.nonzero(as_tuple=True)
    return {"values": w[rows, columns], "rows": columns, "columns": rows, "shape": tuple(w.shape)}


@mistake("to_coo", caught_by="test_every_number_has_its_two_indices")
def only_above_zero(w):
    """You keep what is larger than zero. Negative numbers are not zero either."""
    rows, columns = (w > 0).nonzero(as_tuple=True)
    return {"values": w[rows, columns], "rows": rows, "columns": columns, "shape": tuple(w.shape)}


@mistake("to_coo", caught_by="test_every_number_has_its_two_indices")
def values_in_another_order(w):
    """Your values go down the columns and your indices along the rows: they do not belong together."""
    rows, columns = w.nonzero(as_tuple=True)
    return {"values": w.T[w.T != 0], "rows": rows, "columns": columns, "shape": tuple(w.shape)}


def _coo_add(a, at, products):
    return a["values"].new_zeros(a["shape"][0]).index_add_(0, at, products)


@mistake("coo_spmv", caught_by="test_products_are_added_to_their_rows_in_any_order")
def one_product_for_each_row(a, x):
    """Of several products for one row only one is left. y[rows] += ... reads and writes each row once; index_add_ adds them all."""
    y = a["values"].new_zeros(a["shape"][0])
    y[a["rows"]] += a["values"] * x[a["columns"]]
    return y


@mistake("coo_spmv", caught_by="test_products_are_added_to_their_rows_in_any_order")
def x_by_row(a, x):
    """You multiply each value by the x of its row. It wants the x of its column."""
    return _coo_add(a, a["rows"], a["values"] * x[a["rows"]])


@mistake("coo_spmv", caught_by="test_products_are_added_to_their_rows_in_any_order")
def values_without_x(a, x):
    """You add the values up and leave x out."""
    return _coo_add(a, a["rows"], a["values"])


def _ell(w, width, places):
    columns = places[:, :width]
    values = w.gather(1, columns)
    return {"values": values, "columns": columns * (values != 0), "shape": tuple(w.shape)}


@mistake("to_ell", caught_by="test_rows_are_as_wide_as_the_longest")
def as_wide_as_the_matrix(w):
    """Every row has k places: nothing is saved. The longest row decides."""
    return _ell(w, w.shape[1], (w != 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True))


@mistake("to_ell", caught_by="test_rows_are_as_wide_as_the_longest")
def rows_cut_at_the_average(w):
    """Rows longer than the average lose numbers. The longest row decides."""
    width = math.ceil((w != 0).sum(1).float().mean())
    return _ell(w, width, (w != 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True))


@mistake("to_ell", caught_by="test_rows_are_as_wide_as_the_longest")
def padding_with_a_value(w):
    """Your unused places have a value that is not zero: they would add to the product."""
    kept = _ell(w, int((w != 0).sum(1).max()), (w != 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True))
    return kept | {"values": torch.where(kept["values"] == 0, 1.0, kept["values"]).to(w.dtype)}


@mistake("ell_spmv", caught_by="test_a_table_of_products_is_summed_along_its_rows")
def summed_down_the_columns(a, x):
    """You sum the table down its columns. The places of a row lie beside each other: sum over dimension 1."""
    return (a["values"] * x[a["columns"]]).sum(0)


@mistake("ell_spmv", caught_by="test_a_table_of_products_is_summed_along_its_rows")
def x_once_for_every_unused_place(a, x):
    """You add x[0] for every unused place. Its value is zero: multiply, do not ask the column."""
    values = a["values"]
    return (torch.where(values == 0, 1.0, values) * x[a["columns"]]).sum(1)


@mistake("ell_spmv", caught_by="test_a_table_of_products_is_summed_along_its_rows")
def table_without_x(a, x):
    """You sum the values and leave x out."""
    return a["values"].sum(1)


def _dia(w, offsets, which, rows, columns):
    values = w.new_zeros(len(offsets), w.shape[0])
    values[which, rows] = w[rows, columns]
    return {"values": values, "offsets": offsets, "shape": tuple(w.shape)}


@mistake("to_dia", caught_by="test_diagonals_that_hold_a_number_are_kept")
def offsets_upside_down(w):
    """Your offsets are row minus column. They are column minus row: above the main diagonal they are positive."""
    rows, columns = w.nonzero(as_tuple=True)
    offsets, which = (rows - columns).unique(return_inverse=True)
    return _dia(w, offsets, which, rows, columns)


@mistake("to_dia", caught_by="test_diagonals_that_hold_a_number_are_kept")
def all_diagonals_kept(w):
    """You keep every diagonal of the matrix. Only those with a number that is not zero are stored."""
    m, k = w.shape
    rows, columns = w.nonzero(as_tuple=True)
    return _dia(w, torch.arange(1 - m, k), columns - rows + m - 1, rows, columns)


@mistake("to_dia", caught_by="test_diagonals_that_hold_a_number_are_kept")
def numbers_pushed_to_the_front(w):
    """The numbers of each diagonal begin at place 0. The number of row i stands at place i, so that all diagonals have m places."""
    rows, columns = w.nonzero(as_tuple=True)
    offsets, which = (columns - rows).unique(return_inverse=True)
    out = _dia(w, offsets, which, rows, columns)
    shifted = torch.stack([torch.roll(v, min(int(o), 0)) for v, o in zip(out["values"], offsets)]) if len(offsets) else out["values"]
    return out | {"values": shifted}


@mistake("dia_spmv", caught_by="test_every_diagonal_meets_a_shifted_x")
def x_not_shifted(a, x):
    """You multiply each diagonal by x as it is. Row i and offset o want x[i + o]."""
    m, k = a["shape"]
    return (a["values"] * x[torch.arange(m).clamp(max=k - 1)]).sum(0)


@mistake("dia_spmv", caught_by="test_every_diagonal_meets_a_shifted_x")
def shifted_the_other_way(a, x):
    """You shift x the wrong way: row i and offset o want x[i + o]."""
    m, k = a["shape"]
    at = torch.arange(m) - a["offsets"][:, None]
    return (a["values"] * x[at.clamp(0, k - 1)]).sum(0)


@mistake("dia_spmv", caught_by="test_every_diagonal_meets_a_shifted_x")
def diagonals_without_x(a, x):
    """You sum the diagonals and leave x out."""
    return a["values"].sum(0)


@mistake("dia_spmv", caught_by="test_every_diagonal_meets_a_shifted_x")
def index_outside_of_x(a, x):
    """Your index leaves x where the diagonal leaves the matrix. The value there is 0, so any x will do: clamp the index."""
    m, k = a["shape"]
    return (a["values"] * x[torch.arange(m) + a["offsets"][:, None]]).sum(0)


# ---------------------------------------------------------------- optional: sparse_activation

def _activation(x, kept, order=1):
    bits = F.pad(kept.flatten(), (0, -x.numel() % 8)).unflatten(0, (-1, 8)).long()
    factors = 2 ** torch.arange(8)
    return {"values": x[kept], "bits": (bits * (factors if order > 0 else factors.flip(0))).sum(1).to(torch.uint8), "shape": tuple(x.shape)}


@mistake("sparse_activation", caught_by="test_large_numbers_are_kept_and_a_bit_for_each")
def negative_activations_lost(x, threshold):
    """You keep what is above the threshold with its sign. Compare magnitudes."""
    return _activation(x, x > threshold)


@mistake("sparse_activation", caught_by="test_large_numbers_are_kept_and_a_bit_for_each")
def first_bit_highest(x, threshold):
    """Your first number has the highest bit of its byte. Number 8 j + i has bit i: its weight is 2**i."""
    return _activation(x, x.abs() > threshold, -1)


@mistake("sparse_activation", caught_by="test_large_numbers_are_kept_and_a_bit_for_each")
def small_ones_kept(x, threshold):
    """You keep what is below the threshold."""
    return _activation(x, x.abs() <= threshold)
