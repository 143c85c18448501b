"""Two networks for lab 23: a large teacher and a small student of the same family, and their trained weights.

    teacher, student = distil.networks(find_lab("23_distillation"))    # as make_networks.py trained them, in evaluation mode
    maps = teacher.maps(x)                                             # what each layer of convolutions gives
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LARGE, SMALL = (40, 80, 128), (12, 24, 40)  # channels of the teacher and of the student
FILE = "networks.safetensors"


class ConvNet(nn.Module):
    """Convolutions of stride 2, the first 5x5 and the others 3x3, each with BatchNorm and ReLU; the mean over places; one linear layer.

    Takes [batch, 1, height, width]; gives logits [batch, classes].
    """

    def __init__(self, channels: Sequence[int] = SMALL, classes: int = 36):
        super().__init__()
        ins, kernels = (1, *channels), (5, *[3] * (len(channels) - 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, stride=2, padding=k // 2, bias=False)
                                   for i, o, k in zip(ins, channels, kernels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in channels)
        self.head = nn.Linear(channels[-1], classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What each layer of convolutions gives: [batch, channels[k], h / 2^(k+1), w / 2^(k+1)]."""
        found = []
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))  # [batch, c, h, w]
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[-1].mean((2, 3)))  # [batch, classes]


def save(folder: Path, teacher: ConvNet, student: ConvNet, images: Tensor, labels: Tensor) -> None:
    """Weights as float16, and some images [n, 1, h, w] as bytes, so that the file stays small."""
    tensors = {f"{name}.{key}": t.half() for name, net in (("teacher", teacher), ("student", student))
               for key, t in net.state_dict().items() if t.is_floating_point()}
    save_file(tensors | {"images": (255 * images).round().to(torch.uint8), "labels": labels.to(torch.uint8)}, folder / FILE)


def states(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Parameters and running averages of "teacher" and "student" by name, in float32."""
    tensors = load_file(Path(folder) / FILE)
    return {who: {name.removeprefix(f"{who}."): t.float() for name, t in tensors.items() if name.startswith(f"{who}.")}
            for who in ("teacher", "student")}


def networks(folder: Path) -> tuple[ConvNet, ConvNet]:
    """(teacher, student) in evaluation mode."""
    made = []
    for who, state in states(folder).items():
        channels = [state[f"convs.{k}.weight"].shape[0] for k in range(sum(name.startswith("convs.") for name in state))]
        net = ConvNet(channels, len(state["head.bias"]))
        net.load_state_dict(state, strict=False)  # the number of batches seen is not kept
        made.append(net.eval())
    return made[0], made[1]


def fresh_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Images [n, 1, h, w] that neither network has been trained on, and their labels [n]."""
    tensors = load_file(Path(folder) / FILE)
    return tensors["images"].float() / 255, tensors["labels"].long()
