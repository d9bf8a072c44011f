"""A network, a loss and an augmentation of one's own, for the recipe `examples/own.yaml`.

    rescue seed-sweep --recipe examples/own.yaml --with examples/ingredients.py --seeds 5
    rescue seed-sweep --seeds 5 model.width=4 train.epochs=4 data.subset=[2000,1000]
    rescue compare runs/sweep/quickstart runs/sweep/own

Ten seconds a seed on two CPU cores. A recipe names what is here as `ingredients.py:NAME`. The
parameters `classes` and `channels`, `logits` and `targets`, and `images` come from the run; all
others are keys of the recipe, with the types that stand here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class GatedNet(nn.Module):
    """Convolutions whose channels are weighted by a gate (squeeze and excitation, Hu et al. 2018).

    Images (n, channels, height, width) to logits (n, classes).
    """

    def __init__(self, classes: int, channels: int, *, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(channels, width),
            convolution(width, 2 * width),
            Gate(2 * width),
            convolution(2 * width, 4 * width),
            Gate(4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images).amax((2, 3)))
        return logits / 4


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Half the height and width."""
    layer = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Gate(nn.Module):
    """Multiplies each channel by a number between 0 and 1, which all channels decide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, channels // 4)
        self.up = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]


def poly_loss(logits: Tensor, targets: Tensor, *, epsilon: float) -> Tensor:
    """Cross-entropy plus epsilon (1 - p) for the label's probability p (Leng et al. 2022).

    Logits (n, classes) and labels (n,) to the losses of the images, (n,).
    """
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return losses + epsilon * (1 - torch.exp(-losses))


def occlude(images: Tensor, *, size: int, p: float = 0.5) -> Tensor:
    """With probability `p` a square of `size` pixels in an image becomes noise.

    Images (n, channels, height, width) uint8. What torch draws here is the same in a resumed run.
    """
    n, _, height, width = images.shape
    where = images.device
    tops = torch.randint(height - size + 1, (n, 1), device=where)
    lefts = torch.randint(width - size + 1, (n, 1), device=where)
    rows = torch.arange(height, device=where) - tops  # (n, height), 0 at the square's top
    columns = torch.arange(width, device=where) - lefts
    in_rows, in_columns = ((each >= 0) & (each < size) for each in (rows, columns))
    chosen = torch.rand(n, 1, 1, device=where) < p
    inside = chosen & in_rows[:, :, None] & in_columns[:, None, :]
    return torch.where(inside[:, None], torch.randint_like(images, 256), images)
