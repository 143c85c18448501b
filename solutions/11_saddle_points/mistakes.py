"""Known wrong answers of lab 11. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import math

import torch

from course.spec import mistake

# ---------------------------------------------------------------- sgd_step


@mistake("sgd_step", caught_by="test_sgd_steps_land_where_torch_lands")
def uphill(param, grad, state, lr=0.1):
    """You add lr times the gradient. The gradient points uphill, so the loss grows with every step. Subtract it."""
    return param + lr * grad, {}


@mistake("sgd_step", caught_by="test_sgd_steps_land_where_torch_lands")
def without_lr(param, grad, state, lr=0.1):
    """You subtract the gradient itself and never use lr: with steps ten times too long, steep directions blow up.
    Multiply the gradient by lr."""
    return param - grad, {}


@mistake("sgd_step", caught_by="test_sgd_steps_land_where_torch_lands")
def only_the_step(param, grad, state, lr=0.1):
    """You return the step, -lr*grad, instead of the place where it leads. The caller would take it for the new
    parameter and start again near zero. Return param - lr*grad."""
    return -lr * grad, {}


@mistake("sgd_step", caught_by="test_sgd_steps_land_where_torch_lands")
def unit_length(param, grad, state, lr=0.1):
    """You divide the gradient by its length, so that every step is lr long, however flat the ground: near a minimum
    it jumps over it for ever. Plain gradient descent multiplies the gradient by lr and does nothing else."""
    return param - lr * grad / (grad.norm() + 1e-12), {}


@mistake("sgd_step", caught_by="test_sgd_remembers_nothing")
def gradient_kept(param, grad, state, lr=0.1):
    """Your new parameter is right, but your state keeps the last gradient. Plain gradient descent needs no memory,
    and what is kept costs as much as the model. Return an empty dict as the new state."""
    return param - lr * grad, {"grad": grad}


@mistake("sgd_step", caught_by="test_sgd_remembers_nothing")
def only_the_parameter(param, grad, state, lr=0.1):
    """You return only the new parameter. Every step of this lab returns two things, so that all optimisers can be
    called alike. Return the new parameter and an empty dict."""
    return param - lr * grad


# ---------------------------------------------------------------- momentum_step

def _start(state, name, like):
    """What the state holds under a name; zeros before the first step."""
    return state.get(name, torch.zeros_like(like))


@mistake("momentum_step", caught_by="test_momentum_steps_land_where_torch_lands")
def gradient_weakened(param, grad, state, lr=0.1, beta=0.9):
    """You multiply the gradient by 1 - beta when you add it to v. That makes v an average, and every step 1/(1 -
    beta) times shorter, ten times with beta = 0.9. Here v is a sum: v = beta*v + grad."""
    v = beta * _start(state, "v", param) + (1 - beta) * grad
    return param - lr * v, {"v": v}


@mistake("momentum_step", caught_by="test_momentum_obeys_a_new_lr_at_once")
def lr_inside_the_velocity(param, grad, state, lr=0.1, beta=0.9):
    """You multiply the gradient by lr before it enters v. As long as lr stays the same nobody notices, but when a
    schedule lowers it, the old steps roll on at the old lr. Keep lr out of v: v = beta*v + grad, then param -
    lr*v."""
    v = beta * _start(state, "v", param) + lr * grad
    return param - v, {"v": v}


@mistake("momentum_step", caught_by="test_momentum_coasts_on_when_the_gradient_is_gone")
def velocity_lost(param, grad, state, lr=0.1, beta=0.9):
    """Your velocity begins at zero at every step, so that this is plain SGD. Take v from the state (zeros if it is
    empty) and return the new v in the new state."""
    return param - lr * grad, {"v": grad}


@mistake("momentum_step", caught_by="test_momentum_steps_land_where_torch_lands")
def velocity_of_the_last_step(param, grad, state, lr=0.1, beta=0.9):
    """You move with the old velocity and update it afterwards, so that every gradient acts one step late and the
    first step goes nowhere. Update v first, then move with the new one."""
    v = _start(state, "v", param)
    return param - lr * v, {"v": beta * v + grad}


@mistake("momentum_step", caught_by="test_momentum_steps_land_where_torch_lands")
def beta_on_the_gradient_too(param, grad, state, lr=0.1, beta=0.9):
    """You multiply the sum of v and the gradient by beta, so that the new gradient already counts as if it were one
    step old. Only the old velocity fades: v = beta*v + grad."""
    v = beta * (_start(state, "v", param) + grad)
    return param - lr * v, {"v": v}


@mistake("momentum_step", caught_by="test_momentum_steps_land_where_torch_lands")
def momentum_uphill(param, grad, state, lr=0.1, beta=0.9):
    """You count the minus twice, or not at all: the parameter runs uphill, faster and faster. If v gathers gradients,
    subtract lr*v; if it gathers steps down, add it."""
    v = beta * _start(state, "v", param) + grad
    return param + lr * v, {"v": v}


@mistake("momentum_step", caught_by="test_momentum_steps_land_where_torch_lands")
def nesterov_instead(param, grad, state, lr=0.1, beta=0.9):
    """You look ahead: you move by grad + beta*v. That is Nesterov's method, the next exercise, and its first step is
    already 1 + beta times as long. Plain momentum moves by v."""
    v = beta * _start(state, "v", param) + grad
    return param - lr * (grad + beta * v), {"v": v}


# ---------------------------------------------------------------- nesterov_step

@mistake("nesterov_step", caught_by="test_first_nesterov_step_already_looks_ahead")
def no_look_ahead(param, grad, state, lr=0.1, beta=0.9):
    """This is plain momentum: you move by v, or by grad + beta*v with the old v, which is the same thing. To look
    ahead, compute the new v first and then move by grad + beta*v with this new v."""
    v = beta * _start(state, "v", param) + grad
    return param - lr * v, {"v": v}


@mistake("nesterov_step", caught_by="test_nesterov_steps_land_where_torch_lands")
def velocity_twice(param, grad, state, lr=0.1, beta=0.9):
    """You move by v + beta*v, that is 1 + beta times the step of plain momentum: right at the first step, too long
    afterwards. What is added to beta*v is the present gradient, not v."""
    v = beta * _start(state, "v", param) + grad
    return param - lr * (v + beta * v), {"v": v}


@mistake("nesterov_step", caught_by="test_first_nesterov_step_already_looks_ahead")
def beta_forgotten_ahead(param, grad, state, lr=0.1, beta=0.9):
    """You move by grad + v. One step ahead the velocity will have faded by beta, so that you look too far. Move by
    grad + beta*v."""
    v = beta * _start(state, "v", param) + grad
    return param - lr * (grad + v), {"v": v}


@mistake("nesterov_step", caught_by="test_nesterov_steps_land_where_torch_lands")
def look_ahead_remembered(param, grad, state, lr=0.1, beta=0.9):
    """You keep grad + beta*v as the new velocity. The look ahead is only for this one move; kept, every gradient is
    counted again and again. Keep v = beta*v + grad."""
    v = beta * _start(state, "v", param) + grad
    ahead = grad + beta * v
    return param - lr * ahead, {"v": ahead}


@mistake("nesterov_step", caught_by="test_nesterov_steps_land_where_torch_lands")
def nesterov_velocity_lost(param, grad, state, lr=0.1, beta=0.9):
    """Your velocity begins at zero at every step: this is plain SGD with a step 1 + beta times as long. Take v from
    the state (zeros if it is empty) and return the new v in the new state."""
    return param - lr * (1 + beta) * grad, {"v": grad}


@mistake("nesterov_step", caught_by="test_nesterov_steps_land_where_torch_lands")
def nesterov_gradient_weakened(param, grad, state, lr=0.1, beta=0.9):
    """You multiply the gradient by 1 - beta when you add it to v. That makes v an average and the momentum ten times
    too weak (with beta = 0.9). Here v is a sum: v = beta*v + grad."""
    v = beta * _start(state, "v", param) + (1 - beta) * grad
    return param - lr * (grad + beta * v), {"v": v}


@mistake("nesterov_step", caught_by="test_nesterov_obeys_a_new_lr_at_once")
def nesterov_lr_inside_the_velocity(param, grad, state, lr=0.1, beta=0.9):
    """You multiply the gradient by lr before it enters v. As long as lr stays the same nobody notices, but when a
    schedule lowers it, the old steps roll on at the old lr. Keep lr out of v and multiply by it when you move."""
    v = beta * _start(state, "v", param) + lr * grad
    return param - (lr * grad + beta * v), {"v": v}


# ---------------------------------------------------------------- adagrad_step

@mistake("adagrad_step", caught_by="test_first_adagrad_step_is_lr_long_in_every_coordinate")
def adagrad_without_root(param, grad, state, lr=0.1, eps=1e-10):
    """You divide by s, not by its square root. s is in gradients squared: small gradients now make huge steps and
    large ones tiny steps. Divide by s.sqrt() + eps."""
    s = _start(state, "s", param) + grad**2
    return param - lr * grad / (s + eps), {"s": s}


@mistake("adagrad_step", caught_by="test_adagrad_steps_land_where_torch_lands")
def adagrad_eps_inside_root(param, grad, state, lr=0.1, eps=1e-10):
    """You add eps inside the square root. There it acts like its own root, 1e-5 for 1e-10, and slows down every
    coordinate with gradients smaller than that. Add it after the root: s.sqrt() + eps."""
    s = _start(state, "s", param) + grad**2
    return param - lr * grad / (s + eps).sqrt(), {"s": s}


@mistake("adagrad_step", caught_by="test_adagrad_steps_land_where_torch_lands")
def adagrad_without_memory(param, grad, state, lr=0.1, eps=1e-10):
    """Your s holds the newest squared gradient only, so that every step is lr long and you never slow down. Add
    grad**2 to the s in the state (zeros if it is empty), and return the sum in the new state."""
    s = grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}


@mistake("adagrad_step", caught_by="test_adagrad_steps_land_where_torch_lands")
def adagrad_old_sum(param, grad, state, lr=0.1, eps=1e-10):
    """You divide by the s of before this step. At first that is zero, so that the first step is divided by eps alone
    and is gigantic. Add grad**2 to s first, then divide by the root of this new s."""
    s = _start(state, "s", param)
    return param - lr * grad / (s.sqrt() + eps), {"s": s + grad**2}


@mistake("adagrad_step", caught_by="test_first_adagrad_step_is_lr_long_in_every_coordinate")
def adagrad_one_sum_for_all(param, grad, state, lr=0.1, eps=1e-10):
    """You add up the squares over all coordinates and divide them all by one number. The whole point of AdaGrad is
    that each coordinate has its own: a gentle slope must not pay for a steep one. Keep s elementwise, in the shape of
    grad."""
    s = _start(state, "s", param) + (grad**2).sum()
    return param - lr * grad / (s.sqrt() + eps), {"s": s}


@mistake("adagrad_step", caught_by="test_adagrad_steps_land_where_torch_lands")
def adagrad_sum_of_sizes(param, grad, state, lr=0.1, eps=1e-10):
    """You add up the sizes |grad| and take no square and no root. The first step comes out right, but then the steps
    shrink like 1/t instead of 1/sqrt(t), much too fast. Add up grad**2, divide by the root."""
    s = _start(state, "s", param) + grad.abs()
    return param - lr * grad / (s + eps), {"s": s}


# ---------------------------------------------------------------- rmsprop_step

@mistake("rmsprop_step", caught_by="test_rmsprop_steps_land_where_torch_lands")
def rmsprop_sum(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """You add up all squared gradients. That is AdaGrad: the sum only grows, and the steps shrink for ever. RMSprop
    forgets: s = beta*s + (1 - beta)*grad**2."""
    s = _start(state, "s", param) + grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}


@mistake("rmsprop_step", caught_by="test_first_rmsprop_step_is_too_long_by_the_missing_average")
def rmsprop_full_gradient(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """You add the whole grad**2 to beta*s. The two weights of an average must add up to one; as it is, s settles 1/(1
    - beta) times too high, and the steps are ten times too short with beta = 0.99. Multiply grad**2 by 1 - beta."""
    s = beta * _start(state, "s", param) + grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}


@mistake("rmsprop_step", caught_by="test_first_rmsprop_step_is_too_long_by_the_missing_average")
def rmsprop_beta_swapped(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """You exchanged beta and 1 - beta: the newest squared gradient gets nearly all of the weight, so that s has
    hardly any memory. The old s is multiplied by beta, the new grad**2 by 1 - beta."""
    s = (1 - beta) * _start(state, "s", param) + beta * grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}


@mistake("rmsprop_step", caught_by="test_rmsprop_steps_land_where_torch_lands")
def rmsprop_eps_inside_root(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """You add eps inside the square root. There it acts like its own root, 1e-4 for 1e-8, and slows down every
    coordinate with gradients smaller than that. Add it after the root: s.sqrt() + eps."""
    s = beta * _start(state, "s", param) + (1 - beta) * grad**2
    return param - lr * grad / (s + eps).sqrt(), {"s": s}


@mistake("rmsprop_step", caught_by="test_rmsprop_walks_the_same_way_in_any_units")
def rmsprop_without_root(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """You divide by s, not by its square root. s is in gradients squared: small gradients now make huge steps and
    large ones tiny steps. Divide by s.sqrt() + eps."""
    s = beta * _start(state, "s", param) + (1 - beta) * grad**2
    return param - lr * grad / (s + eps), {"s": s}


@mistake("rmsprop_step", caught_by="test_rmsprop_steps_land_where_torch_lands")
def rmsprop_without_memory(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """Your s begins at zero at every step, so that each step is lr/sqrt(1 - beta) long, ten times too long with beta
    = 0.99. Take s from the state (zeros if it is empty) and return the new s in the new state."""
    s = (1 - beta) * grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}


@mistake("rmsprop_step", caught_by="test_first_rmsprop_step_is_too_long_by_the_missing_average")
def rmsprop_corrected(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """You repair the bias of the average that starts at zero, by dividing s by 1 - beta**t. That is Adam's idea, and
    a good one, but not in RMSprop: its first step is lr/sqrt(1 - beta) long. Use s as it is."""
    t = state.get("t", 0) + 1
    s = beta * _start(state, "s", param) + (1 - beta) * grad**2
    return param - lr * grad / ((s / (1 - beta**t)).sqrt() + eps), {"s": s, "t": t}


# ---------------------------------------------------------------- adadelta_step

def _adadelta(param, grad, state, rho, eps):
    s = rho * _start(state, "s", param) + (1 - rho) * grad**2
    u = _start(state, "u", param)
    return s, u, (u + eps).sqrt() / (s + eps).sqrt() * grad


@mistake("adadelta_step", caught_by="test_lr_only_scales_what_adadelta_does")
def lr_in_the_memory_of_updates(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    """You let lr into u: you square the update after it was multiplied by lr. With lr = 1 nobody notices; with
    another lr each step feeds back into the next. Keep the update without lr in u, and multiply by lr only when you
    move."""
    s, u, delta = _adadelta(param, grad, state, rho, eps)
    return param - lr * delta, {"s": s, "u": rho * u + (1 - rho) * (lr * delta)**2}


@mistake("adadelta_step", caught_by="test_adadelta_steps_land_where_torch_lands")
def updates_forgotten(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    """Your u is zero at every step, so that the numerator stays sqrt(eps) and the steps never grow. Take u from the
    state, and return it with the new squared update averaged in."""
    s, _, _ = _adadelta(param, grad, state, rho, eps)
    delta = math.sqrt(eps) / (s + eps).sqrt() * grad
    return param - lr * delta, {"s": s}


@mistake("adadelta_step", caught_by="test_adadelta_steps_land_where_torch_lands")
def newest_update_only(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    """Your u is the last squared update instead of the average over all of them: the steps jump about. Average as you
    do for s: u = rho*u + (1 - rho)*update**2."""
    s, u, delta = _adadelta(param, grad, state, rho, eps)
    return param - lr * delta, {"s": s, "u": delta**2}


@mistake("adadelta_step", caught_by="test_adadelta_steps_land_where_torch_lands")
def adadelta_eps_outside_roots(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    """You add eps outside the square roots. u is zero at first, so that the first step is only eps long, not
    sqrt(eps), and AdaDelta takes for ever to get going. Add eps inside both roots: (u + eps).sqrt() / (s +
    eps).sqrt()."""
    s, u, _ = _adadelta(param, grad, state, rho, eps)
    delta = (u.sqrt() + eps) / (s.sqrt() + eps) * grad
    return param - lr * delta, {"s": s, "u": rho * u + (1 - rho) * delta**2}


@mistake("adadelta_step", caught_by="test_adadelta_steps_land_where_torch_lands")
def adadelta_without_numerator(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    """You divide by the root of s and stop there. That is RMSprop, with steps of about lr = 1. AdaDelta multiplies by
    the root of u + eps, the size of its recent updates, so that no lr is needed."""
    s, _, _ = _adadelta(param, grad, state, rho, eps)
    return param - lr * grad / (s + eps).sqrt(), {"s": s}


@mistake("adadelta_step", caught_by="test_adadelta_steps_land_where_torch_lands")
def adadelta_upside_down(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    """Your fraction is upside down: large gradients are multiplied by something large. The size of recent updates, u,
    belongs above, the size of recent gradients, s, below."""
    s, u, _ = _adadelta(param, grad, state, rho, eps)
    delta = (s + eps).sqrt() / (u + eps).sqrt() * grad
    return param - lr * delta, {"s": s, "u": rho * u + (1 - rho) * delta**2}


@mistake("adadelta_step", caught_by="test_adadelta_steps_land_where_torch_lands")
def adadelta_without_roots(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    """You divide u by s without taking the roots. Both are squares: without roots the step has the wrong units and
    comes out far too short. Use (u + eps).sqrt() / (s + eps).sqrt()."""
    s, u, _ = _adadelta(param, grad, state, rho, eps)
    delta = (u + eps) / (s + eps) * grad
    return param - lr * delta, {"s": s, "u": rho * u + (1 - rho) * delta**2}


# ---------------------------------------------------------------- adam_step

def _moments(param, grad, state, beta1, beta2):
    t = state.get("t", 0) + 1
    m = beta1 * _start(state, "m", param) + (1 - beta1) * grad
    v = beta2 * _start(state, "v", param) + (1 - beta2) * grad**2
    return m, v, t


@mistake("adam_step", caught_by="test_first_adam_step_is_lr_long_in_every_coordinate")
def without_bias_correction(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You use m and v as they are. Both start at zero, so early on they are far too small, v more than m: the first
    steps come out about three times too long. Divide m by 1 - beta1**t and v by 1 - beta2**t."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    return param * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_first_adam_step_is_lr_long_in_every_coordinate")
def only_m_corrected(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You correct m but not v. v starts at zero too and, with beta2 = 0.999, needs a thousand steps to get up: the
    first step comes out thirty times too long. Divide v by 1 - beta2**t before you take the root."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    return param * (1 - lr * weight_decay) - lr * m / (1 - beta1**t) / (v.sqrt() + eps), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def corrected_moments_kept(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You put the corrected m and v into the state, so that the next step corrects them once more. The correction is
    for this step only: keep m and v as they were before it."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    m, v = m / (1 - beta1**t), v / (1 - beta2**t)
    return param * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), {"m": m, "v": v, "t": t}


def _adam(param, m, v, t, lr, beta1, beta2, eps, weight_decay):
    """The right step from given moments and a given count."""
    return param * (1 - lr * weight_decay) - lr * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def t_always_one(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """Your t is 1 at every step. The first step is right, but the correction never fades, and later steps are scaled
    by (1 - beta2)**0.5 / (1 - beta1). Take t from the state, add one, and return it in the new state."""
    m, v, _ = _moments(param, grad, state, beta1, beta2)
    return _adam(param, m, v, 1, lr, beta1, beta2, eps, weight_decay), {"m": m, "v": v, "t": 1}


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def t_one_ahead(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """Your t is one too high: you count the step before you use t, and count from one as well. At the first step t
    must be 1, so that 1 - beta**t undoes exactly the factor 1 - beta in the averages."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    return _adam(param, m, v, t + 1, lr, beta1, beta2, eps, weight_decay), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def t_from_zero(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """Your t is 0 at the first step, and 1 - beta**0 is zero: you divide by it, and the parameter becomes NaN. Add
    one to t before you use it."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    return _adam(param, m, v, t - 1, lr, beta1, beta2, eps, weight_decay), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def adam_eps_inside_root(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You add eps inside the square root. There it acts like its own root, 1e-4 for 1e-8, and slows down every
    coordinate with gradients smaller than that. Add it after the root: v_hat.sqrt() + eps."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return param * (1 - lr * weight_decay) - lr * m_hat / (v_hat + eps).sqrt(), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def eps_before_the_correction(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You add eps to the root of the uncorrected v, and correct afterwards: early on the correction enlarges eps too,
    by 1/sqrt(1 - beta2) or thirty times at the first step. Correct v first, take the root, then add eps."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    update = m / (1 - beta1**t) * math.sqrt(1 - beta2**t) / (v.sqrt() + eps)
    return param * (1 - lr * weight_decay) - lr * update, {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_adam_walks_the_same_way_in_any_units")
def adam_without_root(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You divide by v, not by its square root. v is in gradients squared: small gradients now make huge steps and
    large ones tiny steps. Divide by v_hat.sqrt() + eps."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return param * (1 - lr * weight_decay) - lr * m_hat / (v_hat + eps), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def betas_swapped(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You use beta2 for m and beta1 for v. Then the direction remembers a thousand steps and the scale only ten: Adam
    turns much too late. beta1 belongs to m, beta2 to v, in the averages and in the corrections."""
    m, v, t = _moments(param, grad, state, beta2, beta1)
    return _adam(param, m, v, t, lr, beta2, beta1, eps, weight_decay), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_adam_steps_land_where_torch_lands")
def moments_lost(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """Your m, v and t begin anew at every step, so that each step is lr times the sign of the newest gradient. Take
    them from the state (zeros if it is empty), and return the new ones in the new state."""
    m, v, t = _moments(param, grad, {}, beta1, beta2)
    return _adam(param, m, v, t, lr, beta1, beta2, eps, weight_decay), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_with_zero_gradient_adam_only_decays")
def decay_in_the_gradient(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You add weight_decay*param to the gradient. There it is divided by the root of v like the rest, so that
    coordinates with large gradients hardly decay at all. Decoupled decay leaves the gradient alone and multiplies the
    parameter by 1 - lr*weight_decay."""
    m, v, t = _moments(param, grad + weight_decay * param, state, beta1, beta2)
    return _adam(param, m, v, t, lr, beta1, beta2, eps, 0.0), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_with_zero_gradient_adam_only_decays")
def decay_without_lr(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You multiply the parameter by 1 - weight_decay. The decay must be as small as the step is: with lr = 1e-3 yours
    is a thousand times too strong. Multiply by 1 - lr*weight_decay."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    return _adam(param * (1 - weight_decay), m, v, t, lr, beta1, beta2, eps, 0.0), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_weight_decay_pulls_as_in_adamw")
def decay_after_the_step(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You let the decay act on the new parameter, so that it shortens the step that was just made, too. Multiply the
    old parameter by 1 - lr*weight_decay, then subtract Adam's step."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    return _adam(param, m, v, t, lr, beta1, beta2, eps, 0.0) * (1 - lr * weight_decay), {"m": m, "v": v, "t": t}


@mistake("adam_step", caught_by="test_weight_decay_pulls_as_in_adamw")
def decay_left_out(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """You never use weight_decay; everything else is right. Multiply the old parameter by 1 - lr*weight_decay before
    you subtract Adam's step."""
    m, v, t = _moments(param, grad, state, beta1, beta2)
    return _adam(param, m, v, t, lr, beta1, beta2, eps, 0.0), {"m": m, "v": v, "t": t}


# ---------------------------------------------------------------- escape_steps

def _special_case(curvature, offset, radius):
    if abs(offset) >= radius:
        return 0.0
    return math.inf if curvature >= 0 or offset == 0 else None


def _roots(curvature, lr, beta):
    trace = 1 + beta - lr * curvature
    spread = math.sqrt(trace**2 - 4 * beta)
    return (trace + spread) / 2, (trace - spread) / 2


def _amplitude(offset, first, grow, shrink):
    return abs(offset) * (first - shrink) / (grow - shrink)


@mistake("escape_steps", caught_by="test_sgd_escapes_in_the_predicted_number_of_steps")
def continuous_time(curvature, lr, offset, radius, beta=0.0):
    """You divide by the exponent itself, as if y grew smoothly like exp(lr*|curvature|*k). Steps are not smooth: each
    multiplies y by a factor. Divide by the logarithm of that factor, for SGD log(1 - lr*curvature)."""
    if (answer := _special_case(curvature, offset, radius)) is not None:
        return answer
    grow, shrink = _roots(curvature, lr, beta)
    return math.log(radius / _amplitude(offset, 1 - lr * curvature, grow, shrink)) / (grow - 1)


@mistake("escape_steps", caught_by="test_sgd_escapes_in_the_predicted_number_of_steps")
def logarithm_to_base_two(curvature, lr, offset, radius, beta=0.0):
    """You take one logarithm to base 2 and the other to base e, so that your count is 1.44 times too high. Any base
    will do, if it is the same above and below."""
    if (answer := _special_case(curvature, offset, radius)) is not None:
        return answer
    grow, shrink = _roots(curvature, lr, beta)
    return math.log2(radius / _amplitude(offset, 1 - lr * curvature, grow, shrink)) / math.log(grow)


@mistake("escape_steps", caught_by="test_sgd_escapes_in_the_predicted_number_of_steps")
def shrinking_factor(curvature, lr, offset, radius, beta=0.0):
    """You multiply y by 1 + lr*curvature at each step. The curvature is negative here, so that y would shrink and
    your count comes out wrong or negative. A step subtracts lr*curvature*y: the factor is 1 - lr*curvature, more than
    one."""
    if (answer := _special_case(curvature, offset, radius)) is not None:
        return answer
    grow, shrink = _roots(-curvature, lr, beta)
    return math.log(radius / _amplitude(offset, 1 + lr * curvature, grow, shrink)) / math.log(grow)


@mistake("escape_steps", caught_by="test_momentum_escapes_within_a_step_of_the_prediction")
def beta_ignored(curvature, lr, offset, radius, beta=0.0):
    """You never use beta, so that the prediction is right for SGD and far too long for momentum, which gathers speed.
    With momentum y[k+1] = (1 + beta - lr*curvature)*y[k] - beta*y[k-1]: find the larger root of this recurrence."""
    if (answer := _special_case(curvature, offset, radius)) is not None:
        return answer
    return math.log(radius / abs(offset)) / math.log(1 - lr * curvature)


@mistake("escape_steps", caught_by="test_momentum_takes_its_time_to_start_rolling")
def start_on_the_growing_root(curvature, lr, offset, radius, beta=0.0):
    """Your growth factor is right, but you let all of the offset grow by it from the first step. From rest only a
    part of it does; the rest is on the smaller root and dies out, which costs several steps. Fit both roots to y[0]
    and y[1]."""
    if (answer := _special_case(curvature, offset, radius)) is not None:
        return answer
    return math.log(radius / abs(offset)) / math.log(_roots(curvature, lr, beta)[0])


@mistake("escape_steps", caught_by="test_momentum_escapes_within_a_step_of_the_prediction")
def momentum_as_longer_steps(curvature, lr, offset, radius, beta=0.0):
    """You treat momentum as SGD with lr/(1 - beta). That is right where the gradient hardly changes, but on the way
    out of a saddle it grows with every step, and v lags behind it. Solve y[k+1] = (1 + beta - lr*curvature)*y[k] -
    beta*y[k-1]."""
    if (answer := _special_case(curvature, offset, radius)) is not None:
        return answer
    return math.log(radius / abs(offset)) / math.log(1 - lr * curvature / (1 - beta))


@mistake("escape_steps", caught_by="test_sgd_escapes_in_the_predicted_number_of_steps")
def ratio_upside_down(curvature, lr, offset, radius, beta=0.0):
    """Your count is negative: you take the logarithm of offset/radius. How often must the offset be multiplied to
    become the radius? Use log(radius/offset)."""
    if (answer := _special_case(curvature, offset, radius)) is not None:
        return answer
    grow, shrink = _roots(curvature, lr, beta)
    return math.log(_amplitude(offset, 1 - lr * curvature, grow, shrink) / radius) / math.log(grow)


@mistake("escape_steps", caught_by="test_no_way_down_takes_forever_and_being_outside_takes_no_time")
def negative_from_outside(curvature, lr, offset, radius, beta=0.0):
    """If the start is already at or beyond the radius, your formula counts steps backwards and gives a negative
    number. Return 0.0 in that case, before anything else."""
    if curvature >= 0 or offset == 0:
        return math.inf
    grow, shrink = _roots(curvature, lr, beta)
    return math.log(radius / _amplitude(offset, 1 - lr * curvature, grow, shrink)) / math.log(grow)


# ---------------------------------------------------------------- most_negative_curvature

def _ritz(hvp, start, max_calls, normalise=True):
    """Lanczos with full orthogonalisation: the basis [k, n], the products with H, eigenvalues and eigenvectors of
    T."""
    basis, products = [], []
    q = start / start.norm() if normalise else start
    for _ in range(min(max_calls, len(start))):
        basis.append(q)
        products.append(hvp(q))
        rest = products[-1]
        for b in basis + basis:
            rest = rest - (b @ rest) * b / (b @ b)
        if rest.norm() <= 1e-6 * products[-1].norm():
            break
        q = rest / rest.norm()
    Q, HQ = torch.stack(basis), torch.stack(products)
    T = Q @ HQ.T
    return Q, HQ, *torch.linalg.eigh((T + T.T) / 2)


@mistake("most_negative_curvature", caught_by="test_the_lowest_curvature_of_all_is_found")
def largest_curvature(hvp, start, max_calls=60):
    """You return the largest eigenvalue, the steepest way up. The way out of a saddle is along the lowest one: take
    the first of the eigenvalues that eigh returns, it sorts them in ascending order."""
    Q, _, values, vectors = _ritz(hvp, start, max_calls)
    return values[-1], vectors[:, -1] @ Q


@mistake("most_negative_curvature", caught_by="test_the_lowest_curvature_of_all_is_found")
def largest_in_size(hvp, start, max_calls=60):
    """You return the eigenvalue that is largest in size, as power iteration on H itself does. That is usually a steep
    way up. Subtract s*x from H @ x, with s at least as large as the largest eigenvalue: then the lowest is largest in
    size."""
    Q, _, values, vectors = _ritz(hvp, start, max_calls)
    top = values.abs().argmax()
    return values[top], vectors[:, top] @ Q


@mistake("most_negative_curvature", caught_by="test_the_lowest_curvature_of_all_is_found")
def shift_not_undone(hvp, start, max_calls=60):
    """Your direction is right, but your eigenvalue is that of the shifted matrix, H minus s times the identity. Add s
    again, or compute v @ hvp(v) with the unit vector v."""
    Q, _, values, vectors = _ritz(hvp, start, max_calls)
    return values[0] - values.abs().max(), vectors[:, 0] @ Q


@mistake("most_negative_curvature", caught_by="test_the_lowest_curvature_of_all_is_found")
def sign_lost(hvp, start, max_calls=60):
    """You return the size of the lowest eigenvalue without its sign: a norm, perhaps, or an eigenvalue of -H. The
    sign tells a saddle from a minimum. v @ hvp(v) with the unit vector v has it."""
    Q, _, values, vectors = _ritz(hvp, start, max_calls)
    return -values[0], vectors[:, 0] @ Q


@mistake("most_negative_curvature", caught_by="test_the_lowest_curvature_of_all_is_found")
def start_not_of_unit_length(hvp, start, max_calls=60):
    """You use start as it is, as the first vector of your basis. Its length is not one, and so its entries in the
    small matrix are too large, and its share is not taken away from the next vectors. Divide it by its norm first."""
    basis, products, q = [], [], start
    for _ in range(min(max_calls, len(start))):
        basis.append(q)
        products.append(hvp(q))
        rest = products[-1]
        for b in basis:
            rest = rest - (b @ rest) * b
        q = rest / rest.norm()
    Q, HQ = torch.stack(basis), torch.stack(products)
    T = Q @ HQ.T
    values, vectors = torch.linalg.eigh((T + T.T) / 2)
    v = vectors[:, 0] @ Q
    return values[0], v / v.norm()


@mistake("most_negative_curvature", caught_by="test_the_direction_has_length_one_and_that_curvature")
def vector_of_the_small_matrix(hvp, start, max_calls=60):
    """You return the eigenvector of the small matrix. Its entries say how much of each basis vector to take: it is
    not yet a direction in the space of the parameters. Multiply it with the basis, vectors[:, 0] @ Q with Q of shape
    [k, n]."""
    _, _, values, vectors = _ritz(hvp, start, max_calls)
    return values[0], vectors[:, 0]


@mistake("most_negative_curvature", caught_by="test_the_direction_has_length_one_and_that_curvature")
def row_instead_of_column(hvp, start, max_calls=60):
    """You take the first row of the matrix of eigenvectors. eigh returns them as columns: the first one is vectors[:,
    0]."""
    Q, _, values, vectors = _ritz(hvp, start, max_calls)
    return values[0], vectors[0] @ Q


@mistake("most_negative_curvature", caught_by="test_the_direction_has_length_one_and_that_curvature")
def product_instead_of_direction(hvp, start, max_calls=60):
    """Your vector is H @ v instead of v: the direction is right, but its length is the size of the eigenvalue. Divide
    the vector by its norm, or return the v from before the product."""
    _, HQ, values, vectors = _ritz(hvp, start, max_calls)
    return values[0], vectors[:, 0] @ HQ


@mistake("most_negative_curvature", caught_by="test_hvp_is_called_no_more_often_than_allowed")
def more_products_than_allowed(hvp, start, max_calls=60):
    """Your answer is right, but you call hvp more than max_calls times. In a network each call costs two backward
    passes. Stop after max_calls products, and count those for the shift and for the eigenvalue too."""
    Q, _, values, vectors = _ritz(hvp, start, max(max_calls, len(start)))
    return values[0], vectors[:, 0] @ Q


# ---------------------------------------------------------------- flat_adam_step

def _flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def _flat_adam(params, grads, state, lr, beta1, beta2, eps):
    flat = _flat(params)
    m, v, t = _moments(flat, _flat(grads), state, beta1, beta2)
    return _adam(flat, m, v, t, lr, beta1, beta2, eps, 0.0), {"m": m, "v": v, "t": t}


def _cut(flat, params):
    pieces = flat.split([p.numel() for p in params])
    return [piece.view(p.shape) for piece, p in zip(pieces, params)]


@mistake("flat_adam_step", caught_by="test_flat_adam_lands_where_torch_lands")
def left_in_one_piece(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """You return the flat buffer itself. The caller wants a list of tensors again: split it by the number of elements
    of each parameter, and give each piece its shape."""
    return _flat_adam(params, grads, state, lr, beta1, beta2, eps)


@mistake("flat_adam_step", caught_by="test_flat_adam_lands_where_torch_lands")
def shapes_not_restored(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """You cut the buffer into pieces of the right sizes, but each piece is still flat. Give each the shape of its
    parameter: piece.view(p.shape)."""
    flat, state = _flat_adam(params, grads, state, lr, beta1, beta2, eps)
    return list(flat.split([p.numel() for p in params])), state


@mistake("flat_adam_step", caught_by="test_flat_adam_keeps_every_shape_in_its_place")
def columns_first(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Your shapes are right, but the numbers within a matrix change places: you flatten by rows and put back by
    columns. Use reshape(-1) to flatten and view(p.shape) to put back; both go by rows."""
    flat, state = _flat_adam(params, grads, state, lr, beta1, beta2, eps)
    turned = [piece.view(p.shape[::-1]).permute(tuple(reversed(range(p.ndim))))
              for piece, p in zip(flat.split([p.numel() for p in params]), params)]
    return turned, state


@mistake("flat_adam_step", caught_by="test_flat_adam_keeps_every_shape_in_its_place")
def joined_in_reverse(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """The tensors come back in the reverse of the order in which you were given them: so every layer would get
    another one's weights. Cut the buffer from its beginning, in the order in which you joined it, and append to the
    list."""
    flat, state = _flat_adam(params, grads, state, lr, beta1, beta2, eps)
    return _cut(flat, params)[::-1], state


@mistake("flat_adam_step", caught_by="test_flat_adam_lands_where_torch_lands")
def t_counts_tensors(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """You add one to t for every tensor. Then the bias correction fades after the first step already, and steps come
    out far too short or long. t counts steps: add one a call."""
    flat, t = _flat(params), state.get("t", 0) + len(params)
    m, v, _ = _moments(flat, _flat(grads), state, beta1, beta2)
    return _cut(_adam(flat, m, v, t, lr, beta1, beta2, eps, 0.0), params), {"m": m, "v": v, "t": t}


@mistake("flat_adam_step", caught_by="test_flat_adam_lands_where_torch_lands")
def one_scale_for_all(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """You average the squared gradients over the whole buffer, so that all parameters share one v. Flat is only how
    they are stored: every element keeps its own m and v. Leave out the mean or the norm."""
    flat, grad = _flat(params), _flat(grads)
    m, v, t = _moments(flat, grad, state, beta1, beta2)
    v = beta2 * _start(state, "v", flat) + (1 - beta2) * (grad**2).mean()
    return _cut(_adam(flat, m, v, t, lr, beta1, beta2, eps, 0.0), params), {"m": m, "v": v, "t": t}


@mistake("flat_adam_step", caught_by="test_flat_adam_lands_where_torch_lands")
def cast_to_single_precision(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Your result is float32 although the parameters are float64: a buffer made by torch.zeros or torch.empty has the
    default dtype. Take dtype and device from the parameters, or let torch.cat find them."""
    params, grads = [p.float() for p in params], [g.float() for g in grads]
    flat, state = _flat_adam(params, grads, state, lr, beta1, beta2, eps)
    return _cut(flat, params), state


@mistake("flat_adam_step", caught_by="test_flat_adam_lands_where_torch_lands")
def flat_moments_lost(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Your m, v and t begin anew at every step, so that each step is lr times the sign of the newest gradient. Take
    the two buffers and t from the state, and return the new ones in the new state."""
    flat, state = _flat_adam(params, grads, {}, lr, beta1, beta2, eps)
    return _cut(flat, params), state


@mistake("flat_adam_step", caught_by="test_flat_adam_remembers_two_flat_buffers")
def still_a_loop(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Your parameters are right, but you still go from tensor to tensor, with an m and a v for each. A dozen
    operations a tensor is what this exercise gets rid of: join all into one buffer, make one step, cut it up
    again."""
    new, states = [], []
    for i, (p, g) in enumerate(zip(params, grads)):
        m, v, t = _moments(p, g, state[str(i)] if state else {}, beta1, beta2)
        new.append(_adam(p, m, v, t, lr, beta1, beta2, eps, 0.0))
        states.append({"m": m, "v": v, "t": t})
    return new, {str(i): s for i, s in enumerate(states)}
