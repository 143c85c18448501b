"""Networks to quantise, for lab 24: a mobile-style convnet, the same with its normalisation folded, and a transformer's outliers.

A `Folded` network is a list of convolutions whose weights and inputs pass through two functions of yours:

    net = lowbits.Folded(model)                        # computes what the trained MobileNet computes
    net.on_weight = lambda i, w: fake_quantize(w, per_channel_scales(w, 4), bits=4)
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MobileNet(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolutions in turn, BatchNorm and ReLU after each (after Howard et al. 2017).

    Takes [batch, 1, height, width]; gives logits [batch, classes]. The first convolution, an ordinary one, and every
    second block halve the image.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 64), classes: int = 36):
        super().__init__()
        convs = [nn.Conv2d(1, channels[0], 3, stride=2, padding=1, bias=False)]
        for k, (i, o) in enumerate(zip(channels, channels[1:])):
            convs += [nn.Conv2d(i, i, 3, stride=1 + k % 2, padding=1, groups=i, bias=False), nn.Conv2d(i, o, 1, bias=False)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv.out_channels) for conv in convs)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))  # [batch, c, h, w]
        return self.head(x.mean((2, 3)))  # [batch, classes]


class Folded(nn.Module):
    """A trained MobileNet for inference: each BatchNorm is part of the convolution before it, the head a convolution too.

    `on_weight(i, w)` and `on_input(i, x)` are applied to the weight [o, i, kh, kw] and to the input of layer i; at first
    they change nothing. The parameters can be trained on.
    """

    def __init__(self, model: MobileNet):
        super().__init__()
        weights, biases, self.places = [], [], []
        for conv, norm in zip(model.convs, model.norms):
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            weights.append(conv.weight * gain.view(-1, 1, 1, 1))
            biases.append(norm.bias - norm.running_mean * gain)
            self.places.append({"stride": conv.stride, "padding": conv.padding, "groups": conv.groups})
        weights.append(model.head.weight[:, :, None, None])
        biases.append(model.head.bias)
        self.places.append({})
        self.weights, self.biases = (nn.ParameterList(t.detach().clone() for t in ts) for ts in (weights, biases))
        self.names = [f"{'depthwise' if p.get('groups', 1) > 1 else 'pointwise'} {i}" for i, p in enumerate(self.places)]
        self.names[0], self.names[-1] = "first", "head"
        self.on_weight: Callable[[int, Tensor], Tensor] = lambda i, w: w
        self.on_input: Callable[[int, Tensor], Tensor] = lambda i, x: x

    def forward(self, x: Tensor) -> Tensor:
        last = len(self.places) - 1
        for i, (w, b, place) in enumerate(zip(self.weights, self.biases, self.places)):
            if i == last:
                x = x.mean((2, 3), keepdim=True)
            x = F.conv2d(self.on_input(i, x), self.on_weight(i, w), b, **place)  # [batch, c, h, w]
            x = x if i == last else F.relu(x)
        return x.flatten(1)  # [batch, classes]

    def copy(self) -> Folded:
        """The same weights, to be changed or trained apart; its two functions change nothing again."""
        other = copy.copy(self)
        other.on_weight, other.on_input = lambda i, w: w, lambda i, x: x
        return copy.deepcopy(other)

    @torch.no_grad()
    def inputs(self, x: Tensor) -> list[Tensor]:
        """What comes into each layer of the network as it is when the images x [n, 1, h, w] come into the first."""
        seen, before = [], self.on_input
        self.on_input = lambda i, x: seen.append(x) or x
        try:
            self(x)
        finally:
            self.on_input = before
        return seen


@torch.no_grad()
def plant_outliers(model: nn.Module, factor: float, channels: Sequence[int] = (3, 17)) -> nn.Module:
    """A copy of a pre-norm Transformer that computes the same, but with `factor` times larger numbers in some channels.

    Large trained models have such channels by themselves (Dettmers et al. 2022). Here the gain and bias of each LayerNorm
    in a block are multiplied there, and the matching columns of the weight that reads them are divided.
    """
    model = copy.deepcopy(model)
    for block in model.blocks:
        for norm, linear in ((block.norm1, block.qkv), (block.norm2, block.up)):
            for t in (norm.weight, norm.bias):
                t[list(channels)] *= factor
            linear.weight[:, list(channels)] /= factor
    return model


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers in the blocks of a Transformer, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith("blocks")}


@torch.no_grad()
def largest_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """max |input| of each channel [k] of each linear layer in the blocks, when the tokens x [batch, length] are read."""
    found: dict[str, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args, name=name: found.update({name: args[0].abs().flatten(0, -2).amax(0)}))
             for name, m in linears(model).items()]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def replace_linears(model: nn.Module, make: Callable[[str, nn.Linear], Callable[[Tensor], Tensor]]) -> nn.Module:
    """A copy of the model in which each linear layer of the blocks computes `make(name, layer)`, from rows x [n, k] to [n, o]."""
    model = copy.deepcopy(model)
    for name, m in linears(model).items():
        m.forward = lambda x, rows=make(name, m): rows(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    return model
