"""`rescue train`: one run, new or resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.api import train_in
from rescue_cli.build.expand import warn_of_batch
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Changes,
    Device,
    DryRun,
    Epochs,
    Json,
    LrFrom,
    Model,
    On,
    Overrides,
    Procs,
    RecipeName,
    SlurmOptions,
    Smoke,
    Subset,
    Track,
    Where,
    With,
    Workers,
)
from rescue_cli.errors import UnexpectedError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder, choose_directory, next_folder
from rescue_cli.runs.environment import (
    check_precision,
    free_memory_mb,
    select_device,
    visible_devices,
)
from rescue_cli.runs.group import (
    current_group,
    is_restarted,
    refuse_in_group,
    requested_processes,
)
from rescue_cli.runs.many import SlurmJobs
from rescue_cli.runs.processes import Nodes
from rescue_cli.runs.progress import Progress
from rescue_cli.runs.single import is_done, plan_launch
from rescue_cli.runs.slurm import FOLDER, count_tasks, parse_settings, submission_script

app = common.verb()
MICRO_BATCH = "train.device_batch_size"
AUTO = f"{MICRO_BATCH}=auto"
FREE_SHARE = 0.85  # of the free memory; the estimate leaves out workspaces and fragmentation


@app.command(
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue train --recipe myrtle-baseline data.root=DIR",
        "rescue eval RUN, or rescue report RUN",
    ),
)
def train(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    _code: With = None,
    _track: Track = None,
    model: Model = None,
    epochs: Epochs = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/RECIPE/N.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the last checkpoint.")
    ] = False,
    subset: Subset = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    lr_from: LrFrom = None,
    check_expected: Annotated[
        bool,
        typer.Option("--check-expected", help="Exit with 6 if outside the recipe's expected band."),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a profile of 5 steps to the run directory.")
    ] = False,
    on: On = Where.local,
    slurm: SlurmOptions = None,
    as_json: Json = False,
    device: Device = None,
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs, one process per GPU.", min=1)
    ] = None,
    procs: Procs = None,
    workers: Workers = None,
    max_restarts: Annotated[
        int, typer.Option(help="How often torchrun restarts a failed run.", min=0)
    ] = 0,
    nodes: Annotated[int, typer.Option(help="Number of machines.", min=1)] = 1,
    node_rank: Annotated[int, typer.Option(help="Number of this machine, from 0.", min=0)] = 0,
    rendezvous: Annotated[
        str | None, typer.Option(help="HOST:PORT of machine 0, for --nodes.")
    ] = None,
) -> None:
    """Train a recipe; the result is printed and kept in the run directory."""
    from rescue_cli.build.check import check_recipe

    common.check_place(on, slurm)
    queued = on is Where.slurm
    by_launcher = {
        "--node-rank": node_rank > 0,
        "--rendezvous": rendezvous is not None,
        "--max-restarts": max_restarts > 0,
    }
    refuse_in_group({"--nodes": nodes > 1, **by_launcher})
    if queued:
        _refuse_in_job({**by_launcher, AUTO: AUTO in (overrides or [])})
    machines = Nodes() if queued else Nodes(nodes, node_rank, rendezvous)
    resume = resume or is_restarted()
    if resume and out is None and AUTO in (overrides or []):
        raise UsageError(
            f"{AUTO}: a resumed run keeps its micro-batches, so it has to be named. Give --out RUN."
        )
    asked = "cuda" if gpus is not None and device is None else device
    where = select_device(asked, elsewhere=dry_run or queued)
    changes = Changes(overrides or [], model, epochs, subset, smoke, lr_from)
    resolved, notes = _resolve(recipe, changes, out if resume else None, where)
    check_recipe(resolved)
    if check_expected and not resolved.tree.get("expect"):
        raise UsageError("--check-expected: the recipe has no `expect:`. Add it, or drop this.")
    if dry_run:
        where, more = common.planned_device(resolved, asked, where)
        notes += more
    if not (dry_run or queued) or asked == "cpu":
        warnings = check_precision(resolved.train.precision, where)
        notes += [f"warning: {warning}" for warning in warnings]
    visible = 1 if queued else visible_devices(where) * nodes
    elsewhere = dry_run or queued or current_group() is not None
    processes, option = _asked_processes(gpus, procs, None if elsewhere else visible)
    if AUTO in changes.overrides and not (resume and _holds_run(out)):
        asked_processes, _ = requested_processes(processes, option)
        before = recipes.load(recipe or common.DEFAULT).train.device_batch_size
        resolved, more = _fit_micro_batch(resolved, before, where, asked_processes, visible)
        notes += more
        check_recipe(resolved)
    if queued:
        settings = _share_among_nodes(slurm or [], nodes, gpus, procs)
        tasks = count_tasks(settings)
        processes, option = (tasks, "tasks of SLURM") if tasks > 1 else (processes, option)
    launch = plan_launch(
        resolved.train,
        where,
        processes,
        option=option,
        default=visible,
        workers=workers,
        nodes=machines,
        max_restarts=max_restarts,
    )
    if dry_run:
        for line in (*notes, *filter(None, [launch.idle_gpus])):
            note(line)
        by_launch = {"processes": launch.procs, "device": launch.device}
        script = None
        if queued:
            path = out or next_folder(Path("runs", resolved.name))
            script = submission_script(1, settings, path / FOLDER)
        common.print_plan(resolved, by_launch, as_json=as_json, script=script)
        return
    path = _directory(resolved, out, resume=resume, nodes=1 if queued else nodes)
    for line in [str(path), *notes]:
        note(line)
    if queued:
        options = {"--device": device, "--workers": workers}
        if tasks == 1:  # else they are the processes
            options |= {"--gpus": gpus, "--procs": procs}
        words = [w for key, v in options.items() if v is not None for w in (key, str(v))]
        words += ["--profile"] if profile else []
        again = f"the same command with --resume --out {path}"
        jobs = SlurmJobs(settings, words, path / FOLDER, resume, again)
        _train_queued(path, resolved, jobs)
    else:
        train_in(path, resolved, replace(launch, profile=profile), resume=resume)
    if machines.rank > 0:
        note(str(path))
        return
    result = read_result(RunDirectory(path), summarised=True)
    common.print_result(result, as_json=as_json)
    note(str(path))
    if check_expected:
        _check_expected(resolved, result)


def _asked_processes(
    gpus: int | None, procs: int | None, visible: int | None
) -> tuple[int | None, str]:
    """How many processes --gpus or --procs asks for, and which of them; raises `UsageError`.

    `visible`: the devices that there are, where they are known.
    """
    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs set the same thing. Give only one.")
    if gpus is None:
        return procs, "--procs"
    if visible is not None and gpus > visible:
        raise UsageError(f"--gpus: {gpus} requested, {visible} visible. Use at most {visible}.")
    return gpus, "--gpus"


def _refuse_in_job(options: Mapping[str, bool]) -> None:
    """Raises `UsageError` for an option that is given although the job's nodes decide it."""
    for option, is_given in options.items():
        if is_given:
            raise UsageError(f"{option}: depends on the nodes that SLURM gives. Remove it.")


