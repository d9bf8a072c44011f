"""That the runs of a sweep differ in nothing but their seed, so that they may be averaged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rescue_cli.analysis import same_data
from rescue_cli.errors import DataError
from rescue_cli.recipe import SECTIONS, recipe_in
from rescue_cli.recipe.changes import DEFAULTS, ROOTS, as_written, flat, is_path
from rescue_cli.rundir import RunDirectory, label

Values = Mapping[str, Any]  # by dotted key
SEED = "train.seed"


def demand_seeds(folders: Mapping[int, Path], results: Mapping[int, Values]) -> None:
    """Raises `DataError` where a folder holds a run of another seed than its name says."""
    for seed, folder in folders.items():
        run = RunDirectory(folder)
        told = {}
        if run.recipe.is_file():
            told[run.recipe] = (SEED, recipe_in(folder).train.seed)
        if seed in results and results[seed]["seed"] is not None:
            told[run.result] = ("seed", results[seed]["seed"])
        for file, (key, other) in told.items():
            if other != seed:
                raise DataError(f"{file}: {key}: {other}, in the folder of {seed}. {_cure(folder)}")


def demand_one_recipe(folders: Sequence[Path]) -> None:
    """Raises `DataError` where a run was trained by another recipe, or on other data, than most."""
    there = [folder for folder in folders if RunDirectory(folder).recipe.is_file()]
    seen = {folder: each for folder in there if (each := same_data.known(folder)) is not None}
    # else weights are known by their places alone
    every = all(folder in seen for folder in there if RunDirectory(folder).result.is_file())
    _demand_one({folder: _procedure(folder, placeless=every) for folder in there}, "recipe.yaml")
    _demand_one(seen, "data.json")


def demand_one_test(results: Mapping[Path, Values]) -> None:
    """Raises `DataError` where a run was tested otherwise, or on other images, than most were."""
    _demand_one({folder: _tested(result) for folder, result in results.items()}, "result.json")


def _procedure(folder: Path, *, placeless: bool) -> dict[str, Any]:
    """What trained a run, but for its seed; of a recipe's name and claim nothing.

    With `placeless` nothing of where its data and weights lay either.
    """
    tree = recipe_in(folder).tree
    values = flat({key: value for key, value in tree.items() if key in SECTIONS})
    return {
        key: value
        for key, value in values.items()
        if value not in (None, DEFAULTS.get(key))
        and key != SEED
        and key not in ROOTS
        and not (placeless and is_path(key, value))
    }


def _tested(result: Values) -> dict[str, Any]:
    """Each measurement's images and protocol, by what the measurement is called."""
    entries = result["sets"]
    found: dict[str, Any] = {"sets": [label(entry, entries) for entry in entries]}
    for name, entry in zip(found["sets"], entries, strict=True):
        found[f"{name}.count"] = entry["count"]
        found |= {f"{name}.protocol.{key}": v for key, v in flat(entry["protocol"]).items()}
    return found


def _demand_one(known: Mapping[Path, Values], file: str) -> None:
    """Raises `DataError` for the first key of the first folder that is not as most have it."""
    groups: list[list[Path]] = []
    for folder, values in known.items():
        group = next((g for g in groups if known[g[0]] == values), None)
        groups.append([folder]) if group is None else group.append(folder)
    if len(groups) < 2:
        return
    usual = max(groups, key=len)
    odd = next(group for group in groups if group is not usual)
    ours, theirs = known[odd[0]], known[usual[0]]
    key = next(key for key in [*theirs, *ours] if ours.get(key) != theirs.get(key))
    raise DataError(
        f"{odd[0] / file}: {key}: {as_written(ours.get(key))}, and {usual[0].name} has "
        f"{as_written(theirs.get(key))}. The runs of a sweep differ in their seed alone. "
        f"{_cure(odd[0])}"
    )


def _cure(folder: Path) -> str:
    return f"Move {folder.name} out of {folder.parent}."
