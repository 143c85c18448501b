"""Known wrong answers of lab 12. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from course.kernels import tl, triton
from course.spec import mistake


def _row(v, x):
    """A number for each channel, in the shape of x [n, c, *places]."""
    return v.view([1, -1] + [1] * (x.ndim - 2))


def _axes(x):
    return [0, *range(2, x.ndim)]


# ---------------------------------------------------------------- batch_norm

def _batch_norm(x, weight, bias, running, training, momentum, eps, *, correction=0, collected=1, keep=False, swap=False,
                eps_outside=False, axes=None, own=False, short=False, refuse=True, detach=False):
    axes, mean, var = axes or _axes(x), running["mean"], running["var"]
    m = x.numel() // x.shape[1]
    if training and m == 1 and refuse:
        raise ValueError("no variance")
    new = running
    if training or own:
        mean = x.mean(axes, keepdim=True)
        biased = x.square().mean(axes, keepdim=True) - mean.square() if short else (x - mean).square().mean(axes, keepdim=True)
        var = biased * (m / max(m - 1, 1) if correction else 1)
        if detach:
            mean, var = mean.detach(), var.detach()
        a = 1 - momentum if swap else momentum
        flat = lambda t: t.mean(_axes(x))
        if not keep and training:
            new = {"mean": (1 - a) * running["mean"] + a * flat(mean),
                   "var": (1 - a) * running["var"] + a * flat(biased) * (m / max(m - 1, 1) if collected else 1)}
    else:
        mean, var = _row(mean, x), _row(var, x)
    x_hat = (x - mean) / (var.sqrt() + eps if eps_outside else (var + eps).sqrt())
    return x_hat * _row(weight, x) + _row(bias, x), new


@mistake("batch_norm", caught_by="test_a_batch_is_normalised_by_its_own_mean_and_biased_variance")
def normalised_by_the_unbiased_variance(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """You normalise by the unbiased variance, which divides by m - 1 (torch.var does so by itself). The batch is to
    have variance 1 as it is: divide by m. Only what goes into the running variance is unbiased."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, correction=1)


