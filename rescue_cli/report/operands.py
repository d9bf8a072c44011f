"""What can be compared: runs, sweeps, recipes' claims, and numbers that are typed in."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescue_cli import recipe as recipes
from rescue_cli.errors import DataError, UsageError
from rescue_cli.report import sweeps
from rescue_cli.report.planned import How, counted_lost
from rescue_cli.results import RunDirectory, label, read_json, read_metrics, score, stem
from rescue_cli.statistics import PERCENT, Sample, sample

MAIN = ("val", "test")  # what data sets call their test images
TYPED = re.compile(r"(?P<mean>\d+(\.\d+)?)((±|\+-|\+/-)(?P<std>\d+(\.\d+)?))?(/(?P<n>\d+))?")


@dataclass(frozen=True)
class Point:
    """Where a run stood at one evaluation."""

    epoch: float
    step: int
    seconds: float  # of training until then
    top1: float


@dataclass(frozen=True)
class Images:
    """What an accuracy was measured on; of a recipe's claim the data set alone is known."""

    data: str
    set: str | None = None
    count: int | None = None

    def __str__(self) -> str:
        if self.set is None:
            return self.data
        return f"{self.data} {self.set} ({self.count:,} images)"

    def can_be(self, other: "Images") -> bool:
        """Whether they may be the same; a folder of one's own may hold any data set.

        A claim is of its data set's main test images.
        """
        if self.data != other.data and "folder" not in (self.data, other.data):
            return False
        if self.set is None or other.set is None:
            return {self.set, other.set} <= {None, *MAIN}
        return (self.set, self.count) == (other.set, other.count)


@dataclass(frozen=True)
class Operand:
    """One side of a comparison; `values` by seed where single runs are known."""

    name: str
    sample: Sample
    values: Mapping[int, float] = field(default_factory=dict)
    paths: Mapping[int, Path] = field(default_factory=dict)
    images: Images | None = None  # None of a number, which does not say
    # every measurement of its runs, the first of which is `values` and `images`
    sets: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    images_of: Mapping[str, Images] = field(default_factory=dict)
    lost: Mapping[int, How] = field(default_factory=dict)  # planned seeds without a result

    @property
    def lost_words(self) -> str:
        """`4 diverged, 1 failed`; empty where every planned seed has a result."""
        return counted_lost(self.lost.values())

    def curves(self) -> dict[int, list[Point]]:
        """Each run's evaluations."""
        return {seed: points(path) for seed, path in self.paths.items()}


def operand(text: str) -> Operand:
    """What a word of the command line stands for; raises `UsageError`, `DataError`."""
    path = Path(text)
    if RunDirectory(path).result.is_file():
        result = read_json(RunDirectory(path).result)
        seed = int(result["seed"] or 0)
        value = score(result)
        entries = {label(entry, result["sets"]): entry for entry in result["sets"]}
        return Operand(
            text,
            sample([value]),
            {seed: value},
            {seed: path},
            _images(result),
            {name: {seed: score(entry)} for name, entry in entries.items()},
            _images_of(result),
        )
    if path.is_dir():
        return _sweep(text, path)
    if is_recipe(text):
        recipe = recipes.load(text)
        expect = recipe.tree.get("expect")
        if not expect:
            raise UsageError(f"{text}: the recipe expects nothing. Give a run or a sweep of it.")
        claim = sweeps.published(expect)
        return Operand(f"{text} (expected)", claim, images=Images(recipe.data.name))
    typed = TYPED.fullmatch(text)
    if typed is not None:
        std = typed["std"]
        if float(typed["mean"]) > PERCENT[1]:
            raise UsageError(f"compare: '{text}' is no accuracy in percent. Give 0 to 100.")
        if std is not None and typed["n"] is None:
            raise UsageError(
                f"compare: '{text}' does not say of how many runs. "
                f"Write {text}/N, or {typed['mean']}."
            )
        found = Sample(
            float(typed["mean"]), None if std is None else float(std), int(typed["n"] or 1)
        )
        return Operand(text, found)
    raise UsageError(
        f"compare: '{text}' is no run, no sweep, no recipe, and no number. "
        "Give a directory, a recipe's name, or MEAN±STD/N as 79.72±0.10/100."
    )


def is_recipe(text: str) -> bool:
    """Whether a word is a recipe's name, or the path of one."""
    return text in recipes.names() or (text.endswith(".yaml") and Path(text).is_file())


