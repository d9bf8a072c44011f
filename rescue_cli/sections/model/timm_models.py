"""Every architecture of timm, by its timm name."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe.schema import Fraction, PositiveInt
from rescue_cli.sections.model.caffe import CAFFE_KEYS, apply_caffe_settings

_TIMM_NAMES = {
    "drop_path": "drop_path_rate",
    "dropout": "drop_rate",
    "img_size": "img_size",
    "dynamic_img_size": "dynamic_img_size",
    "zero_init_last": "zero_init_last",
}
_NEUTRAL = {"drop_path": 0.0, "dropout": 0.0, "img_size": 224}  # any value that is not None


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
    """timm's model with random weights; keys not given keep timm's values.

    `stride_in: 1x1` halves a ResNet's images in the first convolution of a bottleneck, as first
    published (ResNet-A of Bag of Tricks, table 5), and not in the second (B; timm, torchvision).
    `norm_momentum`: the share of a running statistic that an update replaces. `first_norm: zeros`
    and `pooling: caffe`: see `apply_caffe_settings`.

    `dynamic_img_size` lets a transformer made for `img_size` see others, its position embedding
    resampled (bicubic). Raises `UsageError` for an unknown name, or a key that the architecture
    lacks.
    """
    _check_name(name)
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
        lacking = [k for k in given if _TIMM_NAMES[k] in str(error)] or list(given)
        if not lacking:
            raise UsageError(
                f"model ({name}): timm cannot build it ({error}). Use another."
            ) from None
        raise UsageError(
            f"model ({name}): has no key '{lacking[0]}'. Remove it with ~model.{lacking[0]}."
        ) from None
    return apply_caffe_settings(
        model, norm_momentum=norm_momentum, first_norm=first_norm, pooling=pooling
    )


def _move_strides(model: nn.Module, name: str, stride_in: str) -> nn.Module:
    """The model with its bottlenecks' strides moved; raises `UsageError` where it has none."""
    if stride_in == "3x3":
        return model
    from timm.models.resnet import Bottleneck

    blocks = [m for m in model.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not blocks:
        raise UsageError(
            f"model ({name}).stride_in: 1x1 needs a ResNet of bottlenecks. Remove the key."
        )
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return model


def unsupported_keys(name: str, keys: Iterable[str]) -> list[str]:
    """Those of the keys of `timm_model` that timm's architecture lacks; raises `UsageError`."""
    _check_name(name)
    found = []
    for key in keys:
        try:
            with torch.device("meta"):
                if key == "stride_in":
                    _move_strides(_create_model(name, 10, 3, {}), name, "1x1")
                elif key in CAFFE_KEYS:
                    apply_caffe_settings(_create_model(name, 10, 3, {}), **{key: CAFFE_KEYS[key]})
                else:
                    _create_model(name, 10, 3, {key: _NEUTRAL.get(key, False)})
        except (TypeError, UsageError):
            found.append(key)
    return found


def has_fixed_size(name: str) -> bool:
    """Whether timm's architecture is made for images of one size; raises `UsageError`."""
    import timm

    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise UsageError(f"model.name: '{name}' is neither ours nor timm's. {hint[:200]}")


def _create_model(name: str, classes: int, channels: int, options: dict[str, Any]) -> nn.Module:
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own deprecations are not the user's
        model: nn.Module = timm.create_model(
            name,
            pretrained=False,
            num_classes=classes,
            in_chans=channels,
            **{_TIMM_NAMES[key]: value for key, value in options.items()},
        )
    return model
