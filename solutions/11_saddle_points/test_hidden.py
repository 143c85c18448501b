"""What the functions of this lab must do: the part that only the grader has."""
from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from course.spec import assert_close, assert_that, exercise
from course.spec.load import import_file

visible = import_file(Path(__file__).with_name("test_visible.py"))
adam_hyper, betas, epsilons, rates, LOOSE = (
    visible.adam_hyper, visible.betas, visible.epsilons, visible.rates, visible.LOOSE)
some, few = visible.some, visible.few
problems, unit_problems, generators, normal = (
    visible.problems, visible.unit_problems, visible.generators, visible.normal)
one_step, trajectory, torch_trajectory, assert_lands_where_torch_lands = (
    visible.one_step, visible.trajectory, visible.torch_trajectory, visible.assert_lands_where_torch_lands)
saddles, steps_walked, as_number, assert_predicts = (
    visible.saddles, visible.steps_walked, visible.as_number, visible.assert_predicts)
surfaces, random_surface, curvature_found, networks = (
    visible.surfaces, visible.random_surface, visible.curvature_found, visible.networks)


# ---------------------------------------------------------------- what holds for every optimiser

@st.composite
def single_precision(draw) -> tuple[Tensor, list[Tensor]]:
    """float32, and shapes from no number at all to three dimensions."""
    random, shape = draw(generators()), draw(st.sampled_from([(), (0,), (1,), (2, 3), (3, 1, 2)]))
    return normal(shape, random, torch.float32), [normal(shape, random, torch.float32) for _ in range(2)]


def assert_keeps_shape_and_dtype(step: Callable, problem: tuple) -> None:
    """With the default hyperparameters, so that these are compared with torch's as well."""
    for got, expected in zip(trajectory(step, *problem), torch_trajectory(step.__name__, *problem)):
        assert_close(got, expected, "parameter", rtol=1e-4, atol=1e-5)


def assert_state_is_all_there_is(step: Callable, problem: tuple) -> None:
    """Two walks by turns go where each of them goes alone, and a saved state can be gone on from twice."""
    start, (first, second, third, *_), hyper = problem
    alone = [list(trajectory(step, start, grads, **hyper)) for grads in ([first, second], [third, -first])]
    by_turns = zip(trajectory(step, start, [first, second], **hyper), trajectory(step, start, [third, -first], **hyper))
    for number, got in enumerate(by_turns, start=1):
        expected = [walk[number - 1] for walk in alone]
        assert_close(list(got), expected, f"parameters after step {number}, two walks by turns", rtol=1e-9)
    param, state = one_step(step, start, first, {}, **hyper)
    again = [one_step(step, param, second, state, **hyper)[0] for _ in range(2)]
    assert_close(again, [alone[0][1]] * 2, "parameter, twice the same step from the same saved state", rtol=1e-9)


def assert_zero_gradient_moves_nothing(step: Callable, problem: tuple, **hyper: float) -> None:
    start, grads, _ = problem
    for number, got in enumerate(trajectory(step, start, [0 * grad for grad in grads[:2]], **hyper), start=1):
        assert_close(got, start, f"parameter after {number} steps with gradient zero", rtol=0, atol=1e-12)


