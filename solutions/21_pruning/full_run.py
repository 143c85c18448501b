"""The long measurements of lab 21, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run: `single` (single weights, by five methods), `filters` (surgery, by four criteria), `digits`
(the same on mnist5k), `rewinding` (finetuning against going back), and `speed`. About a quarter of an hour of one core.
"""
import functools
import math
from pathlib import Path

import torch
from make_network import STEPS as TRAINING, trained

from course import data, models, pruning, timing, train
from course.full_run import interval, lab_functions, main

torch.set_num_threads(1)
LAB = lab_functions(__file__, r"def (magnitude_mask|global_magnitude_masks|masked_step|cubic_sparsity|filter_importance|taylor_importance"
                              r"|prune_filters)\(")
SEEDS, STEPS, LONG = 3, 200, 400  # steps of finetuning
FACTORS = (4, 8, 16)  # how many times fewer weights

glyphs = functools.cache(pruning.glyphs)
mnist5k = functools.cache(lambda: pruning.half_size(data.mnist5k()))
networks = functools.cache(lambda images, seed: pruning.state_of(trained(images(), seed)))


def accuracy(state: dict, images) -> float:
    """In per cent, of all test images."""
    return 100 * pruning.accuracy(state, images.test_x, images.test_y)


def finetune(state: dict, images, masks_at, seed: int, steps: int = STEPS, lr: float = 0.1) -> float:
    """The accuracy after so many steps more."""
    net = pruning.module(state)
    optimizer = pruning.optimizer(LAB["masked_step"], masks_at, weight_decay=5e-4)
    train.train(net, images, optimizer=optimizer, steps=steps, lr=lambda t: lr * (1 - t / steps), seed=1000 + seed, device="cpu", progress=False)
    return accuracy(pruning.state_of(net), images)


def at_once(masks):
    return lambda t, weights: masks if t == 0 else None


def gradually(final: float, end: int, every: int = 5):
    choose = lambda t, weights: LAB["global_magnitude_masks"](weights, LAB["cubic_sparsity"](t, 0, end, final))
    return lambda t, weights: choose(t, weights) if t % every == 0 and t <= end else None


def gradients(state: dict, images) -> list:
    return pruning.gradients(state, images.train_x[:2000], images.train_y[:2000])


def half_a_point(losses: dict) -> float:
    """How many times fewer weights cost half a point: on straight lines over the logarithm, from no loss at 1; at most the largest factor."""
    points = [(1, 0.0), *losses.items()]
    for (small, a), (large, b) in zip(points, points[1:]):
        if b > 0.5:
            share = max(0.0, (0.5 - a) / (b - a))
            return small * (large / small) ** share
    return float(points[-1][0])


# --- single weights --------------------------------------------------------------------------------------------------

def losses(images, seed: int, methods: tuple, factors: tuple = FACTORS) -> dict:
    """By method and factor, the points of accuracy below the dense network that was trained on for as long."""
    state = networks(images, seed)
    images = images()
    weights, everywhere = list(pruning.weights(state).values()), LAB["global_magnitude_masks"]
    importance = [LAB["taylor_importance"](w, g) for w, g in zip(weights, gradients(state, images))]
    choose = {"size, same share": lambda s: [LAB["magnitude_mask"](w, s) for w in weights],
              "size, one order": lambda s: everywhere(weights, s), "Taylor, one order": lambda s: everywhere(importance, s)}
    control = {steps: finetune(state, images, at_once(None), seed, steps) for steps in {LONG if m == LONGER else STEPS for m in methods}}
    found: dict = {}
    for method in methods:
        steps = LONG if method == LONGER else STEPS
        for factor in factors:
            s = 1 - 1 / factor
            masks_at = at_once(choose[method](s)) if method in choose else gradually(s, round(0.6 * steps))
            found.setdefault(method, {})[factor] = control[steps] - finetune(state, images, masks_at, seed, steps)
    return found


def table(rows: list[dict]) -> dict:
    """Over the seeds: mean and interval of each loss, and how many times smaller for half a point."""
    found = {}
    for method in rows[0]:
        halves = interval([math.log2(half_a_point(row[method])) for row in rows])
        found[method] = {"loss": {factor: interval([row[method][factor] for row in rows]) for factor in rows[0][method]},
                         "half a point": [round(2**v, 2) for v in halves]}
    return found


LONGER = f"little by little, {LONG} steps"
METHODS = ("size, same share", "size, one order", "Taylor, one order", "little by little", LONGER)


def single() -> dict:
    rows = [losses(glyphs, seed, METHODS) for seed in range(SEEDS)]
    dense = interval([accuracy(networks(glyphs, seed), glyphs()) for seed in range(SEEDS)])
    return {"what": f"points of test accuracy on glyphs (36 classes, 14 x 14) lost against the dense network trained on for as long, by method and by "
                    f"how many times fewer weights; {STEPS} steps of finetuning after pruning at once, or pruning little by little in the first 60% of "
                    f"{STEPS} or {LONG} steps; {SEEDS} seeds, mean and 95% interval. half a point: the factor at which 0.5 points are lost, interpolated "
                    f"for each seed, at most {FACTORS[-1]}", "dense": dense, "methods": table(rows)}


