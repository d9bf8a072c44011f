"""Weight initialisation as in Caffe and the papers, and layers that are initialised from images."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rescue_cli.recipe.sections import InitMethod

PRELU_SLOPE = 0.25


@torch.no_grad()
def init_weights(model: nn.Module, filler: InitMethod) -> None:
    """Initialises every trainable convolution and linear layer; biases are 0.

    With fan-in n and fan-out m: `xavier` is uniform within sqrt(3 / n) and `msra` normal with
    variance 2 / n (He et al. 2015), both as in Caffe; `glorot` is uniform within sqrt(6 / (n + m))
    (Glorot and Bengio 2010; Bag of Tricks, 2.1), and `msra-prelu` normal with variance
    2 / (1 + 0.25^2) over the mean of n and m, as in MXNet.
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not layer.weight.requires_grad:
            continue
        inputs = layer.weight[0].numel()
        outputs = layer.weight.numel() // layer.weight.shape[1]
        if filler == "msra":
            nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
        elif filler == "msra-prelu":
            variance = 2 / (1 + PRELU_SLOPE**2) / ((inputs + outputs) / 2)
            nn.init.normal_(layer.weight, std=math.sqrt(variance))
        else:
            bound = math.sqrt(3 / inputs if filler == "xavier" else 6 / (inputs + outputs))
            nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class DataDependentInit(ABC):
    """A layer that is initialised from `images` training images, or from all where that is None.

    The batches (n, channels, h, w) are normalised and not augmented.
    """

    images: int | None

    @abstractmethod
    def init_from(self, batches: Iterable[Tensor]) -> None:
        """Sets the layer's constants."""
