"""The long measurements of lab 15, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run: `predict` (critical batch size and noise scale of every task), `quadratic` (the same for
noisy bowls), `growth` (noise scale and loss during training), `schedule` (an adaptive batch against fixed ones).
About twenty minutes of one core; the results that came with the lab are from a machine that others used as well.
"""
import math
import statistics

import torch
from torch import Tensor

from course import batches
from course.full_run import lab_functions, main

torch.set_num_threads(1)
LAB = lab_functions(__file__, r"def (per_example_gradients|noise_scale_\w+|fit_critical_batch|adaptive_batch_schedule)\(")
SEEDS = (0, 1, 2)
SIZES = (2048, 512, 128, 32, 8)
SHARE = 0.1    # the target: a tenth of what can be taken away from the loss is left
FOLLOWED = 64  # the batch size of the run during which the noise scale is measured, the same for every task
MOMENTS = 21


def digits(value: float) -> float | None:
    """Four digits; None, as JSON has no infinity, for a run that did not arrive."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


# --- the noise scale of a real network -------------------------------------------------------------------------------

def worker_gradients(params: list[Tensor], task: batches.Task, rows: Tensor) -> Tensor:
    """The mean gradients [w, p] of w workers on their examples, rows [w, batch]."""
    copies = [p.expand(len(rows), -1, -1).detach().requires_grad_() for p in params]
    grads = torch.autograd.grad(batches.losses(copies, task.x[rows], task.y[rows]).sum(), copies)
    return torch.cat([g.flatten(1) for g in grads], 1)


def full_noise_scale(params: list[Tensor], task: batches.Task, n: int = 192) -> float:
    """B_noise with the true gradient of up to 2000 examples below, and n of them above. (noise_scale_full would have to
    find the gradient through the noise of n examples, which takes far more of them than the noise scale.)"""
    x, y = task.x[None, :2000], task.y[None, :2000]
    free = [p.detach().requires_grad_() for p in params]
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(batches.losses(free, x, y)[0], free, create_graph=True)])

    def bend(v: Tensor) -> float:
        product = torch.cat([g.flatten() for g in torch.autograd.grad(slope, free, v, retain_graph=True)])
        return float(v @ product)
    w1, b1, w2, b2 = (p[0] if i % 2 == 0 else p[0, 0] for i, p in enumerate(params))
    grads = LAB["per_example_gradients"](x[0, :n], y[0, :n], w1, b1, w2, b2)
    noise = torch.cat([g.flatten(1) for g in grads], 1) - slope.detach()
    curvature = bend(slope.detach())
    return sum(map(bend, noise)) / n / curvature if curvature > 0 else math.inf


def two_batch_estimates(task: batches.Task, rate: float, steps: int, seed: int, workers: int = 8) -> list[float]:
    """What noise_scale_two_batches says at every step of the run that is followed, from 8 workers of 8 examples."""
    state, found, g = {}, [], torch.Generator().manual_seed(seed)
    for step, params in enumerate(batches.sgd(task, FOLLOWED, torch.tensor([rate]), (seed,))):
        rows = torch.randint(len(task.x), (workers, FOLLOWED // workers), generator=g)
        scale, state = LAB["noise_scale_two_batches"](worker_gradients(params, task, rows), FOLLOWED // workers, state, 0.95)
        found.append(scale)
        if step >= steps:
            return found
    raise AssertionError("sgd never ends")


# --- predicted and measured ------------------------------------------------------------------------------------------

def measure(name: str) -> dict:
    task = batches.tasks()[name]()
    target = batches.target_loss(task, SHARE)
    raced = batches.best_steps(task, (*SIZES, FOLLOWED), target, SEEDS, most=3000)
    steps, rate = raced[FOLLOWED]
    fitted = {b: s for b, (s, _) in raced.items() if b != FOLLOWED}
    runs = torch.tensor([(b, s) for b, many in fitted.items() for s in many.tolist()])
    torch.manual_seed(0)
    s_min, critical, low, high = LAB["fit_critical_batch"](runs[:, 0], runs[:, 1])
    last = int(steps.median())
    moments = sorted({round(last * i / (MOMENTS - 1)) for i in range(MOMENTS)})
    exact = [batches.follow(task, FOLLOWED, rate, moments, lambda p: batches.exact_noise_scale(p, task), seed) for seed in SEEDS]
    few = moments[::5]
    full = batches.follow(task, FOLLOWED, rate, few, lambda p: full_noise_scale(p, task))
    estimated = [statistics.median(two_batch_estimates(task, rate, last, seed)) for seed in SEEDS]
    row = {"classes": task.widths[-1], "parameters": sum((i + 1) * o for i, o in zip(task.widths, task.widths[1:])),
           "examples": len(task.x), "target": digits(target),
           "steps": {b: [digits(s) for s in many.tolist()] for b, many in fitted.items()},
           "rates": {b: digits(r) for b, (_, r) in raced.items()}, "followed rate": digits(rate),
           "s_min": digits(s_min), "critical": digits(critical), "interval": [digits(low), digits(high)],
           "moments": moments, "noise": [[digits(v) for v in seed] for seed in exact],
           "full moments": few, "full": [digits(v) for v in full],
           "two batches": [digits(v) for v in estimated]}
    print(f"{name}: critical {critical:.0f} ({low:.0f} to {high:.0f}), noise {summary(exact, 'median'):.0f}, s_min {s_min:.0f}", flush=True)
    return row


def summary(exact: list[list[float]], how: str) -> float:
    """One number for a task: median, mean, first or last of each seed's curve, and the geometric mean over the seeds."""
    one = {"median": statistics.median, "mean": statistics.fmean, "first": lambda v: v[0], "last": lambda v: v[-1]}[how]
    return math.exp(statistics.fmean(math.log(one(curve)) for curve in exact))