@mistake("batch_norm", caught_by="test_running_values_move_towards_the_unbiased_statistics")
def biased_variance_collected(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """You collect the biased variance. It is too small on average, by (m - 1) / m: with two numbers in a channel by a
    half, and in evaluation everything would come out too large. Multiply it by m / (m - 1) on its way into
    running."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, collected=0)


@mistake("batch_norm", caught_by="test_running_values_move_towards_the_unbiased_statistics")
def momentum_the_other_way(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """You keep `momentum` of the old running value and take 1 - momentum of the new one. Here it is the other way
    round (as in torch): momentum = 0.1 means a slow average that moves by a tenth."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, swap=True)


@mistake("batch_norm", caught_by="test_running_values_move_towards_the_unbiased_statistics")
def running_values_never_move(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """Your running statistics never change, so that evaluation would use those of the beginning. In training, return
    a new dict whose mean and var have moved by `momentum` towards the batch's."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, keep=True)


@mistake("batch_norm", caught_by="test_evaluation_uses_the_running_values_and_keeps_them")
def batch_statistics_in_evaluation(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """In evaluation you still use the batch's own statistics: what the network says about one image then depends on
    which others are asked about at the same time. Use running["mean"] and running["var"] when training is False."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, own=True)


@mistake("batch_norm", caught_by="test_a_batch_is_normalised_by_its_own_mean_and_biased_variance")
def running_values_in_training(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """In training you normalise with the running values. They lag behind the weights, and the gradient does not know
    of them: the network can grow without end. Use the batch's own mean and variance when training is True."""
    _, new = _batch_norm(x, weight, bias, running, training, momentum, eps)
    return _batch_norm(x, weight, bias, running, False, momentum, eps)[0], new


@mistake("batch_norm", caught_by="test_a_batch_is_normalised_by_its_own_mean_and_biased_variance")
def each_place_apart(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """You take mean and variance over the examples only, so that every place of an image has its own. A channel's
    convolution is the same in all places, and so are its statistics: take them over dimension 0 and all from 2 on."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, axes=[0])


@mistake("batch_norm", caught_by="test_a_batch_is_normalised_by_its_own_mean_and_biased_variance")
def eps_outside_the_root(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """You add eps to the standard deviation. Here it is added to the variance, inside the root; where the variance is
    small that makes a difference."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, eps_outside=True)


@mistake("batch_norm", caught_by="test_a_batch_is_normalised_by_its_own_mean_and_biased_variance")
def eps_left_out(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """eps does not enter your result. It is added to the variance, inside the root; without it a channel that is always
    the same is divided by zero."""
    return _batch_norm(x, weight, bias, running, training, momentum, 0.0)


@mistake("batch_norm", caught_by="test_batch_norms_gradient_flows_through_the_statistics")
def statistics_detached(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """The numbers are right, but autograd takes your mean and variance for constants (detach, .data, torch.no_grad, or
    .item()). They depend on x; without their gradient each step pushes the signal where the norm takes it back."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, detach=True)


@mistake("batch_norm", caught_by="test_batch_norm_survives_a_large_mean")
def short_formula(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """You compute the variance as mean(x**2) - mean(x)**2. Where the mean is large both are huge and nearly equal, and
    the difference is mostly rounding; it may even be negative, and its root NaN. Square the differences from the
    mean instead."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, short=True)


@mistake("batch_norm", caught_by="test_a_single_number_in_a_channel_is_refused")
def single_number_accepted(x, weight, bias, running, training, momentum=0.1, eps=1e-5):
    """You let a single number in a channel pass. Its variance is 0 and its unbiased variance 0/0, which makes the
    running values NaN for ever, or its output is the bias whatever came in. Raise ValueError, as torch does."""
    return _batch_norm(x, weight, bias, running, training, momentum, eps, refuse=False)


# ---------------------------------------------------------------- batch_norm_backward

def _batch_norm_backward(dy, x, weight, eps, *, mean=True, along=True, over=None, scaled=True, own_x=False, n_only=False,
                         correction=0):
    axes, m = _axes(x), x.numel() // x.shape[1]
    center = x - x.mean(axes, keepdim=True)
    var = center.square().mean(axes, keepdim=True) * (m / (m - 1) if correction else 1)
    scale = (var + eps).rsqrt()
    x_hat = center * scale
    dbias, dweight = dy.sum(axes), (dy * (x if own_x else x_hat)).sum(axes)
    m = over or (x.shape[0] if n_only else m)
    inner = dy - mean * _row(dbias, x) / m - along * x_hat * _row((dy * x_hat).sum(axes), x) / m
    return (_row(weight, x) if scaled else 1) * scale * inner, dweight, dbias


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def statistics_as_constants(dy, x, weight, eps=1e-5):
    """You treat mean and variance as constants. They depend on every x, and what flows back through them takes away
    the mean of dy and its part along x_hat. Both terms are missing."""
    return _batch_norm_backward(dy, x, weight, eps, mean=False, along=False)


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def gradient_of_the_variance_forgotten(dy, x, weight, eps=1e-5):
    """You take away the mean of dy, which is what flows back through the mean. What flows back through the variance is
    missing: minus x_hat times the mean of dy * x_hat."""
    return _batch_norm_backward(dy, x, weight, eps, along=False)


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def gradient_of_the_mean_forgotten(dy, x, weight, eps=1e-5):
    """You take away the part along x_hat, which is what flows back through the variance. What flows back through the
    mean is missing: minus the mean of dy."""
    return _batch_norm_backward(dy, x, weight, eps, mean=False)


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def sums_in_the_place_of_means(dy, x, weight, eps=1e-5):
    """In dx you take away the sums dbias and x_hat * dweight themselves. Divide both by m, the count of numbers in a
    channel."""
    return _batch_norm_backward(dy, x, weight, eps, over=1)


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def only_the_examples_counted(dy, x, weight, eps=1e-5):
    """You divide by the count of examples. A channel has more numbers than that: m is examples times places."""
    return _batch_norm_backward(dy, x, weight, eps, n_only=True)


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def weight_left_out_of_dx(dy, x, weight, eps=1e-5):
    """dx is not multiplied by weight. y = weight * x_hat + bias, so that everything that reaches x has passed
    weight."""
    return _batch_norm_backward(dy, x, weight, eps, scaled=False)


@mistake("batch_norm_backward", caught_by="test_batch_norms_weight_and_bias_gradients_are_sums")
def dweight_from_x(dy, x, weight, eps=1e-5):
    """dweight sums dy * x. What weight multiplies is x_hat, the normalised x."""
    return _batch_norm_backward(dy, x, weight, eps, own_x=True)


@mistake("batch_norm_backward", caught_by="test_batch_norms_weight_and_bias_gradients_are_sums")
def dweight_and_dbias_exchanged(dy, x, weight, eps=1e-5):
    """dweight and dbias have changed places. Return dx, dweight, dbias in this order: dweight is the sum of dy * x_hat,
    dbias the sum of dy."""
    dx, dweight, dbias = _batch_norm_backward(dy, x, weight, eps)
    return dx, dbias, dweight


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def eps_left_out_backwards(dy, x, weight, eps=1e-5):
    """eps does not enter your result. The forward pass divides by sqrt(var + eps), and its gradient must use the same."""
    return _batch_norm_backward(dy, x, weight, 0.0)


@mistake("batch_norm_backward", caught_by="test_batch_norms_backward_pass_is_written_by_hand")
def left_to_autograd(dy, x, weight, eps=1e-5):
    """The numbers are right, but autograd found them (or your formula is cut off by detach or no_grad). Here the formula
    is the exercise: write it with sums, means and products of dy and x_hat."""
    with torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight, torch.zeros_like(weight))]
        y = F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True, eps=eps)
    return torch.autograd.grad(y, leaves, dy)


@mistake("batch_norm_backward", caught_by="test_batch_norms_dx_is_what_autograd_finds")
def unbiased_variance_backwards(dy, x, weight, eps=1e-5):
    """You divide by the unbiased variance (torch.var does so by itself). The forward pass normalises with the biased
    one, and its gradient must use the same."""
    return _batch_norm_backward(dy, x, weight, eps, correction=1)


# ---------------------------------------------------------------- layer_norm

def _single(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _layer_norm(x, weight, bias, eps, *, dims=(-1,), correction=0, eps_outside=False, short=False, detach=False):
    h = _single(x)
    mean = h.mean(dims, keepdim=True)
    var = h.square().mean(dims, keepdim=True) - mean.square() if short else h.var(dims, correction=correction, keepdim=True)
    if detach:
        mean, var = mean.detach(), var.detach()
    return ((h - mean) / (var.sqrt() + eps if eps_outside else (var + eps).sqrt()) * weight + bias).to(x.dtype)


@mistake("layer_norm", caught_by="test_every_place_is_normalised_over_its_last_dimension")
def unbiased_in_layer_norm(x, weight, bias, eps=1e-5):
    """You use the unbiased variance (torch.var does so by itself). LayerNorm divides by d, not by d - 1: nothing is
    estimated here, these d numbers are all there are."""
    return _layer_norm(x, weight, bias, eps, correction=1)


@mistake("layer_norm", caught_by="test_every_place_is_normalised_over_its_last_dimension")
def over_the_whole_example(x, weight, bias, eps=1e-5):
    """You take mean and variance over all dimensions at once, so that the places of a sequence, or the examples of a
    batch, mix. Each place is normalised alone: over the last dimension only, keepdim=True."""
    return _layer_norm(x, weight, bias, eps, dims=tuple(range(x.ndim)))


@mistake("layer_norm", caught_by="test_every_place_is_normalised_over_its_last_dimension")
def over_the_first_dimension(x, weight, bias, eps=1e-5):
    """You take mean and variance over the first dimension, the examples: that is BatchNorm. LayerNorm takes them over
    the last."""
    return _layer_norm(x, weight, bias, eps, dims=(0,))


@mistake("layer_norm", caught_by="test_every_place_is_normalised_over_its_last_dimension")
def eps_outside_the_root_of_layer_norm(x, weight, bias, eps=1e-5):
    """You add eps to the standard deviation. Here it is added to the variance, inside the root."""
    return _layer_norm(x, weight, bias, eps, eps_outside=True)


@mistake("layer_norm", caught_by="test_a_large_mean_does_not_swallow_the_variance")
def short_formula_of_layer_norm(x, weight, bias, eps=1e-5):
    """You compute the variance as mean(x**2) - mean(x)**2. Where the mean is large both are huge and nearly equal, and
    their difference is mostly rounding. Subtract the mean first, then square."""
    return _layer_norm(x, weight, bias, eps, short=True)


@mistake("layer_norm", caught_by="test_half_precision_is_computed_in_float32")
def squares_in_half_precision(x, weight, bias, eps=1e-5):
    """You compute float16 in float16. Its largest number is 65504: the square of 300 is infinity, and the result 0.
    Convert to float32 first (x.float()), and back at the end."""
    center = x - x.mean(-1, keepdim=True)
    return center * (center.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


@mistake("layer_norm", caught_by="test_half_precision_is_computed_in_float32")
def statistics_in_half_precision(x, weight, bias, eps=1e-5):
    """You compute mean and variance of a float16 tensor in float16. Each is rounded to three digits, and a variance
    beyond 65504 becomes infinite. Convert x to float32 before anything else, and the result back at the end."""
    var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * weight + bias


@mistake("layer_norm", caught_by="test_every_place_is_normalised_over_its_last_dimension")
def float64_in_float32(x, weight, bias, eps=1e-5):
    """Nearly right: you compute float64 in float32 too, and half of its digits are lost. Only float16 and bfloat16 are
    to be converted; test x.dtype first."""
    return _layer_norm(x.float(), weight, bias, eps).to(x.dtype)


@mistake("layer_norm", caught_by="test_layer_norms_gradient_flows_through_the_statistics")
def layer_statistics_detached(x, weight, bias, eps=1e-5):
    """The numbers are right, but autograd takes your mean and variance for constants (detach, .data, torch.no_grad).
    They depend on x, and their gradient must flow."""
    return _layer_norm(x, weight, bias, eps, detach=True)


@mistake("layer_norm", caught_by="test_every_place_is_normalised_over_its_last_dimension")
def eps_left_out_of_layer_norm(x, weight, bias, eps=1e-5):
    """eps does not enter your result. It is added to the variance, inside the root; without it a place of equal numbers
    is divided by zero."""
    return _layer_norm(x, weight, bias, 0.0)


@mistake("layer_norm", caught_by="test_half_precision_is_computed_in_float32")
def left_in_float32(x, weight, bias, eps=1e-5):
    """From float16 you return float32. What follows expects the type that it had: convert the result with
    .to(x.dtype)."""
    return _layer_norm(_single(x), weight, bias, eps)


@mistake("layer_norm", caught_by="test_every_place_is_normalised_over_its_last_dimension")
def without_weight_and_bias(x, weight, bias, eps=1e-5):
    """You return x_hat. Multiply by weight and add bias, so that the network can choose another scale and mean."""
    return _layer_norm(x, torch.ones_like(weight), torch.zeros_like(bias), eps)


# ---------------------------------------------------------------- layer_norm_backward

def _layer_norm_backward(dy, x, weight, eps, *, mean=True, along=True, first=True, sums=False, over_batch=False, correction=0,
                         per_place=False):
    center = x - x.mean(-1, keepdim=True)
    scale = (x.var(-1, correction=correction, keepdim=True) + eps).rsqrt()
    x_hat, d = center * scale, x.shape[-1]
    g = dy * weight if first else dy
    dim = tuple(range(x.ndim - 1)) if over_batch and x.ndim > 1 else -1
    average = (lambda t: t.sum(dim, keepdim=True)) if sums else (lambda t: t.mean(dim, keepdim=True))
    dx = scale * (g - mean * average(g) - along * x_hat * average(g * x_hat))
    collect = (lambda t: t.reshape(-1, d).mean(0)) if per_place else (lambda t: t.reshape(-1, d).sum(0))
    return dx if first else dx * weight, collect(dy * x_hat), collect(dy)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def weight_outside_the_means(dy, x, weight, eps=1e-5):
    """You multiply by weight at the end, as in BatchNorm. There weight is the same for all numbers of a sum; here each
    number of the sum has its own. Multiply first: g = dy * weight."""
    return _layer_norm_backward(dy, x, weight, eps, first=False)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def layer_statistics_as_constants(dy, x, weight, eps=1e-5):
    """You treat mean and variance as constants. What flows back through them takes away the mean of g and its part
    along x_hat. Both terms are missing."""
    return _layer_norm_backward(dy, x, weight, eps, mean=False, along=False)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def layer_variance_forgotten(dy, x, weight, eps=1e-5):
    """What flows back through the variance is missing: minus x_hat times the mean of g * x_hat."""
    return _layer_norm_backward(dy, x, weight, eps, along=False)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def layer_mean_forgotten(dy, x, weight, eps=1e-5):
    """What flows back through the mean is missing: minus the mean of g over the last dimension."""
    return _layer_norm_backward(dy, x, weight, eps, mean=False)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def layer_sums_for_means(dy, x, weight, eps=1e-5):
    """In dx you take away sums over the last dimension. They must be means: divide by d."""
    return _layer_norm_backward(dy, x, weight, eps, sums=True)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def means_over_the_batch(dy, x, weight, eps=1e-5):
    """In dx you take the means over the examples and places, as in BatchNorm. In LayerNorm a place knows only itself:
    take them over the last dimension."""
    return _layer_norm_backward(dy, x, weight, eps, over_batch=True)


@mistake("layer_norm_backward", caught_by="test_layer_norms_weight_and_bias_gradients_sum_over_all_places")
def means_for_weight_and_bias(dy, x, weight, eps=1e-5):
    """dweight and dbias are means over the places. Every place adds its part to the loss: sum them."""
    return _layer_norm_backward(dy, x, weight, eps, per_place=True)


@mistake("layer_norm_backward", caught_by="test_layer_norms_weight_and_bias_gradients_sum_over_all_places")
def layer_dweight_and_dbias_exchanged(dy, x, weight, eps=1e-5):
    """dweight and dbias have changed places. Return dx, dweight, dbias in this order: dweight is the sum of dy * x_hat,
    dbias the sum of dy."""
    dx, dweight, dbias = _layer_norm_backward(dy, x, weight, eps)
    return dx, dbias, dweight


def _summed(dy, x, weight, eps, dims):
    dx, _, _ = _layer_norm_backward(dy, x, weight, eps)
    center = x - x.mean(-1, keepdim=True)
    x_hat = center * (center.square().mean(-1, keepdim=True) + eps).rsqrt()
    return dx, (dy * x_hat).sum(dims), dy.sum(dims)


@mistake("layer_norm_backward", caught_by="test_layer_norms_weight_and_bias_gradients_sum_over_all_places")
def no_dimensions_are_all_dimensions(dy, x, weight, eps=1e-5):
    """x of shape [d] is one place, and there is nothing to sum over. But torch takes an empty tuple of dimensions for all
    of them: sum(()) adds up everything. reshape(-1, d).sum(0) is right for none, one and several dimensions of places."""
    return _summed(dy, x, weight, eps, tuple(range(x.ndim - 1)))


@mistake("layer_norm_backward", caught_by="test_layer_norms_weight_and_bias_gradients_sum_over_all_places")
def summed_over_the_first_dimension(dy, x, weight, eps=1e-5):
    """You sum over the first dimension only. x is [*places, d], with none, one or several dimensions of places: dweight
    and dbias sum over all of these and have d numbers. reshape(-1, d).sum(0) does that."""
    return _summed(dy, x, weight, eps, 0)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def eps_left_out_of_layer_backward(dy, x, weight, eps=1e-5):
    """eps does not enter your result. The forward pass divides by sqrt(var + eps), and its gradient must use the same."""
    return _layer_norm_backward(dy, x, weight, 0.0)


@mistake("layer_norm_backward", caught_by="test_layer_norms_backward_pass_is_written_by_hand")
def layer_left_to_autograd(dy, x, weight, eps=1e-5):
    """The numbers are right, but autograd found them (or your formula is cut off by detach or no_grad). Here the formula
    is the exercise: write it with means and products of g and x_hat."""
    with torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight, torch.zeros_like(weight))]
        y = F.layer_norm(leaves[0], x.shape[-1:], leaves[1], leaves[2], eps)
    return torch.autograd.grad(y, leaves, dy)


@mistake("layer_norm_backward", caught_by="test_layer_norms_dx_is_what_autograd_finds")
def unbiased_layer_variance_backwards(dy, x, weight, eps=1e-5):
    """You divide by the unbiased variance (torch.var does so by itself). The forward pass normalises with the biased
    one."""
    return _layer_norm_backward(dy, x, weight, eps, correction=1)


# ---------------------------------------------------------------- group_norm

@mistake("group_norm", caught_by="test_neighbouring_channels_share_their_statistics")
def interleaved_groups(x, groups, weight, bias, eps=1e-5):
    """Your groups take every G-th channel. A group is a run of neighbours: x.reshape(n, G, -1) keeps them together,
    x.reshape(n, -1, G, ...) does not."""
    n, c = x.shape[:2]
    h = x.reshape(n, c // groups, groups, -1).transpose(1, 2)
    y = F.group_norm(h.reshape(n, c, -1), groups, eps=eps)
    return y.reshape(n, groups, c // groups, -1).transpose(1, 2).reshape(x.shape) * _row(weight, x) + _row(bias, x)


@mistake("group_norm", caught_by="test_neighbouring_channels_share_their_statistics")
def size_of_a_group_for_their_number(x, groups, weight, bias, eps=1e-5):
    """You take `groups` for the number of channels in a group. It is the number of groups: each has c / groups
    channels."""
    return F.group_norm(x, x.shape[1] // groups, weight, bias, eps)


@mistake("group_norm", caught_by="test_neighbouring_channels_share_their_statistics")
def groups_over_the_batch(x, groups, weight, bias, eps=1e-5):
    """You take the statistics over the batch as well. That is what GroupNorm is there to avoid: each example has its
    own, so keep dimension 0."""
    h = x.reshape(x.shape[0], groups, -1)
    center = h - h.mean((0, 2), keepdim=True)
    x_hat = center * (center.square().mean((0, 2), keepdim=True) + eps).rsqrt()
    return x_hat.reshape(x.shape) * _row(weight, x) + _row(bias, x)


@mistake("group_norm", caught_by="test_neighbouring_channels_share_their_statistics")
def places_apart(x, groups, weight, bias, eps=1e-5):
    """Every place has its own mean and variance in your function. A group's statistics are taken over its channels
    and over all places."""
    h = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    center = h - h.mean(2, keepdim=True)
    x_hat = center * (center.square().mean(2, keepdim=True) + eps).rsqrt()
    return x_hat.reshape(x.shape) * _row(weight, x) + _row(bias, x)


@mistake("group_norm", caught_by="test_neighbouring_channels_share_their_statistics")
def unbiased_in_group_norm(x, groups, weight, bias, eps=1e-5):
    """You use the unbiased variance (torch.var does so by itself). GroupNorm divides by the count of numbers in the
    group, not by one less."""
    h = x.reshape(x.shape[0], groups, -1)
    m = h.shape[-1]
    center = h - h.mean(-1, keepdim=True)
    x_hat = center * (center.square().sum(-1, keepdim=True) / max(m - 1, 1) + eps).rsqrt()
    return x_hat.reshape(x.shape) * _row(weight, x) + _row(bias, x)


@mistake("group_norm", caught_by="test_neighbouring_channels_share_their_statistics")
def weight_for_each_group(x, groups, weight, bias, eps=1e-5):
    """All channels of a group get the weight and bias of its first channel. Only mean and variance are shared; weight
    and bias belong to each channel."""
    size = x.shape[1] // groups
    first = lambda v: v[::size].repeat_interleave(size)
    return F.group_norm(x, groups, first(weight), first(bias), eps)


@mistake("group_norm", caught_by="test_neighbouring_channels_share_their_statistics")
def eps_left_out_of_group_norm(x, groups, weight, bias, eps=1e-5):
    """eps does not enter your result. It is added to the variance, inside the root."""
    return F.group_norm(x, groups, weight, bias, 1e-300 if x.dtype == torch.float64 else 1e-30)


@mistake("group_norm", caught_by="test_group_norms_gradient_flows_through_the_statistics")
def group_statistics_detached(x, groups, weight, bias, eps=1e-5):
    """The numbers are right, but autograd takes your mean and variance for constants (detach, .data, torch.no_grad).
    They depend on x, and their gradient must flow."""
    h = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(h.detach(), -1, correction=0, keepdim=True)
    return ((h - mean) * (var + eps).rsqrt()).reshape(x.shape) * _row(weight, x) + _row(bias, x)


@mistake("group_norm", caught_by="test_the_order_of_x_in_memory_does_not_matter")
def view_of_memory_in_another_order(x, groups, weight, bias, eps=1e-5):
    """.view only renames the numbers as they lie in memory, and these lie in another order (x was permuted). Use
    .reshape, which copies where it must."""
    return F.group_norm(x.view(x.shape[0], groups, -1).view(x.shape), groups, weight, bias, eps)


# ---------------------------------------------------------------- fold_batch_norm

def _fold(conv_weight, conv_bias, weight, bias, mean, var, eps, *, root=True, scale_bias=True, scale_mean=True, use_bias=True,
          use_mean=True, axis=0):
    scale = weight / ((var + eps).sqrt() if root else var + eps)
    b = torch.zeros_like(mean) if conv_bias is None or not use_bias else conv_bias
    shift = (b * scale if scale_bias else b) - use_mean * (mean * scale if scale_mean else mean)
    shape = [1] * conv_weight.ndim
    shape[axis] = -1
    return conv_weight * scale.view(shape), bias + shift


@mistake("fold_batch_norm", caught_by="test_one_convolution_does_what_two_steps_did")
def convolutions_bias_not_scaled(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """You add the convolution's bias as it is. The norm comes after it and scales it too: the new bias is bias +
    (conv_bias - mean) * weight / sqrt(var + eps)."""
    return _fold(conv_weight, conv_bias, weight, bias, mean, var, eps, scale_bias=False)


@mistake("fold_batch_norm", caught_by="test_one_convolution_does_what_two_steps_did")
def mean_not_scaled(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """You subtract the mean as it is. It is subtracted before the division: what is left of it in the new bias is
    mean * weight / sqrt(var + eps)."""
    return _fold(conv_weight, conv_bias, weight, bias, mean, var, eps, scale_mean=False)


@mistake("fold_batch_norm", caught_by="test_one_convolution_does_what_two_steps_did")
def convolutions_bias_lost(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """The convolution's own bias is lost. Where there is one, it is part of what the norm subtracts the mean from."""
    return _fold(conv_weight, conv_bias, weight, bias, mean, var, eps, use_bias=False)


@mistake("fold_batch_norm", caught_by="test_one_convolution_does_what_two_steps_did")
def running_mean_lost(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """The running mean does not enter your result. The new bias is bias + (conv_bias - mean) * weight / sqrt(var +
    eps)."""
    return _fold(conv_weight, conv_bias, weight, bias, mean, var, eps, use_mean=False)


@mistake("fold_batch_norm", caught_by="test_one_convolution_does_what_two_steps_did")
def root_forgotten(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """You divide by the variance. The norm divides by its root, the standard deviation."""
    return _fold(conv_weight, conv_bias, weight, bias, mean, var, eps, root=False)


@mistake("fold_batch_norm", caught_by="test_one_convolution_does_what_two_steps_did")
def eps_forgotten(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """You leave eps out. It is part of the norm, and where a channel's variance is small it is most of it."""
    return _fold(conv_weight, conv_bias, weight, bias, mean, var, 0.0)


@mistake("fold_batch_norm", caught_by="test_one_convolution_does_what_two_steps_did")
def inputs_scaled(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """You scale along the second dimension of the weight, the input channels. The norm stands after the convolution:
    scale the output channels, the first dimension."""
    if conv_weight.shape[1] != len(weight):
        raise RuntimeError("shapes do not fit")
    return _fold(conv_weight, conv_bias, weight, bias, mean, var, eps, axis=1)


@mistake("fold_batch_norm", caught_by="test_linear_and_depthwise_layers_fold_too")
def only_four_dimensions(conv_weight, conv_bias, weight, bias, mean, var, eps=1e-5):
    """Your function wants a weight of four dimensions. A linear layer's has two: reshape the scale to as many
    dimensions as the weight has."""
    new_weight, new_bias = _fold(conv_weight, conv_bias, weight, bias, mean, var, eps)
    return conv_weight * (weight / (var + eps).sqrt()).view(-1, 1, 1, 1), new_bias


# ---------------------------------------------------------------- blocks

@mistake("block_pre_ln", caught_by="test_the_norm_stands_before_each_branch")
def post_norm(x, attention, mlp, norm1, norm2):
    """This is post-norm: you normalise the sums. Normalise what goes into each branch, and add the branch's result to
    the stream as it was."""
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


@mistake("block_pre_ln", caught_by="test_the_norm_stands_before_each_branch")
def stream_replaced_by_its_norm(x, attention, mlp, norm1, norm2):
    """You add the branch to the *normalised* x. The stream itself is never normalised: x + attention(norm1(x))."""
    x = norm1(x)
    x = x + attention(x)
    x = norm2(x)
    return x + mlp(x)


@mistake("block_pre_ln", caught_by="test_the_norm_stands_before_each_branch")
def branches_side_by_side(x, attention, mlp, norm1, norm2):
    """Both branches start from the same x. (Some models do that, and it is faster.) Here the MLP sees what attention
    has added: use the first sum in the second line."""
    return x + attention(norm1(x)) + mlp(norm2(x))


@mistake("block_pre_ln", caught_by="test_the_norm_stands_before_each_branch")
def stream_lost(x, attention, mlp, norm1, norm2):
    """Nothing is added: each branch replaces the stream. Without x + ... neither signal nor gradient has a straight
    way through the network."""
    return mlp(norm2(attention(norm1(x))))


@mistake("block_pre_ln", caught_by="test_the_norm_stands_before_each_branch")
def norm_on_the_way_out(x, attention, mlp, norm1, norm2):
    """You normalise what comes out of each branch. Normalise what goes in: attention(norm1(x))."""
    x = x + norm1(attention(x))
    return x + norm2(mlp(x))


@mistake("block_pre_ln", caught_by="test_the_norm_stands_before_each_branch")
def norms_exchanged(x, attention, mlp, norm1, norm2):
    """The norms have changed places: norm1 belongs to attention, norm2 to the MLP."""
    x = x + attention(norm2(x))
    return x + mlp(norm1(x))


@mistake("block_pre_ln", caught_by="test_each_part_of_the_block_is_called_once")
def everything_twice(x, attention, mlp, norm1, norm2):
    """The result is right, but attention and its norm are computed twice. Keep the first sum in a variable."""
    return x + attention(norm1(x)) + mlp(norm2(x + attention(norm1(x))))


@mistake("block_post_ln", caught_by="test_the_norm_stands_after_each_sum")
def pre_norm(x, attention, mlp, norm1, norm2):
    """This is pre-norm: you normalise what goes into the branches. Post-norm normalises the sum that comes out."""
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


@mistake("block_post_ln", caught_by="test_the_norm_stands_after_each_sum")
def branch_normalised_not_the_sum(x, attention, mlp, norm1, norm2):
    """You normalise the branch and then add. Add first, then normalise the sum: norm1(x + attention(x))."""
    x = x + norm1(attention(x))
    return x + norm2(mlp(x))


@mistake("block_post_ln", caught_by="test_the_norm_stands_after_each_sum")
def second_norm_forgotten(x, attention, mlp, norm1, norm2):
    """Only the first sum is normalised. The second one has its own norm: norm2(x + mlp(x))."""
    x = norm1(x + attention(x))
    return x + mlp(x)


@mistake("block_post_ln", caught_by="test_the_norm_stands_after_each_sum")
def stream_lost_in_post_norm(x, attention, mlp, norm1, norm2):
    """Nothing is added: each branch replaces the stream. Normalise the sum, x + attention(x)."""
    return norm2(mlp(norm1(attention(x))))


@mistake("block_post_ln", caught_by="test_the_norm_stands_after_each_sum")
def norms_exchanged_in_post_norm(x, attention, mlp, norm1, norm2):
    """The norms have changed places: norm1 belongs to attention, norm2 to the MLP."""
    x = norm2(x + attention(x))
    return norm1(x + mlp(x))


# ---------------------------------------------------------------- triton_layer_norm

@triton.jit
def _kernel(x_ptr, weight_ptr, bias_ptr, y_ptr, d, eps, BLOCK: tl.constexpr, WRONG: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < d
    x = tl.load(x_ptr + row * d + i, mask=inside, other=0.0)
    if WRONG != "half":
        x = x.to(tl.float32)
    count = d
    if WRONG == "block":
        count = BLOCK
    mean = tl.sum(x, axis=0) / count
    center = tl.where(inside, x - mean, 0.0)
    if WRONG == "padding":
        center = x - mean
    var = tl.sum(center * center, axis=0) / count
    if WRONG == "short":
        var = tl.sum(x * x, axis=0) / d - mean * mean
    if WRONG == "half":
        var = tl.sum((center * center).to(y_ptr.dtype.element_ty), axis=0) / d
    scale = 1 / tl.sqrt(var + eps)
    if WRONG == "eps":
        scale = 1 / (tl.sqrt(var) + eps)
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + i, mask=inside, other=0.0)
    y = center * scale * weight + bias
    if WRONG == "bare":
        y = center * scale
    if WRONG == "root mean square":
        y = x / tl.sqrt(tl.sum(x * x, axis=0) / d + eps) * weight + bias
    tl.store(y_ptr + row * d + i, y, mask=inside)


def _launch(x, weight, bias, eps, wrong):
    from course.device import default_device
    home, (n, d) = x.device, x.shape
    x, weight, bias = (t.to(default_device()).contiguous() for t in (x, weight, bias))
    y = torch.empty_like(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter says it when half precision overflows
        _kernel[(n,)](x, weight, bias, y, d, eps, BLOCK=triton.next_power_of_2(d), WRONG=wrong)
    return y.to(home)


@mistake("triton_layer_norm", caught_by="test_what_lies_beyond_the_row_is_in_no_sum")
def padding_in_the_variance(x, weight, bias, eps=1e-5):
    """The places beyond the row are loaded as 0, and 0 minus the mean is not 0: each of them adds mean**2 to your
    variance. Set the difference to 0 there, with tl.where(inside, x - mean, 0.0)."""
    return _launch(x, weight, bias, eps, "padding")


@mistake("triton_layer_norm", caught_by="test_what_lies_beyond_the_row_is_in_no_sum")
def divided_by_block(x, weight, bias, eps=1e-5):
    """You divide the sums by BLOCK. The row has d numbers; the rest of the block is padding."""
    return _launch(x, weight, bias, eps, "block")


@mistake("triton_layer_norm", caught_by="test_the_kernel_survives_a_large_mean")
def short_formula_in_the_kernel(x, weight, bias, eps=1e-5):
    """Your variance is mean(x**2) - mean**2, which is mostly rounding where the mean is large. The row is in registers:
    to subtract the mean first costs no second pass over the memory."""
    return _launch(x, weight, bias, eps, "short")


@mistake("triton_layer_norm", caught_by="test_the_kernel_computes_half_precision_in_float32")
def sums_in_half_precision(x, weight, bias, eps=1e-5):
    """You compute in the type that was loaded. In float16 the square of 300 is infinity, and the result 0: convert
    with .to(tl.float32) right after the load."""
    return _launch(x, weight, bias, eps, "half")


@mistake("triton_layer_norm", caught_by="test_the_kernel_normalises_every_row")
def eps_outside_in_the_kernel(x, weight, bias, eps=1e-5):
    """You add eps to the standard deviation. It is added to the variance, inside the root."""
    return _launch(x, weight, bias, eps, "eps")


@mistake("triton_layer_norm", caught_by="test_the_kernel_normalises_every_row")
def weight_and_bias_not_loaded(x, weight, bias, eps=1e-5):
    """You store x_hat. Load weight and bias, number i of each, multiply and add."""
    return _launch(x, weight, bias, eps, "bare")


@mistake("triton_layer_norm", caught_by="test_the_kernel_normalises_every_row")
def mean_not_subtracted(x, weight, bias, eps=1e-5):
    """You divide by the root mean square and never subtract the mean: that is RMSNorm."""
    return _launch(x, weight, bias, eps, "root mean square")


@mistake("triton_layer_norm", caught_by="test_the_kernel_normalises_every_row")
def eps_left_out_of_the_kernel(x, weight, bias, eps=1e-5):
    """eps does not enter your result. It is added to the variance, inside the root."""
    return _launch(x, weight, bias, 1e-30, "")


@mistake("triton_layer_norm", caught_by="test_the_result_is_the_kernels")
def torchs_function_for_the_kernel(x, weight, bias, eps=1e-5):
    """The numbers are right, but torch's own operations made them: no kernel of yours is at work. Launch
    layer_norm_kernel[(n,)](...) and return y, into which it stores."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


# ---------------------------------------------------------------- rms_norm

@mistake("rms_norm", caught_by="test_every_place_is_divided_by_its_root_mean_square")
def mean_subtracted(x, weight, eps=1e-5):
    """You subtract the mean: this is LayerNorm. RMSNorm leaves the mean where it is."""
    return F.layer_norm(_single(x), x.shape[-1:], _single(weight), None, eps).to(x.dtype)


@mistake("rms_norm", caught_by="test_every_place_is_divided_by_its_root_mean_square")
def divided_by_the_length(x, weight, eps=1e-5):
    """You divide by the root of the sum of squares. It is the root of their *mean*: numbers of size 1 stay so."""
    h = _single(x)
    return (h * (h.square().sum(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)


@mistake("rms_norm", caught_by="test_every_place_is_divided_by_its_root_mean_square")
def mean_size_for_root_mean_square(x, weight, eps=1e-5):
    """You divide by the mean of the absolute values. Square, average, then take the root."""
    h = _single(x)
    return (h / (h.abs().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


@mistake("rms_norm", caught_by="test_every_place_is_divided_by_its_root_mean_square")
def eps_outside_in_rms_norm(x, weight, eps=1e-5):
    """You add eps to the root mean square. It is added to the mean of the squares, inside the root."""
    h = _single(x)
    return (h / (h.square().mean(-1, keepdim=True).sqrt() + eps) * weight).to(x.dtype)


@mistake("rms_norm", caught_by="test_every_place_is_divided_by_its_root_mean_square")
def rms_of_float64_in_float32(x, weight, eps=1e-5):
    """Nearly right: you compute float64 in float32 too, and half of its digits are lost. Only float16 and bfloat16 are
    to be converted; test x.dtype first."""
    h = x.float()
    return (h * (h.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)


@mistake("rms_norm", caught_by="test_every_place_is_divided_by_its_root_mean_square")
def eps_left_out_of_rms_norm(x, weight, eps=1e-5):
    """eps does not enter your result. It is added to the mean of the squares, inside the root."""
    h = _single(x)
    return (h * h.square().mean(-1, keepdim=True).rsqrt() * weight).to(x.dtype)


@mistake("rms_norm", caught_by="test_rms_norm_of_half_precision_is_computed_in_float32")
def rms_in_half_precision(x, weight, eps=1e-5):
    """You compute float16 in float16: the square of 300 is infinity there, and the result 0. Convert to float32 first,
    and back at the end."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


# ---------------------------------------------------------------- sync_batch_norm_statistics

@mistake("sync_batch_norm_statistics", caught_by="test_the_parts_statistics_give_those_of_the_whole")
def spread_of_the_means_forgotten(means, variances, counts):
    """You average the variances. That forgets that the devices' means differ: to each variance comes the square of how
    far its mean is from the common one."""
    share = (counts / counts.sum()).unsqueeze(1)
    return (share * means).sum(0), (share * variances).sum(0)


@mistake("sync_batch_norm_statistics", caught_by="test_the_parts_statistics_give_those_of_the_whole")
def counts_ignored(means, variances, counts):
    """You weigh all devices alike. The last part of a data set may be smaller: weigh each device by its count."""
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


@mistake("sync_batch_norm_statistics", caught_by="test_the_parts_statistics_give_those_of_the_whole")
def unbiased_for_all(means, variances, counts):
    """You divide by the total count minus one. Wanted is the biased variance, with which the batch is normalised."""
    n, share = counts.sum(), (counts / counts.sum()).unsqueeze(1)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0) * n / (n - 1).clamp(min=1)


@mistake("sync_batch_norm_statistics", caught_by="test_large_means_do_not_swallow_the_common_variance")
def difference_of_squares(means, variances, counts):
    """You take the mean of variance + mean**2 and subtract the square of the common mean. Where the means are large the
    difference of these squares is mostly rounding: square the differences of the means instead."""
    share = (counts / counts.sum()).unsqueeze(1)
    mean = (share * means).sum(0)
    return mean, (share * (variances + means.square())).sum(0) - mean.square()


@mistake("sync_batch_norm_statistics", caught_by="test_the_parts_statistics_give_those_of_the_whole")
def sums_not_averages(means, variances, counts):
    """You weigh by the counts but never divide by their sum."""
    n = counts.unsqueeze(1)
    mean = (n * means).sum(0) / counts.sum()
    return mean, (n * (variances + (means - mean).square())).sum(0)
