"""Known wrong answers of lab 21. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import math

import torch

from course.spec import mistake


def _mask(weight, sparsity):
    order = weight.abs().flatten().argsort(stable=True)
    mask = torch.ones(len(order), dtype=torch.bool)
    mask[order[:round(sparsity * len(order))]] = False
    return mask.view(weight.shape)


def _split(mask, weights):
    return [part.view(w.shape) for part, w in zip(mask.split([w.numel() for w in weights]), weights)]


def _joined(weights):
    return torch.cat([w.flatten() for w in weights])


# ---------------------------------------------------------------- magnitude_mask

@mistake("magnitude_mask", caught_by="test_equal_weights_are_counted_one_by_one")
def compared_with_a_threshold(weight, sparsity):
    """You compare with a threshold. All weights that are equal to it stay or go together, and the number is wrong: after a first pruning, when
    many weights are zero, badly so. Sort, and take the first k of the order."""
    size = weight.abs()
    k = round(sparsity * weight.numel())
    return size > size.flatten().sort().values[k - 1] if k else torch.ones_like(weight, dtype=torch.bool)


@mistake("magnitude_mask", caught_by="test_equal_weights_are_counted_one_by_one")
def threshold_that_keeps_its_equals(weight, sparsity):
    """You compare with a threshold, and all weights that are as large as it stay. With many equal weights too few are pruned, perhaps
    none. Sort, and take the first k of the order."""
    size = weight.abs()
    k = round(sparsity * weight.numel())
    return size >= size.flatten().sort().values[k] if k < weight.numel() else torch.zeros_like(weight, dtype=torch.bool)


@mistake("magnitude_mask", caught_by="test_equal_weights_are_counted_one_by_one")
def largest_as_threshold_of_none(weight, sparsity):
    """With a sparsity of 0 you prune everything: the threshold sorted[k - 1] is then sorted[-1], the largest. And a threshold takes all equal
    weights together. Sort, and take the first k of the order: then k = 0 needs no special case."""
    size = weight.abs()
    return size > size.flatten().sort().values[round(sparsity * weight.numel()) - 1]


@mistake("magnitude_mask", caught_by="test_the_smallest_weights_go_whatever_their_sign")
def ordered_with_their_sign(weight, sparsity):
    """You order the weights with their sign, so that the large negative ones go first. Order them by |w|."""
    return _mask(weight - weight.min() + 1, sparsity)


@mistake("magnitude_mask", caught_by="test_the_smallest_weights_go_whatever_their_sign")
def largest_pruned(weight, sparsity):
    """You prune the largest weights and keep the smallest. argsort begins with the smallest: the first k of the order are False."""
    return _mask(1 / (weight.abs() + 1e-9), sparsity)


@mistake("magnitude_mask", caught_by="test_the_mask_prunes_exactly_the_share_that_is_asked_for")
def true_where_pruned(weight, sparsity):
    """Your mask is True where a weight is pruned. It must be True where it stays, so that weight * mask is the pruned weight."""
    return ~_mask(weight, sparsity)


@mistake("magnitude_mask", caught_by="test_the_mask_prunes_exactly_the_share_that_is_asked_for")
def share_that_stays(weight, sparsity):
    """You keep the share `sparsity` of the weights. The sparsity is the share that goes: 0.9 leaves a tenth."""
    return _mask(weight, 1 - sparsity)


@mistake("magnitude_mask", caught_by="test_the_mask_prunes_exactly_the_share_that_is_asked_for")
def rounded_down(weight, sparsity):
    """You round sparsity * n down, as int() does. Then 0.29 of 100 weights are 28, because 0.29 * 100 is 28.999999999999996. Use round()."""
    return _mask(weight, math.floor(sparsity * weight.numel()) / weight.numel())


@mistake("magnitude_mask", caught_by="test_the_smallest_weights_go_whatever_their_sign")
def row_by_row(weight, sparsity):
    """You prune each row by itself. The share is that of the whole tensor: flatten it first, and give the mask its shape at the end."""
    rows = weight.reshape(-1, weight.shape[-1])
    return torch.stack([_mask(row, sparsity) for row in rows]).view(weight.shape)


@mistake("magnitude_mask", caught_by="test_the_mask_prunes_exactly_the_share_that_is_asked_for")
def weight_instead_of_mask(weight, sparsity):
    """You return the pruned weight. The mask is wanted: a tensor of bool, True where a weight stays."""
    return weight * _mask(weight, sparsity)


@mistake("magnitude_mask", caught_by="test_the_mask_prunes_exactly_the_share_that_is_asked_for")
def mask_of_floats(weight, sparsity):
    """Your mask holds floating-point numbers. Make it of torch.bool: then it can also be used as an index, and ~mask is its opposite."""
    return _mask(weight, sparsity).float()


# ---------------------------------------------------------------- global_magnitude_masks

@mistake("global_magnitude_masks", caught_by="test_no_weight_is_pruned_while_a_smaller_one_stays_in_any_tensor")
def each_tensor_by_itself(weights, sparsity):
    """You prune the same share of each tensor. Join all weights first (flatten, torch.cat): one order for all of them."""
    return [_mask(w, sparsity) for w in weights]


@mistake("global_magnitude_masks", caught_by="test_no_weight_is_pruned_while_a_smaller_one_stays_in_any_tensor")
def compared_after_scaling(weights, sparsity):
    """You scale each tensor before you compare. That is another criterion: here the sizes |w| themselves are compared."""
    return _split(_mask(_joined([w / w.abs().mean() for w in weights]), sparsity), weights)


@mistake("global_magnitude_masks", caught_by="test_equal_weights_in_different_tensors_are_counted_one_by_one")
def one_threshold_for_all(weights, sparsity):
    """You compare with one threshold. All weights that are equal to it go together, and the number is wrong. Take the first k of the sorted
    order of all weights."""
    k, sizes = round(sparsity * sum(w.numel() for w in weights)), _joined(weights).abs().sort().values
    return [w.abs() > (sizes[k - 1] if k else -1) for w in weights]


@mistake("global_magnitude_masks", caught_by="test_equal_weights_in_different_tensors_are_counted_one_by_one")
def one_threshold_that_keeps_its_equals(weights, sparsity):
    """You compare with one threshold, and all weights that are as large as it stay. With many equal weights too few are pruned, perhaps none. Take the
    first k of the sorted order of all weights."""
    k, sizes = round(sparsity * sum(w.numel() for w in weights)), _joined(weights).abs().sort().values
    return [w.abs() >= (sizes[k] if k < len(sizes) else math.inf) for w in weights]


@mistake("global_magnitude_masks", caught_by="test_sparsity_zero_keeps_all_weights_and_one_keeps_none")
def largest_as_one_threshold_of_none(weights, sparsity):
    """With a sparsity of 0 you prune everything: the threshold sorted[k - 1] is then sorted[-1], the largest. And a threshold takes all equal
    weights together. Take the first k of the sorted order of all weights: then k = 0 needs no special case."""
    sizes = _joined(weights).abs().sort().values
    return [w.abs() > sizes[round(sparsity * len(sizes)) - 1] for w in weights]


@mistake("global_magnitude_masks", caught_by="test_no_weight_is_pruned_while_a_smaller_one_stays_in_any_tensor")
def joined_with_their_sign(weights, sparsity):
    """You order the weights with their sign, so that the large negative ones go first. Order them by |w|."""
    together = _joined(weights)
    return _split(_mask(together - together.min() + 1, sparsity), weights)


@mistake("global_magnitude_masks", caught_by="test_the_share_is_that_of_all_weights_together")
def true_where_it_goes(weights, sparsity):
    """Your masks are True where a weight is pruned. They must be True where it stays."""
    return [~m for m in _split(_mask(_joined(weights), sparsity), weights)]


@mistake("global_magnitude_masks", caught_by="test_the_share_is_that_of_all_weights_together")
def mean_of_the_thresholds(weights, sparsity):
    """You take the mean of the tensors' own thresholds. It prunes another share than the one asked for, since the tensors differ in size.
    One order for all weights together gives the right one."""
    threshold = sum(w.abs().flatten().quantile(sparsity) for w in weights) / len(weights)
    return [w.abs() > threshold for w in weights]


@mistake("global_magnitude_masks", caught_by="test_no_weight_is_pruned_while_a_smaller_one_stays_in_any_tensor")
def split_in_another_order(weights, sparsity):
    """You split the joint mask in another order than that in which the tensors were joined: each gets the mask of other weights. Use
    the same list for torch.cat and for split."""
    parts = _mask(_joined(weights[::-1]), sparsity).split([w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights)]


@mistake("global_magnitude_masks", caught_by="test_no_weight_is_pruned_while_a_smaller_one_stays_in_any_tensor")
def masks_left_flat(weights, sparsity):
    """Your masks have one dimension. Give each the shape of its weight: part.view(w.shape)."""
    return list(_mask(_joined(weights), sparsity).split([w.numel() for w in weights]))


# ---------------------------------------------------------------- masked_step

@mistake("masked_step", caught_by="test_pruned_weights_are_zero_after_every_step")
def gradient_masked_only(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You mask the gradient only. A weight that was pruned just now keeps its old value, and an old velocity goes on moving it. Mask the
    velocity and the new parameter."""
    v = momentum * state.get("v", 0.0) + mask * grad + weight_decay * param
    return param - lr * v, {"v": v}


