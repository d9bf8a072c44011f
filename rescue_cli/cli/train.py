"""`rescue train`: parse, load, plan, launch, print."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.build import expand as options
from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Overrides, Procs, RecipeName, Workers
from rescue_cli.cli.expand import Epochs, Model, expand
from rescue_cli.cli.help import then
from rescue_cli.errors import DataError, UnexpectedError, UsageError
from rescue_cli.recipe import Recipe

app = common.verb()


@dataclass(frozen=True)
class Launch:
    """How a run is started, apart from what it trains."""

    device: str
    procs: int
    through_torchrun: bool
    max_restarts: int
    workers: int | None


@dataclass(frozen=True)
class Changes:
    """What the user wants to have other than the recipe has it."""

    overrides: Sequence[str]
    model: str | None
    epochs: float | None
    subset: str | None
    smoke: bool


@app.command(
    epilog=then(
        "rescue train --recipe myrtle-baseline data.root=DIR",
        "rescue eval RUN, or rescue report RUN",
    )
)
def train(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Model = None,
    epochs: Epochs = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; runs/RECIPE/N by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    subset: Annotated[str | None, typer.Option(help="N or TRAIN:TEST images, balanced.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Two steps on a few images.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, train nothing.")
    ] = False,
    check_expected: Annotated[
        bool, typer.Option("--check-expected", help="Exit 6 outside the recipe's band.")
    ] = False,
    json: Json = False,
    device: Device = None,
    gpus: Annotated[int | None, typer.Option(help="Processes, one a GPU.", min=1)] = None,
    procs: Procs = None,
    workers: Workers = None,
    max_restarts: Annotated[
        int, typer.Option(help="Times torchrun begins a failed run anew.", min=0)
    ] = 0,
    nodes: Annotated[int, typer.Option(help="Machines.", min=1)] = 1,
    node_rank: Annotated[int, typer.Option(help="This machine's number.", min=0)] = 0,
    rendezvous: Annotated[str | None, typer.Option(help="HOST:PORT of machine 0.")] = None,
) -> None:
    """Train a recipe; the result is printed and kept in the run directory."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.runs import restarted

    machines = _machines(nodes, node_rank, rendezvous, max_restarts)
    resume = resume or restarted()
    asked = "cuda" if gpus is not None and device is None else device
    where = common.planned_device(asked) if dry_run else common.device(asked)
    changes = Changes(overrides or [], model, epochs, subset, smoke)
    resolved, notes = _resolve(recipe, changes, out if resume else None, where)
    check_recipe(resolved)
    if check_expected and not resolved.tree.get("expect"):
        raise UsageError("--check-expected: the recipe has no `expect:`. Add it, or drop this.")
    if dry_run and asked is None and resolved.train.precision == "float16":
        where = "cuda"  # the only one that has it, here or elsewhere
    if not dry_run or asked == "cpu":
        notes += [f"warning: {warning}" for warning in common.check_precision(resolved, where)]
    notes += common.allocator_notes()
    launch = _launch(
        resolved, where, gpus, procs, machines.count, max_restarts, workers, planned=dry_run
    )
    path = None if dry_run else _directory(resolved, out, resume, machines.count)
    for line in [str(path), *notes] if path else notes:
        common.note(line)
    if path is None:
        _print_plan(resolved, launch, json)
    else:
        _run(path, resolved, launch, machines, resume, json)
        if check_expected and machines.rank == 0:
            _check_expected(path, resolved)


def _machines(count: int, rank: int, rendezvous: str | None, max_restarts: int) -> Any:
    """The machines that the options name; raises `UsageError` where a group decides of them."""
    from rescue_cli.runs import Nodes, demand_alone

    demand_alone(
        {
            "--nodes": count > 1,
            "--node-rank": rank > 0,
            "--rendezvous": rendezvous is not None,
            "--max-restarts": max_restarts > 0,
        }
    )
    return Nodes(count, rank, rendezvous)


def _resolve(
    name: str | None, changes: Changes, resumed: Path | None, device: str
) -> tuple[Recipe, list[str]]:
    """The recipe with what the user and the options set, and what is to be said of it."""
    given = list(changes.overrides)
    if name is None and resumed is not None and (resumed / "recipe.yaml").exists():
        if changes.subset is not None or changes.smoke:
            raise UsageError(
                "--subset and --smoke: the run that is resumed has its recipe. Drop them."
            )
        base = recipes.recipe_in(resumed)
        found, notes = expand(base, given, changes.model, changes.epochs)
        resolved = base.with_overrides(*given, *found)
        return resolved, [*notes, *resolved.notes]
    if name is None and resumed is not None:
        raise UsageError(
            f"--resume: {resumed} holds no run. Give --out RUN, or --recipe to begin one there."
        )
    notes = [] if name else [common.NO_RECIPE]
    name = name or common.DEFAULT
    if changes.subset is not None:
        given.append(options.subset_override(changes.subset, given))
    base = recipes.load(name)
    found, said = expand(base, given, changes.model, changes.epochs)
    given, notes = [*given, *found], [*notes, *said]
    resolved = base.with_overrides(*given)
    notes += [f"warning: {w}" for w in options.warn_of_batch(base, resolved, changes.overrides)]
    if changes.smoke:
        implied = options.smoke_overrides(resolved, given, cuda=device == "cuda")
        notes.append(f"--smoke sets: {' '.join(implied)}")
        resolved = resolved.with_overrides(*implied)
    return resolved, [*notes, *resolved.notes]


