"""The section `optim`: optimizers, and which parameters each of them moves."""

from collections.abc import Callable

from torch.optim import Optimizer

from rescue_cli.sections.optim.adaptive import adadelta, adagrad, adam, adamw
from rescue_cli.sections.optim.groups import GROUPS, Claim, claims, depths, groups_of
from rescue_cli.sections.optim.lamb import lamb
from rescue_cli.sections.optim.muon import muon
from rescue_cli.sections.optim.sgd import sgd, sgd_velocity

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "sgd-velocity": sgd_velocity,
    "lamb": lamb,
    "adamw": adamw,
    "adam": adam,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "muon": muon,
}

__all__ = [
    "GROUPS",
    "OPTIMIZERS",
    "Claim",
    "claims",
    "depths",
    "groups_of",
]
