"""What the functions of this lab must do: the part that a student has too.

Torch's own optimisers say where a step must land, a simulation counts the steps of an escape, and a full
eigendecomposition knows the lowest curvature. Inputs are random; the probes at the end have fixed ones.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.adam import adam

from course.spec import assert_close, assert_that, exercise, probe, speed
from course.spec.student import StudentError
from course.spec.values import walk

# ---------------------------------------------------------------- walks, and where torch goes

STEPS = 4
# Every example costs calls, and a call in grading a millisecond or more.
some, few = settings(max_examples=12), settings(max_examples=5)
SHAPES = [(), (1,), (7,), (3, 4), (2, 1, 5)]

# Every optimiser as torch has it, with this lab's names and defaults.
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd_step": lambda params, lr=0.1: torch.optim.SGD(params, lr=lr),
    "momentum_step": lambda params, lr=0.1, beta=0.9: torch.optim.SGD(params, lr=lr, momentum=beta),
    "nesterov_step": lambda params, lr=0.1, beta=0.9: torch.optim.SGD(params, lr=lr, momentum=beta, nesterov=True),
    "adagrad_step": lambda params, lr=0.1, eps=1e-10: torch.optim.Adagrad(params, lr=lr, eps=eps),
    "rmsprop_step": lambda params, lr=0.01, beta=0.99, eps=1e-8: torch.optim.RMSprop(
        params, lr=lr, alpha=beta, eps=eps),
    "adadelta_step": lambda params, lr=1.0, rho=0.9, eps=1e-6: torch.optim.Adadelta(params, lr=lr, rho=rho, eps=eps),
    "adam_step": lambda params, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0: torch.optim.AdamW(
        params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay),
}
TORCH["flat_adam_step"] = TORCH["adam_step"]


def normal(shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=random, dtype=dtype)


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


@st.composite
def problems(draw, **hyper: st.SearchStrategy) -> tuple[Tensor, list[Tensor], dict[str, float]]:
    """A start, some gradients whose coordinates differ in size, 1e-4 to 1e3, and a value of each hyperparameter."""
    random, shape = draw(generators()), draw(st.sampled_from(SHAPES))
    size = 10.0 ** torch.randint(-4, 4, shape, generator=random).double()
    grads = [size * normal(shape, random) for _ in range(STEPS)]
    return normal(shape, random), grads, {name: draw(values) for name, values in hyper.items()}


@st.composite
def unit_problems(draw) -> tuple[Tensor, list[Tensor], Tensor]:
    """A start, some gradients of size 0.5 to 2, and a factor 1e-3 to 1e3 for every coordinate: a change of units."""
    random, shape = draw(generators()), draw(st.sampled_from([(7,), (3, 4), (2, 1, 5)]))
    grads = [normal(shape, random).sign() * (0.5 + 1.5 * torch.rand(shape, generator=random).double())
             for _ in range(STEPS)]
    return normal(shape, random), grads, 10.0 ** (6 * torch.rand(shape, generator=random).double() - 3)


def one_step(step: Callable, param, grad, state, **hyper) -> tuple:
    """The two things that every step returns."""
    result = step(param, grad, state, **hyper)
    assert_that(type(result) in (tuple, list) and len(result) == 2,
                f"{step.__name__} must return two things: the new parameter and the new state.")
    return result


def trajectory(step: Callable, start, grads: list, **hyper) -> Iterator:
    """The parameter after each step; what a step returns as state is handed to the next."""
    param, state = start, {}
    for grad in grads:
        param, state = one_step(step, param, grad, state, **hyper)
        yield param


def torch_trajectory(name: str, start, grads: list, **hyper) -> Iterator:
    """The same walk by torch's optimiser. `start` and each of `grads` may be lists of tensors."""
    params = [p.clone() for p in (start if type(start) is list else [start])]
    optimizer = TORCH[name](params, **hyper)
    for grad in grads:
        for p, g in zip(params, grad if type(grad) is list else [grad]):
            p.grad = g.clone()
        optimizer.step()
        places = [p.clone() for p in params]
        yield places if type(start) is list else places[0]