def digits() -> dict:
    rows = [losses(mnist5k, seed, ("size, one order", "little by little"), (8, 16)) for seed in range(SEEDS)]
    return {"what": f"as `single`, on mnist5k (14 x 14); the network is trained for {TRAINING} steps of 64 images as well",
            "dense": interval([accuracy(networks(mnist5k, seed), mnist5k()) for seed in range(SEEDS)]), "methods": table(rows)}


# --- filters ---------------------------------------------------------------------------------------------------------

SHARES = (0.75, 0.5, 0.375)


def filters() -> dict:
    rows: list = []
    for seed in range(SEEDS):
        state, images = networks(glyphs, seed), glyphs()
        convs, random = list(pruning.weights(state).values())[:-1], torch.Generator().manual_seed(seed)
        taylor = [LAB["taylor_importance"](w, g, per_filter=True) for w, g in zip(convs, gradients(state, images))]
        importance = {"random": [torch.rand(len(w), generator=random) for w in convs], "sum": [LAB["filter_importance"](w) for w in convs],
                      "sum times gain": [LAB["filter_importance"](w, a) for w, a in zip(convs, pruning.gains(state))], "Taylor": taylor}
        control, row = finetune(state, images, at_once(None), seed), {}
        for name, values in importance.items():
            for share in SHARES:
                keep = [LAB["magnitude_mask"](v, 1 - share).nonzero()[:, 0] for v in values]
                small = LAB["prune_filters"](state, keep)
                row[name, share] = accuracy(state, images) - accuracy(small, images), control - finetune(small, images, at_once(None), seed)
        half = LAB["prune_filters"](state, [LAB["magnitude_mask"](v, 0.5).nonzero()[:, 0] for v in importance["sum times gain"]])
        row["longer"] = finetune(state, images, at_once(None), seed, 3 * STEPS) - finetune(half, images, at_once(None), seed, 3 * STEPS)
        rows.append(row)
    return {"what": f"points of test accuracy on glyphs lost when each layer keeps a share of its filters, by criterion: at once, and after {STEPS} steps "
                    f"of finetuning against the dense network trained on for as long; {SEEDS} seeds, mean and 95% interval. longer: half of the filters "
                    f"by sum times gain, {3 * STEPS} steps", "longer": interval([row["longer"] for row in rows]),
            **{when: {name: {str(share): interval([row[name, share][k] for row in rows]) for share in SHARES} for name in importance}
               for k, when in enumerate(("at once", "finetuned"))}}


# --- going back ------------------------------------------------------------------------------------------------------

def rewinding(early: int = 100, factor: int = 16, steps: int = 300) -> dict:
    rows, images = [], glyphs()
    for seed in range(SEEDS):
        state = networks(glyphs, seed)
        masks = LAB["global_magnitude_masks"](list(pruning.weights(state).values()), 1 - 1 / factor)
        earlier = {f"back to step {step}": (pruning.state_of(trained(images, seed, stop=step)), 0.2) for step in (early, 0)}
        torch.manual_seed(5000 + seed)
        starts = {"finetuned": (state, 0.1), **earlier,
                  "drawn anew": (pruning.state_of(models.ConvNet(pruning.CHANNELS, images.classes)), 0.2)}
        rows.append({name: finetune(start, images, at_once(masks), seed, steps, lr) for name, (start, lr) in starts.items()})
    return {"what": f"test accuracy on glyphs of networks with the same masks (size, one order, {factor} times fewer weights) after {steps} steps more: from "
                    f"the trained weights (learning rate 0.1), from those of step {early} or 0 of the training, or from new ones (learning rate 0.2); {SEEDS} "
                    "seeds, mean and 95% interval",
            **{name: interval([row[name] for row in rows]) for name in rows[0]}}


# --- speed -----------------------------------------------------------------------------------------------------------

def speed() -> dict:
    timing.keep_memory()
    dense, random = pruning.network(Path(__file__).parent), torch.Generator().manual_seed(0)
    weights = list(pruning.weights(dense).values())
    keep = {name: [torch.randperm(len(w), generator=random)[:round(share * len(w))].sort().values for w in weights[:-1]]
            for name, share in (("three quarters of the filters", 0.75), ("half of the filters", 0.5), ("a quarter of the filters", 0.25))}
    nets = {name: LAB["prune_filters"](dense, rows) for name, rows in keep.items()}
    nets |= {f"{s:.0%} of the weights zero": pruning.masked(dense, LAB["global_magnitude_masks"](weights, s)) for s in (0.5, 0.75, 0.95)}
    faster = {}
    for name, net in nets.items():
        for batch in (1, 32, 256):
            r = timing.compare(lambda x: pruning.forward(net, x), lambda x: pruning.forward(dense, x),
                               lambda seed: (torch.rand(batch, 1, 14, 14, generator=torch.Generator().manual_seed(seed)),), seconds=2, device="cpu")
            faster.setdefault(name, {})[batch] = [round(v, 3) for v in (r.ratio, r.low, r.high)]
    return {"what": "times as fast as the dense network on one thread, by batch, with 95% interval", "faster": faster,
            "multiply-adds": {name: pruning.multiply_adds(net) for name, net in {"dense": dense, **nets}.items()}}


if __name__ == "__main__":
    main(__file__, speed, single, filters, rewinding, digits)
