"""The network that a file holds: from floats to logits, or from pixels to probabilities."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from rescue_cli.sections.tta import Weights

LEAST_SIDE = 32  # pixels; a program for more does not fit feature maps of one pixel (stride 8)


@dataclass(frozen=True)
class Interface:
    """Names of a file's input and output, and the shape and type of the input.

    `shape`: of one image, of any or of an example; `any_size`: images have any height and width,
    and the output is of each pixel.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    any_size: bool

    def axes(self) -> dict[int, str]:
        """The names of the input's axes whose size is free."""
        height = 1 if self.input == "pixels" else 2
        sides = {height: "height", height + 1: "width"} if self.any_size else {}
        return {0: "batch", **sides}

    def example(self) -> Tensor:
        """A batch of two: torch.export takes a dimension of one as a constant."""
        return torch.zeros((2, *self.shape), dtype=self.dtype)

    def describe(self) -> tuple[str, str]:
        """Input and output in words."""
        letters = {"batch": "N", "height": "H", "width": "W"}
        free = {axis: letters[name] for axis, name in self.axes().items()}
        shape = ", ".join(free.get(i, str(n)) for i, n in enumerate((0, *self.shape)))
        gives = f"{self.output} of each pixel" if self.any_size else self.output
        if self.input == "pixels":
            colours = "RGB" if self.shape[-1] == 3 else "grey"
            return f"pixels ({shape}) uint8, {colours}", gives
        return f"images ({shape}) float32, normalised", gives


def interface(channels: int, size: int, *, from_pixels: bool, any_size: bool) -> Interface:
    """Normalised images (N, channels, size, size) to logits; or pixels, which are (N, size, size,
    channels) uint8 as image libraries have them, to probabilities.
    """
    # An example that no image of a check is like, which has a side of `size`
    sides = (size + 32, size + 64) if any_size else (size, size)
    if from_pixels:
        return Interface("pixels", "probabilities", (*sides, channels), torch.uint8, any_size)
    return Interface("images", "logits", (channels, *sides), torch.float32, any_size)


def trace(network: nn.Module, interface: Interface) -> torch.export.ExportedProgram:
    """The network as a program; raises what torch raises for one that it cannot trace."""
    axes = interface.axes()
    least = {"batch": 1, "height": LEAST_SIDE, "width": LEAST_SIDE}
    sizes: dict[int, Any] = {i: torch.export.Dim(n, min=least[n]) for i, n in axes.items()}
    integers = patch("timm.layers.padding.get_same_padding", _same_padding)
    with integers if interface.any_size else nullcontext():
        program = torch.export.export(
            network,
            (interface.example(),),
            dynamic_shapes={"images": sizes},
            # what torch cannot show of free sizes is asserted when the program runs
            prefer_deferred_runtime_asserts_over_guards=interface.any_size,
        )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # which names this machine's folders
    return program


def _same_padding(side: int, kernel: int, stride: int, dilation: int) -> int | torch.SymInt:
    """timm's, in integers: a file of torch.export cannot have its `math.ceil` of a free side."""
    past = (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side
    return torch.sym_max(past, 0)


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
        """(N, classes, ...), float32: logits of normalised images, or probabilities of pixels."""
        if self.from_pixels:
            levels = (images.float() - self.shift) * self.factor
            images = levels.permute(0, 3, 1, 2).contiguous()
        views = [weight * self.network(v.apply(images)) for v, weight in self.tta.items()]
        logits = views[0] if len(views) == 1 else torch.stack(views).sum(0)
        return logits.softmax(1) if self.from_pixels else logits