def assert_lands_where_torch_lands(step: Callable, problem: tuple, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    start, grads, hyper = problem
    walks = zip(trajectory(step, start, grads, **hyper), torch_trajectory(step.__name__, start, grads, **hyper))
    for number, (got, expected) in enumerate(walks, start=1):
        assert_close(got, expected, f"parameter after step {number}", rtol=rtol, atol=atol)


def assert_units_do_not_matter(step: Callable, problem: tuple, lr: float) -> None:
    start, grads, factor = problem
    rescaled = trajectory(step, start, [factor * grad for grad in grads], lr=lr, eps=1e-12)
    for number, (got, expected) in enumerate(zip(rescaled, trajectory(step, start, grads, lr=lr, eps=1e-12)), start=1):
        assert_close(got, expected, f"parameter after step {number}, every gradient multiplied by a constant",
                     rtol=1e-5, atol=1e-6)


rates = st.floats(0.05, 0.5)
betas = st.floats(0.3, 0.97)
# As small and as large as gradients may be.
epsilons = st.sampled_from([1e-4, 1e-2, 1.0])


# ---------------------------------------------------------------- sgd_step

@exercise("sgd_step", points=2)
@some
@given(problem=problems(lr=rates))
def test_sgd_steps_land_where_torch_lands(student, problem):
    """A step goes against the gradient: the new parameter is the old one minus lr times the gradient."""
    assert_lands_where_torch_lands(student.sgd_step, problem, rtol=1e-7, atol=1e-9)


@exercise("sgd_step", points=1)
@few
@given(problem=problems(lr=rates))
def test_sgd_remembers_nothing(student, problem):
    """Return two things: the new parameter, and an empty dict as the new state."""
    start, grads, hyper = problem
    _, state = one_step(student.sgd_step, start, grads[0], {}, **hyper)
    assert_close(state, {}, "the new state")


# ---------------------------------------------------------------- momentum_step

@exercise("momentum_step", points=4)
@some
@given(problem=problems(lr=rates, beta=betas))
def test_momentum_steps_land_where_torch_lands(student, problem):
    """First v = beta*v + grad, then the parameter moves by -lr*v; v goes into the state that you return."""
    assert_lands_where_torch_lands(student.momentum_step, problem, rtol=1e-7, atol=1e-9)


@exercise("momentum_step", points=2)
@few
@given(problem=problems(lr=rates, beta=betas))
def test_momentum_coasts_on_when_the_gradient_is_gone(student, problem):
    """With a zero gradient the velocity is not zero: it is what it was, times beta."""
    start, (push, *rest), hyper = problem
    places = list(trajectory(student.momentum_step, start, [push] + [torch.zeros_like(g) for g in rest], **hyper))
    first = places[0] - start
    for number, (before, after) in enumerate(pairwise(places), start=1):
        assert_close(after, before + hyper["beta"]**number * first, f"parameter {number} steps after the only push",
                     rtol=1e-7, atol=1e-9)
    assert_that(bool((first != 0).all()), "The first step moves nothing, although there is a gradient.")


# ---------------------------------------------------------------- nesterov_step

@exercise("nesterov_step", points=4)
@some
@given(problem=problems(lr=rates, beta=betas))
def test_nesterov_steps_land_where_torch_lands(student, problem):
    """First v = beta*v + grad; the parameter then moves by -lr*(grad + beta*v), with the new v."""
    assert_lands_where_torch_lands(student.nesterov_step, problem, rtol=1e-7, atol=1e-9)


@exercise("nesterov_step", points=2)
@some
@given(problem=problems(lr=rates, beta=betas))
def test_first_nesterov_step_already_looks_ahead(student, problem):
    """At the first step v is the gradient itself, so that the parameter moves by -lr*(1 + beta)*grad."""
    start, (grad, *_), hyper = problem
    param, _ = one_step(student.nesterov_step, start, grad, {}, **hyper)
    expected = start - hyper["lr"] * (1 + hyper["beta"]) * grad
    assert_close(param, expected, "parameter after step 1", rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------- adagrad_step

@exercise("adagrad_step", points=3)
@some
@given(problem=problems(lr=rates, eps=epsilons))
def test_adagrad_steps_land_where_torch_lands(student, problem):
    """Add grad**2 to s first; then divide by the square root of this s, plus eps."""
    assert_lands_where_torch_lands(student.adagrad_step, problem)


@exercise("adagrad_step", points=2)
@some
@given(problem=unit_problems(), lr=rates)
def test_first_adagrad_step_is_lr_long_in_every_coordinate(student, problem, lr):
    """After one step s is grad**2, coordinate by coordinate, so that grad / sqrt(s) is +1 or -1."""
    start, (grad, *_), factor = problem
    param, _ = one_step(student.adagrad_step, start, factor * grad, {}, lr=lr)
    assert_close(param, start - lr * grad.sign(), "parameter after step 1", rtol=1e-5, atol=1e-6)


@exercise("adagrad_step", points=1)
@few
@given(problem=unit_problems(), lr=rates)
def test_adagrad_walks_the_same_way_in_any_units(student, problem, lr):
    """Multiply all gradients of one coordinate by a constant: s grows by its square, sqrt(s) by the constant
    itself."""
    assert_units_do_not_matter(student.adagrad_step, problem, lr)


# ---------------------------------------------------------------- rmsprop_step

@exercise("rmsprop_step", points=3)
@some
@given(problem=problems(lr=rates, beta=betas, eps=epsilons))
def test_rmsprop_steps_land_where_torch_lands(student, problem):
    """First s = beta*s + (1 - beta)*grad**2; then divide by the square root of this s, plus eps."""
    assert_lands_where_torch_lands(student.rmsprop_step, problem)


@exercise("rmsprop_step", points=2)
@some
@given(problem=unit_problems(), lr=rates, beta=betas)
def test_first_rmsprop_step_is_too_long_by_the_missing_average(student, problem, lr, beta):
    """s starts at zero, so that after one step it is only (1 - beta)*grad**2: the step is lr/sqrt(1 - beta) long."""
    start, (grad, *_), _ = problem
    param, _ = one_step(student.rmsprop_step, start, grad, {}, lr=lr, beta=beta)
    assert_close(param, start - lr / math.sqrt(1 - beta) * grad.sign(), "parameter after step 1", rtol=1e-5, atol=1e-6)


@exercise("rmsprop_step", points=1)
@few
@given(problem=unit_problems(), lr=rates)
def test_rmsprop_walks_the_same_way_in_any_units(student, problem, lr):
    """Multiply all gradients of one coordinate by a constant: s grows by its square, sqrt(s) by the constant
    itself."""
    assert_units_do_not_matter(student.rmsprop_step, problem, lr)


# ---------------------------------------------------------------- adadelta_step

@exercise("adadelta_step", points=4)
@some
@given(problem=problems(lr=st.floats(0.3, 2.0), rho=betas, eps=epsilons))
def test_adadelta_steps_land_where_torch_lands(student, problem):
    """The order matters: s takes the new gradient in, the update is made with the old u, and only then u takes it
    in."""
    assert_lands_where_torch_lands(student.adadelta_step, problem)


@exercise("adadelta_step", points=2)
@few
@given(problem=unit_problems(), lr=st.floats(0.1, 0.7), rho=betas, eps=epsilons)
def test_lr_only_scales_what_adadelta_does(student, problem, lr, rho, eps):
    """u remembers updates as they were before the factor lr, so that lr stretches the whole walk and changes no
    more."""
    start, grads, _ = problem
    scaled = trajectory(student.adadelta_step, start, grads, lr=lr, rho=rho, eps=eps)
    full = trajectory(student.adadelta_step, start, grads, lr=1.0, rho=rho, eps=eps)
    for number, (got, whole) in enumerate(zip(scaled, full), start=1):
        assert_close(got, start + lr * (whole - start), f"parameter after step {number}", rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- adam_step

# If t is a tensor, torch computes beta2**t in float32, and 1 - beta2**t keeps only four or five digits: good enough.
LOOSE = {"rtol": 1e-5, "atol": 3e-5}
adam_hyper = {"lr": rates, "beta1": betas, "beta2": st.floats(0.5, 0.999), "eps": epsilons}


@exercise("adam_step", points=5)
@some
@given(problem=problems(**adam_hyper))
def test_adam_steps_land_where_torch_lands(student, problem):
    """Count t from 1. Average into m and v, correct copies of both by their own 1 - beta**t, keep m and v
    uncorrected."""
    assert_lands_where_torch_lands(student.adam_step, problem, **LOOSE)


@exercise("adam_step", points=2)
@some
@given(problem=unit_problems(), lr=rates, beta1=betas, beta2=adam_hyper["beta2"])
def test_first_adam_step_is_lr_long_in_every_coordinate(student, problem, lr, beta1, beta2):
    """After the correction m is the gradient and v its square, whatever the betas: grad / sqrt(grad**2) is +1 or
    -1."""
    start, (grad, *_), factor = problem
    param, _ = one_step(student.adam_step, start, factor * grad, {}, lr=lr, beta1=beta1, beta2=beta2, eps=1e-12)
    assert_close(param, start - lr * grad.sign(), "parameter after step 1", **LOOSE)


@exercise("adam_step", points=2)
@few
@given(problem=unit_problems(), lr=rates)
def test_adam_walks_the_same_way_in_any_units(student, problem, lr):
    """Multiply all gradients of one coordinate by a constant: m grows by it, v by its square, m / sqrt(v) stays."""
    assert_units_do_not_matter(student.adam_step, problem, lr)


@exercise("adam_step", points=3)
@few
@given(problem=problems(**{**adam_hyper, "lr": st.floats(0.1, 0.5)}, weight_decay=st.floats(0.3, 1.5)))
def test_weight_decay_pulls_as_in_adamw(student, problem):
    """The old parameter is multiplied by 1 - lr*weight_decay; the gradient, m and v know nothing of the decay."""
    assert_lands_where_torch_lands(student.adam_step, problem, **LOOSE)


# ---------------------------------------------------------------- escape_steps

@st.composite
def saddles(draw) -> dict[str, float]:
    """A saddle's downhill direction and a start so near its ridge that the dying root has long died at the end."""
    lr, push = 10 ** draw(st.floats(-2.0, 0.0)), 10 ** draw(st.floats(-2.3, 0.3))
    radius = 10 ** draw(st.floats(-1.0, 1.0))
    return {"curvature": -push / lr, "lr": lr, "offset": radius * 10 ** draw(st.floats(-8.0, -3.0)), "radius": radius}


def steps_walked(curvature: float, lr: float, offset: float, radius: float, beta: float = 0.0) -> int:
    """The true number of steps, counted by walking."""
    y, v, steps = abs(offset), 0.0, 0
    while y < radius:
        v = beta * v + curvature * y
        y, steps = y - lr * v, steps + 1
    return steps


def assert_predicts(got, steps: int, slack: float) -> None:
    """The next integer after `got` is `steps`, give or take `slack`; `steps` itself is as good an answer."""
    number = as_number(got)
    assert_that(steps - 1 - slack <= number <= steps + slack,
                f"It takes {steps} steps, as a walk of that many steps shows; the prediction is {number:.6g}.")


def as_number(got) -> float:
    assert_that(type(got) in (int, float) or isinstance(got, Tensor) and got.numel() == 1,
                "escape_steps must return one number.")
    return float(got)


@exercise("escape_steps", points=4)
@some
@given(saddle=saddles())
def test_sgd_escapes_in_the_predicted_number_of_steps(student, saddle):
    """Write down y after one step, then after k steps: y is multiplied by one and the same factor each time."""
    assert_predicts(student.escape_steps(**saddle), steps_walked(**saddle), slack=1e-6)


@exercise("escape_steps", points=3)
@some
@given(saddle=saddles(), beta=st.floats(0.5, 0.95))
def test_momentum_escapes_within_a_step_of_the_prediction(student, saddle, beta):
    """Two roots share the start between them: y[k] = a*grow**k + b*shrink**k, with a + b = offset and y[1] from
    rest."""
    assert_predicts(student.escape_steps(**saddle, beta=beta), steps_walked(**saddle, beta=beta), slack=1.0)


@exercise("escape_steps", points=2)
@few
@given(saddle=saddles(), upward=st.sampled_from([0.0, 1e-3, 0.7]), beta=st.sampled_from([0.0, 0.9]))
def test_no_way_down_takes_forever_and_being_outside_takes_no_time(student, saddle, upward, beta):
    """Three cases need no formula: already at or beyond the radius; no negative curvature; exactly on the ridge."""
    forever = "{} y never gets to the radius: the answer is math.inf."
    got = as_number(student.escape_steps(**{**saddle, "curvature": upward}, beta=beta))
    assert_that(got == math.inf, forever.format(f"With curvature {upward}") + f" It was {got:.6g}.")
    got = as_number(student.escape_steps(**{**saddle, "offset": 0.0}, beta=beta))
    assert_that(got == math.inf, forever.format("With offset 0") + f" It was {got:.6g}.")
    for beyond, beta in ((1.0, 0.0), (1.0, 0.9), (1.5, beta)):
        got = as_number(student.escape_steps(**{**saddle, "offset": beyond * saddle["radius"]}, beta=beta))
        assert_that(got == 0, f"From an offset {beyond} times the radius the answer is 0.0. It was {got:.6g}.")


# ---------------------------------------------------------------- most_negative_curvature

class Surface:
    """A symmetric matrix of known eigenvalues that counts how often it is asked for a product.

    Its axes are the unit vectors, reflected by a mirror with normal vector `mirror`.
    """

    def __init__(self, eigenvalues: Tensor, mirror: Tensor, share: Tensor):
        axes = torch.eye(len(mirror), dtype=mirror.dtype) - 2 * torch.outer(mirror, mirror) / (mirror @ mirror)
        self.H = axes * eigenvalues @ axes.T
        self.start = axes @ share  # a share of every eigenvector, so that no method is unlucky with its start
        self.lowest, self.width = float(eigenvalues.min()), float(eigenvalues.max() - eigenvalues.min())
        self.calls = 0

    def hvp(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.H @ x


def random_surface(eigenvalues: Tensor, random: torch.Generator) -> Surface:
    n = len(eigenvalues)
    share = normal((n,), random).sign() * (0.5 + torch.rand(n, generator=random))
    return Surface(eigenvalues, normal((n,), random), share)


@st.composite
def surfaces(draw, lowest: st.SearchStrategy = st.floats(-0.9, -0.5) | st.floats(-3.0, -1.5)) -> Surface:
    """Curvatures up to 1, and one that is lower than all the others by a third of the whole range or more.

    By default it is smaller in size than the highest, or larger, but not just as large: power iteration could not
    decide.
    """
    random, n = draw(generators()), draw(st.integers(4, 12))
    low = draw(lowest)
    others = low + (1 - low) * (0.35 + 0.65 * torch.rand(n - 2, generator=random).double())
    return random_surface(torch.cat([torch.tensor([low, 1.0]), others]), random)


def curvature_found(student, surface: Surface, **options) -> tuple[float, Tensor]:
    """What the student's function finds, checked for form."""
    result = student.most_negative_curvature(surface.hvp, surface.start, **options)
    assert_that(type(result) in (tuple, list) and len(result) == 2 and isinstance(result[1], Tensor),
                "most_negative_curvature must return two things: an eigenvalue and an eigenvector.")
    value, vector = result
    assert_that(type(value) in (int, float) or isinstance(value, Tensor) and value.numel() == 1,
                "The eigenvalue must be one number.")
    n = len(surface.start)
    assert_that(tuple(vector.shape) == (n,), f"H is {n} by {n}, so its eigenvector has {n} entries; "
                                             f"what came back has shape {list(vector.shape)}.")
    return float(value), vector


@exercise("most_negative_curvature", points=5)
@few
@given(surface=surfaces())
def test_the_lowest_curvature_of_all_is_found(student, surface):
    """Try it on a small matrix, beside torch.linalg.eigh. Is the start brought to length 1? Does the iteration stop
    when nothing is left of a new direction? Is it right whether the lowest eigenvalue or the highest is larger in
    size?"""
    value, _ = curvature_found(student, surface)
    assert_close(value, surface.lowest, "the lowest eigenvalue", rtol=0, atol=0.02 * surface.width)


@exercise("most_negative_curvature", points=4)
@few
@given(surface=surfaces())
def test_the_direction_has_length_one_and_that_curvature(student, surface):
    """Along a unit eigenvector v, v @ H @ v is the eigenvalue. From Lanczos, map the small eigenvector back to n
    entries."""
    _, v = curvature_found(student, surface)
    assert_close(float(v.norm()), 1.0, "the length of the eigenvector", rtol=0, atol=1e-3)
    assert_close(float(v @ surface.H @ v), surface.lowest, "v @ H @ v", rtol=0, atol=0.02 * surface.width)


@exercise("most_negative_curvature", points=3)
@few
@given(random=generators(), n=st.integers(16, 24), max_calls=st.integers(5, 12))
def test_hvp_is_called_no_more_often_than_allowed(student, random, n, max_calls):
    """Every product counts, also one that is only there to get the eigenvalue or the shift."""
    surface = random_surface(2 * torch.rand(n, generator=random).double() - 1, random)
    curvature_found(student, surface, max_calls=max_calls)
    assert_that(surface.calls <= max_calls, f"hvp was called {surface.calls} times; max_calls was {max_calls}.")
    assert_that(surface.calls > 0, "hvp was never called.")


# ---------------------------------------------------------------- flat_adam_step

@st.composite
def networks(draw) -> tuple[list[Tensor], list[list[Tensor]], dict[str, float]]:
    """Two to six parameters of odd shapes, three lists of gradients, and Adam's hyperparameters."""
    random, some = draw(generators()), st.sampled_from([(3,), (2, 3), (4, 1), (), (2, 1, 2), (5,)])
    chosen = draw(st.lists(some, min_size=1, max_size=5)) + [(3, 2)]

    def tensors(size: float) -> list[Tensor]:
        return [size * normal(shape, random) for shape in chosen]
    grads = [tensors(10.0 ** draw(st.integers(-4, 3))) for _ in range(3)]
    return tensors(1.0), grads, {name: draw(values) for name, values in adam_hyper.items()}


def buffers_of(state) -> list[Tensor]:
    """The tensors in a state that hold more than one number."""
    return [leaf for _, leaf in walk(state) if isinstance(leaf, Tensor) and leaf.numel() > 1]


@exercise("flat_adam_step", points=4)
@some
@given(problem=networks())
def test_flat_adam_lands_where_torch_lands(student, problem):
    """All of the parameters in one long tensor, one Adam step on it, then cut it up in the same order and shapes."""
    assert_lands_where_torch_lands(student.flat_adam_step, problem, **LOOSE)


@exercise("flat_adam_step", points=2)
@few
@given(problem=networks())
def test_flat_adam_remembers_two_flat_buffers(student, problem):
    """m and v are one tensor each, with a number for every parameter: joined once, they need never be cut up
    again."""
    params, (grads, *_), hyper = problem
    _, state = one_step(student.flat_adam_step, params, grads, {}, **hyper)
    buffers, size = buffers_of(state), sum(p.numel() for p in params)
    held = sum(b.numel() * b.element_size() for b in buffers)
    assert_that(len(buffers) <= 2,
                f"The state holds {len(buffers)} tensors for {len(params)} parameters; two flat ones are enough.")
    assert_close(held, 2 * size * params[0].element_size(), "bytes in the state's buffers")


# ---------------------------------------------------------------- how fast

def small_tensors(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """200 parameters of 64 numbers, and as many gradients."""
    random = torch.Generator().manual_seed(seed)
    return tuple([row.clone() for row in normal((200, 64), random, torch.float32)] for _ in range(2))


def ten_steps(flat_adam_step: Callable, params: list[Tensor], grads: list[Tensor]) -> Tensor:
    """Ten steps, each from where the last one ended; the list of gradients is turned, so that no two steps are alike.

    On one thread: to start an operation is what costs here, and threads that wait for each other would hide it.
    """
    threads, state = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        for turn in range(10):
            params, state = flat_adam_step(params, grads[turn:] + grads[:turn], state, lr=0.01)
        return torch.stack(params)
    finally:
        torch.set_num_threads(threads)


def moving_every_byte_once() -> tuple[float, str]:
    from course.timing import memory_bandwidth
    # Read the parameter, the gradient, m and v; write the parameter, m and v.
    bytes_moved = 10 * 7 * 200 * 64 * 4
    return bytes_moved / memory_bandwidth("cpu"), f"{bytes_moved / 1e6:.1f} MB to and from memory"


@speed("flat_adam_step", points=15, ratio=8.0, inputs=small_tensors, work=ten_steps, limit=moving_every_byte_once)
def one_tensor_at_a_time(params: list[Tensor], grads: list[Tensor], state: dict, lr: float = 1e-3, beta1: float = 0.9,
                         beta2: float = 0.999, eps: float = 1e-8) -> tuple[list[Tensor], dict]:
    """Ten Adam steps for 200 tensors of 64 numbers, against torch's own Adam called for one tensor at a time."""
    places, memory = [], {}
    for i, (param, grad) in enumerate(zip(params, grads)):
        before = state.get(i) or (torch.zeros_like(param), torch.zeros_like(param), torch.zeros(()))
        place, m, v, t = (tensor.clone() for tensor in (param, *before))  # torch's Adam changes them in place
        adam([place], [grad], [m], [v], [], [t], foreach=False, amsgrad=False, beta1=beta1, beta2=beta2, lr=lr,
             weight_decay=0.0, eps=eps, maximize=False)
        places.append(place)
        memory[i] = (m, v, t)
    return places, memory


# ---------------------------------------------------------------- probes: fixed questions that tell mistakes apart

def waves(n: int, phase: float = 0.0) -> Tensor:
    """Numbers that any machine finds alike, unlike a random generator's."""
    return torch.cos(torch.arange(n, dtype=torch.float64) + phase)


def from_small_to_large(n: int, step: int) -> Tensor:
    """A gradient whose coordinates are 1e-4 to 1e3 in size, and which turns from step to step."""
    return torch.logspace(-4, 3, n, dtype=torch.float64) * waves(n, 2.0 * step)


START = torch.linspace(-1, 1, 6, dtype=torch.float64)
GRADS = [from_small_to_large(6, step) for step in range(3)]


def places(step: Callable, **hyper) -> Tensor:
    return torch.stack(list(trajectory(step, START, GRADS, **hyper)))


@probe("sgd_step")
def sgd_results(student):
    return [student.sgd_step(START, grad, {}, lr=0.3) for grad in GRADS[:2]]


@probe("momentum_step")
def momentum_places(student):
    return places(student.momentum_step, lr=0.3, beta=0.8)


@probe("momentum_step")
def momentum_with_two_rates(student):
    """What was lr times the velocity when lr changes?"""
    return after_a_change_of_lr(student.momentum_step)


@probe("nesterov_step")
def nesterov_places(student):
    return places(student.nesterov_step, lr=0.3, beta=0.8)


@probe("nesterov_step")
def nesterov_with_two_rates(student):
    return after_a_change_of_lr(student.nesterov_step)


def after_a_change_of_lr(step: Callable) -> Tensor:
    param, state = one_step(step, START, GRADS[0], {}, lr=0.3, beta=0.8)
    return one_step(step, param, GRADS[1], state, lr=0.05, beta=0.8)[0]


@probe("adagrad_step")
def adagrad_places(student):
    return places(student.adagrad_step, lr=0.3, eps=0.01)


@probe("rmsprop_step")
def rmsprop_places(student):
    return places(student.rmsprop_step, lr=0.3, beta=0.8, eps=0.01)


@probe("adadelta_step")
def adadelta_places(student):
    return places(student.adadelta_step, lr=0.5, rho=0.8, eps=0.01)


@probe("adam_step")
def adam_places(student):
    return places(student.adam_step, lr=0.3, beta1=0.8, beta2=0.95, eps=0.01)


@probe("adam_step")
def adamw_places(student):
    return places(student.adam_step, lr=0.3, beta1=0.8, beta2=0.95, eps=0.01, weight_decay=0.4)


@probe("escape_steps")
def escapes(student):
    """SGD and momentum; no way down; outside already. To raise an exception is an answer too."""
    def answer(*question: float) -> float | str:
        try:
            number = as_number(student.escape_steps(*question))
        except StudentError:
            return "an exception"
        return number if math.isfinite(number) else str(number)
    return [answer(-0.5, 0.2, 1e-6, 1.0, 0.0), answer(-0.5, 0.2, 1e-6, 1.0, 0.9), answer(-3.0, 0.25, 1e-4, 2.0, 0.6),
            answer(0.5, 0.2, 1e-6, 1.0, 0.0), answer(-0.5, 0.2, 0.0, 1.0, 0.0), answer(-0.5, 0.2, 3.0, 1.0, 0.0)]


@probe("most_negative_curvature")
def curvatures(student):
    """Two surfaces of six directions, one steeper upwards and one steeper downwards; what came, in any sign of v."""
    answers = []
    for eigenvalues in ([-3.0, -0.5, 0.4, 1.0, 2.0, 5.0], [-5.0, -1.0, -0.5, 0.5, 1.0, 3.0]):
        surface = fixed_surface(eigenvalues)
        value, v = curvature_found(student, surface)
        answers.append(torch.stack([torch.tensor(value, dtype=torch.float64), v.norm(), v @ surface.H @ v]))
    return torch.stack(answers)


@probe("most_negative_curvature")
def within_the_budget(student):
    surface = fixed_surface(list(range(-6, 6)))
    student.most_negative_curvature(surface.hvp, surface.start, max_calls=8)
    return surface.calls <= 8


def fixed_surface(eigenvalues: list[float]) -> Surface:
    n = len(eigenvalues)
    share = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    return Surface(torch.tensor(eigenvalues, dtype=torch.float64), waves(n), share)


@probe("flat_adam_step")
def flat_adam_places(student):
    """Every step from the same place, only the state is handed on: a wrong shape does not spoil the next step."""
    shapes, sizes = [(3,), (), (2, 3), (1, 4)], [3, 1, 6, 4]

    def cut(flat: Tensor) -> list[Tensor]:
        return [piece.reshape(shape) for piece, shape in zip(flat.split(sizes), shapes)]
    params, state, answers = cut(torch.linspace(-1, 1, 14, dtype=torch.float64)), {}, []
    for step in range(2):
        got, state = one_step(student.flat_adam_step, params, cut(from_small_to_large(14, step)), state,
                              lr=0.3, beta1=0.8, beta2=0.95, eps=0.01)
        answers.append(got)
    return answers, len(buffers_of(state))
