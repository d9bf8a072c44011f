"""Studies: a table of recipes, each changed in its own way, with what a paper found beside ours.

A study is a file in `recipes/studies/`; its cells are recipes with overrides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.plans import differences, flat
from rescue_cli.recipe import Recipe, read_text, recipes_folder
from rescue_cli.recipe import load as load_recipe
from rescue_cli.recipe.yaml import read
from rescue_cli.registry import PositiveInt, check
from rescue_cli.report import records
from rescue_cli.results import METRICS, RunDirectory, read_json, score
from rescue_cli.statistics import Sample, sample, welch

STEPS = 4  # runs of a point of Smith's, with 0, 4, 8 and 12 images more in a batch
FILLERS = ("msra", "xavier")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a cell begins: a state of the cell of that number, its optimizers' included."""

    cell: PositiveInt
    step: PositiveInt


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row: a recipe with overrides, or a `label` for each column where there is no recipe.

    `std` and `n` are the paper's, of its first figure.
    """

    paper: dict[str, float]
    recipe: str | None = None
    set: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    std: float | None = None
    n: PositiveInt | None = None
    from_snapshot: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table as it is published: `columns` are headings and the recipe keys under them.

    `set` holds for all cells. A point is a run for each seed, or `smith`: 4 runs of batches that
    grow by 4 images, begun from msra and xavier in turn where the recipe names a filler.
    """

    name: str
    paper: dict[str, str]
    columns: dict[str, str]
    cells: list[dict[str, Any]]
    set: list[str] = field(default_factory=list)
    points: Literal["seeds", "smith"] = "seeds"


def names() -> dict[str, Path]:
    """The shipped studies' files by name."""
    return {file.stem: file for file in sorted((recipes_folder() / "studies").glob("*.yaml"))}


def load(name: str) -> Study:
    """The study of that name, or in that file; raises `UsageError`."""
    file = Path(name) if name.endswith(".yaml") else names().get(name)
    if file is None or not file.is_file():
        raise UsageError(f"study: '{name}' is not known. {did_you_mean(name, names())}")
    tree = read(read_text(file), file.name)
    return Study(**check(f"study {file.stem}", tree, Study))


def cells(study: Study, overrides: Sequence[str] = ()) -> list[tuple[Cell, Recipe | None]]:
    """Each cell with its recipe resolved, the user's `overrides` last; raises `UsageError`."""
    found = []
    for number, tree in enumerate(study.cells):
        cell = Cell(**check(f"study {study.name}, cell {number}", tree, Cell))
        changes = [*study.set, *cell.set, *overrides]
        recipe = None if cell.recipe is None else load_recipe(cell.recipe, changes)
        found.append((cell, recipe))
    return found


def runs(study: Study, recipe: Recipe, seeds: int | None) -> dict[str, Recipe]:
    """The runs of a cell by the names of their folders; None: as many as its points have."""
    if study.points == "seeds" or seeds is not None:
        return {f"seed-{s}": recipe.with_overrides(f"train.seed={s}") for s in range(seeds or 1)}
    found = {}
    for place in range(STEPS):
        batch = recipe.train.batch_size + 4 * place
        slices = recipe.train.slices
        size = batch // slices if batch % slices == 0 else batch
        filler = FILLERS[place % 2] if "init" in recipe.model.options else None
        found[f"batch-{batch}" + (f"-{filler}" if filler else "")] = recipe.with_overrides(
            f"train.batch_size={batch}",
            f"train.device_batch_size={size}",
            f"train.seed={place}",
            *([f"model.init={filler}"] if filler else []),
        )
    return found


def snapshot_of(study: Study, cell: Cell) -> Snapshot | None:
    """Where the cell begins, if not at the beginning; raises `UsageError`."""
    if cell.from_snapshot is None:
        return None
    found = Snapshot(**check(f"study {study.name}.from_snapshot", cell.from_snapshot, Snapshot))
    if not found.cell <= len(study.cells):
        raise UsageError(
            f"study {study.name}.from_snapshot.cell: {found.cell} is none of its "
            f"{len(study.cells)} cells. Give the number of a row."
        )
    return found


def rows(
    study: Study, overrides: Sequence[str] = (), folder: Path | None = None
) -> list[dict[str, Any]]:
    """For each cell its recipe, the columns' values, the paper's figures, and what was measured.

    `measured` is the top-1 of the runs in `folder` that have a result, else of those on record with
    exactly these changes: mean, std, n, and `p` that the paper's figure is the same by Welch's
    t-test; None where nothing was run. `seconds` is the mean of the folder's runs.
    """
    return [
        {
            "row": number,
            "recipe": cell.recipe,
            "columns": _columns(study, cell, recipe),
            "paper": cell.paper,
            "measured": None
            if recipe is None
            else _measured(cell, recipe, folder and folder / row_folder(number)),
            "seconds": None if folder is None else _seconds(folder / row_folder(number)),
        }
        for number, (cell, recipe) in enumerate(cells(study, overrides), 1)
    ]


def shown(value: Any) -> str:
    """A column's value as the tables have it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def row_folder(number: int) -> str:
    """Where the runs of a row are, in the study's folder."""
    return f"{number:02d}"


def _columns(study: Study, cell: Cell, recipe: Recipe | None) -> dict[str, Any]:
    if recipe is None or cell.label:
        return dict(zip(study.columns, cell.label, strict=True))
    values: Mapping[str, Any] = flat(recipe.tree)
    return {heading: values.get(key) for heading, key in study.columns.items()}


def _measured(cell: Cell, recipe: Recipe, folder: Path | None) -> dict[str, Any] | None:
    results = [] if folder is None else _finished(folder)
    if not results:
        changed = differences(load_recipe(recipe.name).tree, recipe.tree)
        results = records.measured(recipe.name, {k: list(v) for k, v in changed.items()})
    if not results:
        return None
    metric = next((metric for metric in cell.paper if metric in METRICS), None)
    ours = sample([score(r) if metric is None else float(r[metric]) for r in results])
    found = {"mean": ours.mean, "std": ours.std, "n": ours.n, "p": None}
    if cell.paper:
        paper = Sample(next(iter(cell.paper.values())), cell.std, cell.n or 1)
        found["p"] = welch(ours, paper)
    return found


def _seconds(folder: Path) -> float | None:
    """A row's mean seconds of training."""
    found = [float(result["seconds_train"]) for result in _finished(folder)]
    return sum(found) / len(found) if found else None


def _finished(folder: Path) -> list[Mapping[str, Any]]:
    files = (RunDirectory(path).result for path in sorted(folder.glob("*")))
    return [read_json(file) for file in files if file.is_file()]
