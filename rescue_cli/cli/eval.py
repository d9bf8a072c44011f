"""`rescue eval`: weights of a run or a file on test sets, at several sizes and crops."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.analysis.sweep import PREFIX, read_sweep, seed_folders, summarize_sweep
from rescue_cli.api import Run, evaluate_weights
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Architecture,
    Device,
    Json,
    NamedRecipe,
    Overrides,
    Procs,
    With,
    Workers,
)
from rescue_cli.cli.seed_sweep import print_sweep
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import recipe_in
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder, create_next

app = common.verb()


@app.command(
    "eval",
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue eval runs/quickstart/0", "rescue predict runs/quickstart/0 IMAGE"
    ),
)
def evaluate(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|timm:NAME", help="A run, a sweep, a weights file, or timm weights."
        ),
    ],
    overrides: Overrides = None,
    recipe: NamedRecipe = None,
    _code: With = None,
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
    evaluate_one = partial(
        evaluate_weights,
        overrides=[
            *common.with_lists(sets=sets, sizes=sizes, crops=crops, tta=tta),
            *(overrides or []),
        ],
        recipe=recipe,
        model=model,
        device=device,
        procs=procs,
        workers=workers,
    )
    folder = Path(weights)
    with _other_images(overrides or []):
        if not RunDirectory(folder).recipe.is_file() and (seeds := seed_folders(folder)):
            _evaluate_sweep(folder, seeds, evaluate_one, out, as_json=as_json)
            return
        run = evaluate_one(weights, out=out)
    result = read_result(RunDirectory(run.path), summarised=True)
    common.print_result(result, as_json=as_json)
    note(str(run.path))


@contextmanager
def _other_images(overrides: Sequence[str]) -> Iterator[None]:
    """Where a test set cannot be held out of another `data.root`, the error says how to test on
    all of its images.
    """
    root = next((text for text in overrides if text.startswith("data.root=")), None)
    try:
        yield
    except (DataError, UsageError) as error:
        if root is None or "data.test_holdout: " not in str(error):
            raise
        whole = root.replace("data.root=", "data.test_root=")
        raise type(error)(
            f"{error} To test on all images there, in one folder per class, replace {root} by "
            f"data.test_holdout=0 {whole}."
        ) from None


def _evaluate_sweep(
    sweep: Path,
    seeds: Mapping[int, Path],
    evaluate_one: Callable[..., Run],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Evaluates each finished run of a sweep; the evaluations are a sweep, too."""
    trained = {seed: run for seed, run in seeds.items() if RunDirectory(run).finished}
    if not trained:
        raise DataError(f"{sweep}: none of its {len(seeds)} seeds has a result. Train it further.")
    folder = create_next(sweep / "evals") if out is None else check_folder(out)
    note(str(folder))
    for seed, run in seeds.items():
        if seed not in trained:
            note(f"seed {seed}: has no result, and is left out")
            continue
        evaluate_one(str(run), out=folder / f"{PREFIX}{seed}")
        note(f"seed {seed}: evaluated")
    evaluated = read_sweep(folder)
    name = recipe_in(next(iter(trained.values()))).name
    summary = {"recipe": name, **summarize_sweep(evaluated)}
    common.print_json(summary) if as_json else print_sweep(summary, evaluated)
    note(str(folder))
