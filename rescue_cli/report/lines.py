"""The table of results: lines of runs, sweeps and studies, for people and as data."""

from dataclasses import dataclass
from typing import Any

from rescue_cli.report.markup import shown_seconds
from rescue_cli.statistics import Sample

HEADINGS = ("path", "recipe", "set", "paper %", "measured %", "std", "runs", "train s")
KEYS = ("path", "recipe", "set", "paper", "measured", "std", "n", "seconds_train")


@dataclass(frozen=True)
class Line:
    """What was measured, in percent, beside what the recipe's source claims."""

    path: str
    recipe: str
    set: str
    paper: Sample | None
    measured: Sample
    seconds: float | None  # of training, the mean of the runs

    @property
    def cells(self) -> list[str]:
        """As it is read, under `HEADINGS`."""
        std = self.measured.std
        return [
            self.path, self.recipe, self.set, _claim(self.paper), f"{self.measured.mean:.2f}",
            "-" if std is None else f"{std:.2f}", str(self.measured.n),
            "-" if self.seconds is None else shown_seconds(self.seconds),
        ]  # fmt: skip

    @property
    def values(self) -> dict[str, Any]:
        """As data, by `KEYS`; of a claim its mean."""
        paper = None if self.paper is None else self.paper.mean
        found = (
            self.path, self.recipe, self.set, paper, self.measured.mean, self.measured.std,
            self.measured.n, self.seconds,
        )  # fmt: skip
        return dict(zip(KEYS, found, strict=True))


def _claim(paper: Sample | None) -> str:
    if paper is None:
        return "-"
    spread = "" if paper.std is None else f" ± {paper.std:.2f}"
    return f"{paper.mean:.2f}{spread}" + (f" ({paper.n})" if paper.n > 1 else "")
