"""A recipe begun with the weights of another training, on another data set, as overrides."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli.build.weights import Source, find_weights
from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.sections.data import DATASETS, FACTS, channels_of, is_coco, normalisation
from rescue_cli.sections.model import MODELS, weights

# What a folder of one's own is called as a data set, by task
FOLDERS = {
    "classification": "folder",
    "detection": "voc-folder",
    "segmentation": "mask-folder",
}
OF_COCO = {"detection": "coco-boxes", "segmentation": "coco-masks"}  # where annotations are COCO's
DEFAULT = "transfer"  # the recipe without --recipe
SCRATCH = "scratch:"  # before weights, or a timm name: the same network at a random start
# Keys of the source's `model` that say how it was trained and not what it is
_OWN = ("weights", "new_head", "frozen", "init")


@dataclass(frozen=True)
class Start:
    """Where a transfer begins: a name for its folder, and what it sets in the recipe."""

    label: str
    overrides: list[str]


def start(
    base: Recipe, word: str, to: str, given: Sequence[str], *, model: str | None = None
) -> Start:
    """The overrides that put the network `word` into `base` and have it see `to`.

    `word` is a run, a weights file, `timm:NAME`, or one of these after `scratch:`; `to` a data set
    or a folder; what `given` overrides set stays. The source's normalisation goes with its weights.
    Raises `UsageError`, `DataError`.
    """
    random = word.startswith(SCRATCH)
    source = find_weights(word.removeprefix(SCRATCH), [], model=model)
    values: dict[str, Any] = _target(base, to)
    if base.of_scenes:
        values |= _backbone(base, source, random=random)
    else:
        values["model"] = _network(base, source, random=random)
        values |= _images(source, values["data.name"], given, frozen=base.model.frozen)
    keys = given_keys(given)
    kept = {key: v for key, v in values.items() if key == "model" or not is_given(key, keys)}
    return Start(_label(word), [f"{key}={json.dumps(value)}" for key, value in kept.items()])


def _target(base: Recipe, to: str) -> dict[str, Any]:
    """`data.name`; of a folder of one's own `data.root`, and its images upright."""
    if to in DATASETS:
        return {"data.name": to}
    if Path(to).is_dir():
        names = OF_COCO if base.of_scenes and is_coco(Path(to)) else FOLDERS
        return {
            "data.name": names[base.task.name],
            "data.root": str(Path(to).resolve()),
            "data.exif": "applied",
        }
    raise UsageError(
        f"--to: '{to}' is neither a folder here nor a data set. {did_you_mean(to, DATASETS)}"
    )


def _backbone(base: Recipe, source: Source, *, random: bool) -> dict[str, Any]:
    """The source's network as a detector's or an FCN's backbone, and its normalisation."""
    theirs = source.recipe.model
    if theirs.name in MODELS:
        raise UsageError(
            f"--from {source.given}: {theirs.name} is no network of timm's, and a backbone is. Use "
            "a run of one, as ResNet or EfficientNet."
        )
    mean, std = normalisation(source.recipe.data.name, source.recipe.data)
    weights = None if random else theirs.weights
    found = {"model.backbone": theirs.name, "data.mean": mean, "data.std": std}
    if not random:
        return {**found, "model.weights": weights}
    # A backbone at random has neither statistics nor filters that could be kept
    found["model.norms"] = "trained"
    freezes = base.model.arguments.get("frozen_stages")
    return {**found, "model.frozen_stages": 0} if freezes else found


def _network(base: Recipe, source: Source, *, random: bool) -> dict[str, Any]:
    """The section `model`: the source's network, with the recipe's own keys for it."""
    theirs = source.recipe.model
    begun = {} if random else {"weights": theirs.weights, "new_head": True}
    network = {k: v for k, v in theirs.options.items() if k not in _OWN}
    mine = {k: v for k, v in base.model.options.items() if k != "weights"}
    if random and mine.get("frozen"):
        raise UsageError(
            f"--from {SCRATCH}...: {base.name} trains a head on features, and a network that "
            "learned nothing has none. Use --recipe transfer."
        )
    return {"name": theirs.name, **network, **mine, **begun}


def _images(source: Source, name: str, given: Sequence[str], *, frozen: bool) -> dict[str, Any]:
    """Normalisation, channels, and what images that lie in memory at one size ask for."""
    keys = source.recipe.data
    mean, std = normalisation(source.recipe.data.name, keys)
    seen, facts = channels_of(source.recipe.data.name, keys), FACTS[name]
    found: dict[str, Any] = {"data.mean": mean, "data.std": std}
    if seen == 3 and facts.channels == 1:
        found["data.channels"] = 3
    elif seen != facts.channels:
        raise UsageError(
            f"--from {source.given}: sees images of {seen} channel, and those of {name} have "
            f"{facts.channels}. Use weights that were trained on colour images."
        )
    if facts.size is not None and "data.resident=false" not in given:
        found |= {
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
    return found


def _label(word: str) -> str:
    """A folder's name: `quickstart-0` of runs/quickstart/0, else the file's or timm's name."""
    random, plain = word.startswith(SCRATCH), word.removeprefix(SCRATCH)
    path = Path(plain)
    if path.is_dir():
        name = f"{path.resolve().parent.name}-{path.resolve().name}"
    else:
        name = weights.label(plain)
    return f"scratch-{name}" if random else name


def distinct(starts: Mapping[str, Start]) -> None:
    """Raises `UsageError` where two words would have one folder."""
    seen: dict[str, str] = {}
    for word, each in starts.items():
        if each.label in seen:
            raise UsageError(
                f"--from: {seen[each.label]} and {word} would both be called {each.label}. "
                "Give one of them another name."
            )
        seen[each.label] = word
