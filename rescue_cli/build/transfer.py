"""A recipe that starts from trained weights, on another data set, as overrides."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.build.feeds import list_dataset
from rescue_cli.build.weights import Source, find_weights
from rescue_cli.errors import DataError, UsageError, did_you_mean, near_path
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.sections.data import DATASETS, FACTS, Location, channels_of, is_coco, normalisation
from rescue_cli.sections.data.packed.location import is_images
from rescue_cli.sections.data.packed.remote import is_url
from rescue_cli.sections.data.splits import suggest_holdout
from rescue_cli.sections.model import MODELS, weights

# The data set that reads the user's own folder, by task
FOLDERS = {
    "classification": "folder",
    "detection": "voc-folder",
    "segmentation": "mask-folder",
}
OF_COCO = {"detection": "coco-boxes", "segmentation": "coco-masks"}  # with COCO's annotations
DEFAULT = "transfer"  # the recipe of several starts, without --recipe
PROBE, FINE = "transfer-probe", "transfer-layerwise"  # those of one start, in a time budget
SMALL_TEST = 100  # images: at 90 % right the 95 % interval is 12 points wide
SCRATCH = "scratch:"  # before weights, or a timm name: the same network at a random start
# Keys of the source's `model` that say how it was trained, and not what it is
_OWN = ("weights", "new_head", "frozen", "init")


@dataclass(frozen=True)
class Start:
    """Where a transfer starts: the name of its folder, and the overrides of the recipe."""

    label: str
    overrides: list[str]


def plan_transfer(
    base: Recipe, weights_name: str, to: str, given: Sequence[str], *, model: str | None = None
) -> Start:
    """The overrides that put a trained network into the recipe `base`, on the data `to`.

    `weights_name` is a run, a weights file, `timm:NAME`, or one of these after `scratch:`; `to` is
    a data set or a folder. What the `given` overrides set stays. The source's normalisation goes
    with its weights. Raises `UsageError`, `DataError`.
    """
    random = weights_name.startswith(SCRATCH)
    source = find_weights(weights_name.removeprefix(SCRATCH), [], model=model)
    values: dict[str, Any] = _target(base, to)
    if base.is_annotated:
        values |= _backbone(base, source, random=random)
    else:
        values["model"] = _network(base, source, random=random)
        values |= _images(source, values["data.name"], given, frozen=base.model.frozen)
    keys = given_keys(given)
    kept = {key: v for key, v in values.items() if key == "model" or not is_given(key, keys)}
    return Start(
        _label(weights_name), [f"{key}={json.dumps(value)}" for key, value in kept.items()]
    )


def hold_out_test(recipe: Recipe) -> tuple[list[str], str]:
    """The override that holds out a test set where the user's folder has none, and a note on it.

    Equally many images per class: a fifth of the smallest. Of a small test set the note names
    a larger one, half of the smallest class. Raises `DataError` where that has one.
    """
    location = Location(recipe.data.name, recipe.data)
    if not location.lacks_test_split:
        return [], ""
    parts = list_dataset(recipe.with_overrides("data.test_holdout=1", "data.subset=null"))
    (held,) = parts.tests.values()
    labels = np.concatenate([parts.train.labels, held.labels])
    counts = np.bincount(labels, minlength=len(parts.classes))
    count, fewest = suggest_holdout(labels), int(counts.argmin())
    if counts[fewest] < 2:
        raise DataError(
            f"{location.train_root}: there is no test split, and the class "
            f"'{parts.classes[fewest]}' has one image, so none of it can be held out. Add images, "
            "or give data.test_root=DIR."
        )
    most = len(counts) * int(counts[fewest] // 2)
    more = f"; for a narrower interval give more, such as data.test_holdout={most}"
    return [f"data.test_holdout={count}"], (
        f"{location.top}: has no test split such as val/; {count:,} of {len(labels):,} images, "
        f"{count // len(counts):,} per class (a fifth of the smallest), drawn at random with a "
        f"fixed seed, are held out as the test set: data.test_holdout={count}"
        f"{more * (count < SMALL_TEST and most > count)}"
    )


def _target(base: Recipe, to: str) -> dict[str, Any]:
    """`data.name`; for the user's own folder also `data.root`, with EXIF orientation applied."""
    if to in DATASETS:
        return {"data.name": to}
    if is_url(to) or is_images(Path(to)):
        has_coco = base.is_annotated and not is_url(to) and is_coco(Path(to))
        return {
            "data.name": (OF_COCO if has_coco else FOLDERS)[base.task.name],
            "data.root": to if is_url(to) else str(Path(to).resolve()),
            "data.exif": "applied",
        }
    path = Path(to)
    if path.parent != Path():  # a data set's name is no path
        raise UsageError(f"--to: {to}: no such folder.{near_path(path, folders=True)}")
    raise UsageError(
        f"--to: '{to}' is neither a folder here nor a data set. {did_you_mean(to, DATASETS)}"
    )


