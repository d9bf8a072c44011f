"""`rescue eval`: a run's or a file's weights on test sets, sizes and crops."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli import recipe as recipes
from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Overrides, Procs, RecipeName, Workers
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe

app = common.verb()


@app.command("eval", epilog="Example: rescue eval runs/quickstart/0")
def evaluate(
    weights: Annotated[
        str, typer.Argument(metavar="RUN|WEIGHTS", help="Run or .safetensors file.")
    ],
    overrides: Overrides = None,
    recipe: RecipeName = None,
    sets: Annotated[str | None, typer.Option(help="Test sets: val,v2")] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes in pixels: 224,288")] = None,
    crops: Annotated[str | None, typer.Option(help="Crop ratios: 0.875,0.95")] = None,
    tta: Annotated[str | None, typer.Option(help="Test-time augmentation: none, flip.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the result is kept.")] = None,
    json: Json = False,
    device: Device = None,
    procs: Procs = None,
    workers: Workers = None,
) -> None:
    """Evaluate weights as training does: every image once, one table."""
    from rescue_cli import build
    from rescue_cli.launch import Nodes, environment, prepare, run_directory
    from rescue_cli.report.pictures import draw
    from rescue_cli.results import RunDirectory, read_json

    where = common.device(device)
    changes = [*common.with_lists(sets, sizes, crops, tta), *(overrides or [])]
    resolved = _recipe_of(Path(weights).expanduser(), recipe, changes)
    build.check(resolved)
    for warning in common.check_precision(resolved, where):
        common.note(f"warning: {warning}")
    path = _directory(Path(weights).expanduser(), out)
    facts = environment(
        resolved,
        verb="eval",
        device=where,
        procs=procs or 1,
        workers=workers,
        cache=path.parent / ".cache",
    )
    prepare(path, resolved, facts, resume=False)
    try:
        run_directory(path, procs, 0, Nodes())
    except BaseException:
        if out is None:
            shutil.rmtree(path, ignore_errors=True)  # an evaluation leaves a result or nothing
        raise
    draw(path)
    common.print_result(read_json(RunDirectory(path).result), as_json=json)
    common.note(str(path))


def _recipe_of(weights: Path, name: str | None, changes: list[str]) -> Recipe:
    """The run's recipe, the one in the file's metadata, or the one given; its weights filled in."""
    from rescue_cli.model import weights as files

    source = weights / "model.safetensors" if weights.is_dir() else weights
    if name is not None:
        found = recipes.load(name)
    else:
        _, metadata = files.read(source)
        if "recipe" not in metadata:
            raise UsageError(f"{weights}: carries no recipe. Say which with --recipe NAME.")
        found = recipes.from_text(metadata["recipe"], str(source))
    return found.with_overrides(f"model.weights={source.resolve()}", *changes)


def _directory(weights: Path, out: Path | None) -> Path:
    from rescue_cli.launch import next_free

    if out is not None:
        return out
    return next_free(
        weights / "evals" if weights.is_dir() else Path("runs", f"eval-{weights.stem}")
    )
