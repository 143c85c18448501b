# %% [markdown]
# # Saddle points

# %% tags=["setup"]
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from course import data, models, plots, surfaces, timing, train
from course.check import check, setup, speed

setup("11_saddle_points")
State = dict[str, Tensor | int | float]  # what an optimiser remembers; empty before the first step


# %%
def sgd_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
             lr: float = 0.1) -> tuple[Tensor, State]:
    """One step of gradient descent. It remembers nothing: the new state is empty too."""
    ### BEGIN SOLUTION
    return param - lr * grad, {}
    ### END SOLUTION


# %%
check(sgd_step)


# %%
def momentum_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                  lr: float = 0.1, beta: float = 0.9) -> tuple[Tensor, State]:
    """One step of SGD with momentum (Polyak 1964): v = beta*v + grad; param - lr*v. `state` holds v."""
    ### BEGIN SOLUTION
    v = beta * state.get("v", torch.zeros_like(param)) + grad
    return param - lr * v, {"v": v}
    ### END SOLUTION


# %%
check(momentum_step)


# %%
def nesterov_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                  lr: float = 0.1, beta: float = 0.9) -> tuple[Tensor, State]:
    """One step of Nesterov momentum as torch writes it: v = beta*v + grad; param - lr*(grad + beta*v)."""
    ### BEGIN SOLUTION
    v = beta * state.get("v", torch.zeros_like(param)) + grad
    return param - lr * (grad + beta * v), {"v": v}
    ### END SOLUTION


# %%
check(nesterov_step)


# %%
def adagrad_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                 lr: float = 0.1, eps: float = 1e-10) -> tuple[Tensor, State]:
    """One AdaGrad step (Duchi et al. 2011). `state` holds s, the sum of all squared gradients so far."""
    ### BEGIN SOLUTION
    s = state.get("s", torch.zeros_like(param)) + grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}
    ### END SOLUTION


# %%
check(adagrad_step)


# %%
def rmsprop_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                 lr: float = 0.01, beta: float = 0.99, eps: float = 1e-8) -> tuple[Tensor, State]:
    """One RMSprop step (Hinton 2012). `state` holds s, the moving average of squared gradients, zero at first."""
    ### BEGIN SOLUTION
    s = beta * state.get("s", torch.zeros_like(param)) + (1 - beta) * grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}
    ### END SOLUTION


# %%
check(rmsprop_step)


# %%
def adadelta_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                  lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6) -> tuple[Tensor, State]:
    """One AdaDelta step (Zeiler 2012). `state` holds s and u, the moving averages of squared gradients and of
    squared updates (before the factor lr), both zero at first; eps is inside both square roots."""
    ### BEGIN SOLUTION
    s = rho * state.get("s", torch.zeros_like(param)) + (1 - rho) * grad**2
    u = state.get("u", torch.zeros_like(param))
    delta = (u + eps).sqrt() / (s + eps).sqrt() * grad
    return param - lr * delta, {"s": s, "u": rho * u + (1 - rho) * delta**2}
    ### END SOLUTION


# %%
check(adadelta_step)


# %%
def adam_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State, lr: float = 1e-3,
              beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
              weight_decay: float = 0.0) -> tuple[Tensor, State]:
    """One AdamW step (Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019 for the decoupled decay).

    `state` holds m, v and the step count t. The decay multiplies the parameter by 1 - lr*weight_decay
    and never enters m or v. eps is added outside the square root of the corrected v.
    """
    ### BEGIN SOLUTION
    t = state.get("t", 0) + 1
    m = beta1 * state.get("m", torch.zeros_like(param)) + (1 - beta1) * grad
    v = beta2 * state.get("v", torch.zeros_like(param)) + (1 - beta2) * grad**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    decayed = param * (1 - lr * weight_decay)
    return decayed - lr * m_hat / (v_hat.sqrt() + eps), {"m": m, "v": v, "t": t}
    ### END SOLUTION


# %%
check(adam_step)


# %%
def escape_steps(curvature: float, lr: float, offset: float, radius: float, beta: float = 0.0) -> float:
    """Predicted number of steps until |y| reaches `radius`, from |y| = `offset` at rest, where the loss is
    curvature * y**2 / 2, under SGD (beta = 0) or momentum as in `momentum_step`.

    A real number: the true count is the next integer. math.inf if y never gets there (curvature >= 0 or offset = 0);
    0.0 if it is there already.
    """
    ### BEGIN SOLUTION
    if abs(offset) >= radius:
        return 0.0
    if curvature >= 0 or offset == 0:
        return math.inf
    # y[k+1] = (1 + beta - lr*curvature) y[k] - beta y[k-1]: the larger root grows, the smaller one dies out.
    trace = 1 + beta - lr * curvature
    root = math.sqrt(trace**2 - 4 * beta)
    grow, shrink = (trace + root) / 2, (trace - root) / 2
    first = 1 - lr * curvature  # y[1] / y[0]: the first step starts at rest
    amplitude = abs(offset) * (first - shrink) / (grow - shrink)
    return math.log(radius / amplitude) / math.log(grow)
    ### END SOLUTION


# %%
check(escape_steps)


# %%
def most_negative_curvature(hvp: Callable[[Tensor], Tensor], start: Float[Tensor, "n"],
                            max_calls: int = 60) -> tuple[Tensor, Tensor]:
    """The lowest eigenvalue of a symmetric matrix H [n, n] and a unit eigenvector [n], from products H @ x alone.

    `hvp(x)` gives H @ x and may be called at most `max_calls` times; `start` is a random vector [n].
    Lanczos iteration, or power iteration on a shifted H.
    """
    ### BEGIN SOLUTION
    basis, products = [], []
    q = start / start.norm()
    for _ in range(min(max_calls, len(start))):
        basis.append(q)
        products.append(hvp(q))
        rest = products[-1]
        for _ in range(2):  # twice: once leaves rounding errors that grow
            for b in basis:
                rest = rest - (b @ rest) * b
        if rest.norm() <= 1e-6 * products[-1].norm():
            break  # the basis holds everything that H can make of start
        q = rest / rest.norm()
    Q = torch.stack(basis)                              # [k, n]
    T = Q @ torch.stack(products).T                     # [k, k]: H seen from the basis
    values, vectors = torch.linalg.eigh((T + T.T) / 2)  # ascending
    return values[0], vectors[:, 0] @ Q
    ### END SOLUTION


# %%
check(most_negative_curvature)


# %%
def flat_adam_step(params: list[Tensor], grads: list[Tensor], state: State, lr: float = 1e-3, beta1: float = 0.9,
                   beta2: float = 0.999, eps: float = 1e-8) -> tuple[list[Tensor], State]:
    """Adam for a list of tensors of any shapes, all in one buffer: the same result as `adam_step` on each tensor,
    in about ten tensor operations altogether. Returns the new parameters, in their shapes, and the state
    (m and v as flat buffers, and t). All tensors have one dtype and device.
    """
    ### BEGIN SOLUTION
    flat = torch.cat([p.reshape(-1) for p in params])
    grad = torch.cat([g.reshape(-1) for g in grads])
    flat, state = adam_step(flat, grad, state, lr, beta1, beta2, eps)
    pieces = flat.split([p.numel() for p in params])
    return [piece.view(p.shape) for piece, p in zip(pieces, params)], state
    ### END SOLUTION


# %%
check(flat_adam_step)

# %%
speed(flat_adam_step)
