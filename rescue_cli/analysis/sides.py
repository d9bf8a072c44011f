"""The sides of a comparison: runs, sweeps, published accuracies, and numbers that are typed in."""

import math
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescue_cli import recipe as recipes
from rescue_cli.analysis.image_tables import read_image_table
from rescue_cli.analysis.stats import PERCENT, Sample, sample
from rescue_cli.analysis.sweep import PREFIX, Sweep, published_sample, read_sweep
from rescue_cli.errors import DataError, UsageError
from rescue_cli.metrics.names import by_measurement, measurement_stem, score
from rescue_cli.recipe.changes import is_timm
from rescue_cli.rundir import (
    RunDirectory,
    each_line,
    first_measurement,
    read_arrays,
    read_result,
)
from rescue_cli.rundir.planned import How
from rescue_cli.runs.console import note

MAIN = ("val", "test")  # what data sets call their test images
OWN = "folder"  # the data set of the user's own images
ALIKE = 0.1  # by which the training times of two sides may differ that cost the same
GIVE, MOST_NAMED = "Give a run or a sweep.", 3
# The file that marks the folder of a search, and its page or picture
SEARCHES = {"lr-range.json": "lr-range.png", "tune.json": "tune.html"}
NUMBER = r"[0-9]+(\.[0-9]+)?"
TYPED = re.compile(rf"(?P<mean>{NUMBER})((±|\+-|\+/-)(?P<std>{NUMBER}))?(/(?P<n>[0-9]+))?")
IN_COMMON = "On those in common:"  # the command that compares the rest
MOST_RUNS = 1_000_000  # of a number that is typed


@dataclass(frozen=True)
class Point:
    """One evaluation of a run."""

    epoch: float
    step: int
    seconds: float  # of training until then
    top1: float


@dataclass(frozen=True)
class Images:
    """What an accuracy was measured on; for a published one only the data set is known."""

    data: str
    set: str | None = None
    count: int | None = None
    files: tuple[str, ...] | None = None  # of a folder of the user's own: CLASS/FILE, in order

    def __str__(self) -> str:
        if self.set is None:
            return self.data
        return f"{self.data} {self.set} ({self.count:,} images)"

    def may_equal(self, other: "Images") -> bool:
        """Whether they may be the same images; a `folder` may hold any data set.

        A published accuracy is on its data set's main test images.
        """
        if self.files is not None and other.files is not None:
            return self.files == other.files
        if self.data != other.data and OWN not in (self.data, other.data):
            return False
        if self.set is None or other.set is None:
            return {self.set, other.set} <= {None, *MAIN}
        return (self.set, self.count) == (other.set, other.count)


@dataclass(frozen=True)
class Side:
    """One side of a comparison; `values` in percent by seed where single runs are known."""

    name: str
    sample: Sample
    values: Mapping[int, float] = field(default_factory=dict)
    paths: Mapping[int, Path] = field(default_factory=dict)
    images: Images | None = None  # None for a number that was typed in
    # every measurement of its runs; the first is `values` and `images`
    sets: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    images_of: Mapping[str, Images] = field(default_factory=dict)
    missing: Mapping[int, How] = field(default_factory=dict)  # planned seeds without a result
    folder: Path | None = None  # of a sweep
    row: str | None = None  # the measurement compared, where there are several or one was chosen
    epochs: float | None = None  # of training
    networks: Mapping[int, str] = field(default_factory=dict)  # the weights measured, by seed
    # A published mean may come with a std, and without a number of runs: it is then taken as one
    stated_std: float | None = None
    counts_runs: bool = True
    has_curve: bool = True  # of its row; while training, runs are measured on the first
    kept: Sequence[int] | None = None  # the test images that are compared, where not all are

    @property
    def row_is_chosen(self) -> bool:
        return self.row is not None and "#" in self.name

    @cached_property
    def warnings(self) -> list[str]:
        """What makes its accuracy say little, in a sentence each; the same of several runs once."""
        label = self.row or next(iter(self.sets), None)
        found = [line for path in self.paths.values() for line in image_warnings(path, label)]
        return [f"{self.name}: {line}" for line in dict.fromkeys(found)]

    @cached_property
    def curves(self) -> dict[int, list[Point]]:
        """Each run's evaluations on the first row, read once."""
        if not self.has_curve:
            return {}
        return {seed: read_points(path) for seed, path in self.paths.items()}


