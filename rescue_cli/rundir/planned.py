"""The runs that a folder was to hold, and how those ended that have no result.

The folder is a sweep's, a study's row's, or that of one start of `rescue transfer`. Of every
planned run exactly one is true: it is done, it diverged, it failed, or it was not run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rescue_cli.errors import DivergedError, StoppedError
from rescue_cli.rundir import RunDirectory, demand, read_failure, read_json, write_json
from rescue_cli.rundir.rules import NAME, Rule

FILE = "planned.json"
NAMES = Rule("a list of folders' names", lambda v: isinstance(v, list) and all(map(NAME.holds, v)))
How = Literal["diverged", "failed", "not run"]


@dataclass(frozen=True)
class Lost:
    """How a planned run came to have no result, and why, where that is known."""

    how: How
    why: str = ""

    def __str__(self) -> str:
        return f"{self.how}: {self.why}" if self.why else self.how


def plan(folder: Path, names: Iterable[str]) -> None:
    """Adds runs, by the names of their folders, to those that are planned in a folder."""
    known = planned(folder)
    new = [name for name in names if name not in known]
    if new:
        write_json(folder / FILE, {"runs": [*known, *new]})


def planned(folder: Path) -> list[str]:
    """The names of the runs that were ever asked for in a folder, where that was kept."""
    file = folder / FILE
    if not file.exists():
        return []
    found = read_json(file)
    demand(file, found, {"runs": NAMES}, "Remove the file; the runs that are there then count.")
    return list(found["runs"])


def lost_of(run: RunDirectory) -> Lost:
    """How a run without a result ended; one that was stopped, or never began, was not run."""
    failure = read_failure(run)
    if failure is None or isinstance(failure.error, StoppedError):
        return Lost("not run")
    how: How = "diverged" if failure.exit_code == DivergedError.exit_code else "failed"
    return Lost(how, failure.reason)


def counted_lost(ends: Iterable[How]) -> str:
    """`4 diverged, 1 failed, 2 not run`; empty where there are none."""
    found = list(ends)
    counts = {how: found.count(how) for how in get_args(How)}
    return ", ".join(f"{count} {how}" for how, count in counts.items() if count)


def of_planned(n: int, ends: Iterable[How]) -> str:
    """The number of runs with a result: `10`, or `6 of 10 (4 diverged)`."""
    found = list(ends)
    return f"{n} of {n + len(found)} ({counted_lost(found)})" if found else str(n)


def lost_in(told: Mapping[str, Any]) -> dict[str, Lost]:
    """The runs without a result again, of what `told_lost` made of them."""
    return {
        **{name: Lost("diverged", why) for name, why in told["diverged"].items()},
        **{name: Lost("failed", why) for name, why in told["failed"].items()},
        **{name: Lost("not run") for name in told["not_run"]},
    }


def told_lost(n: int, lost: Mapping[Any, Lost]) -> dict[str, Any]:
    """The stable keys of `--json` of `n` runs with a result and those without."""

    def reasons(how: How) -> dict[str, str]:
        return {str(key): one.why for key, one in lost.items() if one.how == how}

    return {
        "planned": n + len(lost),
        "n": n,
        "diverged": reasons("diverged"),
        "failed": reasons("failed"),
        "not_run": list(reasons("not run")),
    }
