"""The options `--model` and `--epochs`, which several verbs share, as overrides."""

from collections.abc import Sequence
from typing import Annotated

import typer

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, architectures
from rescue_cli.recipe.changes import given_keys, is_given


def model_names(incomplete: str) -> list[str]:
    """The paper's architectures, for shell completion."""
    rows = architectures.table()["architectures"]
    return [row["name"] for row in rows if row["name"].startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(help="Train this network; see `rescue models`.", autocompletion=model_names),
]
Epochs = Annotated[
    float | None,
    typer.Option(help="Train for this many epochs; warm-up and milestones scale with it."),
]


def expand(
    base: Recipe, overrides: Sequence[str], model: str | None, epochs: float | None
) -> tuple[list[str], list[str]]:
    """The overrides that the options stand for, in addition to the user's, and notes to print.

    Raises `UsageError`.
    """
    if model is None and epochs is None:
        return [], []
    from rescue_cli.build import expand as options

    changes, notes = [], []
    if model is not None:
        changes = options.model_overrides(base, model, overrides)
        notes = [f"--model sets: {' '.join(changes)}", *_note_paper_batch(base, model, overrides)]
    if epochs is not None:
        if not 0 < epochs <= 1_000_000:
            raise UsageError(f"--epochs: {epochs} must be above 0 and at most 1000000.")
        scaled = options.epochs_overrides(
            base.with_overrides(*overrides, *changes), epochs, overrides
        )
        notes.append(f"--epochs sets: {' '.join(scaled)}")
        changes += scaled
    return changes, notes


def _note_paper_batch(base: Recipe, model: str, overrides: Sequence[str]) -> list[str]:
    """A note if the paper used other micro-batches for this network than the recipe."""
    train, size = base.train, base.data.train_size
    row = architectures.row_of(model)
    column = architectures.column_of(base.model.name, size, base.eval.sizes)
    given = is_given("train.device_batch_size", given_keys(overrides))
    if row is None or column is None or train.batch_size != architectures.BATCH or given:
        return []
    gpus = row["cost"]["a3" if column == "a3" else "a2"]["gpus"]
    paper = train.batch_size // gpus
    if paper == train.device_batch_size:
        return []
    return [
        f"the paper trained {row['paper']} on {gpus} GPUs with {paper} images each; "
        f"for the same micro-batches, give train.device_batch_size={paper}"
    ]
