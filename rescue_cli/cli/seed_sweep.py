"""`rescue seed-sweep`: one recipe, many seeds, and what they say together."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis import interim
from rescue_cli.analysis.seed_sweep import load_reference, train_seeds, train_until
from rescue_cli.analysis.sweep import Sweep, parse_seeds, read_sweep, summarize_sweep, sweep_csv
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Device,
    DryRun,
    Epochs,
    Json,
    LrFrom,
    Model,
    On,
    Overrides,
    RecipeName,
    SlurmOptions,
    Smoke,
    Subset,
    Track,
    Where,
    With,
    Workers,
)
from rescue_cli.errors import UsageError
from rescue_cli.formatting import format_count
from rescue_cli.rundir import write_json, write_text
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder
from rescue_cli.runs.environment import note_precision, select_device
from rescue_cli.runs.many import Jobs, local_jobs, require_results, slurm_jobs

app = common.verb()


@app.command(
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue seed-sweep --recipe quickstart --seeds 10",
        "rescue report runs/sweep/quickstart, or rescue compare it with another",
    ),
)
def seed_sweep(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    _code: With = None,
    _track: Track = None,
    model: Model = None,
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="Number of seeds, or a list: 0-9 or 3,7,11.")] = "5",
    jobs: Annotated[
        int | None, typer.Option(help="Parallel runs; default: one per GPU, one on a CPU.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/sweep/RECIPE.")] = None,
    subset: Subset = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    lr_from: LrFrom = None,
    sets: Annotated[str | None, typer.Option(help="Test sets (sets eval.sets).")] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="A", help="Stop at a planned interim look if it differs from A."),
    ] = None,
    on: On = Where.local,
    slurm: SlurmOptions = None,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Train a recipe with many seeds; seeds with a result are not trained again."""
    from rescue_cli.build.check import check_recipe

    common.check_place(on, slurm)
    given = [*(overrides or []), *common.with_lists(sets=sets)]
    where = select_device(device, elsewhere=dry_run or on is Where.slurm)
    named = recipes.load(common.named_or_default(recipe))
    changes = common.Changes(given, model, epochs, subset, smoke, lr_from)
    changed = common.change(named, changes, where)
    base, notes = changed.recipe, changed.notes
    chosen = parse_seeds(seeds)
    if any(override.startswith("train.seed=") for override in given):
        raise UsageError("--seeds and train.seed set the same thing. Give only --seeds.")
    check_recipe(base)
    folder = check_folder(out or Path("runs", "sweep", base.name))
    queue = None
    if on is Where.slurm:
        queue = slurm_jobs(slurm or [], jobs, device, workers, folder)
        queue.check_tasks([base])
    if dry_run:
        where, more = common.planned_device(base, device, where)
        if until is not None:
            more.append(interim.describe_looks(interim.plan_looks(len(chosen))))
        for line in (*base.notes, *notes, *more):
            note(line)
        script = None if queue is None else queue.script(len(chosen))
        planned = {"runs": len(chosen), "device": where}
        common.print_plan(base, planned, as_json=as_json, script=script)
        return
    against = None if until is None else load_reference(until)
    for line in [str(folder), *base.notes, *notes]:
        note(line)
    if queue is not None:
        work: Jobs = queue
    else:
        work = local_jobs(where, jobs, workers, folder / ".cache")
        note_precision([base.train.precision], where)
    before = read_sweep(folder)  # raises now what is wrong with the folder, not after hours
    pair: dict[str, Any] = {}
    if against is None:
        _warn_about_looks(before, chosen)
        train_seeds(base, chosen, before, work)
    else:
        pair = train_until(base, chosen, folder, work, against)
    sweep = read_sweep(folder)
    _write(sweep)
    summary = {"recipe": base.name, **summarize_sweep(sweep), **({"until": pair} if pair else {})}
    common.print_json(summary) if as_json else print_sweep(summary, sweep)
    note(str(folder))
    ends = {seed: run.how for seed, run in sweep.missing.items()}
    later = [s for s, how in ends.items() if how in ("unfinished", "not run") and s not in chosen]
    if later:
        note(
            f"warning: {format_count(len(later), 'seed')} of an earlier command did not run; "
            f"--seeds {','.join(map(str, later))} trains what is missing"
        )
    require_results(len(sweep.results), [how for s, how in ends.items() if s not in later])


def _warn_about_looks(sweep: Sweep, seeds: list[int]) -> None:
    """Warns where seeds are added to a sweep that was compared already."""
    others = interim.earlier_comparisons(sweep.path)
    if others and sweep.results and not set(seeds) <= sweep.results.keys():
        note(
            f"warning: {sweep.path} was already compared with {others[0]}. Testing again after "
            "adding seeds gives false positives in more than 5 % of cases; --until keeps "
            "them to 5 %"
        )


def _write(sweep: Sweep) -> None:
    from rescue_cli.report.sweep_pictures import draw_sweep

    write_json(sweep.path / "sweep.json", summarize_sweep(sweep))
    write_text(sweep.path / "sweep.csv", sweep_csv(sweep))
    draw_sweep(sweep)


def print_sweep(summary: dict[str, Any], sweep: Sweep) -> None:
    """The table of the paper's Figure 1, then what the best seed is worth."""
    headings = ("set", "mean", "std", "max", "min", "seed 0", "95 % interval")
    rows = []
    for name, row in summary["sets"].items():
        band = row["interval"]
        rows.append(
            [
                name,
                f"{row['mean']:.2f}",
                "-" if row["std"] is None else f"{row['std']:.2f}",
                f"{row['max']:.2f}",
                f"{row['min']:.2f}",
                "-" if row["seed0"] is None else f"{row['seed0']:.2f}",
                "-" if band is None else f"{band[0]:.2f} to {band[1]:.2f}",
            ]
        )
    out = common.console()
    out.print(common.table(headings, rows, words=["set"]))
    out.print(f"{summary['recipe']}: {sweep.seeds_text}; in percent")
    for seed, missing in sweep.missing.items():
        out.print(f"seed {seed} {missing}")
    for name, peak in summary["peak"].items():
        for line in _worth(name, peak):
            out.print(line)
    if "until" in summary:
        out.print(summary["until"]["claim"])
        out.print(f"  {summary['until']['how']}")
        look = summary["until"]["look"]
        out.print(
            f"look {look['number']} of {look['of']}, after {look['seeds']} seeds; each look has "
            f"p < {look['level']:.2g}, 5 % overall"
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
