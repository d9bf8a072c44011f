"""A seed sweep: the results of its runs, and their statistics over seeds."""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rescue_cli.analysis.consistency import (
    check_same_recipe,
    check_same_test,
    check_seeds,
    read_procedures,
)
from rescue_cli.analysis.stats import (
    PERCENT,
    Sample,
    best_seed_bias,
    correlation_interval,
    expected_maximum,
    sample,
    t_interval,
)
from rescue_cli.errors import DataError, UsageError
from rescue_cli.formatting import format_count
from rescue_cli.metrics.names import METRICS, by_measurement, metric_names, score
from rescue_cli.rundir import RunDirectory, read_curve, read_result
from rescue_cli.rundir.planned import (
    MissingRun,
    count_missing,
    missing_to_json,
    read_missing,
    read_planned,
)

PREFIX = "seed-"
MOST_SEEDS = 100_000  # of a sweep
COUNT = re.compile(r"[1-9][0-9]{0,14}")
SEEDS = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15}))?")
NAMED = re.compile(PREFIX + r"(0|[1-9][0-9]{0,14})")
FEWEST_PAIRS = 4  # seeds, for the interval of a correlation
FEWEST_CHOSEN = 5  # seeds, for the worth of the best one


@dataclass(frozen=True)
class Sweep:
    """Runs that differ only in their seed."""

    path: Path
    results: Mapping[int, Mapping[str, Any]]  # by seed, of finished runs
    missing: Mapping[int, MissingRun]  # by seed, of planned runs without a result

    @property
    def seeds_text(self) -> str:
        """How many seeds have a result: `10 seeds`, `6 of 10 seeds (4 diverged)`."""
        n, every = len(self.results), len(self.results) + len(self.missing)
        if not self.missing:
            return format_count(n, "seed")
        return f"{n} of {format_count(every, 'seed')} ({self.missing_text})"

    @property
    def missing_text(self) -> str:
        """`4 diverged, 1 failed`; empty where every planned seed has a result."""
        return count_missing(run.how for run in self.missing.values())

    def values(self, name: str) -> dict[int, float]:
        """The score in percent of each finished seed on one of `measurements`."""
        return {
            seed: score(by_measurement(result["sets"])[name])
            for seed, result in self.results.items()
        }

    @property
    def measurements(self) -> list[str]:
        """The names of what every run measured: set, and size, crop or TTA where they vary."""
        first = next(iter(self.results.values()), None)
        return [] if first is None else [*by_measurement(first["sets"])]


def metric_label(sweep: Sweep) -> str:
    """The name of the score in tables: `top-1 %`."""
    first = next(iter(sweep.results.values()))
    return METRICS[metric_names(first)[0]]


def read_sweep(path: Path) -> Sweep:
    """The sweep in a folder: the planned seeds, and any others that are there.

    Raises `DataError` where its runs differ in more than their seed, and for an invalid file.
    """
    folders = seed_folders(path)
    results: dict[int, Mapping[str, Any]] = {}
    missing = {}
    for seed, folder in folders.items():
        run = RunDirectory(folder)
        if run.finished:
            results[seed] = read_result(run)
        else:
            missing[seed] = read_missing(run)
    procedures = read_procedures(folders.values())
    check_seeds(folders, procedures, results)
    check_same_recipe(procedures)
    check_same_test({folders[seed]: result for seed, result in results.items()})
    return Sweep(path, results, missing)


def seed_folders(path: Path) -> dict[int, Path]:
    """A sweep's run directories by seed, planned or existing.

    Raises `DataError` for a run directory whose name is not a seed's: `seed-0.bak`.
    """
    existing = [folder.name for folder in path.glob(f"{PREFIX}*") if _holds_run(folder)]
    folders = {}
    for name in dict.fromkeys([*read_planned(path), *existing]):
        match = NAMED.fullmatch(name)
        if match is None:
            raise DataError(
                f"{path / name}: holds a run, but is not named {PREFIX}0, {PREFIX}1, ... "
                f"Move it out of {path}."
            )
        folders[int(match[1])] = path / name
    return dict(sorted(folders.items()))


