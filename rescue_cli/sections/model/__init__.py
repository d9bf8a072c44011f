"""The section `model`: nets of our own by name, every other name from timm's zoo."""

from collections.abc import Callable

from torch import nn

from rescue_cli.sections.model.airbench import airbench
from rescue_cli.sections.model.celu import Celu
from rescue_cli.sections.model.data_dependent_init import Looking
from rescue_cli.sections.model.dense import Backbone, faster_rcnn, fcn
from rescue_cli.sections.model.ghost_batch_norm import GhostBatchNorm2d, group_count
from rescue_cli.sections.model.init import fill
from rescue_cli.sections.model.resnet9 import ResNet9, resnet9
from rescue_cli.sections.model.smith import (
    lenet,
    smith_3layer,
    smith_densenet40,
    smith_resnet56,
    smith_wide32,
)
from rescue_cli.sections.model.super_convergence import super_convergence
from rescue_cli.sections.model.weights import load_weights
from rescue_cli.sections.model.whitening import Whitening
from rescue_cli.sections.model.zoo import zoo

MODELS: dict[str, Callable[..., nn.Module]] = {
    "airbench": airbench,
    "resnet9": resnet9,
    "smith-3layer": smith_3layer,
    "smith-resnet56": smith_resnet56,
    "super-convergence": super_convergence,
    "smith-wide32": smith_wide32,
    "smith-densenet40": smith_densenet40,
    "lenet": lenet,
    "faster-rcnn": faster_rcnn,
    "fcn": fcn,
}


__all__ = [
    "MODELS",
    "Backbone",
    "Celu",
    "GhostBatchNorm2d",
    "Looking",
    "ResNet9",
    "Whitening",
    "fill",
    "group_count",
    "load_weights",
    "zoo",
]
