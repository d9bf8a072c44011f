"""The options `--model` and `--epochs`, which verbs share, as overrides that are said."""

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
    typer.Option(help="Another network, see `rescue models`.", autocompletion=model_names),
]
Epochs = Annotated[
    float | None, typer.Option(help="Another length; what is counted in epochs follows.")
]


def expand(
    base: Recipe, overrides: Sequence[str], model: str | None, epochs: float | None
) -> tuple[list[str], list[str]]:
    """The overrides that the options stand for beside the user's, and what is to be said of them.

    Raises `UsageError`.
    """
    if model is None and epochs is None:
        return [], []
    from rescue_cli.build import expand as options

    found, notes = [], []
    if model is not None:
        found = options.model_overrides(base, model, overrides)
        notes = [f"--model sets: {' '.join(found)}", *_micro_batches(base, model, overrides)]
    if epochs is not None:
        if not 0 < epochs <= 1_000_000:
            raise UsageError(f"--epochs: {epochs} must be above 0 and at most 1000000.")
        changed = base.with_overrides(*overrides, *found)
        scaled = options.epochs_overrides(changed, epochs, overrides)
        notes.append(f"--epochs sets: {' '.join(scaled)}")
        found += scaled
    return found, notes


def _micro_batches(base: Recipe, model: str, overrides: Sequence[str]) -> list[str]:
    """The paper's number of images a GPU, where it is another than the recipe's."""
    train, size = base.train, base.data.train_size
    row = architectures.row_of(model)
    column = architectures.column_of(base.model.name, size, base.eval.sizes)
    said = is_given("train.device_batch_size", given_keys(overrides))
    if row is None or column is None or train.batch_size != architectures.BATCH or said:
        return []
    gpus = row["cost"]["a3" if column == "a3" else "a2"]["gpus"]
    paper = train.batch_size // gpus
    if paper == train.device_batch_size:
        return []
    return [
        f"the paper trained {row['paper']} on {gpus} GPUs of {paper} images; micro-batches stay as "
        f"they are unless train.device_batch_size={paper} is given"
    ]
