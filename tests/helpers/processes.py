"""Starts the real command in processes of its own, and compares finished runs bit for bit.

Each process is forked from one that holds torch already, so that a start takes a fraction of a
second, and can be stopped or killed at a chosen moment like any other.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_json, read_metrics
from rescue_cli.runs.directory import prepare
from rescue_cli.runs.environment import describe_environment
from rescue_cli.sections.data import Dataset, Images

CLOCK = ("seconds", "images_per_second", "waiting")  # what no two runs share in a line of metrics
PATIENCE = 120.0  # seconds that anything may take on a busy machine
NOT_ALLOWED = 77  # exit code where a test may not mount
_fork = multiprocessing.get_context("fork")
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "rescue_cli.cli",
        "rescue_cli.cli.train",
        "rescue_cli.runs.worker",
        "rescue_cli.report.pictures",
        # what a run imports on its way
        "matplotlib.backends.backend_agg",
        "scipy.stats",
        "timm",
        "torch._dynamo",
        "torchvision.models.detection",
    ]
)


@dataclass(frozen=True)
class Command:
    """A process that runs `rescue` or one worker of it; what it printed is in two files."""

    process: BaseProcess
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def hold(self) -> None:
        """SIGSTOP, and waits until the process stands still."""
        self.send(signal.SIGSTOP)
        self.until(lambda: state_of(self.pid) == "T")

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        self.process.kill()
        self.process.join(PATIENCE)

    def ends(self, exit_code: int) -> str:
        """What it wrote on stderr, once it has ended with this code."""
        self.process.join(PATIENCE)
        message = self.stderr.read_text(errors="replace")
        assert self.process.exitcode == exit_code, (self.process.exitcode, message[-3000:])
        return message

    def result(self) -> dict[str, Any]:
        """The object that `--json` printed."""
        found: dict[str, Any] = json.loads(self.stdout.read_text())
        return found

    def until(self, happened: Callable[[], bool]) -> None:
        """Waits for a moment in the life of the run."""
        end = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.is_alive(), self.stderr.read_text(errors="replace")[-3000:]
            assert time.monotonic() < end, "the moment never came"
            time.sleep(0.004)

    def workers(self) -> dict[int, int]:
        """The pid of each rank that torchrun started for it."""
        ranks = {pid: rank_of(pid) for pid in descendants(self.pid)}
        return {rank: pid for pid, rank in ranks.items() if rank is not None}


def until_gone(pids: Sequence[int]) -> None:
    """Waits for the end of the processes, which would else outlive what started them."""
    end = time.monotonic() + PATIENCE
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, f"{pids} live on"
        time.sleep(0.02)


def start(
    arguments: Sequence[object],
    output: Path,
    *,
    environment: Mapping[str, str] | None = None,
    largest_file: int | None = None,
    shared_memory: str = "",
    cores: int = 1,
    worker: bool = False,
    folder: Path | None = None,
    change: Callable[[], None] | None = None,
) -> Command:
    """Starts `rescue ARGUMENTS...` in that folder; what it prints goes to files named after `told`.

    `largest_file` is a limit in bytes, at which the system refuses to write on; `shared_memory` is
    the size of a /dev/shm of its own, as `mount_shared_memory` has it. The process sees so many
    `cores`, and takes as many threads. With `worker` the arguments are those of
    `python -m rescue_cli.runs.worker`. The process calls `change`, a function of a module, first.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    stdout, stderr = output.with_suffix(".out"), output.with_suffix(".err")
    words = [str(a) for a in arguments]
    surroundings = {**os.environ, **(environment or {})}
    limits = (largest_file, shared_memory, cores)
    given = (words, stdout, stderr, surroundings, limits, worker, folder, change)
    process = _processes.Process(target=_run, args=given)
    process.start()
    return Command(process, stdout, stderr)


def _run(
    arguments: list[str],
    stdout: Path,
    stderr: Path,
    environment: dict[str, str],
    limits: tuple[int | None, str, int],
    worker: bool,
    folder: Path | None,
    change: Callable[[], None] | None,
) -> None:
    from rescue_cli.__main__ import main
    from rescue_cli.runs import pool
    from rescue_cli.runs import worker as worker_module

    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in (stdout, stderr)]
    _become(["rescue", *arguments], environment, dict(zip((1, 2), files, strict=True)))
    if folder is not None:
        os.chdir(folder)
    largest_file, shared_memory, cores = limits
    allowed = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(allowed)
    os.sched_setaffinity(0, [*allowed[first:], *allowed[:first]][:cores])
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if shared_memory and not mount_shared_memory(shared_memory):
        sys.exit(NOT_ALLOWED)
    setattr(pool, "_start_process", lambda given: ForkedWorker(given, _fork))  # noqa: B010
    if change is not None:
        change()
    worker_module.main() if worker else main()


