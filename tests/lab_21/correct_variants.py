"""Right answers to lab 21 that are written otherwise than the reference: every one must get full marks."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from variants import variant


# ---------------------------------------------------------------- magnitude_mask, global_magnitude_masks

@variant("magnitude_mask")
def mask_by_topk(weight, sparsity):
    n = weight.numel()
    stays = torch.topk(weight.abs().reshape(-1), n - round(sparsity * n)).indices
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, stays, True).reshape(weight.shape)


@variant("magnitude_mask")
def mask_by_ranks(weight, sparsity):
    """The rank of each weight, the last of equal ones first."""
    ranks = weight.square().flatten().argsort(descending=True, stable=True).argsort()
    return (ranks < weight.numel() - int(sparsity * weight.numel() + 0.5)).view_as(weight)


@variant("magnitude_mask")
def mask_by_python(weight, sparsity):
    sizes = [abs(w) for w in weight.flatten().tolist()]
    gone = set(sorted(range(len(sizes)), key=sizes.__getitem__)[:round(len(sizes) * sparsity)])
    return torch.tensor([i not in gone for i in range(len(sizes))]).reshape(weight.shape)


@variant("global_magnitude_masks")
def masks_by_topk(weights, sparsity):
    sizes = torch.hstack([w.abs().ravel() for w in weights])
    mask = torch.ones(sizes.shape, dtype=bool)
    mask[torch.topk(sizes, round(sparsity * sizes.numel()), largest=False).indices] = False
    masks, place = [], 0
    for w in weights:
        masks.append(mask[place:place + w.numel()].reshape(w.shape))
        place += w.numel()
    return masks


@variant("global_magnitude_masks")
def masks_by_sorted_places(weights, sparsity):
    """Python's own sort over (size, tensor, place); the result is a tuple."""
    everything = sorted((abs(x), i, j) for i, w in enumerate(weights) for j, x in enumerate(w.flatten().tolist()))
    masks = [torch.full((w.numel(),), True) for w in weights]
    for _, i, j in everything[:round(sparsity * len(everything))]:
        masks[i][j] = False
    return tuple(m.view(w.shape) for m, w in zip(masks, weights))


# ---------------------------------------------------------------- masked_step