def _launch(
    recipe: Recipe,
    device: str,
    gpus: int | None,
    procs: int | None,
    nodes: int,
    max_restarts: int,
    workers: int | None,
    *,
    planned: bool,
) -> Launch:
    """How the run is started; one that is `planned` may be for another machine than this one."""
    import torch

    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs say the same thing. Give one of them.")
    from rescue_cli.runs import current, shared

    asked, option = shared(*((procs, "--procs") if gpus is None else (gpus, "--gpus")))
    visible = torch.cuda.device_count() if device == "cuda" else 1
    if gpus is not None and gpus > visible * nodes and not planned and current() is None:
        most = visible * nodes
        raise UsageError(f"--gpus: {gpus} asked for, {most} visible. Use at most {most}.")
    count = options.count_processes(
        recipe.train.micro_batches, asked, visible * nodes, option=option
    )
    if count % nodes:
        raise UsageError(
            f"{option}: {count} processes do not divide over {nodes} machines. Use a multiple."
        )
    return Launch(device, count, asked is not None or count > 1, max_restarts, workers)


def _run(
    path: Path, recipe: Recipe, launch: Launch, nodes: Any, resume: bool, as_json: bool
) -> None:
    from rescue_cli.report.pictures import draw
    from rescue_cli.rundir import RunDirectory, read_result
    from rescue_cli.runs import abandon, environment, is_finished, prepare, run_directory, wait_for

    finished, new = resume and is_finished(path), False
    if nodes.rank == 0:
        facts = environment(
            recipe,
            verb="train",
            device=launch.device,
            procs=launch.procs,
            nodes=nodes.count,
            workers=launch.workers,
            cache=path.parent / ".cache",
        )
        new = prepare(path, recipe, facts, resume=resume)
    else:
        wait_for(path)
    if finished:
        common.note("finished already; nothing to do")
    else:
        common.note(f"{recipe.name} on {launch.device}, {launch.procs} process(es)")
        procs = launch.procs if launch.through_torchrun else None
        try:
            run_directory(path, procs, launch.max_restarts, nodes)
        except (UsageError, DataError):
            if new and nodes.count == 1:  # other machines still read what is there
                abandon(path)
            raise
        if nodes.rank == 0:
            draw(path)
    if nodes.rank == 0:
        result = read_result(RunDirectory(path), summarised=True)
        common.print_result(result, as_json=as_json)
    common.note(str(path))


def _check_expected(path: Path, recipe: Recipe) -> None:
    """Says whether the result is inside the recipe's band; raises `UnexpectedError` outside."""
    from rescue_cli.analysis.expected import drawn_of, verdict
    from rescue_cli.analysis.stats import sample
    from rescue_cli.rundir import RunDirectory, read_result

    result = read_result(RunDirectory(path))
    found = verdict(recipe, sample([result["top1"]]), drawn_of(recipe, result["count"]))
    assert found is not None
    if not found["inside"]:
        raise UnexpectedError(found["said"])
    common.note(found["said"])


def _directory(recipe: Recipe, out: Path | None, resume: bool, nodes: int) -> Path:
    from rescue_cli.runs import latest, next_free, restarted

    if out is not None:
        return common.folder(out)
    if nodes > 1:
        raise UsageError("--nodes: several machines need the same --out DIR that all of them see.")
    parent = Path("runs", recipe.name)
    if restarted():  # what the same command has begun, and not what was there before
        return _begun(parent) or next_free(parent)
    return (latest(parent) if resume else None) or next_free(parent)


def _begun(parent: Path) -> Path | None:
    """The newest run, where it is unfinished and of this very command."""
    from rescue_cli.rundir import RunDirectory
    from rescue_cli.runs import is_finished, latest, spoken

    found = latest(parent)
    if found is None or is_finished(found) or not RunDirectory(found).command.exists():
        return None
    return found if RunDirectory(found).command.read_text().endswith(spoken()) else None


def _print_plan(recipe: Recipe, launch: Launch, as_json: bool) -> None:
    """The resolved recipe, and what it comes to in steps and learning rates."""
    import json

    from rescue_cli.build.outline import outline_run

    plan = outline_run(recipe)
    plan["processes"] = launch.procs
    plan["device"] = launch.device
    if as_json:
        print(json.dumps({"recipe": recipe.tree, **plan}))
        return
    print(recipe.to_yaml(), end="")
    for key, value in plan.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{key.replace('_', ' ')}: {shown}")
