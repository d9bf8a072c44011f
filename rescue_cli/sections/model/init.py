"""Initial weights by the names that Caffe's solvers and the papers use."""

import math

import torch
from torch import nn

from rescue_cli.recipe.sections import Filler

PRELU_SLOPE = 0.25


@torch.no_grad()
def fill(model: nn.Module, filler: Filler) -> None:
    """Fills every trainable convolution and linear layer; biases are 0.

    With n the inputs of an output and m the outputs of an input: `xavier` is uniform within
    sqrt(3 / n) and `msra` normal of variance 2 / n (He et al. 2015), both as Caffe has them;
    `glorot` is uniform within sqrt(6 / (n + m)) (Glorot and Bengio 2010; Bag of Tricks, 2.1), and
    `msra-prelu` normal of variance 2 / (1 + 0.25^2) over the mean of n and m, as in MXNet.
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
