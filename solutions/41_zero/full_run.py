"""The long measurements of lab 41, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Parts: `equality` (ten steps on real ranks against one process), `training` (losses of real ranks), `step` (the simulator's
step against the real one), `claim` (the simulated map of the claims; exact). About ten minutes on two cores.
"""

import numpy as np
import torch

import train_zero
from course import cluster, data, layers, ranks
from course.cluster import Cluster
from course.full_run import interval, main

LAB = train_zero.lab_functions()


def ten_steps(comm, method: str, rule: str, seed: int) -> dict[str, torch.Tensor]:
    """Parameters after ten steps in float64, where the order of additions shows in the last bits only."""
    net, text = layers.transformer(d=32, layers=2, length=32, seed=seed), data.pycode(2_000_000)
    for module in net.modules:
        module.double()
    single = net.single() if method == "ddp" else net
    params, state = single.vectors(), {}
    for step in range(10):
        x, y = (t.long().chunk(comm.world)[comm.rank] for t in text.batch(12, 32, torch.Generator().manual_seed(100 * seed + step)))
        backward = single.backward(x, y)
        if method == "ddp":
            buckets = LAB["eight_a_bucket"](len(params))
            params, state = LAB["ddp_step"](comm, params, backward, buckets, state, lr=0.1)
        elif method == "stage 1":
            grads = {}
            backward(params, lambda i, grad: grads.update({i: grad}))
            flat, state = LAB["zero1_step"](comm, torch.cat(params), torch.cat([grads[i] for i in sorted(grads)]), state, rule=rule, lr=1e-3)
            params = list(flat.split(net.sizes))
        elif method == "stage 2":
            params, state = LAB["zero2_step"](comm, params, backward, state, rule=rule, lr=1e-3)
        else:
            own = [LAB["padded"](p, comm.world).chunk(comm.world)[comm.rank] for p in params]
            _, grads = LAB["zero3_forward_backward"](comm, own, net.sizes, x, *net.pieces(x, y))
            for i, (p, g) in enumerate(zip(own, grads)):
                p, state[i] = LAB["update"](rule, p, g, state.get(i, {}), 1e-3)
                params[i] = comm.all_gather(p).wait()[:net.sizes[i]]
    return {"params": torch.cat(params), "state": cluster.nbytes(state)}


def equality(seeds: int = 1) -> dict:
    cases = [("ddp", "sgd"), *((f"stage {stage}", rule) for stage in (1, 2, 3) for rule in ("sgd", "momentum", "adamw"))]
    found = {}
    for method, rule in cases:
        apart, held = [], []
        for seed in range(seeds):
            one, = ranks.run(ten_steps, 1, (method, rule, seed), timeout=300)
            for world in (2, 3):
                results = ranks.run(ten_steps, world, (method, rule, seed), timeout=300)
                assert all(torch.equal(results[0]["params"], other["params"]) for other in results)
                apart.append(((results[0]["params"] - one["params"]).abs().max() / one["params"].abs().max()).item())
                held.append(results[0]["state"] / max(one["state"], 1))
        found[f"{method}, {rule}"] = {"largest difference": float(f"{max(apart):.3g}"), "state on 2 ranks": round(held[0], 4),
                                      "state on 3 ranks": round(held[1], 4)}
    return {"what": "ten steps of a transformer on Python source in float64, 2 and 3 gloo ranks against one process, " f"{seeds} seed: largest "
                    "difference of a parameter, over the largest parameter; state: bytes on rank 0 over bytes of one process", "found": found}


def training(seeds: int = 3, steps: int = 100) -> dict:
    curves, final = {}, {}
    for name, world, stage in (("one process", 1, 2), ("2 ranks, stage 1", 2, 1), ("2 ranks, stage 2", 2, 2), ("2 ranks, stage 3", 2, 3)):
        runs = [ranks.run(train_zero.train, world, (stage, steps, 12, "adamw", seed), timeout=400)[0] for seed in range(seeds)]
        losses = torch.stack([run["losses"] for run in runs])
        curves[name] = [round(x, 4) for x in losses.mean(0).view(-1, 5).mean(1).tolist()]
        final[name] = interval(losses[:, -20:].mean(1))
    return {"what": f"training loss (nats) with AdamW, mean of each five steps over {seeds} seeds; final: last 20 steps, mean and 95% interval",
            "curves": curves, "final": final}


def step(repeats: int = 8) -> dict:
    """Everything that else runs on the machine makes real times longer: the shortest of 25 in each repetition."""
    rows = {name: [] for name in ("predicted after", "measured after", "predicted during", "measured during", "latency (us)", "GB/s")}
    for _ in range(repeats):
        found = ranks.run(LAB["measure_step"], 2, timeout=200)[0]
        for name, overlap in (("after", False), ("during", True)):
            rows[f"predicted {name}"].append(1e3 * LAB["predict_step"](found, overlap))
            rows[f"measured {name}"].append(1e3 * found[name])
        rows["latency (us)"].append(1e6 * found["small"] / 2)
        rows["GB/s"].append(4e-3 / (found["large"] - found["small"]))
    errors = {name: interval(100 * (np.array(rows[f"measured {name}"]) / np.array(rows[f"predicted {name}"]) - 1)) for name in ("after", "during")}
    speedup = interval(np.array(rows["measured after"]) / np.array(rows["measured during"]))
    return {"what": f"one data-parallel step of 2 real processes (ms), {repeats} repetitions, mean and 95% interval; error: measured over predicted, "
                    "less one, per cent; speedup: measured time with messages after backward over time with messages during it",
            "ms": {name: interval(values) for name, values in rows.items()}, "error": errors, "speedup": speedup}


def claim() -> dict:
    speeds = [10 ** (k / 8) for k in range(21)]
    table = {}
    for model, (params, depth) in {"small": (100_000_000, 12), "large": (10_000_000_000, 48)}.items():
        seconds = {m: np.array([LAB["simulate"](m, params, depth, 16, Cluster(20e-6, 1e9 * s), 4096) for s in speeds]) for m in LAB["METHODS"]}
        best = seconds["ZeRO 3, prefetch"]
        table[model] = {m: [round(float(x), 4) for x in seconds[m] / best] for m in LAB["METHODS"]}
    return {"what": "simulated: time of each method over that of ZeRO 3 with prefetch; 16 devices of 100 TFLOP/s, 4096 tokens each, latency 20 us; "
                    "small: 100 million parameters in 12 layers, large: 10 billion in 48", "GB/s": [round(s, 3) for s in speeds], "times": table}


if __name__ == "__main__":
    main(__file__, equality, training, step, claim)
