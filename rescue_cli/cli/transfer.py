"""`rescue transfer`: fine-tunes weights on another data set, and compares several."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis.accuracy import accuracy_interval
from rescue_cli.analysis.compare import compare_pairs, describe_sides
from rescue_cli.analysis.image_tables import (
    SURE,
    ImageRow,
    doubtful_labels,
    label_table,
    wrong_images,
)
from rescue_cli.analysis.sides import load_side
from rescue_cli.analysis.sweep import PREFIX, Sweep, parse_seeds, read_sweep
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Architecture,
    Changes,
    Device,
    DryRun,
    Epochs,
    Json,
    LrFrom,
    NamedRecipe,
    On,
    Overrides,
    SlurmOptions,
    Smoke,
    Subset,
    Track,
    Where,
    With,
    Workers,
)
from rescue_cli.cli.completion import complete_data_set
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.formatting import format_duration
from rescue_cli.metrics.names import measurement_stem
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_failure, read_result
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder
from rescue_cli.runs.environment import note_precision, select_device
from rescue_cli.runs.many import (
    Jobs,
    find_missing,
    local_jobs,
    record_planned,
    require_results,
    slurm_jobs,
)
from rescue_cli.runs.progress import Progress

app = common.verb()
MINUTES = 5.0  # of a transfer without --recipe
SHOWN = 10  # images that are listed


@app.command(
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue transfer --from runs/a2/0 --to flowers102 data.root=DIR",
        "rescue predict RUN IMAGE, or rescue report RUN",
    ),
)
def transfer(
    overrides: Overrides = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="Starting weights: a run, a file, timm:NAME or scratch:NAME. Repeat to compare.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="A data set, or a folder of your own.", autocompletion=complete_data_set),
    ] = None,
    recipe: NamedRecipe = None,
    _code: With = None,
    _track: Track = None,
    model: Architecture = None,
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="Number of seeds, or a list: 0-9 or 3,7,11.")] = "1",
    minutes: Annotated[
        float | None,
        typer.Option(help=f"Time for all of it, without --recipe. [{MINUTES:g}]", min=0),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Parallel runs.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/transfer/TO.")] = None,
    subset: Subset = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    lr_from: LrFrom = None,
    on: On = Where.local,
    slurm: SlurmOptions = None,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Fine-tune weights on another data set, and compare several starting weights.

    Without --recipe a head is fitted to the network's features, larger images are tried, and the
    whole network is trained if held-out images say that it pays; through SLURM all in one job.
    """
    common.check_place(on, slurm)
    if not from_ or to is None:
        raise UsageError("transfer: give --from WEIGHTS and --to DATA (a data set or a folder).")
    from rescue_cli.analysis.transfer_search import sizes_to_try
    from rescue_cli.build.networks import has_layer_order
    from rescue_cli.build.outline import epoch_length, has_files
    from rescue_cli.build.transfer import DEFAULT, FINE, PROBE, SCRATCH, hold_out_test

    single = len(from_) == 1 and not from_[0].startswith(SCRATCH) and seeds == "1"
    guided = single and recipe is None and epochs is None
    if guided:
        _check_guided(overrides or [], lr_from, jobs)
        if minutes is None:
            minutes = 0.0 if smoke else MINUTES  # of a few images nothing can be learned
    elif minutes is not None:
        raise UsageError(
            "--minutes: is for one trained --from and one seed, without --recipe and --epochs. "
            "Remove it."
        )
    base = recipes.load(recipe or (PROBE if guided else DEFAULT))
    name = Path(to).resolve().name if Path(to).exists() else to.rstrip("/").rpartition("/")[2]
    folder = check_folder(out or Path("runs", "transfer" if guided else base.name, name))
    where = select_device(device, elsewhere=dry_run or on is Where.slurm)
    changes = Changes(overrides or [], model, epochs, subset, smoke, lr_from)
    starts = _starts(base, from_, to, changes, where, shows_keys=not guided)
    if guided:
        held_out, line = hold_out_test(*starts.values())
        changes = replace(changes, overrides=[*changes.overrides, *held_out])
        starts = {label: one.with_overrides(*held_out) for label, one in starts.items()}
        if line:
            note(line)
    chosen = parse_seeds(seeds)
    queue = None
    if on is Where.slurm and not guided:
        queue = slurm_jobs(slurm or [], jobs, device, workers, folder)
        queue.check_tasks(starts.values())
    if dry_run:
        script = common.script_of_job(slurm, folder) if on is Where.slurm else None
        if queue is not None:
            script = queue.script(len(starts) * len(chosen))
        for label, each in starts.items():
            note(label)
            of_each, more = common.planned_device(each, device, where)
            for line in more:
                note(line)
            planned = {"runs": len(chosen), "device": of_each}
            if guided:
                planned |= {"minutes": minutes, "sizes_tried": sizes_to_try(each)}
            last = label == [*starts][-1]
            common.print_plan(each, planned, as_json=as_json, script=script if last else None)
        return
    if on is Where.slurm and guided:
        common.run_as_job(slurm, folder)
    runs = {
        folder / label / f"{PREFIX}{seed}": one.with_seed(seed)
        for label, one in starts.items()
        for seed in chosen
    }
    location = str(next(iter(runs)) if len(runs) == 1 else folder)
    if len(starts) == 1 and len(runs) > 1:
        location = str(folder / next(iter(starts)))
    note(location)
    if queue is None:
        for one in starts.values():
            if not guided and has_files(one):  # what is wrong with them is said before a run starts
                epoch_length(one)
        note_precision((one.train.precision for one in runs.values()), where)
    if guided:
        (final,) = runs.items()
        if not has_layer_order(final[1]):
            changes = replace(changes, overrides=[*changes.overrides, "~optim.layer_decay"])
        fine_base, silent = recipes.load(FINE), lambda _: None
        (fine,) = _starts(fine_base, from_, to, changes, where, tell=silent).values()
        assert minutes is not None
        _guide(final, fine, folder, where, workers, minutes, as_json=as_json)
        return
    _train(runs, queue or local_jobs(where, jobs, workers, folder / ".cache"))
    if len(runs) == 1 and not as_json and not base.is_annotated:
        ((path, one),) = runs.items()
        _show_run(path, one)
        return
    sweeps = [read_sweep(folder / label) for label in starts]
    _show(sweeps, to, as_json=as_json)
    note(location)
    ends = [missing.how for sweep in sweeps for missing in sweep.missing.values()]
    require_results(sum(len(sweep.results) for sweep in sweeps), ends)


