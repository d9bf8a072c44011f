"""`rescue tune`: Smith's steps on a recipe by short runs, then the verdict of full ones."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis.tuning import UNCHANGED, Verdict, decision_to_json, judge_sweeps
from rescue_cli.analysis.tuning_search import Tuner
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Device,
    DryRun,
    Json,
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
from rescue_cli.errors import RescueError
from rescue_cli.report.tuning_page import render_tuning_page, tuning_title
from rescue_cli.rundir import write_json, write_text
from rescue_cli.runs.console import format_idle_gpus, note
from rescue_cli.runs.directory import check_folder
from rescue_cli.runs.environment import (
    check_precision,
    select_device,
    visible_devices,
)
from rescue_cli.runs.group import current_group

app = common.verb()
SMOKE = ("data.subset=[64,16]", "data.holdout=10", "train.steps_per_epoch=null")


@app.command(
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue tune --recipe quickstart --budget 0.5",
        "rescue train --recipe runs/tune/quickstart/tuned.yaml",
    ),
)
def tune(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    _code: With = None,
    _track: Track = None,
    budget: Annotated[
        float, typer.Option(help="Hours that this command may take.", min=0.001)
    ] = 1.0,
    seeds: Annotated[
        int, typer.Option(help="Full runs of each recipe, base and tuned; at least 3.", min=3)
    ] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/tune/RECIPE.")] = None,
    subset: Subset = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    on: On = Where.local,
    slurm: SlurmOptions = None,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Tune batch size, learning rate, momentum and weight decay by short runs (Smith).

    Each run depends on those before it: through SLURM all of them are one job.
    """
    common.check_place(on, slurm)
    from rescue_cli.build.check import check_recipe

    end = time.monotonic() + budget * 3600
    where = select_device(device, elsewhere=dry_run or on is Where.slurm)
    named, given = recipes.load(common.named_or_default(recipe)), overrides or []
    if smoke:  # a search cannot do with two steps; what the user sets comes last, and stays
        given = [*SMOKE, *given]
    changed = common.change(named, common.Changes(given, subset=subset, smoke=smoke), where)
    base, notes = changed.recipe, changed.notes
    check_recipe(base)
    base.demand_classification("tune")
    folder = check_folder(out or Path("runs", "tune", base.name))
    if on is Where.slurm and not dry_run:
        common.run_as_job(slurm, folder)
    if on is Where.local:
        notes += (f"warning: {w}" for w in check_precision(base.train.precision, where))
    if dry_run:
        for line in (*base.notes, *notes):
            note(line)
        tuner = Tuner(base, folder, where, workers, seeds, end)
        each = {
            "held out, twice": tuner.held_out,
            "hours": budget,
            "plan": tuner.describe_plan(),
            "device": where,
        }
        script = common.script_of_job(slurm, folder) if on is Where.slurm else None
        common.print_plan(base, each, as_json=as_json, script=script)
        return
    if current_group() is None and (visible := visible_devices(where)) > 1:
        why = "tune trains one run at a time, in one process"
        cure = "Others can work on other commands, each with CUDA_VISIBLE_DEVICES of its own"
        notes.append(format_idle_gpus(1, visible, why, cure))
    for line in [str(folder), *base.notes, *notes]:
        note(line)
    tuner = Tuner(base, folder, where, workers, seeds, end)
    tuner.run()
    judgement = None
    if tuner.finished and tuner.tuned == base:
        judgement = UNCHANGED
    elif tuner.finished:
        judgement = judge_sweeps(folder / "base", folder / "tuned", tuner.judging_seeds)
    summary = _summary(tuner, judgement)
    _write(tuner, judgement, summary)
    common.print_json(summary) if as_json else _print(tuner, judgement)
    note(str(folder))
    if not tuner.finished:
        raise RescueError(
            f"--budget: the search is unfinished, there is no tuned.yaml: {tuner.missing}"
        )


def _summary(tuner: Tuner, verdict: Verdict | None) -> dict[str, Any]:
    """The keys of `--json`."""
    return {
        "recipe": tuner.base.name,
        "finished": tuner.finished,
        "held_out": tuner.held_out,
        "decisions": [decision_to_json(decision) for decision in tuner.decisions],
        "verdict": None if verdict is None else verdict.to_json(),
        "tuned": str(tuner.folder / "tuned.yaml") if verdict and verdict.better else None,
    }


def _write(tuner: Tuner, verdict: Verdict | None, summary: dict[str, Any]) -> None:
    """The decisions, the page that shows them, and the tuned recipe where it is better."""
    if verdict is not None and verdict.better:
        write_text(tuner.folder / "tuned.yaml", tuner.tuned.to_yaml())
    write_json(tuner.folder / "tune.json", summary)
    title = tuning_title(tuner.base.name, verdict)
    html = render_tuning_page(title, tuner.held_out, tuner.decisions, verdict)
    write_text(tuner.folder / "tune.html", html)


def _print(tuner: Tuner, verdict: Verdict | None) -> None:
    out = common.console()
    out.print(tuning_title(tuner.base.name, verdict))
    headings = ("step", "chosen", "why")
    rows = [[decision.step, decision.chosen, decision.why] for decision in tuner.decisions]
    out.print(common.table(headings, rows, words=headings))
    if verdict is not None and verdict.pairs:
        common.print_comparison(verdict.sides, verdict.pairs)
    for line in verdict.sentences if verdict else []:
        out.print(line)
    if verdict is not None and verdict.better:
        out.print(f"The tuned recipe: {tuner.folder}/tuned.yaml")
    out.print(f"All decisions and curves: {tuner.folder}/tune.html")
