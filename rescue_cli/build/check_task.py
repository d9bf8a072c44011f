"""Checks that task, data, model and loss fit; detection and segmentation allow less than
classification.
"""

import importlib.util
from collections.abc import Sequence

from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import SECTIONS, Recipe, from_text
from rescue_cli.sections.model.weights import read_metadata

# Models and losses that are for one task only, by section
THEIRS = {
    "detection": {"model": ("faster-rcnn",), "loss": ("detector",)},
    "segmentation": {"model": ("fcn",), "loss": ("pixel-cross-entropy",)},
}
EXTRA = ("torchmetrics", "faster_coco_eval")
# Keys of `data` that are for classification
OF_IMAGES = (
    "sets", "channels", "resident", "train_size", "train_root", "test_root", "unknown_classes",
)  # fmt: skip


def check_task(recipe: Recipe, known: str) -> None:
    """Raises `UsageError` unless task, data, model and loss are for one task and the other sections
    are ones that it has; `known` is the data set's task.
    """
    task = recipe.task.name
    if known != task:
        raise UsageError(
            f"task.name: {task}, and the data set '{recipe.data.name}' is for {known}. "
            f"Set task.name={known}, or another data.name."
        )
    if "mask_values" in recipe.data.options and recipe.data.name != "mask-folder":
        raise UsageError(
            "data.mask_values: is for data.name=mask-folder. Remove it with ~data.mask_values."
        )
    for section in ("model", "loss"):
        name = getattr(recipe, section).name
        owner = next((t for t, names in THEIRS.items() if name in names[section]), None)
        if owner is not None and owner != task:
            raise UsageError(
                f"{section}.name: {name} is for {owner}, and task.name is {task}. "
                f"Set task.name={owner}, or another {section}.name."
            )
        if owner is None and recipe.is_annotated:
            raise UsageError(
                f"{section}.name: {name} is for classification, and task.name is {task}. "
                f"Set {section}.name={THEIRS[task][section][0]}."
            )
    if recipe.is_annotated:
        _check_neutral(recipe)
        _check_strides(recipe.model.weights)


def _check_strides(given: str | None) -> None:
    """Raises `UsageError` for the weights of a ResNet that strides elsewhere than our backbones, in
    the 3x3 convolutions: they would fit by name and shape.
    """
    if given is None:
        return
    try:
        text = read_metadata(given).get("recipe")
    except DataError:  # a timm model, or no such file, which loading reports
        return
    if text and from_text(text, given).model.options.get("stride_in", "3x3") != "3x3":
        raise UsageError(
            f"model.weights: {given} was trained with model.stride_in=1x1, and a backbone "
            "strides in its 3x3 convolutions. Train its recipe with ~model.stride_in."
        )


def _check_extra(what: str, packages: Sequence[str]) -> None:
    """Raises `UsageError` where packages of the extra `detection` are missing."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
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
            f"data.{given[0]}: is for classification; images with boxes or masks lie below "
            f"data.root and keep their size. Remove it with ~data.{given[0]}."
        )
    if recipe.eval.crops != [1.0] or recipe.eval.ttas != ("none",):
        raise UsageError(
            "eval.crops, eval.tta: are for classification; here each image is evaluated whole and "
            "once. Use [1.0] and none."
        )
    if recipe.eval.resize != "shorter":
        raise UsageError(
            "eval.resize: is for classification; here images keep their aspect ratio. "
            "Remove it with ~eval.resize."
        )
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