def _check_guided(overrides: list[str], lr_from: Path | None, jobs: int | None) -> None:
    """Raises `UsageError` for an option that a transfer without --recipe does not take."""
    from rescue_cli.analysis.transfer_search import check_overrides

    check_overrides(overrides)
    if lr_from is not None:
        raise UsageError("--lr-from: is for a --recipe that takes steps. Give one, or remove it.")
    if jobs is not None:
        raise UsageError("--jobs: a transfer without --recipe trains one by one. Remove it.")


def _guide(
    final: tuple[Path, Recipe],
    fine: Recipe,
    folder: Path,
    device: str,
    workers: int | None,
    minutes: float,
    *,
    as_json: bool,
) -> None:
    """Searches within the time budget, trains the final run, and shows what it got wrong."""
    from rescue_cli.analysis.transfer_search import TransferSearch
    from rescue_cli.report.pictures import draw_run

    path, probe = final
    begun, new = time.monotonic(), not RunDirectory(path).finished
    end = begun + 60 * minutes
    search = TransferSearch(probe, fine, folder, device, workers, minutes, end)
    try:
        decisions = search.run(path)
    except KeyboardInterrupt:
        note("the same command goes on from here")
        raise
    draw_run(path)
    result = read_result(RunDirectory(path), summarised=True)
    if as_json:
        common.print_result({**result, "transfer": decisions}, as_json=True)
        return
    seconds = time.monotonic() - begun if new else None
    _show_run(path, probe, seconds, search.told)


def _show_run(
    path: Path, recipe: Recipe, seconds: float | None = None, told: Collection[str] = ()
) -> None:
    """The result of one run, the images that it got wrong, and what comes next.

    `seconds`: of the command in all. `told`: notes on the data that it has shown.
    """
    result = read_result(RunDirectory(path), summarised=True)
    notes = [line for line in result.get("notes", []) if line not in told]
    common.print_result({**result, "notes": notes}, as_json=False)
    if seconds is not None:
        print(f"{format_duration(seconds)} in all")
    out = common.console()
    for line in _describe_images(path, result, recipe.data.root):
        out.print(line)
    print(f"Next: rescue predict {path} IMAGE")
    print(f"      rescue report {path}")
    note(str(path))


