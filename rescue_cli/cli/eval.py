"""`rescue eval`: weights of a run or a file on test sets, at several sizes and crops."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb
from rescue_cli.cli.common import Architecture, Device, Json, Overrides, Procs, RecipeName, Workers
from rescue_cli.cli.help import then
from rescue_cli.runs.console import note
from rescue_cli.runs.devices import check_precision, select_device
from rescue_cli.runs.directory import create_next, prepare, remove_unstarted
from rescue_cli.runs.environment import describe_environment
from rescue_cli.runs.group import requested_processes
from rescue_cli.runs.processes import ONE_MACHINE, run_directory

app = common.verb()


@app.command(
    "eval",
    cls=ComputingVerb,
    epilog=then("rescue eval runs/quickstart/0", "rescue predict runs/quickstart/0 IMAGE"),
)
def evaluate(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|timm:NAME", help="A run, a weights file, or timm weights."
        ),
    ],
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Architecture = None,
    sets: Annotated[str | None, typer.Option(help="Test sets: val,real,v2.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Image sizes in pixels: 224,288.")] = None,
    crops: Annotated[str | None, typer.Option(help="Crop ratios: 0.875,0.95.")] = None,
    tta: Annotated[str | None, typer.Option(help="Test-time augmentations: flip,none.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUN/evals/N.")] = None,
    as_json: Json = False,
    device: Device = None,
    procs: Procs = None,
    workers: Workers = None,
) -> None:
    """Evaluate weights on test sets, at several sizes and crops; print one table."""
    from rescue_cli import build
    from rescue_cli.build.weights import check_changes, find_weights
    from rescue_cli.report.pictures import draw_run
    from rescue_cli.rundir import RunDirectory, read_result

    procs, _ = requested_processes(procs)
    where = select_device(device)
    changes = [*common.with_lists(sets, sizes, crops, tta), *(overrides or [])]
    source = find_weights(weights, changes, recipe=recipe, model=model)
    check_changes(changes, source)
    resolved = source.recipe
    build.check(resolved)
    for line in source.notes:
        note(line)
    for warning in check_precision(resolved.train.precision, where):
        note(f"warning: {warning}")
    path = _directory(source.name, weights, out)
    environment = describe_environment(
        verb="eval",
        seed=resolved.train.seed,
        device=where,
        procs=procs or 1,
        workers=workers,
        cache=path.parent / ".cache",
    )
    prepare(path, resolved, {**environment, "protocol": source.protocol}, resume=False)
    try:
        run_directory(path, procs, 0, ONE_MACHINE)
    except BaseException:  # an evaluation without a result is not kept
        if out is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove_unstarted(path)
        raise
    draw_run(path)
    result = read_result(RunDirectory(path), summarised=True)
    common.print_result(result, as_json=as_json)
    note(str(path))


def _directory(name: str, given: str, out: Path | None) -> Path:
    if out is not None:
        return common.folder(out)
    run = Path(given).expanduser()
    return create_next(run / "evals" if run.is_dir() else Path("runs", f"eval-{name}"))
