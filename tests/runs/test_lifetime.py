"""After the kill of any one process of a run, at any stage of its start, none of it lives on."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescue_cli import recipe as recipes
from rescue_cli.runs.directory import prepare
from rescue_cli.runs.environment import describe_environment
from tests.helpers.processes import PATIENCE, alive

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

MARK = "RESCUE_TEST_RUN"  # in the environment of a run's processes, whoever has adopted them
MISSED = 3  # epochs, after which a loader that is still wanted is missed
STARTS = 8.0  # seconds in which a process imports torch, joins a group and starts its workers


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, read by loader workers."""
    root = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(32):
            path = root / split / "ab"[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path)
    return root


def endless(photos: Path) -> list[str]:
    """A recipe that is still at work whenever it is killed."""
    return [
        f"data={{name: folder, train_root: {photos}/train, test_root: {photos}/val}}",
        *("model.name=test_resnet", "data.train_size=32", "eval.sizes=[32]"),
        *("train.batch_size=8", "train.device_batch_size=4", "train.epochs=3000"),
    ]


def command(verb: str, photos: Path, folder: Path) -> list[str]:
    """The words of a run that starts processes of each kind."""
    recipe = ["--recipe", "pytorch", *endless(photos)]
    python = [sys.executable, "-m"]
    many = ["rescue_cli", "seed-sweep", "--seeds", "3", "--jobs", "2", "--workers", "1"]
    if verb == "torchrun":
        run = folder / "run"
        made = recipes.load("pytorch", endless(photos))
        facts = describe_environment(
            verb="train", seed=0, device="cpu", procs=2, workers=1, cache=folder / "cache"
        )
        prepare(run, made, {**facts, "threads": 1}, resume=False)
        agent = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        agent += ["--rdzv-endpoint", "localhost:0"]
        return [*python, *agent, "-m", "rescue_cli.runs.worker", str(run)]
    if verb == "study":
        file = folder / "small.yaml"
        cell = "{recipe: pytorch, set: [optim.lr=0.%d], label: [small], paper: {top1: 50.0}}"
        file.write_text(
            "name: small\npaper: {title: none, url: none, table: none}\n"
            f"columns: {{rate: optim.lr}}\ncells:\n  - {cell % 1}\n  - {cell % 2}\n"
        )
        options = ["--jobs", "2", "--workers", "1", "--seeds", "1", "--out", str(folder / "out")]
        return [*python, "rescue_cli", "study", str(file), *options, *endless(photos)]
    if verb == "seed-sweep":
        return [*python, *many, "--out", str(folder / "out"), *recipe]
    if verb == "bench":
        words = ["rescue_cli", "bench", "step", "--against", "plain", "--steps", "5000"]
        return [*python, *words, "--device", "cpu", "--recipe", "quickstart"]
    procs = [] if verb == "train" else ["--procs", "2"]
    train = ["rescue_cli", "train", "--device", "cpu", "--workers", "1", *procs]
    return [*python, *train, "--out", str(folder / "run"), *recipe]