def _holds_run(folder: Path) -> bool:
    run = RunDirectory(folder)
    return run.recipe.is_file() or run.finished or run.failure.is_file()


def parse_seeds(text: str) -> list[int]:
    """`100`: 0 to 99; `0-9`: both ends; `3,7,11`. Raises `UsageError`."""
    parts = [f"0-{int(text) - 1}"] if COUNT.fullmatch(text) else text.split(",")
    seeds: list[int] = []
    for part in parts:
        match = SEEDS.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"--seeds: '{text}' is not of the form 100, 0-9 or 3,7,11.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first + len(seeds) >= MOST_SEEDS:
            raise UsageError(f"--seeds: '{text}' is more than {MOST_SEEDS:,} seeds. Give fewer.")
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(
            f"--seeds: '{text}' names no seed, or one seed twice. Give each seed once."
        )
    return seeds


def summarize_sweep(sweep: Sweep) -> dict[str, Any]:
    """The stable keys of `--json`: per measurement mean, std, min, max and seed 0, and the rest.

    `peak`: the expected accuracy of the best of so many seeds, and how far the best seed by one
    measurement is above the mean there and on each other one, with the range that chance alone
    gives in 95 % of such sweeps. None for fewer than 5 seeds.
    """
    names = sweep.measurements
    rows = {name: _row(sweep.values(name)) for name in names}
    return {
        **missing_to_json(len(sweep.results), sweep.missing),
        "sets": rows,
        "peak": {name: _peak(sweep, name) for name in names},
        "correlation": {
            f"{a} {b}": _correlation(sweep, a, b)
            for a, b in pairwise(names)
            if len(sweep.results) >= FEWEST_PAIRS
        },
    }


def _row(values: Mapping[int, float]) -> dict[str, Any]:
    measured = sample(list(values.values()))
    return {
        "mean": measured.mean,
        "std": measured.std,
        "interval": t_interval(measured, PERCENT),
        "min": min(values.values()),
        "max": max(values.values()),
        "seed0": values.get(0),
    }


def _peak(sweep: Sweep, name: str) -> dict[str, Any] | None:
    """The best seed by one measurement, on that one and on the others."""
    values = list(sweep.values(name).values())
    if len(values) < FEWEST_CHOSEN:
        return None
    peak: dict[str, Any] = {"expected_maximum": expected_maximum(sample(values), len(values))}
    for other in sweep.measurements:
        if other != name:
            chosen = best_seed_bias(values, list(sweep.values(other).values()))
            peak["inflation"] = chosen.inflation
            peak.setdefault("remains", {})[other] = chosen.remains
    return peak


def _correlation(sweep: Sweep, a: str, b: str) -> tuple[float, float, float] | None:
    first, second = list(sweep.values(a).values()), list(sweep.values(b).values())
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return correlation_interval(first, second)


def sweep_csv(sweep: Sweep) -> str:
    """Every seed's results as CSV, the failed ones with the reason."""
    names = sweep.measurements
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", *names, "seconds_train", "failed"])
    columns = {name: sweep.values(name) for name in names}
    for seed, result in sweep.results.items():
        writer.writerow(
            [seed, *(columns[name][seed] for name in names), result["seconds_train"], ""]
        )
    for seed, missing in sweep.missing.items():
        writer.writerow([seed, *("" for _ in names), "", f"{missing}"])
    return text.getvalue()


def scores_by_epoch(sweep: Sweep) -> dict[float, list[float]]:
    """The scores on the first measurement by epoch, where every finished seed has one."""
    scores: dict[float, list[float]] = {}
    for seed in sweep.results:
        for line in read_curve(RunDirectory(sweep.path / f"{PREFIX}{seed}").metrics):
            scores.setdefault(line["epoch"], []).append(score(line))
    whole = len(sweep.results)
    return {epoch: scores[epoch] for epoch in sorted(scores) if len(scores[epoch]) == whole}


def published_sample(values: Mapping[str, Any]) -> Sample:
    """A recipe's `expect` as a sample; a std without a number of runs is ignored."""
    n = values.get("n")
    return Sample(float(values["top1"]), values.get("std") if n else None, int(n or 1))
