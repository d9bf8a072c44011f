"""Help that fits a screen of 80 by 24: a line for each option, no frames."""

import re
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDTH, HEIGHT = 80, 24
KINDS = {"int": "N", "float": "X", "path": "PATH"}
# Completion, and what the usage line says already
NOT_SHOWN = ("help", "install_completion", "show_completion", "overrides")


def then(example: str, following: str) -> str:
    """The end of a verb's help: an example, and what is usually done after it."""
    return f"Example: {example}\nNext:    {following}"


class _OnOneScreen:
    """How a verb and a group of verbs lay out their help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        command: Any = self
        lines = _wrapped(f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}")
        lines += _wrapped(command.help or "")
        rows = list(self._rows(ctx))
        column = max((len(name) for name, _ in rows), default=0) + 4
        listed = []
        for name, said in rows:
            listed += _wrapped(said, f"  {name:<{column - 2}}", " " * column)
        last = (command.epilog or "").splitlines()
        roomy = len(lines) + len(listed) + len(last) + 2 < HEIGHT
        gap = [""] if roomy else []
        formatter.write("\n".join([*lines, *gap, *listed, *(gap if last else []), *last]) + "\n")

    def _rows(self, ctx: Any) -> Any:
        command: Any = self
        if isinstance(command, TyperGroup):
            for name in command.list_commands(ctx):
                yield name, command.commands[name].help or ""
        for param in command.get_params(ctx):
            record = None if param.name in NOT_SHOWN else param.get_help_record(ctx)
            if record is not None:
                yield _without_types(*record)


class Verb(_OnOneScreen, TyperCommand):
    """A verb."""


class Group(_OnOneScreen, TyperGroup):
    """A verb that has verbs below it."""


class App(typer.Typer):
    """An app whose commands show their help on one screen."""

    def command(self, *args: Any, **options: Any) -> Any:
        return super().command(*args, **{"cls": Verb, **options})


def _without_types(name: str, said: str) -> tuple[str, str]:
    """`--steps <int range>`, `... [default: 20; x>=1]` -> `--steps N`, `... [20]`."""
    if name[0] != "-":
        return re.sub(r" <.*>$", "", name), said
    kind = re.search(r" <(.*?)( range)?>$", name)
    if kind:
        name = f"{name[: kind.start()]} {KINDS.get(kind[1], 'TEXT')}"
    said = re.sub(r"; x[<>]=?\S+\]|; \S+<=x\S*\]", "]", said)
    said = re.sub(r"\s+\[(x[<>]|\S+<=x).*\]$", "", said)
    return name, re.sub(r"\s+\[default: (.*)\]$", r" [\1]", said)


def _wrapped(text: str, first: str = "", further: str = "") -> list[str]:
    text = " ".join(text.split())
    return textwrap.wrap(
        text, WIDTH - 1, initial_indent=first, subsequent_indent=further, break_on_hyphens=False
    ) or [first.rstrip()]
