"""Reads the files of a run directory; an invalid file is a `DataError`.

People copy, edit and truncate these files, and disks fail, so every value that is used is checked.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescue_cli.errors import DataError
from rescue_cli.metrics.names import METRICS, measurement_name, metric_names
from rescue_cli.rundir.files import FailureRecord, RunDirectory

LARGEST = 1e300  # so that no sum of a few numbers overflows
MOST = 2**53  # integers up to here are exact as floats


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test.

    `low`, `high`: a float from one to the other holds, which is tried first: most values in files
    are floats, and a long run has millions.
    """

    words: str
    holds: Callable[[Any], bool]
    low: float = math.inf
    high: float = -math.inf

    def or_null(self) -> "Rule":
        return Rule(
            f"{self.words}, or null",
            lambda value: value is None or self.holds(value),
            self.low,
            self.high,
        )


def _between(value: Any, low: float, high: float) -> bool:
    """Whether it is a number in the range; not a bool, and not NaN."""
    return isinstance(value, int | float) and value is not True and value is not False and (
        low <= value <= high
    )  # fmt: skip


def _is_whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and _between(value, low, MOST)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and (
        "/" not in value
    )  # fmt: skip


def _number(words: str, low: float, high: float) -> Rule:
    return Rule(words, lambda value: _between(value, low, high), low, high)


PERCENT = _number("a number from 0 to 100", 0, 100)
NUMBER = _number("a finite number", -LARGEST, LARGEST)
POSITIVE = _number("a non-negative number", 0, LARGEST)
EPOCH = _number("a number from 0 to 1,000,000", 0, 1e6)
LOSS = Rule(  # also of a step that diverged
    "a number",
    lambda v: NUMBER.holds(v) or (isinstance(v, float) and not math.isfinite(v)),
    NUMBER.low,
    NUMBER.high,
)
STEP = Rule("a non-negative integer", lambda v: _is_whole(v, 0))
COUNT = Rule("a positive integer", lambda v: _is_whole(v, 1))
NAME = Rule("a name without '/'", _is_name)
BOOLEAN = Rule("true or false", lambda v: isinstance(v, bool))
TEXT = Rule("a string", lambda v: isinstance(v, str))
MAPPING = Rule("an object", lambda v: isinstance(v, dict))
LIST = Rule("a list", lambda v: isinstance(v, list))
OBJECTS = Rule(
    "a non-empty list of objects",
    lambda v: isinstance(v, list) and bool(v) and all(isinstance(item, dict) for item in v),
)
NUMBERS = Rule(
    "a list of numbers", lambda v: isinstance(v, list) and all(NUMBER.holds(item) for item in v)
)


def check_keys(
    file: Path | str, values: Mapping[str, Any], rules: Mapping[str, Rule], cure: str, at: str = ""
) -> None:
    """Raises `DataError` for the first key that is missing, or whose value breaks its rule.

    `at`: the object's place in the file, as `sets[1].`.
    """
    for key, rule in rules.items():
        if key not in values:
            raise DataError(f"{file}: has no key {at}{key}. {cure}")
        value = values[key]
        if type(value) is float and rule.low <= value <= rule.high:
            continue
        if not rule.holds(value):
            raise DataError(
                f"{file}: {at}{key}: {format_for_error(value)} is not {rule.words}. {cure}"
            )