def predict() -> dict:
    rows = {name: measure(name) for name in batches.tasks()}
    return {"what": f"each task: steps until the training loss has only {SHARE:.0%} of its way to go (the way: from the start to what 1000 "
                    f"steps of 256 examples reach), at the best of seven to nine learning rates, {len(SEEDS)} seeds; B_crit from "
                    f"fit_critical_batch; the exact B_simple of the training set at {MOMENTS} moments of a run with batch {FOLLOWED} up to the "
                    "target; B_noise at every fifth of them, tr(H Sigma) from 192 examples; two batches: the median over the run of the estimate from "
                    "8 workers of 8 examples (decay 0.95). The summary over training is the median, fixed before the run",
            "tasks": rows}


# --- noisy bowls -----------------------------------------------------------------------------------------------------

def bowl_steps(noise: float, batch: int, most: int = 20_000) -> tuple[float, list[float]]:
    """Steps until the mean loss of SGD on a bowl (curvatures 1 to 0.05) is a tenth, exactly, at the best of 40 learning
    rates; the noise scale at each step."""
    h = torch.logspace(0, math.log10(0.05), 20, dtype=torch.float64)
    rates = (1.8 * 1.15 ** -torch.arange(40.0, dtype=torch.float64))[:, None]
    square, scales, before = (0.1 / h).repeat(40, 1), [], torch.ones(40)  # E[theta^2] [rates, directions]; the loss is 1
    for step in range(most):
        loss = square @ h / 2
        if (loss < 0.1).any():
            best = int(loss.argmin())
            share = float((before[best] - 0.1) / (before[best] - loss[best]))
            return step - 1 + share, [float(scale[best]) for scale in scales]
        before = loss
        scales.append(noise * h.sum() / (square @ h**2))
        square = (1 - rates * h).square() * square + rates**2 * noise * h / batch
    return math.inf, scales


def quadratic() -> dict:
    rows = {}
    for noise in (0.01, 0.1, 1.0, 10.0, 100.0):
        sizes = [b for b in (1, 4, 16, 64, 256, 1024, 4096, 16384) if 0.02 < b / (10 * noise) < 500]
        best = {b: bowl_steps(noise, b) for b in sizes}
        torch.manual_seed(0)
        s_min, critical, low, high = LAB["fit_critical_batch"](torch.tensor([float(b) for b in sizes]), torch.tensor([best[b][0] for b in sizes]))
        middle = min(sizes, key=lambda b: abs(math.log(b / critical)))
        rows[f"{noise:g}"] = {"steps": {b: digits(s) for b, (s, _) in best.items()}, "critical": digits(critical), "s_min": digits(s_min),
                              "interval": [digits(low), digits(high)], "median noise": digits(statistics.median(best[middle][1]))}
    return {"what": "a quadratic of 20 directions with known noise, mean loss computed exactly, steps to a tenth of the loss at the best of "
                    "40 learning rates", "bowls": rows}


# --- growth ----------------------------------------------------------------------------------------------------------

