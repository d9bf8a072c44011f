"""What a format writes into a folder, and how its own program runs what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from rescue_cli.export.network import ExportedNetwork, Interface, trace
from rescue_cli.export.preprocessing import Pixels, Preprocessing
from rescue_cli.recipe import Recipe
from rescue_cli.sections.tta import Weights

Inputs = NDArray[Any]  # (n, ...) as the network's file takes them
Probabilities = NDArray[np.float64]  # (n, classes), or of each pixel (n, classes, height, width)


@dataclass(frozen=True)
class Exportable:
    """A network in evaluation mode on the CPU, in float32, and what goes along with it.

    `metadata`: class names and preprocessing, as text by key.
    """

    network: nn.Module
    tta: Weights
    recipe: Recipe
    classes: Sequence[str]
    interface: Interface
    normalisation: tuple[Sequence[float], Sequence[float]]
    metadata: Mapping[str, str]

    def program(self) -> torch.export.ExportedProgram:
        """The network with all that the interface asks for, traced; raises what torch raises."""
        inside = self.normalisation if self.interface.input == "pixels" else None
        graph = ExportedNetwork(self.network, self.tta, inside).eval()
        return trace(graph, self.interface)


class Runtime(Protocol):
    """A file's network as another program runs it; `levels`: grey levels in a unit of the input."""

    levels: NDArray[np.float32]  # broadcasts over the inputs

    def prepare(self, images: Sequence[Image.Image], /) -> Inputs:
        """The input of decoded images, by what the file says of preprocessing."""
        ...

    def from_pixels(self, pixels: Pixels, /) -> Inputs:
        """The input of images (n, height, width, channels) that are cropped already."""
        ...

    def __call__(self, inputs: Inputs, /) -> Probabilities: ...


class Preparation:
    """The input of a graph, by the metadata in its file."""

    def __init__(self, metadata: Mapping[str, str], *, takes_pixels: bool) -> None:
        self.preprocessing = Preprocessing.of(metadata)
        self.takes_pixels = takes_pixels
        std = self.preprocessing.std_of_planes
        self.levels = np.ones(1, np.float32) if takes_pixels else 255 * std

    def prepare(self, images: Sequence[Image.Image]) -> Inputs:
        """As `Runtime` says."""
        return self.from_pixels(np.stack([self.preprocessing.crop_image(i) for i in images]))

    def from_pixels(self, pixels: Pixels) -> Inputs:
        """As `Runtime` says."""
        return pixels if self.takes_pixels else self.preprocessing.normalise(pixels)

    def probabilities(self, output: NDArray[Any]) -> Probabilities:
        """Of the graph's output: probabilities already, or logits."""
        values = output.astype(np.float64)
        return values if self.takes_pixels else softmax(values)


def softmax(logits: NDArray[np.float64]) -> Probabilities:
    """Over the classes."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: Probabilities = powers / powers.sum(1, keepdims=True)
    return probabilities
