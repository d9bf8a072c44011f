"""Whether two sweeps are compared seed by seed: decided by their recipes, never by their results.

Runs of one seed share what the seed draws where the recipes draw it alike: the initial weights, the
order of the images, their augmentation. Pairing gains where that makes results move together, and
costs half of the degrees of freedom where it does not: at 3 seeds a paired test needs more than
twice the difference that Welch's does, at 8 a tenth more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli.analysis.records import PLACE
from rescue_cli.analysis.same_data import changes
from rescue_cli.analysis.sides import Operand

# What a seed draws, by the sections and keys that decide how it is drawn
DRAWN = ("data", "sampling", "augment", "mix", "selection", "model",
         "train.batch_size", "train.device_batch_size")  # fmt: skip
FEWEST = 8  # seeds in common, from which pairs that share their draws are tested as pairs


@dataclass(frozen=True)
class Pairing:
    """The seeds that are tested as pairs, none for Welch's test; and why."""

    seeds: tuple[int, ...]
    why: str


def pairing(a: Operand, b: Operand) -> Pairing:
    """The test for two sides by what their recipes share and how many seeds both were planned with.

    Runs that differ in their evaluation alone are the same networks, and pairs from two on.
    """
    common = sorted(a.values.keys() & b.values.keys())
    planned = (a.values.keys() | a.lost.keys()) & (b.values.keys() | b.lost.keys())
    if len(common) < 2 or not (a.paths and b.paths):
        return Pairing((), "")
    changed = _changed(next(iter(a.paths.values())), next(iter(b.paths.values())))
    if all(_is_in(key, ("eval",)) for key in changed):
        alike = (
            "the same networks, evaluated in two ways" if changed else "one recipe, trained twice"
        )
        return Pairing(tuple(common), alike)
    other = sorted(key for key in changed if _is_in(key, DRAWN))
    if other:
        return Pairing((), f"equal seeds draw differently: {other[0]} differs")
    shared = "equal seeds share initial weights, order and augmentation"
    if len(planned) < FEWEST:
        return Pairing((), f"{shared}, but {len(planned)} are fewer than {FEWEST}")
    return Pairing(tuple(common), shared)


def _changed(a: Path, b: Path) -> Mapping[str, Any]:
    """The keys in which what was trained or measured differs."""
    return {key: values for key, values in changes(a, b).items() if key not in PLACE}


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)
