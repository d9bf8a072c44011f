"""Files as a user writes them, with ingredients of each kind, for tests."""

from pathlib import Path

INGREDIENTS = '''
"""Ingredients of each kind."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self, classes, channels, width: int = 4, dropout: float = 0.1):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images):
        return self.head(self.features(images))


def focal(logits, targets, *, gamma: float):
    """Lin et al. 2017."""
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (1 - (-losses).exp()) ** gamma * losses


def noise(images, p=0.5, most: int = 20):
    added = torch.randint(-most, most + 1, images.shape, device=images.device)
    noisy = (images + added).clamp(0, 255).to(torch.uint8)
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < p
    return torch.where(chosen, noisy, images)


class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * parameter.grad.sign())


def halving(step, lr, steps, *, times: int):
    return lr * 0.5 ** (step * times // steps)


class Stripes:
    """Images of horizontal and vertical stripes."""

    classes = ("horizontal", "vertical")
    channels, size, images = 1, 12, 96
    mean, std = (0.5,), (0.5,)

    def __init__(self, noise: int = 30):
        self.noise = noise

    def train(self):
        return self._draw(96, 0)

    def test(self):
        return self._draw(40, 1)

    def _draw(self, count, seed):
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % 2
        lines = 200 * (np.arange(12) % 4 < 2)
        images = np.broadcast_to(lines, (count, 1, 12, 12)).copy()
        images[labels == 0] = images[labels == 0].swapaxes(2, 3)
        return (images + rng.integers(0, self.noise, images.shape)).astype(np.uint8), labels
'''

NET = "model={name: ./mine.py:Net, width: 4}"
NET_LOSS_NOISE = (
    NET,
    "loss={name: ./mine.py:focal, gamma: 2}",
    "augment=[{name: ./mine.py:noise, p: 0.5}]",
)
SMALL = (
    "data.subset=[256,100]", "train.epochs=2", "train.batch_size=64", "train.device_batch_size=32",
)  # fmt: skip


def write_ingredients(folder: Path, name: str = "mine.py", more: str = "") -> Path:
    """A file with ingredients of each kind; each `more` makes another hash."""
    file = folder / name
    file.write_text(INGREDIENTS + more)
    return file