def assert_obeys_a_new_lr_at_once(step: Callable, problem: tuple, new_lr: float) -> None:
    """Torch's optimiser, whose lr is changed between the first step and the second."""
    start, grads, hyper = problem
    param, state = one_step(step, start, grads[0], {}, **hyper)
    got, _ = one_step(step, param, grads[1], state, **{**hyper, "lr": new_lr})
    there = start.clone()
    optimizer = visible.TORCH[step.__name__]([there], **hyper)
    for grad, lr in zip(grads, (hyper["lr"], new_lr)):
        there.grad, optimizer.param_groups[0]["lr"] = grad.clone(), lr
        optimizer.step()
    assert_close(got, there, "parameter after step 2, with another lr than step 1", rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- sgd_step

@exercise("sgd_step", points=1)
@few
@given(problem=single_precision())
def test_sgd_keeps_shape_and_dtype(student, problem):
    """The new parameter has the shape and the dtype of the old one, also for a scalar and for float32."""
    assert_keeps_shape_and_dtype(student.sgd_step, problem)


@exercise("sgd_step", points=1)
@few
@given(problem=problems(), lr=rates)
def test_sgd_moves_in_proportion_to_lr_and_gradient(student, problem, lr):
    """Twice the gradient or twice the lr is twice the step; nothing is normalised, clipped or remembered."""
    start, (grad, *_), _ = problem
    moved = one_step(student.sgd_step, start, grad, {}, lr=lr)[0] - start
    for what, more in (("lr", {"grad": grad, "lr": 2 * lr}), ("gradient", {"grad": 2 * grad, "lr": lr})):
        twice = one_step(student.sgd_step, start, more["grad"], {}, lr=more["lr"])[0] - start
        assert_close(twice, 2 * moved, f"the step with twice the {what}", rtol=1e-7, atol=1e-9)
    assert_that(bool((moved * grad < 0).all()), "The step does not go against the gradient.")


# ---------------------------------------------------------------- momentum_step

@exercise("momentum_step", points=2)
@few
@given(problem=problems(lr=rates, beta=betas), new_lr=st.floats(0.6, 1.0))
def test_momentum_obeys_a_new_lr_at_once(student, problem, new_lr):
    """v gathers gradients, not steps: lr multiplies v only when the parameter moves."""
    assert_obeys_a_new_lr_at_once(student.momentum_step, problem, new_lr)


@exercise("momentum_step", points=1)
@few
@given(problem=problems(lr=rates, beta=betas))
def test_momentum_remembers_in_its_state_alone(student, problem):
    """Everything that a step remembers must be in the state that it returns, and nothing in a global variable."""
    assert_state_is_all_there_is(student.momentum_step, problem)


@exercise("momentum_step", points=1)
@few
@given(problem=single_precision())
def test_momentum_keeps_shape_and_dtype(student, problem):
    """The velocity starts as zeros of the parameter's shape and dtype, also for a scalar and for float32."""
    assert_keeps_shape_and_dtype(student.momentum_step, problem)


# ---------------------------------------------------------------- nesterov_step

@exercise("nesterov_step", points=2)
@few
@given(problem=problems(lr=rates, beta=betas), new_lr=st.floats(0.6, 1.0))
def test_nesterov_obeys_a_new_lr_at_once(student, problem, new_lr):
    """v gathers gradients, not steps: lr multiplies grad + beta*v only when the parameter moves."""
    assert_obeys_a_new_lr_at_once(student.nesterov_step, problem, new_lr)


@exercise("nesterov_step", points=1)
@few
@given(problem=problems(lr=rates, beta=betas))
def test_nesterov_remembers_in_its_state_alone(student, problem):
    """Everything that a step remembers must be in the state that it returns, and nothing in a global variable."""
    assert_state_is_all_there_is(student.nesterov_step, problem)


@exercise("nesterov_step", points=1)
@few
@given(problem=single_precision())
def test_nesterov_keeps_shape_and_dtype(student, problem):
    """The velocity starts as zeros of the parameter's shape and dtype, also for a scalar and for float32."""
    assert_keeps_shape_and_dtype(student.nesterov_step, problem)


# ---------------------------------------------------------------- adagrad_step

@exercise("adagrad_step", points=1)
@few
@given(problem=problems(), lr=rates)
def test_adagrad_stays_where_the_gradient_is_zero(student, problem, lr):
    """With only zero gradients s is zero: eps in the denominator is there for this case."""
    assert_zero_gradient_moves_nothing(student.adagrad_step, problem, lr=lr)


@exercise("adagrad_step", points=1)
@few
@given(problem=unit_problems(), lr=rates)
def test_adagrad_slows_down_as_one_over_the_root_of_time(student, problem, lr):
    """Under a gradient that stays the same s is k*grad**2 after k steps: the k-th step is lr/sqrt(k) long."""
    start, (grad, *_), _ = problem
    places = [start, *trajectory(student.adagrad_step, start, [grad] * 4, lr=lr)]
    for k, (before, after) in enumerate(pairwise(places), start=1):
        length = torch.full_like(start, lr / math.sqrt(k))
        assert_close((after - before).abs(), length, f"length of step {k}", rtol=1e-5)


@exercise("adagrad_step", points=1)
@few
@given(problem=problems(lr=rates, eps=epsilons))
def test_adagrad_remembers_in_its_state_alone(student, problem):
    """Everything that a step remembers must be in the state that it returns, and nothing in a global variable."""
    assert_state_is_all_there_is(student.adagrad_step, problem)


@exercise("adagrad_step", points=1)
@few
@given(problem=single_precision())
def test_adagrad_keeps_shape_and_dtype(student, problem):
    """s starts as zeros of the parameter's shape and dtype, also for a scalar and for float32."""
    assert_keeps_shape_and_dtype(student.adagrad_step, problem)


# ---------------------------------------------------------------- rmsprop_step

@exercise("rmsprop_step", points=1)
@few
@given(problem=problems(), lr=rates)
def test_rmsprop_stays_where_the_gradient_is_zero(student, problem, lr):
    """With only zero gradients s is zero: eps in the denominator is there for this case."""
    assert_zero_gradient_moves_nothing(student.rmsprop_step, problem, lr=lr)


@exercise("rmsprop_step", points=1)
@few
@given(problem=unit_problems(), lr=rates, beta=st.floats(0.3, 0.5))
def test_rmsprop_forgets_what_was_long_ago(student, problem, lr, beta):
    """s is an average that forgets: under a gradient that stays the same the steps become lr long, and stay so."""
    start, (grad, *_), _ = problem
    places = list(trajectory(student.rmsprop_step, start, [10 * grad] + 19 * [grad], lr=lr, beta=beta, eps=1e-12))
    # Of the first gradient 100 * 0.5**20 is left in s, a ten-thousandth.
    assert_close((places[-1] - places[-2]).abs(), torch.full_like(start, lr), "length of step 20", rtol=1e-3)


@exercise("rmsprop_step", points=1)
@few
@given(problem=problems(lr=rates, beta=betas, eps=epsilons))
def test_rmsprop_remembers_in_its_state_alone(student, problem):
    """Everything that a step remembers must be in the state that it returns, and nothing in a global variable."""
    assert_state_is_all_there_is(student.rmsprop_step, problem)


@exercise("rmsprop_step", points=1)
@few
@given(problem=single_precision())
def test_rmsprop_keeps_shape_and_dtype(student, problem):
    """s starts as zeros of the parameter's shape and dtype, also for a scalar and for float32."""
    assert_keeps_shape_and_dtype(student.rmsprop_step, problem)


# ---------------------------------------------------------------- adadelta_step

@exercise("adadelta_step", points=1)
@few
@given(problem=problems(eps=epsilons), lr=st.floats(0.3, 2.0))
def test_adadelta_stays_where_the_gradient_is_zero(student, problem, lr):
    """With only zero gradients s and u are zero: eps inside both roots is there for this case."""
    assert_zero_gradient_moves_nothing(student.adadelta_step, problem, lr=lr)


@exercise("adadelta_step", points=1)
@some
@given(problem=unit_problems(), rho=betas)
def test_first_adadelta_step_is_as_short_as_the_root_of_eps(student, problem, rho):
    """u is zero at first, so that the first step is sqrt(eps) times grad / sqrt((1 - rho)*grad**2 + eps)."""
    start, (grad, *_), _ = problem
    param, _ = one_step(student.adadelta_step, start, grad, {}, rho=rho, eps=1e-4)
    expected = start - 1e-2 * grad / ((1 - rho) * grad**2 + 1e-4).sqrt()
    assert_close(param, expected, "parameter after step 1", rtol=1e-6, atol=1e-8)


@exercise("adadelta_step", points=1)
@few
@given(problem=problems(lr=st.floats(0.3, 2.0), rho=betas, eps=epsilons))
def test_adadelta_remembers_in_its_state_alone(student, problem):
    """Everything that a step remembers must be in the state that it returns, and nothing in a global variable."""
    assert_state_is_all_there_is(student.adadelta_step, problem)


@exercise("adadelta_step", points=1)
@few
@given(problem=single_precision())
def test_adadelta_keeps_shape_and_dtype(student, problem):
    """s and u start as zeros of the parameter's shape and dtype, also for a scalar and for float32."""
    assert_keeps_shape_and_dtype(student.adadelta_step, problem)


# ---------------------------------------------------------------- adam_step

@exercise("adam_step", points=2)
@few
@given(problem=problems(), lr=rates, decay=st.floats(0.1, 1.5))
def test_with_zero_gradient_adam_only_decays(student, problem, lr, decay):
    """Decoupled means: with gradient zero m and v stay zero, and the parameter is multiplied by 1 -
    lr*weight_decay."""
    start, grads, _ = problem
    zeros = [0 * grad for grad in grads[:2]]
    for k, got in enumerate(trajectory(student.adam_step, start, zeros, lr=lr, weight_decay=decay), start=1):
        assert_close(got, (1 - lr * decay)**k * start, f"parameter after {k} steps with gradient zero", rtol=1e-6)


@exercise("adam_step", points=2)
@some
@given(problem=problems(lr=rates, beta1=betas, beta2=st.floats(0.5, 0.999), eps=st.just(1e-6)),
       size=st.sampled_from([1e-12, 1e-6, 1.0]))
def test_gradients_far_below_eps_move_adam_little(student, problem, size):
    """eps is added to the square root of the corrected v, not inside the root, nor to the uncorrected v."""
    start, grads, hyper = problem
    assert_lands_where_torch_lands(student.adam_step, (start, [size * grad for grad in grads[:2]], hyper), **LOOSE)


@exercise("adam_step", points=2)
def test_sixty_steps_of_adam_land_where_torch_lands(student):
    """t goes on counting, however many steps there are, and both corrections fade away."""
    random = torch.Generator().manual_seed(torch.initial_seed())
    grads = [normal((6,), random) for _ in range(60)]
    assert_lands_where_torch_lands(student.adam_step, (normal((6,), random), grads, {"lr": 0.01}), **LOOSE)


@exercise("adam_step", points=1)
@few
@given(problem=problems(**adam_hyper, weight_decay=st.floats(0.1, 1.5)))
def test_adam_remembers_in_its_state_alone(student, problem):
    """Everything that a step remembers, the count too, must be in the state that it returns."""
    assert_state_is_all_there_is(student.adam_step, problem)


@exercise("adam_step", points=1)
@few
@given(problem=single_precision())
def test_adam_keeps_shape_and_dtype(student, problem):
    """m and v start as zeros of the parameter's shape and dtype, also for a scalar and for float32."""
    assert_keeps_shape_and_dtype(student.adam_step, problem)


# ---------------------------------------------------------------- escape_steps

betas_and_none = st.sampled_from([0.0, 0.5, 0.8, 0.95])


@exercise("escape_steps", points=2)
@few
@given(saddle=saddles(), beta=betas_and_none)
def test_both_sides_of_the_ridge_are_equally_steep(student, saddle, beta):
    """Only the distance from the ridge counts: an offset of -y takes as many steps as y, and -y may be outside
    too."""
    there = as_number(student.escape_steps(**saddle, beta=beta))
    back = as_number(student.escape_steps(**{**saddle, "offset": -saddle["offset"]}, beta=beta))
    assert_close(back, there, "steps from the other side", rtol=1e-6)
    outside = as_number(student.escape_steps(**{**saddle, "offset": -1.5 * saddle["radius"]}, beta=beta))
    assert_that(outside == 0, "From beyond the radius on the other side the answer is 0.0.")


@exercise("escape_steps", points=2)
@some
@given(saddle=saddles(), beta=betas_and_none, units=st.sampled_from([1e-3, 7.0, 1e4]))
def test_units_of_length_and_of_loss_do_not_change_the_steps(student, saddle, beta, units):
    """Only offset/radius and lr*curvature can matter; what else the formula contains must cancel."""
    steps = as_number(student.escape_steps(**saddle, beta=beta))
    for names in (("offset", units), ("radius", units)), (("curvature", units), ("lr", 1 / units)):
        other = {**saddle, **{name: factor * saddle[name] for name, factor in names}}
        assert_close(as_number(student.escape_steps(**other, beta=beta)), steps, "steps in other units", rtol=1e-6)


@exercise("escape_steps", points=2)
@some
@given(saddle=saddles(), beta=st.floats(0.9, 0.99), push=st.floats(0.001, 0.01))
def test_momentum_takes_its_time_to_start_rolling(student, saddle, beta, push):
    """At rest only part of the offset is on the growing root: the rest dies out, and that costs several steps."""
    saddle["curvature"] = -push / saddle["lr"]
    assert_predicts(student.escape_steps(**saddle, beta=beta), steps_walked(**saddle, beta=beta), slack=1.0)


# ---------------------------------------------------------------- most_negative_curvature

@exercise("most_negative_curvature", points=3)
@few
@given(surface=surfaces(lowest=st.floats(0.05, 0.4)))
def test_a_bowl_has_its_flattest_direction(student, surface):
    """The lowest eigenvalue may be positive. Power iteration finds it only after a shift by the largest one."""
    value, v = curvature_found(student, surface)
    assert_close(value, surface.lowest, "the lowest eigenvalue", rtol=0, atol=0.02 * surface.width)
    assert_close(float(v @ surface.H @ v), surface.lowest, "v @ H @ v", rtol=0, atol=0.02 * surface.width)


@exercise("most_negative_curvature", points=3)
@few
@given(random=generators(), n=st.integers(1, 8), length=rates)
def test_a_surface_equally_curved_everywhere_breaks_nothing(student, random, n, length):
    """H @ x may be a multiple of x at once: then nothing is left for a next direction, and 0 / 0 must not happen."""
    axes = torch.eye(n, dtype=torch.float64)
    for curvature in (-2.0, 0.0, 300.0):
        surface = random_surface(torch.full((n,), curvature, dtype=torch.float64), random)
        on_an_axis = random_surface(torch.full((n,), curvature, dtype=torch.float64), random)
        on_an_axis.H, on_an_axis.start = curvature * axes, length * axes[0]  # no rounding: what is left is 0, not 1e-17
        for each in (surface, on_an_axis):
            value, v = curvature_found(student, each)
            assert_close(value, curvature, "the only eigenvalue", rtol=1e-3)
            assert_close(float(v.norm()), 1.0, "the length of the eigenvector", rtol=0, atol=1e-3)


@exercise("most_negative_curvature", points=2)
@few
@given(surface=surfaces(), units=st.sampled_from([1e-6, 1e-2, 1e3]), length=st.sampled_from([1e-3, 1e3]))
def test_curvature_scales_with_the_loss_but_not_with_the_start(student, surface, units, length):
    """Ten times the loss is ten times the curvature; how long the start is does not matter. Compare with sizes, not
    with 1e-6."""
    surface.H, surface.start = (units * surface.H).float(), (length * surface.start).float()
    value, v = curvature_found(student, surface)
    assert_that(v.dtype == torch.float32, "From a float32 start comes an eigenvector that is not float32.")
    assert_close(value / units, surface.lowest, "the lowest eigenvalue over the unit of loss", rtol=0,
                 atol=0.02 * surface.width)
    assert_close(float(v @ surface.H @ v) / units, surface.lowest, "v @ H @ v over the unit of loss", rtol=0,
                 atol=0.02 * surface.width)


# ---------------------------------------------------------------- flat_adam_step

@exercise("flat_adam_step", points=2)
@few
@given(random=generators(), shapes=st.permutations([(), (0,), (1,), (3, 2), (2, 3), (1, 4, 1), (7,)]))
def test_flat_adam_keeps_every_shape_in_its_place(student, random, shapes):
    """Cut the buffer in the order in which it was joined, and give each piece the shape and dtype of its
    parameter."""
    params, grads = ([normal(shape, random, torch.float32) for shape in shapes] for _ in range(2))
    got, state = one_step(student.flat_adam_step, params, grads, {}, lr=0.1)
    expected = [p - 0.1 * g / (g.abs() + 1e-8) for p, g in zip(params, grads)]
    assert_close(list(got), expected, "parameters after step 1", rtol=1e-4, atol=1e-5)
    got, _ = one_step(student.flat_adam_step, params, [-g for g in grads], state, lr=0.0)
    assert_close(list(got), params, "parameters after a step of length 0", rtol=0, atol=1e-7)


@exercise("flat_adam_step", points=2)
@few
@given(problem=networks())
def test_flat_adam_steps_are_those_of_adam(student, reference, problem):
    """Every tensor must go where adam_step takes it alone: t counts steps, not tensors, and no tensor sees
    another."""
    params, grads, hyper = problem
    alone = zip(*(trajectory(reference.adam_step, p, [g[i] for g in grads], **hyper) for i, p in enumerate(params)))
    together = trajectory(student.flat_adam_step, params, grads, **hyper)
    for number, (got, expected) in enumerate(zip(together, alone), start=1):
        assert_close(list(got), list(expected), f"parameters after step {number}", **LOOSE)