def _share_among_nodes(
    slurm: Sequence[str], nodes: int, gpus: int | None, procs: int | None
) -> dict[str, Any]:
    """sbatch's options with what --nodes, --gpus and --procs say; raises `UsageError`."""
    given = [text.partition("=")[0].replace("-", "_") for text in slurm]
    said = {"nodes": nodes if nodes > 1 else None}
    count = procs if gpus is None else gpus
    if nodes > 1 and count is not None:
        if count % nodes:
            raise UsageError(
                f"--nodes: {count} processes cannot be divided evenly among {nodes} machines. "
                "Use a multiple."
            )
        said["ntasks_per_node"] = count // nodes
    if gpus is not None:
        said["gpus_per_node"] = gpus // nodes
    chosen = {key: value for key, value in said.items() if value is not None}
    for key in [*chosen, *(["nodes"] if count is not None else [])]:
        if key in given:
            raise UsageError(f"--slurm {key}: --nodes, --gpus and --procs set it. Give only one.")
    return parse_settings([*slurm, *(f"{key}={value}" for key, value in chosen.items())])


def _train_queued(path: Path, recipe: Recipe, jobs: SlurmJobs) -> None:
    """Trains the run as a job of SLURM, unless it is finished; raises how it failed."""
    if jobs.resume and is_done(path, recipe):
        note("finished already; nothing to do")
        return
    with Progress({path: recipe}) as progress:
        for ended in jobs.train({path: recipe}):
            progress.print_end(ended, f"{path}: {ended.error or 'done'}")
            if ended.error is not None:
                raise ended.error


