"""Initial weights by the names that Caffe's solvers and the papers use."""

import math
from typing import Literal

import torch
from torch import nn

Filler = Literal["xavier", "msra"]


@torch.no_grad()
def fill(model: nn.Module, filler: Filler) -> None:
    """Fills every trainable convolution and linear layer; biases are 0.

    With n the inputs of an output: `xavier` is uniform within sqrt(3 / n) (Caffe's form of Glorot
    and Bengio 2010), `msra` normal of variance 2 / n (He et al. 2015).
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not layer.weight.requires_grad:
            continue
        inputs = layer.weight[0].numel()
        if filler == "xavier":
            bound = math.sqrt(3 / inputs)
            nn.init.uniform_(layer.weight, -bound, bound)
        else:
            nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
