"""In what runs differ: recipe, data, weights; checks that a sweep differs in its seeds alone."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rescue_cli.errors import DataError
from rescue_cli.metrics.names import by_measurement
from rescue_cli.recipe import SECTIONS, recipe_in
from rescue_cli.recipe.changes import (
    DEFAULTS,
    ROOTS,
    WEIGHTS,
    differences,
    flat,
    format_recipe_value,
    is_path,
)
from rescue_cli.rundir import RunDirectory, read_environment, read_identity

Values = Mapping[str, Any]  # by dotted key
Trained = tuple[Mapping[str, Any], Values | None]  # the recipe's tree, and `data_fingerprints`
SEED = "train.seed"


def data_fingerprints(run: Path) -> dict[str, Any] | None:
    """The run's data and weights by key; None of a run without data.json. Raises `DataError`."""
    identity = read_identity(RunDirectory(run))
    if identity is None:
        return None
    images = {
        f"data.{name}": f"{split['images']} images, fingerprint {split['digest'][:12]}"
        for name, split in identity["splits"].items()
    }
    weights = {key: f"fingerprint {digest[:12]}" for key, digest in identity["weights"].items()}
    return {"data.classes": len(identity["classes"]), **images, **weights}


def read_trained(run: Path) -> Trained:
    """What a run was trained by and on, as `run_changes` compares it; raises `DataError`."""
    return recipe_in(run).tree, data_fingerprints(run)


def run_changes(
    a: Path, b: Path, *, read: Callable[[Path], Trained] = read_trained
) -> dict[str, tuple[Any, Any]]:
    """The keys in which two runs' recipes differ: (a's, b's).

    Where both runs recorded fingerprints of their data and weights, these are compared in place of
    the paths: the training images as the key `data.train`, and the weights. `read`: for a caller
    that compares many pairs of a few runs, and keeps what it has read.
    """
    (tree, first), (other_tree, second) = read(a), read(b)
    changed = differences(tree, other_tree)
    if first is None or second is None:
        return changed
    kept = {key: values for key, values in changed.items() if not is_path(key, *values)}
    for key in ("data.train", *WEIGHTS):
        pair = first.get(key), second.get(key)
        if key not in kept and pair[0] != pair[1]:
            kept[key] = pair
    return kept


def read_procedures(folders: Iterable[Path]) -> dict[Path, Values]:
    """The keys that decide the training of each run that has a recipe, its seed among them."""
    return {
        folder: _procedure(folder) for folder in folders if RunDirectory(folder).recipe.is_file()
    }


def check_seeds(
    folders: Mapping[int, Path], procedures: Mapping[Path, Values], results: Mapping[int, Values]
) -> None:
    """Raises `DataError` where a run's seed is not the one in its folder's name."""
    for seed, folder in folders.items():
        run = RunDirectory(folder)
        seeds = {}
        if folder in procedures:
            seeds[run.recipe] = (SEED, procedures[folder][SEED])
        if seed in results and results[seed]["seed"] is not None:
            seeds[run.result] = ("seed", results[seed]["seed"])
        for file, (key, other) in seeds.items():
            if other != seed:
                raise DataError(
                    f"{file}: {key}: {other}, but the folder is seed {seed}'s. {_cure(folder)}"
                )


def check_same_recipe(procedures: Mapping[Path, Values]) -> None:
    """Raises `DataError` where a run's recipe or training data differs from most runs'."""
    fingerprints = {
        folder: each for folder in procedures if (each := data_fingerprints(folder)) is not None
    }
    # without fingerprints, data and weights are told apart by their paths
    all_known = all(
        folder in fingerprints for folder in procedures if RunDirectory(folder).finished
    )
    # each seed's evaluation is of its own weights
    evaluated = all(map(_is_evaluation, procedures))
    compared = {
        folder: {
            key: value
            for key, value in values.items()
            if key != SEED
            and not (all_known and is_path(key, value))
            and not (evaluated and key == WEIGHTS[0])
        }
        for folder, values in procedures.items()
    }
    _check_equal(compared, "recipe.yaml")
    _check_equal(fingerprints, "data.json")


def _is_evaluation(folder: Path) -> bool:
    run = RunDirectory(folder)
    return run.environment.is_file() and read_environment(run)["verb"] == "eval"


def check_same_test(results: Mapping[Path, Values]) -> None:
    """Raises `DataError` where a run's test images or evaluation differ from most runs'."""
    _check_equal(
        {folder: _test_conditions(result) for folder, result in results.items()}, "result.json"
    )


def _procedure(folder: Path) -> Values:
    """The keys that decide a run's training, the paths of its data and weights among them."""
    tree = recipe_in(folder).tree
    values = flat({k: value for k, value in tree.items() if k in SECTIONS or k == "code"})
    return {
        key: value
        for key, value in values.items()
        if key == SEED or (value not in (None, DEFAULTS.get(key)) and key not in ROOTS)
    }


def _test_conditions(result: Values) -> dict[str, Any]:
    """The images and evaluation protocol of each measurement, by its name."""
    named = by_measurement(result["sets"])
    values: dict[str, Any] = {"sets": [*named]}
    for name, entry in named.items():
        values[f"{name}.count"] = entry["count"]
        values |= {f"{name}.protocol.{key}": v for key, v in flat(entry["protocol"]).items()}
    return values


def _check_equal(by_folder: Mapping[Path, Values], file: str) -> None:
    """Raises `DataError` for the first key in which a folder differs from the majority."""
    groups: list[list[Path]] = []
    for folder, values in by_folder.items():
        group = next((g for g in groups if by_folder[g[0]] == values), None)
        groups.append([folder]) if group is None else group.append(folder)
    if len(groups) < 2:
        return
    usual = max(groups, key=len)
    deviating = next(group for group in groups if group is not usual)
    deviates, expected = by_folder[deviating[0]], by_folder[usual[0]]
    key = next(key for key in [*expected, *deviates] if deviates.get(key) != expected.get(key))
    raise DataError(
        f"{deviating[0] / file}: {key}: {format_recipe_value(deviates.get(key))}, "
        f"but {usual[0].name} has {format_recipe_value(expected.get(key))}. "
        f"The runs of a sweep may differ only in their seed. {_cure(deviating[0])}"
    )


def _cure(folder: Path) -> str:
    return f"Move {folder.name} out of {folder.parent}."
