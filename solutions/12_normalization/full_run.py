"""The long measurements of lab 12, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run, one after the other: `mlp`, `lower_rates` and `convnet` (test error by normaliser and batch size),
`rates` (the widest learning rate), `depth` (pre- and post-norm) and `embedding` (LayerNorm after it). About a quarter
of an hour on one free core.
"""
import datetime
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TRAINFAST_JUDGED"] = "1"  # no checks: only the functions are wanted
import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from course import data, device, models, train

HERE = Path(__file__).resolve().parent
CARD = device.describe()
DEVICE = f"{CARD.cores}-core {platform.machine().replace('_', '-')} CPU" + next((f" with {name}" for flag, name in (
    ("amx_tile", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in CARD.cpu_features), "")
torch.set_num_threads(1)  # small tensors: a second thread would only get in the way


def lab_functions() -> dict:
    """The names that the lab's setup and the three normalisers' cells define."""
    script, notebook = HERE / "normalization.py", HERE / "normalization.ipynb"
    if script.exists():
        cells = re.split(r"^# %%.*$", script.read_text(), flags=re.MULTILINE)
    else:
        cells = ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    wanted = re.compile(r"^(import math$|def (batch_norm|layer_norm|group_norm)\()",
                        re.MULTILINE)
    names: dict = {}
    for source in cells:
        if wanted.search(source) and "check(" not in source.replace("import check, ", ""):
            exec(source, names)
    return names


LAB = lab_functions()


def interval(values) -> list[float]:
    """Mean and its 95% interval (Student's t)."""
    values = np.asarray(values, dtype=float)
    mean, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return [round(float(v), 4) for v in (mean, mean - half, mean + half)]


def best_rate(errors: Tensor, rates: tuple) -> dict:
    """errors [rates, seeds]: the rate whose mean error is lowest, and the interval of its error."""
    k = int(errors.mean(1).argmin())
    return {"lr": rates[k], "error": interval(errors[k].tolist()), "by rate": [round(e, 4) for e in errors.mean(1).tolist()]}


# --- many small networks at once: s of them, in the first dimension of every tensor ------------------------------------

class Norms(nn.Module):
    """One normaliser for s networks: x [s, n, c], one of the lab's functions; `kind` none, BatchNorm, LayerNorm, GroupNorm."""

    def __init__(self, kind: str, s: int, c: int):
        super().__init__()
        self.kind, self.weight, self.bias = kind, nn.Parameter(torch.ones(s, 1, c)), nn.Parameter(torch.zeros(s, 1, c))
        self.running = {"mean": torch.zeros(s * c), "var": torch.ones(s * c)}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return x
        s, n, c = x.shape
        if self.kind == "BatchNorm":  # the networks' channels side by side
            flat = x.transpose(0, 1).reshape(n, s * c)
            y, running = LAB["batch_norm"](flat, self.weight.flatten(), self.bias.flatten(), self.running, self.training)
            self.running = {name: value.detach() for name, value in running.items()}
            return y.reshape(n, s, c).transpose(0, 1)
        one, zero = torch.ones(c), torch.zeros(c)
        if self.kind == "LayerNorm":
            y = LAB["layer_norm"](x, one, zero)
        else:
            y = LAB["group_norm"](x.reshape(s * n, c), 8, one, zero).view(s, n, c)
        return y * self.weight + self.bias


class ManyMLPs(nn.Module):
    """s networks of the same widths, ReLU; `seeds` gives each its first weights, as torch draws them or, with `he`, so
    large that the signal keeps its size (He et al. 2015)."""

    def __init__(self, widths: tuple, kind: str, seeds: list[int], he: bool = False):
        super().__init__()
        made = []
        for seed in seeds:
            torch.manual_seed(seed)
            made.append([nn.Linear(i, o) for i, o in zip(widths, widths[1:])])
            if he:
                for linear in made[-1]:
                    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
                    nn.init.zeros_(linear.bias)
        self.weights = nn.ParameterList(torch.stack([m[k].weight.detach().T for m in made]) for k in range(len(widths) - 1))
        self.biases = nn.ParameterList(torch.stack([m[k].bias.detach()[None] for m in made]) for k in range(len(widths) - 1))
        self.norms = nn.ModuleList(Norms(kind, len(seeds), c) for c in widths[1:-1])

    def forward(self, x: Tensor) -> Tensor:  # [s, n, in] -> [s, n, out]
        for w, b, norm in zip(self.weights, self.biases, self.norms):
            x = F.relu(norm(torch.baddbmm(b, x, w)))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])