def growth(steps: int = 1500) -> dict:
    rows, moments = {}, sorted({round(steps ** (i / 24)) for i in range(25)} | {0})
    for name in ("digits", "mnist5k, narrow", "mnist5k", "mnist5k, wide", "mnist5k, 50% random labels", "glyphs 10, mild",
                 "glyphs 62, strong", "pycode, 32 units", "pycode, 128 units"):
        task = batches.tasks()[name]()

        def look(params):
            with torch.no_grad():
                loss = float(batches.losses(params, task.x[None], task.y[None])[0])
            return [digits(loss), digits(batches.exact_noise_scale(params, task))]
        rows[name] = [list(map(list, zip(*batches.follow(task, 64, 0.3, moments, look, seed)))) for seed in SEEDS]
    return {"what": f"training loss (nats) and exact B_simple during {steps} steps, batch 64, learning rate 0.3, for each of {len(SEEDS)} seeds",
            "moments": moments, "tasks": rows}


# --- the schedule ----------------------------------------------------------------------------------------------------

def scheduled(task: batches.Task, target: float, price: float, largest_rate: float, seed: int, workers: int = 4,
              most: int = 1500) -> tuple[float, int]:
    """Steps and examples to the target when the batch follows the noise scale that the workers' gradients show."""
    g, params = torch.Generator().manual_seed(seed), batches.start(task.widths, 1, seed)
    batch, scale, state, examples, look = 16, 16.0, {}, 0, 0
    for step in range(most):
        if step >= look:
            with torch.no_grad():
                if float(batches.losses(params, task.x[None, :batches.EVAL], task.y[None, :batches.EVAL])) < target:
                    return step, examples
            look = max(step + 1, int(1.02 * step))
        rows = torch.randint(len(task.x), (workers, max(2, batch // workers)), generator=g)
        grads = worker_gradients(params, task, rows)
        seen, state = LAB["noise_scale_two_batches"](grads, rows.shape[1], state, 0.97)
        scale = seen if math.isfinite(seen) else scale  # the gradient is lost in noise: believe what was seen last
        # This step's rate belongs to this step's batch, the next batch to what was seen in this one.
        rate, mean = largest_rate / (1 + scale / rows.numel()), grads.mean(0)
        params = [p - rate * piece.view(p.shape) for p, piece in zip(params, mean.split([p.numel() for p in params]))]
        examples = examples + rows.numel()
        batch, _ = LAB["adaptive_batch_schedule"](scale, price, batch, largest_rate)
    return math.inf, examples


def schedule(price: float = 100.0, seeds: int = 3) -> dict:
    rows = {}
    for name in ("digits", "mnist5k", "glyphs 10, mild"):
        task = batches.tasks()[name]()
        target = batches.target_loss(task, 0.04)
        fixed = batches.best_steps(task, (512, 256, 128, 64, 32), target, range(seeds), most=1500)
        costs = {b: [s * (b + price) for s in steps.tolist()] for b, (steps, _) in fixed.items()}
        tried = {r: [scheduled(task, target, price, r, seed) for seed in range(seeds)] for r in (0.8, 1.1, 1.6, 2.2, 3.0)}
        mine = {r: [e + price * s for s, e in runs] for r, runs in tried.items()}
        rate = min(mine, key=lambda r: statistics.median(mine[r]))
        rows[name] = {"target": digits(target), "fixed": {b: {"steps": [digits(s) for s in steps.tolist()], "cost": list(map(digits, costs[b])), "rate": digits(r)}
                                                          for b, (steps, r) in fixed.items()},
                      "adaptive": {"steps": [digits(s) for s, _ in tried[rate]], "examples": [e for _, e in tried[rate]], "cost": list(map(digits, mine[rate])),
                                   "largest rate": rate}}
        best = min(costs, key=lambda b: statistics.median(costs[b]))
        print(f"{name}: fixed {best} costs {statistics.median(costs[best]):.0f}, adaptive {statistics.median(mine[rate]):.0f}", flush=True)
    return {"what": f"examples + {price:g} * steps until the training loss has 4% of its way to go: fixed batch sizes at the best of seven to nine "
                    f"rates, and the schedule with the noise scale estimated on the way from 4 workers (decay 0.97), at the best of 5 largest rates; {seeds} seeds",
            "price": price, "tasks": rows}


if __name__ == "__main__":
    main(__file__, predict, quadratic, growth, schedule)