@variant("masked_step")
def step_in_place_on_copies(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    buffer = state["buffer"].clone() if state else torch.zeros_like(param)
    buffer.mul_(momentum).add_(grad).add_(param, alpha=weight_decay)
    buffer[~mask] = 0
    new = param.clone().sub_(buffer, alpha=lr)
    new[~mask] = 0
    return new, {"buffer": buffer, "comment": "torch's name"}


@variant("masked_step")
def step_downhill_with_where(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    """The velocity points down."""
    velocity = momentum * state.get("velocity", 0) - grad - weight_decay * param
    velocity = torch.where(mask, velocity, 0.0)
    return [torch.where(mask, param + lr * velocity, torch.zeros(())), {"velocity": velocity}]


@variant("masked_step")
def step_by_torch(param, grad, state, mask, lr=0.1, momentum=0.9, weight_decay=0.0):
    weight = torch.nn.Parameter(param.detach().clone())
    weight.grad = grad.clone()
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum, weight_decay=weight_decay)
    if state:
        optimizer.state[weight]["momentum_buffer"] = state["momentum_buffer"].clone()
    optimizer.step()
    return weight.detach() * mask, {"momentum_buffer": optimizer.state[weight]["momentum_buffer"] * mask}


# ---------------------------------------------------------------- cubic_sparsity

@variant("cubic_sparsity")
def sparsity_by_cases(step, begin, end, final, initial=0.0):
    if step <= begin:
        return initial
    if step >= end:
        return final
    left = (end - step) / (end - begin)
    return initial + (final - initial) * (1 - left**3)


@variant("cubic_sparsity")
def sparsity_as_a_tensor(step, begin, end, final, initial=0.0):
    left = torch.tensor((end - step) / (end - begin), dtype=torch.float64).clamp(0, 1)
    return torch.lerp(torch.tensor(final, dtype=torch.float64), torch.tensor(initial, dtype=torch.float64), left**3)


# ---------------------------------------------------------------- storage_bytes

@variant("storage_bytes")
def bytes_by_cases(n, kept, value_bytes=4):
    if n <= 256:
        place = 1
    elif n <= 65536:
        place = 2
    elif n <= 4294967296:
        place = 4
    else:
        place = 8
    return {"index": kept * place + kept * value_bytes, "bitmask": math.ceil(n / 8) + value_bytes * kept, "dense": value_bytes * n}


@variant("storage_bytes")
def bytes_by_bit_length(n, kept, value_bytes=4):
    bits = max(8, (n - 1).bit_length())
    place = 1 << math.ceil(math.log2(bits / 8))
    return {"dense": float(n * value_bytes), "bitmask": kept * value_bytes - (-n // 8), "index": kept * (place + value_bytes)}


# ---------------------------------------------------------------- filter_importance, taylor_importance

@variant("filter_importance")
def importance_of_the_scaled_filter(weight, gain=None):
    if gain is not None:
        weight = weight * gain.view(-1, *[1] * (weight.ndim - 1))
    return weight.abs().sum(dim=tuple(range(1, weight.ndim)))


@variant("filter_importance")
def importance_filter_by_filter(weight, gain=None):
    return torch.stack([torch.linalg.vector_norm(w, 1) * (1 if gain is None else abs(gain[o].item())) for o, w in enumerate(weight)])


@variant("taylor_importance")
def taylor_with_a_loop(weight, grads, per_filter=False):
    total = 0
    for g in grads:
        change = g * weight
        if per_filter:
            change = change.reshape(len(weight), -1).sum(1)
        total = total + change**2
    return total / len(grads)


@variant("taylor_importance")
def taylor_with_einsum(weight, grads, per_filter=False):
    if per_filter:
        sums = torch.einsum("ok,bok->bo", weight.flatten(1), grads.flatten(2))
        return (sums * sums).sum(0) / grads.shape[0]
    return weight**2 * grads.pow(2).mean(dim=0)


# ---------------------------------------------------------------- prune_filters

@variant("prune_filters")
def surgery_by_names(state, keep):
    """A new dict, name by name."""
    small = {}
    for name, tensor in state.items():
        layer, *rest = name.split(".")
        if layer == "convs":
            k = int(rest[0])
            tensor = tensor[keep[k]]
            if k > 0:
                tensor = tensor[:, keep[k - 1]]
        elif layer == "norms":
            tensor = tensor[keep[int(rest[0])]]
        elif name == "head.weight":
            tensor = tensor[:, keep[-1]]
        small[name] = tensor.clone()
    return small


@variant("prune_filters")
def surgery_with_index_select(state, keep):
    inputs, small = torch.tensor([0]), {}
    for k, rows in enumerate(keep):
        rows = rows.long()
        small[f"convs.{k}.weight"] = state[f"convs.{k}.weight"].index_select(0, rows).index_select(1, inputs)
        for part in ("weight", "bias", "running_mean", "running_var"):
            small[f"norms.{k}.{part}"] = torch.take(state[f"norms.{k}.{part}"], rows)
        inputs = rows
    small["head.weight"], small["head.bias"] = state["head.weight"].index_select(1, inputs), state["head.bias"]
    return small


@variant("prune_filters")
def surgery_by_products(state, keep):
    """Each selection is a matrix of zeros and ones, [kept, o], that multiplies the dimension."""
    small, inputs = {}, None
    for k, rows in enumerate(keep):
        pick = F.one_hot(rows.long(), len(state[f"norms.{k}.weight"])).to(state["head.bias"].dtype)
        weight = torch.einsum("po,oixy->pixy", pick, state[f"convs.{k}.weight"])
        small[f"convs.{k}.weight"] = weight if inputs is None else torch.einsum("qi,pixy->pqxy", inputs, weight)
        small |= {f"norms.{k}.{part}": pick @ state[f"norms.{k}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        inputs = pick
    return small | {"head.weight": state["head.weight"] @ inputs.T, "head.bias": state["head.bias"].clone()}


# ---------------------------------------------------------------- optional exercises

@variant("sensitivity")
def sensitivity_row_by_row(accuracy, weights, sparsities):
    rows = []
    for i in range(len(weights)):
        row = []
        for s in sparsities:
            given = [w.clone() for w in weights]
            given[i][~mask_by_topk(given[i], s)] = 0
            row.append(float(accuracy(given)))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@variant("soft_threshold")
def threshold_by_torch(w, t):
    return F.softshrink(w, t)


@variant("soft_threshold")
def threshold_by_difference(w, t):
    return w - w.clamp(-t, t)


@variant("hard_concrete_gate")
def gate_with_logit(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    between = lambda s: F.hardtanh(gamma + (zeta - gamma) * s, 0.0, 1.0)
    s = torch.special.expit((torch.logit(u) + log_alpha) / beta)
    closed = torch.special.expit(beta * math.log(gamma / -zeta) - log_alpha)
    return [between(s), 1 - closed, between(log_alpha.sigmoid())]


@variant("hard_concrete_gate")
def gate_with_exponentials(log_alpha, u, beta=2 / 3, gamma=-0.1, zeta=1.1):
    s = 1 / (1 + ((1 - u) / u * torch.exp(-log_alpha)) ** (1 / beta))
    chance = 1 / (1 + torch.exp(-log_alpha) * (-gamma / zeta) ** beta)
    z = torch.minimum(torch.ones(()), torch.maximum(torch.zeros(()), s * (zeta - gamma) + gamma))
    alpha = log_alpha.exp()
    return z, chance, (alpha / (1 + alpha) * (zeta - gamma) + gamma).clamp(min=0, max=1)
