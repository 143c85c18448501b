"""Right answers to lab 34 that are written otherwise than the reference: every one must get full marks."""
from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from variants import variant


# ---------------------------------------------------------------- decode_float

@variant("decode_float")
def decode_with_division(codes, exponent_bits, mantissa_bits, infinities=True):
    m_range, e_range = 2**mantissa_bits, 2**exponent_bits
    m, e, s = codes % m_range, codes // m_range % e_range, codes // (m_range * e_range)
    b = e_range // 2 - 1
    power = torch.tensor([2.0 ** max(i - b, 1 - b) for i in range(e_range)], dtype=torch.float64)[e]
    value = power * ((e != 0).double() + m.double() / m_range)
    if infinities:
        value = torch.where((e == e_range - 1) & (m == 0), torch.inf, value)
        value = torch.where((e == e_range - 1) & (m != 0), torch.nan, value)
    else:
        value = torch.where((e == e_range - 1) & (m == m_range - 1), torch.nan, value)
    return torch.where(s == 1, -value, value)


@variant("decode_float")
def decode_one_by_one(codes, exponent_bits, mantissa_bits, infinities=True):
    """A table of all values in Python, and a look-up."""
    b, ones = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits - 1
    table = []
    for e in range(2**exponent_bits):
        for m in range(2**mantissa_bits):
            x = math.ldexp(m + (2**mantissa_bits if e else 0), max(e, 1) - b - mantissa_bits)
            if e == 2**exponent_bits - 1 and (infinities or m == ones):
                x = math.inf if infinities and m == 0 else math.nan
            table.append(x)
    table = torch.tensor(table, dtype=torch.float64)
    return torch.cat([table, -table])[codes]


# ---------------------------------------------------------------- round_to_format

@variant("round_to_format")
def round_with_numpy(x, exponent_bits, mantissa_bits, infinities=True):
    b = 2 ** (exponent_bits - 1) - 1
    wide = x.numpy().astype(np.float64)
    _, e = np.frexp(wide)
    shift = mantissa_bits - np.maximum(e - 1, 1 - b)
    y = np.ldexp(np.rint(np.ldexp(wide, shift)), -shift)
    top = math.ldexp(2 - 2.0**-mantissa_bits, b) if infinities else math.ldexp(2 - 2.0 ** (1 - mantissa_bits), b + 1)
    with np.errstate(invalid="ignore"):
        y = np.where(np.abs(y) > top, np.copysign(np.inf if infinities else top, y), y)
    return torch.from_numpy(y.astype(np.float32))


@variant("round_to_format")
def round_by_adding_and_subtracting(x, exponent_bits, mantissa_bits, infinities=True):
    """A number 1.5 * 2**52 distances away has no room for anything finer: float64 itself does the rounding."""
    b = 2 ** (exponent_bits - 1) - 1
    exponent = (torch.frexp(x)[1] - 1).clamp_min(1 - b)
    q = torch.pow(torch.tensor(2.0, dtype=torch.float64), exponent - mantissa_bits)
    magic = 1.5 * 2.0**52 * q
    y = torch.where(x.isfinite(), (x.double() + magic) - magic, x.double())
    top = 2.0 ** (b + (not infinities)) * (2 - (1 if infinities else 2) * 2.0**-mantissa_bits)
    y[y > top], y[y < -top] = (math.inf, -math.inf) if infinities else (top, -top)
    return y.to(torch.float32)


# ---------------------------------------------------------------- swamped_sum

@variant("swamped_sum")
def sums_neighbour_with_neighbour(x, method="naive"):
    """Pairwise from below: neighbours first, and an odd one waits."""
    if method == "pairwise":
        rows = list(x)
        while len(rows) > 1:
            rows = [rows[i] + rows[i + 1] if i + 1 < len(rows) else rows[i] for i in range(0, len(rows), 2)]
        return rows[0]
    total = torch.zeros(x.shape[1:], dtype=x.dtype)
    error = torch.zeros_like(total)
    for i in range(x.shape[0]):
        if method == "naive":
            total = total + x[i]
        else:
            corrected = x[i] - error
            raised = total + corrected
            error = raised - total - corrected
            total = raised
    return total


@variant("swamped_sum")
def sums_first_half_on_second(x, method="naive"):
    """Pairwise by laying the second half on the first; Kahan with what is missing instead of what is too much."""
    if method == "pairwise":
        while len(x) > 1:
            half = (len(x) + 1) // 2
            x = torch.cat([x[:len(x) - half] + x[half:], x[len(x) - half:half]])
        return x[0]
    s = missing = x[0] * 0
    for term in x.unbind(0):
        if method == "kahan":
            term = term + missing
        new = s.add(term)
        missing = term - (new - s)
        s = new
    return s


