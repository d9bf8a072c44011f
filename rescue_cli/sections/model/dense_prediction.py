"""torchvision's Faster R-CNN and FCN on any timm backbone with feature maps."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe.schema import NotNegativeInt, PositiveInt
from rescue_cli.sections.model.state_dict import strip_prefix
from rescue_cli.sections.model.weights import format_notes, load_source

Norms = Literal["frozen", "trained"]
HALF_PRECISIONS = (torch.float16, torch.bfloat16)
FPN_CHANNELS = 256  # channels; Lin et al. 2017
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
# What timm raises for a network without such feature maps; it has no dedicated error
NO_FEATURE_MAPS = (RuntimeError, TypeError, AssertionError, AttributeError)
OUTPUT_STRIDE = 8  # of an FCN's dilated backbone


class Backbone(nn.Module):
    """A timm network without its head: images -> feature maps by name: `0`, `1`, ..."""

    def __init__(self, body: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.widths = tuple(widths)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(index): map_ for index, map_ in enumerate(self.body(images))}

    def load(self, source: str, name: str) -> str | None:
        """Loads a classifier's weights, except those of layers behind the feature maps.

        Returns a note on how they were read, or None. Raises `UsageError` where a tensor of the
        backbone is missing.
        """
        weights = load_source(source, name)
        own = {k: v for k, v in self.body.state_dict().items() if "num_batches" not in k}
        stripped, notes = strip_prefix(weights.tensors, own, (), source)
        missing = sorted(k for k in own if k not in stripped or stripped[k].shape != own[k].shape)
        if missing:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise UsageError(
                f"model.weights: {source} does not fit {name}: {len(missing)} of the backbone's "
                f"{len(own)} tensors are missing or of another shape ({shown})."
            )
        self.body.load_state_dict({k: stripped[k] for k in own}, strict=False)
        return format_notes(source, (*weights.notes, *notes))


def create_backbone(name: str, channels: int, norms: Norms, **layout: Any) -> Backbone:
    """Creates a backbone by its timm name; raises `UsageError` where it lacks the feature maps."""
    import timm
    from timm.layers.norm_act import freeze_batch_norm_2d

    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise UsageError(f"model.backbone: '{name}' is not a timm model. {hint[:200]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's own deprecation warnings
            body = timm.create_model(name, features_only=True, in_chans=channels, **layout)
    except NO_FEATURE_MAPS as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(
            f"model.backbone: {name} has no feature maps with the required strides "
            f"({reason}). Use a ResNet, RegNet or EfficientNet."
        ) from None
    widths = _feature_info(body).channels()
    if norms == "frozen":
        body = freeze_batch_norm_2d(body)  # type: ignore[no-untyped-call]
    return Backbone(body, widths)


def freeze_stages(body: nn.Module, name: str, stages: int) -> None:
    """Freezes the parameters of timm's first `stages` stages; the stem is the first.

    Raises `UsageError` where timm defines no stages for the backbone `name`.
    """
    if not stages:
        return
    import timm
    from timm.models import group_parameters

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        whole = timm.create_model(name)
    matcher = getattr(whole, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            f"model.frozen_stages: timm defines no stages for {name}. "
            "Remove it with ~model.frozen_stages."
        )
    stage_of = group_parameters(whole, matcher(coarse=True), reverse=True)
    for parameter, tensor in body.named_parameters():
        if stage_of[parameter] < stages:
            tensor.requires_grad_(False)


def _feature_info(body: nn.Module) -> Any:
    """timm's description of a network's feature maps."""
    return body.feature_info


class FeaturePyramid(nn.Module):
    """A feature pyramid on a backbone, see `feature_pyramid`."""

    def __init__(self, backbone: Backbone, fpn: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.out_channels = FPN_CHANNELS

    def forward(self, images: Tensor) -> Mapping[str, Tensor]:
        maps: Mapping[str, Tensor] = self.fpn(self.backbone(images))
        return maps


def feature_pyramid(backbone: Backbone) -> FeaturePyramid:
    """A feature pyramid with an additional coarser map for large objects (Lin et al. 2017)."""
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    fpn = FeaturePyramidNetwork(list(backbone.widths), FPN_CHANNELS, LastLevelMaxPool())
    return FeaturePyramid(backbone, fpn)


def faster_rcnn(
    classes: int,
    channels: int,
    *,
    backbone: str,
    min_size: PositiveInt,
    max_size: PositiveInt,
    strides: list[PositiveInt],
    anchors: list[PositiveInt],
    proposals: PositiveInt,
    norms: Norms,
    frozen_stages: NotNegativeInt = 0,
) -> nn.Module:
    """Faster R-CNN with a feature pyramid (Ren et al. 2015; Lin et al. 2017), of torchvision.

    `min_size`: length that an image's shorter side is resized to, unless the longer side would
    exceed `max_size`; `strides`: of the backbone's maps that the pyramid is built on, 4 to 32 (the
    finest costs most); `anchors`: side of the anchors on each of these maps and on the coarser one,
    in pixels; `proposals`: number per image that the second stage is trained on. `norms: frozen`
    freezes the backbone's batch norms, `frozen_stages` its first stages including the stem
    (torchvision: 5 minus `trainable_backbone_layers`). Images must be normalised. Raises
    `UsageError`.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator

    body = create_backbone(backbone, channels, norms, **_out_indices(backbone, strides))
    freeze_stages(body.body, backbone, frozen_stages)
    if len(anchors) != len(strides) + 1:
        raise UsageError(
            f"model (faster-rcnn).anchors: {len(anchors)} sides for {len(strides) + 1} maps. Give "
            f"one for each of the {len(strides)} maps of model.strides and one for the coarser map."
        )
    sides = tuple((side,) for side in anchors)
    network = FasterRCNN(
        feature_pyramid(body),
        classes + 1,  # and the background
        min_size=min_size,
        max_size=max_size,
        image_mean=[0.0] * channels,
        image_std=[1.0] * channels,
        box_batch_size_per_image=proposals,
        rpn_anchor_generator=AnchorGenerator(sides, (ANCHOR_RATIOS,) * len(sides)),
    )
    for head in (network.rpn.head, network.roi_heads.box_predictor):
        head.register_forward_hook(_cast_to_float32)
    return network  # type: ignore[no-any-return]


