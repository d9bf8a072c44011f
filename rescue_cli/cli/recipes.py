"""`rescue recipes`: list, show, compare, copy and check recipes. Only `check` imports torch."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis import records
from rescue_cli.cli import common
from rescue_cli.cli.command import Group, example_and_next
from rescue_cli.cli.common import Json, With, recipe_names
from rescue_cli.cli.completion import complete_override
from rescue_cli.errors import UsageError
from rescue_cli.recipe import changes
from rescue_cli.runs import console


class RecipesGroup(Group):
    """The verb, whose own verbs come before a recipe's name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As `Group`'s; says how to show a recipe whose name stands in the place of a verb."""
        if args and args[0] in recipes.names() and not ctx.resilient_parsing:
            ctx.fail(f"'{args[0]}' is a recipe. Show it with: rescue recipes show {args[0]}")
        return super().resolve_command(ctx, args)


app = common.verb(cls=RecipesGroup, invoke_without_command=True)
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name or path of a recipe.", autocompletion=recipe_names),
]


@app.callback(
    epilog=example_and_next("rescue recipes show quickstart", "rescue train --recipe quickstart")
)
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """List, show, compare, copy and check recipes."""
    if context.invoked_subcommand is not None:
        return
    summaries = [_summarise(name) for name in recipes.names()]
    if as_json:
        common.print_json(summaries)
        return
    rows, folder = [], ""
    for recipe in summaries:
        if (own := recipes.find(recipe["recipe"]).parent.name) != folder:
            folder = own
            rows.append([f"{folder}/", "", "", "", ""])
        rows.append(
            [
                recipe["recipe"],
                recipe["data"],
                f"{recipe['epochs']:g}",
                "-" if recipe["expected"] is None else f"{recipe['expected']:.2f}",
                recipe["measured"] or "not run",
            ]
        )
    headings = ("recipe", "data", "epochs", "expected %", "measured %")
    out = common.console()
    out.print(common.table(headings, rows, words=("recipe", "data")))
    out.print("expected: the paper's, or our own aim")
    out.print("CIFAR-10 was measured re-encoded as JPEG, Imagenette squashed to squares")
    out.print("measured: mean (seeds), unchanged but for precision; partly: only changed runs")


def _summarise(name: str) -> dict[str, Any]:
    recipe = recipes.load(name)
    return {
        "recipe": name,
        "paper": recipe.tree.get("paper"),
        "data": recipe.data.name,
        "epochs": recipe.train.epochs,
        "expected": recipe.tree.get("expect", {}).get("top1"),
        "measured": records.format_record(name),
    }


@app.command()
def show(name: Name) -> None:
    """Print a recipe as it is written."""
    print(recipes.read_text(recipes.find(name)), end="")


@app.command()
def diff(a: Name, b: Name) -> None:
    """Print the keys in which two recipes differ."""
    first, second = recipes.load(a), recipes.load(b)
    differences = changes.differences(_procedure(first.tree), _procedure(second.tree))
    if not differences:
        print(f"{a} and {b} train the same thing.")
        return
    order = list(recipes.SECTIONS)
    keys = sorted(differences, key=lambda key: order.index(key.partition(".")[0]))
    rows = [
        [
            key,
            *(
                "-" if value is None else changes.format_recipe_value(value)
                for value in differences[key]
            ),
        ]
        for key in keys
    ]
    common.console().print(common.table(("key", a, b), rows, words=("key", a, b)))


def _procedure(tree: Any) -> dict[str, Any]:
    """The sections that change what is trained or measured, so not the claim and its source."""
    return {k: v for k, v in tree.items() if k in recipes.SECTIONS}


@app.command()
def copy(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")],
) -> None:
    """Copy a recipe to a new file, and name it after that file."""
    source = recipes.find(name)
    text = recipes.read_text(source)
    text = re.sub(rf"^name: {re.escape(source.stem)}$", f"name: {file.stem}", text, flags=re.M)
    copied = rf"\1{file}\2\n#\n# Copied from {source.stem}, whose description was:"
    text = re.sub(rf"^(# .*--recipe ){re.escape(source.stem)}\b(.*)", copied, text)
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise UsageError(f"{file}: already exists. Give another name, or remove it.") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}.") from None
    print(file)


def _names_and_keys(incomplete: str) -> list[str]:
    """For shell completion."""
    return [*recipe_names(incomplete), *complete_override(incomplete)]


@app.command()
def check(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|SECTION.KEY=VALUE",
            help="Names or paths of recipes (default: all shipped), and changes to them.",
            autocompletion=_names_and_keys,
        ),
    ] = None,
    code: With = None,
    sources: Annotated[
        bool,
        typer.Option("--sources", help="Check that each key of a paper's recipe has a source."),
    ] = False,
) -> None:
    """Validate recipes, and build their models without allocating weights."""
    first, rest = (words or [])[:1], (words or [])[1:]
    overrides = [word for word in rest if "=" in word or word.startswith("~")]
    chosen = [*first, *(word for word in rest if word not in overrides)] or list(recipes.names())
    if sources:
        _check_sources(chosen, overrides)
        return
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.outline import warn_of_length

    if code:  # a file may be for one of the recipes alone
        for each in chosen:
            recipes.load(each, overrides)
    for each in chosen:
        recipe = recipes.load(each, overrides)
        check_recipe(recipe)
        print(f"{each}: valid")
        for line in warn_of_length(recipe, overrides):
            console.note(f"{each}: warning: {line}" if len(chosen) > 1 else f"warning: {line}")


def _check_sources(chosen: list[str], overrides: list[str]) -> None:
    """Raises `UsageError` with the keys that have no source or two, or are not in the recipe."""
    if overrides:
        raise UsageError(
            f"--sources: takes no changes ('{overrides[0]}'), because sources are those of the "
            "recipe as written. Remove them."
        )
    wrong = []
    for each in chosen:
        tree = recipes.load(each).tree
        if "paper" not in tree:
            print(f"{each}: not from a paper")
        elif faults := recipes.faults(tree):
            wrong.append(f"{each}: {'; '.join(faults)}.")
        else:
            print(f"{each}: each key has a source")
    if wrong:
        cure = "List each key once, under sources:, or under unknown: if no source is public."
        raise UsageError("\n".join([*wrong, cure]))


@app.command()
def record(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Finished runs.")],
    note: Annotated[str | None, typer.Option(help="Text to keep with the record.")] = None,
) -> None:
    """Record the results of finished runs as measured with their recipe."""
    print(records.add_runs(runs, note))
