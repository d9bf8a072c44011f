"""The section `model`: nets of our own by name, every other name from timm's zoo."""

from collections.abc import Callable

from torch import nn

from rescue_cli.model.airbench import airbench
from rescue_cli.model.ghost import GhostBatchNorm2d, group_count
from rescue_cli.model.resnet9 import resnet9
from rescue_cli.model.weights import load_weights
from rescue_cli.model.whitening import Whitening
from rescue_cli.model.zoo import zoo

MODELS: dict[str, Callable[..., nn.Module]] = {"airbench": airbench, "resnet9": resnet9}


def common(*, weights: str | None = None) -> str | None:
    """Keys that every model has. `weights`: a run, a safetensors file, or `timm` to download."""
    return weights


__all__ = [
    "MODELS",
    "GhostBatchNorm2d",
    "Whitening",
    "common",
    "group_count",
    "load_weights",
    "zoo",
]
