"""What the functions of this lab must do: the part that only the grader has."""
from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from course import kernels
from course.spec import assert_close, assert_that, exercise
from course.spec.load import import_file

visible = import_file(Path(__file__).with_name("test_visible.py"))
some, few, generators, epsilons = visible.some, visible.few, visible.generators, visible.epsilons
NORMAL, SINGLE, OFFSET, GRADIENTS, SHAPES, LAST = (
    visible.NORMAL, visible.SINGLE, visible.OFFSET, visible.GRADIENTS, visible.SHAPES, visible.LAST)
normal, positive, features, several, far_from_zero = (
    visible.normal, visible.positive, visible.features, visible.several, visible.far_from_zero)
batch_norm_problem, normalised, batch_norm_gradients = (
    visible.batch_norm_problem, visible.normalised, visible.batch_norm_gradients)
layer_norm_problem, layer_norm_gradients, assert_half_is_computed_in_single = (
    visible.layer_norm_problem, visible.layer_norm_gradients, visible.assert_half_is_computed_in_single)
folding_problem, folded = visible.folding_problem, visible.folded


def assert_float32(*tensors) -> None:
    for t in tensors:
        assert_that(t.dtype == torch.float32, f"From float32 came {t.dtype}.")


# ---------------------------------------------------------------- batch_norm

@exercise("batch_norm", points=2)
@few
@given(random=generators(), mean=st.sampled_from([-3000.0, 3000.0]))
def test_batch_norm_survives_a_large_mean(student, random, mean):
    """Subtract the mean first and square afterwards: mean(x**2) - mean**2 is the difference of two huge numbers."""
    x, running = far_from_zero((64, 3), random, mean), {"mean": torch.zeros(3), "var": torch.ones(3)}
    y, new = normalised(student, x, torch.ones(3), torch.zeros(3), running, True, momentum=1.0)
    assert_close(y, F.batch_norm(x.double(), None, None, training=True).float(), "y", **OFFSET)
    assert_close(new["var"].double(), x.double().var(0), "the new running variance", rtol=0.03)


@exercise("batch_norm", points=2)
@few
@given(random=generators(), shape=st.sampled_from(SHAPES))
def test_a_channel_that_is_always_the_same_becomes_its_bias(student, random, shape):
    """With variance 0 only eps stands under the root, and x - mean is 0: y is bias. The defaults are momentum 0.1 and
    eps 1e-5; everything stays float32."""
    _, weight, bias, running = batch_norm_problem(shape, random)
    weight, bias, running = weight.float(), bias.float(), {name: v.float() for name, v in running.items()}
    row = [1, -1] + [1] * (len(shape) - 2)
    x = 5 * bias.view(row).expand(shape).contiguous()
    y, new = normalised(student, x, weight, bias, running, True)
    assert_float32(y, new["mean"], new["var"])
    assert_close(y, bias.view(row).expand(shape), "y", rtol=1e-3, atol=1e-3)
    assert_close(new["mean"], 0.9 * running["mean"] + 0.5 * bias, "the new running mean", rtol=1e-4, atol=1e-5)
    assert_close(new["var"], 0.9 * running["var"], "the new running variance", rtol=1e-4, atol=1e-5)
    small = 1e-3 * features(shape, random).float()
    y, _ = normalised(student, small, weight, bias, running, True)
    assert_close(y, F.batch_norm(small, None, None, weight, bias, True), "y of small numbers", rtol=1e-2, atol=2e-3)


# ---------------------------------------------------------------- batch_norm_backward

