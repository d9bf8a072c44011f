"""Systems that fail around a run: it succeeds, or ends in one line that says what failed."""

import ctypes
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rescue_cli.rundir import RunDirectory
from tests.engine.test_failures import SMALL
from tests.engine.test_resume import streamed
from tests.faults.tally import Tally
from tests.helpers.processes import (
    NOT_ALLOWED,
    PATIENCE,
    Command,
    assert_same,
    saved_after,
    start,
    trained,
)
from tests.helpers.shards import write_folder

pytestmark = pytest.mark.faults
SHORT = [*SMALL, "train.epochs=3"]
OWN_MOUNTS, PRIVATE, WHOLE, BIND, REMOUNT, READ_ONLY = 0x20000, 1 << 18, 1 << 14, 4096, 32, 1


def read_only() -> None:
    """Makes the folder PLACE read-only for this process and what it starts."""
    library, place = ctypes.CDLL(None), os.environ["PLACE"].encode()
    if library.unshare(OWN_MOUNTS) or library.mount(b"none", b"/", None, PRIVATE | WHOLE, None):
        os._exit(NOT_ALLOWED)
    library.mount(place, place, None, BIND, None)
    if library.mount(None, place, None, BIND | REMOUNT | READ_ONLY, None):
        os._exit(NOT_ALLOWED)


def no_home() -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        os.environ.pop(name, None)


def day_before() -> None:
    """The clock was set back since the run was saved."""
    now = time.time
    time.time = lambda: now() - 86_400


def outcome(command: Command, run: Path) -> str:
    """`valid` or `refused`; raises `AssertionError` where it ends in another way."""
    command.process.join(PATIENCE)
    code, told = command.process.exitcode, command.stderr.read_text(errors="replace")
    if code == NOT_ALLOWED:
        pytest.skip("mounting is not allowed here")
    assert "Traceback" not in told, told[-3000:]
    assert code in (0, 1, 2, 3), (code, told[-2000:])
    assert told.count("error: ") == (code != 0), told[-2000:]
    assert not list(run.rglob("*.partial"))
    return "refused" if code else "valid"


def count(tally: Tally, case: object, command: Command, run: Path) -> bool:
    """Adds the outcome to the tally; whether the run went well."""
    try:
        found = outcome(command, run)
    except AssertionError as error:
        tally.fail(case, str(error))
        return False
    setattr(tally, found, getattr(tally, found) + 1)
    return found == "valid"


def train(
    run: Path,
    *,
    environment: Mapping[str, str] | None = None,
    largest_file: int | None = None,
    change: Callable[[], None] | None = None,
) -> Command:
    """Starts or goes on with the run."""
    words = ["train", "--resume", "--out", run, *SHORT]
    told = run.with_name(f"{run.name}-told")
    return start(words, told, environment=environment, largest_file=largest_file, change=change)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reference") / "run"
    train(run).ends(0)
    return run


def test_full_disks(reference: Path, tally: Tally) -> None:
    """The system writes no file beyond a size, which is any up to that of the largest."""
    largest = max(file.stat().st_size for file in reference.rglob("*"))
    draw = random.Random(0)
    for case in range(12):
        run = tally.folder / str(case)
        limit = int(largest ** draw.uniform(0.4, 1))
        if not count(tally, f"{limit} bytes", train(run, largest_file=limit), run):
            train(run).ends(0)
        assert_same(run, reference)


@pytest.mark.parametrize("place", ["run", "parent", "cache", "home", "temporary"])
def test_read_only(place: str, reference: Path, tally: Tally) -> None:
    run = tally.folder / "runs" / "run"
    folders = {
        "run": run, "parent": run.parent, "cache": tally.folder / "cache",
        "home": tally.folder / "home", "temporary": tally.folder / "temporary",
    }  # fmt: skip
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    if place == "run":  # which was begun before
        command = train(run)
        command.until(saved_after(run, 3))
        command.kill()
    environment = {
        "PLACE": str(folders[place]), "XDG_CACHE_HOME": str(folders["cache"]),
        "HOME": str(folders["home"]), "TMPDIR": str(folders["temporary"]),
    }  # fmt: skip
    image = next(write_folder(tally.folder / "images").rglob("*.jpg"))
    if count(tally, place, train(run, environment=environment, change=read_only), run):
        assert_same(run, reference)
    words = ["eval", reference, "--out", tally.folder / "out"]
    command = start(words, tally.folder / "e", environment=environment, change=read_only)
    count(tally, "eval", command, tally.folder)
    words = ["predict", reference, image]
    command = start(words, tally.folder / "p", environment=environment, change=read_only)
    count(tally, "predict", command, tally.folder)


@pytest.mark.parametrize("home", ["none", "/nonexistent", ""])
def test_no_home(home: str, reference: Path, tally: Tally) -> None:
    run = tally.folder / "run"
    change = no_home if home == "none" else None
    environment = {} if home == "none" else {"HOME": home, "XDG_CACHE_HOME": "", "TMPDIR": ""}
    if count(tally, home, train(run, environment=environment, change=change), run):
        assert_same(run, reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_shared_memory(workers: int, tally: Tally) -> None:
    """Nothing can be made in /dev/shm."""
    run, root = tally.folder / "run", write_folder(tally.folder / "images")
    words = ["train", "--workers", workers, "--out", run, *streamed(root)]
    environment = {"PLACE": "/dev/shm"}
    command = start(words, tally.folder / "told", environment=environment, change=read_only)
    count(tally, f"{workers} workers", command, run)


def test_clock_set_back(reference: Path, tally: Tally) -> None:
    run = tally.folder / "run"
    command = train(run)
    command.until(saved_after(run, 5))
    command.kill()
    for file in run.rglob("*"):
        os.utime(file, (time.time() + 90_000,) * 2)
    if count(tally, "resume", train(run, change=day_before), run):
        assert_same(run, reference)


def test_two_runs_at_once(reference: Path, tally: Tally) -> None:
    draw = random.Random(0)
    for case in range(6):
        run = tally.folder / str(case)
        first = train(run)
        if case % 2:
            first.until(trained(run, draw.randrange(1, 4)))
        words = ["train", "--resume", "--out", run, *SHORT]
        second = start(words, tally.folder / f"{case}-second")
        for command in (first, second):
            count(tally, case, command, run)
        assert_same(run, reference)
        assert RunDirectory(run).result.exists()
