"""Repeated comparisons of growing sweeps: a record of earlier ones, and planned interim looks.

Comparing, adding seeds and comparing again inflates the error rate: a look after every seed up to
20 claims a difference that does not exist in one case of four, not one of twenty. `rescue
seed-sweep --until` plans its looks and gives each an equal share of the level (Bonferroni). That
holds for any test and any dependence between looks; Pocock's bounds (1977) are a little wider, but
hold only for normal runs of known standard deviation.
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
from rescue_cli.rundir.reading import COUNT, LIST, TEXT

FILE = ".compared.json"
PLAN = "until.json"  # what `seed-sweep --until` has planned
PLAN_KEYS = {"against": TEXT, "seeds": LIST, "looks": LIST}
LOOKS = (3, 5, 10, 20, 50, 100, 200, 500)  # seeds


def record_comparison(sides: Sequence[Side]) -> list[str]:
    """Records in the sweeps' folders that they were compared; warns of earlier comparisons."""
    warnings = [line for side in sides if (line := _planned_looks(side)) is not None]
    for a, b in combinations(sides, 2):
        earlier = {n for side, other in ((a, b), (b, a)) for n in _look(side, other)}
        if earlier - {a.sample.n + b.sample.n}:
            counts = ", ".join(map(str, sorted(earlier - {a.sample.n + b.sample.n})))
            warnings.append(
                f"{a.name} and {b.name} were compared before, with {counts} runs in total. Testing "
                "again after adding seeds gives false positives in more than 5 % of cases; rescue "
                "seed-sweep --until keeps them to 5 %."
            )
    return warnings


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The looks that `--until` planned for a sweep; None where it did not. Raises `DataError`."""
    file = folder / PLAN
    if not file.is_file():
        return None
    plan = read_json(file)
    check_keys(
        file,
        plan,
        PLAN_KEYS,
        "Use a new --out: without the plan, the looks do not control false positives.",
    )
    return plan


def _planned_looks(side: Side) -> str | None:
    """That a sweep stopped when it differed from another, so that an ordinary p is too small."""
    folder = side.folder
    plan = None if folder is None else read_plan(folder)
    if plan is None:
        return None
    looks = len(plan["looks"])
    return (
        f"{side.name} was trained by --until against {plan['against']}, with {looks} planned "
        "looks: rely on that test; an ordinary p gives false positives in more than 5 % of cases."
    )


def earlier_comparisons(folder: Path) -> list[str]:
    """The names or paths of what a sweep was compared with so far."""
    return list(_read(folder))


def _look(side: Side, other: Side) -> list[int]:
    """The total runs at earlier comparisons, by the side's folder; adds this one.

    A folder that cannot be written to records nothing.
    """
    if (folder := side.folder) is None:
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
        comparisons = read_json(file) if file.is_file() else {}
        return {
            key: [n for n in counts if COUNT.holds(n)]
            for key, counts in comparisons.items()
            if LIST.holds(counts)
        }
    return {}


def _key(side: Side) -> str:
    """A side's path, or the word that was typed."""
    path = side.folder or Path(side.name)
    return str(path.resolve()) if side.paths else side.name


def plan_looks(most: int) -> list[int]:
    """The numbers of seeds after which a sweep of `most` seeds is tested; the last is `most`."""
    return [n for n in LOOKS if n < most] + [most]


def describe_looks(planned: list[int]) -> str:
    """When a sweep is tested, and at which level."""
    after = ", ".join(map(str, planned))
    return f"looks after {after} seeds, each at p < {level_per_look(planned):.2g}: 5 % overall"


def level_per_look(planned: list[int]) -> float:
    """The level of each look, an equal share of 5 % (Bonferroni)."""
    return LEVEL / len(planned)