def train_many(model: nn.Module, images, seeds: list[int], rates: list[float], batch: int, epochs: int) -> Tensor:
    """Plain SGD on s networks, each with its own order of examples and learning rate; their test errors [s]."""
    s, n = len(seeds), len(images.train_x)
    x, y = images.train_x.flatten(1), images.train_y
    orders = torch.stack([torch.cat([torch.randperm(n, generator=g) for _ in range(epochs)])
                          for g in (torch.Generator().manual_seed(1000 + seed) for seed in seeds)])
    rate = torch.tensor(rates).view(s, 1, 1)
    parameters = list(model.parameters())
    model.train()
    for i in range(0, epochs * n - batch + 1, batch):
        part = orders[:, i:i + batch]
        logits = model(x[part])  # [s, batch, 10]
        loss = F.cross_entropy(logits.flatten(0, 1), y[part].flatten(), reduction="sum") / batch
        with torch.no_grad():
            for p, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)):
                if grad is not None:
                    p.sub_(rate * grad)
    model.eval()
    with torch.no_grad():
        right = model(images.test_x.flatten(1).expand(s, -1, -1)).argmax(-1) == images.test_y
    return 1 - right.float().mean(1)


KINDS, BATCHES = ("none", "BatchNorm", "LayerNorm", "GroupNorm"), (2, 4, 8, 16, 32)


def mlp(seeds: int = 5, epochs: int = 2) -> dict:
    images, rates = data.mnist5k(), (0.01, 0.03, 0.1)
    each = [(seed, lr) for lr in rates for seed in range(seeds)]
    found: dict = {}
    for kind in KINDS:
        for batch in BATCHES:
            model = ManyMLPs((784, 128, 128, 10), kind, [seed for seed, _ in each])
            errors = train_many(model, images, [seed for seed, _ in each], [lr for _, lr in each], batch, epochs)
            found.setdefault(kind, {})[batch] = best_rate(errors.view(len(rates), seeds), rates)
    return {"what": f"test error of a 784-128-128-10 MLP on mnist5k after {epochs} epochs of plain SGD, best of the rates {rates}, "
                    f"{seeds} seeds; mean and 95% interval; GroupNorm has 8 groups", "error": found}


def lower_rates(seeds: int = 5, epochs: int = 2) -> dict:
    """Is BatchNorm's failure at batch size 2 a matter of the learning rate?"""
    images, grid = data.mnist5k(), (0.001, 0.003)
    each = [(seed, lr) for lr in grid for seed in range(seeds)]
    model = ManyMLPs((784, 128, 128, 10), "BatchNorm", [seed for seed, _ in each])
    errors = train_many(model, images, [seed for seed, _ in each], [lr for _, lr in each], 2, epochs).view(len(grid), seeds)
    return {"what": f"as mlp: BatchNorm at batch size 2, at lower rates; {seeds} seeds, mean and 95% interval", "rates": list(grid),
            "error": [interval(row.tolist()) for row in errors]}


def rates(seeds: int = 5, epochs: int = 2, batch: int = 64) -> dict:
    images, grid = data.mnist5k(), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    each = [(seed, lr) for lr in grid for seed in range(seeds)]
    found = {}
    for kind in KINDS:
        model = ManyMLPs((784, *[128] * 5, 10), kind, [seed for seed, _ in each], he=True)
        errors = train_many(model, images, [seed for seed, _ in each], [lr for _, lr in each], batch, epochs).view(len(grid), seeds)
        widest = [max([lr for lr, e in zip(grid, errors[:, s].tolist()) if e < 0.3], default=0.0) for s in range(seeds)]
        found[kind] = {"error": [interval(row.tolist()) for row in errors], "widest": widest}
    return {"what": f"test error of a 784-128-128-128-128-128-10 MLP on mnist5k (He initialisation) after {epochs} epochs of plain SGD, "
                    f"batches of {batch}, {seeds} seeds; widest: for each seed, the largest rate with an error below 30%", "rates": list(grid), **found}


class GroupNorm2d(nn.Module):
    def __init__(self, c: int, groups: int):
        super().__init__()
        self.groups, self.weight, self.bias = groups, nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        return LAB["group_norm"](x, self.groups, self.weight, self.bias)


def convnet(seeds: int = 3, rates: tuple = (0.01, 0.03), batches: tuple = (2, 8, 32)) -> dict:
    images = data.mnist5k()
    small = data.Images(F.avg_pool2d(images.train_x, 2), images.train_y, F.avg_pool2d(images.test_x, 2), images.test_y, 10, "mnist5k, 14x14")
    norms = {"none": nn.Identity, "BatchNorm": nn.BatchNorm2d, "GroupNorm": lambda c: GroupNorm2d(c, 4)}
    momentum = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    found: dict = {}
    for kind in norms:
        for batch in batches:
            errors = torch.zeros(len(rates), seeds)
            for k, lr in enumerate(rates):
                for seed in range(seeds):
                    torch.manual_seed(seed)
                    net = models.ConvNet((8, 16, 32), norm=kind != "none")
                    net.norms = nn.ModuleList(norms[kind](c) if kind != "none" else nn.Identity() for c in (8, 16, 32))
                    done = train.train(net, small, optimizer=momentum, lr=lr, batch_size=batch, epochs=1, seed=seed, progress=False)
                    errors[k, seed] = 1 - done.final_accuracy
            found.setdefault(kind, {})[batch] = best_rate(errors, rates)
    return {"what": f"test error of a convnet (8, 16, 32 channels) on mnist5k at 14x14 after 1 epoch of SGD with momentum 0.9, best of the rates {rates}, "
                    f"{seeds} seeds; mean and 95% interval; GroupNorm has 4 groups, BatchNorm is torch's", "error": found}


