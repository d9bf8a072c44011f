"""What is in a run directory, and how its files are read and written."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rescue_cli.errors import DataError, RescueError, from_code

LINE = 4096  # bytes, more than a line of metrics has
# What tasks measure, in percent, by what tables call it; of each task the first is its score
METRICS = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "ap50": "AP50 %",
    "ap50_07": "AP50 VOC07 %",
    "map": "mAP COCO %",
    "miou": "mIoU %",
    "pixels": "pixels %",
}


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by the part they play."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def samples(self) -> Path:
        return self.path / "samples.npz"

    @property
    def examples(self) -> Path:
        return self.path / "examples.npz"

    def snapshot(self, step: int) -> Path:
        return self.path / "snapshots" / f"{step}.pt"

    def predictions(self, name: str) -> Path:
        return self.path / "predictions" / f"{name}.npz"


@dataclass(frozen=True)
class Word:
    """What a process says of the failure that it ended with, in `failure.json`."""

    rank: int
    exit_code: int
    message: str

    @property
    def error(self) -> RescueError:
        return from_code(self.message, self.exit_code)


def word_of(run: RunDirectory) -> Word | None:
    """The word that the run's processes left; None where they left none."""
    return Word(**read_json(run.failure)) if run.failure.is_file() else None


def score(entry: Mapping[str, Any]) -> float:
    """What a run is judged by, in percent: the first of METRICS that a result or a line has."""
    return float(next(entry[metric] for metric in METRICS if metric in entry))


def label(entry: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """`val`, or `val 224px@0.95 flip`: the set, and what tells it from the others."""
    parts = [str(entry["set"])]
    if len({(e["size"], e["crop"]) for e in among}) > 1:
        parts.append(f"{entry['size']}px@{entry['crop']:g}")
    if len({_tta(e) for e in among}) > 1:
        parts.append(_tta(entry))
    return " ".join(parts)


def stem(entry: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """As `label`, of the entry's own set, for the name of a file: `val-288px@1-flip`."""
    return label(entry, [e for e in among if e["set"] == entry["set"]]).replace(" ", "-")


def _tta(entry: Mapping[str, Any]) -> str:
    return str(entry["protocol"]["tta"] if "protocol" in entry else entry.get("tta"))


def finite(value: float | None) -> float | None:
    """As JSON can have it: None for what is not a number or has no end."""
    return value if value is not None and math.isfinite(value) else None


def said(metrics: Mapping[str, float]) -> str:
    """`top-1 34.30 %`, several after one another."""
    return "  ".join(f"{METRICS[m].removesuffix(' %')} {v:.2f} %" for m, v in metrics.items())


def metrics_of(entry: Mapping[str, Any]) -> list[str]:
    """The metrics that a result or a line of metrics has."""
    return [metric for metric in METRICS if metric in entry]


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a temporary name, flushes it to disk, renames it.

    Whoever reads `path` sees the old file or the new one. Raises `RescueError` where the disk is
    full or the folder cannot be written; the old file then still stands.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = " The one written before still stands." if path.exists() else ""
        reason = " ".join(str(error).split("\n")[0].split())
        raise RescueError(
            f"{path}: could not be written ({reason}).{kept} Free space, and go on from there."
        ) from None


def discard_partials(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left behind.

    What bears this process's own number it will overwrite itself.
    """
    for partial in folder.rglob(".*.partial"):
        if not partial.name.endswith(f".{os.getpid()}.partial"):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `DataError`."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object.")
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut off is passed over."""
    if not path.exists():
        return []
    return list(_lines(path))


def last_epoch(path: Path) -> float:
    """The epoch of the last whole line of `metrics.jsonl`; 0 where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LINE))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0.0
    return float(json.loads(lines[-1])["epoch"]) if lines else 0.0


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
