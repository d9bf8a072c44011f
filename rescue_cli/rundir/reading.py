"""How the files of a run directory are read: each is checked, and what is wrong is a `DataError`.

People copy, edit, and cut off these files, and disks fail; nothing that stands in one is taken on
trust by whoever counts with it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescue_cli.errors import DataError, RescueError, from_code
from rescue_cli.metrics.names import METRICS, label, metrics_of
from rescue_cli.rundir.directory import RunDirectory
from rescue_cli.rundir.rules import (
    COUNT,
    EPOCH,
    LIST,
    LOSS,
    MAPPING,
    NAME,
    NUMBER,
    NUMBERS,
    OBJECTS,
    PERCENT,
    POSITIVE,
    STEP,
    TEXT,
    Rule,
    demand,
    shown,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LINE = 4096  # bytes, more than a line of metrics has
FAILURE = {"rank": STEP, "exit_code": STEP, "message": TEXT}
RESULT = {
    "recipe": TEXT,
    "seed": STEP.or_null(),
    "count": COUNT,
    "protocol": MAPPING,
    "seconds_train": POSITIVE,
    "sets": OBJECTS,
}
ENTRY = {
    "set": NAME,
    "size": COUNT,
    "crop": POSITIVE,
    "loss": NUMBER.or_null(),
    "count": COUNT,
    "protocol": MAPPING,
}
PROTOCOL = {"data": NAME, "set": NAME, "tta": NAME}
# Of a classification's entry, which older results have not
BY_CLASS = {"balanced_accuracy": PERCENT.or_null(), "per_class": OBJECTS}
OF_A_CLASS = {"class": TEXT, "images": STEP, "recall": PERCENT.or_null()}
# What the summary of a single run shows, too
SUMMARY = {
    "parameters": STEP,
    "epochs": POSITIVE.or_null(),
    "steps": STEP.or_null(),
    "seconds_prepare": POSITIVE,
    "seconds_eval": POSITIVE,
    "images_per_second": POSITIVE,
    "peak_memory_mb": POSITIVE.or_null(),
}
SUMMARY_PROTOCOL = {
    **dict.fromkeys(("precision", "weights", "decoder", "interpolation"), TEXT),
    **dict.fromkeys(("mean", "std"), NUMBERS),
    "preprocessing": MAPPING,
}
KIND = Rule("train or eval", lambda value: value in ("train", "eval"))
LINES = {
    "train": {"step": STEP, "epoch": EPOCH, "loss": LOSS, "lr": LOSS, "seconds": POSITIVE},
    "eval": {"step": STEP, "epoch": EPOCH, "set": NAME, "size": COUNT, "crop": POSITIVE,
             "loss": NUMBER.or_null()},
}  # fmt: skip
IF_THERE = {"momentum": NUMBER.or_null(), "seconds": POSITIVE}
ENVIRONMENT = {
    "verb": TEXT,
    "device": TEXT,
    "threads": COUNT,
    "workers": STEP,
    "cache": TEXT,
}
IDENTITY = {
    "format": Rule("1, the format of this version", lambda value: value == 1),
    "digest": TEXT,
    "classes": LIST,
    "splits": Rule(
        "an object of {images, digest}",
        lambda v: (
            MAPPING.holds(v)
            and all(
                MAPPING.holds(each)
                and STEP.holds(each.get("images"))
                and TEXT.holds(each.get("digest"))
                for each in v.values()
            )
        ),
    ),
    "weights": Rule(
        "texts by key", lambda v: MAPPING.holds(v) and all(map(TEXT.holds, v.values()))
    ),
    "places": OBJECTS,
}


@dataclass(frozen=True)
class FailureRecord:
    """Why a run failed, as the process that failed first wrote it to `failure.json`."""

    rank: int
    exit_code: int
    message: str

    @property
    def error(self) -> RescueError:
        return from_code(self.message, self.exit_code)

    @property
    def reason(self) -> str:
        """The message in a line: its first, of a traceback the last."""
        lines = self.message.strip().split("\n")
        return lines[-1] if lines[0].startswith("Traceback ") else lines[0]


def read_text(path: Path) -> str:
    """The text in a file; raises `DataError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not UTF-8, or a name that no file can have
        raise DataError(f"{path}: cannot be read: {error}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `DataError`."""
    return _object(read_text(path), path, "Restore it, or remove it.")


def _object(text: str, where: Path | str, cure: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be read. {cure}") from None
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}. {cure}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object. {cure}")
    return value


def read_failure(run: RunDirectory) -> FailureRecord | None:
    """The run's failure record, None where there is none; raises `DataError`."""
    if not run.failure.is_file():
        return None
    found = read_json(run.failure)
    demand(run.failure, found, FAILURE, "Remove the file; the run then counts as not run.")
    return FailureRecord(**{key: found[key] for key in FAILURE})


def read_result(run: RunDirectory, *, summarised: bool = False) -> dict[str, Any]:
    """A run's result, in which every number is one; raises `DataError`.

    With `summarised` also what `rescue train` prints below its table.
    """
    file = run.result
    cure = f"Remove the file, and run the command in {run.command} again."
    found = read_json(file)
    demand(file, found, RESULT, cure)
    entries = found["sets"]
    for place, entry in enumerate(entries):
        at = f"sets[{place}]."
        demand(file, entry, ENTRY, cure, at)
        demand(file, entry["protocol"], PROTOCOL, cure, f"{at}protocol.")
        _demand_metrics(file, entry, metrics_of(entries[0]), cure, at)
        demand(file, entry, {k: rule for k, rule in BY_CLASS.items() if k in entry}, cure, at)
        for number, row in enumerate(entry.get("per_class", [])):
            demand(file, row, OF_A_CLASS, cure, f"{at}per_class[{number}].")
    demand(file, found["protocol"], PROTOCOL, cure, "protocol.")
    _demand_metrics(file, found, metrics_of(entries[0]), cure)
    for key in ("count", metrics_of(entries[0])[0]):
        if found[key] != entries[0][key]:
            raise DataError(
                f"{file}: {key}: {shown(found[key])}, and sets[0].{key} is "
                f"{shown(entries[0][key])}; both are the first measurement's. {cure}"
            )
    if len({label(entry, entries) for entry in entries}) < len(entries):
        raise DataError(f"{file}: sets: two measurements are of the same set and protocol. {cure}")
    if summarised:
        demand(file, found, SUMMARY, cure)
        demand(file, found["protocol"], SUMMARY_PROTOCOL, cure, "protocol.")
    return found


def _demand_metrics(
    file: Path | str, entry: Mapping[str, Any], metrics: list[str], cure: str, at: str = ""
) -> None:
    """Raises `DataError` unless it has these metrics, and they are percentages."""
    if not metrics:
        raise DataError(f"{file}: {at[:-1] or 'it'} has none of {', '.join(METRICS)}. {cure}")
    demand(file, entry, dict.fromkeys(metrics, PERCENT), cure, at)


def read_environment(run: RunDirectory) -> dict[str, Any]:
    """What a run runs on, as its worker needs it; raises `DataError`."""
    found = read_json(run.environment)
    demand(run.environment, found, ENVIRONMENT, "Begin the run in another folder.")
    return found


def read_identity(run: RunDirectory) -> dict[str, Any] | None:
    """What a run keeps of its data; None of one that keeps nothing. Raises `DataError`."""
    if not run.data.is_file():
        return None
    found = read_json(run.data)
    demand(run.data, found, IDENTITY, "Restore it; without it the data are not checked.")
    return found


def read_command(run: RunDirectory) -> str:
    """The command that began the run, in one line; raises `DataError`."""
    lines = read_text(run.command).splitlines()
    if not lines:
        raise DataError(f"{run.command}: is empty. Write the command there that began the run.")
    return lines[0]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut off is passed over.

    Raises `DataError`.
    """
    return list(_lines(path)) if path.exists() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    cure = "Remove the line."
    metrics: list[str] = []  # of evaluations, the first's
    before = 0
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        where = f"{path}, line {number}"
        found = _object(line, where, cure)
        demand(where, found, {"kind": KIND}, cure)
        demand(where, found, LINES[found["kind"]], cure)
        demand(where, found, {k: rule for k, rule in IF_THERE.items() if k in found}, cure)
        if found["step"] < before:
            raise DataError(f"{where}: step: {found['step']} comes after {before}. {cure}")
        before = found["step"]
        if found["kind"] == "eval":
            metrics = metrics or metrics_of(found)
            _demand_metrics(where, found, metrics, cure)
        yield found


def last_epoch(path: Path) -> float:
    """The epoch of the last whole line of `metrics.jsonl`, for a bar; 0 where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LINE))
            lines = file.read().split(b"\n")[:-1]
        epoch = json.loads(lines[-1])["epoch"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0.0
    return float(epoch) if POSITIVE.holds(epoch) else 0.0


def read_arrays(path: Path, *names: str) -> dict[str, "NDArray[np.generic]"]:
    """The arrays in a file of predictions or pictures, `names` among them; raises `DataError`."""
    import zipfile
    import zlib

    import numpy as np

    cure = f"Write it anew: rescue eval {path.parent.parent}"
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            found = dict(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. {cure}") from None
    except (ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not arrays that can be read: {error}. {cure}") from None
    for name in names:
        if name not in found:
            raise DataError(f"{path}: has no array {name}. {cure}")
    return found
