"""What can be known of a training before it is started, on a machine without its device."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rescue_cli.analysis.cost import Prices, estimate_cost, memory_warning
from rescue_cli.analysis.kill_test import KillTest
from rescue_cli.errors import RescueError
from rescue_cli.formatting import flop_count, format_count
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import WEIGHTS, flat, is_path

if TYPE_CHECKING:
    from rescue_cli.sections.data import Dataset, FileNames, Files
    from rescue_cli.sections.data.packed.index import Shard

SAMPLE = 64  # images of each split that are decoded
THREADS = 16  # that ask a file system, which may be far away, for sizes
CHUNK = 1000  # files a thread asks for at a time
KILOBYTE = 1024
UNITS = ("bytes", "KB", "MB", "GB", "TB")

Verdict = Literal["ok", "warning", "fails", "not judged"]


@dataclass(frozen=True)
class Check:
    """One line of the table; `values` are the figures for programs."""

    name: str
    figure: str
    verdict: Verdict = "ok"
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"check": self.name, "figure": self.figure, "verdict": self.verdict, **self.values}


def attempt(name: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks, or one that fails with the error that they raise."""
    try:
        return list(check())
    except RescueError as error:
        return [Check(name, str(error), "fails")]


# --- by the recipe alone ---


def check_cost(recipe: Recipe, gpus: int, prices: Prices) -> Iterator[Check]:
    """Steps, memory, hours and money, as `rescue plan` has them."""
    if recipe.is_annotated:
        yield Check("recipe", f"{recipe.name}, {recipe.model.name}")
        yield Check("memory", f"not predicted for {recipe.task.name}", "not judged")
        return
    figures = estimate_cost(recipe, gpus, prices)
    yield Check(
        "recipe",
        f"{recipe.name}, {recipe.model.name}: {figures['parameters']:,} parameters, "
        f"{figures['updates']:,} steps of {recipe.train.batch_size} images, "
        f"{flop_count(figures['petaflop'])}",
        values={key: figures[key] for key in ("parameters", "updates", "images", "petaflop")},
    )
    peak = figures["peak_memory_mb"]
    figure = f"peak {peak:,.0f} MB per GPU"
    verdict: Verdict = "not judged"
    if prices.gpu_memory is None:
        figure += "; --gpu-memory judges it"
    else:
        warning = memory_warning(recipe, peak, prices.gpu_memory, gpus)
        figure, verdict = (f"{figure} of {prices.gpu_memory:g} GB", "ok")
        if warning is not None:
            figure, verdict = warning, "fails"
    yield Check("memory", figure, verdict, {"peak_memory_mb": peak})
    hours, cost = figures["hours"], figures["cost"]
    values = {"hours": hours, "cost": cost, "gpus": gpus}
    if hours is None:
        figure = "--images-per-second or --hours-per-epoch gives them"
        yield Check("hours", figure, "not judged", values)
        return
    money = "" if cost is None else f", {cost:,.2f} in the currency of --price"
    yield Check("hours", f"{hours:,.1f} on {format_count(gpus, 'GPU')}{money}", values=values)


def check_disk(recipe: Recipe, path: Path) -> Iterator[Check]:
    """What the run will write, against the free space where its directory will be."""
    from rescue_cli import estimate

    folder = next(p for p in (path.resolve(), *path.resolve().parents) if p.is_dir())
    if not os.access(folder, os.W_OK):
        yield Check("disk", f"{folder}: not writable", "fails")
        return
    free = shutil.disk_usage(folder).free
    if recipe.is_annotated:
        figure = f"{format_bytes(free)} free in {folder}; checkpoints not predicted"
        yield Check("disk", figure, "not judged", {"free_bytes": free})
        return
    checkpoint, weights = (int(size * 2**20) for size in estimate.saved_megabytes(recipe))
    # A file is written beside the one that it replaces: the last checkpoint, the best weights and
    # the final ones, and each snapshot
    needed = checkpoint * (2 + len(recipe.train.snapshots)) + 3 * weights
    kept = "weights" if checkpoint == 0 else f"checkpoint of {format_bytes(checkpoint)}"
    snapshots = f", {format_count(n, 'snapshot')}" if (n := len(recipe.train.snapshots)) else ""
    yield Check(
        "disk",
        f"needs {format_bytes(needed)} ({kept}{snapshots}), {format_bytes(free)} free in {folder}",
        "ok" if needed <= free else "fails",
        {"checkpoint_bytes": checkpoint, "needed_bytes": needed, "free_bytes": free},
    )


def check_weights(recipe: Recipe) -> Iterator[Check]:
    """The weight files that the recipe names."""
    from rescue_cli.sections.model.weights import locate_file

    for key, value in flat(recipe.tree).items():
        if key in WEIGHTS and value is not None and is_path(key, value):
            file, _ = locate_file(value)
            size = file.stat().st_size
            readable = os.access(file, os.R_OK)
            figure = f"{file}: {format_bytes(size)}" + ("" if readable else ", not readable")
            yield Check(key, figure, "ok" if readable else "fails", {"bytes": size})


# --- the data ---


def check_data(recipe: Recipe) -> Iterator[Check]:
    """Every file's size, and some images of each split decoded; raises `DataError`."""
    from rescue_cli.build.feeds import list_dataset
    from rescue_cli.sections.data import Files

    data = list_dataset(recipe)
    yield _describe_data(data)
    for name, split in {"train": data.train, **data.tests}.items():
        # Training draws another image for a corrupt one, an evaluation never does
        most = recipe.data.max_corrupt if name == "train" else 0
        if isinstance(split, Files):
            yield _check_sizes(f"{name} files", split, most)
            yield _check_sample(f"{name} images", split, recipe, most)