def mount_shared_memory(size: str) -> bool:
    """Gives this process and what it starts a /dev/shm of so much (`64m`); whether it may."""
    library = ctypes.CDLL(None)
    own_mounts, private, whole = 0x20000, 1 << 18, 1 << 14  # CLONE_NEWNS, MS_PRIVATE, MS_REC
    if library.unshare(own_mounts) or library.mount(b"none", b"/", None, private | whole, None):
        return False
    options = f"size={size}".encode()
    return bool(library.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options) == 0)


def may_mount() -> bool:
    """Whether tests may make a /dev/shm of their own."""
    process = _processes.Process(target=_try_to_mount)
    process.start()
    process.join(PATIENCE)
    return process.exitcode == 0


def _try_to_mount() -> None:
    sys.exit(0 if mount_shared_memory("1m") else NOT_ALLOWED)


def _become(words: list[str], environment: Mapping[str, str], files: Mapping[int, int]) -> None:
    """Makes of a forked process what it would be had it been executed; `files` are its streams."""
    os.environ.clear()
    os.environ.update(environment)
    for number, file in files.items():
        os.dup2(file, number)
        stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
        setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = words


def group_of(
    count: int,
    run: Path,
    recipe: Recipe,
    output: Path,
    *,
    workers: int = 0,
    shared_memory: str = "",
    change: Callable[[], None] | None = None,
) -> list[Command]:
    """`count` processes that begin a run or go on with it, in a group over gloo without torchrun.

    Each has one thread, since sums depend on their number, and so many loader `workers`. It calls
    `change` first.
    """
    cache = run.with_name("cache")
    facts = describe_environment(
        verb="train",
        seed=recipe.train.seed,
        device="cpu",
        procs=count,
        workers=workers,
        cache=cache,
    )
    run.mkdir(exist_ok=True)
    prepare(run, recipe, {**facts, "threads": 1}, resume=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            [run],
            output.with_name(f"{output.name}-{rank}"),
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            shared_memory=shared_memory,
            worker=True,
            change=change,
        )
        for rank in range(count)
    ]


class ForkedWorker:
    """What `rescue_cli.runs.pool` knows of the process that it starts; forked as above.

    A command that was forked itself forks its workers, which end with it.
    """

    def __init__(
        self, environment: Mapping[str, str], context: ForkContext | ForkServerContext = _processes
    ) -> None:
        theirs, mine = (context.Pipe(duplex=False) for _ in range(2))
        inherited = (theirs[1], mine[0]) if context is _fork else ()
        given = (theirs[0], mine[1], dict(environment), os.getpid(), inherited)
        self.process: BaseProcess = context.Process(target=_serve, args=given)
        self.process.start()
        self.stdin = os.fdopen(os.dup(theirs[1].fileno()), "w")
        self.stdout = os.fdopen(os.dup(mine[0].fileno()))
        for end in (*theirs, *mine):
            end.close()

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "a worker lives on"
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def send_signal(self, number: int) -> None:
        assert number == signal.SIGTERM, "the pool sends no other"
        self.terminate()


def _serve(
    words: Connection,
    answers: Connection,
    environment: dict[str, str],
    parent: int,
    inherited: tuple[Connection, ...],
) -> None:
    from rescue_cli import lifetime
    from rescue_cli.runs import worker

    if inherited:
        lifetime.end_with(parent)
    for end in inherited:
        end.close()
    os.setsid()
    files = {0: words.fileno(), 1: answers.fileno(), 2: os.open(os.devnull, os.O_WRONLY)}
    _become(["rescue_cli.runs.worker", "-"], environment, files)
    words.close()
    answers.close()
    worker.main()


# --- moments ---


def last_step(run: Path, kind: str) -> int:
    """The step of the last line of that kind in the run's metrics, else -1."""
    lines = read_metrics(RunDirectory(run).metrics)
    return max((line["step"] for line in lines if line["kind"] == kind), default=-1)


def trained(run: Path, step: int) -> Callable[[], bool]:
    """The moment when the losses up to `step` are on record."""
    return lambda: last_step(run, "train") >= step


def saved_after(run: Path, step: int) -> Callable[[], bool]:
    """The moment when a checkpoint has been written since the losses of `step` were."""
    on_record, last = trained(run, step), RunDirectory(run).last

    def written() -> float:
        return last.stat().st_mtime if last.exists() else 0.0

    before: list[float] = []

    def happened() -> bool:
        if not before and on_record():
            before.append(written())
        return bool(before) and written() > before[0]

    return happened


def saved_step(run: Path) -> int:
    step: int = checkpoint_of(run)["progress"]["step"]
    return step


