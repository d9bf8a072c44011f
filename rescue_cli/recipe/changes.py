"""What a verb's options make of a recipe: `--smoke`, `--subset`, and how many processes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe

SMOKE_MICRO_BATCH = 8
SMOKE_STEPS = 2
SMOKE_IMAGES = 16
# What a recipe without the key stands for
UNSAID = {"data.exif": "ignored", "data.background": "white"}
NOTES = ("unknown", "sources")  # on where values come from: two recipes may train the same by them

ROOTS = ("data.root", "data.train_root", "data.test_root")
WEIGHTS = ("model.weights", "selection.model.weights", "teacher.weights")


def is_timms(weights: Any) -> bool:
    """Whether a word for weights means timm's, which it downloads: `timm`, or `timm:NAME`."""
    return str(weights).partition(":")[0] == "timm"


def is_place(key: str, *values: Any) -> bool:
    """Whether a key's values say where data or weights lie, and nothing of what they are."""
    if key in ROOTS:
        return True
    named = key in WEIGHTS or key.startswith("data.sets.")
    return named and all(isinstance(v, str) and not is_timms(v) for v in values)


def smoke(recipe: Recipe, overrides: Sequence[str], *, cuda: bool) -> list[str]:
    """Overrides for a run of seconds: as many micro-batches, of 8 images; one epoch of two steps.

    `recipe` has the user's `overrides` already; the keys in them are the user's and stay.
    """
    given = given_keys(overrides)
    micro_batch_size = SMOKE_MICRO_BATCH
    if is_given("train.device_batch_size", given):
        micro_batch_size = recipe.train.device_batch_size
    values = {
        "train.batch_size": recipe.train.micro_batches * micro_batch_size,
        "train.device_batch_size": micro_batch_size,
        "train.epochs": 1,
        "train.steps_per_epoch": SMOKE_STEPS,
        "data.subset": [SMOKE_IMAGES, SMOKE_IMAGES],
        "data.holdout": 0,
        **({"data.fold": 0} if "fold" in recipe.data.options else {}),
        **({} if cuda else {"train.precision": "float32"}),
    }
    set_ = [f"{key}={value}" for key, value in values.items() if not is_given(key, given)]
    return [*set_, *without_rule(recipe)]


def without_rule(recipe: Recipe) -> list[str]:
    """The overrides that drop the check of learning rate by batch size, where a recipe has it."""
    return [
        f"~{path_of(recipe, place)}.lr_per_256"
        for place, item in enumerate(recipe.optim)
        if "lr_per_256" in item.options
    ]


def path_of(recipe: Recipe, place: int) -> str:
    """Where an optimizer item stands in the recipe: `optim`, or `optim.2` of a list."""
    return "optim" if isinstance(recipe.tree["optim"], Mapping) else f"optim.{place}"


def given_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that overrides set: `train.epochs` of `train.epochs=3`."""
    return [override.removeprefix("~").partition("=")[0] for override in overrides]


def is_given(key: str, given: Sequence[str]) -> bool:
    """Whether the user set the key, the section that it is in, or a part of it."""
    return any(f"{key}.".startswith(f"{g}.") or g.startswith(f"{key}.") for g in given)


def subset(text: str, overrides: Sequence[str] = ()) -> str:
    """The override that `--subset N` or `--subset TRAIN:TEST` stands for, beside the user's."""
    if is_given("data.subset", [k for k in given_keys(overrides) if k != "data"]):
        raise UsageError("--subset and data.subset say the same thing. Give one of them.")
    parts = text.split(":")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise UsageError(f"--subset: '{text}' must be N or TRAIN:TEST, whole numbers above 0.")
    return f"data.subset=[{int(parts[0])}, {int(parts[-1])}]"


def processes(
    micro_batches: int, asked: int | None, visible: int, *, option: str = "--procs"
) -> int:
    """How many processes share the micro-batches: as asked, else as many as are visible and divide
    them.

    Raises `UsageError` where the number asked for does not divide them.
    """
    fitting = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    if asked is None:
        return max(n for n in fitting if n <= max(1, visible))
    if asked not in fitting:
        raise UsageError(
            f"{option}: {asked} processes do not divide the {micro_batches} micro-batches of a "
            f"step. Use {', '.join(map(str, fitting))}, or another train.device_batch_size."
        )
    return asked


def warnings(before: Recipe, after: Recipe, overrides: Sequence[str]) -> list[str]:
    """What the usual rules say about a batch that was changed without its learning rate."""
    keys = given_keys(overrides)
    found = []
    ratio = after.train.batch_size / before.train.batch_size
    same_rate = not any(key == "optim" or key.endswith(".lr") for key in keys)
    if is_given("train.batch_size", keys) and ratio != 1 and same_rate:
        name = after.optim[0].name
        rule, factor = ("square-root", ratio**0.5) if name == "lamb" else ("linear", ratio)
        suggestion = ""
        if isinstance(lr := after.optim[0].options.get("lr"), int | float):
            suggestion = f" Its {rule} rule gives optim.lr={factor * lr:.4g}."
        found.append(
            f"train.batch_size is {after.train.batch_size} in place of {before.train.batch_size}, "
            f"and optim.lr is unchanged.{suggestion}"
        )
    if after.train.device_batch_size < before.train.device_batch_size:
        found.append(
            f"micro-batches of {after.train.device_batch_size} in place of "
            f"{before.train.device_batch_size}: batch norm normalises over fewer images."
        )
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two recipe trees differ, as dotted paths: (before, after).

    A key that is absent and one that is null or as in `UNSAID` are the same; notes are no keys.
    """
    old, new = (flat({k: v for k, v in t.items() if k not in NOTES}) for t in (before, after))
    keys = [*old, *(k for k in new if k not in old)]
    pairs = {k: tuple(values.get(k, UNSAID.get(k)) for values in (old, new)) for k in keys}
    return {k: (a, b) for k, (a, b) in pairs.items() if a != b}


def as_written(value: Any) -> str:
    """A key's value as a recipe has it: null, true, 0.1, cosine, [224, 288]."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_written, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A tree's leaves by dotted path; items of a list stand under their name, beside its order."""
    if isinstance(value, Mapping) and value:
        return {
            k: v for key, item in value.items() for k, v in flat(item, _join(path, key)).items()
        }
    if isinstance(value, list) and value and all(isinstance(i, Mapping) for i in value):
        labels: list[str] = []
        for i, item in enumerate(value):
            label = str(item.get("params") or item.get("name", i))
            labels.append(f"{label}[{i}]" if label in labels else label)
        leaves: dict[str, Any] = {path: labels}
        for label, item in zip(labels, value, strict=True):
            rest = {k: v for k, v in item.items() if k != "name" or v != label}
            leaves |= flat(rest, _join(path, label)) if rest else {}
        return leaves
    return {path: value}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
