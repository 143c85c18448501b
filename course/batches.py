"""What is a batch size worth? One small network trained at many learning rates at once, and counted steps.

`tasks` lists classification tasks from easy to hard, each with its network. `race` trains copies of the network, one for
each pair of seed and learning rate, by batched matrix products, until the training loss is below a target. `best_steps`
repeats that for falling batch sizes; `follow` looks at one run at several moments. `NoisyBowl` is a task
whose gradient noise is known.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from course import data

Params = list[Tensor]  # weight [copies, in, out], bias [copies, 1, out], weight, bias, ...
EVAL = 512  # examples whose loss decides whether the target is reached


@dataclass(frozen=True, repr=False)
class Task:
    """Examples x [n, d] float32 (mean 0), classes y [n], and the widths of the network, d and the classes included."""
    name: str
    x: Tensor
    y: Tensor
    widths: tuple[int, ...]

    def __repr__(self) -> str:
        return f"{self.name}: {len(self.x):,} examples, network {'-'.join(map(str, self.widths))}"


# --- the tasks -------------------------------------------------------------------------------------------------------

def tasks() -> dict[str, Callable[[], Task]]:
    """Ways to make each task by name; what takes time happens when one is called."""
    named = {
        "digits, even or odd": lambda: _images(data.digits(), 16, fold=2),
        "digits": lambda: _images(data.digits(), 32),
        "mnist5k, even or odd": lambda: _images(data.mnist5k(), 64, fold=2),
        "mnist5k": lambda: _images(data.mnist5k(), 64),
        "mnist5k, narrow": lambda: _images(data.mnist5k(), 12),
        "mnist5k, wide": lambda: _images(data.mnist5k(), 192),
        "mnist5k, 20% random labels": lambda: _images(data.mnist5k(), 64, random=0.2),
        "mnist5k, 50% random labels": lambda: _images(data.mnist5k(), 64, random=0.5),
        "pycode, 32 units": lambda: _text(32),
        "pycode, 128 units": lambda: _text(128),
    }
    for classes in (10, 36, 62):
        for words, distortion in (("mild", 0.3), ("strong", 0.8)):
            named[f"glyphs {classes}, {words}"] = functools.partial(_glyphs, classes, distortion)
    return {name: (lambda name=name, make=make: Task(name, *make())) for name, make in named.items()}


def _glyphs(classes: int, distortion: float) -> tuple:
    return _images(data.glyphs(6000, classes, distortion), 64)


def _images(images: data.Images, hidden: int, fold: int | None = None, random: float = 0.0) -> tuple:
    """Training images at half their size (8x8 ones whole). `fold`: y modulo this; `random`: the share of labels
    that are drawn anew."""
    x, y, classes = images.train_x, images.train_y, images.classes
    if fold:
        y, classes = y % fold, fold
    if random:
        g = torch.Generator().manual_seed(0)
        y = torch.where(torch.rand(len(y), generator=g) < random, torch.randint(classes, y.shape, generator=g), y)
    x = (F.avg_pool2d(x, 2) if x.shape[-1] == 28 else x).flatten(1)
    return *_centred(x, y), (x.shape[1], hidden, classes)


def _text(hidden: int, length: int = 8, n: int = 20_000) -> tuple:
    """The next byte of Python source from the eight before it; a byte is a fixed random vector of 16 numbers."""
    text, g = data.pycode(1_000_000), torch.Generator().manual_seed(0)
    x, y = text.batch(n, length, g)
    vectors = torch.randn(256, 16, generator=g)
    return *_centred(vectors[x].flatten(1), y[:, -1]), (16 * length, hidden, 256)


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x - x.mean(0)
    return x / x.std(), y


# --- copies of a network ---------------------------------------------------------------------------------------------

def start(widths: Sequence[int], copies: int, seed: int) -> Params:
    """`copies` equal networks with He's initial weights and biases zero."""
    g = torch.Generator().manual_seed(seed)
    params = []
    for i, o in zip(widths, widths[1:]):
        weight = torch.randn(1, i, o, generator=g) * math.sqrt(2 / i) * (1 if o != widths[-1] else 0.5)
        params += [weight.repeat(copies, 1, 1), torch.zeros(copies, 1, o)]
    return params


