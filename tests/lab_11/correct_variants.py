"""Right answers to lab 11 that are written otherwise than the reference: every one must get full marks."""
from __future__ import annotations

import math

import torch

from variants import variant


# ---------------------------------------------------------------- sgd_step

@variant("sgd_step")
def sgd_with_torch_functions(param, grad, state, lr=0.1):
    return torch.sub(param, grad, alpha=lr), state


@variant("sgd_step")
def sgd_in_place_on_a_copy(param, grad, state, lr=0.1):
    new = param.clone()
    new -= lr * grad
    return [new, dict()]


# ---------------------------------------------------------------- momentum_step

@variant("momentum_step")
def momentum_first_step_apart(param, grad, state, lr=0.1, beta=0.9):
    if "momentum_buffer" in state:
        buffer = state["momentum_buffer"].mul(beta).add(grad)
    else:
        buffer = grad.clone()
    return param.add(buffer, alpha=-lr), {"momentum_buffer": buffer}


@variant("momentum_step")
def momentum_downhill_velocity(param, grad, state, lr=0.1, beta=0.9):
    """The velocity points down, and the first step's zero is a Python number."""
    velocity = beta * state.get("velocity", 0.0) - grad
    return param + lr * velocity, {"velocity": velocity, "comment": "downhill"}


@variant("momentum_step")
def momentum_in_place_on_its_own_copy(param, grad, state, lr=0.1, beta=0.9):
    v = state["v"].clone() if state else torch.zeros_like(grad)
    v *= beta
    v += grad
    return param - lr * v, dict(state, v=v)


# ---------------------------------------------------------------- nesterov_step

@variant("nesterov_step")
def nesterov_expanded(param, grad, state, lr=0.1, beta=0.9):
    """v from before the step: grad + beta*(beta*v + grad)."""
    old = state.get(0, 0)
    return param - lr * ((1 + beta) * grad + beta**2 * old), {0: beta * old + grad}


@variant("nesterov_step")
def nesterov_two_moves(param, grad, state, lr=0.1, beta=0.9):
    v = grad.clone() if not state else torch.add(grad, state["v"], alpha=beta)
    moved = param - lr * grad
    return moved - lr * beta * v, {"v": v}


# ---------------------------------------------------------------- adagrad_step

@variant("adagrad_step")
def adagrad_list_in_the_state(param, grad, state, lr=0.1, eps=1e-10):
    """Remembers the root of the sum, and how often it was called."""
    count, root = state.get("memory", [0, torch.zeros_like(param)])
    root = torch.hypot(root, grad)
    return param - grad / (root + eps) * lr, {"memory": [count + 1, root]}


@variant("adagrad_step")
def adagrad_with_torch_functions(param, grad, state, lr=0.1, eps=1e-10):
    s = torch.addcmul(state.get("sum", torch.zeros_like(param)), grad, grad)
    return torch.addcdiv(param, grad, s**0.5 + eps, value=-lr), {"sum": s}


# ---------------------------------------------------------------- rmsprop_step