@dataclass(frozen=True)
class Run:
    """A command whose processes are found by a mark in their environment."""

    process: subprocess.Popen[bytes]
    mark: str
    output: Path

    def living(self) -> dict[int, str]:
        """The kind of each of its processes: as started, or `loader` where it was forked."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and self.mark in _read(entry / "environ"):
                pid = int(entry.name)
                if alive(pid):
                    found[pid] = self._kind(pid)
        return found

    def _kind(self, pid: int) -> str:
        words, parent = _read(Path(f"/proc/{pid}/cmdline")), _parent(pid)
        if pid == self.process.pid:
            return "launcher"
        if parent not in (0, 1) and _read(Path(f"/proc/{parent}/cmdline")) == words:
            return "loader"
        for kind in ("rescue_cli.runs.worker", "timed_process", "rescue_cli"):
            if kind in words:
                return {"rescue_cli.runs.worker": "worker"}.get(kind, kind)
        return "other"

    def epochs(self) -> int:
        return self.output.read_text().count("epoch ")

    def until(self, happened: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        end = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def below(self, pid: int) -> list[int]:
        living = self.living()
        children = [child for child in living if _parent(child) == pid]
        return [pid, *children]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


@contextlib.contextmanager
def running(words: Sequence[str], folder: Path) -> Iterator[Run]:
    """The command at work; on leaving nothing of it is."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    output = folder / "told.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
        )
    run = Run(process, mark, output)
    try:
        yield run
    finally:
        for pid in run.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def killed(verb: str, kind: str, wait: float, choice: float, photos: Path, folder: Path) -> float:
    """Kills a process of that kind so many seconds after there is one; how long the rest lived.

    Of a loader that had done its work, which is not missed, the run goes on.
    """
    with running(command(verb, photos, folder), folder) as run:

        def there() -> list[int]:
            return sorted(pid for pid, found in run.living().items() if found == kind)

        def is_due() -> bool:
            assert run.process.poll() is None, run.output.read_text()[-3000:]
            return bool(there())

        assert run.until(is_due), f"no {kind} of {verb}"
        run.until(lambda: False, wait)
        while not (victims := there()):  # those of an evaluation come and go
            assert run.until(is_due), f"no {kind} of {verb}"
        victim = victims[int(choice * len(victims))]
        mine = run.below(victim) if verb in OTHERS_GO_ON and kind != "launcher" else None
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        epochs = run.epochs()

        def gone() -> bool:
            run.process.poll()
            return not any(map(alive, mine)) if mine is not None else not run.living()

        def settled() -> bool:
            return gone() or (kind == "loader" and run.epochs() > epochs + MISSED)

        assert run.until(settled), (verb, kind, wait, run.living(), run.output.read_text()[-2000:])
        lived = time.monotonic() - started
        if run.process.poll() is None:
            os.kill(run.process.pid, signal.SIGKILL)
            assert run.until(lambda: not run.living()), (verb, run.living())
        return lived


# In a pool the others are other runs; a benchmark measures again without what had ended
OTHERS_GO_ON = ("seed-sweep", "study", "bench")
KINDS = [
    ("train", "launcher"),
    ("train", "loader"),
    ("two", "launcher"),
    ("two", "worker"),
    ("two", "loader"),
    ("torchrun", "launcher"),
    ("torchrun", "worker"),
    ("seed-sweep", "launcher"),
    ("seed-sweep", "worker"),
    ("seed-sweep", "loader"),
    ("study", "launcher"),
    ("bench", "launcher"),
    ("bench", "timed_process"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "kind", "wait"),
    [
        ("two", "launcher", None),  # as soon as its workers are there, and know of nothing yet
        ("train", "launcher", 5.0),
        ("seed-sweep", "launcher", None),
    ],
)
def test_nothing_outlives_a_killed_launcher(
    verb: str, kind: str, wait: float | None, photos: Path, tmp_path: Path
) -> None:
    if wait is not None:
        killed(verb, kind, wait, 0.0, photos, tmp_path)
        return
    with running(command(verb, photos, tmp_path), tmp_path) as run:
        assert run.until(lambda: "worker" in run.living().values()), run.output.read_text()
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        assert run.until(lambda: not run.living()), run.living()


@pytest.mark.long
def test_a_hundred_kills_at_any_stage_leave_nothing(photos: Path, tmp_path: Path) -> None:
    """How long it took is printed: 2.6 s at most on two idle cores, up to 31 s at a load of 15."""
    draws = random.Random(30)
    for number in range(100):
        verb, kind = KINDS[number % len(KINDS)]
        wait, choice = draws.uniform(0, STARTS), draws.random()
        folder = tmp_path / str(number)
        folder.mkdir()
        lived = killed(verb, kind, wait, choice, photos, folder)
        print(f"{number:3} {verb:10} {kind:9} after {wait:4.1f} s: {lived:4.1f} s", flush=True)
