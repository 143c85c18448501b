"""Makes network.safetensors, the trained network that the lab prunes: `python make_network.py`, half a minute of one core."""
import functools
from pathlib import Path

import torch

from course import models, pruning, train

FOLDER = Path(__file__).parent
STEPS = 1200
SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)


def trained(images, seed: int = 0, stop: int = STEPS) -> models.ConvNet:
    """STEPS steps of 64 images by SGD with momentum, with a falling learning rate; stopped early, if wanted."""
    torch.manual_seed(seed)
    net = models.ConvNet(pruning.CHANNELS, images.classes)
    train.train(net, images, optimizer=SGD, steps=stop, lr=lambda step: 0.2 * (1 - step / STEPS), seed=seed, device="cpu",
                progress=False)
    return net.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    images = pruning.glyphs()
    pruning.save(FOLDER, pruning.state_of(trained(images)))
    state = pruning.network(FOLDER)
    print(f"accuracy on the test images: {pruning.accuracy(state, images.test_x, images.test_y):.4f}")
