"""`rescue eval`: a run's or a file's weights on test sets, sizes and crops."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.cli import common
from rescue_cli.cli.common import Architecture, Device, Json, Overrides, Procs, RecipeName, Workers
from rescue_cli.cli.help import then

app = common.verb()


@app.command(
    "eval",
    epilog=then("rescue eval runs/quickstart/0", "rescue predict runs/quickstart/0 IMAGE"),
)
def evaluate(
    weights: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE|timm:NAME", help="Run, weights file, or timm's weights."),
    ],
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Architecture = None,
    sets: Annotated[str | None, typer.Option(help="Test sets: val,real,v2")] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes in pixels: 224,288")] = None,
    crops: Annotated[str | None, typer.Option(help="Crop ratios: 0.875,0.95")] = None,
    tta: Annotated[str | None, typer.Option(help="Test-time augmentations: flip,none")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; RUN/evals/N by default.")] = None,
    json: Json = False,
    device: Device = None,
    procs: Procs = None,
    workers: Workers = None,
) -> None:
    """Evaluate weights as training does: every image once, one table."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.weights import check_changes, find_weights
    from rescue_cli.report.pictures import draw
    from rescue_cli.rundir import RunDirectory, read_result
    from rescue_cli.runs import Nodes, abandon, environment, prepare, run_directory, shared

    procs, _ = shared(procs)
    where = common.device(device)
    changes = [*common.with_lists(sets, sizes, crops, tta), *(overrides or [])]
    source = find_weights(weights, changes, recipe=recipe, model=model)
    check_changes(changes, source)
    resolved = source.recipe
    check_recipe(resolved)
    for line in [*source.notes, *common.allocator_notes()]:
        common.note(line)
    for warning in common.check_precision(resolved, where):
        common.note(f"warning: {warning}")
    path = _directory(source.name, weights, out)
    facts = environment(
        resolved,
        verb="eval",
        device=where,
        procs=procs or 1,
        workers=workers,
        cache=path.parent / ".cache",
    )
    prepare(path, resolved, {**facts, "protocol": source.protocol}, resume=False)
    try:
        run_directory(path, procs, 0, Nodes())
    except BaseException:  # an evaluation leaves a result or nothing
        if out is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            abandon(path)
        raise
    draw(path)
    result = read_result(RunDirectory(path), summarised=True)
    common.print_result(result, as_json=json)
    common.note(str(path))


def _directory(name: str, given: str, out: Path | None) -> Path:
    from rescue_cli.runs import next_free

    if out is not None:
        return common.folder(out)
    run = Path(given).expanduser()
    return next_free(run / "evals" if run.is_dir() else Path("runs", f"eval-{name}"))
