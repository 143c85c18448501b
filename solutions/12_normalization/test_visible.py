"""What the functions of this lab must do: the part that a student has too.

Torch's own normalisers and autograd in float64 say what is right. Inputs are random; the probes at the end have
fixed ones.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course import kernels, timing
from course.spec import assert_close, assert_that, exercise, probe, speed
from course.spec.student import NotWritten, StudentError

# Every example costs calls, and a call in grading a millisecond or more.
some, few = settings(max_examples=10), settings(max_examples=4)
SHAPES = [(2, 3), (6, 4), (5, 1), (3, 2, 4), (2, 4, 3, 2), (1, 2, 2, 3)]  # [n, c, *places], more than one number a channel
NORMAL = {"rtol": 1e-6, "atol": 1e-8}       # in float64
DOUBLE = {"rtol": 1e-9, "atol": 1e-10}      # in float64, and not in float32 on the way
SINGLE = {"rtol": 1e-3, "atol": 1e-4}       # in float32
# float32 with a mean thousands of times the spread: a sum that is rounded once or twice is off by about 1e-3.
OFFSET = {"rtol": 0, "atol": 0.03}


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def normal(shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def positive(shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return (0.3 + 2 * torch.rand(shape, generator=random, dtype=torch.float64)).to(dtype)


def features(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """x [n, c, *places] whose channels, and whose examples, differ in size and in mean."""
    sizes = [1] * len(shape)
    channels, examples = [*sizes], [*sizes]
    channels[1], examples[0] = shape[1], shape[0]
    x = normal(shape, random) * positive(channels, random) * positive(examples, random)
    return x + 3 * normal(channels, random) + 3 * normal(examples, random)


epsilons = st.sampled_from([1e-5, 1e-2, 1.0])  # as small and as large as the variance may be


def several(result, names: str) -> tuple:
    """The things that a function returns, if it returns as many as it should."""
    count = len(names.split(", "))
    assert_that(type(result) in (tuple, list) and len(result) == count, f"{count} things must be returned: {names}.")
    return tuple(result)


def far_from_zero(shape: tuple[int, ...], random: torch.Generator, mean: float = 3000.0) -> Tensor:
    """float32 numbers of spread 1 around a mean that is thousands of times larger."""
    return (mean + normal(shape, random)).float()


def by_autograd(function: Callable, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What autograd finds for `function(x, weight, bias)`."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(function(*leaves), leaves, dy)


def assert_gradients(got: list, expected: tuple) -> None:
    """Of x, weight and bias, through a function of the student's."""
    for name, mine, right in zip(("x", "weight", "bias"), got, expected):
        assert_that(mine is not None, f"No gradient reaches {name}: autograd does not see how y depends on it.")
        assert_close(mine, right, f"the gradient that reaches {name}", **NORMAL)


def assert_written_by_hand(backward: Callable, dy: Tensor, x: Tensor, weight: Tensor) -> None:
    """A formula in tensor operations can itself be differentiated; what autograd.grad returns cannot."""
    _, through = backward.vjp(dy, x, weight, cotangent=(torch.ones_like(x), None, None))
    assert_that(any(g is not None for g in through), "Nothing leads from dy to dx but autograd (or detach, or torch.no_grad).")


# ---------------------------------------------------------------- batch_norm

def batch_norm_problem(shape: tuple[int, ...], random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """x, weight, bias and the running values."""
    c = (shape[1],)
    running = {"mean": normal(c, random), "var": positive(c, random)}
    return features(shape, random), positive(c, random), normal(c, random), running


def normalised(student, *args, **hyper) -> tuple[Tensor, dict[str, Tensor]]:
    y, running = several(student.batch_norm(*args, **hyper), "y, running")
    assert_that(type(running) is dict and {"mean", "var"} <= set(running), 'The new running statistics are a dict with "mean" and "var".')
    return y, running


@exercise("batch_norm", points=5)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), eps=epsilons)
def test_a_batch_is_normalised_by_its_own_mean_and_biased_variance(student, random, shape, eps):
    """One mean and one variance for each channel, over all examples and all places; the variance divides by m, not
    m - 1; eps is inside the root."""
    x, weight, bias, running = batch_norm_problem(shape, random)
    y, _ = normalised(student, x, weight, bias, running, True, eps=eps)
    assert_close(y, F.batch_norm(x, None, None, weight, bias, True, eps=eps), "y in training", **NORMAL)


@exercise("batch_norm", points=4)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), momentum=st.floats(0.05, 0.4))
def test_running_values_move_towards_the_unbiased_statistics(student, random, shape, momentum):
    """The new running value is 1 - momentum times the old one plus momentum times the batch's; the variance that is
    collected divides by m - 1."""
    x, weight, bias, running = batch_norm_problem(shape, random)
    mean, var = running["mean"].clone(), running["var"].clone()
    F.batch_norm(x, mean, var, weight, bias, True, momentum)
    _, new = normalised(student, x, weight, bias, running, True, momentum=momentum)
    assert_close(new["mean"], mean, "the new running mean", **NORMAL)
    assert_close(new["var"], var, "the new running variance", **NORMAL)


