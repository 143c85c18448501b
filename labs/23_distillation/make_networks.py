"""Makes networks.safetensors: the teacher, and the small network that learnt from it.

The teacher learns the labels of the lab's 10,000 training images; the small network learns the teacher's soft answers to 40,000
other images, which nobody had to label. About five minutes of one core:

    python make_networks.py          both
    python make_networks.py small    the small one anew, from the teacher as it is stored
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from course import data, distil, train

torch.set_num_threads(1)
FOLDER = Path(__file__).parent


def falling(rate: float, steps: int):
    return lambda step: rate * max(0.02, 1 - step / steps)


def from_teacher(net: distil.ConvNet, x, answers, steps: int, T: float = 4.0) -> distil.ConvNet:
    """Learn p = softmax(answers / T) on images x."""
    optimizer, random, rate = torch.optim.Adam(net.parameters()), torch.Generator().manual_seed(0), falling(0.03, steps)
    net.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step)
        i = torch.randint(len(x), (64,), generator=random)
        targets, guesses = (answers[i] / T).softmax(1), (net(x[i]) / T).log_softmax(1)
        loss = T**2 * F.kl_div(guesses, targets, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def main():
    glyphs = data.glyphs(12_000, classes=36, distortion=0.5)
    fresh = data.glyphs(2000, classes=36, distortion=0.5, seed=1)
    torch.manual_seed(0)
    teacher, small = distil.ConvNet(distil.LARGE), distil.ConvNet(distil.SMALL)
    keep = lambda: distil.save(FOLDER, teacher, small, fresh.train_x[:256], fresh.train_y[:256])
    if sys.argv[1:] != ["small"]:
        print(train.train(teacher, glyphs, steps=1500, lr=falling(0.01, 1500), progress=False))
        keep()
    teacher, _ = distil.networks(FOLDER)
    others = data.glyphs(48_000, classes=36, distortion=0.5, seed=3).train_x
    with torch.no_grad():
        answers = torch.cat([teacher(x) for x in others.split(500)])
    from_teacher(small, others, answers, 10_000)
    keep()
    for name, net in zip(("teacher", "small network"), distil.networks(FOLDER)):
        print(name, f"{train.accuracy(net, glyphs.test_x, glyphs.test_y):.4f} on the test images, "
              f"{train.accuracy(net, fresh.train_x, fresh.train_y):.4f} on others")


if __name__ == "__main__":
    main()
