"""A sweep that ends when its comparison is decided: planned looks that keep 5 % together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rescue_cli.analysis import interim
from rescue_cli.analysis.claims import is_claimed
from rescue_cli.analysis.compare import compare_pairs
from rescue_cli.analysis.interim import level_per_look, plan_looks
from rescue_cli.analysis.sides import Side, load_side, select_seeds
from rescue_cli.cli import common
from rescue_cli.errors import DataError, UsageError
from rescue_cli.formatting import counted
from rescue_cli.rundir import write_json


def opponent(word: str) -> Side:
    """What the sweep is compared with; raises `UsageError` for what has no spread of its own."""
    found = load_side(word)
    if found.sample.std is None or found.sample.n < 2:
        raise UsageError(
            f"--until: {word} has no standard deviation of its own. Give a sweep of two seeds or "
            "more, or MEAN±STD/N."
        )
    return found


def train_until(
    against: Side, seeds: Sequence[int], folder: Path, train: Callable[[list[int]], None]
) -> dict[str, Any]:
    """Trains seeds from look to look until a difference may be claimed; the last look's pair.

    The looks are planned before the first and kept in the folder. Raises `UsageError` for a folder
    whose looks were not planned so.
    """
    planned = plan_looks(len(seeds))
    level = level_per_look(planned)
    _keep(folder, {"against": against.name, "seeds": list(seeds), "looks": planned})
    common.note(
        f"looks after {', '.join(map(str, planned))} seeds, each at p < {level:.2g}: 5 % over all"
    )
    found: dict[str, Any] = {}
    for number, count in enumerate(planned, 1):
        train(list(seeds[:count]))
        try:
            so_far = select_seeds(load_side(str(folder)), seeds[:count])
            found = compare_pairs([against, so_far], level=level)[0]
        except DataError:  # no seed has a result yet
            continue
        found["look"] = {"number": number, "of": len(planned), "seeds": count, "level": level}
        p = "-" if found["p"] is None else f"{found['p']:.2g}"
        common.note(f"look {number} of {len(planned)}, after {counted(count, 'seed')}: p = {p}")
        if is_claimed(found, level):
            break
    return found


def _keep(folder: Path, plan: dict[str, Any]) -> None:
    if (before := interim.read_plan(folder)) is not None:
        if before != plan:
            raise UsageError(
                f"--until: {folder} was begun with other looks, against {before['against']} "
                f"with {len(before['seeds'])} seeds. Repeat that, or use a new --out."
            )
        return
    if others := interim.earlier_comparisons(folder):
        raise UsageError(
            f"--until: {folder} was compared with {others[0]} already, at a look that was not "
            "planned. Use a new --out."
        )
    write_json(folder / interim.PLAN, plan)
