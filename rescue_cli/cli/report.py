"""`rescue report`: one page about runs and sweeps, or their table as data."""

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.cli import common
from rescue_cli.cli.command import example_and_next
from rescue_cli.errors import DataError, RescueError, UsageError, near_path
from rescue_cli.rundir import RunDirectory
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    epilog=example_and_next(
        "rescue report runs/quickstart/0 runs/sweep/quickstart", "open report.html in a browser"
    )
)
def report(
    paths: Annotated[list[Path], typer.Argument(metavar="DIR", help="Runs, sweeps and studies.")],
    out: Annotated[Path, typer.Option(help="File of the page.")] = Path("report.html"),
    csv_: Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table in Markdown.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    logits: Annotated[
        bool, typer.Option("--logits", help="Draw how far the largest logit is from the others.")
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write the curves to this folder, for TensorBoard.")
    ] = None,
) -> None:
    """Write one self-contained HTML page, or print the table of results."""
    from rescue_cli.report import page

    if sum((csv_, markdown, as_json)) > 1:
        raise UsageError(
            "report: --csv, --markdown and --json are mutually exclusive. Give only one."
        )
    for path in paths:
        _check(path)
    if csv_ or as_json:
        for line in page.result_warnings(paths):
            note(f"warning: {line}")
    if tensorboard is not None:
        _write_events(paths, tensorboard)
        print(tensorboard)
    elif csv_:
        from rescue_cli.report.table import KEYS

        table = csv.DictWriter(sys.stdout, KEYS, lineterminator="\n")
        table.writeheader()
        table.writerows(line.row for line in page.result_lines(paths))
    elif markdown:
        print(page.markdown_table(paths), end="")
    elif as_json:
        common.print_json([line.values for line in page.result_lines(paths)])
    else:
        from rescue_cli.rundir import write_text

        text = page.render_page(paths, logits=logits)
        if out.exists():
            note(f"{out}: replaces the file that was there; --out FILE writes another")
        write_text(out, text)
        print(out)


def _check(path: Path) -> None:
    """Raises `DataError` if the folder has no results."""
    from rescue_cli.analysis.sides import refuse_search, sweeps_in
    from rescue_cli.analysis.sweep import read_sweep
    from rescue_cli.report import study_page

    if not path.exists():
        raise DataError(f"{path}: no such folder.{near_path(path, folders=True)}")
    refuse_search(path)
    sweep = None if RunDirectory(path).finished or study_page.is_study(path) else read_sweep(path)
    if sweep is not None and not sweep.results:
        missing = f" of {sweep.seeds_text.removeprefix('0 of ')}" if sweep.missing else ""
        inside = " or ".join(sweeps_in(path)) or "folders of finished runs, sweeps or studies"
        raise DataError(f"{path}: holds no result{missing}. Give {inside}.")


def _write_events(paths: list[Path], folder: Path) -> None:
    """Writes each run's curves for TensorBoard; raises `RescueError` without that package."""
    from rescue_cli.rundir import read_metrics
    from rescue_cli.runs.tracking import name_numbers

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RescueError(
            "--tensorboard: the package tensorboard is not installed. pip install tensorboard"
        ) from None
    for path in paths:
        for metrics in sorted(path.rglob(RunDirectory(path).metrics.name)):
            run = metrics.parent.relative_to(path)
            with SummaryWriter(str(folder / path.resolve().name / run)) as writer:
                for line in read_metrics(metrics):
                    for name, number in name_numbers(line.pop("kind"), line).items():
                        writer.add_scalar(name, number, line["step"])
