"""What the functions of this lab must do: the part that a student has too.

Autograd in float64 says what each example's gradient is; small populations, whose every possible sample is tried, say
whether an estimate is unbiased; quadratics with known noise say which learning rate is best. Inputs are random; the
probes at the end have fixed ones.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course.batches import NoisyBowl
from course.spec import assert_close, assert_that, exercise, probe, speed
from course.spec.student import StudentError

# Every example costs calls, and a call in grading a millisecond or more.
some, few, two, one = (settings(max_examples=n) for n in (8, 4, 2, 1))


def normal(shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=random, dtype=dtype)


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def as_number(got, what: str) -> float:
    assert_that(type(got) in (int, float) or isinstance(got, Tensor) and got.numel() == 1, f"{what} must be one number.")
    return float(got)


def as_numbers(got, count: int, name: str) -> list[float]:
    assert_that(type(got) in (tuple, list) and len(got) == count, f"{name} must return {count} numbers.")
    return [as_number(value, f"Result {i} of {name}") for i, value in enumerate(got, start=1)]


# ---------------------------------------------------------------- per_example_gradients

@st.composite
def networks(draw, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """x, y and the four parameters of a two-layer network; all widths different, so that no transpose goes unseen."""
    random = draw(generators())
    n, (d, h, c) = draw(st.integers(2, 6)), draw(st.permutations([3, 4, 5]))
    return network(random, n, d, h, c, dtype)


def network(random: torch.Generator, n: int, d: int, h: int, c: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    y = torch.randint(c, (n,), generator=random)
    return (normal((n, d), random, dtype), y, normal((d, h), random, dtype), normal((h,), random, dtype),
            normal((h, c), random, dtype), normal((c,), random, dtype))


def forward(params: list[Tensor], x: Tensor) -> Tensor:
    *hidden, last = zip(params[::2], params[1::2])
    for weight, bias in hidden:
        x = F.relu(F.linear(x, weight.T, bias))
    return F.linear(x, last[0].T, last[1])


def autograd_one_by_one(params: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of each example's loss for each parameter [n, *shape], by a loop."""
    params = [p.detach().clone().requires_grad_() for p in params]
    rows = [torch.autograd.grad(F.cross_entropy(forward(params, x[i:i + 1]), y[i:i + 1]), params) for i in range(len(x))]
    return [torch.stack(column) for column in zip(*rows)]


NAMES = ("w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4")


