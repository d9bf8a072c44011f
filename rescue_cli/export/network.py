"""The network that a file holds: from floats to logits, or from pixels to probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rescue_cli.sections.tta import Weights


@dataclass(frozen=True)
class Interface:
    """Names of a file's input and output, and the shape and type of the input."""

    input: str
    output: str
    shape: tuple[int, ...]  # of one image
    dtype: torch.dtype

    def example(self) -> Tensor:
        """A batch of two: torch.export takes a dimension of one as a constant."""
        return torch.zeros((2, *self.shape), dtype=self.dtype)

    def describe(self) -> tuple[str, str]:
        """Input and output in words."""
        if self.input == "pixels":
            side, _, channels = self.shape
            colours = "RGB" if channels == 3 else "grey"
            return f"pixels (N, {side}, {side}, {channels}) uint8, {colours}", "probabilities"
        shape = ", ".join(map(str, self.shape))
        return f"images (N, {shape}) float32, normalised", "logits"


def interface(channels: int, size: int, *, from_pixels: bool) -> Interface:
    """Normalised images (N, channels, size, size) to logits; or pixels, which are (N, size, size,
    channels) uint8 as image libraries have them, to probabilities.
    """
    if from_pixels:
        return Interface("pixels", "probabilities", (size, size, channels), torch.uint8)
    return Interface("images", "logits", (channels, size, size), torch.float32)


class ExportedNetwork(nn.Module):
    """A network with the run's test-time augmentation, and where `normalisation` (mean and std, in
    shares of 255) is given with that before it and the softmax behind it.
    """

    shift: Tensor
    factor: Tensor

    def __init__(
        self,
        network: nn.Module,
        tta: Weights,
        normalisation: tuple[Sequence[float], Sequence[float]] | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.tta = tta
        self.from_pixels = normalisation is not None
        if normalisation is not None:
            mean, std = (torch.tensor(v, dtype=torch.float64) * 255 for v in normalisation)
            self.register_buffer("shift", mean.float())
            self.register_buffer("factor", (1 / std).float())

    def forward(self, images: Tensor) -> Tensor:
        """(N, classes), float32: logits of normalised images, or probabilities of pixels."""
        if self.from_pixels:
            levels = (images.float() - self.shift) * self.factor
            images = levels.permute(0, 3, 1, 2).contiguous()
        views = [weight * self.network(v.apply(images)) for v, weight in self.tta.items()]
        logits = views[0] if len(views) == 1 else torch.stack(views).sum(0)
        return logits.softmax(1) if self.from_pixels else logits
