"""The command `rescue`: one file for each verb, and one place that turns errors into exit codes."""

import os
import sys
from typing import Any

import typer

from rescue_cli.cli import bench, evaluate, predict, recipes, train
from rescue_cli.errors import RescueError

# The base of typer's own errors, which is click's or its copy of click's
_Misuse: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="rescue",
    help="Train, evaluate and compare image classifiers by named recipes.",
    epilog="Start with: rescue train --recipe quickstart",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", epilog="Example: rescue train --recipe myrtle-baseline data.root=DIR")(
    train.train
)
app.command("eval", epilog="Example: rescue eval runs/quickstart/0")(evaluate.evaluate)
app.command("predict", epilog="Example: rescue predict runs/quickstart/0 coat.png")(predict.predict)
app.add_typer(recipes.app, name="recipes")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs the command line; the exit code says how it ended (see README)."""
    try:
        code = app(standalone_mode=False)
    except RescueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except _Misuse as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