@variant("rmsprop_step")
def rmsprop_moving_towards_the_square(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    s = state.get("s", torch.zeros_like(grad))
    s = s + (1 - beta) * (grad * grad - s)
    return param - lr * (grad / (torch.sqrt(s) + eps)), {"s": s}


@variant("rmsprop_step")
def rmsprop_without_the_factor(param, grad, state, lr=0.01, beta=0.99, eps=1e-8):
    """Keeps s / (1 - beta), and brings the factor in at the root."""
    r = beta * state.get("r", 0.0) + grad.square()
    return param - lr * grad / (math.sqrt(1 - beta) * r.sqrt() + eps), {"r": r}


# ---------------------------------------------------------------- adadelta_step

@variant("adadelta_step")
def adadelta_one_root(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    s, u = state.get("averages", (torch.zeros_like(param), torch.zeros_like(param)))
    s = torch.lerp(grad**2, s, rho)
    update = -torch.sqrt((u + eps) / (s + eps)) * grad
    return param + lr * update, {"averages": (s, torch.lerp(update**2, u, rho))}


@variant("adadelta_step")
def adadelta_with_torch_functions(param, grad, state, lr=1.0, rho=0.9, eps=1e-6):
    s = state["square_avg"].clone() if state else torch.zeros_like(param)
    u = state["acc_delta"].clone() if state else torch.zeros_like(param)
    s.mul_(rho).addcmul_(grad, grad, value=1 - rho)
    delta = u.add(eps).sqrt_().div_(s.add(eps).sqrt_()).mul_(grad)
    u.mul_(rho).addcmul_(delta, delta, value=1 - rho)
    return param.add(delta, alpha=-lr), {"square_avg": s, "acc_delta": u}


# ---------------------------------------------------------------- adam_step

@variant("adam_step")
def adam_with_a_count_that_is_a_tensor(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """beta**t comes out in float32: six digits of the correction, whatever the parameter's dtype."""
    t = state.get("t", torch.tensor(0)) + 1
    m = beta1 * state.get("m", torch.zeros_like(param)) + (1 - beta1) * grad
    v = beta2 * state.get("v", torch.zeros_like(param)) + (1 - beta2) * grad * grad
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return param - lr * (m_hat / (v_hat.sqrt() + eps) + weight_decay * param), {"t": t, "m": m, "v": v}


@variant("adam_step")
def adam_as_torch_writes_it(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    step = state.get("step", 0.0) + 1
    m = torch.lerp(state.get("exp_avg", torch.zeros_like(param)), grad, 1 - beta1)
    v = torch.addcmul(beta2 * state.get("exp_avg_sq", torch.zeros_like(param)), grad, grad, value=1 - beta2)
    denominator = v.sqrt() / math.sqrt(1 - beta2**step) + eps
    new = torch.addcdiv(param.mul(1 - lr * weight_decay), m, denominator, value=-lr / (1 - beta1**step))
    return new, {"step": step, "exp_avg": m, "exp_avg_sq": v}


@variant("adam_step")
def adam_that_keeps_the_powers(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """No count at all: beta1**t and beta2**t are multiplied on. eps is scaled instead of v."""
    m, v, power1, power2 = state.get("all", (0.0, 0.0, 1.0, 1.0))
    power1, power2 = power1 * beta1, power2 * beta2
    m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
    root = math.sqrt(1 - power2)
    step = lr * root / (1 - power1) * m / (v.sqrt() + eps * root)
    return param - lr * weight_decay * param - step, {"all": (m, v, power1, power2)}


# ---------------------------------------------------------------- escape_steps

@variant("escape_steps")
def escape_by_walking(curvature, lr, offset, radius, beta=0.0):
    """Counts the steps of a simulation: an integer."""
    if abs(offset) >= radius:
        return 0
    if curvature >= 0 or offset == 0:
        return float("inf")
    y, v, count = offset, 0.0, 0
    while abs(y) < radius:
        v = beta * v + curvature * y
        y -= lr * v
        count += 1
    return count


@variant("escape_steps")
def escape_by_eigenvalues(curvature, lr, offset, radius, beta=0.0):
    """The step as a matrix on (y, v), with torch; the answer is a tensor."""
    offset, radius = torch.tensor(abs(offset), dtype=torch.float64), torch.tensor(radius, dtype=torch.float64)
    if offset >= radius:
        return torch.tensor(0.0)
    if curvature >= 0 or offset == 0:
        return torch.tensor(math.inf)
    step = torch.tensor([[1 - lr * curvature, -lr * beta], [curvature, beta]], dtype=torch.float64)
    values, vectors = torch.linalg.eig(step)
    values, vectors = values.real, vectors.real
    shares = torch.linalg.solve(vectors, torch.stack([offset, torch.zeros_like(offset)]))
    top = values.argmax()
    return torch.log(radius / (shares[top] * vectors[0, top])) / torch.log(values[top])


@variant("escape_steps")
def escape_rounded_up(curvature, lr, offset, radius, beta=0.0):
    if abs(offset) >= radius:
        return 0.0
    if curvature >= 0 or offset == 0:
        return math.inf
    b = 1 + beta - lr * curvature
    z = b / 2 + math.sqrt(b * b / 4 - beta)
    w = beta / z
    share = (1 - lr * curvature - w) / (z - w)
    return float(math.ceil((math.log(radius) - math.log(abs(offset)) - math.log(share)) / math.log(z)))


# ---------------------------------------------------------------- most_negative_curvature

@variant("most_negative_curvature")
def shifted_power_iteration(hvp, start, max_calls=60):
    """A third of the calls for the size of the largest eigenvalue, then H - size."""
    x, size = start / start.norm(), 1.0
    for _ in range(max_calls // 3):
        y = hvp(x)
        size = y.norm()
        if size == 0:
            return torch.zeros(()), x
        x = y / size
    x, value = start / start.norm(), None
    for _ in range(max_calls - max_calls // 3):
        y = hvp(x)
        value, best = x @ y, x
        shifted = y - 1.01 * size * x
        x = shifted / shifted.norm()
    return value, best


@variant("most_negative_curvature")
def lanczos_three_terms(hvp, start, max_calls=60):
    """The textbook's recurrence, without orthogonalisation against older vectors, stopped when a vector vanishes."""
    q, before, beta = start / start.norm(), torch.zeros_like(start), 0.0
    basis, alphas, betas = [], [], []
    for _ in range(min(max_calls, start.numel())):
        basis.append(q)
        w = hvp(q)
        scale = float(w.norm())
        w = w - beta * before
        alphas.append(float(w @ q))
        w = w - alphas[-1] * q
        beta = float(w.norm())
        if beta <= 1e-5 * scale:
            break
        betas.append(beta)
        before, q = q, w / beta
    k = len(alphas)
    T = torch.diag(torch.tensor(alphas)) + sum(torch.diag(torch.tensor(betas[:k - 1]), d) for d in (1, -1))
    values, vectors = torch.linalg.eigh(T.to(start.dtype))
    v = torch.stack(basis, dim=1) @ vectors[:, 0]
    return float(values[0]), -v / v.norm()


@variant("most_negative_curvature")
def lowest_by_the_whole_matrix(hvp, start, max_calls=60):
    """Asks for every column if that is allowed, and otherwise searches along random directions."""
    n = len(start)
    if n > max_calls:
        return start @ hvp(start) / (start @ start), start / start.norm()
    H = torch.stack([hvp(row) for row in torch.eye(n, dtype=start.dtype)])
    values, vectors = torch.linalg.eigh(H)
    return values[0], vectors[:, 0].clone()


# ---------------------------------------------------------------- flat_adam_step

@variant("flat_adam_step")
def flat_with_torch_utilities(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    flat, grad = (torch.nn.utils.parameters_to_vector(tensors) for tensors in (params, grads))
    t = state.get("t", torch.zeros(1)) + 1
    m = torch.lerp(state.get("m", torch.zeros_like(flat)), grad, 1 - beta1)
    v = torch.lerp(state.get("v", torch.zeros_like(flat)), grad**2, 1 - beta2)
    flat = flat - lr * m / (1 - beta1**t.item()) / ((v / (1 - beta2**t.item())).sqrt() + eps)
    new, place = [], 0
    for p in params:
        new.append(flat[place:place + p.numel()].reshape(p.shape))
        place += p.numel()
    return tuple(new), {"t": t, "m": m, "v": v}


@variant("flat_adam_step")
def flat_with_one_buffer_of_two_rows(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    flat = torch.cat([p.flatten() for p in params])
    grad = torch.cat([g.flatten() for g in grads])
    both, t = state.get("both", torch.zeros(2, len(flat), dtype=flat.dtype)), state.get("steps", 0) + 1
    decay = torch.tensor([[beta1], [beta2]], dtype=flat.dtype)
    both = decay * both + (1 - decay) * torch.stack([grad, grad**2])
    m, v = both / (1 - decay**t)
    flat = flat - lr * m / (v.sqrt() + eps)
    pieces = flat.split([p.numel() for p in params])
    return [piece.view_as(p) for piece, p in zip(pieces, params)], {"both": both, "steps": t}


@variant("flat_adam_step")
def flat_that_fills_a_buffer(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Buffers made beforehand and filled by slices; updated in place, since they are its own."""
    size, dtype = sum(p.numel() for p in params), params[0].dtype
    flat, grad = torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype)
    ends = torch.tensor([0] + [p.numel() for p in params]).cumsum(0).tolist()
    for p, g, a, b in zip(params, grads, ends, ends[1:]):
        flat[a:b], grad[a:b] = p.ravel(), g.ravel()
    m, v = (state[name].clone() if state else torch.zeros_like(flat) for name in ("m", "v"))
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    t = state.get("t", 0) + 1
    flat.addcdiv_(m, (v / (1 - beta2**t)).sqrt_().add_(eps), value=-lr / (1 - beta1**t))
    return [flat[a:b].view(p.shape) for p, a, b in zip(params, ends, ends[1:])], {"m": m, "v": v, "t": t}