def format_for_error(value: Any) -> str:
    """A value for an error message: at most 60 characters."""
    if isinstance(value, int) and not -MOST < value < MOST:
        return "an integer of many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LINE = 4096  # bytes: more than a line of metrics has
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
# In a classification's entry; older results lack them
BY_CLASS = {"balanced_accuracy": PERCENT.or_null(), "per_class": OBJECTS}
OF_A_CLASS = {"class": TEXT, "images": STEP, "recall": PERCENT.or_null()}
# Also used by the summary of a single run
SUMMARY = {
    "parameters": STEP,
    "epochs": POSITIVE.or_null(),
    "steps": STEP.or_null(),
    "seconds_prepare": POSITIVE,
    "seconds_eval": POSITIVE,
    "images_per_second": POSITIVE,
    "peak_memory_mb": POSITIVE.or_null(),
}
# Of runs that warm up, and of runs on a GPU
SUMMARY_OPTIONAL = {"seconds_warmup": POSITIVE, "peak_reserved_mb": POSITIVE}
SUMMARY_PROTOCOL = {
    **dict.fromkeys(("precision", "weights", "decoder", "interpolation"), TEXT),
    **dict.fromkeys(("mean", "std"), NUMBERS),
    "preprocessing": MAPPING,
}
OF_ANY_LINE = {"kind": Rule("train or eval", lambda value: value in ("train", "eval"))}
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
EARLIER = {  # of a run that was resumed with other threads, device or torch
    "earlier": Rule(
        "an object of lists",
        lambda v: isinstance(v, dict) and all(isinstance(seen, list) for seen in v.values()),
    )
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
        "strings by key", lambda v: MAPPING.holds(v) and all(map(TEXT.holds, v.values()))
    ),
    "places": OBJECTS,
}


def read_text(path: Path) -> str:
    """The text of a file; raises `DataError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not UTF-8, or an impossible file name
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
    """The failure record of a run; None without one. Raises `DataError`."""
    if not run.failure.is_file():
        return None
    record = read_json(run.failure)
    check_keys(run.failure, record, FAILURE, "Remove the file; the run then counts as not run.")
    return FailureRecord(**{key: record[key] for key in FAILURE})


def read_result(run: RunDirectory, *, summarised: bool = False) -> dict[str, Any]:
    """A run's result, with every value checked; raises `DataError`.

    `summarised`: also check what `rescue train` prints below its table.
    """
    file = run.result
    cure = f"Remove the file, and run the command in {run.command} again."
    result = read_json(file)
    check_keys(file, result, RESULT, cure)
    entries = result["sets"]
    for index, entry in enumerate(entries):
        at = f"sets[{index}]."
        check_keys(file, entry, ENTRY, cure, at)
        check_keys(file, entry["protocol"], PROTOCOL, cure, f"{at}protocol.")
        _check_metrics(file, entry, metric_names(entries[0]), cure, at)
        check_keys(file, entry, {k: rule for k, rule in BY_CLASS.items() if k in entry}, cure, at)
        for number, row in enumerate(entry.get("per_class", [])):
            check_keys(file, row, OF_A_CLASS, cure, f"{at}per_class[{number}].")
    check_keys(file, result["protocol"], PROTOCOL, cure, "protocol.")
    _check_metrics(file, result, metric_names(entries[0]), cure)
    for key in ("count", metric_names(entries[0])[0]):
        if result[key] != entries[0][key]:
            raise DataError(
                f"{file}: {key}: {format_for_error(result[key])}, and sets[0].{key} is "
                f"{format_for_error(entries[0][key])}; they must be equal. {cure}"
            )
    if len({measurement_name(entry, entries) for entry in entries}) < len(entries):
        raise DataError(f"{file}: sets: two measurements have the same set and protocol. {cure}")
    if summarised:
        optional = {k: rule for k, rule in SUMMARY_OPTIONAL.items() if k in result}
        check_keys(file, result, {**SUMMARY, **optional}, cure)
        check_keys(file, result["protocol"], SUMMARY_PROTOCOL, cure, "protocol.")
    return result


def _check_metrics(
    file: Path | str, entry: Mapping[str, Any], metrics: list[str], cure: str, at: str = ""
) -> None:
    """Raises `DataError` unless the entry has these metrics, in percent."""
    if not metrics:
        raise DataError(f"{file}: {at[:-1] or 'it'} has none of {', '.join(METRICS)}. {cure}")
    check_keys(file, entry, dict.fromkeys(metrics, PERCENT), cure, at)


def read_environment(run: RunDirectory) -> dict[str, Any]:
    """The environment of a run, as its worker needs it; raises `DataError`."""
    environment = read_json(run.environment)
    rules = ENVIRONMENT | (EARLIER if "earlier" in environment else {})
    check_keys(run.environment, environment, rules, "Start the run in another folder.")
    return environment


def read_identity(run: RunDirectory) -> dict[str, Any] | None:
    """The fingerprints of a run's data; None of a run without data.json. Raises `DataError`."""
    if not run.data.is_file():
        return None
    identity = read_json(run.data)
    check_keys(run.data, identity, IDENTITY, "Restore it; without it the data are not checked.")
    return identity