def _cast_to_float32(_head: nn.Module, _inputs: Any, output: Any) -> Any:
    """Casts a head's output under autocast to float32: half precision is too coarse for boxes."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in HALF_PRECISIONS else output
    return type(output)(_cast_to_float32(_head, _inputs, part) for part in output)


def _out_indices(name: str, wanted: list[int]) -> dict[str, Any]:
    """timm's indices of the maps with these strides; raises `UsageError` where one is missing."""
    import timm

    if not timm.is_model(name):
        return {}  # `create_backbone` raises the error
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        strides = _feature_strides(name)
    indices = tuple(index for index, stride in enumerate(strides) if stride in wanted)
    if not wanted or [strides[index] for index in indices] != wanted:
        raise UsageError(
            f"model.strides: {wanted}, but {name} has feature maps with the strides {strides}. "
            "Choose from these, in order, or use a ResNet, RegNet or EfficientNet."
        )
    return {"out_indices": indices}


def _feature_strides(name: str) -> list[int]:
    import timm

    try:
        strides: list[int] = _feature_info(timm.create_model(name, features_only=True)).reduction()
    except NO_FEATURE_MAPS:
        return []
    return strides


class Fcn(nn.Module):
    """Images (n, channels, height, width) -> logits of that size; in training as `out`, and those
    of the auxiliary head as `aux`.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, auxiliary: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = head
        self.aux_classifier = auxiliary

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        maps = list(self.backbone(images).values())
        out = _resize(self.classifier(maps[-1]), images)
        if not self.training:
            return out
        return {"out": out, "aux": _resize(self.aux_classifier(maps[-2]), images)}


def _resize(logits: Tensor, images: Tensor) -> Tensor:
    """The logits at the images' size."""
    size = images.shape[-2:]
    return nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def fcn(classes: int, channels: int, *, backbone: str, norms: Norms) -> nn.Module:
    """A fully convolutional network whose last stages are dilated to stride 8 (Long et al. 2015).

    torchvision's heads: one on the last stage, and an auxiliary one on the stage before it.
    """
    from torchvision.models.segmentation.fcn import FCNHead

    body = create_backbone(backbone, channels, norms, output_stride=OUTPUT_STRIDE)
    return Fcn(body, FCNHead(body.widths[-1], classes), FCNHead(body.widths[-2], classes))