def _describe_data(data: "Dataset") -> Check:
    tests = {name: len(split) for name, split in data.tests.items()}
    listed = ", ".join(f"{count:,} in {name}" for name, count in tests.items())
    figure = f"{len(data.train):,} training images of {format_count(len(data.classes), 'class')}"
    return Check("data", f"{figure}; {listed}", values={"train": len(data.train), "tests": tests})


def _check_sizes(name: str, files: "Files", most: int) -> Check:
    """The size of all files; up to `most` may be missing, empty or not readable. Of shards all have
    to be as they were when they were indexed.
    """
    from rescue_cli.sections.data.packed.names import PackedNames

    names, what = files.names, "files"
    sizes = names.sizes()
    if isinstance(names, PackedNames):
        what, most = f"images in {format_count(len(names.index.shards), 'shard')}", 0
        bad = [shard.place for shard in names.index.shards if not _is_as_indexed(shard)]
    else:
        starts = range(0, len(files), CHUNK)
        with ThreadPoolExecutor(THREADS) as threads:
            parts = threads.map(lambda start: _unreadable(names, sizes, start), starts)
            bad = [path for part in parts for path in part]
    total = int(sizes[sizes > 0].sum())
    figure = f"{len(files):,} {what}, {format_bytes(total)}"
    if bad:
        figure += f"; {len(bad):,} missing, empty or not readable, the first {bad[0]}"
    return Check(name, figure, _judge(len(bad), most), {"bytes": total, "bad": len(bad)})


def _unreadable(names: "FileNames", sizes: Any, start: int) -> list[str]:
    """The paths of the files, from index `start` on, that are missing, empty or not readable.

    Args:
        sizes: (n,) of all files in bytes, -1 for a missing one.
    """
    each = range(start, min(start + CHUNK, len(names)))
    paths = [names.path(index) for index in each]
    empty = [size <= 0 for size in sizes[start : start + CHUNK]]
    return [
        str(path)
        for path, is_empty in zip(paths, empty, strict=True)
        if is_empty or not os.access(path, os.R_OK)
    ]


def _is_as_indexed(shard: "Shard") -> bool:
    """Whether a shard on this machine has its size; one of a store is read with the sample."""
    if shard.is_remote:
        return True
    try:
        return os.stat(shard.place).st_size == shard.size and os.access(shard.place, os.R_OK)
    except OSError:
        return False


def _check_sample(name: str, files: "Files", recipe: Recipe, most: int) -> Check:
    """Decodes images from the whole length of the split; of all files as many may be corrupt as
    `most`, if they are as frequent as in the sample.
    """
    count = min(SAMPLE, len(files))
    indices = [number * len(files) // count for number in range(count)]
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        bad = [line for line in threads.map(lambda i: _read(files, i, recipe), indices) if line]
    figure = f"{count - len(bad)} of {count} decoded, a sample of {len(files):,}"
    if bad:
        figure += f"; the first that is not: {bad[0]}"
    expected = len(bad) * len(files) / max(count, 1)
    return Check(name, figure, _judge(expected, most), {"decoded": count - len(bad), "of": count})


def _read(files: "Files", index: int, recipe: Recipe) -> str | None:
    """Reads and decodes one image with what it carries; why that is not possible."""
    from rescue_cli.sections.data.decode import UNREADABLE, describe_error
    from rescue_cli.sections.data.rgb import Reading
    from rescue_cli.sections.data.samples import read_sample

    try:
        read_sample(files, index, recipe.data.decoder, Reading.of(recipe.data))
    except RescueError as error:
        return str(error)
    except UNREADABLE as error:
        return f"{files.names.place(index)}: {describe_error(error)}"
    return None


def _judge(bad: float, most: int) -> Verdict:
    return "ok" if bad == 0 else "warning" if bad <= most else "fails"


# --- the cluster ---


def check_script(script: str, jobs: int, tasks: int) -> Check:
    """Whether SLURM would accept the script; nothing is submitted."""
    call = ["sbatch", "--test-only"]
    answer = subprocess.run(call, input=script, capture_output=True, text=True, check=False)
    reply = " ".join((answer.stderr or answer.stdout).removeprefix("sbatch: ").split())
    figure = f"{format_count(jobs, 'job')} of {format_count(tasks, 'task')}: {reply}"
    return Check("SLURM", figure, "fails" if answer.returncode else "ok", {"script": script})


def describe_kill_test(test: KillTest) -> Check:
    """The line of a kill test that has ended."""
    start = f"killed after step {test.killed_after} of {test.steps}, resumed at {test.resumed_at}: "
    values = {
        "steps": test.steps,
        "killed_after": test.killed_after,
        "resumed_at": test.resumed_at,
        "tensors": test.tensors,
        "different": len(test.different),
    }
    if test.equal:
        figure = f"{start}{format_count(test.tensors, 'tensor')} of weights, all equal bit for bit"
        return Check("kill test", figure, values=values)
    figure = f"{start}{len(test.different)} of {test.tensors} tensors of weights differ"
    return Check("kill test", f"{figure}, the first {test.different[0]}", "fails", values)


def format_bytes(number: float) -> str:
    """`3.4 GB`, in units of 1024."""
    for unit in UNITS[:-1]:
        if number < KILOBYTE:
            return f"{number:,.0f} bytes" if unit == UNITS[0] else f"{number:.3g} {unit}"
        number /= KILOBYTE
    return f"{number:,.3g} {UNITS[-1]}"
