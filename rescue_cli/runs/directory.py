"""How a run directory is created: a free number, the resolved recipe, what it will run on."""

import contextlib
import fcntl
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescue_cli.errors import DataError, InUseError, RescueError, UsageError
from rescue_cli.recipe import Recipe, recipe_in
from rescue_cli.recipe.changes import differences, format_recipe_value, is_path
from rescue_cli.recipe.own import remove_copies, write_copies
from rescue_cli.rundir import RunDirectory, read_environment, write_json, write_text

if TYPE_CHECKING:
    from rescue_cli.build.identity import IdentityCache

# What may be in a folder before the run: files and folders of the shell, a queue or torchrun, and
# the checkpoint of another run that this one starts from
LOG_SUFFIXES = (".log", ".out", ".err")
LOG_FOLDERS = ("logs", RunDirectory(Path()).last.parent.name)
# With another of these a run resumes, but not to the bits of an uninterrupted one
LAST_BITS = ("device", "device_name", "procs", "threads", "cpu_capability", "torch")


def check_folder(path: Path) -> Path:
    """The path, as a folder for results; raises `UsageError` for a file."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out: {path} is a file. Give a folder.")
    return path


def next_folder(parent: Path) -> Path:
    """The next numbered folder below `parent`: 0, 1, 2, ..."""
    entries = parent.iterdir() if parent.is_dir() else ()
    return parent / str(max((int(p.name) for p in entries if p.name.isdecimal()), default=-1) + 1)


def create_next(parent: Path) -> Path:
    """Creates and returns the next numbered folder below `parent`."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = next_folder(parent)
        # where another process was faster, the one after its folder
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def choose_directory(parent: Path, *, resume: bool, restarted: bool) -> Path:
    """A run directory below `parent`: a new one, or with `resume` the latest.

    A command that torchrun has `restarted` takes the one that it began itself, and none from
    before it. Raises `UsageError` where there is nothing to resume.
    """
    numbers = [p for p in parent.iterdir() if p.name.isdecimal()] if parent.is_dir() else []
    latest = max(numbers, key=lambda p: int(p.name), default=None)
    if restarted and latest is not None and not _was_begun_by_this_command(latest):
        latest = None
    if latest is not None and resume:
        return latest
    if resume and not restarted:
        raise UsageError(
            f"--resume: {parent} has no run to resume. Give --out RUN, or remove --resume to start "
            "one."
        )
    return create_next(parent)


def _was_begun_by_this_command(path: Path) -> bool:
    """Whether a directory holds an unfinished run of this very command."""
    command = RunDirectory(path).command
    if RunDirectory(path).finished or not command.exists():
        return False
    return command.read_text().endswith(f"{command_line()}\n")


def command_line() -> str:
    """This command as a line of a shell."""
    return shlex.join(["rescue", *sys.argv[1:]])


def prepare(
    path: Path,
    recipe: Recipe,
    environment: dict[str, Any],
    *,
    resume: bool,
    look: "IdentityCache | None" = None,
    command: Sequence[str] | None = None,
) -> bool:
    """Writes what the processes of a run read; returns whether the run is new.

    Only a new run is this call's to `remove_unstarted`. With `resume` a directory of the same
    recipe is accepted, see `reserve`. `command` is recorded, by default this process's own. Raises
    `UsageError` where another run must not change.
    """
    run = RunDirectory(path)
    if is_in_use(path):
        raise InUseError(path)
    new = reserve(path, recipe, resume=resume, verb=environment["verb"], look=look)
    earlier = run.command.read_text() if run.command.exists() else ""
    recorded = shlex.join(command) if command else command_line()
    write_text(run.command, f"{earlier}{recorded}\n")
    write_json(run.environment, {**environment, **_earlier(run, environment)})
    return new