def load_sides(words: Sequence[str]) -> list[Side]:
    """The sides that the words name; raises `UsageError` also where a run would count twice."""
    sides = [load_side(word) for word in words]
    for a, b in combinations(sides, 2):
        if (problem := shared_run(a, b)) is not None:
            raise UsageError(f"compare: {problem} Give one of them.")
    return sides


def load_comparable(words: Sequence[str]) -> list[Side]:
    """As `load_sides`; raises `UsageError` also for sides measured on different test images.

    Single runs are compared on the images that all were tested on, with a note. Warnings about a
    side's test images and a note on classes that differ are printed.
    """
    sides = load_sides(words)
    for line in [*(f"warning: {line}" for side in sides for line in side.warnings),
                 *differing_classes(sides)]:  # fmt: skip
        note(line)
    if (difference := different_images(sides)) is None:
        return sides
    common = _common_files(sides)
    if not common:
        raise UsageError(f"compare: {difference} Evaluate them on the same images: rescue eval.")
    note(f"compared on the test images in common: {difference}")
    return [_on_images(side, common) for side in sides]


def _common_files(sides: Sequence[Side]) -> tuple[str, ...]:
    """The images that single runs were all tested on, where these are known by their names."""
    every = [side.images.files for side in sides if side.images and side.images.files]
    if len(every) < len(sides) or any(len(side.paths) > 1 for side in sides):
        return ()
    if any(len({*files}) < len(files) for files in every):
        return ()
    shared = set.intersection(*map(set, every))
    return tuple(file for file in every[0] if file in shared)


def _on_images(side: Side, files: tuple[str, ...]) -> Side:
    """A single run on some of its test images; raises `DataError` without its predictions."""
    assert side.images is not None
    place = {file: index for index, file in enumerate(side.images.files or ())}
    kept = [place[file] for file in files]
    label, ((seed, path),) = side.row or next(iter(side.sets)), side.paths.items()
    correct = correct_predictions(load_predictions(path, label))[kept]
    values = {seed: 100 * float(correct.mean())}
    images = replace(side.images, count=len(kept), files=files)
    return replace(
        side, sample=sample(list(values.values())), values=values, images=images,
        sets={label: values}, images_of={label: images}, has_curve=False, kept=kept,
    )  # fmt: skip


def load_side(text: str) -> Side:
    """The side that a word of the command line names; raises `UsageError`, `DataError`."""
    if (side := _measured(text)) is not None:
        return side
    word, _, row = text.rpartition("#")
    if word and (side := _measured(word)) is not None:
        return _select_row(side, text, row)
    if is_recipe(text):
        recipe = recipes.load(text)
        expect = recipe.tree.get("expect")
        if not expect or not ("paper" in recipe.tree or {"std", "n"} & expect.keys()):
            aim = f"; {expect['top1']:g} % is an aim" if expect else ""
            raise UsageError(
                f"{text}: this recipe has no published accuracy{aim}. Give a run or a sweep of it."
            )
        return Side(
            f"{text} (expected)",
            published_sample(expect),
            images=Images(recipe.data.name),
            epochs=recipe.train.epochs,
            stated_std=expect.get("std"),
            counts_runs=expect.get("n") is not None,
        )
    if (number := parse_typed_result(text)) is not None:
        return Side(text, number)
    raise UsageError(
        f"compare: '{shorten(text)}' is not a run, a sweep, a recipe or a number. "
        "Give a directory (RUN#flip: its row with flip), a recipe's name, or MEAN±STD/N such as "
        "79.72±0.10/100."
    )


def is_recipe(text: str) -> bool:
    """Whether a word is the name or the path of a recipe."""
    return text in recipes.names() or (text.endswith(".yaml") and os.path.isfile(text))


def _measured(text: str) -> Side | None:
    """The side that a run or a sweep is; None of other words."""
    path = Path(text)
    if RunDirectory(path).finished:
        return _run(text, path)
    if not os.path.isdir(path):
        return None
    # A transfer from one start has its sweep below
    inside = [] if any(path.glob(f"{PREFIX}*")) else sweeps_in(path)
    return _sweep(text, Path(inside[0]) if len(inside) == 1 else path)