# ---------------------------------------------------------------- bf16_update

@variant("bf16_update")
def update_by_promotion(weight, update):
    new = torch.sub(weight, update).bfloat16()      # bf16 and float32 make float32
    changed = (new != weight)[update != 0]
    return new, 1 - changed.float().mean().item() if len(changed) else 0.0


@variant("bf16_update")
def update_with_a_mask(weight, update):
    nonzero = update.abs() > 0
    new = (-update + weight.float()).to(weight.dtype)
    count = int(nonzero.sum())
    return [new, torch.tensor(int((nonzero & (new.float() == weight.float())).sum()) / count if count else 0.0)]


# ---------------------------------------------------------------- stochastic_round

@variant("stochastic_round")
def round_with_neighbours(x, u):
    spacing = torch.ldexp(torch.ones_like(x), torch.frexp(x)[1] - 8)
    inner = torch.trunc(x / spacing) * spacing
    fraction = (x - inner).abs() / spacing
    return torch.where(u < fraction, inner + x.sign() * spacing, inner).bfloat16()


@variant("stochastic_round")
def round_by_adding_random_bits(x, u):
    """Adds 16 bits below the cut, as hardware does: a carry goes over exactly where u < f, up to the resolution of the 16 bits."""
    bits = x.view(torch.int32).to(torch.int64)
    noise = 65535 - (u.double() * 65536).floor().long()
    return ((bits + noise) & ~0xFFFF).to(torch.int32).view(torch.float32).to(torch.bfloat16)


# ---------------------------------------------------------------- master_weight_step

@variant("master_weight_step")
def master_in_the_state(weight, update, state):
    master = state["master"] - update if state else weight.float() - update
    return master.bfloat16(), {"master": master}


@variant("master_weight_step")
def what_rounding_lost_in_the_state(weight, update, state):
    """The residual of the rounding, in float32: weight + rest is the master."""
    master = weight.float() + state.get("rest", 0.0) - update
    new = master.to(torch.bfloat16)
    return new, {"rest": master - new.float(), "steps": state.get("steps", 0) + 1}


@variant("master_weight_step")
def the_lower_half_beside_a_rounded_weight(weight, update, state):
    """The lower 16 bits as a signed number that is added to those of the weight: the weight may then be rounded, and not cut off."""
    bits = weight.float().view(torch.int32) + state.get("low", torch.zeros_like(weight, dtype=torch.int16)).to(torch.int32)
    master = (bits.view(torch.float32) - update).view(torch.int32)
    upper = (master + 0x8000) & -0x10000
    return upper.view(torch.float32).to(torch.bfloat16), {"low": (master - upper).to(torch.int16)}


# ---------------------------------------------------------------- dynamic_loss_scale

@variant("dynamic_loss_scale")
def scale_as_torch_does(grads, scale, good_steps, interval=2000, factor=2.0):
    found = sum((~torch.isfinite(g)).sum() for g in grads)
    s, growth = torch.tensor(float(scale)), torch.tensor(good_steps, dtype=torch.int32)
    torch._amp_update_scale_(s, growth, torch.tensor(float(found > 0)), factor, 1 / factor, interval)
    return (None if found else [g.to(torch.float32) * (1.0 / scale) for g in grads]), s.item(), int(growth)


@variant("dynamic_loss_scale")
def scale_in_tensors(grads, scale, good_steps, interval=2000, factor=2.0):
    flat = torch.cat([g.float().reshape(-1) for g in grads])
    if math.isnan(float((flat * 0).sum())):     # infinity times zero is NaN, too
        return (None, torch.tensor(scale / factor), 0)
    count = good_steps + 1
    return [g.double().div(scale).float() for g in grads], scale * (factor if count == interval else 1.0), count % interval


# ---------------------------------------------------------------- stable_softmax_attention

@variant("stable_softmax_attention")
def attention_by_torch(q, k, v):
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True).to(q.dtype)


@variant("stable_softmax_attention")
def attention_row_by_row(q, k, v):
    rows = []
    for i in range(q.shape[-2]):
        scores = (k[..., :i + 1, :].float() * q[..., i:i + 1, :].float()).sum(-1) / q.shape[-1] ** 0.5
        e = (scores - scores.max(-1, keepdim=True).values).exp()
        rows.append(((e / e.sum(-1, keepdim=True))[..., None] * v[..., :i + 1, :].float()).sum(-2))
    return torch.stack(rows, -2).to(q.dtype)


