"""The command `rescue`: one file for each verb, and one place that turns errors into exit codes."""

import contextlib
import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from rescue_cli import __version__
from rescue_cli.cli.help import Group
from rescue_cli.errors import RescueError, UsageError, refuse_url

# Each is the module of that name here, imported when it is asked for, and what help says of it.
VERBS = {
    "recipes": "List, show, compare, copy and check recipes.",
    "plan": "Say what a recipe costs: steps, FLOPs, memory, hours, money.",
    "train": "Train a recipe; its result stays in the run directory.",
    "eval": "Evaluate weights on test sets, at sizes and crops; one table.",
    "predict": "Print the most probable classes of images.",
    "transfer": "Train weights further on another data set, and compare starts.",
    "lr-range-test": "Find the largest stable learning rate (Smith).",
    "tune": "Choose batch, rates, momentum and decay by held-out loss.",
    "seed-sweep": "Train a recipe with many seeds; mean, spread and interval.",
    "study": "Run a published comparison; paper and measured side by side.",
    "compare": "Say whether B is better than A, and what may be claimed.",
    "report": "Write one page about runs, sweeps and studies.",
    "models": "List the architectures of the paper's tables.",
    "bench": "Measure speed, as ratios within one run.",
}
INTERRUPTED = 130  # as the shell has it
# Where the verb is no good name for a module
MODULES = {"eval": "evaluate", "lr-range-test": "lr_range_test", "seed-sweep": "seed_sweep"}
# What trains or evaluates for long, and begins with the allocator's settings on a CPU
COMPUTING = (
    ["train"],
    ["eval"],
    ["lr-range-test"],
    ["study"],
    ["seed-sweep"],
    ["transfer"],
    ["tune"],
    ["bench", "step"],
    ["bench", "train"],
    ["bench", "inference"],
)
OF_MACHINES = {"--nodes", "--node-rank", "--rendezvous"}  # where one command runs on each
COMPUTING_NOTHING = {"-h", "--help", "--dry-run", "--plan", "--table"}

# The base of typer's own errors, which is click's or its copy of click's
_Misuse: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class Verbs(Group):
    """The verbs by name; only the one that is run is imported."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, text in VERBS.items():
            self.add_command(TyperCommand(name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Puts the verb itself in the place of what help shows of it."""
        if args and args[0] in VERBS:
            module = importlib.import_module(f"rescue_cli.cli.{MODULES.get(args[0], args[0])}")
            command = get_command(module.app)
            command.name = args[0]
            self.add_command(command)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="rescue",
    cls=Verbs,
    epilog="Start with: rescue train --recipe quickstart\nA verb's options: rescue VERB --help",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"rescue {__version__}")
        raise typer.Exit


@app.callback()
def rescue(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, evaluate and compare image classifiers by named recipes."""


def main() -> None:
    """Runs the command line; the exit code says how it ended (see README).

    Ctrl-C is raised, and told by `__main__`.
    """
    with contextlib.ExitStack() as stack:
        _run(stack)


def _run(stack: contextlib.ExitStack) -> None:
    """What is put on the stack hears how the command ended."""
    try:
        _refuse_urls(sys.argv[1:])
        _prepare_allocator(sys.argv[1:])
        _join(sys.argv[1:], stack)
        code = (
            _plain_listing()
            if sys.argv[1:] == ["recipes"]
            else app(prog_name="rescue", standalone_mode=False)
        )
    except RescueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Abort:
        code = INTERRUPTED
    except _Misuse as error:
        _show(error)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {os.fsdecode(error.filename)}: {error.strerror}.", file=sys.stderr)
        sys.exit(1)
    if code == INTERRUPTED:  # typer has caught Ctrl-C
        raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)


def _show(error: Any) -> None:
    """What typer found wrong, as our own errors are told; help where a verb alone was given."""
    words = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(words, file=sys.stderr)
        return
    path = error.ctx.command_path if getattr(error, "ctx", None) else "rescue"
    print(f"error: {words.rstrip('.')}. See {path} --help.", file=sys.stderr)


def _refuse_urls(words: list[str]) -> None:
    """Raises `UsageError` where an option, an argument or a variable that takes a path has a URL.

    Those among a recipe's keys are found with the recipe.
    """
    for name in ("RESCUE_DATA", "RESCUE_CACHE"):
        refuse_url(name, os.environ.get(name, ""))
    verb = before = words[0] if words else ""
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            option, value = before, word
        elif not equals:
            before = word
            continue
        if option != "--note":  # which is text
            refuse_url(option, value)
        before = verb


def _is_computing(words: list[str]) -> bool:
    return any(words[: len(verb)] == verb for verb in COMPUTING)


def _join(words: list[str], stack: contextlib.ExitStack) -> None:
    """Where torchrun, srun or mpirun started it several times, the command becomes one of them.

    What it starts itself must not. Raises `UsageError` where the environment is none that can be.
    """
    if not _is_computing(words) or {"-h", "--help"} & {*words}:
        return
    from rescue_cli.runs import launcher

    start = launcher.detect(os.environ)
    names = {word.partition("=")[0] for word in words}
    if start is not None and start.launcher in launcher.TASK_LAUNCHERS and names & OF_MACHINES:
        start = None  # each task is a machine, which starts its own processes
    if start is not None and words[0] == "bench":
        raise UsageError(
            f"bench: measures one process, and runs as {start.size} ({start.launcher}). Start it "
            f"once. {start.cure}"
        )
    launcher.clear_torchrun_variables(os.environ)
    if start is not None:
        from rescue_cli.runs.console import note
        from rescue_cli.runs.group import join_group

        stack.enter_context(join_group(start, words, note))


def _prepare_allocator(words: list[str]) -> None:
    """Where it is going to compute on a CPU, the command begins anew with settings for malloc."""
    if _is_computing(words) and not COMPUTING_NOTHING & {*words}:
        from rescue_cli.runs.allocator import restart_with_settings

        restart_with_settings()


def _plain_listing() -> int:
    """`rescue recipes`, the line that is typed most, without an option to parse.

    typer parses options with pydantic, and importing that takes longer than all the rest.
    """
    from rescue_cli.cli.recipes import print_listing

    print_listing()
    return 0