def read_command(run: RunDirectory) -> str:
    """The command that started the run, in one line; raises `DataError`."""
    lines = read_text(run.command).splitlines()
    if not lines:
        raise DataError(f"{run.command}: is empty. Write the command that started the run into it.")
    return lines[0]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a truncated last line is skipped.

    Raises `DataError`.
    """
    return list(each_line(path))


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_metrics`, one line at a time: a long run has millions."""
    return (entry for entry, _ in each_line_and_text(path))


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's evaluations, one for each step that has any: its first measurement.

    That is what every evaluation measures; the last one may add test-time augmentations.
    """
    return first_measurement([line for line in each_line(path) if line["kind"] == "eval"])


def first_measurement(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the lines of evaluations those of the measurement that is the first."""
    measurements = [[line.get(key) for key in ("set", "size", "crop", "tta")] for line in lines]
    return [line for line, of in zip(lines, measurements, strict=True) if of == measurements[0]]


def each_line_and_text(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """As `each_line`, each with the text that holds it."""
    cure, name = "Remove the line.", str(path)
    metrics: list[str] = []  # the first evaluation's
    before = 0
    for number, line in enumerate(_whole_lines(path), 1):
        where = f"{name}, line {number}"
        entry = _object(line, where, cure)
        check_keys(where, entry, OF_ANY_LINE, cure)
        check_keys(where, entry, LINES[entry["kind"]], cure)
        check_keys(where, entry, {k: rule for k, rule in IF_THERE.items() if k in entry}, cure)
        if entry["step"] < before:
            raise DataError(f"{where}: step: {entry['step']} comes after {before}. {cure}")
        before = entry["step"]
        if entry["kind"] == "eval":
            metrics = metrics or metric_names(entry)
            _check_metrics(where, entry, metrics, cure)
        yield entry, line


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines without their ends, but for a last one that has none; raises `DataError`.

    None where there is no file.
    """
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line[:-1] for line in file if line.endswith("\n"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        read_text(path)  # whose error names the place in the whole file


@dataclass(frozen=True)
class Reached:
    """How far a run is, for a progress bar."""

    epoch: float = 0.0
    loss: float | None = None  # of training
    score: tuple[str, float] | None = None  # the last evaluation's heading and main metric


def read_reached(run: RunDirectory) -> Reached:
    """From the end of `metrics.jsonl`, and from the epoch that a run at work has noted.

    Errors count as nothing reached: they are raised where a result is read.
    """
    epoch, loss, score = 0.0, None, None
    for line in _last_lines(run.metrics):
        epoch = float(line["epoch"]) if POSITIVE.holds(line.get("epoch")) else epoch
        if line.get("kind") == "train" and NUMBER.holds(line.get("loss")):
            loss = float(line["loss"])
        for metric in metric_names(line)[:1]:
            if PERCENT.holds(line[metric]):
                score = (METRICS[metric].removesuffix(" %"), float(line[metric]))
    try:
        noted = float(run.epoch.read_text())
    except (OSError, ValueError):
        noted = 0.0
    return Reached(max(epoch, noted) if EPOCH.holds(noted) else epoch, loss, score)


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines at the end of a file of JSON objects; fewer on errors."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LINE))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    values = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # the first may be cut
            values.append(json.loads(line))
    return [value for value in values if isinstance(value, dict)]


def read_arrays(path: Path, *names: str) -> dict[str, "NDArray[np.generic]"]:
    """The arrays in an .npz file, `names` among them; raises `DataError`."""
    import zipfile
    import zlib

    import numpy as np

    cure = f"Write it again: rescue eval {path.parent.parent}"
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = dict(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. {cure}") from None
    except (ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable .npz file: {error}. {cure}") from None
    for name in names:
        if name not in arrays:
            raise DataError(f"{path}: has no array {name}. {cure}")
    return arrays
