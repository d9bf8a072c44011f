"""The classes of the commands: how `rescue` and its verbs parse arguments, fail and start."""

import difflib
import os
import sys
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from rescue_cli.errors import UsageError, refuse_url

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


PRINTED = {"--csv": ".csv", "--json": ".json", "--markdown": ".md"}  # flags, and what they print
TEXT_OPTIONS = ("--note",)  # may hold a URL, because they name no file


class Verb(OneScreen, TyperCommand):
    """A verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words; raises `UsageError` where a URL is given as a file or folder, or a file
        to a flag that prints.

        Before they are parsed, because a `Path` keeps one slash of two. URLs in a recipe's keys are
        refused when the recipe is read.
        """
        if not ctx.resilient_parsing:
            _, _, verb = ctx.command_path.partition(" ")
            _refuse_urls(verb, args)
            _refuse_output_files(args)
        return super().parse_args(ctx, args)


def _refuse_urls(verb: str, words: list[str]) -> None:
    key = verb
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            option, value = key, word
        elif not equals:
            key = word
            continue
        if option not in TEXT_OPTIONS:
            refuse_url(option, value)
        key = verb


def _refuse_output_files(words: list[str]) -> None:
    """Raises `UsageError` for `--csv out.csv`: the flag takes no word."""
    for option, word in pairwise(words):
        if (end := PRINTED.get(option)) is not None and word.lower().endswith(end):
            raise UsageError(
                f"{option} {word}: {option} takes no file; it prints. Write {option} > {word}"
            )


class ComputingVerb(Verb):
    """A verb that trains, evaluates or measures.

    On a CPU it runs with settings for the memory allocator, which a process can only begin with.
    Where torchrun, srun or mpirun started it several times, the processes make one group.
    """

    one_process = False  # whether it refuses to be one of several processes

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb; raises `UsageError` for variables that describe no possible group."""
        options = ctx.params
        if not any(options.get(name) for name in ("dry_run", "plan", "table")):
            from rescue_cli.runs.allocator import restart_with_settings

            restart_with_settings("cuda" if options.get("gpus") else options.get("device"))
        self._join_group(ctx)
        return super().invoke(ctx)

    def _join_group(self, ctx: Any) -> None:
        """Makes this command one process of the group that it was started in.

        Processes that it starts itself must not join it, so the group's variables are removed.
        """
        from rescue_cli.runs import launcher

        launch = launcher.detect(os.environ)
        options = ctx.params
        is_node = (
            options.get("nodes", 1) > 1 or options.get("node_rank") or options.get("rendezvous")
        )
        if launch is not None and launch.launcher in launcher.TASK_LAUNCHERS and is_node:
            launch = None  # each task is a machine, which starts its own processes
        if launch is not None and self.one_process:
            raise UsageError(
                f"{ctx.command_path.split()[1]}: works in one process, and runs as {launch.size} "
                f"({launch.launcher}). "
                f"Start it once. {launch.cure}"
            )
        launcher.clear_torchrun_variables(os.environ)
        if launch is not None:
            from rescue_cli.runs.console import note
            from rescue_cli.runs.group import join_group

            ctx.obj.enter_context(join_group(launch, sys.argv[1:], note))


class SingleProcess(ComputingVerb):
    """A verb that uses the allocator's settings, and works in one process: benchmarks, exports."""

    one_process = True


class Group(OneScreen, TyperGroup):
    """A verb that has verbs below it."""

    def get_params(self, ctx: Any) -> Any:
        """The options, with False for a flag that is not given.

        typer's own flags (help, shell completion) have None, which it would convert with pydantic.
        Importing that takes longer than all else that `rescue recipes` does.
        """
        params = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag and param.default is None:
                param.default = False
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words; without any, prints the help to stderr and ends with code 2."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            print(ctx.get_help(), file=sys.stderr)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that the first word names; ends with its nearest names where there is none."""
        if args and args[0] not in self.commands and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], self.commands)
            question = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{question}")
        return super().resolve_command(ctx, args)


class App(typer.Typer):
    """An app whose commands are of these classes."""

    def command(self, *args: Any, **options: Any) -> Any:
        return super().command(*args, **{"cls": Verb, **options})