def checkpoint_of(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(RunDirectory(run).last, weights_only=True)
    return state


def held_while_evaluating(run: Path, command: Command, per_epoch: int) -> int:
    """Holds the process in the evaluation at the end of an epoch; the step at which that is.

    On a busy machine one may be over before it is seen; then the next one will do.
    """
    while True:
        step = per_epoch * (last_step(run, "train") // per_epoch + 1)
        command.until(trained(run, step))
        command.hold()
        if (last_step(run, "train"), last_step(run, "eval")) == (step, step - per_epoch):
            return step
        command.send(signal.SIGCONT)


@contextlib.contextmanager
def stuck_while_saving(run: Path, command: Command) -> Iterator[None]:
    """Holds the process in the middle of writing its next checkpoint.

    Its temporary file is a pipe here, which takes 64 KB and then makes the writer wait. On leaving,
    what got through lies there in its place, as a kill at that moment leaves it.
    """
    pipe = RunDirectory(run).last.with_name(f".last.pt.{command.pid}.partial")
    command.until(lambda: _is_pipe(pipe))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    written = b""

    def some() -> bool:
        nonlocal written
        with contextlib.suppress(BlockingIOError):
            written += os.read(reader, 4096)
        return len(written) >= 4096

    command.until(some)
    yield
    os.close(reader)
    pipe.unlink()
    pipe.write_bytes(written)


def _is_pipe(path: Path) -> bool:
    """Whether the pipe could be put there: not while the process has the name in use."""
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.mkfifo(path)
        return True
    return False


def steps_at(seed: int, count: int, low: int, high: int) -> list[int]:
    """`count` random steps in ascending order, the same in every run of the tests."""
    return sorted(random.Random(seed).sample(range(low, high), count))


# --- outcomes ---


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves behind and that does not depend on the clock."""
    directory = RunDirectory(run)
    state = checkpoint_of(run)
    progress = {k: v for k, v in state["progress"].items() if not k.startswith("seconds")}
    result = {k: v for k, v in read_json(directory.result).items() if k not in _PHYSICAL}
    with np.load(directory.predictions("test" if _has(run, "test") else "val")) as file:
        predictions = {name: file[name].tobytes() for name in file.files}
    return {
        "weights": _plain(load_file(directory.weights)),
        "state": _plain({**state, "progress": progress}),
        "best": _plain(torch.load(directory.best, weights_only=True)),
        "metrics": metrics_of(run),
        "result": result,
        "predictions": predictions,
    }


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of the run's metrics without what the clock says."""
    lines = read_metrics(RunDirectory(run).metrics)
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def assert_same(run: Path, reference: Path) -> None:
    """Bit for bit: weights, buffers, optimizer, averages, metrics, result, predictions."""
    mine, other = outcome(run), outcome(reference)
    for part in mine:
        assert mine[part] == other[part], f"{part} differs from the run that was not interrupted"


_PHYSICAL = (
    "run",
    "images_per_second",
    "peak_memory_mb",
    "seconds_train",
    "seconds_prepare",
    "seconds_eval",
)


def _has(run: Path, name: str) -> bool:
    return RunDirectory(run).predictions(name).exists()


def _plain(value: Any) -> Any:
    """Tensors as their bytes, so that `==` is bitwise."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def random_dataset(channels: int, pixels: int, count: int) -> Dataset:
    """Images of ten classes, drawn from a fixed seed: no file is needed."""
    draws = np.random.Generator(np.random.Philox(key=2012))
    shape = (count, channels, pixels, pixels)
    images = Images(draws.integers(0, 256, shape, dtype=np.uint8), draws.integers(0, 10, count))
    return Dataset(images, {"test": images}, tuple("abcdefghij"))


def corrupt_test_file(folder: Path) -> tuple[list[str], Path]:
    """Overrides for a run on images in `folder`, and the file that is cut off: one of the second
    batch of test images, which is rank 1's.
    """
    for number in range(16):
        for split in ("train", "val"):
            path = folder / split / "ab"[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number, 9, 9)).save(path)
    bad = folder / "val" / "b" / "15.png"
    bad.write_bytes(bad.read_bytes()[:50])
    return [
        f"data={{name: folder, train_root: {folder}/train, test_root: {folder}/val}}",
        *("model.name=test_resnet", "data.train_size=32", "eval.sizes=[32]", "eval.batch_size=8"),
        *("train.batch_size=8", "train.device_batch_size=4", "train.epochs=1"),
    ], bad


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    return state_of(pid) not in (None, "Z")


def state_of(pid: int) -> str | None:
    """The letter that Linux has for what a process does; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def descendants(pid: int) -> list[int]:
    """The processes below a process, by their parents in /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(parents.get(pid, []))
    for child in found:
        found += parents.get(child, [])
    return found


def rank_of(pid: int) -> int | None:
    """The rank in a process's environment."""
    with contextlib.suppress(OSError):
        block = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(word[5:]) for word in block if word.startswith(b"RANK=")]
        return ranks[0] if ranks else None
    return None