def _resolve(
    name: str | None, changes: Changes, resumed: Path | None, device: str
) -> tuple[Recipe, list[str]]:
    """The recipe with what the user and the options set, and the notes about it."""
    given = [override for override in changes.overrides if override != AUTO]
    if name is None and resumed is not None:
        if not _holds_run(resumed):
            raise UsageError(
                f"--resume: {resumed} holds no run. Give --out RUN, or --recipe to start one there."
            )
        if changes.subset is not None or changes.smoke or changes.lr_from is not None:
            raise UsageError(
                "--subset, --smoke and --lr-from: a resumed run keeps its recipe. Remove them."
            )
        changed = common.change(recipes.recipe_in(resumed), replace(changes, overrides=given))
        return changed.recipe, [*changed.notes, *changed.recipe.notes]
    base = recipes.load(name or common.DEFAULT)
    if AUTO in changes.overrides:
        if changes.smoke:
            raise UsageError(f"--smoke and {AUTO} set the same thing. Give only one.")
        # The largest there can be, before it is fitted: the whole batch
        size = base.with_overrides(*given, f"{MICRO_BATCH}=1").train.batch_size
        if resumed is not None and _holds_run(resumed):
            size = recipes.recipe_in(resumed).train.device_batch_size
        given.append(f"{MICRO_BATCH}={size}")
    changed = common.change(base, replace(changes, overrides=given), device)
    notes = [*([] if name else [common.NO_RECIPE]), *changed.notes]
    notes += [f"warning: {w}" for w in warn_of_batch(base, changed.whole, changes.overrides)]
    return changed.recipe, [*notes, *changed.recipe.notes]


def _holds_run(path: Path | None) -> bool:
    return path is not None and RunDirectory(path).recipe.exists()


def _fit_micro_batch(
    recipe: Recipe, before: int, device: str, processes: int | None, visible: int
) -> tuple[Recipe, list[str]]:
    """The recipe with what `train.device_batch_size=auto` stands for, and notes.

    The largest micro-batch by the memory that is free now, with room for what the estimate leaves
    out, if that many processes share a step, or else as many of the `visible` devices as divide
    the batch. The recipe's own micro-batches have `before` images. Raises `UsageError`.
    """
    from rescue_cli import estimate

    recipe.demand_classification(AUTO)
    batch = recipe.train.batch_size
    if processes is None:
        processes = max(n for n in range(1, max(1, visible) + 1) if batch % n == 0)
    elif batch % processes:
        raise UsageError(
            f"train.batch_size: {batch} images cannot be shared evenly by {processes} processes. "
            "Use a multiple."
        )
    free = free_memory_mb(device)
    fitting = estimate.fit_micro_batch(recipe, FREE_SHARE * free, processes)
    if fitting is None:
        raise UsageError(
            f"train.device_batch_size: auto: not even one image fits into {free:,.0f} MB. "
            "Use a smaller model or size."
        )
    size, needed = fitting
    override = f"{MICRO_BATCH}={size}"
    notes = [f"auto sets: {override} (needs about {needed:,.0f} MB of {free:,.0f})"]
    if size != before and estimate.has_batch_norm(recipe):
        notes.append(
            f"warning: batch norm normalises over micro-batches of {size} images in place of "
            f"{before}, so the result may differ from the recipe's."
        )
    return recipe.with_overrides(override), notes


def _directory(recipe: Recipe, out: Path | None, *, resume: bool, nodes: int) -> Path:
    if out is not None:
        return check_folder(out)
    if nodes > 1:
        raise UsageError(
            "--nodes: several machines need the same --out DIR, visible to all of them."
        )
    return choose_directory(Path("runs", recipe.name), resume=resume, restarted=is_restarted())


def _check_expected(recipe: Recipe, result: Mapping[str, Any]) -> None:
    """Notes that the result is inside the recipe's band; raises `UnexpectedError` outside."""
    from rescue_cli.analysis.expected import check_expected, subset_size
    from rescue_cli.analysis.stats import sample

    band = check_expected(recipe, sample([result["top1"]]), subset_size(recipe, result["count"]))
    assert band is not None
    if not band["inside"]:
        raise UnexpectedError(band["said"])
    note(band["said"])