def assert_gradients(got, expected: list[Tensor], function: str, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    assert_that(type(got) in (tuple, list) and len(got) == len(expected),
                f"{function} must return {len(expected)} tensors, one for each parameter.")
    for name, mine, theirs in zip(NAMES, got, expected):
        assert_close(mine, theirs, f"the examples' gradients for {name}", rtol=rtol, atol=atol)


@exercise("per_example_gradients", points=7)
@some
@given(problem=networks())
def test_every_example_gets_the_gradient_that_autograd_gives_it_alone(student, problem):
    """Backwards by hand: softmax minus one-hot at the output; times w2 transposed, and zero where the ReLU was off.
    A weight's gradient is the outer product of what went in and what came back."""
    x, y, *params = problem
    assert_gradients(student.per_example_gradients(x, y, *params), autograd_one_by_one(params, x, y),
                     "per_example_gradients")


@exercise("per_example_gradients", points=3)
@two
@given(problem=networks())
def test_the_mean_over_the_examples_is_the_batch_gradient(student, problem):
    """Each example's gradient is of its own loss, not of its share in the mean: do not divide by n."""
    x, y, *params = problem
    leaves = [p.clone().requires_grad_() for p in params]
    whole = torch.autograd.grad(F.cross_entropy(forward(leaves, x), y), leaves)
    got = student.per_example_gradients(x, y, *params)
    assert_that(type(got) in (tuple, list) and len(got) == 4 and all(isinstance(g, Tensor) and g.ndim for g in got),
                "per_example_gradients must return four tensors.")
    for name, mine, theirs in zip(NAMES, got, whole):
        assert_close(mine.mean(0), theirs, f"the mean of the gradients for {name}", rtol=1e-6, atol=1e-9)


@exercise("per_example_gradients", points=1)
@two
@given(random=generators())
def test_nothing_comes_back_through_a_relu_at_exactly_zero(student, random):
    """At a = 0 the derivative of max(a, 0) is taken as 0, as in [a > 0]."""
    x, y, w1, b1, *rest = network(random, 4, 3, 5, 4)
    x[1], b1[:3] = 0.0, 0.0  # so a is exactly zero at three units of the second example
    assert_gradients(student.per_example_gradients(x, y, w1, b1, *rest), autograd_one_by_one([w1, b1, *rest], x, y),
                     "per_example_gradients")


@exercise("per_example_gradients", points=1)
@two
@given(random=generators())
def test_logits_of_a_thousand_do_not_overflow(student, random):
    """exp(1000) is infinite. A softmax subtracts each row's largest logit first; torch's own does."""
    x, y, w1, b1, w2, b2 = network(random, 4, 3, 5, 4)
    params = [w1, b1, 1000 * w2, b2 + torch.tensor([0.0, 3000.0, 0.0, 0.0])]
    got = student.per_example_gradients(x, y, *params)
    assert_that(type(got) in (tuple, list) and all(isinstance(g, Tensor) and g.isfinite().all() for g in got),
                "With logits of some thousands the gradients are not finite.")
    assert_gradients(got, autograd_one_by_one(params, x, y), "per_example_gradients", rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- per_example_gradients_func

@st.composite
def deep_networks(draw) -> tuple[list[Tensor], Tensor, Tensor]:
    random, n, depth = draw(generators()), draw(st.integers(2, 5)), draw(st.integers(1, 4))
    widths = draw(st.permutations([2, 3, 4, 5, 6]))[:depth + 1]
    params = [p for i, o in itertools.pairwise(widths) for p in (normal((i, o), random), normal((o,), random))]
    return params, normal((n, widths[0]), random), torch.randint(widths[-1], (n,), generator=random)


@exercise("per_example_gradients_func", points=0)
@some
@given(problem=deep_networks())
def test_torch_func_gives_every_example_its_gradient_at_any_depth(student, problem):
    """Write the loss of one example as a function of params, take torch.func.grad of it, and torch.func.vmap of that
    over x and y but not over params."""
    assert_gradients(student.per_example_gradients_func(*problem), autograd_one_by_one(*problem),
                     "per_example_gradients_func")


# ---------------------------------------------------------------- noise_scale_simple

def quotient(trace: float, squared: float) -> float:
    return trace / squared if squared > 0 else math.inf


@st.composite
def clouds(draw, least: int = 2) -> Tensor:
    """The gradients [n, p] of n examples: a common part and a scatter around it."""
    random = draw(generators())
    n, p = draw(st.integers(max(2, least), 7)), draw(st.integers(2, 5))
    return 10 ** draw(st.floats(-2, 2)) * normal((p,), random) + normal((n, p), random)


def population(random: torch.Generator) -> tuple[Tensor, float, float]:
    """Three gradients [3, 4] that are all there are; the true |G|^2 and tr(Sigma)."""
    whole = normal((3, 4), random)
    mean = whole.mean(0)
    return whole, float(mean @ mean), float((whole - mean).square().sum() / 3)


@exercise("noise_scale_simple", points=5)
@few
@given(grads=clouds())
def test_the_noise_scale_is_trace_over_squared_gradient(student, grads):
    """The trace is the sum over all parameters of their variance from example to example; |G|^2 a sum of squares
    too."""
    for size in (1.0, 0.01):
        scale, squared, trace = as_numbers(student.noise_scale_simple(size * grads), 3, "noise_scale_simple")
        assert_close(trace, size**2 * float(grads.var(0).sum()), "the estimate of tr(Sigma)", rtol=1e-6, atol=1e-12)
        assert_close(scale, quotient(trace, squared), f"the noise scale, for a trace of {trace:.4g} and |G|^2 of {squared:.4g}",
                     rtol=1e-6)


@exercise("noise_scale_simple", points=6)
@settings(max_examples=3)
@given(random=generators(), n=st.sampled_from([2, 3]))
def test_averaged_over_all_samples_both_estimates_are_exact(student, random, n):
    """A sample's mean contains noise, so that its squared length is too large by tr(Sigma)/n: take that away. And the
    scatter around a sample's own mean is too small: divide by n - 1. Return |G|^2 as it comes out, below zero too."""
    whole, true_squared, true_trace = population(random)
    found = [as_numbers(student.noise_scale_simple(whole[list(rows)]), 3, "noise_scale_simple")
             for rows in itertools.product(range(3), repeat=n)]
    _, squared, trace = (sum(column) / len(found) for column in zip(*found))
    assert_close(trace, true_trace, f"the estimate of tr(Sigma), averaged over all {len(found)} samples of {n}", rtol=1e-6)
    assert_close(squared, true_squared, f"the estimate of |G|^2, averaged over all {len(found)} samples of {n}",
                 rtol=1e-6, atol=1e-9)


@exercise("noise_scale_simple", points=3)
@few
@given(random=generators())
def test_noise_that_hides_the_gradient_gives_infinity(student, random):
    """The corrected |G|^2 can come out at zero or below: then the answer is math.inf, not a negative number."""
    half = normal((3, 4), random)
    scale, *_ = as_numbers(student.noise_scale_simple(torch.cat([half, -half])), 3, "noise_scale_simple")
    assert_that(scale == math.inf, f"The gradients add up to zero; the noise scale is infinite. It was {scale:.6g}.")
    scale, *_ = as_numbers(student.noise_scale_simple(torch.zeros(3, 2)), 3, "noise_scale_simple")
    assert_that(scale == math.inf, f"All gradients are zero, so |G|^2 is not above zero: the answer is math.inf. It was {scale:.6g}.")


# ---------------------------------------------------------------- noise_scale_two_batches

@st.composite
def streams(draw) -> tuple[list[Tensor], int]:
    """What 2 to 5 workers send in each of 4 steps [w, p], and how many examples each of them has."""
    random, batch = draw(generators()), draw(st.integers(1, 32))
    w, p = draw(st.integers(2, 5)), draw(st.integers(2, 6))
    common = 2 * normal((p,), random)
    return [common + normal((w, p), random) for _ in range(4)], batch


def parts(worker_grads: Tensor, batch: int) -> tuple[float, float]:
    """|G|^2 and tr(Sigma) without bias: the workers' scatter is Sigma / batch, and the mean still has 1/w of it."""
    scatter = float(worker_grads.var(0).sum())
    return float(worker_grads.mean(0).square().sum()) - scatter / len(worker_grads), batch * scatter


def one_step(student, worker_grads: Tensor, batch: int, state: dict, **options) -> tuple[float, dict]:
    result = student.noise_scale_two_batches(worker_grads, batch, state, **options)
    assert_that(type(result) in (tuple, list) and len(result) == 2 and type(result[1]) is dict,
                "noise_scale_two_batches must return two things: the noise scale and the new state, a dict.")
    return as_number(result[0], "The noise scale"), result[1]


@exercise("noise_scale_two_batches", points=6)
@some
@given(stream=streams())
def test_one_step_gives_the_trace_over_the_squared_gradient(student, stream):
    """B_small is `batch`, B_big is the number of workers times it. |G_small|^2 is the mean of the workers' squared
    lengths, |G_big|^2 the squared length of their mean."""
    (grads, *_), batch = stream
    for size in (1.0, 0.01):
        got, _ = one_step(student, size * grads, batch, {})
        squared, trace = parts(size * grads, batch)
        if abs(squared) > 1e-6 * trace:  # else rounding decides between infinity and a large number
            assert_close(got, quotient(trace, squared), "the noise scale after one step", rtol=1e-5)


def assert_averaged(student, grads: list[Tensor], batch: int, decay: float) -> None:
    state, squared, trace = {}, 0.0, 0.0
    for number, worker_grads in enumerate(grads, start=1):
        got, state = one_step(student, worker_grads, batch, state, decay=decay)
        new_squared, new_trace = parts(worker_grads, batch)
        squared, trace = (decay * old + (1 - decay) * new for old, new in ((squared, new_squared), (trace, new_trace)))
        if abs(squared) > 1e-6 * trace:
            assert_close(got, quotient(trace, squared), f"the noise scale after step {number}", rtol=1e-5)


@exercise("noise_scale_two_batches", points=4)
@some
@given(stream=streams(), decay=st.floats(0.2, 0.95))
def test_numerator_and_denominator_are_averaged_and_not_their_quotient(student, stream, decay):
    """Keep two moving averages in the state, one for |G|^2 and one for the trace, and divide at the end. Weight
    `decay` on the old average, 1 - decay on the new value; both averages start at zero."""
    assert_averaged(student, *stream, decay)


@exercise("noise_scale_two_batches", points=2)
@two
@given(random=generators(), batch=st.integers(1, 32))
def test_steps_below_zero_belong_in_the_average(student, random, batch):
    """One step's |G|^2 is often negative. The average is right only if those steps are in it as they are: neither clip
    nor skip them, and clip no average in the state. Only the answer becomes math.inf."""
    half = normal((2, 5), random)
    lost = torch.cat([half, -half])              # |G|^2 comes out below zero
    clear = 2.0 + normal((4, 5), random)
    for stream in ([clear, lost, clear], [lost, clear, lost, clear]):
        assert_averaged(student, stream, batch, 0.6)


@exercise("noise_scale_two_batches", points=3)
@few
@given(random=generators(), batch=st.integers(1, 64))
def test_workers_that_cancel_give_infinity(student, random, batch):
    """Where the average for |G|^2 is zero or below, the answer is math.inf, not a negative number."""
    half = normal((2, 5), random)
    got, _ = one_step(student, torch.cat([half, -half]), batch, {})
    assert_that(got == math.inf, f"The workers' gradients add up to zero; the noise scale is infinite. It was {got:.6g}.")
    got, _ = one_step(student, torch.zeros(3, 2), batch, {})
    assert_that(got == math.inf, f"All gradients are zero, so |G|^2 is not above zero: the answer is math.inf. It was {got:.6g}.")


# ---------------------------------------------------------------- noise_scale_full

class Curved:
    """A symmetric matrix that counts how often it is asked for a product."""

    def __init__(self, H: Tensor):
        self.H, self.calls = H, 0

    def __call__(self, v: Tensor) -> Tensor:
        self.calls += 1
        return self.H @ v


@st.composite
def landscapes(draw) -> tuple[Tensor, Tensor]:
    """Gradients of n examples [n, p], and a Hessian [p, p] with curvatures of 0.01 to 10."""
    grads, random = draw(clouds(least=3)), draw(generators())
    p = grads.shape[1]
    axes = torch.linalg.qr(normal((p, p), random))[0]
    return grads, axes * 10 ** (3 * torch.rand(p, generator=random).double() - 2) @ axes.T


def true_full(grads: Tensor, H: Tensor) -> tuple[float, float]:
    """G^T H G and tr(H Sigma) without bias, from the whole covariance matrix."""
    trace = float((H @ torch.atleast_2d(grads.T.cov())).trace())
    mean = grads.mean(0)
    return float(mean @ H @ mean) - trace / len(grads), trace


@exercise("noise_scale_full", points=6)
@some
@given(problem=landscapes())
def test_every_direction_counts_by_its_curvature(student, problem):
    """tr(H Sigma) is the mean of (g - mean) @ H @ (g - mean), with n - 1 in place of n; and from mean @ H @ mean take
    away tr(H Sigma) / n."""
    grads, H = problem
    curvature, trace = true_full(grads, H)
    if abs(curvature) > 1e-6 * trace:
        for size in (1.0, 0.01):
            got = as_number(student.noise_scale_full(size * grads, Curved(H)), "The noise scale")
            assert_close(got, quotient(trace, curvature), "the noise scale", rtol=1e-5)


@exercise("noise_scale_full", points=3)
@few
@given(grads=clouds(least=3), factor=st.sampled_from([0.01, 100.0]))
def test_with_the_same_curvature_everywhere_it_is_the_simple_one(student, grads, factor):
    """If H is a multiple of the identity, it cancels: tr(Sigma) / |G|^2 is left. So H belongs in both parts."""
    trace = float(grads.var(0).sum())
    squared = float(grads.mean(0).square().sum()) - trace / len(grads)
    if abs(squared) > 1e-6 * trace:
        got = as_number(student.noise_scale_full(grads, Curved(factor * torch.eye(grads.shape[1]).double())), "The noise scale")
        assert_close(got, quotient(trace, squared), f"the noise scale for H = {factor} * identity", rtol=1e-5)


@exercise("noise_scale_full", points=2)
@few
@given(random=generators(), n=st.integers(3, 5), p=st.sampled_from([10, 12]))
def test_a_product_for_each_example_and_one_for_the_mean_suffice(student, random, n, p):
    """Give hvp one vector [p] at a time; keep H @ v if you need it twice. Do not ask for H itself: that takes p products,
    and a network has thousands of parameters."""
    hvp = Curved(torch.eye(p, dtype=torch.float64))
    student.noise_scale_full(normal((n, p), random), hvp)
    assert_that(0 < hvp.calls <= n + 1, f"hvp was called {hvp.calls} times for {n} examples and {p} parameters.")


@exercise("noise_scale_full", points=3)
@few
@given(problem=landscapes())
def test_a_valley_downwards_gives_infinity(student, problem):
    """Where the corrected G^T H G is zero or below, no noise scale exists: math.inf. tr(H Sigma) keeps its sign."""
    grads, H = problem
    scatter = grads - grads.mean(0)
    for name, cloud, hessian in (("no mean", scatter, H), ("negative curvature", grads + 10, -H), ("no curvature", grads, 0 * H)):
        got = as_number(student.noise_scale_full(cloud, Curved(hessian)), "The noise scale")
        assert_that(got == math.inf, f"With {name} the noise scale is infinite; it was {got:.6g}.")
    # The mean points up a valley, the noise along a ridge: the trace is below zero, G^T H G above.
    scatter[:, 0] = 0.0
    along, saddle = torch.eye(len(H), dtype=torch.float64)[0], torch.eye(len(H), dtype=torch.float64)
    saddle[range(1, len(H)), range(1, len(H))] = -1.0
    curvature, trace = true_full(scatter + 3 * along, saddle)
    got = as_number(student.noise_scale_full(scatter + 3 * along, Curved(saddle)), "The noise scale")
    assert_close(got, trace / curvature, "the noise scale where tr(H Sigma) is below zero", rtol=1e-5)


# ---------------------------------------------------------------- optimal_learning_rate

@st.composite
def slopes(draw) -> tuple[Tensor, Tensor, Tensor, int]:
    """Noise of the examples [n, p] around the gradient [p], a Hessian [p, p], and a batch size."""
    (grads, H) = draw(landscapes())
    return grads - grads.mean(0), normal((grads.shape[1],), draw(generators())), H, draw(st.sampled_from([1, 3, 16, 200]))


@exercise("optimal_learning_rate", points=5)
@some
@given(slope=slopes())
def test_no_other_rate_lowers_a_quadratic_more_on_average(student, slope):
    """After one step the mean loss has changed by -lr*|G|^2 + lr^2/2*(G^T H G + tr(H Sigma)/B). Where is that lowest?"""
    noise, grad, H, batch = slope
    curvature, trace = float(grad @ H @ grad), float((noise @ H * noise).sum() / len(noise))
    got = as_number(student.optimal_learning_rate(batch, grad, Curved(H), trace / curvature), "The learning rate")

    def change(rate: float) -> float:
        return -rate * float(grad @ grad) + rate**2 / 2 * (curvature + trace / batch)
    best = float(grad @ grad) / (curvature + trace / batch)
    assert_close(change(got), change(best), f"the loss after a step of {got:.4g} * G (the best is {best:.4g})", rtol=1e-9)
    assert_close(got, best, "the learning rate", rtol=1e-4)


@exercise("optimal_learning_rate", points=3)
@few
@given(slope=slopes(), noise_scale=st.floats(0.5, 1000))
def test_at_the_noise_scale_the_rate_is_half_of_the_largest(student, slope, noise_scale):
    """eps_max / (1 + noise_scale / batch): half of eps_max where the batch is as large as the noise scale, and all of
    it where there is no noise."""
    _, grad, H, _ = slope
    largest = float(grad @ grad) / float(grad @ H @ grad)
    for batch, scale, share in ((64, 64.0, 0.5), (32, 0.0, 1.0), (10, 10 * noise_scale, 1 / (1 + noise_scale))):
        got = as_number(student.optimal_learning_rate(batch, grad, Curved(H), scale), "The learning rate")
        assert_close(got, share * largest, f"the learning rate at batch {batch} and noise scale {scale:.4g}", rtol=1e-5)


@exercise("optimal_learning_rate", points=2)
@few
@given(slope=slopes())
def test_without_curvature_upwards_no_rate_is_too_long(student, slope):
    """If G^T H G is zero or negative, the quadratic has no bottom along G: math.inf."""
    _, grad, H, _ = slope
    for hessian in (-H, 0 * H):
        got = as_number(student.optimal_learning_rate(8, grad, Curved(hessian), 10.0), "The learning rate")
        assert_that(got == math.inf, f"G^T H G is not above zero, so the rate is infinite; it was {got:.6g}.")


# ---------------------------------------------------------------- steps_and_examples

@st.composite
def budgets(draw) -> tuple[float, float, float]:
    """A batch size, S_min and B_crit."""
    return draw(st.floats(1, 4096)), draw(st.floats(5, 5000)), draw(st.floats(2, 2000))


def both(student, batch, s_min: float, e_min: float) -> tuple:
    result = student.steps_and_examples(batch, s_min, e_min)
    assert_that(type(result) in (tuple, list) and len(result) == 2, "steps_and_examples must return steps and examples.")
    return result


@exercise("steps_and_examples", points=3)
@some
@given(budget=budgets())
def test_steps_and_examples_lie_on_the_hyperbola(student, budget):
    """(S/S_min - 1)(E/E_min - 1) = 1, and E is batch times S. Put E = batch * S into it and solve for S."""
    batch, s_min, critical = budget
    steps, examples = (as_number(value, "Each result") for value in both(student, batch, s_min, critical * s_min))
    assert_close(examples, batch * steps, "the examples, compared with batch * steps", rtol=1e-6)
    product = (steps / s_min - 1) * (examples / (critical * s_min) - 1)
    assert_close(product, 1.0, "(S/S_min - 1)(E/E_min - 1)", rtol=1e-4)


@exercise("steps_and_examples", points=2)
@some
@given(budget=budgets())
def test_at_the_critical_batch_both_are_twice_their_least(student, budget):
    """The critical batch size is E_min / S_min."""
    _, s_min, critical = budget
    got = [as_number(value, "Each result") for value in both(student, critical, s_min, critical * s_min)]
    assert_close(got, [2 * s_min, 2 * critical * s_min], "steps and examples at the critical batch size", rtol=1e-5)


# ---------------------------------------------------------------- fit_critical_batch

BATCHES = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)


@st.composite
def truths(draw) -> tuple[torch.Generator, float, float]:
    """S_min, and B_crit among the batch sizes that were tried."""
    return draw(generators()), draw(st.floats(10, 3000)), 10 ** draw(st.floats(1.1, 2.7))


def simulated(random: torch.Generator, s_min: float, critical: float, noise: float, seeds: int = 3) -> tuple[Tensor, Tensor]:
    """Steps on the hyperbola, times the exponential of normal noise."""
    sizes = torch.tensor(BATCHES, dtype=torch.float64).repeat(seeds)
    return sizes, s_min * (1 + critical / sizes) * (noise * normal(sizes.shape, random)).exp()


def fitted(student, sizes: Tensor, steps: Tensor) -> list[float]:
    found = as_numbers(student.fit_critical_batch(sizes, steps), 4, "fit_critical_batch")
    assert_that(all(math.isfinite(value) and value > 0 for value in found),
                f"All four numbers must be finite and above zero; they were {[float(f'{v:.4g}') for v in found]}.")
    return found


@exercise("fit_critical_batch", points=5)
@few
@given(truth=truths(), seeds=st.sampled_from([1, 3]))
def test_points_on_the_hyperbola_give_its_two_numbers_back(student, truth, seeds):
    """For each B_crit on the grid, the best log S_min is the median of log steps - log(1 + B_crit / batch); keep the
    B_crit with the least sum of deviations from it."""
    random, s_min, critical = truth
    found, size, low, high = fitted(student, *simulated(random, s_min, critical, 0.0, seeds))
    assert_close(size, critical, "B_crit", rtol=0.04)
    assert_close(found, s_min, "S_min", rtol=0.04)
    assert_close([low, high], [critical, critical], "the interval, for points without noise", rtol=0.08)


@exercise("fit_critical_batch", points=3)
@few
@given(truth=truths(), wrong=st.sampled_from([0.15, 8.0]))
def test_some_runs_that_went_wrong_do_not_move_the_fit(student, truth, wrong):
    """The sum of squares is drawn to the points that are far off; the sum of absolute deviations from their median, in
    logarithms, is not."""
    random, s_min, critical = truth
    sizes, steps = simulated(random, s_min, critical, 0.01, seeds=4)
    place = torch.arange(3) if wrong > 1 else torch.arange(3) + len(BATCHES) - 3
    steps[place] *= wrong             # the first seed's runs at the three smallest or the three largest batch sizes
    _, size, _, _ = fitted(student, sizes, steps)
    assert_close(size, critical, f"B_crit, when 3 of 40 runs took {wrong:g} times as many steps", rtol=0.15)


@exercise("fit_critical_batch", points=2)
@two
@given(truth=truths())
def test_a_run_that_never_arrived_is_left_out(student, truth):
    """Steps of inf say nothing about the law, and every sum that contains one is inf or NaN. Keep only the runs with
    steps.isfinite() before you do anything else."""
    random, s_min, critical = truth
    sizes, steps = simulated(random, s_min, critical, 0.01)
    steps[torch.randperm(len(steps), generator=random)[:2]] = math.inf
    found, size, _, _ = fitted(student, sizes, steps)
    assert_close([found, size], [s_min, critical], "S_min and B_crit, when 2 of 30 runs never arrived", rtol=0.15)


# The mean over PHASES of log(high / low), from 4,000 fits to `noisy_runs(phase)` each. With 100 fits each a right answer
# comes to 0.96 of it, give or take 0.04.
PHASES, USUAL_WIDTH = (0.0, 1.0, 2.0, 3.0, 4.0), 0.6215


def noisy_runs(phase: float) -> tuple[Tensor, Tensor]:
    """30 runs that scatter by 20% around S_min = 100, B_crit = 90, on any machine alike."""
    sizes = torch.tensor(BATCHES, dtype=torch.float64).repeat(3)
    return sizes, 100 * (1 + 90 / sizes) * (0.28 * waves(30, phase=phase)).exp()


@exercise("fit_critical_batch", points=3)
@one
@given(random=generators())
def test_the_interval_is_as_wide_as_a_bootstrap_makes_it(student, random):
    """Draw n of the n runs with replacement (without, each draw holds all of them, and every fit is the same); fit; do it
    100 times or more. The ends are the 2.5% and the 97.5% quantile of the B_crit found, not the least and the most."""
    widths = []
    for phase in PHASES:
        sizes, steps = noisy_runs(phase)
        order = torch.randperm(len(sizes), generator=random)
        _, size, low, high = fitted(student, sizes[order], steps[order])
        assert_that(low <= size * 1.05 and size <= high * 1.05, f"The interval {low:.4g} to {high:.4g} does not hold the "
                                                                f"estimate {size:.4g}.")
        widths.append(math.log(high / low))
    ratio = sum(widths) / len(widths) / USUAL_WIDTH
    assert_that(0.8 < ratio < 1.13, f"For runs that scatter by 20% your intervals are {ratio:.2f} times as wide as they should "
                                    "be (in logarithms; 0.8 to 1.13 is in order).")


# ---------------------------------------------------------------- adaptive_batch_schedule

def scheduled(student, noise_scale: float, price: float, batch: int, lr_max: float = 1.0, **limits) -> tuple[float, float]:
    new, rate = as_numbers(student.adaptive_batch_schedule(noise_scale, price, batch, lr_max, **limits), 2,
                           "adaptive_batch_schedule")
    assert_that(new == int(new) and new >= 1, f"A batch size is a whole number, at least 1. It was {new:g}.")
    return int(new), rate


@st.composite
def wishes(draw) -> tuple[float, float, float]:
    """A noise scale, a price and the batch size that is best for them."""
    best, ratio = 2 ** draw(st.floats(5.0, 10.0)), 2 ** draw(st.floats(-4.0, 4.0))
    return best * ratio, best / ratio, best


@exercise("adaptive_batch_schedule", points=4)
@some
@given(wish=wishes(), near=st.floats(0.6, 1.6))
def test_the_batch_is_the_root_of_price_times_noise_scale(student, wish, near):
    """sqrt(price * noise_scale), rounded, wherever that is between half and twice the present batch."""
    noise_scale, price, best = wish
    got, _ = scheduled(student, noise_scale, price, round(near * best))
    assert_that(abs(got - best) <= 1, f"The best batch is {best:.1f}; the schedule says {got}.")


@exercise("adaptive_batch_schedule", points=3)
@some
@given(wish=wishes())
def test_one_step_at_most_doubles_or_halves_the_batch(student, wish):
    """A single estimate of the noise scale can be far off. Keep the new batch between batch/2 and 2*batch."""
    noise_scale, price, best = wish
    for batch in (round(best / 7), round(best / 3), round(best * 3), round(best * 9)):
        got, _ = scheduled(student, noise_scale, price, batch, largest=10**6)
        expected = 2 * batch if batch < best else batch / 2
        assert_that(abs(got - expected) <= 1, f"From {batch} towards {best:.0f} one step goes to {expected:g}; yours goes "
                                              f"to {got}.")


@exercise("adaptive_batch_schedule", points=3)
@few
@given(wish=wishes(), lr_max=st.floats(0.01, 2.0))
def test_the_rate_belongs_to_the_new_batch(student, wish, lr_max):
    """lr_max / (1 + noise_scale / B), and B is the batch that the next step will have, after all limits."""
    noise_scale, price, best = wish
    for batch, limits in ((round(best), {}), (round(best / 6), {}), (round(best * 6), {}), (round(best), {"largest": 16}),
                          (round(best), {"smallest": 1500})):
        got, rate = scheduled(student, noise_scale, price, batch, lr_max, **limits)
        assert_close(rate, lr_max / (1 + noise_scale / got), f"the learning rate for a batch of {got}", rtol=1e-5)


@exercise("adaptive_batch_schedule", points=2)
@few
@given(wish=wishes())
def test_the_limits_hold_even_against_the_brake(student, wish):
    """Clamp to half and twice the present batch first, to smallest and largest last. By default these are 1 and
    4096."""
    noise_scale, price, best = wish
    tried = ((round(best), {"largest": 20}, 20), (round(best), {"smallest": 2000}, 2000), (1, {}, 2), (8192, {}, 4096))
    for batch, limits, expected in tried:
        got, _ = scheduled(student, noise_scale, price, batch, **limits)
        assert_that(got == expected, f"From a batch of {batch} with limits {limits or 'as by default'} towards {best:.0f} comes "
                                     f"{expected}; yours gives {got}.")
    for noise_scale, price, batch, limits, expected in ((1e-4, 1e-3, 1, {}, 1), (1e9, 1e9, 4000, {}, 4096),
                                                        (1e9, 1e9, 6000, {"largest": 10**5}, 12000)):
        got, _ = scheduled(student, noise_scale, price, batch, **limits)
        assert_that(got == expected, f"From a batch of {batch} with limits {limits or 'as by default'} towards "
                                     f"{math.sqrt(price * noise_scale):.2g} comes {expected}; yours gives {got}.")


@exercise("adaptive_batch_schedule", points=5)
@one
@given(price=st.sampled_from([250.0, 300.0, 350.0]))
def test_the_schedule_costs_less_than_the_best_fixed_batch(student, price):
    """The work target. A bowl on which the noise scale grows two thousandfold, from a batch of 8: examples plus
    price times steps until the loss is at its target. Is the batch sqrt(price * noise_scale), and does it follow at
    every step?"""
    bowl = NoisyBowl()
    fixed, _, _ = bowl.best_fixed(price)
    mine, steps, examples = bowl.cost(lambda noise_scale, batch, largest: scheduled(
        student, noise_scale, price, batch, largest, largest=10**5), price)
    assert_that(mine <= 0.9 * fixed, f"The best fixed batch costs {fixed:,.0f}, your schedule {mine:,.0f} ({steps} steps, "
                                     f"{examples:,} examples): {mine / fixed:.2f} times as much; wanted at most 0.9.")


# ---------------------------------------------------------------- how fast

def network_inputs(seed: int) -> tuple[Tensor, ...]:
    """128 examples for the digits' network, 64-32-10, in float32."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (128,), generator=random)
    return (normal((128, 64), random, torch.float32), y, 0.2 * normal((64, 32), random, torch.float32),
            0.1 * normal((32,), random, torch.float32), 0.2 * normal((32, 10), random, torch.float32),
            0.1 * normal((10,), random, torch.float32))


def squared_lengths(per_example_gradients: Callable, x: Tensor, y: Tensor, *params: Tensor) -> Tensor:
    """The squared length of each example's whole gradient [n]: every number of every gradient is in it. One thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return sum(g.flatten(1).square().sum(1) for g in per_example_gradients(x, y, *params))
    finally:
        torch.set_num_threads(threads)


def writing_every_gradient_once() -> tuple[float, str]:
    from course.timing import memory_bandwidth
    written = 128 * (64 * 32 + 32 + 32 * 10 + 10) * 4
    return written / memory_bandwidth("cpu"), f"{written / 1e6:.1f} MB of gradients to memory"


@speed("per_example_gradients", points=5, ratio=8.0, inputs=network_inputs, work=squared_lengths,
       limit=writing_every_gradient_once, rtol=1e-3, atol=1e-5)
def one_example_at_a_time(x: Tensor, y: Tensor, *params: Tensor) -> list[Tensor]:
    """The gradients of 128 examples, against a loop in which autograd takes one example at a time."""
    return autograd_one_by_one(list(params), x, y)


# ---------------------------------------------------------------- probes: fixed questions that tell mistakes apart

def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Numbers that any machine finds alike, unlike a random generator's."""
    count = math.prod(shape)
    return (torch.cos(1.7 * torch.arange(count, dtype=torch.float64) ** 1.3 + phase)).view(shape)


def finite(value: float) -> Tensor:
    """Infinity and NaN as numbers that a probe may answer with."""
    return torch.tensor(float(value), dtype=torch.float64).nan_to_num(nan=-7e7, posinf=7e7, neginf=-8e7)


def or_exception(question: Callable) -> object:
    """To raise an exception is an answer too."""
    try:
        return question()
    except StudentError:
        return "an exception"


@probe("per_example_gradients")
def gradients_of_five(student):
    y = torch.tensor([0, 2, 1, 3, 2])
    x, b1, w2 = waves(5, 3), waves(6, phase=1), waves(6, 4)
    x[3], b1[2] = 0.0, 0.0  # a is exactly zero at one place
    got = [student.per_example_gradients(x, y, waves(3, 6), b1, size * w2, waves(4, phase=2)) for size in (1, 2000)]
    return [g.detach().nan_to_num(nan=-7.0) for g in (*got[0], *got[1])]


@probe("per_example_gradients_func")
def gradients_of_three_layers(student):
    params = [waves(3, 5), waves(5, phase=1), waves(5, 4), waves(4, phase=2), waves(4, 2), waves(2, phase=3)]
    return or_exception(lambda: [g.detach() for g in student.per_example_gradients_func(
        params, waves(4, 3), torch.tensor([0, 1, 1, 0]))])


@probe("noise_scale_simple")
def simple_of_two_clouds(student):
    """One with a clear mean, one without; and no gradients at all."""
    clouds = waves(6, 4) + torch.tensor([1.0, 2, 0, 1]), torch.cat([waves(3, 2), -waves(3, 2)]), torch.zeros(3, 2)
    return [or_exception(lambda: [finite(v) for v in student.noise_scale_simple(grads)]) for grads in clouds]


@probe("noise_scale_two_batches")
def three_steps_of_three_workers(student):
    state, answers = {}, []
    for step, common in enumerate((2.0, 1.5, 3.0)):
        got, state = student.noise_scale_two_batches(common + waves(3, 4, phase=step), 6, state, decay=0.7)
        answers.append(finite(got))
    lost, clear = torch.cat([waves(2, 3), -waves(2, 3)]), 2 + waves(4, 3)
    for stream in ([clear, lost, clear], [lost, clear, clear]):
        state = {}
        for worker_grads in stream:
            got, state = student.noise_scale_two_batches(worker_grads, 6, state, decay=0.6)
            answers.append(finite(got))
    return answers


@probe("noise_scale_full")
def full_of_two_clouds(student):
    H = torch.diag(torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)) + 0.05
    hvps, wide = [Curved(H), Curved(H), Curved(H)], Curved(torch.eye(8, dtype=torch.float64))
    clear, hidden = waves(6, 4) + torch.tensor([1.0, 2, 0, 1]), torch.cat([waves(3, 4), -waves(3, 4)])
    answers = [or_exception(lambda: finite(student.noise_scale_full(grads, hvp)))
               for grads, hvp in zip((clear, hidden, clear[:2]), hvps)]
    # Noise along a ridge only: tr(H Sigma) is below zero.
    ridge = torch.tensor([[3.0, 1], [3, -1], [3, 2]], dtype=torch.float64)
    answers.append(or_exception(lambda: finite(student.noise_scale_full(ridge, Curved(torch.diag(torch.tensor([1.0, -1.0]).double()))))))
    answers.append(or_exception(lambda: finite(student.noise_scale_full(1 + waves(3, 8), wide))))
    return answers, hvps[0].calls <= 7, wide.calls <= 4