def _select_row(side: Side, text: str, row: str) -> Side:
    """The side on the measurement that `row` names: `flip`, `24px`, `val,224px@0.95,flip`.

    Raises `UsageError` unless it names exactly one.
    """
    asked = row.replace(",", " ").split()
    found = [
        label
        for label in side.sets
        if asked
        and all(any(p == a or p.startswith(f"{a}@") for p in label.split(" ")) for a in asked)
    ]
    if len(found) != 1:
        rows = ", ".join(label.replace(" ", ",") for label in side.sets)
        count = "several rows" if found else "no row"
        raise UsageError(
            f"compare: '{shorten(text)}': #{shorten(row)} names {count} of {side.name}. "
            f"Rows: {rows}. Give what only one has, as {side.name}#{_shortest(list(side.sets))}."
        )
    label = found[0]
    chosen = replace(at_measurement(side, label), name=text, row=label)
    return replace(chosen, sets={label: chosen.values})


def _shortest(labels: Sequence[str]) -> str:
    """A part that only the last label has, else the whole label."""
    *others, last = labels
    known = {part for label in others for part in label.split(" ")}
    return next((part for part in last.split(" ") if part not in known), last.replace(" ", ","))


def at_measurement(side: Side, label: str) -> Side:
    """The side on another of its measurements."""
    values = side.sets[label]
    return replace(
        side,
        values=values,
        sample=sample(list(values.values())),
        images=side.images_of[label],
        row=side.row and label,
        has_curve=label == next(iter(side.sets)),
    )


def _first_of_several(names: Sequence[str]) -> str | None:
    return names[0] if len(names) > 1 else None


def _network(path: Path, result: Mapping[str, Any]) -> tuple[str, Path]:
    """The weights that a run ends with, or that an evaluation measured, and their run directory."""
    run = RunDirectory(path)
    if result.get("epochs") is not None or run.weights.is_file() or not run.recipe.is_file():
        return str(run.weights.resolve()), path
    # `rescue eval` writes to RUN/evals/N, and to SWEEP/evals/N/seed-S
    place = path.absolute()
    for trained in (place.parents[1], *(p / place.name for p in place.parents[2:3])):
        run_of = RunDirectory(trained)
        if "evals" in (place.parent.name, place.parents[1].name) and run_of.weights.is_file():
            return str(run_of.weights.resolve()), trained
    weights = recipes.recipe_in(path).tree["model"].get("weights")
    if not isinstance(weights, str) or is_timm(weights):
        return str(weights or run.weights.resolve()), path
    return str(Path(weights).resolve()), Path(weights).parent


def _epochs(result: Mapping[str, Any], trained: Path) -> float | None:
    """How long the network was trained, by its run's result; None where that is not known."""
    if result.get("epochs") is not None:
        return float(result["epochs"])
    run = RunDirectory(trained)
    if not run.weights.is_file() or not run.finished:
        return None
    epochs = read_result(run).get("epochs")
    return None if epochs is None else float(epochs)


def _run(text: str, path: Path) -> Side:
    result = read_result(RunDirectory(path))
    seed = int(result["seed"] or 0)
    value = score(result)
    sets = {name: {seed: score(each)} for name, each in by_measurement(result["sets"]).items()}
    network, trained = _network(path, result)
    images = _images_of(path, result["sets"])
    return Side(
        text,
        sample([value]),
        {seed: value},
        {seed: path},
        next(iter(images.values())),
        sets,
        images,
        row=_first_of_several(list(sets)),
        epochs=_epochs(result, trained),
        networks={seed: network},
        has_curve="fit" not in result,
    )


def _sweep(text: str, path: Path) -> Side:
    refuse_search(path)
    return side_of_sweep(text, read_sweep(path))


def _see_failures(sweep: Sweep) -> str:
    """`See seed-3/failure.json, and run`, where a run has such a file; else `Run`."""
    failed = [seed for seed, run in sweep.missing.items() if run.how in ("diverged", "failed")]
    return f"See {PREFIX}{failed[0]}/failure.json, and run" if failed else "Run"


