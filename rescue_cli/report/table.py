"""The table of results: lines of runs, sweeps and studies, for people and as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rescue_cli.analysis.stats import Sample
from rescue_cli.formatting import shown_seconds
from rescue_cli.rundir.planned import Lost, of_planned, told_lost

HEADINGS = ("path", "recipe", "set", "paper %", "measured %", "std", "runs", "train s")
KEYS = (
    "path", "recipe", "set", "paper", "measured", "std", "planned", "n", "diverged", "failed",
    "not_run", "seconds_train",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """What was measured, in percent, beside what the recipe's source claims."""

    path: str
    recipe: str
    set: str
    paper: Sample | None
    measured: Sample
    seconds: float | None  # of training, the mean of the runs
    lost: Mapping[Any, Lost] = field(default_factory=dict)  # planned runs without a result

    @property
    def cells(self) -> list[str]:
        """As it is read, under `HEADINGS`."""
        std = self.measured.std
        return [
            self.path, self.recipe, self.set, _claim(self.paper), f"{self.measured.mean:.2f}",
            "-" if std is None else f"{std:.2f}",
            of_planned(self.measured.n, [lost.how for lost in self.lost.values()]),
            "-" if self.seconds is None else shown_seconds(self.seconds),
        ]  # fmt: skip

    @property
    def values(self) -> dict[str, Any]:
        """As data, by `KEYS`; of a claim its mean."""
        return {
            "path": self.path,
            "recipe": self.recipe,
            "set": self.set,
            "paper": None if self.paper is None else self.paper.mean,
            "measured": self.measured.mean,
            "std": self.measured.std,
            **told_lost(self.measured.n, self.lost),
            "seconds_train": self.seconds,
        }

    @property
    def row(self) -> dict[str, Any]:
        """As `values`, where a cell has room for how many runs were lost, but not for why."""
        return {k: len(v) if isinstance(v, dict | list) else v for k, v in self.values.items()}


def _claim(paper: Sample | None) -> str:
    if paper is None:
        return "-"
    spread = "" if paper.std is None else f" ± {paper.std:.2f}"
    return f"{paper.mean:.2f}{spread}" + (f" ({paper.n})" if paper.n > 1 else "")
