"""Help that fits a screen of 80 by 24: one line per option, no frames."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from typer.core import TyperArgument, TyperGroup, TyperOption

WIDTH, HEIGHT = 80, 24
METAVARS = {int: "N", float: "X", Path: "PATH"}
# The completion options, and what the usage line shows already
HIDDEN = ("help", "install_completion", "show_completion", "overrides")


def example_and_next(example: str, following: str) -> str:
    """The end of a verb's help: an example, and what is usually done after it."""
    return f"Example: {example}\nNext:    {following}"


class OneScreen:
    """Mixed into a command: its help as three blocks, with blank lines where the screen has room.

    The blocks are usage with summary, options, and epilog. typer's own layout needs more lines: a
    frame or a heading around each block.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        usage, options, end = (ctx.make_formatter() for _ in range(3))
        self._write_usage(ctx, usage)
        with options.indentation():
            options.write_dl(list(self._rows(ctx)), col_max=WIDTH // 2)
        command: Any = self
        end.write(f"{command.epilog}\n" if command.epilog else "")
        blocks = [text for block in (usage, options, end) if (text := block.getvalue())]
        lines = sum(block.count("\n") for block in blocks) + len(blocks) - 1
        formatter.write(("\n" if lines < HEIGHT else "").join(blocks))

    def _write_usage(self, ctx: Any, formatter: Any) -> None:
        command: Any = self
        command.format_usage(ctx, formatter)
        formatter.write_text(command.help or "")

    def _rows(self, ctx: Any) -> Iterator[tuple[str, str]]:
        """Name and description of each verb below this one, argument and option."""
        command: Any = self
        if isinstance(command, TyperGroup):
            for name in command.list_commands(ctx):
                summary, _, _ = (command.commands[name].help or "").partition("\n\n")
                yield name, " ".join(summary.split())
        for param in command.get_params(ctx):
            if param.name not in HIDDEN and not param.hidden:
                yield _label(param), _description(param)


def _label(param: TyperArgument | TyperOption) -> str:
    """`-r, --recipe TEXT` of an option, `NAME` of an argument."""
    if isinstance(param, TyperArgument):
        return param.metavar or param.name
    names = ", ".join(param.opts)
    if param.is_flag:
        return " / ".join([names, *param.secondary_opts])
    descriptor = param.type_descriptor
    choices = descriptor.choices and "|".join(choice.value for choice in descriptor.choices)
    return f"{names} {param.metavar or choices or METAVARS.get(descriptor.annotation, 'TEXT')}"


def _description(param: TyperArgument | TyperOption) -> str:
    """What it does, and its default in brackets; bounds are left to the error that names them."""
    default = param.default.value if isinstance(param.default, Enum) else param.default
    if isinstance(default, bool):
        default = None
    notes = ["required"] if param.required else [] if default is None else [_text(default)]
    return " ".join([param.help or "", *(f"[{note}]" for note in notes)])


def _text(default: object) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)
