"""Runs compared by what their data and weights are, by the runs' own records, and not where."""

from pathlib import Path
from typing import Any

from rescue_cli.recipe import recipe_in
from rescue_cli.recipe.changes import WEIGHTS, differences, is_path
from rescue_cli.rundir import RunDirectory, read_identity


def known(run: Path) -> dict[str, Any] | None:
    """The run's data and weights; None where it keeps no record. Raises `DataError`."""
    found = read_identity(RunDirectory(run))
    if found is None:
        return None
    images = {
        f"data.{name}": f"{split['images']} images, fingerprint {split['digest'][:12]}"
        for name, split in found["splits"].items()
    }
    weights = {key: f"fingerprint {digest[:12]}" for key, digest in found["weights"].items()}
    return {"data.classes": len(found["classes"]), **images, **weights}


def changes(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    """The keys in which two runs' recipes differ: (a's, b's).

    Where both keep a record of what they saw, that stands in for where it lay: the training images
    as the key `data.train`, and the weights.
    """
    found = differences(recipe_in(a).tree, recipe_in(b).tree)
    first, second = known(a), known(b)
    if first is None or second is None:
        return found
    kept = {key: values for key, values in found.items() if not is_path(key, *values)}
    for key in ("data.train", *WEIGHTS):
        pair = first.get(key), second.get(key)
        if key not in kept and pair[0] != pair[1]:
            kept[key] = pair
    return kept