def _backbone(base: Recipe, source: Source, *, random: bool) -> dict[str, Any]:
    """The source's network as a detector's or an FCN's backbone, and its normalisation."""
    trained = source.recipe.model
    if trained.name in MODELS:
        raise UsageError(
            f"--from {source.given}: {trained.name} is not one of timm's networks, as a backbone "
            "must be. Use a run of one, such as ResNet or EfficientNet."
        )
    mean, std = normalisation(source.recipe.data.name, source.recipe.data)
    values = {"model.backbone": trained.name, "data.mean": mean, "data.std": std}
    if not random:
        return {**values, "model.weights": trained.weights}
    # A random backbone has neither statistics nor filters worth keeping
    values["model.norms"] = "trained"
    freezes = base.model.arguments.get("frozen_stages")
    return {**values, "model.frozen_stages": 0} if freezes else values


def _network(base: Recipe, source: Source, *, random: bool) -> dict[str, Any]:
    """The section `model`: the source's network, with the recipe's own keys for it."""
    trained = source.recipe.model
    start = {} if random else {"weights": trained.weights, "new_head": True}
    network = {k: v for k, v in trained.options.items() if k not in _OWN}
    changes = {k: v for k, v in base.model.options.items() if k != "weights"}
    if random and base.model.frozen:
        raise UsageError(
            f"--from {SCRATCH}...: {base.name} trains a head on features, and an untrained "
            "network has none. Use --recipe transfer."
        )
    return {"name": trained.name, **network, **changes, **start}


def _images(source: Source, name: str, given: Sequence[str], *, frozen: bool) -> dict[str, Any]:
    """Normalisation, channels, and sizes and augmentation for images kept in memory."""
    keys = source.recipe.data
    mean, std = normalisation(source.recipe.data.name, keys)
    seen, facts = channels_of(source.recipe.data.name, keys), FACTS[name]
    values: dict[str, Any] = {"data.mean": mean, "data.std": std}
    if seen == 3 and facts.channels == 1:
        values["data.channels"] = 3
    elif seen != facts.channels:
        raise UsageError(
            f"--from {source.given}: takes images with {seen} channel, and those of {name} have "
            f"{facts.channels}. Use weights that were trained on colour images."
        )
    if facts.size is not None and "data.resident=false" not in given:
        values |= {
            "augment": []
            if frozen
            else [
                {"name": "pad-crop", "pad": facts.size // 8, "mode": "reflect"},
                {"name": "flip", "p": 0.5},
            ],
            "data.train_size": None,
            "eval.sizes": [facts.size],
            "eval.crops": [1.0],
        }
    return values


def _label(name: str) -> str:
    """A folder's name: `quickstart-0` of runs/quickstart/0, else the file's or timm's name."""
    random, plain = name.startswith(SCRATCH), name.removeprefix(SCRATCH)
    path = Path(plain)
    if path.is_dir():
        label = f"{path.resolve().parent.name}-{path.resolve().name}"
    else:
        label = weights.source_label(plain)
    return f"scratch-{label}" if random else label


def check_labels(starts: Mapping[str, Start]) -> None:
    """Raises `UsageError` where two weights would have one folder."""
    seen: dict[str, str] = {}
    for name, each in starts.items():
        if each.label in seen:
            raise UsageError(
                f"--from: {seen[each.label]} and {name} would both be named {each.label}. "
                "Give one of them another name."
            )
        seen[each.label] = name
