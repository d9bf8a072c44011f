"""A run directory's birth: a free number, the resolved recipe, what it runs on."""

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rescue_cli import __version__
from rescue_cli.errors import InUseError, UsageError
from rescue_cli.recipe import Recipe, recipe_in
from rescue_cli.recipe.changes import as_written, differences, is_path
from rescue_cli.rundir import RunDirectory, write_json, write_text
from rescue_cli.runs.group import current

LOGS = (".log", ".out", ".err")  # what a shell or a queue writes in a folder before the run
BEFORE = (RunDirectory(Path()).last.parent.name, "logs")  # torchrun's, or a queue's
PACKAGES = ("torch", "torchvision", "timm", "numpy", "simplejpeg", "pillow")


def next_free(parent: Path) -> Path:
    """Creates and returns the next numbered folder below `parent`: 0, 1, 2, ..."""
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(p.name) for p in parent.iterdir() if p.name.isdecimal()), default=-1) + 1
    while True:
        try:
            (parent / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return parent / str(number)


def latest(parent: Path) -> Path | None:
    """The numbered folder below `parent` with the highest number."""
    if not parent.is_dir():
        return None
    numbers = [p for p in parent.iterdir() if p.name.isdecimal()]
    return max(numbers, key=lambda p: int(p.name), default=None)


def is_finished(path: Path) -> bool:
    return RunDirectory(path).result.is_file()


def prepare(
    path: Path, recipe: Recipe, facts: dict[str, Any], *, resume: bool, look: Any = None
) -> bool:
    """Writes what the workers read; whether the run is new, and so this call's to `abandon`.

    `facts` are what the run runs on; with `resume` a directory of the same recipe is taken up, as
    `claim` says.
    Raises `UsageError` where a run is there that must not change.
    """
    run = RunDirectory(path)
    if _in_use(run):
        raise InUseError(path)
    new = claim(path, recipe, resume=resume, verb=facts["verb"], look=look)
    before = run.command.read_text() if run.command.exists() else ""
    write_text(run.command, before + spoken())
    write_json(run.environment, facts)
    return new


def spoken() -> str:
    """This command as a line of a shell."""
    return shlex.join(["rescue", *sys.argv[1:]]) + "\n"


def claim(
    path: Path, recipe: Recipe, *, resume: bool, verb: str = "train", look: Any = None
) -> bool:
    """Puts the recipe there, for what the verb does; whether none was there.

    Raises `UsageError` where another is, or any without `resume`, or where the folder is none of a
    run's. Where only the places of data and weights differ it is the same recipe if these are the
    same, by `look` (`identity.IdentityCache`), else a `DataError`.
    """
    run = RunDirectory(path)
    if run.recipe.exists():
        if not resume:
            more = "" if verb == "eval" else ", or --resume"
            raise UsageError(f"{path}: holds a run already. Use another --out{more}.")
        changed = differences(recipe_in(path).tree, recipe.tree)
        changed = {k: pair for k, pair in changed.items() if not _same_folder(k, *pair)}
        other = {k: pair for k, pair in changed.items() if not is_path(k, *pair)}
        if other:
            told = "; ".join(
                f"{k}: {as_written(a)} -> {as_written(b)}" for k, (a, b) in other.items()
            )
            raise UsageError(
                f"{path}: holds a run of another recipe: {told}. "
                "Drop the overrides, or use a new --out."
            )
        if changed:
            _move(run, recipe, look)
        return False
    if path.is_dir() and (strange := [e.name for e in path.iterdir() if _is_foreign(e)]):
        raise UsageError(f"{path}: is no run's folder; it holds {min(strange)}. Use a new --out.")
    write_text(run.recipe, recipe.to_yaml())
    return True


def _move(run: RunDirectory, recipe: Recipe, look: Any) -> None:
    """Has the run go on where its data and weights lie now; what is finished stays as it is.

    Raises `DataError` where they are not the same.
    """
    from rescue_cli.build.identity import IdentityCache, check_same_data

    check_same_data(run, recipe, look or IdentityCache())
    if not run.result.exists():
        write_text(run.recipe, recipe.to_yaml())


def _same_folder(key: str, a: Any, b: Any) -> bool:
    """Whether two values of a key name one folder, as from a folder and from the one above it."""
    folders = isinstance(a, str) and isinstance(b, str) and is_path(key, a, b)
    return folders and Path(a).resolve() == Path(b).resolve()


def abandon(path: Path) -> None:
    """Takes back what this call prepared of a run in which nothing was trained.

    Anything else stays, and so does all of a run that another process is at work on.
    """
    run = RunDirectory(path)
    if run.metrics.exists() or run.last.exists() or run.result.exists() or _in_use(run):
        return
    prepared = (run.recipe, run.command, run.environment, run.failure, run.log, run.lock)
    for file in (*prepared, run.samples, run.data, run.listing):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        path.rmdir()


def _is_foreign(entry: Path) -> bool:
    """Whether a file or folder is what no run begins beside.

    What is hidden is not, nor logs, nor the state of another run that it begins with.
    """
    return not entry.name.startswith(".") and entry.name not in BEFORE and entry.suffix not in LOGS


def _in_use(run: RunDirectory) -> bool:
    if not run.lock.exists():
        return False
    with run.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def environment(
    recipe: Recipe,
    *,
    verb: str,
    device: str,
    procs: int,
    workers: int | None,
    cache: Path,
    share: int = 1,
    nodes: int = 1,
) -> dict[str, Any]:
    """What a run runs on: versions, commit, processor, device, threads, seed.

    `procs` share a step, evenly on `nodes` machines; `share` runs are at work on this one at a
    time, each on its part of the cores.
    """
    import torch

    cores = len(os.sched_getaffinity(0))
    each = max(1, cores // (procs // nodes * share))
    if (group := current()) is not None:
        each = group.threads
    local = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "verb": verb,
        "device": device,
        "procs": procs,
        "threads": each,
        "workers": min(8, each) if workers is None else workers,
        "cache": os.environ.get("RESCUE_CACHE", str(cache)),
        "seed": recipe.train.seed,
        "device_name": local,
        "processor": _processor(),
        "cores": cores,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": os.environ.get("GLIBC_TUNABLES"),
        "bfloat16_computed": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "rescue": __version__,
        "commit": _commit(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, with `+` where it was changed."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        call = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