@probe("optimal_learning_rate")
def four_rates(student):
    H = torch.diag(torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64))
    grad = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    return [or_exception(lambda: finite(student.optimal_learning_rate(batch, grad, Curved(sign * H), scale)))
            for batch, sign, scale in ((8, 1, 40.0), (40, 1, 8.0), (16, 1, 0.0), (8, -1, 40.0))]


@probe("steps_and_examples")
def four_batches(student):
    return [torch.stack([torch.as_tensor(float(v), dtype=torch.float64) for v in student.steps_and_examples(b, 50.0, 6000.0)])
            for b in (1.0, 16.0, 120.0, 4000.0)]


@probe("fit_critical_batch")
def five_fits(student):
    """Coarsely rounded, because a bootstrap is random and grids differ: how far off are S_min and B_crit; how wide is
    the interval, does it hold the estimate and the truth?"""
    sizes = torch.tensor(BATCHES, dtype=torch.float64).repeat(3)
    clean = 100 * (1 + 90 / sizes)
    noisy = clean * (0.1 * waves(30)).exp()
    slow, fast, lost = clean.clone(), clean.clone(), clean.clone()
    slow[[0, 1, 2]] *= 8.0
    fast[[7, 8, 9]] *= 0.15
    lost[[0, 5]] = math.inf

    def coarse(steps: Tensor) -> list:
        s_min, size, low, high = (float(finite(v).clamp(1e-6, 1e8)) for v in student.fit_critical_batch(sizes, steps))
        width = math.log(max(high / low, 1e-6))
        return [round(math.log(s_min / 100) / 0.3), round(math.log(size / 90) / 0.3),
                -1 if width < 0 else 0 if width < 0.01 else 1 if width < 1.5 else 2, low <= size * 1.03, size <= high * 1.03]
    return [or_exception(lambda: coarse(steps)) for steps in (clean, noisy, slow, fast, lost)]


@probe("adaptive_batch_schedule")
def seven_schedules(student):
    """Above the default limit; free; from below and from above; at both limits; odd numbers."""
    questions = ((1e8, 1e4, 6000, 0.5, 1, 100_000), (400.0, 100.0, 200, 0.5, 1, 4096), (6400.0, 400.0, 50, 0.5, 1, 4096), (100.0, 4.0, 333, 0.5, 1, 4096),
                 (900.0, 400.0, 500, 0.5, 1, 128), (25.0, 4.0, 16, 0.5, 64, 4096), (333.0, 77.0, 171, 0.5, 1, 4096))
    return [torch.tensor([float(v) for v in student.adaptive_batch_schedule(*question)], dtype=torch.float64)
            for question in questions]