@exercise("batch_norm_backward", points=4)
@some
@given(random=generators(), shape=st.sampled_from([(4, 3), (3, 2, 4), (2, 3, 2, 2)]))
def test_no_gradient_is_left_for_shift_and_stretch(student, random, shape):
    """Moving all numbers of a channel together, or stretching them, changes nothing: dx has mean 0 in each channel, and
    so has dx * x."""
    x, weight, _, _ = batch_norm_problem(shape, random)
    axes = [0, *range(2, len(shape))]
    dx, _, _ = several(student.batch_norm_backward(normal(shape, random) + 1, x, weight, eps=1e-12), GRADIENTS)
    zero = torch.zeros(shape[1], dtype=torch.float64)
    assert_close(dx.sum(axes), zero, "the sum of dx in each channel", rtol=0, atol=1e-6)
    assert_close((dx * x).sum(axes), zero, "the sum of dx * x in each channel", rtol=0, atol=1e-6)
    assert_that(bool((dx != 0).any()) or x.numel() // shape[1] < 3, "dx is zero everywhere.")


@exercise("batch_norm_backward", points=2)
@few
@given(random=generators(), shape=st.sampled_from(SHAPES))
def test_batch_norms_gradients_keep_their_size_in_float32(student, random, shape):
    """Small numbers, so that eps counts (its default is 1e-5), and everything in float32."""
    x, weight, _, _ = (t if isinstance(t, dict) else t.float() for t in batch_norm_problem(shape, random))
    x, dy = 2e-3 * x, normal(shape, random).float()
    got = several(student.batch_norm_backward(dy, x, weight), GRADIENTS)
    assert_float32(*got)
    expected = batch_norm_gradients(dy.double(), x.double(), weight.double(), 1e-5)
    for name, mine, right in zip(GRADIENTS.split(", "), got, expected):
        assert_close(mine.double(), right, name, rtol=1e-3, atol=1e-3 * float(right.abs().max()))


@exercise("batch_norm_backward", points=1)
@few
@given(random=generators())
def test_batch_norms_gradient_survives_a_large_mean(student, random):
    """x_hat from x - mean, and the variance from the squares of x - mean."""
    x, dy = far_from_zero((64, 2), random), normal((64, 2), random).float()
    dx, dweight, _ = several(student.batch_norm_backward(dy, x, torch.ones(2)), GRADIENTS)
    expected = batch_norm_gradients(dy.double(), x.double(), torch.ones(2).double(), 1e-5)
    assert_close(dx.double(), expected[0], "dx", **OFFSET)
    assert_close(dweight.double(), expected[1], "dweight", rtol=0.03, atol=0.3)


# ---------------------------------------------------------------- layer_norm

@exercise("layer_norm", points=1)
@few
@given(random=generators(), shape=st.sampled_from(LAST))
def test_a_constant_place_becomes_the_bias(student, random, shape):
    """With variance 0 only eps stands under the root, and x - mean is 0: y is bias. eps is 1e-5 by default; float32
    stays float32."""
    x, weight, bias = (t.float() for t in layer_norm_problem(shape, random))
    flat = student.layer_norm(x[..., :1].expand(shape).contiguous(), weight, bias)
    assert_close(flat, bias.expand(shape), "y of equal numbers", rtol=1e-3, atol=2e-3)
    small = student.layer_norm(2e-3 * x, weight, bias)
    assert_close(small, F.layer_norm(2e-3 * x, shape[-1:], weight, bias), "y of small numbers", rtol=1e-2, atol=2e-3)


# ---------------------------------------------------------------- layer_norm_backward

@exercise("layer_norm_backward", points=3)
@some
@given(random=generators(), shape=st.sampled_from([(4, 5), (2, 3, 6), (3, 1, 2, 4)]))
def test_no_gradient_is_left_for_a_places_shift_and_stretch(student, random, shape):
    """Shifting or stretching a place changes nothing: dx has mean 0 in every place, and so has dx * x."""
    x, weight, _ = layer_norm_problem(shape, random)
    dx, _, _ = several(student.layer_norm_backward(normal(shape, random) + 1, x, weight, eps=1e-12), GRADIENTS)
    zero = torch.zeros(shape[:-1], dtype=torch.float64)
    assert_close(dx.sum(-1), zero, "the sum of dx in each place", rtol=0, atol=1e-6)
    assert_close((dx * x).sum(-1), zero, "the sum of dx * x in each place", rtol=0, atol=1e-6)
    assert_that(bool((dx != 0).any()), "dx is zero everywhere.")


@exercise("layer_norm_backward", points=2)
@few
@given(random=generators(), shape=st.sampled_from(LAST))
def test_layer_norms_gradients_keep_their_size_in_float32(student, random, shape):
    """Small numbers, so that eps counts (its default is 1e-5), and everything in float32."""
    x, weight, _ = (t.float() for t in layer_norm_problem(shape, random))
    x, dy = 2e-3 * x, normal(shape, random).float()
    got = several(student.layer_norm_backward(dy, x, weight), GRADIENTS)
    assert_float32(*got)
    expected = layer_norm_gradients(dy.double(), x.double(), weight.double(), 1e-5)
    for name, mine, right in zip(GRADIENTS.split(", "), got, expected):
        assert_close(mine.double(), right, name, rtol=1e-3, atol=1e-3 * float(right.abs().max()))


# ---------------------------------------------------------------- group_norm

@exercise("group_norm", points=3)
@few
@given(random=generators(), shape=st.sampled_from([(2, 4, 3), (3, 6), (2, 3, 2, 2)]), eps=epsilons)
def test_one_group_is_layer_norm_over_the_whole_example(student, random, shape, eps):
    """With groups = 1 one mean and one variance serve all channels and places of an example."""
    x, weight, bias, _ = batch_norm_problem(shape, random)
    row = [1, -1] + [1] * (len(shape) - 2)
    expected = F.layer_norm(x, shape[1:], None, None, eps) * weight.view(row) + bias.view(row)
    assert_close(student.group_norm(x, 1, weight, bias, eps=eps), expected, "y", **NORMAL)


@exercise("group_norm", points=3)
@few
@given(random=generators(), shape=st.sampled_from([(2, 4, 3), (1, 5, 4), (2, 3, 2, 2)]), eps=epsilons)
def test_a_group_for_each_channel_is_instance_norm(student, random, shape, eps):
    """With groups = c every channel of every example has its own mean and variance, over its places."""
    x, weight, bias, _ = batch_norm_problem(shape, random)
    expected = F.instance_norm(x, None, None, weight, bias, eps=eps)
    assert_close(student.group_norm(x, shape[1], weight, bias, eps=eps), expected, "y", **NORMAL)


@exercise("group_norm", points=2)
@few
@given(random=generators())
def test_group_norm_survives_a_large_mean_and_small_numbers(student, random):
    """Subtract the mean first and square afterwards; eps is 1e-5 by default; float32 stays float32."""
    one, zero = torch.ones(4), torch.zeros(4)
    x = far_from_zero((2, 4, 16), random)
    assert_close(student.group_norm(x, 2, one, zero), F.group_norm(x.double(), 2).float(), "y", **OFFSET)
    small = 2e-3 * normal((2, 4, 4), random, torch.float32)
    assert_close(student.group_norm(small, 2, one, zero), F.group_norm(small, 2), "y of small numbers", rtol=1e-2, atol=2e-3)


# ---------------------------------------------------------------- fold_batch_norm

@exercise("fold_batch_norm", points=2)
@few
@given(random=generators())
def test_folding_needs_no_more_than_a_weight_and_a_bias(student, random):
    """The convolution keeps its shape and its dtype. eps is 1e-5 by default and counts where a variance is small."""
    weight, bias, *norm, var = (t.float() for t in folding_problem((4, 2, 3, 3), random))
    problem = (weight, bias, *norm, 1e-4 * var)
    new_weight, new_bias = folded(student, problem)
    assert_float32(new_weight, new_bias)
    scale = problem[2] / (problem[5] + 1e-5).sqrt()
    assert_close(new_weight, weight * scale.view(-1, 1, 1, 1), "the new weight", **SINGLE)
    assert_close(new_bias, problem[3] + (bias - problem[4]) * scale, "the new bias", rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------- blocks

@exercise("block_pre_ln", points=2)
@few
@given(random=generators())
def test_the_stream_itself_is_never_normalised(student, random):
    """If both branches give zero, x comes out as it went in."""
    x, zero = normal((2, 3, 4), random), lambda x: torch.zeros_like(x)
    assert_close(student.block_pre_ln(x, zero, zero, torch.tanh, torch.tanh), x, "the block's output with empty branches", **NORMAL)


@exercise("block_post_ln", points=0)
@few
@given(random=generators())
def test_the_stream_is_normalised_after_each_sum(student, random):
    """If both branches give zero, norm2(norm1(x)) comes out."""
    x, zero = normal((2, 3, 4), random), lambda x: torch.zeros_like(x)
    got = student.block_post_ln(x, zero, zero, torch.tanh, torch.sin)
    assert_close(got, torch.sin(torch.tanh(x)), "the block's output with empty branches", **NORMAL)


# ---------------------------------------------------------------- triton_layer_norm

@exercise("triton_layer_norm", points=3, requires=kernels.without_triton)
@few
@given(random=generators(), mean=st.sampled_from([-3000.0, 3000.0]))
def test_the_kernel_survives_a_large_mean(student, random, mean):
    """Subtract the mean first and square afterwards: the row is in registers, so that a second look costs nothing."""
    x = far_from_zero((2, 24), random, mean)
    expected = F.layer_norm(x.double(), (24,)).float()
    assert_close(student.triton_layer_norm(x, torch.ones(24), torch.zeros(24)), expected, "y", **OFFSET)


@exercise("triton_layer_norm", points=2, requires=kernels.without_triton)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float16, torch.float16, torch.bfloat16]))
def test_the_kernel_computes_half_precision_in_float32(student, random, dtype):
    """Convert what you load with .to(tl.float32); the store converts back."""
    assert_half_is_computed_in_single(student.triton_layer_norm, F.layer_norm, random, dtype)


