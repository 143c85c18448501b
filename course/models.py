"""Four small networks that the labs train: a multi-layer perceptron, a convolutional net, and two transformers, for text and
for images.

Each fits on a screen and trains in seconds to minutes on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def n_parameters(model: nn.Module) -> int:
    """How many numbers the model learns; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


class MLP(nn.Module):
    """Fully connected layers of the given widths, input first: MLP((784, 128, 10)) has one hidden layer.

    Takes [batch, ...] whose other dimensions multiply to widths[0]; gives logits [batch, widths[-1]].
    `norm` makes a layer from a width, such as nn.LayerNorm or nn.BatchNorm1d; it stands before the activation.
    """

    def __init__(self, widths: Sequence[int], activation: Callable[[Tensor], Tensor] = F.relu,
                 norm: Callable[[int], nn.Module] | None = None):
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"an MLP needs at least an input and an output width, not {tuple(widths)}")
        self.activation = activation
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(norm(w) if norm else nn.Identity() for w in widths[1:-1])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # [batch, widths[0]]
        for linear, norm in zip(self.linears, self.norms):
            x = self.activation(norm(linear(x)))  # [batch, width]
        return self.linears[-1](x)  # [batch, widths[-1]]


class ConvNet(nn.Module):
    """3x3 convolutions of the given channels, each halving the image, then the mean over places and one linear layer.

    Takes [batch, in_channels, height, width] of any size from 2 ** (len(channels) - 1) up, so 8x8 and 28x28 both fit;
    gives logits [batch, classes]. `norm` puts a BatchNorm after each convolution.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128), classes: int = 10, in_channels: int = 1,
                 norm: bool = True):
        super().__init__()
        ins = (in_channels, *channels)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=not norm) for i, o in zip(ins, channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if norm else nn.Identity() for o in channels)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if i:
                x = F.max_pool2d(x, 2)  # [batch, c, h / 2, w / 2]
            x = F.relu(norm(conv(x)))  # [batch, channels[i], h, w]
        return self.head(x.mean((2, 3)))  # [batch, classes]


class Block(nn.Module):
    """One transformer layer: attention to earlier places (not `causal`: to all), then two linear layers; `norm` "pre" or
    "post" as below."""

    def __init__(self, d: int, heads: int, norm: str, causal: bool = True):
        super().__init__()
        self.heads, self.pre, self.causal = heads, norm == "pre", causal
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def attention(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # [batch, head, t, d/h]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # [batch, head, t, d/h]
        return self.out(y.transpose(1, 2).reshape(b, t, d))  # [batch, t, d]

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))  # [batch, t, d]

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class Transformer(nn.Module):
    """A small decoder-only transformer (after GPT-2, Radford et al. 2019).

    Takes tokens [batch, t] of any integer type, t <= length; gives logits [batch, t, vocab] for each next token.
    `norm`: "pre" normalises what goes into a branch, "post" what comes after the sum (Xiong et al. 2020 compare them).
    """

    def __init__(self, vocab: int = 256, d: int = 128, layers: int = 4, heads: int = 4, length: int = 128,
                 norm: str = "pre"):
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f'norm must be "pre" or "post", not {norm!r}')
        if d % heads:
            raise ValueError(f"d = {d} cannot be shared evenly among {heads} heads")
        self.length = length
        self.tokens, self.places = nn.Embedding(vocab, d), nn.Embedding(length, d)
        self.blocks = nn.ModuleList(Block(d, heads, norm) for _ in range(layers))
        self.norm = nn.LayerNorm(d) if norm == "pre" else nn.Identity()  # "post" has just normalised
        self.head = nn.Linear(d, vocab, bias=False)
        self.head.weight = self.tokens.weight  # the same table reads and writes tokens
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # Layers that write into the residual sum start smaller, so that the sum does not grow with depth.
                std = 0.02 / (2 * layers) ** 0.5 if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        t = tokens.shape[1]
        if t > self.length:
            raise ValueError(f"{t} tokens do not fit: this model was made for at most {self.length}")
        x = self.tokens(tokens.long()) + self.places(torch.arange(t, device=tokens.device))  # [batch, t, d]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # [batch, t, vocab]


class VisionTransformer(nn.Module):
    """A small vision transformer (after Dosovitskiy et al. 2021): patches are its tokens, and each sees all others.

    Takes [batch, channels, side, side]; gives logits [batch, classes], from the mean over the patches.
    """

    def __init__(self, classes: int = 10, d: int = 64, layers: int = 2, heads: int = 4, patch: int = 7, side: int = 28,
                 channels: int = 1):
        super().__init__()
        if side % patch or d % heads:
            raise ValueError(f"patches of {patch} must fill a side of {side}, and {heads} heads share d = {d} evenly")
        self.patches = nn.Conv2d(channels, d, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, d))
        self.blocks = nn.ModuleList(Block(d, heads, "pre", causal=False) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places  # [batch, patches, d]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # [batch, classes]