@exercise("batch_norm", points=4)
@some
@given(random=generators(), shape=st.sampled_from([*SHAPES, (1, 3), (1, 2, 1, 1)]), eps=epsilons)
def test_evaluation_uses_the_running_values_and_keeps_them(student, random, shape, eps):
    """In evaluation the batch's own statistics play no part, and the running values are returned as they were. One
    example alone is fine."""
    x, weight, bias, running = batch_norm_problem(shape, random)
    y, new = normalised(student, x, weight, bias, running, False, eps=eps)
    assert_close(y, F.batch_norm(x, running["mean"], running["var"], weight, bias, False, eps=eps), "y in evaluation", **NORMAL)
    assert_close({name: new[name] for name in ("mean", "var")}, running, "the running values after evaluation", **NORMAL)


@exercise("batch_norm", points=2)
@few
@given(random=generators())
def test_a_single_number_in_a_channel_is_refused(student, random):
    """One example without places, or with one place, has no variance in training: raise ValueError. One example with
    several places is fine."""
    weight, bias, running = torch.ones(3).double(), torch.zeros(3).double(), {"mean": torch.zeros(3).double(), "var": torch.ones(3).double()}
    for shape in ((1, 3), (1, 3, 1, 1)):
        try:
            student.batch_norm(normal(shape, random), weight, bias, running, True)
        except NotWritten:
            raise
        except StudentError as error:
            assert_that("ValueError" in str(error), "A single number in a channel must raise ValueError, and nothing else.")
        else:
            assert_that(False, "A single number in a channel was normalised.")
    x = normal((1, 3, 2), random)
    assert_close(normalised(student, x, weight, bias, running, True)[0], F.batch_norm(x, None, None, training=True), "y", **NORMAL)


@exercise("batch_norm", points=2)
@few
@given(random=generators(), shape=st.sampled_from([(6, 4), (3, 2, 4), (2, 3, 2, 2)]))
def test_batch_norms_gradient_flows_through_the_statistics(student, random, shape):
    """Mean and variance depend on x, and autograd must see that: no detach, no .data, no torch.no_grad, no numbers by
    .item() on the way from x to y."""
    x, weight, bias, running = batch_norm_problem(shape, random)
    dy = normal(shape, random) + 0.5
    _, got = student.batch_norm.vjp(x, weight, bias, running=running, training=True, cotangent=(dy, None))
    assert_gradients(got, by_autograd(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), dy, x, weight, bias))


# ---------------------------------------------------------------- batch_norm_backward

GRADIENTS = "dx, dweight, dbias"


def batch_norm_gradients(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    norm = lambda x, weight, bias: F.batch_norm(x, None, None, weight, bias, True, eps=eps)
    return by_autograd(norm, dy, x, weight, torch.zeros_like(weight))


@exercise("batch_norm_backward", points=7)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), eps=epsilons)
def test_batch_norms_dx_is_what_autograd_finds(student, random, shape, eps):
    """All three terms: dy, minus its mean over the channel, minus x_hat times the mean of dy * x_hat; then weight over
    the standard deviation. m counts examples and places."""
    x, weight, _, _ = batch_norm_problem(shape, random)
    dy = normal(shape, random) + 0.5
    dx, _, _ = several(student.batch_norm_backward(dy, x, weight, eps=eps), GRADIENTS)
    assert_close(dx, batch_norm_gradients(dy, x, weight, eps)[0], "dx", **NORMAL)


@exercise("batch_norm_backward", points=4)
@some
@given(random=generators(), shape=st.sampled_from(SHAPES), eps=epsilons)
def test_batch_norms_weight_and_bias_gradients_are_sums(student, random, shape, eps):
    """dbias sums dy over examples and places, dweight sums dy * x_hat: sums, not means, one number a channel."""
    x, weight, _, _ = batch_norm_problem(shape, random)
    dy = normal(shape, random) + 0.5
    _, dweight, dbias = several(student.batch_norm_backward(dy, x, weight, eps=eps), GRADIENTS)
    expected = batch_norm_gradients(dy, x, weight, eps)
    assert_close(dweight, expected[1], "dweight", **NORMAL)
    assert_close(dbias, expected[2], "dbias", **NORMAL)


@exercise("batch_norm_backward", points=1)
@few
@given(random=generators(), shape=st.sampled_from([(6, 4), (2, 4, 3, 2)]))
def test_batch_norms_backward_pass_is_written_by_hand(student, random, shape):
    """Write the formula of the text with operations on tensors. torch.autograd.grad and backward() are not allowed here,
    and detach and no_grad are not needed."""
    x, weight, *_ = batch_norm_problem(shape, random)
    assert_written_by_hand(student.batch_norm_backward, normal(shape, random), x, weight)


# ---------------------------------------------------------------- layer_norm

LAST = [(4, 5), (7,), (2, 3, 6), (1, 2), (3, 1, 2, 4)]  # [*places, d]


