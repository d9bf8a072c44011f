"""Studies: tables of recipes with overrides, with the paper's results beside ours.

A study is a YAML file in `recipes/studies/`; each of its cells is a recipe with overrides.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rescue_cli.analysis import records, sweep
from rescue_cli.analysis.compare import compare_pairs
from rescue_cli.analysis.consistency import (
    check_same_recipe,
    check_same_test,
    read_procedures,
)
from rescue_cli.analysis.sides import Images, Side, load_side
from rescue_cli.analysis.stats import Sample, sample, welch_test
from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.metrics.names import METRICS, score
from rescue_cli.recipe import SECTIONS, Recipe, read_text, recipe_in, recipes_folder
from rescue_cli.recipe import load as load_recipe
from rescue_cli.recipe.changes import differences, format_recipe_value, is_path
from rescue_cli.recipe.schema import Positive, PositiveInt, check
from rescue_cli.recipe.yaml import read
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.rundir.planned import MissingRun, missing_to_json, read_missing, read_planned

STEPS = 4  # runs of a `smith` point, with 0, 4, 8 and 12 more images in a batch
FILLERS = ("msra", "xavier")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The snapshot of another cell that a cell starts from, including its optimizers' state.

    A cell that starts from the `last` one only evaluates, and trains nothing.
    """

    cell: PositiveInt
    step: PositiveInt | Literal["last"]


@dataclass(frozen=True)
class ComparedRows:
    """The rows as sides of a comparison, and what may be claimed of each pair."""

    sides: Sequence[Side]
    pairs: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row: a recipe with overrides, or a `label` for each column where there is no recipe.

    `paper`: the paper's figures, none in our own study; `std` and `n` belong to the first.
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
    """A published table: `columns` are headings and the recipe keys under them.

    `set`, and `model`, `epochs` and `smoke` (the options of `rescue train`), apply to all cells.
    `points`: one run per seed, or `smith`: 4 runs with batches that grow by 4 images, initialised
    by msra and xavier in turn where the recipe names a filler. `pairs`: compare the rows with one
    another. Without `paper` it is our own study.
    """

    name: str
    columns: dict[str, str]
    cells: list[dict[str, Any]]
    paper: dict[str, str] | None = None
    set: list[str] = field(default_factory=list)
    model: str | None = None
    epochs: Positive | None = None
    smoke: bool = False
    seeds: PositiveInt = 1
    points: Literal["seeds", "smith"] = "seeds"
    pairs: bool = False

    @property
    def source(self) -> str:
        """The paper and its table, or `our own`."""
        return "our own" if self.paper is None else f"{self.paper['title']}, {self.paper['table']}"


def study_files() -> dict[str, Path]:
    """The shipped studies' files by name."""
    return {file.stem: file for file in sorted((recipes_folder() / "studies").glob("*.yaml"))}


def load_study(name: str) -> Study:
    """The study of that name, or in that file; raises `UsageError`."""
    file = Path(name) if name.endswith(".yaml") else study_files().get(name)
    if file is None or not file.is_file():
        if name.endswith(".yaml"):
            raise UsageError(f"study: {name}: no such file. Give a file, or a name: rescue study")
        hint = f"Give {name}.yaml" if Path(f"{name}.yaml").is_file() else ""
        hint = hint or did_you_mean(name, study_files())
        raise UsageError(f"study: '{name}' is not known. {hint}")
    tree = read(read_text(file), file.name)
    study = Study(**check(f"study {file.stem}", tree, Study))
    if study.pairs and study.points != "seeds":
        raise UsageError(f"study {file.stem}.pairs: needs points: seeds. Remove pairs or points.")
    return study


def resolve_cells(study: Study, overrides: Sequence[str] = ()) -> list[tuple[Cell, Recipe | None]]:
    """Each cell with its recipe resolved, the user's `overrides` last; raises `UsageError`."""
    resolved = []
    for number, tree in enumerate(study.cells, 1):
        cell = Cell(**check(f"study {study.name}, row {number}", tree, Cell))
        recipe = None
        if cell.recipe is not None:
            with naming_row(study, number):
                more = implied_overrides(study, cell, overrides)
                recipe = load_recipe(cell.recipe, [*study.set, *cell.set, *overrides, *more])
        resolved.append((cell, recipe))
    return resolved


