"""A network as a stack of layers, each with all its parameters in one vector: the form in which training is sharded.

    net = layers.transformer(vocab=256, d=64)   # a transformer as [embedding, block, block, ..., head]
    params = net.vectors()                      # one flat tensor for each layer
    backward = net.backward(x, y)               # backward(params, hook): the whole network, by autograd and its hooks
    forward, backward = net.pieces(x, y)        # the same layer by layer, for whoever holds one layer at a time
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from course.models import Block


class Embedding(nn.Module):
    def __init__(self, vocab: int, d: int, length: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, d), nn.Embedding(length, d)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))  # [batch, t, d]


class Head(nn.Module):
    def __init__(self, vocab: int, d: int):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)
        nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x))  # [batch, t, vocab]


class Layers:
    """`modules` are applied one after the other; the loss is the cross entropy of what the last one gives.

    A tensor that several modules share belongs to the first of them.
    """

    def __init__(self, modules: list[nn.Module]):
        self.modules, seen = modules, set()
        self.groups = []    # the parameters of each layer
        for module in modules:
            self.groups.append([p for p in module.parameters() if id(p) not in seen and not seen.add(id(p))])
        self.sizes = [sum(p.numel() for p in group) for group in self.groups]

    def vectors(self) -> list[Tensor]:
        return [parameters_to_vector(group).detach().clone() for group in self.groups]

    def single(self) -> Layers:
        """The same network with each parameter tensor as a layer of its own: for buckets of gradients."""
        other = Layers(self.modules)
        other.groups = [[p] for group in self.groups for p in group]
        other.sizes = [p.numel() for group in self.groups for p in group]
        return other

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        for module in self.modules:
            x = module(x)
        return F.cross_entropy(x.flatten(0, -2), y.flatten())

    def backward(self, x: Tensor, y: Tensor) -> Callable:
        """backward(params, hook): hook(i, grad) is called by autograd as soon as layer i's gradient is complete.

        `backward.loss` is then the loss of this batch.
        """
        def backward(params: list[Tensor], hook: Callable) -> None:
            for group, vector in zip(self.groups, params):
                with torch.no_grad():
                    vector_to_parameters(vector, group)
            missing, removers = [len(group) for group in self.groups], []

            def ready(i: int) -> None:
                missing[i] -= 1
                if missing[i] == 0:
                    hook(i, parameters_to_vector([p.grad for p in self.groups[i]]).detach())
                    for p in self.groups[i]:
                        p.grad = None
            for i, group in enumerate(self.groups):
                removers += [p.register_post_accumulate_grad_hook(lambda _, i=i: ready(i)) for p in group]
            try:
                loss = self.loss(x, y)
                loss.backward()
            finally:
                for remover in removers:
                    remover.remove()
            backward.loss = loss.detach()
        return backward

    def pieces(self, x: Tensor, y: Tensor) -> tuple[Callable, Callable]:
        """forward(i, weight, x) -> output, the last one's being the loss; backward(i, weight, x, grad) -> (grad of x, of weight).

        backward computes the layer anew, so that nothing but its input has to be kept.
        """
        def apply(i: int, weight: Tensor, x: Tensor) -> Tensor:
            names, shapes = zip(*((name, p.shape) for name, p in self.modules[i].named_parameters()))
            parts = weight.split([shape.numel() for shape in shapes])
            out = functional_call(self.modules[i], {n: p.view(s) for n, p, s in zip(names, parts, shapes)}, (x,))
            return F.cross_entropy(out.flatten(0, -2), y.flatten()) if i == len(self.modules) - 1 else out

        @torch.no_grad()
        def forward(i: int, weight: Tensor, x: Tensor) -> Tensor:
            return apply(i, weight, x)

        @torch.enable_grad()
        def backward(i: int, weight: Tensor, x: Tensor, grad: Tensor | None) -> tuple[Tensor | None, Tensor]:
            weight = weight.detach().requires_grad_()
            learned = x.is_floating_point()
            x = x.detach().requires_grad_(learned)
            *grad_x, grad_weight = torch.autograd.grad(apply(i, weight, x), [x, weight] if learned else [weight], grad)
            return grad_x[0] if learned else None, grad_weight
        return forward, backward


def transformer(vocab: int = 256, d: int = 64, layers: int = 4, heads: int = 4, length: int = 64, seed: int = 0,
                tied: bool = False) -> Layers:
    """A small transformer as a stack. `tied`: the head reads with the table that the embedding writes with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last = Embedding(vocab, d, length), Head(vocab, d)
        if tied:
            last.out.weight = first.tokens.weight
        return Layers([first, *(Block(d, heads, "pre") for _ in range(layers)), last])
