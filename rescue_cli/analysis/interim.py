"""Which sweeps were compared at how many seeds, kept in their folders.

Whoever compares, adds seeds and compares again gives chance several occasions: looking after every
seed up to 20 claims a difference that is not there in one case of four, not one of twenty. `rescue
seed-sweep --until` looks several times and keeps the level.
"""

import contextlib
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rescue_cli.analysis.sides import Side
from rescue_cli.analysis.stats import LEVEL
from rescue_cli.errors import RescueError
from rescue_cli.rundir import check_keys, read_json, write_json
from rescue_cli.rundir.validation import COUNT, LIST, TEXT

FILE = ".compared.json"
PLAN = "until.json"  # what `seed-sweep --until` has planned
PLAN_KEYS = {"against": TEXT, "seeds": LIST, "looks": LIST}
LOOKS = (3, 5, 10, 20, 50, 100, 200, 500)  # seeds


def record_comparison(sides: Sequence[Side]) -> list[str]:
    """Keeps that the sides were compared; what a claim about them must be read with."""
    found = [said for side in sides if (said := _sequential(side)) is not None]
    for a, b in combinations(sides, 2):
        earlier = {n for side, other in ((a, b), (b, a)) for n in _look(side, other)}
        if earlier - {a.sample.n + b.sample.n}:
            counts = ", ".join(map(str, sorted(earlier - {a.sample.n + b.sample.n})))
            found.append(
                f"{a.name} and {b.name} were compared before, with {counts} runs together. Looking "
                "again after more seeds claims differences that are not there in more than 5 % of "
                "cases; rescue seed-sweep --until keeps to 5 %."
            )
    return found


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The looks that `--until` has planned for a sweep, if it has; raises `DataError`."""
    file = folder / PLAN
    if not file.is_file():
        return None
    found = read_json(file)
    check_keys(file, found, PLAN_KEYS, "Use a new --out: without its plan the looks keep no level.")
    return found


def _sequential(side: Side) -> str | None:
    """That a sweep grew until it was told from another, so that an ordinary p is too small."""
    folder = _sweep_of(side)
    plan = None if folder is None else read_plan(folder)
    if plan is None:
        return None
    looks = len(plan["looks"])
    return (
        f"{side.name} was trained by --until against {plan['against']}, with {looks} looks "
        f"planned: its own verdict stands, and an ordinary p errs in more than 5 % of cases."
    )


def earlier_comparisons(folder: Path) -> list[str]:
    """What a sweep was compared with so far."""
    return list(_read(folder))


def _sweep_of(side: Side) -> Path | None:
    """The folder of a sweep; None of single runs and numbers."""
    first = next(iter(side.paths.values()), None)
    return None if first is None or first == Path(side.name) else first.parent


def _look(side: Side, other: Side) -> list[int]:
    """The runs of both at earlier looks, as the side's folder has kept them; keeps this one.

    A folder that cannot be written to keeps none.
    """
    if (folder := _sweep_of(side)) is None:
        return []
    known, now = _read(folder), side.sample.n + other.sample.n
    earlier = known.get(_key(other), [])
    if now not in earlier:
        with contextlib.suppress(RescueError):
            write_json(folder / FILE, {**known, _key(other): [*earlier, now]})
    return earlier


def _read(folder: Path) -> dict[str, list[int]]:
    file = folder / FILE
    with contextlib.suppress(RescueError):
        found = read_json(file) if file.is_file() else {}
        return {
            key: [n for n in counts if COUNT.holds(n)]
            for key, counts in found.items()
            if LIST.holds(counts)
        }
    return {}


def _key(side: Side) -> str:
    """A side by where it lies, or by its word."""
    path = _sweep_of(side) or Path(side.name)
    return str(path.resolve()) if side.paths else side.name


def plan_looks(most: int) -> list[int]:
    """After how many seeds a sweep of at most so many is looked at; the last look is at its end."""
    return [n for n in LOOKS if n < most] + [most]


def level_per_look(planned: list[int]) -> float:
    """The level of each look."""
    return LEVEL / len(planned)