@exercise("triton_layer_norm", points=2, requires=kernels.without_triton)
@few
@given(random=generators(), d=st.sampled_from([4, 6]))
def test_the_kernel_gives_constant_rows_the_bias(student, random, d):
    """With variance 0 only eps (1e-5 by default) stands under the root. Columns of a larger tensor are rows too."""
    weight, bias = positive((d,), random, torch.float32), normal((d,), random, torch.float32)
    x = torch.cat([torch.full((1, d), 7.0), 2e-3 * normal((2, d), random, torch.float32)])
    assert_close(student.triton_layer_norm(x, weight, bias), F.layer_norm(x, (d,), weight, bias), "y", rtol=1e-2, atol=2e-3)


# ---------------------------------------------------------------- optional

@exercise("rms_norm", points=0)
@few
@given(random=generators(), shape=st.sampled_from(LAST))
def test_rms_norm_of_zeros_is_zero_and_eps_counts(student, random, shape):
    """eps is 1e-5 by default and inside the root; float32 stays float32."""
    weight = positive(shape[-1:], random, torch.float32)
    assert_close(student.rms_norm(torch.zeros(shape), weight), torch.zeros(shape), "y of zeros")
    small = 2e-3 * normal(shape, random, torch.float32)
    assert_close(student.rms_norm(small, weight), F.rms_norm(small, shape[-1:], weight, 1e-5), "y of small numbers", **SINGLE)


@exercise("sync_batch_norm_statistics", points=0)
@few
@given(random=generators(), copies=st.integers(2, 5))
def test_equal_devices_change_nothing(student, random, copies):
    """If all devices hold the same, their common mean and variance are those of each."""
    mean, var = normal((3,), random), positive((3,), random)
    got = several(student.sync_batch_norm_statistics(mean.expand(copies, 3).clone(), var.expand(copies, 3).clone(),
                                                     torch.full((copies,), 7.0).double()), "mean, var")
    assert_close(list(got), [mean, var], "mean and variance", **NORMAL)
