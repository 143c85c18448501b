"""The long measurements of lab 12, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run, one after the other: `mlp`, `lower_rates` and `convnet` (test error by normaliser and batch size),
`rates` and `brake` (the widest learning rate, and what the growing weights have to do with it), `recurrent` (the same
normalisers inside a recurrent network), `depth` (pre- and post-norm) and `embedding` (LayerNorm after it). About an
hour on one core.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import data, models
from course.full_run import interval, lab_functions, main

torch.set_num_threads(1)  # small tensors: a second thread would only get in the way
LAB = lab_functions(__file__, r"def (batch_norm|layer_norm|group_norm)\(")


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


def train_many(model: nn.Module, images, seeds: list[int], rates: list[float], batch: int, epochs: int, keep_lengths: bool = False) -> Tensor:
    """Plain SGD on s networks, each with its own order of examples and learning rate; their test errors [s].

    `keep_lengths`: after each step the weights before a norm are brought back to the length that they began with.
    """
    s, n = len(seeds), len(images.train_x)
    x, y = images.train_x.flatten(1), images.train_y
    orders = torch.stack([torch.cat([torch.randperm(n, generator=g) for _ in range(epochs)])
                          for g in (torch.Generator().manual_seed(1000 + seed) for seed in seeds)])
    rate = torch.tensor(rates).view(s, 1, 1)
    parameters = list(model.parameters())
    lengths = [w.detach().norm(dim=(1, 2), keepdim=True) for w in model.weights[:-1]] if keep_lengths else []
    model.train()
    for i in range(0, epochs * n - batch + 1, batch):
        part = orders[:, i:i + batch]
        logits = model(x[part])  # [s, batch, 10]
        loss = F.cross_entropy(logits.flatten(0, 1), y[part].flatten(), reduction="sum") / batch
        with torch.no_grad():
            for p, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)):
                if grad is not None:
                    p.addcmul_(grad, rate, value=-1)
            for w, length in zip(model.weights, lengths):
                w.mul_(length / w.norm(dim=(1, 2), keepdim=True))
    model.eval()
    with torch.no_grad():
        right = model(images.test_x.flatten(1).expand(s, -1, -1)).argmax(-1) == images.test_y
    return 1 - right.float().mean(1)


KINDS, BATCHES = ("none", "BatchNorm", "LayerNorm", "GroupNorm"), (2, 4, 8, 16, 32, 64)


def mlp(seeds: int = 5, epochs: int = 2, batches: tuple = BATCHES) -> dict:
    images, found = data.mnist5k(), {}
    for kind in KINDS:
        for batch in batches:
            rates = (0.01, 0.03, 0.1) if batch < 8 else (0.01, 0.03, 0.1, 0.3)
            each = [(seed, lr) for lr in rates for seed in range(seeds)]
            model = ManyMLPs((784, 128, 128, 10), kind, [seed for seed, _ in each])
            errors = train_many(model, images, [seed for seed, _ in each], [lr for _, lr in each], batch, epochs)
            found.setdefault(kind, {})[batch] = best_rate(errors.view(len(rates), seeds), rates)
    return {"what": f"test error of a 784-128-128-10 MLP on mnist5k after {epochs} epochs of plain SGD, best of the rates 0.01, 0.03, 0.1 and, from "
                    f"batches of 8 on, 0.3, {seeds} seeds; mean and 95% interval; GroupNorm has 8 groups", "error": found}


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


def brake(seeds: int = 5, epochs: int = 2, batch: int = 64) -> dict:
    """BatchNorm without its brake: the weights cannot grow."""
    images, grid = data.mnist5k(), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    each = [(seed, lr) for lr in grid for seed in range(seeds)]
    model = ManyMLPs((784, *[128] * 5, 10), "BatchNorm", [seed for seed, _ in each], he=True)
    errors = train_many(model, images, [seed for seed, _ in each], [lr for _, lr in each], batch, epochs, keep_lengths=True).view(len(grid), seeds)
    widest = [max([lr for lr, e in zip(grid, errors[:, s].tolist()) if e < 0.3], default=0.0) for s in range(seeds)]
    return {"what": f"as rates: BatchNorm, but after each step each hidden layer's weights are brought back to their first length; {seeds} seeds",
            "rates": list(grid), "error": [interval(row.tolist()) for row in errors], "widest": widest}


class ManyConvNets(nn.Module):
    """s networks like models.ConvNet side by side, their channels in groups: x [n, s, h, w] -> [n, s, 10]."""

    def __init__(self, kind: str, seeds: list[int], channels: tuple = (8, 16, 32)):
        super().__init__()
        self.kind, self.s, nets = kind, len(seeds), []
        for seed in seeds:
            torch.manual_seed(seed)
            nets.append(models.ConvNet(channels, norm=False))
        together = lambda pick: nn.Parameter(torch.cat([pick(net).detach() for net in nets]))
        self.convs = nn.ParameterList(together(lambda net: net.convs[k].weight) for k in range(len(channels)))
        self.shifts = nn.ParameterList(together(lambda net: net.convs[k].bias) for k in range(len(channels)))
        self.scales = nn.ParameterList(torch.ones(self.s * c) for c in channels)
        self.head = together(lambda net: net.head.weight[None])  # [s, 10, c]
        self.bias = together(lambda net: net.head.bias[None])
        self.running = [{"mean": torch.zeros(self.s * c), "var": torch.ones(self.s * c)} for c in channels]

    def forward(self, x: Tensor) -> Tensor:
        for k, (w, scale, shift) in enumerate(zip(self.convs, self.scales, self.shifts)):
            if k:
                x = F.max_pool2d(x, 2)
            x = F.conv2d(x, w, shift if self.kind == "none" else None, padding=1, groups=self.s)  # [n, s c, h, w]
            if self.kind == "BatchNorm":
                x, running = LAB["batch_norm"](x, scale, shift, self.running[k], self.training)
                self.running[k] = {name: value.detach() for name, value in running.items()}
            elif self.kind != "none":  # LayerNorm is one group for each network
                x = LAB["group_norm"](x, self.s * (4 if self.kind == "GroupNorm" else 1), scale, shift)
            x = F.relu(x)
        return torch.einsum("nsc,soc->nso", x.mean((2, 3)).view(len(x), self.s, -1), self.head) + self.bias


def convnet(seeds: int = 5, epochs: int = 2, rates: tuple = (0.003, 0.01, 0.03, 0.1, 0.3), batches: tuple = (2, 4, 8, 32, 64)) -> dict:
    images = data.mnist5k()
    pixels, tests = (F.avg_pool2d(x, 2)[:, 0] for x in (images.train_x, images.test_x))  # [n, 14, 14]
    each, n, found = [(seed, lr) for lr in rates for seed in range(seeds)], len(pixels), {}
    rate = torch.tensor([lr for _, lr in each])
    orders = torch.stack([torch.cat([torch.randperm(n, generator=g) for _ in range(epochs)])
                          for g in (torch.Generator().manual_seed(1000 + seed) for seed, _ in each)])
    for kind in KINDS:
        for batch in batches:
            model = ManyConvNets(kind, [seed for seed, _ in each])
            parameters = list(model.parameters())
            # Each network's part of a parameter is at its own places of the first dimension.
            steps = [rate.repeat_interleave(len(p) // len(each)).view(-1, *[1] * (p.ndim - 1)) for p in parameters]
            speeds = [torch.zeros_like(p) for p in parameters]
            for i in range(0, epochs * n - batch + 1, batch):
                part = orders[:, i:i + batch]
                logits = model(pixels[part.T])  # [batch, s, 10]
                loss = F.cross_entropy(logits.flatten(0, 1), images.train_y[part.T].flatten(), reduction="sum") / batch
                with torch.no_grad():
                    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                    for p, v, step, grad in zip(parameters, speeds, steps, grads):
                        if grad is not None:
                            p.addcmul_(v.mul_(0.9).add_(grad), step, value=-1)
            model.eval()
            with torch.no_grad():
                guesses = torch.cat([model(part[:, None].expand(-1, len(each), -1, -1)).argmax(-1) for part in tests.split(100)])
            errors = 1 - (guesses == images.test_y[:, None]).float().mean(0).view(len(rates), seeds)
            found.setdefault(kind, {})[batch] = best_rate(errors, rates)
    return {"what": f"test error of a convnet (8, 16, 32 channels) on mnist5k at 14x14 after {epochs} epochs of SGD with momentum 0.9, best of the rates {rates}, "
                    f"{seeds} seeds; mean and 95% interval; GroupNorm has 4 groups, LayerNorm one", "error": found}


# --- recurrent networks ----------------------------------------------------------------------------------------------

STEPS = 28  # none reads longer sequences here


class ManyRNNs(nn.Module):
    """s recurrent networks, h = tanh(norm(x W + h U + b)): x [s, n, steps, in] -> [s, n, 10] from the last h.

    `kind` none, LayerNorm, BatchNorm (one set of running values for all steps) or "BatchNorm, each step" (a set for
    each step; Cooijmans et al. 2017).
    """

    def __init__(self, kind: str, seeds: list[int], inputs: int = 14, c: int = 64):
        super().__init__()
        s, made = len(seeds), []
        for seed in seeds:
            torch.manual_seed(seed)
            made.append((nn.Linear(inputs, c), nn.init.orthogonal_(torch.empty(c, c)), nn.Linear(c, 10)))
        self.inward = nn.Parameter(torch.stack([i.weight.detach().T for i, _, _ in made]))
        self.again = nn.Parameter(torch.stack([u for _, u, _ in made]))
        self.shift = nn.Parameter(torch.zeros(s, 1, c))
        self.out = nn.Parameter(torch.stack([o.weight.detach().T for _, _, o in made]))
        self.bias = nn.Parameter(torch.zeros(s, 1, 10))
        self.norm = Norms(kind.partition(",")[0], s, c)
        self.sets = [self.norm.running] * STEPS if "each" in kind else None

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), x.shape[1], self.again.shape[-1])
        for t in range(x.shape[2]):
            z = torch.baddbmm(torch.baddbmm(self.shift, x[:, :, t], self.inward), h, self.again)
            if self.sets:
                self.norm.running = self.sets[t]
            h = torch.tanh(self.norm(z))
            if self.sets:
                self.sets[t] = self.norm.running
        return torch.baddbmm(self.bias, h, self.out)


def recurrent(seeds: int = 5, epochs: int = 3, rates: tuple = (0.1, 0.3, 1.0), batch: int = 16, most: int = 7) -> dict:
    """Digits, read row by row; in training 0 to `most` empty rows come before, as many for all of a batch."""
    images = data.mnist5k()
    rows, tests = (F.avg_pool2d(x, 2)[:, 0] for x in (images.train_x, images.test_x))  # [n, 14, 14]
    each, n, found = [(seed, lr) for lr in rates for seed in range(seeds)], len(rows), {}
    rate = torch.tensor([lr for _, lr in each]).view(-1, 1, 1)
    orders = torch.stack([torch.cat([torch.randperm(n, generator=g) for _ in range(epochs)])
                          for g in (torch.Generator().manual_seed(1000 + seed) for seed, _ in each)])
    delayed = lambda x, k: F.pad(x, (0, 0, k, 0))
    for kind in ("none", "BatchNorm", "BatchNorm, each step", "LayerNorm"):
        for vary in (False, True):
            model, g = ManyRNNs(kind, [seed for seed, _ in each]), torch.Generator().manual_seed(0)
            parameters = list(model.parameters())
            for i in range(0, epochs * n - batch + 1, batch):
                part = orders[:, i:i + batch]
                k = int(torch.randint(most + 1, (), generator=g)) if vary else 0
                logits = model(delayed(rows[part], k))
                loss = F.cross_entropy(logits.flatten(0, 1), images.train_y[part].flatten(), reduction="sum") / batch
                with torch.no_grad():
                    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                    size = sum(grad.square().sum((1, 2), keepdim=True) for grad in grads if grad is not None).sqrt()
                    for p, grad in zip(parameters, grads):
                        if grad is not None:
                            p.addcmul_(grad, rate / size.clamp(min=1), value=-1)  # a gradient longer than 1 is cut to 1
            model.eval()
            with torch.no_grad():
                error = lambda k: 1 - (model(delayed(tests, k).expand(len(each), -1, -1, -1)).argmax(-1) == images.test_y).float().mean(1)
                errors = torch.stack([error(k) for k in range(most + 1)]).mean(0) if vary else error(0)
            found.setdefault(kind, {})["different lengths" if vary else "one length"] = best_rate(errors.view(len(rates), seeds), rates)
    return {"what": f"test error of a tanh network with 64 units that reads mnist5k at 14x14 row by row, {epochs} epochs of SGD, gradients cut to length 1, "
                    f"batches of {batch}, best of the rates {rates}, {seeds} seeds, mean and 95% interval; one length: 14 rows; different lengths: 0 to {most} empty rows "
                    f"come before them, as many for all of a batch, in training and (averaged) in the test", "error": found}


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
        difference = [mine["after"] - other["after"] for mine, other in zip(runs, found["plain"]["runs"])]
        found[name]["minus plain"] = {"mean": interval(difference), "each": [round(d, 3) for d in difference]}
    return {"what": f"pre-norm transformer (width 64, 6 layers) on pycode, Adam 2e-3 with 30 steps of warm-up, the rate times 10 from step 70; "
                    f"loss (nats) of steps 60 to 69 and of the last 20 of {steps}, and its difference to plain seed by seed; largest activation after any block; {seeds} seeds", "arms": found}


if __name__ == "__main__":
    main(__file__, mlp, lower_rates, rates, brake, convnet, recurrent, depth, embedding)