def _earlier(run: RunDirectory, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the steps of a run's checkpoint were computed with, where it is something else now."""
    changed: dict[str, Any] = {}
    try:
        before = read_environment(run) if run.last.exists() else {}
    except DataError:  # it is written anew
        before = {}
    for key in LAST_BITS:
        seen = [*before.get("earlier", {}).get(key, []), before.get(key, environment[key])]
        if other := [v for at, v in enumerate(seen) if v not in [environment[key], *seen[:at]]]:
            changed[key] = other
    return {"earlier": changed} if changed else {}


def describe_change(environment: Mapping[str, Any]) -> list[str]:
    """A note for a run that resumes with other threads, another device or torch than before."""
    changed = [
        f"{key} {', '.join(map(str, seen))} (now {environment.get(key)})"
        for key, seen in environment.get("earlier", {}).items()
    ]
    if not changed:
        return []
    return [
        f"earlier steps ran with {'; '.join(changed)}: "
        "the weights will differ from an uninterrupted run's in their last bits"
    ]


def reserve(
    path: Path,
    recipe: Recipe,
    *,
    resume: bool,
    verb: str = "train",
    look: "IdentityCache | None" = None,
) -> bool:
    """Writes the recipe, or checks it against an existing one; returns whether it is new.

    Raises `UsageError` where there is another recipe, or any without `resume`, or files that are
    not of a run. Recipes that differ only in where data and weights lie are the same recipe if the
    content is the same; else raises `DataError`. `look` keeps what was read of the data already.
    """
    run = RunDirectory(path)
    if run.recipe.exists():
        if not resume:
            more = "" if verb == "eval" else ", or --resume"
            raise UsageError(f"{path}: holds a run already. Use another --out{more}.")
        changed = differences(recipe_in(path).tree, recipe.tree)
        changed = {k: pair for k, pair in changed.items() if not _is_same_folder(k, *pair)}
        other = {k: pair for k, pair in changed.items() if not is_path(k, *pair)}
        if other:
            listed = "; ".join(
                f"{key}: {format_recipe_value(a)} -> {format_recipe_value(b)}"
                for key, (a, b) in other.items()
            )
            raise UsageError(
                f"{path}: holds a run of another recipe: {listed}. "
                "Undo these changes, or use a new --out."
            )
        if changed:
            _relocate(run, recipe, look)
        if not run.finished:
            write_copies(path, recipe.code)
        return False
    if path.is_dir() and (foreign := [e.name for e in path.iterdir() if _is_foreign(e)]):
        raise UsageError(
            f"{path}: is not a run directory; it holds {min(foreign)}. Use a new --out."
        )
    write_copies(path, recipe.code)
    write_text(run.recipe, recipe.to_yaml())
    return True


def _relocate(run: RunDirectory, recipe: Recipe, look: "IdentityCache | None") -> None:
    """Makes a run read its data and weights from where the recipe has them now.

    A finished run keeps its recipe. Raises `DataError` where the content differs.
    """
    from rescue_cli.build.identity import IdentityCache, check_same_data

    check_same_data(run, recipe, look or IdentityCache())
    if not run.finished:
        write_text(run.recipe, recipe.to_yaml())


def _is_same_folder(key: str, a: Any, b: Any) -> bool:
    """Whether two values of a key name one folder, relative to different working directories."""
    folders = isinstance(a, str) and isinstance(b, str) and is_path(key, a, b)
    return folders and Path(a).resolve() == Path(b).resolve()


def remove_unstarted(path: Path) -> None:
    """Removes the files of a prepared run, if nothing was trained and no process works on it."""
    run = RunDirectory(path)
    trained = run.metrics.exists() and run.metrics.stat().st_size > 0
    if trained or run.last.exists() or run.finished or is_in_use(path):
        return
    if run.recipe.exists():
        remove_copies(path, recipe_in(path).code)
    prepared = (run.recipe, run.command, run.environment, run.failure, run.log, run.lock)
    for file in (*prepared, run.metrics, run.samples, run.data, run.listing):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or already gone
        path.rmdir()


def wait_until_prepared(path: Path, seconds: float = 300.0) -> None:
    """Waits for the first node to prepare the directory; raises `RescueError` if it does not."""
    end = time.monotonic() + seconds
    while not RunDirectory(path).environment.exists():
        if time.monotonic() > end:
            raise RescueError(
                f"{path}: the first machine did not prepare this directory in {seconds:.0f} s. "
                "All machines must see the same file system and be given the same --out."
            )
        time.sleep(0.2)


def _is_foreign(entry: Path) -> bool:
    """Whether a file or folder means that its folder is used for something else than a run."""
    name = entry.name
    return not (name.startswith(".") or name in LOG_FOLDERS or entry.suffix in LOG_SUFFIXES)


def is_in_use(path: Path) -> bool:
    """Whether a process on this machine works on the run directory."""
    run = RunDirectory(path)
    if not run.lock.exists():
        return False
    with run.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
