"""`rescue preflight`: what can be checked of a training before a device is paid for."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis.cost import Prices
from rescue_cli.analysis.kill_test import LocalRunner, Runner, SlurmRunner, run_kill_test
from rescue_cli.analysis.preflight import (
    Check,
    attempt,
    check_cost,
    check_data,
    check_disk,
    check_script,
    check_weights,
    describe_kill_test,
)
from rescue_cli.cli import common
from rescue_cli.cli.command import SingleProcess, example_and_next
from rescue_cli.cli.common import (
    Device,
    Epochs,
    GpuMemory,
    HoursPerEpoch,
    ImagesPerSecond,
    Json,
    Model,
    On,
    Overrides,
    Price,
    RecipeName,
    SlurmOptions,
    Where,
    With,
    Workers,
)
from rescue_cli.recipe import Recipe
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder, next_folder
from rescue_cli.runs.environment import select_device
from rescue_cli.runs.many import SlurmJobs, slurm_jobs
from rescue_cli.runs.slurm import count_gpus, count_tasks

app = common.verb()


@app.command(
    cls=SingleProcess,
    epilog=example_and_next(
        "rescue preflight --recipe a2 data.root=DIR --gpu-memory 80 --kill-test",
        "rescue train with the same recipe, overrides and --slurm options",
    ),
)
def preflight(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    _code: With = None,
    model: Model = None,
    epochs: Epochs = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/RECIPE/N.")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs that share a step; default: SLURM's, or 1.", min=1)
    ] = None,
    images_per_second: ImagesPerSecond = None,
    hours_per_epoch: HoursPerEpoch = None,
    price: Price = None,
    gpu_memory: GpuMemory = None,
    kill_test: Annotated[
        bool, typer.Option("--kill-test", help="Kill a short run, resume it, compare the bits.")
    ] = False,
    on: On = Where.local,
    slurm: SlurmOptions = None,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Check recipe, memory, data, disk, hours and SLURM's script before a training.

    Needs no GPU. Ends with exit code 1 if a check fails.
    """
    from rescue_cli.build.check import check_recipe

    common.check_place(on, slurm)
    prices = Prices(images_per_second, hours_per_epoch, price, gpu_memory)
    base = recipes.load(common.named_or_default(recipe))
    changed = common.change(base, common.Changes(overrides or [], model, epochs))
    resolved = changed.recipe
    check_recipe(resolved)
    for line in [*changed.notes, *resolved.notes]:
        note(line)
    parent = Path("runs", resolved.name)
    path = next_folder(parent) if out is None else check_folder(out)
    queue = slurm_jobs(slurm or [], None, device, workers, path) if on is Where.slurm else None
    shared = gpus or (1 if queue is None else count_gpus(queue.settings))
    checks = [
        *attempt("cost", lambda: check_cost(resolved, shared, prices)),
        *attempt("weights", lambda: check_weights(resolved)),
        *attempt("data", lambda: check_data(resolved)),
        *attempt("disk", lambda: check_disk(resolved, path)),
    ]
    script = None
    if queue is not None:
        queue.check_tasks([resolved])
        script = queue.script(1)
        checks.append(check_script(script, 1, count_tasks(queue.settings)))
    if kill_test:
        where = select_device(device, elsewhere=queue is not None)
        on_gpu = where == "cuda" or (queue is not None and count_gpus(queue.settings, none=0) > 0)
        options = [("--device", device), ("--workers", workers)]
        words = [str(w) for pair in options if pair[1] is not None for w in pair]
        checks += attempt(
            "kill test",
            lambda: [_test_kill(resolved, changed.overrides, path.parent, queue, words, on_gpu)],
        )
    failed = any(check.verdict == "fails" for check in checks)
    if as_json:
        listed = [check.to_json() for check in checks]
        common.print_json({"recipe": resolved.name, "ok": not failed, "checks": listed})
    else:
        _print(checks, script)
    if failed:
        raise typer.Exit(1)


def _test_kill(
    recipe: Recipe,
    given: list[str],
    parent: Path,
    queue: SlurmJobs | None,
    words: list[str],
    on_gpu: bool,
) -> Check:
    """Kills a short run in a folder beside the run directory, removed if bits agree."""
    if recipe.fits_head:
        return Check("kill test", "the recipe fits a head, in no steps", "not judged")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".kill-test-", dir=parent))
    note(f"kill test in {folder}")
    runner: Runner = LocalRunner(words)
    if queue is not None:
        runner = SlurmRunner(SlurmJobs(queue.settings, words, folder / ".slurm"))
    test = run_kill_test(recipe, given, folder, runner, cuda=on_gpu)
    if test.equal:
        shutil.rmtree(folder)
    return describe_kill_test(test)


def _print(checks: list[Check], script: str | None) -> None:
    out = common.console()
    rows = [[check.name, check.figure, check.verdict] for check in checks]
    headings = ("check", "figure", "verdict")
    out.print(common.table(headings, rows, words=headings))
    if script is not None:
        print(f"\n{script}")
