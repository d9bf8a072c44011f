"""`rescue recipes`: what is shipped, what it expects, how recipes differ. torch only in `check`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from rescue_cli import recipe as recipes
from rescue_cli.analysis import records
from rescue_cli.cli import common
from rescue_cli.cli.common import Json, override_keys, recipe_names
from rescue_cli.cli.help import then
from rescue_cli.errors import UsageError
from rescue_cli.recipe import changes as plans

app = common.verb(invoke_without_command=True)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name or path.", autocompletion=recipe_names)
]


@app.callback(epilog=then("rescue recipes show quickstart", "rescue train --recipe quickstart"))
def listing(context: typer.Context, json: Json = False) -> None:
    """List, show, compare, copy and check recipes."""
    if context.invoked_subcommand is not None:
        return
    if json:
        import json as json_module

        print(json_module.dumps([_row(name) for name in recipes.names()]))
    else:
        print_listing()


def print_listing() -> None:
    """The table of all shipped recipes, one a line; which paper each is from, `show` says."""
    rows = [_row(name) for name in recipes.names()]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "data", "epochs", "expected %", "measured %"):
        numeric = heading.endswith("%") or heading == "epochs"
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(
            row["recipe"],
            row["data"],
            f"{row['epochs']:g}",
            "-" if row["expected"] is None else f"{row['expected']:.2f}",
            row["measured"] or "not run",
        )
    out = common.console()
    out.print(table)
    out.print("measured: mean (seeds) of the whole procedure; partly: of changed runs")


def _row(name: str) -> dict[str, Any]:
    recipe = recipes.load(name)
    return {
        "recipe": name,
        "paper": recipe.tree.get("paper"),
        "data": recipe.data.name,
        "epochs": recipe.train.epochs,
        "expected": recipe.tree.get("expect", {}).get("top1"),
        "measured": records.summary(name),
    }


@app.command()
def show(name: Name) -> None:
    """Print a recipe as it is written."""
    print(recipes.read_text(recipes.find(name)), end="")


@app.command()
def diff(a: Name, b: Name) -> None:
    """Print the keys in which two recipes differ."""
    first, second = recipes.load(a), recipes.load(b)
    changed = plans.differences(_procedure(first.tree), _procedure(second.tree))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    for name in (a, b):
        table.add_column(name, overflow="fold")
    for key, values in changed.items():
        table.add_row(key, *("-" if v is None else plans.as_written(v) for v in values))
    common.console().print(table if changed else f"{a} and {b} train the same thing.")


def _procedure(tree: Any) -> dict[str, Any]:
    """The sections that change what is trained or measured; the claim and its source do not."""
    return {k: v for k, v in tree.items() if k in recipes.SECTIONS}


@app.command()
def copy(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")],
) -> None:
    """Copy a recipe to a file of your own, under that file's name."""
    source = recipes.find(name)
    text = recipes.read_text(source)
    text = re.sub(rf"^name: {re.escape(source.stem)}$", f"name: {file.stem}", text, flags=re.M)
    text = re.sub(rf"^(# .*--recipe ){re.escape(source.stem)}\b", rf"\1{file}", text)
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise UsageError(f"{file}: exists already. Give another name, or remove it.") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}.") from None
    print(file)


def _names_and_keys(incomplete: str) -> list[str]:
    """For shell completion."""
    return [*recipe_names(incomplete), *override_keys(incomplete)]


@app.command()
def check(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|SECTION.KEY=VALUE",
            help="Names or paths; all shipped without. Changes to them.",
            autocompletion=_names_and_keys,
        ),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Of papers' recipes: has each key a source?")
    ] = False,
) -> None:
    """Validate recipes, and build their models without memory for weights."""
    first, rest = (words or [])[:1], (words or [])[1:]
    overrides = [word for word in rest if "=" in word or word.startswith("~")]
    chosen = [*first, *(word for word in rest if word not in overrides)] or list(recipes.names())
    if sources:
        _check_sources(chosen, overrides)
        return
    from rescue_cli.build.check import check_recipe

    for each in chosen:
        check_recipe(recipes.load(each, overrides))
        print(f"{each}: valid")


def _check_sources(chosen: list[str], overrides: list[str]) -> None:
    """Raises `UsageError` with all that a source is missing for, listed twice, or not there."""
    if overrides:
        raise UsageError(
            f"--sources: takes no changes ('{overrides[0]}'): the sources are those of a recipe as "
            "it is written. Drop them."
        )
    wrong = []
    for each in chosen:
        tree = recipes.load(each).tree
        if "paper" not in tree:
            print(f"{each}: of no paper")
        elif found := recipes.faults(tree):
            wrong.append(f"{each}: {'; '.join(found)}.")
        else:
            print(f"{each}: each key has its source")
    if wrong:
        cure = "List each key once, under sources: or, where nothing public answers it, unknown:."
        raise UsageError("\n".join([*wrong, cure]))


@app.command()
def record(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Finished runs.")],
    note: Annotated[str | None, typer.Option(help="What a reader should know.")] = None,
) -> None:
    """Keep finished runs as what was measured with their recipe."""
    print(records.add(runs, note))
