"""The section `optim`: optimizers, and which parameters each of them updates."""

from collections.abc import Callable
from typing import Any

from rescue_cli.sections.optim.adaptive import adadelta, adagrad, adam, adamw
from rescue_cli.sections.optim.groups import (
    assign_parameters,
    layer_depths,
    parameter_groups,
)
from rescue_cli.sections.optim.lamb import lamb
from rescue_cli.sections.optim.logistic import LBFGS, lbfgs
from rescue_cli.sections.optim.muon import muon
from rescue_cli.sections.optim.own import own_optimizer
from rescue_cli.sections.optim.sgd import sgd, sgd_velocity

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": sgd,
    "sgd-velocity": sgd_velocity,
    "lamb": lamb,
    "adamw": adamw,
    "adam": adam,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "muon": muon,
    LBFGS: lbfgs,
}

__all__ = [
    "LBFGS",
    "OPTIMIZERS",
    "assign_parameters",
    "layer_depths",
    "own_optimizer",
    "parameter_groups",
]