def losses(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of each copy (nats) [copies], on its own examples x [copies, n, d], y [copies, n]."""
    *_, (_, logits) = layers(params, x)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


def layers(params: Params, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What goes into each linear layer and what comes out of it, both [copies, n, width]; ReLUs between."""
    for weight, bias in zip(params[::2], params[1::2]):
        out = torch.baddbmm(bias, x, weight)
        yield x, out
        x = F.relu(out)


def sgd(task: Task, batch: int, rates: Tensor, seeds: Sequence[int]) -> Iterator[Params]:
    """The parameters before the first step, after one, two, ... Copies come by seed, then by rate; the copies of one
    seed see the same batches."""
    k, n = len(rates), len(task.x)
    params = [torch.cat(p) for p in zip(*(start(task.widths, k, seed) for seed in seeds))]
    step = rates.repeat(len(seeds)).view(-1, 1, 1)
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    while True:
        yield params
        rows = torch.stack([torch.randint(n, (batch,), generator=g) for g in generators]).repeat_interleave(k, 0)
        free = [p.detach().requires_grad_() for p in params]
        grads = torch.autograd.grad(losses(free, task.x[rows], task.y[rows]).sum(), free)
        with torch.no_grad():
            params = [p - step * g for p, g in zip(params, grads)]


@torch.no_grad()
def _evaluate(params: Params, task: Task) -> Tensor:
    """The training loss of each copy [copies], on a fixed sample."""
    x, y = task.x[:EVAL], task.y[:EVAL]
    return losses(params, x.expand(len(params[0]), *x.shape), y.expand(len(params[0]), *y.shape))


# --- counting steps --------------------------------------------------------------------------------------------------

def race(task: Task, batch: int, rates: Tensor, target: float, seeds: Sequence[int] = (0,), most: int = 10_000) -> Tensor:
    """Steps until the training loss is below `target` [seeds, rates]; inf where the race ended before.

    It ends at the step `most`, or once more than half of the seeds have arrived at some rate, and a quarter later. The
    loss is looked at every 5% of the steps, and between two looks the crossing is interpolated.
    """
    arrived = torch.full((len(seeds), len(rates)), math.inf)
    end, look, last, before = most, 0, 0, None
    for step, params in enumerate(sgd(task, batch, rates, seeds)):
        if step < look:
            continue
        now = _evaluate(params, task).view_as(arrived)
        if before is not None:
            share = ((before - target) / (before - now)).clamp(0, 1)
            new = (now < target) & arrived.isinf()
            arrived = torch.where(new, last + share * (step - last), arrived)
        if end == most and (arrived.isfinite().sum(0) > len(seeds) / 2).any():
            end = min(most, int(1.25 * step) + 1)
        if step >= end or not now.isfinite().any():
            return arrived
        before, last, look = now, step, max(step + 1, int(1.05 * step))
    raise AssertionError("sgd never ends")


def target_loss(task: Task, share: float = 0.2, steps: int = 1000, batch: int = 256, rates: Sequence[float] = (0.1, 0.2, 0.4, 0.8),
                ) -> float:
    """The loss at which only `share` is left of what `steps` steps with a large batch and the best rate take away."""
    run = sgd(task, batch, torch.tensor(rates), (0,))
    first = _evaluate(next(run), task)[0]
    for _ in range(steps):
        params = next(run)
    floor = _evaluate(params, task).nan_to_num(nan=math.inf).min()
    return float(floor + share * (first - floor))


def best_steps(task: Task, batches: Sequence[int], target: float, seeds: Sequence[int] = (0,), most: int = 10_000,
               ) -> dict[int, tuple[Tensor, float]]:
    """For each batch size the steps to the target, one number a seed, at the learning rate whose median is best, and
    that rate. Batches fall; the rates that are tried lie around the best one of the batch before."""
    found, rates = {}, 0.5 * 1.5 ** torch.arange(-5.0, 4.0)
    for batch, smaller in zip(ordered := sorted(batches, reverse=True), [*ordered[1:], 1]):
        steps = race(task, batch, rates, target, seeds, most)  # [seeds, rates]
        best = int(steps.median(0).values.argmin())
        if not steps[:, best].median().isfinite():
            break
        found[batch] = steps[:, best], float(rates[best])
        # The best rate falls more slowly than the batch; by the root of it is the middle of what is possible.
        rates = rates[best] * (smaller / batch) ** 0.5 * 1.35 ** torch.arange(-3.0, 4.0)
    return found


# --- what the gradient noise really is --------------------------------------------------------------------------------

def squared_norms(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The squared length of each example's gradient [n] and that of their mean, for one network (copies = 1).

    No gradient of a single example is stored: for a linear layer it is the outer product of what went in and of the
    gradient of what came out, and its squared length is the product of the two squared lengths.
    """
    ins, outs = zip(*layers([p.detach().requires_grad_() for p in params], x[None]))
    loss = F.cross_entropy(outs[-1][0], y, reduction="sum")
    each, mean = torch.zeros(len(x)), 0.0
    for a, delta in zip(ins, torch.autograd.grad(loss, outs)):
        a = a.detach()
        each += (delta.square().sum(-1) * (a.square().sum(-1) + 1))[0]  # 1: the bias
        mean += float((a.mT @ delta / len(x)).square().sum() + delta.mean(1).square().sum())
    return each, mean


def exact_noise_scale(params: Params, task: Task) -> float:
    """tr(Σ) / |G|² with all the examples, for one network: nothing is estimated."""
    each, mean = squared_norms(params, task.x, task.y)
    return (float(each.mean()) - mean) / mean


def follow(task: Task, batch: int, rate: float, steps: Sequence[int], look: Callable[[Params], object], seed: int = 0) -> list:
    """What `look` says of the network after each of `steps` of one training run."""
    wanted, answers = set(steps), []
    for step, params in enumerate(sgd(task, batch, torch.tensor([rate]), (seed,))):
        if step in wanted:
            answers.append(look(params))
        if step >= max(wanted):
            return answers
    raise AssertionError("sgd never ends")


# --- a task whose noise is known -------------------------------------------------------------------------------------

class NoisyBowl:
    """The mean loss of SGD on a quadratic whose gradients are noisy: exact, without a random number.

    Twenty directions with curvatures from 1 to `flattest`. Every example adds the same noise at every place, so that the
    noise scale grows as the gradient shrinks. The loss is 1 at the start.
    """

    def __init__(self, flattest: float = 0.1, target: float = 1e-3):
        self.h = torch.logspace(0, math.log10(flattest), 20, dtype=torch.float64)
        self.start, self.noise, self.target = 0.1 / self.h, 0.1 * self.h, target

    def cost(self, schedule: Callable[[float, int, float], tuple[int, float]], price: float,
             batch: int = 8) -> tuple[float, int, int]:
        """Examples + price * steps until the loss is at the target, the steps, and the examples. `schedule` gives
        batch and learning rate from noise scale, present batch and eps_max."""
        square, steps, examples = self.start.clone(), 0, 0  # E[theta^2] in each direction
        while float(self.h @ square) / 2 > self.target and steps < 2000:
            curvature = float(self.h**3 @ square)
            largest = float(self.h**2 @ square) / curvature
            batch, rate = schedule(float(self.h @ self.noise) / curvature, batch, largest)
            square = (1 - rate * self.h).square() * square + rate**2 * self.noise / batch
            steps, examples = steps + 1, examples + batch
        return examples + price * steps, steps, examples

    def fixed(self, batch: int, price: float) -> tuple[float, int, int]:
        """The same for a fixed batch that has the best learning rate at every step."""
        return self.cost(lambda noise_scale, _, largest: (batch, largest / (1 + noise_scale / batch)), price)

    def best_fixed(self, price: float) -> tuple[float, int, int]:
        """The cheapest of the fixed batch sizes 4, 6, 8, 11, ..., 2896."""
        return min(self.fixed(round(2 ** (k / 2)), price) for k in range(4, 24))
