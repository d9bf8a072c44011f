"""The Python interface, `import rescue_cli as rescue`; the command line's verbs call it as well.

Nothing here imports torch before a network is trained, evaluated or loaded.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rescue_cli import recipe as recipes
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.formatting import format_count
from rescue_cli.recipe import Recipe, own, recipe_in
from rescue_cli.rundir import RunDirectory, read_metrics, read_result
from rescue_cli.runs.console import format_idle_gpus, note

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rescue_cli.export.run import Exported
    from rescue_cli.inference import Classifier, Prediction
    from rescue_cli.runs.single import Launch

__all__ = [
    "Recipe",
    "RescueError",
    "Run",
    "compare",
    "evaluate",
    "export",
    "load",
    "open_run",
    "predict",
    "train",
]


@dataclass(frozen=True)
class Run:
    """A run directory, finished or not: what was trained or evaluated there, and its numbers.

    Files are read, and checked, when they are asked for; one that is missing or damaged is a
    `DataError`.
    """

    path: Path

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe that the run follows."""
        return recipe_in(self.path)

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return RunDirectory(self.path).finished

    @property
    def result(self) -> dict[str, Any]:
        """`result.json`, with the keys of `rescue train --json`: `top1` and the like in percent."""
        return read_result(RunDirectory(self.path))

    def metrics(self, kind: Literal["train", "eval"] = "train") -> "dict[str, NDArray[Any]]":
        """`metrics.jsonl` as arrays, one element per line of that kind.

        `train`: step, epoch, loss, lr, momentum, seconds, images_per_second, ...; `eval`: step,
        epoch, set, size, crop, loss and the task's metrics in percent. A missing number is NaN.
        """
        import numpy as np

        lines = read_metrics(RunDirectory(self.path).metrics)
        rows = [line for line in lines if line["kind"] == kind]
        keys = dict.fromkeys(key for row in rows for key in row if key != "kind")
        columns = {key: [row.get(key) for row in rows] for key in keys}
        return {
            key: np.array([np.nan if value is None else value for value in column])
            for key, column in columns.items()
        }

    def predictions(self, measurement: str | None = None) -> "dict[str, NDArray[np.generic]]":
        """What the network predicted for each test image, in the order of the test set.

        Of a classification: `labels`, `top` (the five most probable classes), ... `measurement` is
        `val`, or `val 224px@0.95` where the run has several; the first by default.
        """
        from rescue_cli.analysis.sides import load_predictions

        return load_predictions(self.path, measurement)

    def model(self, device: str = "cpu") -> "Classifier":
        """The weights that the result reports, with their preprocessing and class names.

        Raises `UsageError` for a detector or a segmentation network.
        """
        from rescue_cli.inference import load_classifier

        return load_classifier(self.path, device)


def load(
    name: str,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    epochs: float | None = None,
    code: Sequence[Path | str] = (),
) -> Recipe:
    """The recipe of a name (`rescue recipes` lists them) or a file, with overrides applied.

    Overrides are as on the command line: `optim.lr=0.2`, `augment.flip.p=0.3`, `~model.drop_path`.
    `model` puts in another network, with the sizes that the paper's table gives it; `epochs` is
    another length, which warm-up and milestones scale with. `code` are Python files with
    ingredients of your own, which the recipe or an override names: `model.name=mynet.py:Net`.
    Raises `UsageError`.
    """
    with own.giving(code):
        if model is None and epochs is None:
            return recipes.load(name, overrides)
        from rescue_cli.build.expand import expand_options

        implied, _ = expand_options(recipes.load(name), overrides, model, epochs)
        return recipes.load(name, [*overrides, *implied])


def open_run(path: Path | str, *, code: Sequence[Path | str] = ()) -> Run:
    """The run in a directory; raises `UsageError` where there is none.

    `code` are the Python files that the run may import, where they were not given here before.
    """
    with own.giving(code):
        pass
    if not RunDirectory(Path(path)).recipe.is_file():
        raise UsageError(f"{path}: holds no run. Give a run directory, as runs/quickstart/0.")
    return Run(Path(path))


