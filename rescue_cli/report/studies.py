"""Studies: a table of recipes, each changed in its own way, with what a paper found beside ours.

A study is a file in `recipes/studies/`; its cells are recipes with overrides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.plans import differences, flat
from rescue_cli.recipe import Recipe, read_text, recipes_folder
from rescue_cli.recipe import load as load_recipe
from rescue_cli.recipe.yaml import read
from rescue_cli.registry import check
from rescue_cli.report import records


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row: a recipe with overrides, or a `label` for each column where there is no recipe."""

    paper: dict[str, float]
    recipe: str | None = None
    set: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table as it is published: `columns` are headings and the recipe keys under them."""

    name: str
    paper: dict[str, str]
    columns: dict[str, str]
    cells: list[dict[str, Any]]


def names() -> dict[str, Path]:
    """The shipped studies' files by name."""
    return {file.stem: file for file in sorted((recipes_folder() / "studies").glob("*.yaml"))}


def load(name: str) -> Study:
    """The study of that name; raises `UsageError`."""
    if name not in names():
        raise UsageError(f"study: '{name}' is not known. {did_you_mean(name, names())}")
    tree = read(read_text(names()[name]), f"{name}.yaml")
    return Study(**check(f"study {name}", tree, Study))


def cells(study: Study) -> list[tuple[Cell, Recipe | None]]:
    """Each cell with its recipe resolved; raises `UsageError`."""
    found = []
    for number, tree in enumerate(study.cells):
        cell = Cell(**check(f"study {study.name}, cell {number}", tree, Cell))
        recipe = None if cell.recipe is None else load_recipe(cell.recipe, cell.set)
        found.append((cell, recipe))
    return found


def rows(study: Study) -> list[dict[str, Any]]:
    """For each cell the columns' values, the paper's figures, and what was measured here.

    `measured` is the mean top-1 and the number of runs on record with exactly these changes, or
    None.
    """
    return [
        {
            "columns": _columns(study, cell, recipe),
            "paper": cell.paper,
            "measured": None if recipe is None else _measured(recipe),
        }
        for cell, recipe in cells(study)
    ]


def _columns(study: Study, cell: Cell, recipe: Recipe | None) -> dict[str, Any]:
    if recipe is None:
        return dict(zip(study.columns, cell.label, strict=True))
    values: Mapping[str, Any] = flat(recipe.tree)
    return {heading: values.get(key) for heading, key in study.columns.items()}


def _measured(recipe: Recipe) -> tuple[float, int] | None:
    changed = differences(load_recipe(recipe.name).tree, recipe.tree)
    return records.measured(recipe.name, {k: list(v) for k, v in changed.items()})
