"""Studies: a table of recipes, each changed in its own way, with what a paper found beside ours.

A study is a file in `recipes/studies/`; its cells are recipes with overrides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rescue_cli.analysis import records, sweep
from rescue_cli.analysis.agreement import demand_one_recipe, demand_one_test
from rescue_cli.analysis.compare import pairs_of
from rescue_cli.analysis.sides import Operand, operand
from rescue_cli.analysis.stats import Sample, difference, sample
from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import SECTIONS, Recipe, read_text, recipes_folder
from rescue_cli.recipe import load as load_recipe
from rescue_cli.recipe.changes import differences
from rescue_cli.recipe.schema import Positive, PositiveInt, check
from rescue_cli.recipe.yaml import read
from rescue_cli.rundir import METRICS, RunDirectory, read_result, score
from rescue_cli.rundir.planned import Lost, lost_of, planned, told_lost

STEPS = 4  # runs of a point of Smith's, with 0, 4, 8 and 12 images more in a batch
FILLERS = ("msra", "xavier")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a cell begins: a state of the cell of that number, its optimizers' included.

    One that begins with the `last` differs in its evaluation alone, and trains nothing.
    """

    cell: PositiveInt
    step: PositiveInt | Literal["last"]


@dataclass(frozen=True)
class Compared:
    """Rows with what their runs come to, and what may be claimed of each pair."""

    sides: Sequence[Operand]
    pairs: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row: a recipe with overrides, or a `label` for each column where there is no recipe.

    `paper`: its figures, none in a study of our own; `std` and `n` are of the first.
    """

    paper: dict[str, float] = field(default_factory=dict)
    recipe: str | None = None
    set: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    std: float | None = None
    n: PositiveInt | None = None
    from_snapshot: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table as it is published: `columns` are headings and the recipe keys under them.

    `set` holds for all cells, and so do `model` and `epochs`, which are the options of `rescue
    train`. A point is a run for each seed, or `smith`: 4 runs of batches that grow by 4 images,
    begun from msra and xavier in turn where the recipe names a filler. `pairs`: the rows are
    compared with one another. Without `paper` it is a study of our own.
    """

    name: str
    columns: dict[str, str]
    cells: list[dict[str, Any]]
    paper: dict[str, str] | None = None
    set: list[str] = field(default_factory=list)
    model: str | None = None
    epochs: Positive | None = None
    seeds: PositiveInt = 1
    points: Literal["seeds", "smith"] = "seeds"
    pairs: bool = False

    @property
    def source(self) -> str:
        """The paper and its table, or whose study it is."""
        return "our own" if self.paper is None else f"{self.paper['title']}, {self.paper['table']}"


def names() -> dict[str, Path]:
    """The shipped studies' files by name."""
    return {file.stem: file for file in sorted((recipes_folder() / "studies").glob("*.yaml"))}


def load(name: str) -> Study:
    """The study of that name, or in that file; raises `UsageError`."""
    file = Path(name) if name.endswith(".yaml") else names().get(name)
    if file is None or not file.is_file():
        raise UsageError(f"study: '{name}' is not known. {did_you_mean(name, names())}")
    tree = read(read_text(file), file.name)
    study = Study(**check(f"study {file.stem}", tree, Study))
    if study.pairs and study.points != "seeds":
        raise UsageError(f"study {file.stem}.pairs: compares seeds. Remove it, or points.")
    return study


def cells(study: Study, overrides: Sequence[str] = ()) -> list[tuple[Cell, Recipe | None]]:
    """Each cell with its recipe resolved, the user's `overrides` last; raises `UsageError`."""
    found = []
    for number, tree in enumerate(study.cells, 1):
        cell = Cell(**check(f"study {study.name}, row {number}", tree, Cell))
        recipe = None
        if cell.recipe is not None:
            more = expanded(study, cell, overrides)
            recipe = load_recipe(cell.recipe, [*study.set, *cell.set, *overrides, *more])
        found.append((cell, recipe))
    return found


def expanded(study: Study, cell: Cell, overrides: Sequence[str]) -> list[str]:
    """The overrides that the study's `model` and `epochs` stand for, beside all other changes."""
    if cell.recipe is None or (study.model is None and study.epochs is None):
        return []
    from rescue_cli.build import expand

    base, changes, found = load_recipe(cell.recipe), [*study.set, *cell.set, *overrides], []
    if study.model is not None:
        found = expand.model_overrides(base, study.model, changes)
    if study.epochs is not None:
        changed = base.with_overrides(*changes, *found)
        found += expand.epochs_overrides(changed, study.epochs, changes)
    return found