def train(
    recipe: Recipe | str,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
    procs: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Run:
    """Trains a recipe and returns its run, as `rescue train` does.

    The run directory is `out`, else `runs/RECIPE/N`. With `resume` a run that is in `out` resumes
    from its checkpoint, and a finished one is returned. `device` is cpu or cuda, by default cuda
    where there is one. `procs` processes share each step through torchrun; by default there is one
    per GPU, and on a CPU this process alone. `workers` are data loader workers per process. With
    `progress` the run's messages go to stderr; `log.txt` has them in any case.

    One process trains within this one, with the thread count and the determinism that the run asks
    of torch. SIGINT (Ctrl-C) and SIGTERM stop it at the end of a step, with its checkpoint saved.

    Raises `RescueError`: `UsageError` for a recipe or arguments that are wrong, `DataError`,
    `DivergedError`, `MemoryExhausted`, `StoppedError` (all in `rescue_cli.errors`).
    """
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.outline import warn_of_length
    from rescue_cli.runs.environment import check_precision, select_device, visible_devices
    from rescue_cli.runs.single import plan_launch

    if isinstance(recipe, str):
        recipe = recipes.load(recipe)
    if resume and out is None:
        raise UsageError("resume: needs to know which run. Give out, its run directory.")
    _refuse_group("train")
    check_recipe(recipe)
    chosen = select_device(device)
    launch = plan_launch(
        recipe.train,
        chosen,
        procs,
        option="procs",
        default=visible_devices(chosen),
        workers=workers,
        progress=progress,
    )
    emulated = check_precision(recipe.train.precision, chosen)
    path = _choose_folder(out, Path("runs", recipe.name))
    if progress:
        warned = [f"warning: {line}" for line in (*warn_of_length(recipe), *emulated)]
        for line in (str(path), *recipe.notes, *warned):
            note(line)
    command = ["rescue", "train", "--recipe", str(path / "recipe.yaml")]
    if launch.through_torchrun:
        command += ["--procs", str(launch.procs)]
    return train_in(path, recipe, launch, resume=resume, command=command)


def train_in(
    path: Path,
    recipe: Recipe,
    launch: "Launch",
    *,
    resume: bool,
    command: Sequence[str] | None = None,
) -> Run:
    """Trains in a run directory, or resumes the run that is there, and draws its pictures.

    `command` is recorded, by default this process's own. Raises `RescueError`.
    """
    from rescue_cli.report.pictures import draw_run
    from rescue_cli.runs.single import describe_restart, prepare_training, run_training

    say = note if launch.progress else _say_nothing
    finished = resume and RunDirectory(path).finished
    cache = path.parent / ".cache"
    new = prepare_training(path, recipe, launch, cache, resume=resume, command=command)
    if finished:
        say("finished already; nothing to do")
        return Run(path)
    say(f"{recipe.name} on {launch.device}, {format_count(launch.procs, 'process')}")
    if launch.idle_gpus:
        say(launch.idle_gpus)
    if resume and (restart := describe_restart(path, recipe, new=new)):
        say(restart)
    run_training(path, launch, new=new)
    if launch.nodes.rank == 0:
        draw_run(path)
    return Run(path)


def evaluate(
    weights: Run | Path | str,
    overrides: Sequence[str] = (),
    *,
    recipe: str | None = None,
    model: str | None = None,
    out: Path | str | None = None,
    device: str | None = None,
    procs: int | None = None,
    workers: int | None = None,
    progress: bool = False,
    code: Sequence[Path | str] = (),
) -> Run:
    """Evaluates weights on test sets as `rescue eval` does, and returns the evaluation's run.

    `weights` is a run, a weights file or `timm:NAME`. `overrides` change what is measured:
    `eval.sizes=[160,192]`, `eval.tta=flip`, `data.root=DIR`. `recipe` stands in for the one that
    the weights carry, `model` names the architecture where they carry none. `out` is a new folder,
    by default `RUN/evals/N` or `runs/eval-NAME/N`; `code` are Python files that the weights'
    recipe may import, where they were not given here before; the rest is as for `train`.

    Raises `RescueError`; nothing is left behind then.
    """
    _refuse_group("evaluate")
    given = _path_or_name(weights)
    command = ["rescue", "eval", given, *overrides]
    command += [] if recipe is None else ["--recipe", recipe]
    command += [] if model is None else ["--model", model]
    with own.giving(code):
        return evaluate_weights(
            given,
            overrides,
            recipe=recipe,
            model=model,
            out=out,
            device=device,
            procs=procs,
            workers=workers,
            progress=progress,
            command=command,
        )


def evaluate_weights(
    given: str,
    overrides: Sequence[str],
    *,
    recipe: str | None,
    model: str | None,
    out: Path | str | None,
    device: str | None,
    procs: int | None,
    workers: int | None,
    progress: bool = True,
    command: Sequence[str] | None = None,
) -> Run:
    """As `evaluate`; `command` is recorded, by default this process's own."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.weights import check_changes, find_weights
    from rescue_cli.report.pictures import draw_run
    from rescue_cli.runs.directory import prepare, remove_unstarted
    from rescue_cli.runs.environment import (
        check_precision,
        describe_environment,
        select_device,
        visible_devices,
    )
    from rescue_cli.runs.group import requested_processes
    from rescue_cli.runs.processes import run_directory

    procs, _ = requested_processes(procs)
    chosen = select_device(device)
    source = find_weights(given, overrides, recipe=recipe, model=model)
    check_changes(overrides, source)
    check_recipe(source.recipe)
    emulated = check_precision(source.recipe.train.precision, chosen)
    idle = []
    if procs is None and (visible := visible_devices(chosen)) > 1:
        cure = f"--procs {visible} uses all"
        idle = [format_idle_gpus(1, visible, "--procs is 1 by default", cure)]
    if progress:
        for line in (*source.notes, *(f"warning: {line}" for line in emulated), *idle):
            note(line)
    run = Path(given).expanduser()
    parent = run / "evals" if run.is_dir() else Path("runs", f"eval-{source.name}")
    path = _choose_folder(out, parent)
    environment = describe_environment(
        verb="eval",
        seed=source.recipe.train.seed,
        device=chosen,
        procs=procs or 1,
        workers=workers,
        cache=path.parent / ".cache",
    )
    environment = {**environment, "protocol": source.protocol}
    prepare(path, source.recipe, environment, resume=False, command=command)
    try:
        run_directory(path, procs, progress=progress)
    except BaseException:  # an evaluation leaves a result or nothing
        if out is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove_unstarted(path)
        raise
    draw_run(path)
    return Run(path)


def predict(
    weights: Run | Path | str,
    images: Path | str | Sequence[Path | str],
    *,
    top: int = 3,
    model: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    progress: bool = False,
    keep_broken: bool = False,
    code: Sequence[Path | str] = (),
) -> "list[Prediction]":
    """The `top` most probable classes of each image, with probabilities.

    `weights` is a run, a weights file or `timm:NAME`, whose architecture `model` names where the
    file does not; `images` are image files, folders of them, and patterns (`photos/*.jpg`); `code`
    is as for `evaluate`. Raises `UsageError`, and `DataError`, also for a file that cannot be
    decoded; with `keep_broken` such a file has no `classes` and an `error`.
    """
    from rescue_cli.inference import predict_images
    from rescue_cli.runs.environment import select_device

    given = [images] if isinstance(images, Path | str) else images
    with own.giving(code):
        return predict_images(
            _path_or_name(weights),
            [Path(image) for image in given],
            top,
            select_device(device),
            model=model,
            changes=overrides,
            note=note if progress else _say_nothing,
            progress=progress,
            keep_broken=keep_broken,
        )


def export(
    weights: Run | Path | str,
    formats: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    from_pixels: bool = False,
    subset: int | None = None,
    model: str | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, Path]:
    """Writes a network as `onnx`, `torch-export` or `timm`; returns the folder of each format.

    Each file is run by its own program in a fresh process on the test images (`subset` of them,
    evenly spaced), and its probabilities compared with the run's own in float32. The folders are in
    `out`, by default `RUN/export`. With `from_pixels` a graph takes uint8 pixels (N, size, size,
    channels) and gives probabilities; else normalised floats (N, channels, size, size), and logits.
    A graph of a segmentation network takes any height and width, and gives those of each pixel.

    Raises `RescueError` where a file does not give what the run's evaluation gives, `UsageError`,
    `DataError`.
    """
    from rescue_cli.export.run import raise_fault

    _refuse_group("export")
    exported = export_weights(
        _path_or_name(weights),
        formats,
        overrides,
        out=out,
        from_pixels=from_pixels,
        subset=subset,
        model=model,
        workers=workers,
        progress=progress,
    )
    raise_fault(exported)
    return {one.format: one.folder for one in exported if one.folder is not None}


def export_weights(
    given: str,
    formats: Sequence[str],
    overrides: Sequence[str],
    *,
    model: str | None,
    out: Path | str | None,
    from_pixels: bool,
    subset: int | None,
    workers: int | None,
    check_only: bool = False,
    push: str | None = None,
    progress: bool = True,
) -> "list[Exported]":
    """As `export`, with what did not pass. With `check_only` nothing is written; `push` is the
    repository that a timm folder is uploaded to once all have passed.
    """
    formats = list(dict.fromkeys(formats))
    if not formats:
        raise UsageError("--to: no format. Give --to onnx, --to torch-export or --to timm.")
    if push is not None and "timm" not in formats:
        raise UsageError("--push: uploads a timm folder. Add --to timm.")
    if from_pixels and "timm" in formats:
        raise UsageError(
            "--from-pixels: a timm folder has no graph to hold the preprocessing; its config.json "
            "says it. Export timm in a command without it."
        )
    from rescue_cli.export import hub  # which imports torch
    from rescue_cli.export.run import Request, check_again, run

    folder = Path(given).expanduser()
    parent = folder if folder.is_dir() else Path("runs", f"export-{Path(given).stem}")
    request = Request(
        given=given,
        changes=overrides,
        model=model,
        out=parent / "export" if out is None else Path(out),
        from_pixels=from_pixels,
        subset=subset,
        workers=workers,
        progress=progress,
        note=note if progress else _say_nothing,
    )
    exported = check_again(request, formats) if check_only else run(request, formats)
    if push is not None and all(one.fault is None for one in exported):
        request.note(f"uploaded: {hub.push(request.out / 'timm', push)}")
    return exported


def compare(
    a: Run | Path | str, b: Run | Path | str, *others: Run | Path | str, want: float | None = None
) -> dict[str, Any]:
    """Whether b is better than a, how sure that is, and what may be claimed, as `rescue compare`.

    A side is a run, a folder of runs `seed-0`, `seed-1`, ..., a recipe's name (its published
    accuracy) or numbers in percent, as `79.72±0.10/100`. Returns the keys of `rescue compare
    --json`: of the first pair `difference` (b - a, in points), `low` and `high` of its 95 %
    interval, `p`, `claim` (a sentence), ...; `sides`, each with `mean`, `std` and `n`; and `pairs`,
    every pair. `want` is a difference in points: `needed` is then the number of runs that would
    show it. Warns where sweeps are compared again after more seeds. Raises `DataError`,
    `UsageError`.
    """
    from rescue_cli.analysis.compare import compare_pairs, describe_sides
    from rescue_cli.analysis.interim import record_comparison
    from rescue_cli.analysis.sides import load_comparable

    sides = load_comparable([_path_or_name(side) for side in (a, b, *others)])
    pairs = compare_pairs(sides, want)
    for line in record_comparison(sides):
        warnings.warn(line, stacklevel=2)
    return {**pairs[0], "sides": describe_sides(sides), "pairs": pairs}


def _choose_folder(out: Path | str | None, parent: Path) -> Path:
    """`out`, else a new numbered folder below `parent`; raises `UsageError` for a file."""
    from rescue_cli.runs.directory import check_folder, create_next

    return create_next(parent) if out is None else check_folder(Path(out))


def _path_or_name(weights: Run | Path | str) -> str:
    return str(weights.path if isinstance(weights, Run) else weights)


def _refuse_group(function: str) -> None:
    """Raises `UsageError` in a script that torchrun, srun or mpirun started several times."""
    from rescue_cli.runs import launcher

    start = launcher.detect(os.environ)
    if start is not None:
        raise UsageError(
            f"{function}: this script runs as {start.size} processes ({start.launcher}). Start it "
            f"once, with procs={start.size}. {start.cure}"
        )


def _say_nothing(_: str) -> None:
    pass
