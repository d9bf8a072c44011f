"""`rescue seed-sweep`: one recipe, many seeds, and what they say together."""

import json as json_module
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rescue_cli import recipe as recipes
from rescue_cli.analysis import interim
from rescue_cli.analysis import sweep as sweeps
from rescue_cli.analysis.sweep import PREFIX, Sweep
from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Overrides, RecipeName, Workers
from rescue_cli.cli.expand import Epochs, Model, expand
from rescue_cli.cli.help import then
from rescue_cli.cli.runs import (
    Places,
    Queue,
    Work,
    demand_results,
    note_machine,
    places,
    queue,
    queue_all,
    train_all,
    train_missing,
)
from rescue_cli.cli.until import opponent, train_until
from rescue_cli.errors import DataError, DivergedError, UsageError
from rescue_cli.recipe import Recipe

app = common.verb()


class Where(StrEnum):
    """Where the runs are at work."""

    local = "local"
    slurm = "slurm"


@app.command(
    epilog=then(
        "rescue seed-sweep --recipe quickstart --seeds 10",
        "rescue report runs/sweep/quickstart, or rescue compare it with another",
    )
)
def seed_sweep(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Model = None,
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="100, 0-9 or 3,7,11.")] = "5",
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time; one a GPU, on a CPU one.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/sweep/RECIPE by default.")] = None,
    sets: Annotated[str | None, typer.Option(help="Test sets, short for eval.sets.")] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="A", help="Stop at the first of planned looks that tells it from A."),
    ] = None,
    on: Annotated[Where, typer.Option(help="This machine, or SLURM's queue.")] = Where.local,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For sbatch: partition=gpu.")
    ] = None,
    json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Train a recipe with many seeds; a seed that has a result is not trained again."""
    from rescue_cli.build.check import check_recipe

    if slurm and on is not Where.slurm:
        raise UsageError("--slurm: options of sbatch, and the sweep is local. Add --on slurm.")
    given = [*(overrides or []), *common.with_lists(sets, None, None, None)]
    name = common.named_or_default(recipe)
    longer, said = expand(recipes.load(name), given, model, epochs)
    base = recipes.load(name, [*given, *longer])
    chosen = sweeps.seeds_of(seeds)
    if any(override.startswith("train.seed=") for override in given):
        raise UsageError("--seeds and train.seed say the same thing. Give --seeds.")
    check_recipe(base)
    against = None if until is None else opponent(until)
    folder = common.folder(out or Path("runs", "sweep", base.name))
    for line in [str(folder), *said]:
        common.note(line)
    if on is Where.slurm:
        work = _queued(queue(slurm or [], jobs, device, workers, folder / ".slurm"))
    else:
        work = _local(base, places(common.device(device), jobs, workers), folder / ".cache")
    known = sweeps.read(folder)  # raises what would else be found at the end
    pair: dict[str, Any] = {}
    if against is None:
        _warn_of_looks(known, chosen)
        _run(base, chosen, folder, work)
    else:
        pair = train_until(against, chosen, folder, lambda some: _run(base, some, folder, work))
    sweep = sweeps.read(folder)
    _write(sweep)
    found = {"recipe": base.name, **sweeps.summary(sweep), **({"until": pair} if pair else {})}
    print(json_module.dumps(found)) if json else _print(found, sweep)
    common.note(str(folder))
    demand_results(len(sweep.results), [lost.how for lost in sweep.lost.values()])


def _warn_of_looks(known: Sweep, seeds: list[int]) -> None:
    """Says what becomes of a comparison that is made again with more seeds."""
    others = interim.before(known.path)
    if others and known.results and not set(seeds) <= known.results.keys():
        common.note(
            f"warning: {known.path} was compared with {others[0]} already. A test repeated after "
            "more seeds errs in more than 5 % of cases; --until keeps to 5 %"
        )


def _local(base: Recipe, where: Places, cache: Path) -> Work:
    note_machine([base], where.device)
    return lambda missing, hear: train_all(missing, where, cache, hear)


def _queued(where: Queue) -> Work:
    return lambda missing, hear: queue_all(missing, where, hear)


def _run(base: Recipe, seeds: list[int], folder: Path, work: Work) -> None:
    """Has the seeds trained that have no result; one that fails or diverges is kept and told."""
    named = {
        folder / f"{PREFIX}{seed}": base.with_overrides(f"train.seed={seed}") for seed in seeds
    }
    train_missing(named, work, lambda ended: _told(folder, ended))


def _told(folder: Path, ended: Any) -> str:
    """A run that ended: the mean so far, or why it failed."""
    seed = ended.path.name.removeprefix(PREFIX)
    if ended.error is None:
        return f"seed {seed}: {_running(folder)}"
    how = "diverged" if isinstance(ended.error, DivergedError) else "failed"
    return f"seed {seed}: {how}: {ended.error}"


def _running(folder: Path) -> str:
    """Mean and standard deviation so far, of the first measurement."""
    try:
        sweep = sweeps.read(folder)
    except DataError as error:  # told again at the end; what is running goes on
        return str(error)
    if not sweep.results:
        return "no result yet"
    row = next(iter(sweeps.summary(sweep)["sets"].values()))
    spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
    return f"mean {row['mean']:.2f}{spread} %"


def _write(sweep: Sweep) -> None:
    from rescue_cli.report.sweep_pictures import draw
    from rescue_cli.rundir import write_json, write_text

    write_json(sweep.path / "sweep.json", sweeps.summary(sweep))
    write_text(sweep.path / "sweep.csv", sweeps.table(sweep))
    draw(sweep)


def _print(found: dict[str, Any], sweep: Sweep) -> None:
    """The table of the paper's Figure 1, then what the best seed is worth."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("set", "mean", "std", "max", "min", "seed 0", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, row in found["sets"].items():
        band = row["interval"]
        table.add_row(
            name,
            f"{row['mean']:.2f}",
            "-" if row["std"] is None else f"{row['std']:.2f}",
            f"{row['max']:.2f}",
            f"{row['min']:.2f}",
            "-" if row["seed0"] is None else f"{row['seed0']:.2f}",
            "-" if band is None else f"{band[0]:.2f} to {band[1]:.2f}",
        )
    out = common.console()
    out.print(table)
    out.print(f"{found['recipe']}: {sweep.counted}; in percent")
    for seed, lost in sweep.lost.items():
        out.print(f"seed {seed} {lost}")
    for name, peak in found["peak"].items():
        for line in _worth(name, peak):
            out.print(line)
    if "until" in found:
        out.print(found["until"]["claim"])
        look = found["until"]["look"]
        out.print(
            f"look {look['number']} of {look['of']}, after {look['seeds']} seeds; each look has "
            f"p < {look['level']:.2g}, 5 % over all"
        )


def _worth(name: str, peak: dict[str, Any] | None) -> list[str]:
    """What choosing the best seed on a measurement is worth there and elsewhere."""
    lines = []
    for other, (value, low, high) in (peak or {}).get("remains", {}).items():
        assert peak is not None
        above, least, most = peak["inflation"]
        lines.append(
            f"the best seed on {name} is {above:.2f} above the mean there (by chance "
            f"{least:.2f} to {most:.2f}) and {value:+.2f} on {other} (by chance {low:+.2f} to "
            f"{high:+.2f})"
        )
    return lines
