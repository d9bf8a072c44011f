"""The runs that are planned in a folder, and how those ended that have no result.

The folder is that of a sweep, of a study's row, or of one start of `rescue transfer`. A planned run
is in exactly one state: it has a result, it diverged, it failed, it is unfinished (stopped, or at
work), or it was not run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rescue_cli.errors import DivergedError, StoppedError
from rescue_cli.rundir import RunDirectory, check_keys, read_failure, read_json, write_json
from rescue_cli.rundir.reading import NAME, Rule

FILE = "planned.json"
NAMES = Rule("a list of folders' names", lambda v: isinstance(v, list) and all(map(NAME.holds, v)))
How = Literal["diverged", "failed", "unfinished", "not run"]


@dataclass(frozen=True)
class MissingRun:
    """How a planned run without a result ended, and why, where that is known."""

    how: How
    why: str = ""

    def __str__(self) -> str:
        return f"{self.how}: {self.why}" if self.why else self.how


def add_planned(folder: Path, names: Iterable[str]) -> None:
    """Adds runs, by the names of their folders, to those planned in a folder."""
    known = read_planned(folder)
    new = [name for name in names if name not in known]
    if new:
        write_json(folder / FILE, {"runs": [*known, *new]})


def read_planned(folder: Path) -> list[str]:
    """The names of the runs that were ever planned in a folder; none where no file has them."""
    file = folder / FILE
    if not file.exists():
        return []
    content = read_json(file)
    cure = "Remove the file; the runs in the folder then count."
    check_keys(file, content, {"runs": NAMES}, cure)
    return list(content["runs"])


def read_missing(run: RunDirectory) -> MissingRun:
    """How a run without a result ended; one that was stopped before its first checkpoint, or never
    began, was not run.
    """
    failure = read_failure(run)
    if failure is None or isinstance(failure.error, StoppedError):
        return MissingRun("unfinished" if run.last.is_file() else "not run")
    how: How = "diverged" if failure.exit_code == DivergedError.exit_code else "failed"
    return MissingRun(how, failure.reason)


def count_missing(missing: Iterable[How]) -> str:
    """`4 diverged, 1 failed, 2 not run`; empty where there are none."""
    counts = Counter(missing)
    return ", ".join(f"{counts[how]} {how}" for how in get_args(How) if counts[how])


def format_planned(n: int, missing: Iterable[How]) -> str:
    """The number of runs with a result: `10`, or `6 of 10 (4 diverged)`."""
    ends = list(missing)
    return f"{n} of {n + len(ends)} ({count_missing(ends)})" if ends else str(n)


def missing_from_json(content: Mapping[str, Any]) -> dict[str, MissingRun]:
    """The runs without a result, as `missing_to_json` wrote them; an older version had no
    `unfinished`.
    """
    unfinished = content.get("unfinished")
    return {
        **{name: MissingRun("diverged", why) for name, why in content["diverged"].items()},
        **{name: MissingRun("failed", why) for name, why in content["failed"].items()},
        **{
            str(name): MissingRun("unfinished")
            for name in (unfinished if isinstance(unfinished, list) else ())
        },
        **{name: MissingRun("not run") for name in content["not_run"]},
    }


def missing_to_json(n: int, missing: Mapping[Any, MissingRun]) -> dict[str, Any]:
    """The stable keys of `--json` for `n` runs with a result and those without."""

    def reasons(how: How) -> dict[str, str]:
        return {str(key): run.why for key, run in missing.items() if run.how == how}

    return {
        "planned": n + len(missing),
        "n": n,
        "diverged": reasons("diverged"),
        "failed": reasons("failed"),
        "unfinished": list(reasons("unfinished")),
        "not_run": list(reasons("not run")),
    }
