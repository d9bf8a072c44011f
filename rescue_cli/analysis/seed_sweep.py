"""The training of a sweep: all its seeds, or as many as it takes to decide a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rescue_cli.analysis import interim
from rescue_cli.analysis.claims import is_claimed
from rescue_cli.analysis.compare import compare_pairs
from rescue_cli.analysis.sides import Side, load_side, select_seeds
from rescue_cli.analysis.stats import sample
from rescue_cli.analysis.sweep import PREFIX, Sweep, read_sweep
from rescue_cli.errors import DataError, DivergedError, UsageError
from rescue_cli.formatting import format_count
from rescue_cli.metrics.names import score
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_result, write_json
from rescue_cli.runs.console import note
from rescue_cli.runs.many import Jobs, find_missing, record_planned
from rescue_cli.runs.pool import EndedRun
from rescue_cli.runs.progress import Progress


def train_seeds(base: Recipe, seeds: Sequence[int], sweep: Sweep, jobs: Jobs) -> None:
    """Trains the seeds that have no result into the sweep's folder.

    A run that fails or diverges is recorded in its directory. Raises what all of them fail with.

    Args:
        sweep: What is in the folder already.
    """
    runs = {sweep.path / f"{PREFIX}{s}": base.with_seed(s) for s in seeds}
    mean = RunningMean(sweep)
    missing = find_missing(runs)
    ended_before = len(runs) - len(missing)
    with record_planned(runs), Progress(missing, before=ended_before) as progress:
        for ended in jobs.train(missing):
            progress.print_end(ended, mean.add(ended))


class RunningMean:
    """The mean of the first measurement, over the seeds that have a result so far."""

    def __init__(self, sweep: Sweep) -> None:
        names = sweep.measurements
        self.scores: dict[int, float] = sweep.values(names[0]) if names else {}

    def add(self, ended: EndedRun) -> str:
        """`seed 3: mean 81.20 ± 0.15 %` with this run's result, or why it has none."""
        seed = int(ended.path.name.removeprefix(PREFIX))
        if ended.error is not None:
            how = "diverged" if isinstance(ended.error, DivergedError) else "failed"
            return f"seed {seed}: {how}: {ended.error}"
        try:
            result: Mapping[str, Any] = read_result(RunDirectory(ended.path))
        except DataError as error:  # it is raised when all have ended; the others continue
            return f"seed {seed}: {error}"
        self.scores[seed] = score(result["sets"][0])
        all_seeds = sample([self.scores[seed] for seed in sorted(self.scores)])
        if all_seeds.std is None:
            return f"seed {seed}: {all_seeds.mean:.2f} %"
        return f"seed {seed}: mean {all_seeds.mean:.2f} ± {all_seeds.std:.2f} %"


# --- until a comparison is decided ---


def load_reference(word: str) -> Side:
    """What a sweep is compared with; raises `UsageError` where it has no standard deviation."""
    side = load_side(word)
    if side.sample.std is None or side.sample.n < 2:
        raise UsageError(
            f"--until: {word} has no standard deviation. Give a sweep of two seeds or more, or "
            "MEAN±STD/N."
        )
    return side


def train_until(
    base: Recipe, seeds: Sequence[int], folder: Path, jobs: Jobs, against: Side
) -> dict[str, Any]:
    """Trains seeds until an interim look claims a difference; the pair of the last look.

    The looks are planned before the first one and kept in the folder: together they err in 5 % of
    cases. Raises `UsageError` for a folder whose looks were planned otherwise, or not at all.
    """
    planned = interim.plan_looks(len(seeds))
    level = interim.level_per_look(planned)
    _keep_plan(folder, {"against": against.name, "seeds": list(seeds), "looks": planned})
    note(interim.describe_looks(planned))
    pair: dict[str, Any] = {}
    for number, count in enumerate(planned, 1):
        train_seeds(base, seeds[:count], read_sweep(folder), jobs)
        try:
            so_far = select_seeds(load_side(str(folder)), seeds[:count])
            pair = compare_pairs([against, so_far], level=level)[0]
        except DataError:  # no seed has a result yet
            continue
        pair["look"] = {"number": number, "of": len(planned), "seeds": count, "level": level}
        p = "-" if pair["p"] is None else f"{pair['p']:.2g}"
        how = f" ({pair['how'].partition(' (')[0]})" if pair["how"] else ""
        note(f"look {number} of {len(planned)}, after {format_count(count, 'seed')}: p = {p}{how}")
        if is_claimed(pair, level):
            break
    return pair


def _keep_plan(folder: Path, plan: dict[str, Any]) -> None:
    if (before := interim.read_plan(folder)) is not None:
        if before != plan:
            raise UsageError(
                f"--until: {folder} was started with other looks, against {before['against']} "
                f"with {len(before['seeds'])} seeds. Repeat that, or use a new --out."
            )
        return
    if others := interim.earlier_comparisons(folder):
        raise UsageError(
            f"--until: {folder} was compared with {others[0]} already, at a look that was not "
            "planned. Use a new --out."
        )
    write_json(folder / interim.PLAN, plan)