@variant("stable_softmax_attention")
def attention_with_a_large_negative_mask(q, k, v):
    scores = torch.matmul(q.float() / math.sqrt(q.shape[-1]), k.float().transpose(-1, -2))
    scores = scores + torch.full(scores.shape[-2:], -1e30).triu(1)
    scores = scores - scores.logsumexp(-1, keepdim=True)
    return (scores.exp() @ v.float()).type(q.dtype)


# ---------------------------------------------------------------- thermometer

@variant("thermometer")
def thermometer_by_norms(activations, grads):
    result = {name: float(torch.linalg.vector_norm(x.float(), ord=math.inf)) for name, x in activations.items()}
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in grads]
    result["gradient norm"] = float(torch.stack(norms).norm()) if norms else 0.0
    return result


@variant("thermometer")
def thermometer_of_one_long_vector(activations, grads):
    result = {}
    for name, x in activations.items():
        low, high = torch.aminmax(x.detach())
        result[name] = float(torch.maximum(-low, high))
    result["gradient norm"] = torch.cat([torch.zeros(1), *(g.float().flatten() for g in grads)]).norm().item()
    return result


# ---------------------------------------------------------------- early_warning

@variant("early_warning")
def warning_of_a_quick_rise(heat):
    """The scores have grown fourfold within 25 steps, and are no longer small."""
    scores = heat["scores"].tolist()
    for step in range(25, len(scores)):
        if scores[step] > 8 and scores[step] > 4 * min(scores[step - 25:step]):
            return step
    return None


@variant("early_warning")
def warning_by_a_smoothed_threshold(heat):
    smooth = 0.0
    for step, score in enumerate(heat["scores"].tolist()):
        smooth = 0.5 * smooth + 0.5 * score
        if smooth > 25:
            return torch.tensor(step)


# ---------------------------------------------------------------- mixed_linear

@variant("mixed_linear")
def linear_with_matmul(x, weight, bias=None):
    out = (x.bfloat16() @ weight.bfloat16().T).to(torch.float32)
    if bias is not None:
        out = out + bias
    return out


@variant("mixed_linear")
def linear_with_autocast(x, weight, bias=None):
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        out = F.linear(x, weight)
    return out.float() if bias is None else torch.add(out.float(), bias)


# ---------------------------------------------------------------- optional

@variant("rollback")
def rollback_by_sorting(checkpoints, alarm, margin=20, skip=10):
    steps = sorted(checkpoints, reverse=True)
    for step in steps:
        if alarm - step >= margin:
            break
    return dict(checkpoints[step]), step, alarm + skip


@variant("rollback")
def rollback_in_a_list(checkpoints, alarm, margin=20, skip=10):
    step = min(checkpoints)
    for s in checkpoints:
        if s + margin <= alarm and s > step:
            step = s
    return [{name: t.clone() for name, t in checkpoints[step].items()}, step, skip + alarm]


@variant("lamb_step")
def lamb_in_place_on_copies(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    t = state.get("step", 0) + 1
    m = state["exp_avg"].clone() if "exp_avg" in state else torch.zeros_like(param)
    v = state["exp_avg_sq"].clone() if "exp_avg_sq" in state else torch.zeros_like(param)
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    r = torch.addcdiv(weight_decay * param, m / (1 - beta1**t), (v / (1 - beta2**t)).sqrt() + eps)
    p_norm, r_norm = param.norm().item(), r.norm().item()
    trust = 1.0 if p_norm == 0 or r_norm == 0 else p_norm / r_norm
    return torch.add(param, r, alpha=-lr * trust), {"exp_avg": m, "exp_avg_sq": v, "step": t}


@variant("lamb_step")
def lamb_with_where(param, grad, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01):
    t, m, v = state.get("tmv", (0, 0.0, 0.0))
    t, m, v = t + 1, m + (1 - beta1) * (grad - m), v + (1 - beta2) * (grad * grad - v)
    r = (m / (1 - beta1**t)) / (torch.sqrt(v / (1 - beta2**t)) + eps) + weight_decay * param
    a, b = torch.linalg.vector_norm(param), torch.linalg.vector_norm(r)
    trust = torch.where((a > 0) & (b > 0), a / b.clamp(min=1e-300), 1.0)
    return param - lr * trust * r, {"tmv": (t, m, v)}


@variant("length_curriculum")
def length_in_floats(step, warmup, longest, shortest=8, multiple=8):
    share = min(1.0, step / warmup)
    return int((shortest + share * (longest - shortest)) // multiple) * multiple


@variant("length_curriculum")
def length_counted_in_multiples(step, warmup, longest, shortest=8, multiple=8):
    if step >= warmup:
        return longest
    more = (longest - shortest) * step // warmup // multiple
    return shortest + more * multiple