@contextmanager
def naming_row(study: Study, number: int) -> Iterator[None]:
    """Begins the message of a `UsageError` in its body with the row."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"study {study.name}, row {number}: {error}") from None


def check_rows(study: Study, overrides: Sequence[str]) -> None:
    """Raises `UsageError` for a key that a row's recipe lacks, and for two rows of one recipe that
    would be compared with each other.
    """
    from rescue_cli.build.check import check_ingredients

    trees: list[Mapping[str, Any] | None] = []
    for number, (_, recipe) in enumerate(resolve_cells(study, overrides), 1):
        if recipe is not None:
            with naming_row(study, number):
                check_ingredients(recipe)
        tree = None if recipe is None else recipe.tree
        if study.pairs and tree is not None and tree in trees:
            raise UsageError(
                f"study {study.name}, rows {trees.index(tree) + 1} and {number}: are the same "
                "recipe. Change one of them, or remove it."
            )
        trees.append(tree)


def check_columns(study: Study) -> None:
    """Raises `UsageError` for a column that says nothing of any row."""
    rows = [_columns(study, *cell) for cell in resolve_cells(study)]
    for heading, key in study.columns.items():
        if all(row[heading] is None for row in rows):
            raise UsageError(
                f"study {study.name}.columns.{heading}: no row's recipe sets {key}. "
                "Name a key that the rows set."
            )


def implied_overrides(study: Study, cell: Cell, overrides: Sequence[str]) -> list[str]:
    """The overrides that the study's `model`, `epochs` and `smoke` stand for."""
    if cell.recipe is None or (study.model is None and study.epochs is None and not study.smoke):
        return []
    from rescue_cli.build.expand import cut_short, expand_options

    base, changes = load_recipe(cell.recipe), [*study.set, *cell.set, *overrides]
    longer, _ = expand_options(base, changes, study.model, study.epochs)
    given = [*changes, *longer]
    whole = base.with_overrides(*given)
    cut, _ = cut_short(whole, given, subset=None, smoke=study.smoke, cuda=False)
    return [*longer, *cut]


def cell_runs(study: Study, recipe: Recipe, seeds: int | None) -> dict[str, Recipe]:
    """The runs of a cell by folder name; `seeds` None: as many as the study says.

    Raises `UsageError` for `seeds` of a study whose runs differ in more than their seed.
    """
    if seeds is not None and study.points != "seeds":
        raise UsageError(
            f"--seeds: a row of {study.name} is {STEPS} runs with growing batches, as the paper "
            "averages them. Remove it, or run fewer rows: --only 1."
        )
    if study.points == "seeds":
        count = seeds or study.seeds
        return {f"{sweep.PREFIX}{s}": recipe.with_seed(s) for s in range(count)}
    runs = {}
    for index in range(STEPS):
        batch = recipe.train.batch_size + 4 * index
        micro_batches = recipe.train.micro_batches
        size = batch // micro_batches if batch % micro_batches == 0 else batch
        filler = FILLERS[index % 2] if recipe.model.init is not None else None
        runs[f"batch-{batch}" + (f"-{filler}" if filler else "")] = recipe.with_overrides(
            f"train.batch_size={batch}",
            f"train.device_batch_size={size}",
            f"train.seed={index}",
            *([f"model.init={filler}"] if filler else []),
        )
    return runs


def parse_snapshot(study: Study, cell: Cell) -> Snapshot | None:
    """The snapshot that the cell starts from, if any; raises `UsageError`."""
    if cell.from_snapshot is None:
        return None
    snapshot = Snapshot(**check(f"study {study.name}.from_snapshot", cell.from_snapshot, Snapshot))
    if not snapshot.cell <= len(study.cells):
        raise UsageError(
            f"study {study.name}.from_snapshot.cell: {snapshot.cell} is not one of its "
            f"{len(study.cells)} rows. Give a row's number."
        )
    return snapshot


