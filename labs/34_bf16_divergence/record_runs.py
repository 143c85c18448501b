"""Makes the recorded runs on which `early_warning` is judged: `python record_runs.py FIRST_SEED FILE`.

Half of the recipes are meant to diverge (the learning rate climbs, faster or slower, from some step on), half are meant to be
healthy (a constant rate or a cosine, some of them high). What a run is called does not depend on the recipe: it diverges if
its loss shows it. The four thermometers of each step are kept, up to a few steps after the loss has shown it. A few minutes.

runs.safetensors is `python record_runs.py 0 runs.safetensors`; the grader has runs with other seeds.
"""
import math
import random
import sys

import torch
from safetensors.torch import save_file

from course import data, precision

STEPS, KEEP = 240, 8
NAMES = ("scores", "residual", "logits", "gradient norm")


def watch(activations: dict, grads: list) -> dict[str, float]:
    return {name: float(x.abs().max()) for name, x in activations.items()} | {"gradient norm": float(torch.cat(grads).norm())}


def recipe(seed: int) -> tuple[str, str, float, float, int]:
    """Kind, norm, base rate, growth of the rate at each step, and the step from which it grows."""
    dice = random.Random(seed)
    norm = dice.choice(["pre", "post"])
    base = 10 ** dice.uniform(-3.1, -2.5)
    if seed % 2 == 0:
        return "climbing", norm, base, dice.uniform(1.03, 1.10), dice.randint(50, 110)
    return dice.choice(["constant", "cosine"]), norm, base * dice.choice([1, 1, 2]), 1.0, STEPS


def rate(step: int, kind: str, base: float, growth: float, begin: int) -> float:
    warm = base * min(1, (step + 1) / 20) * growth ** max(0, step - begin)
    return warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / STEPS)) / 2) if kind == "cosine" else warm


def record(seed: int, text) -> tuple[torch.Tensor, int]:
    """The readings [4, steps], and when the loss showed it (-1: never)."""
    kind, norm, base, growth, begin = recipe(seed)
    trainer = precision.Trainer(precision.Rounded(precision.transformer(seed, norm=norm)), text, seed=seed, batch=8, watch=watch,
                                lr=lambda step: rate(step, kind, base, growth, begin))
    for step in range(STEPS):
        trainer.step(step)
        when = precision.shown(trainer.losses)
        if when is not None and step >= when + KEEP:
            break
    heat = [precision.overall(readings) for readings in trainer.heat]
    print(f"{seed}: {kind} {norm}, rate {base:.2e}, growth {growth:.3f} from {begin}: shown at {when}", flush=True)
    return torch.tensor([[h[name] for h in heat] for name in NAMES]), -1 if when is None else when


if __name__ == "__main__":
    torch.set_num_threads(1)
    first, file = int(sys.argv[1]), sys.argv[2]
    runs = [record(seed, data.pycode(1_000_000)) for seed in range(first, first + 32)]
    heat = torch.full((len(runs), len(NAMES), STEPS), math.nan)
    for row, (readings, _) in zip(heat, runs):
        row[:, :readings.shape[1]] = readings
    save_file({"heat": heat, "shown": torch.tensor([when for _, when in runs]), "steps": torch.tensor([r.shape[1] for r, _ in runs])}, file)
