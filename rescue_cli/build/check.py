"""Checks a recipe against its ingredients, before a device or a data set is touched."""

import importlib.util
import math
import warnings
from collections.abc import Sequence

import torch

from rescue_cli.build.feeds import train_size
from rescue_cli.build.losses import check_balance
from rescue_cli.build.networks import check_weights, create_network, proxy_recipe
from rescue_cli.build.optimizers import build_schedule, shared_max_norm
from rescue_cli.build.own_code import try_network, try_own_code
from rescue_cli.errors import DataError, RescueError, UsageError
from rescue_cli.recipe import SECTIONS, OptimItem, Recipe, from_text, schema
from rescue_cli.recipe.own import refuse_unused
from rescue_cli.sections.data import PACKAGED, channels_of, facts_of
from rescue_cli.sections.model import GhostBatchNorm2d, group_count
from rescue_cli.sections.model.weights import read_metadata
from rescue_cli.sections.optim import LBFGS, assign_parameters, layer_depths
from rescue_cli.sections.schedule import ScheduleContext
from rescue_cli.sections.tta import TTAS

MANY = 10**6  # steps of an epoch, for keys that are checked before the images are counted


def check_recipe(recipe: Recipe) -> None:
    """Every name, key, type and range of the recipe, and its parameter groups on the meta device.

    Raises `UsageError` before a device or a data set is touched.
    """
    check_ingredients(recipe)
    try_own_code(recipe)
    classes = facts_of(recipe.data.name, recipe.data).classes or 10
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is built again to be trained
            model = create_network(recipe, classes)
    except RescueError:
        raise
    except Exception as error:  # what an architecture raises has no common base
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"model ({recipe.model.name}): cannot be built ({reason}). "
            "Change its keys, or use another."
        ) from None
    check_weights(recipe, model)
    try_network(recipe, model, classes)
    assign_parameters(model, recipe.optim)
    if any(item.layer_decay is not None for item in recipe.optim):
        layer_depths(model, recipe.model.name)
    for module in model.modules():
        if isinstance(module, GhostBatchNorm2d):
            group_count(recipe.train.device_batch_size, module.size)
    if recipe.teacher.name == "none":  # a teacher's weights are read later, and may need a file
        refuse_unused(recipe.code)
    if recipe.selection.name == "proxy":
        if recipe.train.micro_batches > 1:
            raise UsageError(
                f"selection (proxy): a step of {recipe.train.micro_batches} micro-batches. "
                "The proxy needs a step in one micro-batch: set "
                f"train.device_batch_size={recipe.train.batch_size}."
            )
        check_recipe(proxy_recipe(recipe, recipe.selection.arguments["model"]))


def check_ingredients(recipe: Recipe) -> None:
    """As `check_recipe`, without building the network."""
    recipe.task.check()
    recipe.data.check()
    # Before the other sections: of a recipe for another task their names would be unknown
    check_task(recipe, facts_of(recipe.data.name, recipe.data).task)
    for section in SECTIONS:
        for item in recipe.items(section):
            item.check()
    _check_data(recipe)
    for position, operation in enumerate(item() for item in recipe.augment):
        if operation.stage == "file" and position:
            name = recipe.augment[position].name
            raise UsageError(f"augment: {name} must come first in the list.")
    _check_frozen(recipe)
    check_balance(recipe)
    for item in recipe.optim:
        _check_scaling(item, recipe.train.batch_size)
        schedule = item.own_schedule or recipe.schedule
        build_schedule(schedule, ScheduleContext(1.0, MANY, recipe.train.epochs))
    shared_max_norm(recipe.optim)
    for name in recipe.eval.ttas:
        schema.lookup("eval.tta", name, TTAS)


def _check_scaling(item: OptimItem, batch_size: int) -> None:
    """Holds the learning rate against the rule that the recipe states for it."""
    rule, lr = item.lr_per_256, item.lr
    if rule is None or math.isclose(wanted := rule * batch_size / 256, lr, rel_tol=1e-6):
        return
    raise UsageError(
        f"optim ({item.name}).lr: {lr:g} is not {rule:g} for 256 images times {batch_size} / 256. "
        f"Set optim.lr={wanted:g}, or remove the rule with ~optim.lr_per_256."
    )


def _check_data(recipe: Recipe) -> None:
    """As many means and deviations as the images have channels, and what `resident` can hold."""
    keys = recipe.data
    if recipe.data.name == PACKAGED and (keys.root or keys.train_root or keys.test_root):
        raise UsageError(
            f"data.root: {PACKAGED} is part of this package and reads no folder. Remove the key "
            "(~data.root), or name what reads it: data.name=folder for class folders of your own."
        )
    channels = channels_of(recipe.data.name, keys)
    for key, values in (("mean", keys.mean), ("std", keys.std)):
        if values is not None and len(values) != channels:
            raise UsageError(
                f"data.{key}: {len(values)} values for {channels} channels. Give one for each."
            )
    if keys.std is not None and min(keys.std) <= 0:
        raise UsageError(f"data.std: {keys.std} must be above 0.")
    if keys.range is not None and keys.range[0] >= keys.range[1]:
        raise UsageError(
            f"data.range: {list(keys.range)} must be in increasing order: black, white."
        )
    if not keys.resident or facts_of(recipe.data.name, recipe.data).size is not None:
        return
    size = train_size(recipe)
    needed = max(math.floor(s / c) for s in recipe.eval.sizes for c in recipe.eval.crops)
    if needed > size:
        raise UsageError(
            f"data.resident: test images are kept at data.train_size, {size} px, and "
            f"eval.sizes and eval.crops need {needed} px. Set data.train_size={needed}, "
            "data.resident=false, or smaller views."
        )
    if recipe.eval.resize == "squash":
        raise UsageError(
            "eval.resize: squash needs whole files, and data.resident keeps their centres. "
            "Set data.resident=false."
        )


def _check_frozen(recipe: Recipe) -> None:
    """A frozen network sees each image once and alone."""
    if recipe.fits_head:
        _check_fit(recipe)
    views = len(recipe.eval.sizes) * len(recipe.eval.crops)
    plain = recipe.eval.ttas == ("none",) and recipe.teacher.name == "none"
    if recipe.model.frozen and (recipe.augment or views > 1 or not plain):
        raise UsageError(
            f"model ({recipe.model.name}).frozen: features are computed once, of one view. Use "
            "augment=[], one size and one crop, eval.tta=none, and no teacher."
        )


def _check_fit(recipe: Recipe) -> None:
    """Raises `UsageError` unless a fit of the head is all that the recipe asks for."""
    if len(recipe.optim) > 1:
        raise UsageError(f"optim: {LBFGS} fits the whole head. Remove the other items.")
    loss, others = recipe.loss, (recipe.mix, recipe.averaging, recipe.selection)
    plain = loss.name == "cross-entropy" and loss.options["label_smoothing"] == 0
    weighted = loss.options.get("class_weights") or recipe.sampling.name != "shuffled"
    if not plain or weighted or any(item.name != "none" for item in others):
        raise UsageError(
            f"optim.name: {LBFGS} minimises the cross-entropy of single images, all alike. Use "
            "loss={name: cross-entropy, label_smoothing: 0.0, reduction: mean} and no sampling, "
            "mix, averaging or selection, or another optimizer."
        )


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
