"""What a recipe that detects or segments may say, and how its scenes are normalised."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rescue_cli.batch import Batch
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import SECTIONS, Recipe, from_text
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.model.weights import metadata

# What only these tasks have, by section
THEIRS = {
    "detection": {"model": ("faster-rcnn",), "loss": ("detector",)},
    "segmentation": {"model": ("fcn",), "loss": ("pixel-cross-entropy",)},
}
EXTRA = ("torchmetrics", "faster_coco_eval")
# Keys of `data` that act on images with one label
OF_IMAGES = (
    "sets", "channels", "resident", "train_size", "train_root", "test_root", "unknown_classes",
)  # fmt: skip


class Normalised:
    """Batch of uint8 scenes -> batch of normalised ones, stacked or in a list."""

    def __init__(self, normalise: Normalise) -> None:
        self.normalise = normalise

    def __call__(self, batch: Batch) -> Batch:
        images: Any = batch.images
        if isinstance(images, list):
            images = [self.normalise(image[None])[0] for image in images]
        else:
            images = self.normalise(images)
        return replace(batch, images=images)


def check_scenes(recipe: Recipe, known: str) -> None:
    """That task, data, network and loss belong together, and nothing is asked of scenes that only
    images have; `known` is the data set's task. Raises `UsageError`.
    """
    task = recipe.task.name
    if known != task:
        raise UsageError(
            f"task.name: {task}, and the data set '{recipe.data.name}' is for {known}. "
            f"Set task.name={known}, or another data.name."
        )
    if "mask_values" in recipe.data.options and recipe.data.name != "mask-folder":
        raise UsageError(
            "data.mask_values: says what the masks of data.name=mask-folder hold. "
            "Remove it with ~data.mask_values."
        )
    for section in ("model", "loss"):
        name = getattr(recipe, section).name
        owner = next((t for t, names in THEIRS.items() if name in names[section]), None)
        if owner is not None and owner != task:
            raise UsageError(
                f"{section}.name: {name} is for {owner}, and task.name is {task}. "
                f"Set task.name={owner}, or another {section}.name."
            )
        if owner is None and recipe.of_scenes:
            raise UsageError(
                f"{section}.name: {name} is for classification, and task.name is {task}. "
                f"Set {section}.name={THEIRS[task][section][0]}."
            )
    if recipe.of_scenes:
        _check_neutral(recipe)
        _check_strides(recipe.model.weights)


def _check_strides(given: str | None) -> None:
    """A backbone has its strides in the 3x3; weights of another ResNet fit by name and shape."""
    if given is None:
        return
    try:
        text = metadata(given).get("recipe")
    except DataError:  # a name of timm's, or nothing, which loading says
        return
    if text and from_text(text, given).model.options.get("stride_in", "3x3") != "3x3":
        raise UsageError(
            f"model.weights: {given} was trained with model.stride_in=1x1, and a backbone "
            "strides in its 3x3 convolutions. Train its recipe with ~model.stride_in."
        )


def _check_extra(what: str, wanted: Sequence[str]) -> None:
    """Raises `UsageError` where packages of the extra `detection` are missing."""
    lacking = [name for name in wanted if importlib.util.find_spec(name) is None]
    if lacking:
        raise UsageError(
            f"{what} needs {' and '.join(lacking)}. "
            "Install them with: pip install 'rescue[detection]'"
        )


def _check_neutral(recipe: Recipe) -> None:
    if recipe.task.name == "detection":
        _check_extra("task.name: detection", EXTRA)
    if recipe.data.name == "coco-masks":
        _check_extra("data.name: coco-masks", EXTRA[1:])
    for section, entry in SECTIONS.items():
        name = getattr(recipe, section).name if entry.labels_only else None
        if name is not None and name != entry.neutral["name"]:
            raise UsageError(
                f"{section}.name: {name} is for classification. Remove the section with ~{section}."
            )
    given = [key for key in OF_IMAGES if key in recipe.data.options]
    if given:
        raise UsageError(
            f"data.{given[0]}: is for classification; scenes lie below data.root and keep their "
            f"size. Remove it with ~data.{given[0]}."
        )
    if recipe.eval.crops != [1.0] or recipe.eval.ttas != ("none",):
        raise UsageError(
            "eval.crops, eval.tta: a scene is seen whole and once. Use [1.0] and none."
        )
    if recipe.eval.resize != "shorter":
        raise UsageError("eval.resize: a scene keeps its shape. Remove it with ~eval.resize.")
    if recipe.model.frozen:
        raise UsageError("model.frozen: trains a classifier's head. Remove it with ~model.frozen.")
    operations = [item() for item in recipe.augment]
    alone = recipe.train.device_batch_size == 1
    one_size = alone or any(operation.one_size for operation in operations)
    if recipe.task.name == "segmentation" and not one_size:
        raise UsageError(
            "augment: masks of a micro-batch must have one size. Add scale-crop, or set "
            "train.device_batch_size=1."
        )