def check_last_snapshot(study: Study, row: int, recipe: Recipe, source: Recipe | None) -> None:
    """Raises `UsageError` where a row that starts from another's last state would train."""
    changed = {} if source is None else differences(source.tree, recipe.tree)
    own = [k for k in changed if k.partition(".")[0] in SECTIONS and not k.startswith("eval.")]
    own = [key for key in own if key != "train.snapshots"]
    if source is None or own:
        what = f"differs in {own[0]}" if own else "has no recipe"
        raise UsageError(
            f"study {study.name}, row {row}.from_snapshot: starts from the last state of a row "
            f"that {what}. Change only eval, or name a step."
        )


def table_rows(
    study: Study, overrides: Sequence[str] = (), folder: Path | None = None
) -> list[dict[str, Any]]:
    """For each cell its recipe, the columns' values, the paper's figures, and the results.

    `columns`: of the recipe that was run, where there are results.
    `measured`: mean, std and n of the finished runs in `folder`, else of those on record with
    exactly these changes, and `p`, Welch's t-test against the paper's figure; None without runs.
    `recorded`: whether they are those on record. `partial`: whether they took a part of the images
    that the study does not name; such runs have no p. `images`: what they were tested on, none
    without runs. `runs`: how the planned runs of the folder ended. `seconds_train`: the mean of
    finished runs.
    """
    rows = []
    for number, (cell, recipe) in enumerate(resolve_cells(study, overrides), 1):
        results, missing = read_cell_runs(
            study, None if folder is None else folder / row_folder(number)
        )
        partial = folder is not None and _takes_part(
            study, cell, folder / row_folder(number), results
        )
        seconds = [float(result["seconds_train"]) for result in results.values()]
        shown = list(results.values()) or _on_record(recipe)
        rows.append(
            {
                "row": number,
                "recipe": cell.recipe,
                "columns": _columns(
                    study, cell, _measured_recipe(folder, number, results) or recipe
                ),
                "paper": cell.paper,
                "measured": _summarize_results(cell, shown, partial=partial),
                "recorded": recipe is not None and not results,
                "partial": partial,
                "images": list(dict.fromkeys(map(_test_images, shown))),
                "runs": missing_to_json(len(results), missing),
                "seconds_train": sum(seconds) / len(seconds) if seconds else None,
            }
        )
    return rows


def _takes_part(study: Study, cell: Cell, folder: Path, names: Iterable[str]) -> bool:
    """Whether a row's runs took another part of the images than the study says."""
    first = next(iter(names), None)
    if first is None or cell.recipe is None:
        return False
    subset = recipe_in(folder / first).data.subset
    return (
        subset is not None
        and subset != load_recipe(cell.recipe, [*study.set, *cell.set]).data.subset
    )


def read_cell_runs(
    study: Study, folder: Path | None
) -> tuple[dict[str, Mapping[str, Any]], dict[str, MissingRun]]:
    """The results of a row's runs by name, and how the runs without a result ended.

    Raises `DataError` where the runs differ in more than the runs of a row may.
    """
    if folder is None:
        return {}, {}
    if study.points == "seeds":
        names = [path.name for path in sweep.seed_folders(folder).values()]
        check_same_recipe(read_procedures(folder / name for name in names))
    else:
        there = sorted(path.parent.name for path in folder.glob("*/recipe.yaml"))
        names = list(dict.fromkeys([*read_planned(folder), *there]))
    runs = {name: RunDirectory(folder / name) for name in names}
    results: dict[str, Mapping[str, Any]] = {
        name: read_result(run) for name, run in runs.items() if run.finished
    }
    check_same_test({folder / name: result for name, result in results.items()})
    return results, {name: read_missing(run) for name, run in runs.items() if name not in results}


def describe_changes(study: Study, overrides: Sequence[str], folder: Path) -> list[str]:
    """What the results of each row were run with, where the study says otherwise now."""
    lines = []
    for number, (_, recipe) in enumerate(resolve_cells(study, overrides), 1):
        results, _missing = read_cell_runs(study, folder / row_folder(number))
        ran = _measured_recipe(folder, number, results)
        if ran is None or recipe is None or study.points != "seeds":
            continue
        changed = differences(ran.with_seed(0).tree, recipe.with_seed(0).tree)
        texts = [
            f"{key}: {format_recipe_value(then)} -> {format_recipe_value(now)}"
            for key, (then, now) in changed.items()
            if not is_path(key, then, now)
        ]
        if texts:
            lines.append(
                f"row {number} shows runs from before the study was changed: {'; '.join(texts)}"
            )
    return lines


