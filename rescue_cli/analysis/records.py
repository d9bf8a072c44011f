"""Records: results measured with a recipe, kept in `recipes/records/NAME.json`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rescue_cli.errors import DataError
from rescue_cli.metrics.names import METRICS, score
from rescue_cli.recipe import Recipe, load, names, recipe_in, recipes_folder
from rescue_cli.recipe.changes import differences
from rescue_cli.rundir import RunDirectory, read_command, read_json, read_result, write_json

# Keys of where and how a run was made; they do not change what is trained or measured.
NOT_PROCEDURE = (
    "data.root", "data.train_root", "data.test_root", "data.resident", "train.seed",
    "train.precision", "train.log_every", "train.checkpoint_epochs", "train.checkpoint_minutes",
    "eval.every",
)  # fmt: skip
FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/,'\"]+/)+")  # in an absolute path
Entries = Sequence[dict[str, Any]]
RESULT = (
    *METRICS, "loss", "count", "epochs", "steps", "seconds_train", "seconds_prepare",
    "seconds_warmup", "seconds_eval", "images_per_second", "peak_memory_mb", "peak_reserved_mb",
    "parameters", "protocol",
)  # fmt: skip


def record_path(name: str) -> Path:
    return recipes_folder() / "records" / f"{name}.json"


def add_runs(runs: Sequence[Path], note: str | None) -> Path:
    """Adds finished runs of one shipped recipe to its record; raises `DataError`."""
    entries = [make_entry(run, note) for run in runs]
    names = {recipe_in(run).name for run in runs}
    if len(names) != 1:
        raise DataError(
            f"records: runs of several recipes ({', '.join(sorted(names))}). Give runs of one."
        )
    return add_entries(names.pop(), entries)


def add_entries(name: str, entries: Entries) -> Path:
    """Adds entries to a recipe's record; raises `DataError` for one that is there already."""
    path = record_path(name)
    kept = read_json(path)["runs"] if path.exists() else []
    write_json(path, {"runs": _join(kept, entries)})
    return path


def make_entry(run: Path, note: str | None) -> dict[str, Any]:
    """What a record has of a finished run; raises `DataError`."""
    files = RunDirectory(run)
    recipe = recipe_in(run)
    result = read_result(files)
    changed = differences(load(recipe.name).tree, recipe.tree)
    environment = read_json(files.environment)
    return {
        "command": _portable(read_command(files)),
        "seed": recipe.train.seed,
        "differs": {k: _shorten_paths(list(v)) for k, v in changed.items() if not _is_path(k)},
        "result": {**{k: result[k] for k in RESULT if k in result}, **_others(result["sets"])},
        "environment": {k: v for k, v in environment.items() if k != "cache"},
        **({"note": note} if note else {}),
    }


def _join(kept: Entries, entries: Entries) -> list[dict[str, Any]]:
    """The record with new entries; raises `DataError` for one that is already there."""
    for entry in entries:
        if any(_figures(entry) == _figures(other) for other in kept):
            raise DataError(
                f"records: seed {entry['seed']} of `{entry['command']}` is already recorded, "
                "identical to the last digit. Leave it out."
            )
    return [*kept, *entries]


def _figures(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two runs never share: seed, changes, and the result with its exact times."""
    return entry["seed"], entry["differs"], entry["result"]


def _others(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All measurements, where there is more than the reported one."""
    keys = ("set", "size", "crop", *METRICS, "loss", "count")
    entries = [{**{k: e[k] for k in keys if k in e}, "tta": e["protocol"]["tta"]} for e in sets]
    return {"sets": entries} if len(entries) > 1 else {}


def _portable(command: str) -> str:
    """The command without paths of the machine that it ran on."""
    words = re.sub(r"--out[ =]\S+", "", command).split()
    placeless = " ".join(re.sub(r"^(data\.\w*root)=.*", r"\1=DIR", word) for word in words)
    return str(_shorten_paths(placeless))


def _shorten_paths(value: Any) -> Any:
    """A value with each absolute path in it shortened to its last part."""
    if isinstance(value, list):
        return [_shorten_paths(item) for item in value]
    return FOLDERS.sub("", value) if isinstance(value, str) else value


def _is_path(key: str) -> bool:
    return key.startswith("data.") and key.endswith("root")


def format_record(name: str) -> str | None:
    """`89.90 (3)`: mean score and number of seeds of the unchanged recipe; `partly` without any."""
    if not record_path(name).exists():
        return None
    whole = [score(result) for result in recorded_results(name, {})]
    return f"{sum(whole) / len(whole):.2f} ({len(whole)})" if whole else "partly"


def recorded_results(name: str, differs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results on record, one of each seed, of runs whose changes to the recipe are `differs`:
    those of one command where it trained all of these seeds, else the latest of each.

    Keys in `NOT_PROCEDURE` are not changes.
    """
    path = record_path(name)
    runs = read_json(path)["runs"] if path.exists() else []
    wanted = _procedure(differs)
    latest: dict[int, Mapping[str, Any]] = {}
    by_command: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        if _procedure(run["differs"]) == wanted:
            latest[run["seed"]] = run["result"]
            by_command.setdefault(run["command"], {})[run["seed"]] = run["result"]
    complete = [results for results in by_command.values() if results.keys() == latest.keys()]
    return list([latest, *complete][-1].values())


def changed_keys(recipe: Recipe) -> dict[str, Any]:
    """The changes to the shipped recipe of the same name that affect training or measurement."""
    if recipe.name not in names():
        return {}
    return _procedure(differences(load(recipe.name).tree, recipe.tree))


def _procedure(differs: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that affect what is trained or measured."""
    return {key: values for key, values in differs.items() if key not in NOT_PROCEDURE}
