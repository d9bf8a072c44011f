"""timm's models by their timm names."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe.schema import Fraction, PositiveInt
from rescue_cli.sections.model.caffe import apply_caffe_settings

_TIMM_NAMES = {
    "drop_path": "drop_path_rate",
    "dropout": "drop_rate",
    "img_size": "img_size",
    "dynamic_img_size": "dynamic_img_size",
    "zero_init_last": "zero_init_last",
}
# A valid value of each key, with which an architecture shows whether it has it
_VALID: dict[str, Any] = {
    "drop_path": 0.0,
    "dropout": 0.0,
    "img_size": 224,
    "dynamic_img_size": False,
    "zero_init_last": False,
    "stride_in": "1x1",
    "norm_momentum": 0.1,
    "first_norm": "zeros",
    "pooling": "caffe",
}


def timm_model(
    name: str,
    classes: int,
    channels: int,
    *,
    drop_path: Fraction | None = None,
    dropout: Fraction | None = None,
    img_size: PositiveInt | None = None,
    dynamic_img_size: bool | None = None,
    zero_init_last: bool | None = None,
    stride_in: Literal["1x1", "3x3"] = "3x3",
    norm_momentum: Fraction | None = None,
    first_norm: Literal["zeros"] | None = None,
    pooling: Literal["caffe"] | None = None,
) -> nn.Module:
    """A timm model with random weights; keys that are not given keep timm's defaults.

    `stride_in: 1x1` has the stride of a ResNet's bottlenecks in their first convolution, as first
    published (ResNet-A of Bag of Tricks, table 5), instead of the second (ResNet-B, timm,
    torchvision). `norm_momentum`: weight of the new batch in running statistics. `first_norm:
    zeros` and `pooling: caffe`: see `apply_caffe_settings`. `dynamic_img_size` lets a transformer
    take images of other sizes than `img_size` by resampling its position embedding (bicubic).
    Raises `UsageError` for an unknown name, or a key that the architecture lacks.
    """
    check_name(name)
    values = {
        "drop_path": drop_path,
        "dropout": dropout,
        "img_size": img_size,
        "dynamic_img_size": dynamic_img_size,
        "zero_init_last": zero_init_last,
    }
    given: dict[str, Any] = {k: v for k, v in values.items() if v is not None}
    try:
        model = _move_strides(_create_model(name, classes, channels, given), name, stride_in)
    except TypeError as error:
        unsupported = [k for k in given if _TIMM_NAMES[k] in str(error)] or list(given)
        if not unsupported:
            raise UsageError(
                f"model ({name}): timm cannot build it ({error}). Use another model."
            ) from None
        raise UsageError(
            f"model ({name}): has no key '{unsupported[0]}'. Remove it with "
            f"~model.{unsupported[0]}."
        ) from None
    return apply_caffe_settings(
        model, norm_momentum=norm_momentum, first_norm=first_norm, pooling=pooling
    )


def _move_strides(model: nn.Module, name: str, stride_in: str) -> nn.Module:
    """Moves the strides of the model's bottlenecks; raises `UsageError` where it has none."""
    if stride_in == "3x3":
        return model
    from timm.models.resnet import Bottleneck

    blocks = [m for m in model.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not blocks:
        raise UsageError(
            f"model ({name}).stride_in: 1x1 needs a ResNet with bottlenecks. Remove the key."
        )
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return model


def unsupported_keys(name: str, keys: Iterable[str]) -> list[str]:
    """The given keys of `timm_model` that an architecture lacks; raises `UsageError`."""
    check_name(name)
    unsupported = []
    for key in keys:
        try:
            with torch.device("meta"):
                timm_model(name, 10, 3, **{key: _VALID[key]})
        except UsageError:
            unsupported.append(key)
    return unsupported


def has_fixed_size(name: str) -> bool:
    """Whether an architecture takes images of only one size; raises `UsageError`."""
    import timm

    check_name(name)
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def check_name(name: str) -> None:
    """Raises `UsageError` for a name that timm does not know."""
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise UsageError(f"model.name: '{name}' is not a model of rescue or timm. {hint[:200]}")


def _create_model(name: str, classes: int, channels: int, options: dict[str, Any]) -> nn.Module:
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own deprecation warnings
        model: nn.Module = timm.create_model(
            name,
            pretrained=False,
            num_classes=classes,
            in_chans=channels,
            **{_TIMM_NAMES[key]: value for key, value in options.items()},
        )
    return model