def _measured_recipe(folder: Path | None, number: int, results: Mapping[str, Any]) -> Recipe | None:
    """The recipe of a row's results; they differ in their seed, or as the points of a row do."""
    first = next(iter(results), None)
    return (
        None if folder is None or first is None else recipe_in(folder / row_folder(number) / first)
    )


def compare_rows(study: Study, rows: Sequence[Mapping[str, Any]], folder: Path) -> ComparedRows:
    """Compares those of the `rows` that have results in the folder.

    Empty for a study without `pairs`.
    """
    if not study.pairs:
        return ComparedRows((), ())
    sides: list[Side] = []
    for row, name in zip(rows, _row_names(study, rows), strict=True):
        if row["runs"]["n"]:
            side = load_side(str(folder / row_folder(row["row"])))
            sides.append(replace(side, name=name))
    return ComparedRows(sides, compare_pairs(sides))


def _row_names(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sentences call the rows: by the words of the first column, if each row of the study has
    its own there, else `row 3 (learning rate 0.2)`: by its number and what differs from the first.
    """
    whole = [_columns(study, *cell) for cell in resolve_cells(study)]
    shown = [row["columns"] for row in rows]
    for every in (whole, shown):
        firsts = [next(iter(columns.values()), None) for columns in every]
        if not all(isinstance(first, str) for first in firsts) or len({*firsts}) < len(every):
            break
    else:
        return [str(first) for first in firsts]
    names = []
    for row in rows:
        changed = ", ".join(
            f"{heading} {format_value(value)}"
            for heading, value in row["columns"].items()
            if value != rows[0]["columns"][heading]
        )
        names.append(f"row {row['row']} ({changed})" if changed else f"row {row['row']}")
    return names


def format_value(value: Any) -> str:
    """A column's value as text."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def image_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows were tested on: `rows 1 to 3, 5: tested on cifar10 test (10,000 images)`."""
    every = dict.fromkeys(images for row in rows for images in row["images"])
    return [
        f"{name_rows([row for row in rows if images in row['images']])}: tested on {images}"
        for images in every
    ]


def name_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """`row 1`, or `rows 1 to 3, 5`."""
    spans: list[list[int]] = []
    for number in (row["row"] for row in rows):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    texts = [", ".join(map(str, s)) if len(s) < 3 else f"{s[0]} to {s[-1]}" for s in spans]
    return f"row{'s' * (len(rows) > 1)} {', '.join(texts)}"


def row_folder(number: int) -> str:
    """The name of a row's folder in the study's folder."""
    return f"{number:02d}"


def _columns(study: Study, cell: Cell, recipe: Recipe | None) -> dict[str, Any]:
    if recipe is None or cell.label:
        return dict(zip(study.columns, cell.label, strict=True))
    return {heading: _at(recipe.tree, key) for heading, key in study.columns.items()}


def _at(tree: Any, path: str) -> Any:
    """The recipe's value at a dotted path, or None.

    A list's item is chosen by its name, group or index; any other word is a key of the first item.
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


def _on_record(recipe: Recipe | None) -> Sequence[Mapping[str, Any]]:
    """The results on record of a recipe with exactly its changes."""
    if recipe is None:
        return []
    changed = records.changed_keys(recipe)
    return records.recorded_results(recipe.name, {k: list(v) for k, v in changed.items()})


def _test_images(result: Mapping[str, Any]) -> str:
    """`cifar10 test (10,000 images)`."""
    protocol = result["protocol"]
    return str(Images(protocol["data"], protocol["set"], int(result["count"])))


def _summarize_results(
    cell: Cell, results: Sequence[Mapping[str, Any]], *, partial: bool
) -> dict[str, Any] | None:
    if not results:
        return None
    metric = next((metric for metric in cell.paper if metric in METRICS), None)
    ours = sample([score(r) if metric is None else float(r[metric]) for r in results])
    measured = {"mean": ours.mean, "std": ours.std, "n": ours.n, "p": None}
    if cell.paper and not partial:
        paper = Sample(next(iter(cell.paper.values())), cell.std, cell.n or 1)
        measured["p"] = welch_test(paper, ours).p
    return measured