def layer_norm_problem(shape: tuple[int, ...], random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x whose places differ in mean and size, weight and bias."""
    places, d = (*shape[:-1], 1), shape[-1:]
    x = normal(shape, random) * positive(places, random) + 3 * normal(places, random)
    return x, positive(d, random), normal(d, random)


@exercise("layer_norm", points=5)
@some
@given(random=generators(), shape=st.sampled_from(LAST), eps=epsilons)
def test_every_place_is_normalised_over_its_last_dimension(student, random, shape, eps):
    """Mean and biased variance over the last dimension alone; eps inside the root; then weight and bias. (If only the
    last digits differ: float64 is computed in float64.)"""
    x, weight, bias = layer_norm_problem(shape, random)
    expected = F.layer_norm(x, shape[-1:], weight, bias, eps)
    assert_close(student.layer_norm(x, weight, bias, eps=eps), expected, "y", **DOUBLE)


@exercise("layer_norm", points=3)
@few
@given(random=generators(), mean=st.sampled_from([-3000.0, 3000.0]))
def test_a_large_mean_does_not_swallow_the_variance(student, random, mean):
    """Subtract the mean first and square afterwards: mean(x**2) - mean**2 is the difference of two huge numbers."""
    x = far_from_zero((4, 64), random, mean)
    expected = F.layer_norm(x.double(), (64,)).float()
    assert_close(student.layer_norm(x, torch.ones(64), torch.zeros(64)), expected, "y", **OFFSET)


@exercise("layer_norm", points=3)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_computed_in_float32(student, random, dtype):
    """300 squared is beyond float16, and bfloat16 keeps three digits. Convert to float32 first, and back at the end."""
    assert_half_is_computed_in_single(student.layer_norm, F.layer_norm, random, dtype)


@exercise("layer_norm", points=2)
@few
@given(random=generators(), shape=st.sampled_from(LAST))
def test_layer_norms_gradient_flows_through_the_statistics(student, random, shape):
    """Mean and variance depend on x, and autograd must see that: no detach, no .data, no torch.no_grad on the way from
    x to y, and nothing overwritten that the backward pass needs."""
    x, weight, bias = layer_norm_problem(shape, random)
    dy = normal(shape, random) + 0.5
    _, got = student.layer_norm.vjp(x, weight, bias, cotangent=dy)
    assert_gradients(got, by_autograd(lambda x, w, b: F.layer_norm(x, shape[-1:], w, b), dy, x, weight, bias))


# ---------------------------------------------------------------- layer_norm_backward

def layer_norm_gradients(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    norm = lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return by_autograd(norm, dy, x, weight, torch.zeros_like(weight))


@exercise("layer_norm_backward", points=7)
@some
@given(random=generators(), shape=st.sampled_from(LAST), eps=epsilons)
def test_layer_norms_dx_is_what_autograd_finds(student, random, shape, eps):
    """First g = dy * weight; then g, minus its mean over the last dimension, minus x_hat times the mean of g * x_hat;
    all over the standard deviation."""
    x, weight, _ = layer_norm_problem(shape, random)
    dy = normal(shape, random) + 0.5
    dx, _, _ = several(student.layer_norm_backward(dy, x, weight, eps=eps), GRADIENTS)
    assert_close(dx, layer_norm_gradients(dy, x, weight, eps)[0], "dx", **NORMAL)


@exercise("layer_norm_backward", points=4)
@some
@given(random=generators(), shape=st.sampled_from(LAST), eps=epsilons)
def test_layer_norms_weight_and_bias_gradients_sum_over_all_places(student, random, shape, eps):
    """dbias sums dy over all dimensions but the last, dweight sums dy * x_hat: d numbers each."""
    x, weight, _ = layer_norm_problem(shape, random)
    dy = normal(shape, random) + 0.5
    _, dweight, dbias = several(student.layer_norm_backward(dy, x, weight, eps=eps), GRADIENTS)
    expected = layer_norm_gradients(dy, x, weight, eps)
    assert_close(dweight, expected[1], "dweight", **NORMAL)
    assert_close(dbias, expected[2], "dbias", **NORMAL)


@exercise("layer_norm_backward", points=1)
@few
@given(random=generators(), shape=st.sampled_from([(4, 5), (2, 3, 6)]))
def test_layer_norms_backward_pass_is_written_by_hand(student, random, shape):
    """Write the formula of the text with operations on tensors. torch.autograd.grad and backward() are not allowed here,
    and detach and no_grad are not needed."""
    x, weight, *_ = layer_norm_problem(shape, random)
    assert_written_by_hand(student.layer_norm_backward, normal(shape, random), x, weight)


# ---------------------------------------------------------------- group_norm

GROUPED = [((3, 6), 2), ((2, 4, 3), 2), ((2, 6, 2, 2), 3), ((1, 8), 4), ((2, 4, 2, 3), 1), ((2, 3, 2, 2), 3)]


@exercise("group_norm", points=6)
@some
@given(random=generators(), case=st.sampled_from(GROUPED), eps=epsilons)
def test_neighbouring_channels_share_their_statistics(student, random, case, eps):
    """For each example, channels 0 to c/G - 1 with all their places share one mean and one biased variance, then the
    next c/G."""
    shape, groups = case
    x, weight, bias, _ = batch_norm_problem(shape, random)
    expected = F.group_norm(x, groups, weight, bias, eps)
    assert_close(student.group_norm(x, groups, weight, bias, eps=eps), expected, "y", **NORMAL)


@exercise("group_norm", points=2)
@few
@given(random=generators(), case=st.sampled_from(GROUPED))
def test_no_example_sees_another(student, random, case):
    """The statistics belong to one example: computed alone it must come out as in the batch."""
    shape, groups = case
    x, weight, bias, _ = batch_norm_problem(shape, random)
    together = student.group_norm(x, groups, weight, bias)
    assert_close(student.group_norm(x[:1], groups, weight, bias), F.group_norm(x[:1], groups, weight, bias), "y of an example alone", **NORMAL)
    assert_close(together[:1], F.group_norm(x[:1], groups, weight, bias), "y of the same example in a batch", **NORMAL)


@exercise("group_norm", points=2)
@few
@given(random=generators(), case=st.sampled_from(GROUPED))
def test_group_norms_gradient_flows_through_the_statistics(student, random, case):
    """Mean and variance depend on x, and autograd must see that: no detach, no .data, no torch.no_grad on the way from
    x to y."""
    shape, groups = case
    x, weight, bias, _ = batch_norm_problem(shape, random)
    dy = normal(shape, random) + 0.5
    _, got = student.group_norm.vjp(x, groups, weight, bias, cotangent=dy)
    assert_gradients(got, by_autograd(lambda x, w, b: F.group_norm(x, groups, w, b), dy, x, weight, bias))


@exercise("group_norm", points=1)
@few
@given(random=generators(), axes=st.sampled_from([(0, 3, 1, 2), (1, 0, 2, 3), (3, 1, 0, 2)]))
def test_the_order_of_x_in_memory_does_not_matter(student, random, axes):
    """x may be a view whose numbers lie in another order (permute makes one; images often come with the channels last).
    .view refuses it; .reshape does not."""
    x = features((2, 4, 2, 4), random).permute(axes)
    weight, bias = positive(x.shape[1:2], random), normal(x.shape[1:2], random)
    assert_close(student.group_norm(x, 2, weight, bias), F.group_norm(x, 2, weight, bias), "y of a permuted x", **NORMAL)


# ---------------------------------------------------------------- fold_batch_norm

def folding_problem(shape: tuple[int, ...], random: torch.Generator, with_bias: bool = True) -> tuple:
    """conv_weight, conv_bias, weight, bias, mean, var."""
    c = shape[:1]
    conv_bias = normal(c, random) if with_bias else None
    return normal(shape, random), conv_bias, positive(c, random) - 0.8, normal(c, random), normal(c, random), positive(c, random)


def folded(student, problem: tuple, **hyper) -> tuple[Tensor, Tensor]:
    return several(student.fold_batch_norm(*problem, **hyper), "the new weight, the new bias")


def apart(x: Tensor, conv_weight, conv_bias, weight, bias, mean, var, eps: float = 1e-5) -> Tensor:
    return F.batch_norm(F.conv2d(x, conv_weight, conv_bias), mean, var, weight, bias, False, eps=eps)


@exercise("fold_batch_norm", points=6)
@some
@given(random=generators(), shape=st.sampled_from([(3, 3, 2, 2), (4, 2, 3, 3), (2, 3, 1, 1), (1, 1, 2, 3)]), eps=epsilons)
def test_one_convolution_does_what_two_steps_did(student, random, shape, eps):
    """Each output channel's weights are multiplied by weight / sqrt(var + eps); so is what the convolution's bias has
    more than the mean; then comes bias."""
    problem = folding_problem(shape, random)
    x = normal((2, shape[1], 4, 4), random)
    new_weight, new_bias = folded(student, problem, eps=eps)
    assert_close(F.conv2d(x, new_weight, new_bias), apart(x, *problem, eps=eps), "the folded convolution's output", **NORMAL)


@exercise("fold_batch_norm", points=3)
@few
@given(random=generators())
def test_a_convolution_without_bias_gets_one(student, random):
    """conv_bias None means zero: the new bias is then bias - mean * weight / sqrt(var + eps)."""
    problem = folding_problem((3, 2, 2, 2), random, with_bias=False)
    x = normal((2, 2, 4, 4), random)
    new_weight, new_bias = folded(student, problem)
    assert_close(F.conv2d(x, new_weight, new_bias), apart(x, *problem), "the folded convolution's output", **NORMAL)


@exercise("fold_batch_norm", points=3)
@some
@given(random=generators(), eps=epsilons)
def test_linear_and_depthwise_layers_fold_too(student, random, eps):
    """Only the first dimension of the weight is the output channel; there may be none, one or three more kinds after
    it."""
    linear = folding_problem((4, 3), random)
    x = normal((5, 3), random)
    w, b = folded(student, linear, eps=eps)
    expected = F.batch_norm(F.linear(x, *linear[:2]), linear[4], linear[5], linear[2], linear[3], False, eps=eps)
    assert_close(F.linear(x, w, b), expected, "the folded linear layer's output", **NORMAL)
    depthwise = folding_problem((3, 1, 2, 2), random)
    x = normal((2, 3, 4, 4), random)
    w, b = folded(student, depthwise, eps=eps)
    expected = F.batch_norm(F.conv2d(x, *depthwise[:2], groups=3), depthwise[4], depthwise[5], depthwise[2], depthwise[3], False, eps=eps)
    assert_close(F.conv2d(x, w, b, groups=3), expected, "the folded depthwise convolution's output", **NORMAL)


# ---------------------------------------------------------------- block_pre_ln and block_post_ln

class Parts:
    """Four random matrices in the place of attention, MLP and the two norms; counts calls."""

    def __init__(self, random: torch.Generator, d: int = 3):
        self.maps = {name: normal((d, d), random) for name in ("attention", "mlp", "norm1", "norm2")}
        self.calls = dict.fromkeys(self.maps, 0)

    def part(self, name: str) -> Callable[[Tensor], Tensor]:
        def apply(x: Tensor) -> Tensor:
            self.calls[name] += 1
            return x @ self.maps[name].to(x.dtype)
        return apply

    def all(self) -> tuple:
        return tuple(self.part(name) for name in self.maps)


def assert_block_is(block: Callable, whole: Callable[..., Tensor], random: torch.Generator) -> None:
    """Of four matrices a whole block is one: `whole(1, attention, mlp, norm1, norm2)`."""
    parts, x = Parts(random), normal((2, 4, 3), random)
    matrix = whole(torch.eye(3, dtype=torch.float64), *parts.maps.values())
    assert_close(block(x, *parts.all()), x @ matrix, "the block's output", **NORMAL)


def assert_each_called_once(block: Callable, random: torch.Generator) -> None:
    parts = Parts(random)
    block(normal((1, 2, 3), random), *parts.all())
    for name, calls in parts.calls.items():
        assert_that(calls == 1, f"{name} was called {calls} times; each of the four is called once.")


@exercise("block_pre_ln", points=4)
@few
@given(random=generators())
def test_the_norm_stands_before_each_branch(student, random):
    """x + attention(norm1(x)) first; call that x; then x + mlp(norm2(x))."""
    assert_block_is(student.block_pre_ln, lambda one, A, M, N1, N2: (one + N1 @ A) @ (one + N2 @ M), random)


@exercise("block_pre_ln", points=2)
def test_each_part_of_the_block_is_called_once(student):
    """Keep the first sum in a variable: attention is the dearest part of a transformer."""
    assert_each_called_once(student.block_pre_ln, torch.Generator().manual_seed(torch.initial_seed()))


@exercise("block_post_ln", points=0)
@few
@given(random=generators())
def test_the_norm_stands_after_each_sum(student, random):
    """norm1(x + attention(x)) first; call that x; then norm2(x + mlp(x))."""
    assert_block_is(student.block_post_ln, lambda one, A, M, N1, N2: (one + A) @ N1 @ (one + M) @ N2, random)


@exercise("block_post_ln", points=0)
def test_each_part_of_the_post_norm_block_is_called_once(student):
    """Keep the first sum in a variable: attention is the dearest part of a transformer."""
    assert_each_called_once(student.block_post_ln, torch.Generator().manual_seed(torch.initial_seed()))


# ---------------------------------------------------------------- triton_layer_norm

# An interpreted kernel takes a millisecond or more for a row.
ROWS = [(3, 8), (2, 5), (1, 2), (2, 17), (4, 3)]


@exercise("triton_layer_norm", points=6, requires=kernels.without_triton)
@few
@given(random=generators(), shape=st.sampled_from(ROWS), eps=st.sampled_from([0.1, 1.0]))
def test_the_kernel_normalises_every_row(student, random, shape, eps):
    """Sum over the row and divide by d; the same for the squares of what is left; then weight and bias, number i of
    each for number i of the row."""
    x, weight, bias = (t.float() for t in layer_norm_problem(shape, random))
    expected = F.layer_norm(x, shape[-1:], weight, bias, eps)
    assert_close(student.triton_layer_norm(x, weight, bias, eps=eps), expected, "y", **SINGLE)


@exercise("triton_layer_norm", points=4, requires=kernels.without_triton)
@few
@given(random=generators(), d=st.sampled_from([3, 5, 9]))
def test_what_lies_beyond_the_row_is_in_no_sum(student, random, d):
    """BLOCK is larger than d. The places beyond d are loaded as 0, but 0 minus the mean is not 0: mask the difference
    too, and divide by d, not by BLOCK."""
    x = 20 + normal((2, d), random, torch.float32)
    weight, bias = torch.ones(d), torch.zeros(d)
    assert_close(student.triton_layer_norm(x, weight, bias), F.layer_norm(x, (d,)), "y", **SINGLE)


@exercise("triton_layer_norm", points=1, requires=kernels.without_triton)
@few
@given(random=generators())
def test_the_result_is_the_kernels(student, random):
    """Launch layer_norm_kernel and return what it has stored in y. Autograd knows nothing of a kernel; what torch's own
    functions computed, it would know."""
    x, weight, bias = (t.float() for t in layer_norm_problem((2, 4), random))
    _, through = student.triton_layer_norm.vjp(x, weight, bias, cotangent=torch.ones(2, 4))
    assert_that(all(g is None for g in through), "The result was computed by torch's operations and not by a kernel.")


# ---------------------------------------------------------------- rms_norm

@exercise("rms_norm", points=0)
@some
@given(random=generators(), shape=st.sampled_from(LAST), eps=epsilons)
def test_every_place_is_divided_by_its_root_mean_square(student, random, shape, eps):
    """The mean of the squares over the last dimension, plus eps, under the root; no mean is taken away."""
    x, weight, _ = layer_norm_problem(shape, random)
    expected = F.rms_norm(x, shape[-1:], weight, eps)
    assert_close(student.rms_norm(x, weight, eps=eps), expected, "y", **DOUBLE)


@exercise("rms_norm", points=0)
@few
@given(random=generators(), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_rms_norm_of_half_precision_is_computed_in_float32(student, random, dtype):
    """300 squared is beyond float16. Convert to float32 first, and back at the end."""
    assert_half_is_computed_in_single(lambda x, weight: student.rms_norm(x, weight), F.rms_norm, random, dtype, bias=False)


def assert_half_is_computed_in_single(norm: Callable, of_torch: Callable, random: torch.Generator, dtype: torch.dtype,
                                      bias: bool = True) -> None:
    """Rounded once, at the end: a unit in the last place, of numbers up to 4."""
    x = (300 * normal((3, 24), random)).to(dtype)
    parts = [t.to(dtype) for t in (positive((24,), random), normal((24,), random))[:1 + bias]]
    expected = of_torch(x.double(), (24,), *(t.double() for t in parts), eps=1e-5)
    got = norm(x, *parts)
    assert_that(isinstance(got, Tensor) and got.dtype == dtype, f"The result of a {dtype} tensor must be {dtype} again.")
    assert_close(got.double(), expected, "y", rtol=1.01 * torch.finfo(dtype).eps, atol=2e-3)


# ---------------------------------------------------------------- sync_batch_norm_statistics

def devices(random: torch.Generator, sizes: list[int], offset: float = 0.0, c: int = 3) -> tuple[Tensor, list[Tensor]]:
    """A batch [n, c], and its parts on several devices, whose means differ."""
    parts = [normal((n, c), random) * positive((c,), random) + normal((c,), random) + offset for n in sizes]
    return torch.cat(parts), parts


def statistics_of(parts: list[Tensor], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Means, biased variances and counts."""
    means, variances = torch.stack([p.mean(0) for p in parts]), torch.stack([p.var(0, correction=0) for p in parts])
    return means.to(dtype), variances.to(dtype), torch.tensor([len(p) for p in parts], dtype=dtype)


@exercise("sync_batch_norm_statistics", points=0)
@some
@given(random=generators(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_parts_statistics_give_those_of_the_whole(student, random, sizes):
    """Weigh each device by its count; to its variance comes the square of how far its mean is from the common one."""
    whole, parts = devices(random, sizes)
    mean, var = several(student.sync_batch_norm_statistics(*statistics_of(parts)), "mean, var")
    assert_close(mean, whole.mean(0), "mean", **NORMAL)
    assert_close(var, whole.var(0, correction=0), "variance", **NORMAL)


@exercise("sync_batch_norm_statistics", points=0)
@few
@given(random=generators())
def test_large_means_do_not_swallow_the_common_variance(student, random):
    """Take the squares of the differences of the means, not the difference of their squares."""
    whole, parts = devices(random, [4, 8, 4], offset=3000.0)
    _, var = several(student.sync_batch_norm_statistics(*statistics_of(parts, torch.float32)), "mean, var")
    assert_close(var.double(), whole.var(0, correction=0), "variance", rtol=2e-2, atol=1e-2)


# ---------------------------------------------------------------- speed

WIDTH, LAYERS, QUESTIONS = 32, 24, 32


def deep_networks(seed: int) -> tuple[list[tuple], Tensor]:
    """A deep, narrow network's linear layers, as fold_batch_norm takes them, and inputs that come one at a time."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    layers = [(draw(WIDTH, WIDTH) * (2 / WIDTH) ** 0.5, draw(WIDTH), torch.rand(WIDTH, generator=random) + 0.5, draw(WIDTH),
               draw(WIDTH), torch.rand(WIDTH, generator=random) + 0.5) for _ in range(LAYERS)]
    return layers, draw(QUESTIONS, 1, WIDTH)


@torch.no_grad()
def answer_questions(fold: Callable, layers: list[tuple], questions: Tensor) -> Tensor:
    """Prepare the layers once with `fold`, then answer one question after another."""
    ready, answers = [fold(*layer) for layer in layers], []
    for x in questions:
        for weight, bias, *rest in ready:
            x = F.linear(x, weight, bias)
            if rest:  # not folded: scale, shift, mean, var
                x = F.batch_norm(x, rest[2], rest[3], rest[0], rest[1], False)
            x = F.relu_(x)
        answers.append(x)
    return torch.cat(answers)


def network_limit() -> tuple[float, str]:
    """The weights fit into a cache, so the arithmetic is the limit."""
    operations = 2 * QUESTIONS * LAYERS * WIDTH**2
    return operations / timing.peak_flops("cpu"), f"{operations / 1e6:.1f} million operations at this machine's peak"


@speed("fold_batch_norm", points=10, ratio=1.3, inputs=deep_networks, work=answer_questions, limit=network_limit,
       rtol=1e-3, atol=1e-3)
def normalised_apart(weight, bias, scale, shift, mean, var, eps=1e-5):
    """One question at a time through 24 folded linear layers, against torch's BatchNorm after each."""
    return weight, bias, scale, shift, mean, var


GPU_ROWS, GPU_D = 8192, 4096


def rows_on_the_gpu(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator("cuda").manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random, device="cuda")
    return draw(GPU_ROWS, GPU_D), draw(GPU_D), draw(GPU_D)


def one_pass_limit() -> tuple[float, str]:
    moved = 2 * GPU_ROWS * GPU_D * 4
    return moved / timing.memory_bandwidth("cuda"), f"{moved / 1e6:.0f} MB, read once and written once, at the speed of a copy"


def gpu_work(norm: Callable, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Eight layers deep, so that handing over does not matter: the mean of every row, and some rows in full."""
    for _ in range(8):
        x = norm(x, weight, bias)
    return torch.cat([x.mean(1), x[:: GPU_ROWS // 16].flatten()])


@speed("triton_layer_norm", points=5, ratio=2, inputs=rows_on_the_gpu, work=gpu_work, limit=one_pass_limit,
       requires=kernels.without_gpu, rtol=1e-2, atol=2e-3)
def written_with_operations(x, weight, bias, eps=1e-5):
    """LayerNorm of 8192 rows of 4096 numbers on the GPU, against the same formula written with torch's operations."""
    var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


# ---------------------------------------------------------------- probes

def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Fixed numbers of some size and sign, float64."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase).reshape(shape)


X4 = 2 * waves(3, 4, 2, 2) + waves(1, 4, 1, 1, phase=1.0) + waves(3, 1, 1, 1, phase=2.0)
DY4 = waves(3, 4, 2, 2, phase=3.0) + 0.4
W4, B4 = 1.5 + waves(4, phase=4.0), waves(4, phase=5.0)
RUNNING = {"mean": waves(4, phase=6.0), "var": 1.5 + waves(4, phase=7.0)}
X2 = 2 * waves(3, 5) + waves(3, 1, phase=1.0)
DY2 = waves(3, 5, phase=3.0) + 0.4
W5, B5 = 1.5 + waves(5, phase=4.0), waves(5, phase=5.0)


def attempt(function: Callable, *args, **hyper):
    """What came, or that an exception came: that is an answer too."""
    try:
        return function(*args, **hyper)
    except StudentError as error:
        return "ValueError" if "ValueError" in str(error) else "an exception"


@probe("batch_norm")
def batch_norm_answers(student):
    train = student.batch_norm(X4, W4, B4, RUNNING, True, momentum=0.2, eps=0.1)
    return train, student.batch_norm(X4, W4, B4, RUNNING, False, momentum=0.2, eps=0.1)


@probe("batch_norm")
def batch_norm_edges(student):
    """A single number, and a mean so large that the short formula finds next to nothing."""
    one = attempt(student.batch_norm, X4[:1, :, 0, 0], W4, B4, RUNNING, True)
    far = student.batch_norm(torch.tensor([[4096.0], [4097.0], [4098.0], [4097.0]]), torch.ones(1), torch.zeros(1),
                             {"mean": torch.zeros(1), "var": torch.ones(1)}, True)[0]
    return one if type(one) is str else "an answer", bool((far.abs() < 2).all())


@probe("batch_norm")
def gradients_through_batch_norm(student):
    return student.batch_norm.vjp(X4, W4, B4, running=RUNNING, training=True, cotangent=(DY4, None))[1]


@probe("batch_norm_backward")
def batch_norm_gradient_answers(student):
    return student.batch_norm_backward(DY4, X4, W4, eps=0.1)


def leads_nowhere(backward, *inputs) -> bool:
    return all(g is None for g in backward.vjp(*inputs, cotangent=(inputs[0], None, None))[1])


@probe("batch_norm_backward")
def batch_norm_backward_by_autograd(student):
    return leads_nowhere(student.batch_norm_backward, DY4, X4, W4)


@probe("layer_norm")
def layer_norm_answers(student):
    return student.layer_norm(X2, W5, B5, eps=0.1), student.layer_norm(X2.reshape(3, 1, 5), W5, B5, eps=0.1)


@probe("layer_norm")
def layer_norm_traps(student):
    """A large mean, half precision, and whether float64 kept its digits: what came there, coarsely."""
    far = student.layer_norm(torch.tensor([4096.0, 4097.0, 4098.0, 4097.0]), torch.ones(4), torch.zeros(4))
    half = student.layer_norm((300 * X2).half(), W5.half(), B5.half())
    less = student.layer_norm((150 * X2).half(), W5.half(), B5.half())  # here some squares are too large, but no variance
    off = (less.double() - F.layer_norm((150 * X2).half().double(), (5,), W5.half().double(), B5.half().double())).abs().max()
    return (bool((far.abs() < 2).all()), str(half.dtype), bool(half.isfinite().all() and (half != B5.half()).any()),
            bool(off < 1), bool(off < 2e-3), bool((student.layer_norm(X2, W5, B5) - F.layer_norm(X2, (5,), W5, B5)).abs().max() < 1e-10))


@probe("layer_norm")
def gradients_through_layer_norm(student):
    return student.layer_norm.vjp(X2, W5, B5, cotangent=DY2)[1]


@probe("layer_norm_backward")
def layer_norm_gradient_answers(student):
    return student.layer_norm_backward(DY2, X2, W5, eps=0.1)


@probe("layer_norm_backward")
def layer_norm_gradients_of_a_vector_and_a_cube(student):
    """One place, without a dimension of its own; and two dimensions of places."""
    one = attempt(student.layer_norm_backward, DY2[0], X2[0], W5, eps=0.1)
    return one, attempt(student.layer_norm_backward, DY2.reshape(3, 1, 5), X2.reshape(3, 1, 5), W5, eps=0.1)


@probe("layer_norm_backward")
def layer_norm_backward_by_autograd(student):
    return leads_nowhere(student.layer_norm_backward, DY2, X2, W5)


@probe("group_norm")
def group_norm_answers(student):
    return [student.group_norm(X4, groups, W4, B4, eps=0.1) for groups in (1, 2, 4)]


@probe("group_norm")
def group_norm_elsewhere(student):
    """Of x in another order, and backwards."""
    other = attempt(student.group_norm, X4.permute(1, 0, 2, 3), 1, W4[:3], B4[:3], eps=0.1)
    return other if type(other) is str else "an answer", student.group_norm.vjp(X4, 2, W4, B4, cotangent=DY4)[1]


@probe("fold_batch_norm")
def folded_convolutions(student):
    weight = waves(4, 4, 2, 2, phase=8.0)
    return [student.fold_batch_norm(weight, bias, W4, B4, RUNNING["mean"], RUNNING["var"], eps=0.1)
            for bias in (waves(4, phase=9.0), None)]


@probe("fold_batch_norm")
def folded_linear_layer(student):
    """A linear layer's weight has two dimensions."""
    new = attempt(student.fold_batch_norm, waves(4, 3), B4, W4, B4, RUNNING["mean"], RUNNING["var"])
    return new if type(new) is str else new[0].shape == (4, 3)


def wired(block: Callable):
    parts = Parts(torch.Generator().manual_seed(0))
    return block(waves(1, 2, 3), *parts.all()), parts.calls


@probe("block_pre_ln")
def pre_norm_output(student):
    return wired(student.block_pre_ln)


@probe("block_post_ln")
def post_norm_output(student):
    return wired(student.block_post_ln)


@probe("triton_layer_norm")
def kernel_answers(student):
    if kernels.without_triton():
        return "no Triton"
    return student.triton_layer_norm((X2 + 1).float(), W5.float(), B5.float(), eps=0.1).double().mul(1e4).round().div(1e4)


@probe("triton_layer_norm")
def kernel_traps(student):
    """A large mean, and half precision, coarsely."""
    if kernels.without_triton():
        return "no Triton"
    far = student.triton_layer_norm(torch.tensor([[4096.0, 4097.0, 4098.0, 4097.0]]), torch.ones(4), torch.zeros(4))
    half = student.triton_layer_norm((300 * X2).half(), torch.ones(5).half(), torch.zeros(5).half())
    return bool((far.abs() < 2).all()), bool(half.isfinite().all() and (half != 0).any())


@probe("triton_layer_norm")
def kernel_and_autograd(student):
    if kernels.without_triton():
        return "no Triton"
    return all(g is None for g in student.triton_layer_norm.vjp(X2.float(), W5.float(), B5.float(), cotangent=DY2.float())[1])


@probe("rms_norm")
def rms_norm_answers(student):
    half = student.rms_norm((300 * X2).half(), W5.half())
    digits_kept = (student.rms_norm(X2, W5) - F.rms_norm(X2, (5,), W5, 1e-5)).abs().max() < 1e-10
    return student.rms_norm(X2, W5, eps=0.1), str(half.dtype), bool((half != 0).any()), bool(digits_kept)


@probe("sync_batch_norm_statistics")
def combined_statistics(student):
    far = student.sync_batch_norm_statistics(torch.tensor([[4096.0], [4097.0]]), torch.ones(2, 1), torch.tensor([2.0, 2.0]))[1]
    answer = student.sync_batch_norm_statistics(3 * waves(3, 2), 1.5 + waves(3, 2, phase=1.0), torch.tensor([2.0, 5.0, 3.0]).double())
    return answer, bool((far - 1.25).abs().max() < 0.2)
