"""The section `model`: networks defined here by name; every other name is one of timm's models."""

from collections.abc import Callable

from torch import nn

from rescue_cli.sections.model.airbench import airbench
from rescue_cli.sections.model.celu import Celu
from rescue_cli.sections.model.dense_prediction import Backbone, faster_rcnn, fcn
from rescue_cli.sections.model.ghost_batch_norm import GhostBatchNorm2d, group_count
from rescue_cli.sections.model.init import DataDependentInit, init_weights
from rescue_cli.sections.model.own import own_model
from rescue_cli.sections.model.resnet9 import ResNet9, resnet9
from rescue_cli.sections.model.smith import (
    lenet,
    smith_3layer,
    smith_densenet40,
    smith_resnet56,
    smith_wide32,
)
from rescue_cli.sections.model.super_convergence import super_convergence
from rescue_cli.sections.model.timm_models import timm_model
from rescue_cli.sections.model.weights import load_weights
from rescue_cli.sections.model.whitening import Whitening

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
    "DataDependentInit",
    "GhostBatchNorm2d",
    "ResNet9",
    "Whitening",
    "group_count",
    "init_weights",
    "load_weights",
    "own_model",
    "timm_model",
]
