"""The long measurements of lab 34, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run: `late` (weights stored in four ways, early and late in training), `formats` (a growing learning rate
in several formats), `planted` (where a stabiliser matters), `moments` (Adam's memory in 16 bits), `saved` (alarm and rollback, ten
seeds), `products` and `steps` (speed). About fifteen minutes of one core.
"""
import math

import torch

from course import models, precision, timing
from course.full_run import lab_functions, main

torch.set_num_threads(1)
LAB = lab_functions(__file__, r"def (bf16_update|stochastic_round|master_weight_step|thermometer|early_warning|rollback|mixed_linear|go_on|watch|rescue)\("
                              r"|text = |KEPT = ")
TEXT, BATCH, KEPT = LAB["text"], LAB["BATCH"], LAB["KEPT"]
BF16 = torch.bfloat16


def trainer(seed: int, dtype=None, keep=(), **settings) -> precision.Trainer:
    return precision.Trainer(precision.Rounded(precision.transformer(seed), dtype, keep), TEXT, seed=seed, batch=BATCH, **settings)


# --- lost updates ----------------------------------------------------------------------------------------------------

def late(seeds: int = 4) -> dict:
    """Early: 300 steps from the start at 2e-3. Late: 120 steps more at lower rates, from the same checkpoint."""
    early: dict = {way: [] for way in ("float32", "bf16")}
    gains: dict = {}
    for seed in range(seeds):
        start = trainer(seed, lr=2e-3).run(0, 300).checkpoint()
        for way, losses in early.items():
            losses.append(trainer(seed, BF16, lr=2e-3, apply=LAB["WAYS"][way]).run(0, 300).evaluate())
        for lr in (1e-3, 1e-4, 1e-5):
            for way in LAB["WAYS"]:
                losses, lost = LAB["go_on"](way, start, lr, every=120, seed=seed)
                row = gains.setdefault(f"{lr:g}", {}).setdefault(way, {"gain": [], "lost": []})
                if way == "float32":
                    begin = losses[0]
                row["gain"].append(1000 * (begin - losses[-1]))
                row["lost"].append(lost)
    return {"what": "computed in bf16, weights stored in four ways; early: held-out loss (nats) after 300 steps at 2e-3 from the start; late: gain (0.001 nats) of 120 "
                    f"further steps at a lower rate, and share of lost updates; by seed",
            "early": {way: [round(x, 4) for x in row] for way, row in early.items()},
            "late": {lr: {way: {name: [round(x, 3) for x in row] for name, row in both.items()} for way, both in rows.items()} for lr, rows in gains.items()}}


# --- divergence and the format ---------------------------------------------------------------------------------------

