"""A small transformer whose every result passes through a chosen number format, for lab 34.

    net = precision.Rounded(models.Transformer(...), torch.bfloat16, keep={"residual"})
    run = precision.Trainer(net, text, lr=1e-3, apply=bf16_update).run(0, 300)

`Rounded` computes each operation in float32 and rounds what comes out to the format, and the gradient that comes back as
well: this is what kernels for 16 bits do, which add up in float32 registers. So every format costs the same time here,
also one that the processor does not know; and a segment can be kept in float32 to see what that is worth.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.data import Text
from course.models import Transformer

# What a block computes, in its order; "logits" is the head's.
SEGMENTS = ("norm", "qkv", "scores", "softmax", "attention", "out", "up", "gelu", "down", "residual", "logits")


class _Through(torch.autograd.Function):
    """To the format and back to float32, on the way forward and on the way back."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).float(), None


class Rounded(nn.Module):
    """`model` with every result rounded to `dtype` (None: float32, nothing is rounded), except for the segments in `keep`.

    After a forward pass `seen` holds what each segment gave, by name and in the order of computing: "block 2 scores", "logits".
    A block has two norms and two residuals, "norm 1" and "norm 2": a name that came twice would keep the first one's place.
    real    compute in the dtype itself, as the hardware can, instead of rounding float32 results: for measuring time
    """

    def __init__(self, model: Transformer, dtype: torch.dtype | None = None, keep: Collection[str] = (), real: bool = False):
        super().__init__()
        if unknown := set(keep) - set(SEGMENTS):
            raise ValueError(f"no segment {', '.join(sorted(unknown))}; there are {', '.join(SEGMENTS)}")
        self.model, self.dtype, self.keep, self.real = model, dtype, frozenset(keep), real
        self.length = model.length
        self.seen: dict[str, Tensor] = {}

    def round(self, x: Tensor) -> Tensor:
        if self.dtype is None:
            return x
        return x.to(self.dtype) if self.real else _Through.apply(x, self.dtype)

    def wide(self, segment: str, *xs: Tensor) -> list[Tensor]:
        """What goes into a segment: in float32 where it is kept so."""
        return [x.float() for x in xs] if segment in self.keep else list(xs)

    def at(self, segment: str, x: Tensor, block: int | None = None, which: str = "") -> Tensor:
        """What comes out of a segment; `which` of a block's two, if it has two."""
        if segment not in self.keep:
            x = self.round(x)
        self.seen[("" if block is None else f"block {block} ") + segment + which] = x.detach()
        return x

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        bias = None if layer.bias is None else self.round(layer.bias)
        return F.linear(self.round(x), self.round(layer.weight), bias)

    def norm(self, x: Tensor, layer: nn.LayerNorm, i: int | None = None, which: str = "") -> Tensor:
        x, weight, bias = self.wide("norm", self.round(x) if "norm" not in self.keep else x, self.round(layer.weight), self.round(layer.bias))
        return self.at("norm", F.layer_norm(x, x.shape[-1:], weight, bias), i, which)

    def attention(self, x: Tensor, block: nn.Module, i: int) -> Tensor:
        b, t, d = x.shape
        qkv = self.at("qkv", self.linear(x, block.qkv), i)
        q, k, v = qkv.view(b, t, 3, block.heads, d // block.heads).permute(2, 0, 3, 1, 4)  # [batch, head, t, d/h]
        q, k = self.wide("scores", q, k)
        scores, = self.wide("softmax", self.at("scores", q @ k.mT / math.sqrt(d // block.heads), i))  # [batch, head, t, t]
        future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        weights = self.at("softmax", scores.masked_fill(future, -math.inf).softmax(-1), i)
        weights, v = self.wide("attention", weights if "attention" in self.keep else self.round(weights), v)
        y = self.at("attention", weights @ v, i)
        return self.at("out", self.linear(y.transpose(1, 2).reshape(b, t, d), block.out), i)

    def mlp(self, x: Tensor, block: nn.Module, i: int) -> Tensor:
        hidden = self.at("up", self.linear(x, block.up), i)
        return self.at("down", self.linear(self.at("gelu", F.gelu(hidden), i), block.down), i)

    def forward(self, tokens: Tensor) -> Tensor:
        m, t = self.model, tokens.shape[1]
        x = m.tokens(tokens.long()) + m.places(torch.arange(t, device=tokens.device))  # [batch, t, d]
        x = x if "residual" in self.keep else self.round(x)
        for i, block in enumerate(m.blocks):
            for which, layer, part in ((" 1", block.norm1, self.attention), (" 2", block.norm2, self.mlp)):
                if block.pre:
                    x = self.at("residual", x + part(self.norm(x, layer, i, which), block, i), i, which)
                else:
                    x = self.norm(self.at("residual", x + part(x, block, i), i, which), layer, i, which)
        if isinstance(m.norm, nn.LayerNorm):
            x = self.norm(x, m.norm)
        return self.at("logits", self.linear(x, m.head))  # [batch, t, vocab]


@dataclass
class Trainer:
    """Adam on a Rounded network, one numbered batch at a time, with the parts that a lab writes handed in.

    lr      a function of the batch's number, or a number
    apply   apply(weight, update, state) -> (weight, state): how the float32 update reaches the weights, which are all in one
            vector of the format `store`. None: subtracted in float32
    scale   scale(grads, scale, good_steps) -> (grads or None, scale, good_steps): dynamic loss scaling; `grads` is a list with
            one float16 vector, and None skips the step
    watch   watch(activations, grads) -> {name: number}: the thermometers, read before each step
    length  the length of the texts as a function of the batch's number; None: as long as the network allows
    """
    net: Rounded
    text: Text
    lr: Callable[[int], float] | float = 1e-3
    seed: int = 0
    batch: int = 16
    apply: Callable | None = None
    store: torch.dtype = torch.bfloat16
    scale: Callable | None = None
    first_scale: float = 2.0**16
    watch: Callable | None = None
    length: Callable[[int], int] | None = None
    moments: torch.dtype | None = None  # the format in which Adam's m and v are kept; None: float32
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None
    losses: list[float] = field(default_factory=list)
    heat: list[dict[str, float]] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)     # share of the nonzero updates that changed no weight

    def __post_init__(self):
        parameters = list(self.net.parameters())
        self.weights = torch.cat([p.detach().flatten() for p in parameters])
        if self.apply is not None:
            self.weights = self.weights.to(self.store).float()
        self.parameters, place = parameters, 0
        for p in parameters:  # each parameter is a view of the one vector
            p.data = self.weights[place:place + p.numel()].view_as(p)
            place += p.numel()
        self.m, self.v, self.t = torch.zeros_like(self.weights), torch.zeros_like(self.weights), 0
        self.state: dict = {}
        self.factor, self.good_steps = (self.first_scale if self.scale else 1.0), 0

    def data(self, number: int, split: str = "train") -> tuple[Tensor, Tensor]:
        """Batch `number` of this seed: the same at every call."""
        length = self.net.length if self.length is None else self.length(number)
        return self.text.batch(self.batch, length, torch.Generator().manual_seed(100_003 * self.seed + number), split)

    def step(self, number: int) -> float:
        """Train on batch `number` and return its loss (nats)."""
        x, y = self.data(number)
        loss = F.cross_entropy(self.net(x).flatten(0, 1), y.flatten())
        self.net.zero_grad(set_to_none=True)
        (loss * self.factor).backward()
        grad = torch.cat([p.grad.flatten() for p in self.parameters])
        self.losses.append(loss.item())
        self.scales.append(self.factor)
        if self.scale is not None:
            grads, self.factor, self.good_steps = self.scale([grad.half()], self.factor, self.good_steps)
            grad = None if grads is None else grads[0]
        if self.watch is not None:
            self.heat.append(self.watch(self.net.seen, [] if grad is None else [grad]))
        if grad is not None:
            self._adam(grad, self.lr(number) if callable(self.lr) else self.lr)
        return self.losses[-1]

    @torch.no_grad()
    def _adam(self, grad: Tensor, lr: float) -> None:
        if self.clip is not None:
            grad = grad * min(1.0, self.clip / max(float(grad.norm()), 1e-12))
        self.t += 1
        self.m.lerp_(grad, 1 - self.betas[0])
        self.v.mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
        if self.moments is not None:
            self.m, self.v = self.m.to(self.moments).float(), self.v.to(self.moments).float()
        m, v = self.m / (1 - self.betas[0]**self.t), self.v / (1 - self.betas[1]**self.t)
        update = lr * m / (v.sqrt() + self.eps)
        if self.apply is None:
            self.weights -= update
            return
        before = self.weights.to(self.store)
        after, self.state = self.apply(before, update, self.state)
        moved = update != 0
        self.lost.append(float(((after == before) & moved).sum() / moved.sum().clamp(min=1)))
        self.weights.copy_(after)

    def run(self, first: int, end: int, until: Callable[[float], bool] = lambda loss: False) -> Trainer:
        """Train on the batches `first` to `end` - 1, or until a loss for which `until` holds."""
        for number in range(first, end):
            if until(self.step(number)):
                break
        return self

    @torch.no_grad()
    def evaluate(self, batches: int = 8) -> float:
        """Mean loss on held-out text (nats): the same text every time."""
        losses = []
        for number in range(batches):
            x, y = self.text.batch(32, self.net.length, torch.Generator().manual_seed(number), "val")
            losses.append(F.cross_entropy(self.net(x).flatten(0, 1), y.flatten()).item())
        return sum(losses) / batches

    def checkpoint(self) -> dict[str, Tensor]:
        """A copy of all that training goes on from."""
        return {"weights": self.weights.clone(), "m": self.m.clone(), "v": self.v.clone(), "t": torch.tensor(self.t)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.weights.copy_(state["weights"] if self.apply is None else state["weights"].to(self.store))
        self.m, self.v, self.t = state["m"].clone(), state["v"].clone(), int(state["t"])


def transformer(seed: int = 0, d: int = 32, layers: int = 4, length: int = 32, norm: str = "pre") -> Transformer:
    """The lab's network: small enough that two hundred steps take a few seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(d=d, layers=layers, heads=4, length=length, norm=norm)


def overall(readings: dict[str, float], names: Collection[str] = ("scores", "residual", "logits")) -> dict[str, float]:
    """Readings by segment ("block 2 residual 1") as the largest of all blocks for each of `names`, and the gradient norm."""
    of = lambda name: torch.tensor([x for key, x in readings.items() if name in key.split()])
    return {name: float(of(name).max()) for name in names} | {"gradient norm": readings["gradient norm"]}


def shown(losses: list[float], rise: float = 1.0, now: int = 5, before: int = 20) -> int | None:
    """The step at which the loss shows that a run diverges: the mean of `now` losses is NaN, or `rise` above the lowest mean of
    `before` losses so far. None: it never does."""
    x = torch.tensor(losses)
    means = lambda n: x.unfold(0, n, 1).mean(1) if len(x) >= n else x.new_empty(0)     # [i]: of the n losses from i on
    recent, past = means(now), means(before).cummin(0).values
    for step in range(before + now - 1, len(x)):
        if not recent[step - now + 1] < past[step - now - before + 1] + rise:
            return step
    return None
