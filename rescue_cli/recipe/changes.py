"""In what two recipes differ, and how overrides name the keys of one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rescue_cli.recipe import Recipe

# Keys that older recipes lack, and the value that they stand for there
DEFAULTS = {"data.exif": "ignored", "data.background": "white"}
NOTES = ("unknown", "sources")  # on where values come from; they change nothing of the training

ROOTS = ("data.root", "data.train_root", "data.test_root")
WEIGHTS = ("model.weights", "selection.model.weights", "teacher.weights")


def is_timm(weights: Any) -> bool:
    """Whether weights are timm's, which it downloads: `timm`, or `timm:NAME`."""
    return str(weights).partition(":")[0] == "timm"


def is_path(key: str, *values: Any) -> bool:
    """Whether a key's values say where data or weights lie, and nothing of what they are."""
    if key in ROOTS:
        return True
    named = key in WEIGHTS or key.startswith("data.sets.")
    return named and all(isinstance(v, str) and not is_timm(v) for v in values)


def places(recipe: Recipe) -> dict[str, str]:
    """Where data and weights lie, by key."""
    leaves = flat(recipe.tree).items()
    return {key: str(value) for key, value in leaves if value is not None and is_path(key, value)}


def without_places(recipe: Recipe) -> Recipe:
    """The recipe as a file has it that is given to others: without data roots, and of weights and
    further test sets the last name of their paths.
    """
    changes = (
        f"~{key}" if key in ROOTS else f"{key}={json.dumps(PurePath(place).name)}"
        for key, place in places(recipe).items()
    )
    return recipe.with_overrides(*changes)


def without_lr_rule(recipe: Recipe) -> list[str]:
    """The overrides that drop the check of learning rate by batch size, where a recipe has it."""
    return [
        f"~{optim_path(recipe, position)}.lr_per_256"
        for position, item in enumerate(recipe.optim)
        if item.lr_per_256 is not None
    ]


def optim_path(recipe: Recipe, position: int) -> str:
    """How overrides name an optimizer item: `optim`, or `optim.2` of a list."""
    return "optim" if isinstance(recipe.tree["optim"], Mapping) else f"optim.{position}"


def given_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that overrides set: `train.epochs` of `train.epochs=3`."""
    return [override.removeprefix("~").partition("=")[0] for override in overrides]


def is_given(key: str, given: Sequence[str]) -> bool:
    """Whether the user set the key, the section that it is in, or a part of it."""
    return any(f"{key}.".startswith(f"{g}.") or g.startswith(f"{key}.") for g in given)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two recipe trees differ, as dotted paths: (before, after).

    A key that is absent and one that is null or as in `DEFAULTS` are the same; notes are no keys.
    """
    old, new = (flat({k: v for k, v in t.items() if k not in NOTES}) for t in (before, after))
    keys = [*old, *(k for k in new if k not in old)]
    pairs = {k: tuple(values.get(k, DEFAULTS.get(k)) for values in (old, new)) for k in keys}
    return {k: (a, b) for k, (a, b) in pairs.items() if a != b}


def format_recipe_value(value: Any) -> str:
    """A key's value as a recipe has it: null, true, 0.1, cosine, [224, 288]."""
    if isinstance(value, list):
        return f"[{', '.join(map(format_recipe_value, value))}]"
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