@mistake("masked_step", caught_by="test_a_weight_that_comes_back_starts_from_rest")
def velocity_not_masked(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You mask the parameter, and the velocity not. It waits in the state, and moves the weight as soon as the mask lets it come back. Mask
    v too, before you put it into the state."""
    v = momentum * state.get("v", 0.0) + grad + weight_decay * param
    return mask * (param - lr * v), {"v": v}


@mistake("masked_step", caught_by="test_a_weight_that_comes_back_starts_from_rest")
def past_of_the_velocity_not_masked(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You mask the parameter, and of the velocity only what is new. What it had before the weight was pruned waits in the state, and moves
    the weight as soon as the mask lets it come back. Mask all of it: v = mask * (momentum * v + g)."""
    v = momentum * state.get("v", 0.0) + mask * (grad + weight_decay * param)
    return mask * (param - lr * v), {"v": v}


@mistake("masked_step", caught_by="test_a_weight_that_comes_back_starts_from_rest")
def gradient_and_parameter_masked(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You mask the parameter and the gradient, and the velocity not. It waits in the state, and moves the weight as soon as the mask lets it
    come back. Mask all of v: mask * (momentum * v + grad + weight_decay * param)."""
    v = momentum * state.get("v", 0.0) + mask * grad + weight_decay * param
    return mask * (param - lr * v), {"v": v}


@mistake("masked_step", caught_by="test_the_learning_rate_is_that_of_the_step")
def learning_rate_in_the_velocity(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You put the learning rate into the velocity. When it falls, the steps of the past then go on with their old, larger rates. The
    velocity is a sum of gradients: multiply it by this step's rate when the parameter moves."""
    v = mask * (momentum * state.get("v", 0.0) + lr * (grad + weight_decay * param))
    return mask * (param - v), {"v": v}


@mistake("masked_step", caught_by="test_pruned_weights_are_zero_after_every_step")
def parameter_not_masked(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You mask the velocity, and the parameter not. A weight that was pruned just now stands still at its old value. Multiply the new
    parameter by the mask too."""
    v = mask * (momentum * state.get("v", 0.0) + grad + weight_decay * param)
    return param - lr * v, {"v": v}


@mistake("masked_step", caught_by="test_pruned_weights_are_zero_after_every_step")
def mask_forgotten(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You do not use the mask: the pruned weights move like all others."""
    v = momentum * state.get("v", 0.0) + grad + weight_decay * param
    return param - lr * v, {"v": v}


@mistake("masked_step", caught_by="test_surviving_weights_step_as_in_torch")
def weight_decay_forgotten(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You leave the weight decay out. It adds weight_decay * param to the gradient."""
    v = mask * (momentum * state.get("v", 0.0) + grad)
    return mask * (param - lr * v), {"v": v}


@mistake("masked_step", caught_by="test_surviving_weights_step_as_in_torch")
def weight_decay_apart(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You shrink the parameter by itself, as AdamW does. In torch.optim.SGD the decay is a part of the gradient, and so of the velocity:
    v = momentum * v + grad + weight_decay * param."""
    v = mask * (momentum * state.get("v", 0.0) + grad)
    return mask * (param - lr * v - lr * weight_decay * param), {"v": v}


@mistake("masked_step", caught_by="test_surviving_weights_step_as_in_torch")
def averaged_velocity(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You multiply the new gradient by 1 - momentum: that is an average, as in Adam. SGD's velocity is a sum: v = momentum * v + g."""
    v = mask * (momentum * state.get("v", 0.0) + (1 - momentum) * (grad + weight_decay * param))
    return mask * (param - lr * v), {"v": v}


@mistake("masked_step", caught_by="test_surviving_weights_step_as_in_torch")
def moved_by_the_gradient(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You move by the gradient, and the velocity is not used. The parameter moves by -lr * v."""
    g = grad + weight_decay * param
    v = mask * (momentum * state.get("v", 0.0) + g)
    return mask * (param - lr * g), {"v": v}


@mistake("masked_step", caught_by="test_pruned_weights_are_zero_after_every_step")
def mask_upside_down(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """You use the mask upside down: what should stay is zero, and what should go is trained. True means that a weight stays."""
    v = ~mask * (momentum * state.get("v", 0.0) + grad + weight_decay * param)
    return ~mask * (param - lr * v), {"v": v}


# ---------------------------------------------------------------- cubic_sparsity

def _way(step, begin, end):
    return min(max((step - begin) / (end - begin), 0.0), 1.0)


@mistake("cubic_sparsity", caught_by="test_what_is_left_of_the_way_shrinks_with_the_third_power")
def a_straight_line(step, begin, end, final, initial=0.0):
    """Your sparsity rises in a straight line. What is left of the way shrinks with the third power of 1 - t."""
    return initial + (final - initial) * _way(step, begin, end)


@mistake("cubic_sparsity", caught_by="test_what_is_left_of_the_way_shrinks_with_the_third_power")
def slow_at_first(step, begin, end, final, initial=0.0):
    """You take t**3: slow at first and fast at last, the wrong way round. It is (1 - t)**3 that shrinks."""
    return initial + (final - initial) * _way(step, begin, end) ** 3


@mistake("cubic_sparsity", caught_by="test_what_is_left_of_the_way_shrinks_with_the_third_power")
def squared(step, begin, end, final, initial=0.0):
    """You take the square of 1 - t. The exponent is 3."""
    return final + (initial - final) * (1 - _way(step, begin, end)) ** 2


@mistake("cubic_sparsity", caught_by="test_it_is_flat_before_begin_and_after_end")
def goes_on_after_the_end(step, begin, end, final, initial=0.0):
    """You do not stop at `end`: after it 1 - t is negative, its cube too, and the sparsity goes on beyond the final one, above 1 in the end."""
    return final + (initial - final) * (1 - max((step - begin) / (end - begin), 0.0)) ** 3


@mistake("cubic_sparsity", caught_by="test_it_is_flat_before_begin_and_after_end")
def falls_before_begin(step, begin, end, final, initial=0.0):
    """You do not wait for `begin`: before it t is negative, and the sparsity comes out below the initial one, even below zero."""
    return final + (initial - final) * (1 - min((step - begin) / (end - begin), 1.0)) ** 3


@mistake("cubic_sparsity", caught_by="test_it_is_flat_before_begin_and_after_end")
def zero_before_begin(step, begin, end, final, initial=0.0):
    """You return 0 before `begin`. It is the initial sparsity there, as a network may have been pruned before."""
    return 0.0 if step < begin else final + (initial - final) * (1 - _way(step, begin, end)) ** 3


@mistake("cubic_sparsity", caught_by="test_what_is_left_of_the_way_shrinks_with_the_third_power")
def initial_forgotten(step, begin, end, final, initial=0.0):
    """You begin at 0 whatever `initial` is. The way goes from `initial` to `final`."""
    return final * (1 - (1 - _way(step, begin, end)) ** 3)


@mistake("cubic_sparsity", caught_by="test_what_is_left_of_the_way_shrinks_with_the_third_power")
def counted_from_zero(step, begin, end, final, initial=0.0):
    """You divide step by end, as if the way began at step 0. It begins at `begin`: t = (step - begin) / (end - begin)."""
    return initial if step < begin else final + (initial - final) * (1 - _way(step, 0, end)) ** 3


# ---------------------------------------------------------------- storage_bytes

def _table(n, kept, value_bytes=4, mask=None, index=None):
    place = next(width for width in (1, 2, 4, 8) if n <= 256**width)
    return {"dense": n * value_bytes, "bitmask": kept * value_bytes + (n + 7) // 8 if mask is None else mask,
            "index": kept * (value_bytes + place) if index is None else index}


@mistake("storage_bytes", caught_by="test_bitmask_adds_one_bit_for_each_place_in_whole_bytes")
def a_byte_for_each_bit(n, kept, value_bytes=4):
    """Your bitmask takes a byte for each place. It takes a bit, and eight bits fit into a byte."""
    return _table(n, kept, value_bytes, mask=kept * value_bytes + n)


@mistake("storage_bytes", caught_by="test_bitmask_adds_one_bit_for_each_place_in_whole_bytes")
def last_byte_forgotten(n, kept, value_bytes=4):
    """You round n / 8 down: the last places have no bit if n is no multiple of 8. Round up."""
    return _table(n, kept, value_bytes, mask=kept * value_bytes + n // 8)


@mistake("storage_bytes", caught_by="test_bitmask_adds_one_bit_for_each_place_in_whole_bytes")
def a_bit_for_each_kept_number(n, kept, value_bytes=4):
    """Your bitmask has a bit for each kept number. It needs one for each of the n places, to say whether there is a number."""
    return _table(n, kept, value_bytes, mask=kept * value_bytes + (kept + 7) // 8)


@mistake("storage_bytes", caught_by="test_bitmask_adds_one_bit_for_each_place_in_whole_bytes")
def numbers_forgotten(n, kept, value_bytes=4):
    """Your bitmask format stores the bits and not the numbers. The kept numbers are stored too."""
    return _table(n, kept, value_bytes, mask=(n + 7) // 8)


@mistake("storage_bytes", caught_by="test_index_adds_the_fewest_whole_bytes_that_can_name_every_place")
def always_four_bytes_a_place(n, kept, value_bytes=4):
    """You take four bytes for each place. Up to 256 places one byte can name them, up to 65536 two; above 2**32 it takes eight."""
    return _table(n, kept, value_bytes, index=kept * (value_bytes + 4))


@mistake("storage_bytes", caught_by="test_index_adds_the_fewest_whole_bytes_that_can_name_every_place")
def width_by_the_kept_ones(n, kept, value_bytes=4):
    """You choose the width of a place by the number of kept numbers. A place can be any of 0 ... n - 1, however few are kept."""
    width = next(width for width in (1, 2, 4, 8) if kept <= 256**width)
    return _table(n, kept, value_bytes, index=kept * (value_bytes + width))


@mistake("storage_bytes", caught_by="test_a_place_has_as_many_bytes_as_it_needs_and_no_more")
def places_of_three_bytes(n, kept, value_bytes=4):
    """You take three bytes where two are not enough. A place is an integer of 1, 2, 4 or 8 bytes, as a processor has them: the next after two is
    four."""
    return _table(n, kept, value_bytes, index=kept * (value_bytes + max(1, ((n - 1).bit_length() + 7) // 8)))


@mistake("storage_bytes", caught_by="test_a_place_has_as_many_bytes_as_it_needs_and_no_more")
def a_bit_for_the_sign(n, kept, value_bytes=4):
    """You keep a bit of each place for a sign, and need two bytes from 129 places on. Places are never negative: one byte can name 256 of them,
    two 65536."""
    width = next(width for width in (1, 2, 4, 8) if n <= 256**width // 2)
    return _table(n, kept, value_bytes, index=kept * (value_bytes + width))


@mistake("storage_bytes", caught_by="test_a_place_has_as_many_bytes_as_it_needs_and_no_more")
def one_place_too_many(n, kept, value_bytes=4):
    """With exactly 256 places you take two bytes. They are 0 ... 255, and one byte can name them all: n <= 256, not n < 256."""
    width = next(width for width in (1, 2, 4, 8) if n < 256**width)
    return _table(n, kept, value_bytes, index=kept * (value_bytes + width))


@mistake("storage_bytes", caught_by="test_index_adds_the_fewest_whole_bytes_that_can_name_every_place")
def places_packed_into_bits(n, kept, value_bytes=4):
    """You pack the places into as few bits as possible. Here each is an integer of 1, 2, 4 or 8 whole bytes, as a processor reads it."""
    return _table(n, kept, value_bytes, index=kept * value_bytes + math.ceil(kept * math.ceil(math.log2(max(n, 2))) / 8))


@mistake("storage_bytes", caught_by="test_numbers_may_have_any_width")
def always_four_bytes_a_number(n, kept, value_bytes=4):
    """You take four bytes for each number whatever `value_bytes` is."""
    return _table(n, kept)


# ---------------------------------------------------------------- filter_importance

@mistake("filter_importance", caught_by="test_a_filter_counts_by_the_sum_of_its_absolute_weights")
def absolute_value_of_the_sum(weight, gain=None):
    """You sum first and take the absolute value then: positive and negative weights cancel, and an edge detector would count as nothing. abs()
    first, then the sum."""
    sums = weight.flatten(1).sum(1).abs()
    return sums if gain is None else sums * gain.abs()


@mistake("filter_importance", caught_by="test_a_filter_counts_by_the_sum_of_its_absolute_weights")
def euclidean_norm(weight, gain=None):
    """You take the root of the sum of squares. Li et al. sum the absolute values: the L1 norm."""
    sums = weight.flatten(1).norm(dim=1)
    return sums if gain is None else sums * gain.abs()


@mistake("filter_importance", caught_by="test_a_filter_counts_by_the_sum_of_its_absolute_weights")
def sums_over_input_channels(weight, gain=None):
    """You give a number for each *input* channel. A filter is weight[o]: keep the first dimension, and sum over all others."""
    return weight.abs().sum([d for d in range(weight.ndim) if d != 1])


@mistake("filter_importance", caught_by="test_a_filter_counts_by_the_sum_of_its_absolute_weights")
def each_kernel_apart(weight, gain=None):
    """You sum over the 3 x 3 places only and have a number for each kernel, [o, i]. A filter has a kernel for each input channel: sum over these
    too."""
    sums = weight.abs().flatten(2).sum(2)
    return sums if gain is None else sums * gain.abs()[:, None]


@mistake("filter_importance", caught_by="test_a_filter_counts_by_the_sum_of_its_absolute_weights")
def mean_of_the_weights(weight, gain=None):
    """You take the mean over a filter's weights. The sum is asked for."""
    sums = weight.abs().flatten(1).mean(1)
    return sums if gain is None else sums * gain.abs()


@mistake("filter_importance", caught_by="test_the_gain_of_batchnorm_multiplies_the_sum")
def gain_ignored(weight, gain=None):
    """You do not use the gain. With a BatchNorm behind it the size of a filter alone says nothing: multiply by |gain|."""
    return weight.abs().flatten(1).sum(1)


@mistake("filter_importance", caught_by="test_a_negative_gain_counts_like_a_positive_one")
def gain_with_its_sign(weight, gain=None):
    """You multiply by the gain with its sign: a filter with a large negative gain then seems the least important of all. Take |gain|."""
    sums = weight.abs().flatten(1).sum(1)
    return sums if gain is None else sums * gain


@mistake("filter_importance", caught_by="test_the_gain_of_batchnorm_multiplies_the_sum")
def divided_by_the_gain(weight, gain=None):
    """You divide by the gain. The BatchNorm multiplies by it: a large gain makes the filter count more."""
    sums = weight.abs().flatten(1).sum(1)
    return sums if gain is None else sums / gain.abs()


# ---------------------------------------------------------------- taylor_importance

def _change(weight, grads, per_filter):
    return (weight * grads).flatten(2).sum(2) if per_filter else weight * grads


@mistake("taylor_importance", caught_by="test_a_filter_is_summed_before_it_is_squared")
def squared_before_the_sum(weight, grads, per_filter=False):
    """You square each weight's product and sum over the filter then. The weights go together, and what one adds to the loss another may take
    away: first the sum over the filter, then the square."""
    change = (weight * grads).square()
    return (change.flatten(2).sum(2) if per_filter else change).mean(0)


@mistake("taylor_importance", caught_by="test_each_weight_counts_by_the_mean_square_of_weight_times_gradient")
def squared_after_the_mean(weight, grads, per_filter=False):
    """You take the mean over the batches first. A trained network's gradients cancel there, and almost nothing is left. Square each batch's
    product, and take the mean of the squares."""
    return _change(weight, grads, per_filter).mean(0).square()


@mistake("taylor_importance", caught_by="test_each_weight_counts_by_the_mean_square_of_weight_times_gradient")
def without_the_weight(weight, grads, per_filter=False):
    """You leave out the weight. The gradient says what a small step does; to become zero the weight has to go all of its own length: multiply
    by it."""
    return _change(torch.ones_like(weight), grads, per_filter).square().mean(0)


@mistake("taylor_importance", caught_by="test_each_weight_counts_by_the_mean_square_of_weight_times_gradient")
def without_the_square(weight, grads, per_filter=False):
    """You take the mean of the absolute values. Molchanov et al. take the mean of the squares, in which batches with a large change count more."""
    return _change(weight, grads, per_filter).abs().mean(0)


@mistake("taylor_importance", caught_by="test_each_weight_counts_by_the_mean_square_of_weight_times_gradient")
def signed_change(weight, grads, per_filter=False):
    """You keep the sign: the mean of weight times gradient. Changes of the loss in either direction are importance. Square first."""
    return _change(weight, grads, per_filter).mean(0)


@mistake("taylor_importance", caught_by="test_each_weight_counts_by_the_mean_square_of_weight_times_gradient")
def summed_over_the_batches(weight, grads, per_filter=False):
    """You sum over the batches. The importance must not depend on how many there are: take the mean."""
    return _change(weight, grads, per_filter).square().sum(0)


@mistake("taylor_importance", caught_by="test_a_filter_is_summed_before_it_is_squared")
def per_filter_ignored(weight, grads, per_filter=False):
    """You do not look at `per_filter`. With it, weight times gradient is summed over each filter before the square, and there is one number for each
    filter."""
    return _change(weight, grads, False).square().mean(0)


@mistake("taylor_importance", caught_by="test_a_filter_is_summed_before_it_is_squared")
def averaged_over_the_filter(weight, grads, per_filter=False):
    """You take the mean over the filter's weights. If all of them go, their changes add up: take the sum."""
    change = (weight * grads).flatten(2).mean(2) if per_filter else weight * grads
    return change.square().mean(0)


# ---------------------------------------------------------------- prune_filters

PARTS = ("weight", "bias", "running_mean", "running_var")


def _cut(state, keep, *, parts=PARTS, inputs=True, head=True, rows=lambda k, rows, size: rows):
    small = dict(state)
    for k, chosen in enumerate(keep):
        chosen = rows(k, chosen, len(state[f"norms.{k}.bias"]))
        reader = f"convs.{k + 1}.weight" if k + 1 < len(keep) else "head.weight"
        if inputs and (head or reader != "head.weight"):
            small[reader] = small[reader][:, chosen]
        for name in (f"convs.{k}.weight", *(f"norms.{k}.{part}" for part in parts)):
            small[name] = small[name][chosen]
    return small


@mistake("prune_filters", caught_by="test_every_tensor_is_as_large_as_what_is_left")
def inputs_left_as_they_were(state, keep):
    """You remove filters, but the next layer still waits for their channels. Remove its input channels too: weight[:, keep of the layer before]."""
    return _cut(state, keep, inputs=False)


@mistake("prune_filters", caught_by="test_every_tensor_is_as_large_as_what_is_left")
def head_forgotten(state, keep):
    """You forget the head. It reads one number from each filter of the last convolution: its columns go with them."""
    return _cut(state, keep, head=False)


@mistake("prune_filters", caught_by="test_every_tensor_is_as_large_as_what_is_left")
def batchnorm_forgotten(state, keep):
    """You leave the BatchNorms as they were. Each has four numbers for every filter: weight, bias, running_mean and running_var. Index them with the
    same `keep`."""
    return _cut(state, keep, parts=())


@mistake("prune_filters", caught_by="test_every_tensor_is_as_large_as_what_is_left")
def running_averages_forgotten(state, keep):
    """You cut gamma and beta of the BatchNorm, and forget the running mean and the running variance, which belong to the filters as well."""
    return _cut(state, keep, parts=("weight", "bias"))


@mistake("prune_filters", caught_by="test_each_filter_keeps_its_own_batchnorm")
def first_numbers_of_the_batchnorm(state, keep):
    """You take the first numbers of each BatchNorm, as many as there are filters left. Each filter must keep its own: index with `keep`."""
    small = _cut(state, keep)
    return small | {f"norms.{k}.{part}": state[f"norms.{k}.{part}"][:len(rows)] for k, rows in enumerate(keep) for part in PARTS}


@mistake("prune_filters", caught_by="test_every_tensor_is_as_large_as_what_is_left")
def the_others_kept(state, keep):
    """You remove the filters in `keep` and keep the others. keep[k] lists those that stay."""
    others = lambda k, rows, size: torch.tensor([o for o in range(size) if o not in rows.tolist()], dtype=torch.int64)
    return _cut(state, keep, rows=others)


@mistake("prune_filters", caught_by="test_the_small_network_computes_what_masking_computes")
def first_filters_kept(state, keep):
    """You keep the first filters of each layer, as many as keep[k] has. Keep those whose numbers are in it: weight[keep[k]]."""
    return _cut(state, keep, rows=lambda k, rows, size: torch.arange(len(rows)))


@mistake("prune_filters", caught_by="test_every_tensor_is_as_large_as_what_is_left")
def masked_and_not_removed(state, keep):
    """You set the filters to zero, and the tensors are as large as before: nothing is saved. Take the rows and columns out by indexing."""
    masked = dict(state)
    for k, rows in enumerate(keep):
        gate = torch.zeros_like(state[f"norms.{k}.bias"]).index_fill(0, rows, 1.0)
        masked |= {f"norms.{k}.{part}": state[f"norms.{k}.{part}"] * gate for part in ("weight", "bias")}
    return masked


@mistake("prune_filters", caught_by="test_the_small_network_computes_what_masking_computes")
def inputs_by_position(state, keep):
    """You keep the first input channels of the next layer, as many as there are. They must be those that the remaining filters feed: index the second
    dimension with the `keep` of the layer before."""
    small = _cut(state, keep, inputs=False)
    for k, rows in enumerate(keep):
        reader = f"convs.{k + 1}.weight" if k + 1 < len(keep) else "head.weight"
        small[reader] = small[reader][:, :len(rows)]
    return small


@mistake("prune_filters", caught_by="test_filters_come_in_the_order_in_which_keep_lists_them")
def filters_in_rising_order(state, keep):
    """Your filters come in rising order, whatever the order in `keep`. Index with keep[k] as it is, neither sorted nor made into a mask."""
    return _cut(state, keep, rows=lambda k, rows, size: rows.sort().values)


# ---------------------------------------------------------------- sensitivity

def _sensitivity(accuracy, weights, sparsities, given, value=lambda a: a):
    return torch.tensor([[float(value(accuracy(given(i, s)))) for s in sparsities] for i in range(len(weights))])


@mistake("sensitivity", caught_by="test_one_layer_at_a_time_is_pruned_and_all_others_are_whole")
def layers_stay_pruned(accuracy, weights, sparsities):
    """A layer that was pruned stays pruned while you look at the next one. Put it back: start from the given weights every time."""
    given, table = list(weights), torch.zeros(len(weights), len(sparsities))
    for i, w in enumerate(weights):
        for j, s in enumerate(sparsities):
            given[i] = w * _mask(w, s)
            table[i, j] = accuracy(list(given))
    return table


@mistake("sensitivity", caught_by="test_one_layer_at_a_time_is_pruned_and_all_others_are_whole")
def all_the_others_pruned(accuracy, weights, sparsities):
    """You prune all layers but one. It is the other way round: one layer is pruned, and all others are whole."""
    return _sensitivity(accuracy, weights, sparsities, lambda i, s: [w if k == i else w * _mask(w, s) for k, w in enumerate(weights)])


@mistake("sensitivity", caught_by="test_one_layer_at_a_time_is_pruned_and_all_others_are_whole")
def rows_and_columns_swapped(accuracy, weights, sparsities):
    """Rows and columns of your table are swapped. A row for each layer, a column for each sparsity."""
    return _sensitivity(accuracy, weights, sparsities, lambda i, s: [w * _mask(w, s) if k == i else w for k, w in enumerate(weights)]).T


@mistake("sensitivity", caught_by="test_one_layer_at_a_time_is_pruned_and_all_others_are_whole")
def loss_of_accuracy(accuracy, weights, sparsities):
    """You return how much is lost. The accuracy itself is wanted, as it was measured."""
    whole, one = accuracy(list(weights)), lambda i, s: [w * _mask(w, s) if k == i else w for k, w in enumerate(weights)]
    return _sensitivity(accuracy, weights, sparsities, one, lambda a: whole - a)


@mistake("sensitivity", caught_by="test_one_layer_at_a_time_is_pruned_and_all_others_are_whole")
def pruned_weight_alone(accuracy, weights, sparsities):
    """You hand the pruned weight alone to `accuracy`, with zeros in place of all others. It needs the whole list, with one entry changed."""
    return _sensitivity(accuracy, weights, sparsities, lambda i, s: [w * _mask(w, s) if k == i else 0 * w for k, w in enumerate(weights)])


# ---------------------------------------------------------------- soft_threshold

@mistake("soft_threshold", caught_by="test_every_weight_comes_nearer_to_zero_by_t_and_stops_there")
def hard_threshold(w, t):
    """You set the small numbers to zero and leave the others as they are. They come nearer to zero by t as well."""
    return torch.where(w.abs() > t, w, 0.0)


@mistake("soft_threshold", caught_by="test_every_weight_comes_nearer_to_zero_by_t_and_stops_there")
def leaps_over_zero(w, t):
    """Your numbers leap over zero: one that is smaller than t comes out on the other side. Stop at zero: max(|w| - t, 0)."""
    return w.sign() * (w.abs() - t)


@mistake("soft_threshold", caught_by="test_every_weight_comes_nearer_to_zero_by_t_and_stops_there")
def sign_forgotten(w, t):
    """You forget the sign: negative numbers come out positive. Multiply by w.sign()."""
    return (w.abs() - t).clamp(min=0)


@mistake("soft_threshold", caught_by="test_every_weight_comes_nearer_to_zero_by_t_and_stops_there")
def negative_numbers_lost(w, t):
    """You subtract t from w itself: negative numbers become zero. Subtract it from |w|."""
    return (w - t).clamp(min=0)


@mistake("soft_threshold", caught_by="test_every_weight_comes_nearer_to_zero_by_t_and_stops_there")
def clamped_to_t(w, t):
    """You cut the numbers off at t. That keeps what should go: w minus this is the answer."""
    return w.clamp(-t, t)


# ---------------------------------------------------------------- hard_concrete_gate

def _gate(log_alpha, u, beta, gamma, zeta, **other):
    stretched = lambda s: (s * (zeta - gamma) + gamma).clamp(0, 1)
    parts = {"z": stretched(torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta)),
             "p": torch.sigmoid(log_alpha - beta * math.log(-gamma / zeta)), "fixed": stretched(torch.sigmoid(log_alpha))}
    parts |= other
    return parts["z"], parts["p"], parts["fixed"]


@mistake("hard_concrete_gate", caught_by="test_the_sample_is_a_stretched_and_clamped_sigmoid")
def not_stretched(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """You do not stretch the sigmoid. It lies strictly between 0 and 1, so that no gate is ever closed: s * (zeta - gamma) + gamma, then clamp."""
    return _gate(log_alpha, u, beta, gamma, zeta, z=torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta))


@mistake("hard_concrete_gate", caught_by="test_the_sample_is_a_stretched_and_clamped_sigmoid")
def not_clamped(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """You stretch the sample and do not clamp it: it lies between gamma and zeta, and a gate may be negative. Clamp to 0 ... 1."""
    return _gate(log_alpha, u, beta, gamma, zeta, z=torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta) * (zeta - gamma) + gamma)


@mistake("hard_concrete_gate", caught_by="test_the_sample_is_a_stretched_and_clamped_sigmoid")
def temperature_on_the_noise_only(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """You divide only a part by beta. The noise and log_alpha are divided together: (log u - log(1 - u) + log_alpha) / beta."""
    s = torch.sigmoid((u.log() - (1 - u).log()) / beta + log_alpha)
    return _gate(log_alpha, u, beta, gamma, zeta, z=(s * (zeta - gamma) + gamma).clamp(0, 1))


@mistake("hard_concrete_gate", caught_by="test_the_probability_is_how_often_a_sample_is_not_zero")
def chance_of_being_closed(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """Your probability is that of a closed gate. The chance that z is *not* zero is wanted; it grows with log_alpha."""
    return _gate(log_alpha, u, beta, gamma, zeta, p=torch.sigmoid(beta * math.log(-gamma / zeta) - log_alpha))


@mistake("hard_concrete_gate", caught_by="test_the_probability_is_how_often_a_sample_is_not_zero")
def stretch_left_out_of_the_probability(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """Your probability is sigmoid(log_alpha). The stretch makes a gate zero only when s is below -gamma / (zeta - gamma): subtract
    beta * log(-gamma / zeta) from log_alpha."""
    return _gate(log_alpha, u, beta, gamma, zeta, p=torch.sigmoid(log_alpha))


@mistake("hard_concrete_gate", caught_by="test_the_gate_for_evaluation_has_no_noise")
def temperature_in_evaluation(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """You divide log_alpha by beta for the evaluation. The paper leaves the temperature out there: sigmoid(log_alpha), stretched and clamped."""
    return _gate(log_alpha, u, beta, gamma, zeta, fixed=(torch.sigmoid(log_alpha / beta) * (zeta - gamma) + gamma).clamp(0, 1))


@mistake("hard_concrete_gate", caught_by="test_the_gate_for_evaluation_has_no_noise")
def noise_in_evaluation(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """Your gate for the evaluation has the noise u in it. It must be the same at each call: sigmoid(log_alpha), stretched and clamped."""
    return _gate(log_alpha, u, beta, gamma, zeta, fixed=_gate(log_alpha, u, beta, gamma, zeta)[0])


@mistake("hard_concrete_gate", caught_by="test_the_stretch_may_be_any")
def stretch_of_the_paper_only(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """You stretch from -0.1 to 1.1 whatever `gamma` and `zeta` are. Use the arguments, in all three results."""
    return _gate(log_alpha, u, beta, -0.1, 1.1)


@mistake("hard_concrete_gate", caught_by="test_the_gradient_of_the_sample_reaches_log_alpha")
def sample_detached(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """No gradient goes from your sample to log_alpha: it was cut off, by detach(), item() or no_grad(). Then nothing can be learned from the loss.
    Compute the sample with operations on tensors."""
    z, p, fixed = _gate(log_alpha, u, beta, gamma, zeta)
    return z.detach(), p, fixed
