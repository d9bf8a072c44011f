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
from rescue_cli.cli.command import WIDTH, Group
from rescue_cli.errors import RescueError, refuse_url
from rescue_cli.runs.console import note

# Each is a module of that name here, and its line in the help; a module is imported when its verb
# runs
VERBS = {
    "recipes": "List, show, compare, copy and check recipes.",
    "plan": "Estimate what a recipe costs: steps, FLOPs, memory, hours, money.",
    "preflight": "Check recipe, memory, data, disk and SLURM's script before a training.",
    "train": "Train a recipe; the result is kept in the run directory.",
    "eval": "Evaluate weights on test sets, at several sizes and crops.",
    "predict": "Print the most probable classes of images.",
    "serve": "Try a network in a browser, or over HTTP.",
    "export": "Write a network as ONNX, torch.export or timm, and check the file.",
    "transfer": "Fine-tune weights on another data set, and compare weights.",
    "lr-range-test": "Find the largest stable learning rate (Smith).",
    "tune": "Tune batch size, learning rate, momentum and weight decay.",
    "seed-sweep": "Train a recipe with many seeds; mean, spread and interval.",
    "study": "Run a published comparison; paper and measured side by side.",
    "compare": "Test whether B is better than A.",
    "report": "Write an HTML page about runs, sweeps and studies.",
    "pack": "Pack images into tar or parquet shards.",
    "models": "List the architectures of the paper's tables.",
    "bench": "Measure speed relative to timm or a plain PyTorch loop.",
}
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class Verbs(Group):
    """The verbs by name. Only the one that runs is imported."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, text in VERBS.items():
            self.add_command(TyperCommand(name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replaces a verb's entry in the help by the verb itself."""
        if args and args[0] in VERBS:
            module = importlib.import_module(f"rescue_cli.cli.{args[0].replace('-', '_')}")
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
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": WIDTH},
)


def _print_version(given: bool) -> None:
    if given:
        print(f"rescue {__version__}")
        raise typer.Exit


@app.callback()
def rescue(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train, evaluate and compare image classifiers by named recipes."""
    for name in ("RESCUE_DATA", "RESCUE_CACHE"):
        refuse_url(name, os.environ.get(name, ""))


def main() -> None:
    """Runs the command line; the exit code says how it ended (see docs/guide.md).

    Raises `KeyboardInterrupt` on Ctrl-C, which `__main__` reports.
    """
    # A verb's group of processes is on the stack: it is dismissed with the exit code, after the
    # error is printed
    with contextlib.ExitStack() as stack:
        _run(stack)


def _run(stack: contextlib.ExitStack) -> None:
    try:
        code = app(prog_name="rescue", standalone_mode=False, obj=stack)
    except RescueError as error:
        note(f"error: {error}")
        sys.exit(error.exit_code)
    except typer.Abort:
        code = INTERRUPTED
    except typer.TyperException as error:
        _print_error(error)
        sys.exit(2)
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        note(
            f"error: torchvision is not built for this torch ({error}). Install both from one "
            "place: pip install --force-reinstall torch torchvision"
        )
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        note(f"error: {os.fsdecode(error.filename)}: {error.strerror}.")
        sys.exit(1)
    if code == INTERRUPTED:  # typer returns this code for Ctrl-C
        raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(error: typer.TyperException) -> None:
    """Prints what is wrong with the command line, in the form of our own errors."""
    context = getattr(error, "ctx", None)  # typer's exceptions for usage have it, the base has not
    path = context.command_path if context else "rescue"
    message = error.format_message()
    keys = _keys_for_option(getattr(error, "option_name", None), context)
    if keys:
        message = f"{message.partition(' (')[0]}. It is a key of the recipe: {' or '.join(keys)}"
    end = "" if message.endswith((".", "?")) else "."
    note(f"error: {message}{end} See {path} --help.")


def _keys_for_option(option: str | None, context: Any) -> list[str]:
    """How to set what an unknown option seems to mean: `train.seed=VALUE` for `--seed`."""
    from rescue_cli.recipe import SECTIONS, schema

    params = context.command.params if context else []
    if option is None or not any(param.name == "overrides" for param in params):
        return []
    name = option.lstrip("-").replace("-", "_")
    sections = [s for s, entry in SECTIONS.items() if name in schema.keys(entry.keys)]
    return [f"{section}.{name}=VALUE" for section in sections]
