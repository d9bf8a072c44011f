"""The section `model`: nets of our own by name, every other name from timm's zoo."""

from rescue_cli.model.resnet9 import resnet9
from rescue_cli.model.weights import load_weights
from rescue_cli.model.zoo import zoo

MODELS = {"resnet9": resnet9}


def common(*, weights: str | None = None) -> str | None:
    """Keys that every model has. `weights`: a run, a safetensors file, or `timm` to download."""
    return weights


__all__ = ["MODELS", "common", "load_weights", "zoo"]