def runs(study: Study, recipe: Recipe, seeds: int | None) -> dict[str, Recipe]:
    """The runs of a cell by the names of their folders; None: as many as its points have."""
    if study.points == "seeds" or seeds is not None:
        count = seeds or study.seeds
        return {f"seed-{s}": recipe.with_overrides(f"train.seed={s}") for s in range(count)}
    found = {}
    for place in range(STEPS):
        batch = recipe.train.batch_size + 4 * place
        micro_batches = recipe.train.micro_batches
        size = batch // micro_batches if batch % micro_batches == 0 else batch
        filler = FILLERS[place % 2] if recipe.model.init is not None else None
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
            f"{len(study.cells)} rows. Give the number of one."
        )
    return found


def check_last(study: Study, row: int, recipe: Recipe, source: Recipe | None) -> None:
    """Raises `UsageError` where a row that begins with another's last state would train on."""
    changed = {} if source is None else differences(source.tree, recipe.tree)
    own = [k for k in changed if k.partition(".")[0] in SECTIONS and not k.startswith("eval.")]
    own = [key for key in own if key != "train.snapshots"]
    if source is None or own:
        what = f"differs in {own[0]}" if own else "has no recipe"
        raise UsageError(
            f"study {study.name}, row {row}.from_snapshot: begins with the last state of a row "
            f"that {what}. Change eval alone, or name a step."
        )


def rows(
    study: Study, overrides: Sequence[str] = (), folder: Path | None = None
) -> list[dict[str, Any]]:
    """For each cell its recipe, the columns' values, the paper's figures, and what was measured.

    `measured` is the top-1 of the runs in `folder` that have a result, else of those on record with
    exactly these changes: mean, std, n, and `p` that the paper's figure is the same by Welch's
    t-test; None where nothing was run. `runs` says how the planned runs of the folder ended, and
    `seconds_train` is the mean of those that have a result.
    """
    found = []
    for number, (cell, recipe) in enumerate(cells(study, overrides), 1):
        results, lost = ends(study, None if folder is None else folder / row_folder(number))
        seconds = [float(result["seconds_train"]) for result in results.values()]
        found.append(
            {
                "row": number,
                "recipe": cell.recipe,
                "columns": _columns(study, cell, recipe),
                "paper": cell.paper,
                "measured": None
                if recipe is None
                else _measured(cell, recipe, list(results.values())),
                "runs": told_lost(len(results), lost),
                "seconds_train": sum(seconds) / len(seconds) if seconds else None,
            }
        )
    return found


def ends(study: Study, folder: Path | None) -> tuple[dict[str, Mapping[str, Any]], dict[str, Lost]]:
    """The results of a row's runs by name, and how those ended that have none.

    Raises `DataError` where they differ in more than a row's runs may.
    """
    if folder is None:
        return {}, {}
    if study.points == "seeds":
        names = [path.name for path in sweep.folders_of(folder).values()]
        demand_one_recipe([folder / name for name in names])
    else:
        there = sorted(path.parent.name for path in folder.glob("*/recipe.yaml"))
        names = list(dict.fromkeys([*planned(folder), *there]))
    runs = {name: RunDirectory(folder / name) for name in names}
    results: dict[str, Mapping[str, Any]] = {
        name: read_result(run) for name, run in runs.items() if run.result.is_file()
    }
    demand_one_test({folder / name: result for name, result in results.items()})
    return results, {name: lost_of(run) for name, run in runs.items() if name not in results}


def compared(study: Study, rows: Sequence[Mapping[str, Any]], folder: Path) -> Compared:
    """The rows that have runs in the folder, by their first column, each against each other.

    Nothing of a study that does not compare its rows.
    """
    sides: list[Operand] = []
    for row in rows if study.pairs else ():
        if row["runs"]["n"]:
            side = operand(str(folder / row_folder(row["row"])))
            name = shown(next(iter(row["columns"].values())))
            taken = name in [other.name for other in sides]
            sides.append(replace(side, name=f"row {row['row']}" if taken else name))
    return Compared(sides, pairs_of(sides))


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
    return {heading: _at(recipe.tree, key) for heading, key in study.columns.items()}


def _at(tree: Any, path: str) -> Any:
    """What the recipe has there, or None.

    A list's item is named by its name, its group or its place; any other word is of the first.
    """
    for word in path.split("."):
        if isinstance(tree, list):
            named = [item for item in tree if word in (item.get("name"), item.get("params"))]
            placed = tree[int(word) :] if word.isdecimal() else []
            first = tree[0].get(word) if tree else None
            tree = next(iter([*named, *placed]), first)
        else:
            tree = tree.get(word) if isinstance(tree, Mapping) else None
    return tree


def _measured(
    cell: Cell, recipe: Recipe, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    if not results:
        changed = records.changes(recipe)
        results = records.measured(recipe.name, {k: list(v) for k, v in changed.items()})
    if not results:
        return None
    metric = next((metric for metric in cell.paper if metric in METRICS), None)
    ours = sample([score(r) if metric is None else float(r[metric]) for r in results])
    found = {"mean": ours.mean, "std": ours.std, "n": ours.n, "p": None}
    if cell.paper:
        paper = Sample(next(iter(cell.paper.values())), cell.std, cell.n or 1)
        found["p"] = difference(paper, ours).p
    return found