def formats(seeds: int = 10) -> dict:
    settings = {**LAB["FORMATS_TRIED"], **{f"bf16, {name} in float32": (BF16, (name,)) for name in KEPT}}
    growing = {name: [precision.shown(LAB["climbing"](dtype, keep, seed=seed).losses) for seed in range(seeds if name in LAB["FORMATS_TRIED"] else seeds // 2)]
               for name, (dtype, keep) in settings.items()}
    high: dict = {}
    for lr in (0.01, 0.03):
        for name, (dtype, keep) in LAB["FORMATS_TRIED"].items():
            runs = [trainer(seed, dtype, keep, lr=lambda step: lr * min(1, (step + 1) / 20)).run(0, 150) for seed in range(seeds // 2)]
            high.setdefault(f"{lr:g}", {})[name] = [round(sum(r.losses[-20:]) / 20, 3) if math.isfinite(sum(r.losses[-20:])) else None for r in runs]
    return {"what": "growing: step at which the loss shows a divergence, by seed (null: not within 240), the rate growing by 5% a step from step 60 on; high: training loss "
                    "(mean of the last 20 of 150 steps) at a constant high rate, by seed (null: not finite)", "growing": growing, "high": high}


def planted(seeds: int = 3, steps: int = 60) -> dict:
    """A number is added to all channels of the residual at its beginning: LayerNorm takes it away again, in exact arithmetic."""
    found: dict = {}
    for offset in (0, 16, 64, 256):
        for name, (dtype, keep) in {"float32": (None, ()), "bf16": (BF16, ()), "bf16, residual and LayerNorm in float32": (BF16, ("residual", "norm")),
                                    "bf16, scores and softmax in float32": (BF16, ("scores", "softmax"))}.items():
            losses = []
            for seed in range(seeds):
                t = trainer(seed, dtype, keep, lr=2e-3)
                with torch.no_grad():
                    t.net.model.places.weight += offset
                losses.append(sum(t.run(0, steps).losses[-20:]) / 20)
            found.setdefault(name, {})[str(offset)] = [round(x, 3) for x in losses]
    return {"what": f"training loss (mean of the last 20 of {steps} steps at 2e-3) with a number planted in all channels of the residual, by seed", "loss": found}


def moments(seeds: int = 3) -> dict:
    result: dict = {}
    for name, dtype in (("float32", None), ("bf16", BF16), ("fp16", torch.float16)):
        for eps in (1e-8, 1e-4):
            runs = [trainer(seed, lr=2e-3, moments=dtype, eps=eps).run(0, 80) for seed in range(seeds)]
            result[f"{name}, eps {eps:g}"] = [round(sum(r.losses[-20:]) / 20, 3) if math.isfinite(sum(r.losses[-20:])) else None for r in runs]
    return {"what": "training loss (mean of the last 20 of 80 steps at 2e-3, all else in float32) with Adam's m and v stored in a format, by seed (null: not finite)", "loss": result}


# --- alarm and rollback ----------------------------------------------------------------------------------------------

def saved(seeds: int = 10, end: int = 240) -> dict:
    rows = [LAB["rescue"](seed, end) for seed in range(seeds)]
    return {"what": f"a rate that grows by 5% a step from step 60 on, in float32: alarm, and step at which the loss shows a divergence (null: not within {end}) if nothing is done, after "
                    "rolling back and skipping batches, after rolling back, skipping and returning to the old rate, and after rolling back to the old rate and the same "
                    "batches; by seed", "rows": rows}


# --- speed -----------------------------------------------------------------------------------------------------------

def products() -> dict:
    rows = {}
    for n in (256, 512, 1024, 2048):
        def matrices(seed: int) -> tuple:
            g = torch.Generator().manual_seed(seed)
            return torch.randn(n, n, generator=g), torch.randn(n, n, generator=g) / n**0.5
        r = timing.compare(LAB["mixed_linear"], torch.nn.functional.linear, matrices, seconds=5, device="cpu")
        rows[n] = {"ratio": round(r.ratio, 3), "interval": [round(r.low, 3), round(r.high, 3)], "float32_ms": round(1e3 * r.baseline_seconds, 3)}
    return {"what": "one thread: float32 product of n by n matrices over mixed_linear, conversions included; 95% interval", "ratios": rows}


def steps() -> dict:
    def one(dtype, keep=(), real=True):
        model = models.Transformer(d=256, layers=4, heads=4, length=64)
        t = precision.Trainer(precision.Rounded(model, dtype, keep, real=real), TEXT, lr=1e-4, batch=16)
        return lambda number: t.step(number)
    kinds = {"float32": one(None), "bf16": one(BF16), "bf16, stabilised": one(BF16, KEPT)}
    rows = {}
    for name, (a, b) in {"bf16 against float32": ("bf16", "float32"), "stabilised against bf16": ("bf16, stabilised", "bf16"), "stabilised against float32": ("bf16, stabilised", "float32")}.items():
        r = timing.compare(kinds[a], kinds[b], lambda seed: (seed,), seconds=20, device="cpu")
        rows[name] = {"ratio": round(r.ratio, 3), "interval": [round(r.low, 3), round(r.high, 3)], "ms": [round(1e3 * r.candidate_seconds, 2), round(1e3 * r.baseline_seconds, 2)]}
    return {"what": "one thread: times as fast, training steps of a transformer (d 256, 4 layers, 16 texts of 64 bytes) that computes in bf16; 95% interval", "ratios": rows}


if __name__ == "__main__":
    main(__file__, late, formats, planted, moments, saved, products, steps)