def _describe_images(path: Path, result: Mapping[str, Any], root: str | None) -> Iterator[str]:
    """The result in images, those that are wrong, and labels that look wrong."""
    run, count = RunDirectory(path), result["count"]
    low, high = accuracy_interval(result)
    right = round(result["top1"] * count / 100)
    yield (
        f"{right:,} of {count:,} right; 95 %: {low:.1f} to {high:.1f}; "
        f"one image is {100 / count:.2g} points"
    )
    if "held_out" in result["protocol"]:
        yield f"test set: {count:,} images kept out of training"
    table = run.image_table(measurement_stem(result["sets"][0], result["sets"]))
    if table.exists():
        yield from _list_images("wrong", wrong_images(table), table, root)
    if (labels := label_table(path, result["protocol"]["size"])) is not None:
        doubtful, wrong = doubtful_labels(labels), wrong_images(labels)
        what = (
            f"labels that look wrong (another class has {100 * SURE:g} % or more, from a "
            "classifier fitted without the image)"
        )
        yield from _list_images(what, doubtful, labels, root)
        what = f"{'other ' if doubtful else ''}training images that it classifies wrong"
        yield from _list_images(what, wrong[len(doubtful) :], labels, root)


def _list_images(
    what: str, rows: Sequence[ImageRow], table: Path, root: str | None
) -> Iterator[str]:
    """How many they are, the first of them by their names below the folder of images, and where all
    images stand.
    """
    yield f"{what}: {len(rows):,}" + (f" ({table})" if rows else "")
    shared = "" if root is None else f"{root}/"
    yield from (f"  {row}".replace(shared, "", 1) for row in rows[:SHOWN])
    if len(rows) > SHOWN:
        yield f"  and {len(rows) - SHOWN:,} more"


def _starts(
    base: Recipe,
    words: list[str],
    to: str,
    changes: Changes,
    device: str,
    *,
    tell: Callable[[str], None] = note,
    shows_keys: bool = True,
) -> dict[str, Recipe]:
    """The recipe of each --from by its label; all are checked before any is trained.

    `tell` receives a line on what each of them sets, with `shows_keys` key by key.
    """
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.transfer import check_labels, plan_transfer

    given, model = changes.overrides, changes.model
    starts = {word: plan_transfer(base, word, to, given, model=model) for word in words}
    check_labels(starts)
    expanded = {}
    for word, each in starts.items():
        start = base.with_overrides(*each.overrides)
        changed = common.change(start, replace(changes, model=None), device)
        network = changed.recipe.model.name
        sets = f" sets: {' '.join(each.overrides)}"
        tell(f"--from {word}{sets if shows_keys else f': {network}, a new classifier'}")
        for line in [*changed.notes, *changed.recipe.notes]:
            tell(line)
        expanded[each.label] = changed.recipe
        check_recipe(changed.recipe)
    return expanded


def _train(runs: dict[Path, Recipe], jobs: Jobs) -> None:
    """Trains what has no result; raises the first error if no run has one in the end."""
    from rescue_cli.report.pictures import draw_run

    errors: list[RescueError] = []
    missing = find_missing(runs)
    ended_before = len(runs) - len(missing)
    with record_planned(runs), Progress(missing, before=ended_before) as progress:
        for ended in jobs.train(missing):
            if ended.error is None:
                draw_run(ended.path)
            else:
                errors.append(ended.error)
            progress.print_end(ended, f"{ended.path}: {ended.error or 'done'}")
    if any(RunDirectory(path).finished for path in runs):
        return
    # Runs that diverged before were not trained again
    errors += [failure.error for path in runs if (failure := read_failure(RunDirectory(path)))]
    if errors:
        raise errors[0]


def _show(sweeps: list[Sweep], to: str, *, as_json: bool) -> None:
    """The accuracy of each start, and of several what may be claimed."""
    for sweep in sweeps:
        if sweep.missing:
            note(f"{sweep.path}: {sweep.seeds_text}")
    sides = [load_side(str(sweep.path)) for sweep in sweeps if sweep.results]
    pairs = compare_pairs(sides)
    if not as_json:
        common.print_comparison(sides, pairs)
        return
    common.print_json({"to": to, "sides": describe_sides(sides), "pairs": pairs})
