"""The network that lab 21 prunes, as a dict of tensors: surgery takes it apart and puts it together again.

    images = pruning.glyphs()                           # 36 classes, at half their size
    state = pruning.network(find_lab("21_pruning"))     # trained by make_network.py
    logits = pruning.forward(state, images.test_x)      # whatever the widths
    net = pruning.module(state)                         # the same as a module, to be trained; state_of(net) is the way back
    train.train(net, images, optimizer=pruning.optimizer(masked_step, masks_at), ...)

A state holds, for each convolution k, `convs.k.weight` [o, i, 3, 3] and its BatchNorm's `norms.k.weight`, `.bias`,
`.running_mean` and `.running_var` [o]; then `head.weight` [classes, c] and `head.bias`.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from course import data, models

State = dict[str, Tensor]
Masks = list[Tensor]
CHANNELS, CLASSES = (32, 64, 128), 36
FILE = "network.safetensors"


def glyphs(n: int = 12_000, seed: int = 0) -> data.Images:
    """Digits and capital letters [1, 14, 14]; the last sixth is for testing."""
    return half_size(data.glyphs(n, CLASSES, 0.5, seed))


def half_size(images: data.Images) -> data.Images:
    return replace(images, train_x=F.avg_pool2d(images.train_x, 2), test_x=F.avg_pool2d(images.test_x, 2))


# --- the network -----------------------------------------------------------------------------------------------------

def network(folder: Path) -> State:
    """The trained network of channels 32-64-128, as make_network.py left it in `folder`."""
    return {name: t.float() for name, t in load_file(Path(folder) / FILE).items()}


def save(folder: Path, state: State) -> None:
    """As float16, so that the file stays small."""
    save_file({name: t.half().contiguous() for name, t in state.items()}, Path(folder) / FILE)


def depth(state: State) -> int:
    """The number of convolutions."""
    return sum(name.startswith("convs.") for name in state)


def weights(state: State) -> dict[str, Tensor]:
    """What can be pruned: the convolutions' weights and the head's, in the order of the layers."""
    return {name: state[name] for name in [*(f"convs.{k}.weight" for k in range(depth(state))), "head.weight"]}


def gains(state: State, eps: float = 1e-5) -> list[Tensor]:
    """What each BatchNorm multiplies its channels by, gamma / sqrt(var + eps): [o] for each convolution."""
    return [state[f"norms.{k}.weight"] / (state[f"norms.{k}.running_var"] + eps).sqrt() for k in range(depth(state))]


def forward(state: State, x: Tensor, gates: Sequence[Tensor] | None = None) -> Tensor:
    """Logits [batch, classes] of images [batch, 1, h, w], as models.ConvNet computes them in evaluation mode.

    gates   for each convolution a factor for each of its channels [o], after the ReLU; 0 masks a filter
    """
    for k in range(depth(state)):
        norm = {part: state[f"norms.{k}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")}
        x = F.batch_norm(F.conv2d(x, state[f"convs.{k}.weight"], padding=1), **norm).relu_()  # [batch, o, h, w]
        if gates is not None:
            x = x * gates[k].view(-1, 1, 1)
        if k + 1 < depth(state):
            x = _max_of_four(x)
    means = x.mean((2, 3))  # [batch, o]
    return F.linear(means, state["head.weight"], state["head.bias"])


def _max_of_four(x: Tensor) -> Tensor:
    """F.max_pool2d(x, 2), without noting where the maxima are: on a CPU that would take as long as the convolutions."""
    h, w = (size // 2 * 2 for size in x.shape[2:])
    x = torch.maximum(x[:, :, 0:h:2, :w], x[:, :, 1:h:2, :w])
    return torch.maximum(x[..., 0::2], x[..., 1::2])


def accuracy(state: State, x: Tensor, y: Tensor, gates: Sequence[Tensor] | None = None) -> float:
    """Share 0..1 of right answers."""
    with torch.no_grad():
        right = sum((forward(state, a, gates).argmax(1) == b).sum().item() for a, b in zip(x.split(500), y.split(500)))
    return right / len(y)


def multiply_adds(state: State, side: int = 14) -> int:
    """Of one image [1, side, side], from the shapes of the weights alone: zeros count like other numbers."""
    total = state["head.weight"].numel()
    for k in range(depth(state)):
        total += state[f"convs.{k}.weight"].numel() * side**2
        side //= 2
    return total


def masked(state: State, masks: Iterable[Tensor]) -> State:
    """A copy whose weights are zero where their mask is False; the masks come in the order of `weights`."""
    return state | {name: w * mask for (name, w), mask in zip(weights(state).items(), masks)}


def gradients(state: State, x: Tensor, y: Tensor, batch: int = 100) -> list[Tensor]:
    """The gradients of the mean loss of each batch of images, one after another: [batches, *shape] for each of `weights`."""
    free = {name: w.detach().requires_grad_() for name, w in weights(state).items()}
    found = [torch.autograd.grad(F.cross_entropy(forward(state | free, a), b), list(free.values()))
             for a, b in zip(x.split(batch), y.split(batch))]
    return [torch.stack(grads) for grads in zip(*found)]


# --- training --------------------------------------------------------------------------------------------------------

def module(state: State) -> models.ConvNet:
    """The network as a module, with the widths that the shapes say, in evaluation mode."""
    channels = [state[f"convs.{k}.weight"].shape[0] for k in range(depth(state))]
    net = models.ConvNet(channels, len(state["head.bias"]))
    net.load_state_dict(state, strict=False)  # BatchNorm's count of batches is not kept
    return net.eval().to(memory_format=torch.channels_last)  # on a CPU it learns in two thirds of the time


def state_of(net: models.ConvNet) -> State:
    return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in net.state_dict().items() if t.is_floating_point()}


def optimizer(step: Callable, masks_at: Callable[[int, list[Tensor]], Masks | None], **hyper: float) -> Callable:
    """An optimizer for `train.train` that prunes.

    step      step(param, grad, state, mask, lr=..., **hyper) -> (param, state), as lab 21 writes it
    masks_at  before step t = 0, 1, ... it is called with t and the weights (in the order of `weights`), and gives their
              masks; None: those of the step before, at first all True
    """
    return functools.partial(_Masked, step=step, masks_at=masks_at, hyper=hyper)


class _Masked:
    def __init__(self, parameters: Iterable[Tensor], step: Callable, masks_at: Callable, hyper: dict):
        self.parameters, self.function, self.masks_at, self.hyper = list(parameters), step, masks_at, hyper
        self.param_groups: list[dict] = [{}]  # `train` writes the learning rate here
        self.states: list[dict] = [{} for _ in self.parameters]
        self.masks = [torch.ones_like(p, dtype=torch.bool) for p in self.parameters]
        self.pruned = [i for i, p in enumerate(self.parameters) if p.ndim > 1]  # not the vectors of BatchNorm and the head
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:
        plain = lambda t: t.detach().clone(memory_format=torch.contiguous_format)
        masks = self.masks_at(self.t, [plain(self.parameters[i]) for i in self.pruned])
        for i, mask in zip(self.pruned, masks or []):
            self.masks[i] = mask
        for i, p in enumerate(self.parameters):
            new, self.states[i] = self.function(plain(p), plain(p.grad), self.states[i], self.masks[i], **self.param_groups[0], **self.hyper)
            p.copy_(new)
        self.t += 1
