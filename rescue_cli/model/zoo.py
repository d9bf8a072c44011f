"""Every architecture of timm, by its timm name."""

import warnings
from typing import Any

from torch import nn

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.registry import Fraction, PositiveInt

_TIMM_NAMES = {
    "drop_path": "drop_path_rate",
    "dropout": "drop_rate",
    "img_size": "img_size",
    "zero_init_last": "zero_init_last",
}


def zoo(
    name: str,
    classes: int,
    channels: int,
    *,
    drop_path: Fraction | None = None,
    dropout: Fraction | None = None,
    img_size: PositiveInt | None = None,
    zero_init_last: bool | None = None,
) -> nn.Module:
    """timm's model with random weights; keys not given keep timm's values.

    Raises `UsageError` for an unknown name, or a key that the architecture lacks.
    """
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise UsageError(f"model.name: '{name}' is neither ours nor timm's. {hint[:200]}")
    values = {
        "drop_path": drop_path,
        "dropout": dropout,
        "img_size": img_size,
        "zero_init_last": zero_init_last,
    }
    given: dict[str, Any] = {k: v for k, v in values.items() if v is not None}
    options = {_TIMM_NAMES[k]: v for k, v in given.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's own deprecations are not the user's
            model: nn.Module = timm.create_model(
                name, pretrained=False, num_classes=classes, in_chans=channels, **options
            )
    except TypeError as error:
        lacking = [k for k in given if _TIMM_NAMES[k] in str(error)] or list(given)
        if not lacking:
            raise UsageError(f"model ({name}): timm cannot build it ({error}).") from None
        raise UsageError(
            f"model ({name}): has no key '{lacking[0]}'. Remove it with ~model.{lacking[0]}."
        ) from None
    return model