def side_of_sweep(text: str, sweep: Sweep) -> Side:
    """The side that a sweep is; raises `DataError` where none of its runs has a result."""
    path = sweep.path
    if not sweep.results:
        raise DataError(
            f"{path}: none of its {sweep.seeds_text.removeprefix('0 of ')} has a result. "
            f"{_see_failures(sweep)} the sweep again."
            if sweep.missing
            else f"{path}: has neither result.json nor a seed-N/ with one. "
            + (f"Give {' or '.join(inside)}." if (inside := sweeps_in(path)) else GIVE)
        )
    values = {seed: score(result) for seed, result in sweep.results.items()}
    first = next(iter(sweep.results.values()))
    paths = {seed: path / f"{PREFIX}{seed}" for seed in values}
    images = _images_of(next(iter(paths.values())), first["sets"])
    networks = {seed: _network(paths[seed], result) for seed, result in sweep.results.items()}
    return Side(
        text,
        sample(list(values.values())),
        values,
        paths,
        next(iter(images.values())),
        {name: sweep.values(name) for name in sweep.measurements},
        images,
        {seed: run.how for seed, run in sweep.missing.items()},
        folder=path,
        row=_first_of_several(sweep.measurements),
        epochs=_epochs(first, next(iter(networks.values()))[1]),
        networks={seed: network for seed, (network, _) in networks.items()},
        has_curve="fit" not in first,
    )


def sweeps_in(path: Path) -> list[str]:
    """The folders in a folder, as of a transfer, that are sweeps; the first few."""
    inside = sorted({str(run.parents[1]) for run in path.glob(f"*/{PREFIX}*/result.json")})
    return inside[:MOST_NAMED]


def select_seeds(side: Side, seeds: Collection[int]) -> Side:
    """A sweep with these seeds alone; raises `DataError` where none has a result."""

    def select(by_seed: Mapping[int, Any]) -> dict[int, Any]:
        return {seed: value for seed, value in by_seed.items() if seed in seeds}

    values = select(side.values)
    if not values:
        raise DataError(f"{side.name}: none of these seeds has a result.")
    return replace(
        side,
        sample=sample(list(values.values())),
        values=values,
        paths=select(side.paths),
        sets={name: select(by_seed) for name, by_seed in side.sets.items()},
        missing=select(side.missing),
        networks=select(side.networks),
    )


def refuse_search(path: Path) -> None:
    """Raises `DataError` for the folder of a range test or of `tune`: its runs are not a sweep."""
    for file, page in SEARCHES.items():
        if (path / file).is_file():
            raise DataError(f"{path}: holds a search and not a sweep. Open {path / page}.")