def _sweep(text: str, path: Path) -> Operand:
    found = sweeps.read(path)
    if not found.results:
        raise DataError(
            f"{path}: holds neither result.json nor seed-N/ with one. Give a run or a sweep."
        )
    values = {seed: score(result) for seed, result in found.results.items()}
    paths = {seed: path / f"{sweeps.PREFIX}{seed}" for seed in values}
    first = next(iter(found.results.values()))
    return Operand(
        text,
        sample(list(values.values())),
        values,
        paths,
        _images(first),
        {name: found.values(name) for name in found.measurements},
        _images_of(first),
        {seed: lost.how for seed, lost in found.lost.items()},
    )


def _images(entry: Mapping[str, Any]) -> Images:
    """Those of a result, or of one of its measurements."""
    protocol = entry["protocol"]
    return Images(protocol["data"], protocol["set"], int(entry["count"]))


def _images_of(result: Mapping[str, Any]) -> dict[str, Images]:
    return {label(entry, result["sets"]): _images(entry) for entry in result["sets"]}


def unlike(sides: Sequence[Operand]) -> str | None:
    """Which two sides were measured on other test images, as a sentence; None where none were."""
    for a, b in combinations(sides, 2):
        if a.images and b.images and not a.images.can_be(b.images):
            return f"{a.name} was measured on {a.images}, {b.name} on {b.images}."
    return None


def points(path: Path) -> list[Point]:
    """A run's evaluations on its first measurement, with the seconds trained until each."""
    lines = read_metrics(RunDirectory(path).metrics)
    seconds = {line["step"]: line["seconds"] for line in lines if line["kind"] == "train"}
    found: dict[int, Point] = {}
    for line in lines:
        if line["kind"] == "eval" and line["step"] not in found:
            spent = max((s for step, s in seconds.items() if step <= line["step"]), default=0.0)
            found[line["step"]] = Point(line["epoch"], line["step"], spent, score(line))
    return list(found.values())


def predictions(path: Path, name: str | None = None) -> dict[str, NDArray[Any]]:
    """What a run said of the images of a measurement, its first by default; raises `DataError`."""
    run = RunDirectory(path)
    entries = read_json(run.result)["sets"]
    named = {label(entry, entries): entry for entry in entries}
    if name is not None and name not in named:
        raise DataError(f"{path}: was not measured on {name}. Measured: {', '.join(named)}.")
    file = run.predictions(stem(entries[0] if name is None else named[name], entries))
    if not file.is_file():
        raise DataError(f"{path}: has no stored predictions. Evaluate it: rescue eval {path}")
    with np.load(file) as arrays:
        return dict(arrays)


def right(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Which test images were called right, in the order of the set; any label of several is."""
    labels = arrays["labels"]
    found: NDArray[np.bool_] = (arrays["top"][:, :1] == labels.reshape(len(labels), -1)).any(1)
    return found


def count_of(path: Path) -> int:
    """The test images of a run's first measurement."""
    return int(read_json(RunDirectory(path).result)["count"])


def reached(curves: Mapping[int, list[Point]], top1: float) -> dict[int, Point]:
    """The first evaluation of each run that has at least that accuracy."""
    firsts = {
        seed: next((p for p in line if p.top1 >= top1), None) for seed, line in curves.items()
    }
    return {seed: point for seed, point in firsts.items() if point is not None}


def at_equal(a: Operand, b: Operand, what: str) -> tuple[float, Operand, Operand] | None:
    """Both as they stood at the last `epoch`, or `seconds`, that every run of both had come to."""
    curves = [a.curves(), b.curves()]
    lines = [line for side in curves for line in side.values()]
    if not all(curves) or not all(lines):  # a number, or a claim, has no past
        return None
    end = min(getattr(line[-1], what) for line in lines)
    sides = []
    for side, found in zip((a, b), curves, strict=True):
        values = {}
        for seed, line in found.items():
            before = [p.top1 for p in line if getattr(p, what) <= end * (1 + 1e-9)]
            if not before:
                return None
            values[seed] = before[-1]
        sides.append(Operand(side.name, sample(list(values.values())), values))
    return end, sides[0], sides[1]


def steps_of(path: Path) -> tuple[Any, int]:
    """The run's recipe, and the updates of an epoch."""
    last = points(path)[-1]
    return recipes.recipe_in(path), round(last.step / last.epoch)
