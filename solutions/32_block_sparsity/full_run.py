"""The long measurements of lab 32, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run: `training` (a vision transformer, densely, and with 2:4-sparse weights for part of the time), `patterns` (masks on
the dense ones' weights), `step` (the time of a sparse and a dense step) and `products` (that of dense, CSR and block-sparse products). About ten minutes of one core.
"""
import functools
import warnings

import torch

from course import data, timing
from course.full_run import interval, lab_functions, main

warnings.filterwarnings("ignore", message="Sparse")  # torch calls its sparse tensors a beta
torch.set_num_threads(1)
LAB = lab_functions(__file__, r"def (random_sparse|to_bsr|bsr_matmul|prune_2_4|prune_unstructured|transposable_mask_4x4|learn|training_step|accuracy)\("
                              r"|PATTERNS =|class Linear24")
LAB["glyphs"] = data.glyphs(12_000, distortion=0.3)
SEEDS, STEPS = 8, 500
ARMS = {"sparse for 70%, then dense": (0.7, STEPS), "sparse to the end": (1.0, STEPS), "dense, 6% fewer steps": (0.0, round(0.94 * STEPS))}


@functools.cache
def dense(seed: int) -> tuple:
    return LAB["learn"](seed, 0.0, STEPS)


def training() -> dict:
    """Differences are taken seed by seed: the same first weights, the same batches."""
    found = {"dense": [LAB["accuracy"](dense(seed)[0]) for seed in range(SEEDS)]}
    for name, (share, count) in ARMS.items():
        found[name] = [LAB["accuracy"](LAB["learn"](seed, share, count)[0]) for seed in range(SEEDS)]
    minus = {name: [100 * (a - b) for a, b in zip(found[name], found["dense"])] for name in ARMS}
    return {"what": f"test accuracy of the lab's vision transformer on glyphs (10 classes, distortion 0.3), {STEPS} steps, {SEEDS} seeds, mean and 95% "
                    "interval; and minus that of dense training with the same seed, in points",
            "accuracy": {name: interval(row) for name, row in found.items()},
            "minus dense": {name: {"mean": interval(row), "each": [round(v, 3) for v in row]} for name, row in minus.items()}}


def patterns() -> dict:
    rows = {name: [LAB["after_masking"](dense(seed)[0], mask) for seed in range(SEEDS)] for name, mask in LAB["MASKS"].items()}
    return {"what": "half of the weights of up and down removed after dense training: share of the magnitude that is left, and test accuracy without "
                    f"training on; {SEEDS} seeds, mean and 95% interval", "dense": interval([LAB["accuracy"](dense(seed)[0]) for seed in range(SEEDS)]),
            "left": {name: interval([left for left, _ in row]) for name, row in rows.items()},
            "accuracy": {name: interval([accuracy for _, accuracy in row]) for name, row in rows.items()}}


def step() -> dict:
    """A sparse and a dense step by turns, so that a slow moment hits both."""
    def batch(seed: int) -> tuple:
        i = torch.randint(len(LAB["glyphs"].train_x), (32,), generator=torch.Generator().manual_seed(seed))
        return LAB["glyphs"].train_x[i], LAB["glyphs"].train_y[i]

    r = timing.compare(LAB["training_step"](True), LAB["training_step"](False), batch, seconds=20, device="cpu")
    return {"what": "time of a sparse training step over that of a dense one (ratio of medians, 95% interval), one thread",
            "sparse / dense": [round(1 / v, 3) for v in (r.ratio, r.high, r.low)]}


def products(size: int = 1024) -> dict:
    """Times faster than the plain product, [ratio, low, high]."""
    found: dict = {}
    for kind, b in (("anywhere", 1), ("blocks of 64", 64)):
        for density in (0.01, 0.03, 0.1, 0.2, 0.3, 0.5):
            w = LAB["random_sparse"](size, size, density, b)
            for n in (1, 16, 128, 512):
                ways = {"CSR": (torch.mm, w.to_sparse_csr()), "BSR": (LAB["bsr_matmul"], LAB["to_bsr"](w, 64))}
                for name, (way, stored) in ways.items():
                    make = lambda seed: (torch.randn(size, n, generator=torch.Generator().manual_seed(seed)),)
                    r = timing.compare(lambda x: way(stored, x), lambda x: w @ x, make, seconds=0.5, device="cpu")
                    found.setdefault(kind, {}).setdefault(name, {}).setdefault(f"density {density}", {})[f"{n}"] = [round(v, 3) for v in (r.ratio, r.low, r.high)]
    return {"what": f"{size} x {size} weights times n columns, one thread: times faster than the plain product (ratio of medians, 95% interval); CSR is "
                    "torch's, BSR the lab's bsr_matmul with blocks of 64", "faster": found}


if __name__ == "__main__":
    main(__file__, training, patterns, step, products)