# --- transformers ----------------------------------------------------------------------------------------------------

def learn(model: nn.Module, text, lr: Callable[[int], float], steps: int, seed: int, watch: Callable = lambda: None, batch: int = 8) -> list[float]:
    """Losses of `steps` steps of Adam."""
    g, optimizer, losses = torch.Generator().manual_seed(seed), torch.optim.Adam(model.parameters(), fused=True), []
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = lr(i)
        x, y = text.batch(batch, model.length, g)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        watch()
    return losses


def depth(seeds: int = 3, steps: int = 240) -> dict:
    text, found = data.pycode(2_000_000), {}
    for norm in ("pre", "post"):
        for lr, warm, depths in ((1e-3, 0, (24,)), (3e-3, 0, (4, 12, 24)), (3e-3, 100, (4, 12, 24))):
            for layers in depths:
                ends = []
                for seed in range(seeds):
                    torch.manual_seed(seed)
                    model = models.Transformer(d=32, layers=layers, heads=2, length=32, norm=norm)
                    losses = learn(model, text, lambda i: lr * min(1, (i + 1) / max(warm, 1)), steps, seed)
                    ends.append(sum(losses[-30:]) / 30)
                found.setdefault(f"{norm}, lr {lr:g}, warm-up {warm}", {})[layers] = {"loss": interval(ends), "each": [round(e, 3) for e in ends]}
    byte = torch.bincount(text.train.long(), minlength=256) / len(text.train)
    return {"what": f"mean training loss (nats) of the last 30 of {steps} steps of Adam on pycode; transformer of width 32, context 32, batch 8; "
                    f"{seeds} seeds, mean and 95% interval", "unigram": round(float(-(byte * byte.clamp(min=1e-9).log()).sum()), 3), "loss": found}


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 35 * x  # two embeddings of standard deviation 0.02 add up to 1/35


def embedding(seeds: int = 8, steps: int = 160) -> dict:
    text, found = data.pycode(2_000_000), {}
    arms = {"plain": nn.Identity, "LayerNorm after the embedding": lambda: nn.LayerNorm(64), "embedding times 35": Scaled}
    for name, first in arms.items():
        runs = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model, largest, each = models.Transformer(d=64, layers=6, heads=4, length=32), [0.0], []
            model.first = first()
            model.blocks[0].register_forward_pre_hook(lambda block, args: (model.first(args[0]),))
            for block in model.blocks:
                block.register_forward_hook(lambda block, args, out: largest.__setitem__(0, max(largest[0], out.detach().abs().max().item())))
            def watch():
                each.append(largest[0])
                largest[0] = 0.0
            losses = learn(model, text, lambda i: 2e-3 * min(1, (i + 1) / 30) * (10 if i >= 70 else 1), steps, seed, watch)
            runs.append({"before": sum(losses[60:70]) / 10, "after": sum(losses[-20:]) / 20, "losses": [round(v, 2) for v in losses[::4]],
                         "largest": [round(v, 1) for v in each[::4]]})
        found[name] = {part: interval([r[part] for r in runs]) for part in ("before", "after")} | {"runs": runs}
    return {"what": f"pre-norm transformer (width 64, 6 layers) on pycode, Adam 2e-3 with 30 steps of warm-up, the rate times 10 from step 70; "
                    f"loss (nats) of steps 60 to 69 and of the last 20 of {steps}; largest activation after any block; {seeds} seeds", "arms": found}


if __name__ == "__main__":
    parts = {f.__name__: f for f in (mlp, lower_rates, rates, convnet, depth, embedding)}
    target = HERE / "full_run.json"
    for part in sys.argv[1:] or parts:
        begin = time.perf_counter()
        result = parts[part]()
        known = json.loads(target.read_text()) if target.exists() else {}
        known[part] = {"date": datetime.date.today().isoformat(), "device": DEVICE, "torch": torch.__version__.partition("+")[0],
                       "seconds": round(time.perf_counter() - begin), **result}
        target.write_text(re.sub(r"[\[{][^][{}]*[]}]", lambda m: " ".join(m[0].split()), json.dumps(known, indent=1)) + "\n")
        print(f"{part}: {known[part]['seconds']} s", flush=True)