def _images(path: Path, entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Images:
    """The test images of one of a run's measurements."""
    protocol, files = entry["protocol"], None
    table = RunDirectory(path).image_table(measurement_stem(entry, entries))
    if protocol["data"] == OWN and table.is_file():
        # Below the class folder, so that a folder that has moved is the same
        files = tuple("/".join(row.file.split("/")[-2:]) for row in read_image_table(table))
    return Images(protocol["data"], protocol["set"], int(entry["count"]), files)


def _images_of(path: Path, entries: Sequence[Mapping[str, Any]]) -> dict[str, Images]:
    return {name: _images(path, each, entries) for name, each in by_measurement(entries).items()}


def image_warnings(path: Path, label: str | None = None) -> list[str]:
    """Why a run's results say little, in a sentence each: above all, test images that it was
    trained on. `label`: only of the test set of this measurement.
    """
    result = read_result(RunDirectory(path))
    named = by_measurement(result["sets"])
    sets = {entry["set"]: entry for name, entry in named.items() if label in (None, name)}
    trained = [
        f"{name}: {count:,} of these {entry['count']:,} images were trained on, by their names "
        "and sizes; accuracy on them says nothing about new ones"
        for name, entry in sets.items()
        if (count := entry["protocol"].get("trained_on"))
    ]
    start = tuple("warning: " if label is None else f"warning: {name}: " for name in sets)
    noted = [line for line in result.get("notes", []) if line.startswith(start)]
    return [*trained, *(line.removeprefix("warning: ") for line in noted)]


def differing_classes(sides: Sequence[Side]) -> list[str]:
    """For each two sides whose networks know different classes, which these are, in a line."""
    lines = []
    for a, b in combinations(sides, 2):
        known = [_classes(side) for side in (a, b)]
        only = [[name for name in each if name not in other]
                for each, other in (known, known[::-1])]  # fmt: skip
        if all(known) and any(only):
            apart = [
                f"only {side.name} has {', '.join(names[:MOST_NAMED])}"
                + (f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else "")
                for side, names in zip((a, b), only, strict=True)
                if names
            ]
            lines.append(f"the classes differ: {'; '.join(apart)}. Their images are not compared.")
    return lines


def _classes(side: Side) -> dict[str, None]:
    """The classes of a side's first run; empty where they are not known."""
    for path in side.paths.values():
        entry = read_result(RunDirectory(path))["sets"][0]
        return {row["class"]: None for row in entry.get("per_class", [])}
    return {}


def different_images(sides: Sequence[Side]) -> str | None:
    """The first two sides that were measured on different images, as a sentence; else None."""
    for a, b in combinations(sides, 2):
        if a.images and b.images and not a.images.may_equal(b.images):
            known = None not in (a.images.files, b.images.files)
            shared = len({*(a.images.files or ())} & {*(b.images.files or ())})
            common = f", {shared:,} in common" if known else ""
            return f"{a.name} was measured on {a.images}, {b.name} on {b.images}{common}."
    return None


def shared_run(a: Side, b: Side) -> str | None:
    """The run that two sides have in common, as a sentence; else None.

    Also where both measure its network in the same way, as a run and its evaluation without
    changes. Two rows of one run are two measurements of its network.
    """
    two_rows = a.row != b.row and (a.row_is_chosen or b.row_is_chosen)
    runs_of_b = {path.resolve(): path for path in b.paths.values()}
    for path in a.paths.values():
        if not two_rows and (other := runs_of_b.get(path.resolve())) is not None:
            also = "" if other == path else f" (as {other})"
            return f"{path} is a run of both {a.name} and {b.name}{also}, and would count twice."
    seed_in_b = {network: seed for seed, network in b.networks.items()}
    for seed, network in a.networks.items():
        if (same := seed_in_b.get(network)) is None:
            continue
        first, second = a.paths[seed], b.paths[same]
        if _measured_by(first, a.row) == _measured_by(second, b.row):
            return (
                f"{first} and {second} are the same network, measured in the same way, and would "
                "count twice."
            )
    return None


def _measured_by(path: Path, row: str | None) -> tuple[Any, ...]:
    """How, and on which images, a run's row was measured; by default its first."""
    entries = read_result(RunDirectory(path))["sets"]
    entry = entries[0] if row is None else by_measurement(entries)[row]
    # Folders of images share a name; only the recipe says which one it was
    data = recipes.recipe_in(path).tree["data"] if RunDirectory(path).recipe.is_file() else path
    return entry["protocol"], entry["count"], data


def read_points(path: Path) -> list[Point]:
    """A run's evaluations on its first measurement, with the seconds trained until each."""
    seconds: dict[int, float] = {}  # by step, which never falls from line to line
    tests = []
    for line in each_line(RunDirectory(path).metrics):
        if line["kind"] == "train":
            seconds[line["step"]] = line["seconds"]
        else:
            tests.append(line)
    steps, longest = list(seconds), [0.0, *accumulate(seconds.values(), max)]
    return [
        Point(
            line["epoch"],
            line["step"],
            longest[bisect_right(steps, line["step"])],
            score(line),
        )
        for line in first_measurement(tests)
    ]


def load_predictions(path: Path, name: str | None = None) -> dict[str, NDArray[Any]]:
    """A run's stored predictions of a measurement, its first by default; raises `DataError`."""
    run = RunDirectory(path)
    entries = read_result(run)["sets"]
    named = by_measurement(entries)
    if name is not None and name not in named:
        raise DataError(f"{path}: was not measured on {name}. Measured: {', '.join(named)}.")
    entry = entries[0] if name is None else named[name]
    file = run.predictions(measurement_stem(entry, entries))
    if not file.is_file():
        raise DataError(f"{path}: has no stored predictions. Evaluate it: rescue eval {path}")
    arrays = read_arrays(file)
    if {"detections", "counts"} & arrays.keys():
        return arrays
    if any(len(np.atleast_1d(arrays.get(key, ()))) != entry["count"] for key in ("labels", "top")):
        raise DataError(
            f"{file}: labels and top must have one entry for each of the {entry['count']} images "
            f"in result.json. Write it again: rescue eval {path}"
        )
    return arrays


def correct_predictions(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Which test images are classified correctly: as any of their labels. In the set's order."""
    labels = arrays["labels"]
    correct: NDArray[np.bool_] = (arrays["top"][:, :1] == labels.reshape(len(labels), -1)).any(1)
    return correct


def count_test_images(path: Path) -> int:
    """The test images of a run's first measurement."""
    return int(read_result(RunDirectory(path))["count"])


def first_reaching(curves: Mapping[int, list[Point]], top1: float) -> dict[int, Point]:
    """The first evaluation of each run with at least that accuracy, by seed."""
    firsts = {
        seed: next((p for p in line if p.top1 >= top1), None) for seed, line in curves.items()
    }
    return {seed: point for seed, point in firsts.items() if point is not None}


def at_equal_budget(a: Side, b: Side, what: str) -> tuple[float, Side, Side] | None:
    """The last `epoch`, or `seconds`, that every run of both has reached, and both sides then.

    Between two evaluations of a run its accuracy is interpolated: a run that was a second slower
    would else be represented by its last evaluation but one. None of seconds where both sides take
    about as long, which differ by what else the machine did.
    """
    curves = [a.curves, b.curves]
    lines = [line for side in curves for line in side.values()]
    if not all(curves) or not all(lines):  # a typed number and a published accuracy have no curve
        return None
    if what == "seconds":
        means = [fmean(line[-1].seconds for line in side.values()) for side in curves]
        if min(means) > (1 - ALIKE) * max(means):
            return None
    end = min(getattr(line[-1], what) for line in lines)
    sides = []
    for side, by_seed in zip((a, b), curves, strict=True):
        values = {}
        for seed, line in by_seed.items():
            at = [getattr(point, what) for point in line]
            if at[0] > end * (1 + 1e-9):
                return None
            values[seed] = float(np.interp(end, at, [point.top1 for point in line]))
        sides.append(Side(side.name, sample(list(values.values())), values))
    return end, sides[0], sides[1]


def recipe_and_epoch_length(path: Path) -> tuple[Any, int]:
    """The run's recipe, and the steps per epoch; raises `DataError` where they are not known."""
    recipe = recipes.recipe_in(path)
    (last,) = deque(each_line(RunDirectory(path).metrics), maxlen=1)
    if not last["epoch"]:
        raise DataError(
            f"{path}: every line of metrics.jsonl is from epoch 0. Train the run further."
        )
    return recipe, max(1, round(last["step"] / last["epoch"]))


def parse_typed_result(text: str) -> Sample | None:
    """The sample that `MEAN±STD/N` gives; None for other words.

    Raises `UsageError` for values that no runs can have.
    """
    match = TYPED.fullmatch(text)
    if match is None:
        return None
    mean, text, alone = float(match["mean"]), shorten(text), shorten(match["mean"])
    if not mean <= PERCENT[1]:
        raise UsageError(f"compare: '{text}' is not an accuracy in percent. Give 0 to 100.")
    if match["std"] is not None and match["n"] is None:
        raise UsageError(f"compare: '{text}' lacks the number of runs. Write {text}/N, or {alone}.")
    digits = (match["n"] or "1").lstrip("0")
    n = int(digits or 0) if len(digits) <= len(str(MOST_RUNS)) else MOST_RUNS + 1
    if not 1 <= n <= MOST_RUNS:
        raise UsageError(
            f"compare: '{text}' must have 1 to {MOST_RUNS:,} runs. Write MEAN±STD/N, N the runs."
        )
    if match["std"] is None:
        return Sample(mean, None, n)
    if n == 1:
        raise UsageError(
            f"compare: '{text}' has a std, but one run has none. "
            f"Give the number of runs, or write {alone}."
        )
    std = float(match["std"])
    largest = PERCENT[1] / 2 * math.sqrt(n / (n - 1))  # half of the runs at each end
    if not std <= largest:
        raise UsageError(
            f"compare: '{text}' has a std larger than {n} accuracies in percent can have. "
            f"Give 0 to {largest:.1f}."
        )
    return Sample(mean, std, n)


def shorten(text: str) -> str:
    """A word for an error message: at most 60 characters, unprintable ones escaped."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def group_comparable(sides: Sequence[Side]) -> tuple[list[list[Side]], list[str]]:
    """Groups of sides that may be compared with one another, and why there are several.

    A group of one is not compared.
    """
    groups: list[list[Side]] = []
    why = []
    for side in sides:
        reasons = [[_apart(other, side) for other in group] for group in groups]
        fits = [group for group, problems in zip(groups, reasons, strict=True) if not any(problems)]
        if fits:
            fits[0].append(side)
            continue
        why += [next(reason for reason in problems if reason) for problems in reasons]
        groups.append([side])
    return groups, why


def _apart(a: Side, b: Side) -> str | None:
    """Why two sides may not be compared with each other, as a sentence; else None."""
    if (shared := shared_run(a, b)) is not None:
        return shared
    difference = different_images([a, b])
    if difference is not None and _common_files([a, b]):
        difference += f" {IN_COMMON} rescue compare {a.name} {b.name}"
    return difference
