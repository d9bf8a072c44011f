"""The processes of a group: the first says on which run directory, and all work on it.

The first does what its command says, and the others do with it what it works on: it names a run
directory to them, all train or evaluate it, and at the end all leave with its exit code.
"""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rescue_cli.errors import InUseError, RescueError, StoppedError, UsageError, from_code
from rescue_cli.rundir import RunDirectory, read_environment, word_of
from rescue_cli.runs.launcher import BY_HAND, Start
from rescue_cli.runs.rendezvous import LOOK_SECONDS, gone, there

WATCH_SECONDS = 0.5  # between looks at whether one of them has failed
PREPARE_SECONDS = 60.0  # for a new folder to be seen through a network's file system
LOST_SECONDS = 2.0  # for the others, once one has ended without a word
LAST_SECONDS = 10.0  # for the others to say how a run failed, and for all to leave


@dataclass
class Group:
    """This process among those that do the same; `store` is where they tell each other."""

    start: Start
    store: Any
    members: list[dict[str, Any]]  # what each says of itself, by rank
    lost: list[int] = field(default_factory=list)  # see `meeting.tie`
    runs: int = 0

    def __str__(self) -> str:
        by = "" if self.start.starter == BY_HAND else f" of {self.start.starter}"
        return f"{self.start.size} processes{by}"

    @property
    def threads(self) -> int:
        """What each may take of the cores that it has, alone or with others on its machine."""
        held: list[tuple[str, set[int]]] = [(m["host"], set(m["cores"])) for m in self.members]
        return min(
            max(1, len(cores) // sum(host == h and bool(cores & c) for h, c in held))
            for host, cores in held
        )

    @property
    def local_rank(self) -> int:
        """This process's number among those on its machine."""
        hosts: list[str] = [m["host"] for m in self.members]
        return hosts[: self.start.rank].count(hosts[self.start.rank])

    def demand_same_words(self) -> None:
        """Raises `UsageError` where one of them was started with another command line."""
        first = self.members[0]["words"]
        for rank, member in enumerate(self.members):
            if member["words"] != first:
                raise UsageError(
                    f"{self.named(rank)} was started with '{' '.join(member['words'])}', and "
                    f"rank 0 with '{' '.join(first)}'. Start all with the same. For runs of their "
                    f"own, in each task: unset {' '.join(self.start.variables)}."
                )

    def named(self, rank: int) -> str:
        return f"rank {rank} (pid {self.members[rank]['pid']} on {self.members[rank]['host']})"

    def tell(self, key: str, value: Any) -> None:
        """Raises `RescueError` where the store is gone."""
        try:
            self.store.set(key, json.dumps(value))
        except RuntimeError:
            raise gone() from None

    def hear(self, key: str) -> Any:
        """What somebody tells, whenever that is; raises `RescueError` where the store is gone."""
        while not there(self.store, key):
            time.sleep(LOOK_SECONDS)
        return json.loads(self.store.get(key))

    def answers(self, kind: str, seconds: float) -> dict[int, Any]:
        """What the others answer by rank, of those that live and do in so many seconds."""
        waiting, found = set(range(1, self.start.size)), {}
        end = time.monotonic() + seconds
        while waiting and time.monotonic() < end:
            lost = {*self.lost}  # before the look at what they said last
            for rank in [r for r in waiting if there(self.store, f"{kind}/{r}")]:
                found[rank] = json.loads(self.store.get(f"{kind}/{rank}"))
                waiting.remove(rank)
            waiting -= lost
            time.sleep(LOOK_SECONDS)
        return found

    def work_on(self, path: Path) -> None:
        """All work on a prepared run directory, this one too; raises what went wrong first."""
        number, self.runs = self.runs, self.runs + 1
        if number == 0:
            print(f"{self} work on this together", file=sys.stderr, flush=True)
        self.tell(f"order/{number}", {"run": str(path.resolve())})
        self._become(number)
        problem = self._unprepared(path, self.answers(f"ready/{number}", PREPARE_SECONDS))
        self.tell(f"go/{number}", problem is None)
        if problem is not None:
            raise UsageError(problem)
        error = self._work(number, path)
        patience = PREPARE_SECONDS if error is None else self._last_seconds
        first = self._first_failure(path, error, self.answers(f"done/{number}", patience))
        if first is not None:
            raise first from None

    @property
    def _last_seconds(self) -> float:
        return LOST_SECONDS if self.lost else LAST_SECONDS

    def _become(self, number: int) -> None:
        from rescue_cli import distributed

        start = self.start
        distributed.set_membership(self.store, start.rank, start.size, self.local_rank, number)

    def _work(self, number: int, path: Path) -> Exception | None:
        """What this process failed of, as the others are told, whose part it then cannot do."""
        from rescue_cli.runs.failure import leaving_word
        from rescue_cli.runs.worker import work

        with self._not_left_alone(number, path):
            try:
                with leaving_word(RunDirectory(path)):
                    work(path)
            except Exception as error:
                if not isinstance(error, StoppedError):  # of which all know
                    with contextlib.suppress(RescueError):  # who kept the store may be gone
                        self.tell(f"failed/{number}", code_of(error))
                return error
        return None

    @contextlib.contextmanager
    def _not_left_alone(self, number: int, path: Path) -> Iterator[None]:
        """Ends this process where another one fails and this one waits for it, as NCCL would."""
        from rescue_cli import distributed

        start, over = self.start, threading.Event()
        # of its own: the main thread may wait in the other one
        store = distributed.create_store(start.host, start.port, serves=False, seconds=30)
        store = distributed.prefix_store(store, f"rescue/{start.attempt}")

        def watch() -> None:
            end = math.inf
            while time.monotonic() < end:
                if over.wait(WATCH_SECONDS):
                    return
                end = min(end, time.monotonic() + self._patience(store, number))
            first = self._first_failure(path, None, {})
            if start.rank == 0:
                print(f"error: {first}", file=sys.stderr)
                self.store = store
                self.dismiss(code_of(first))
            leave(code_of(first))

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _patience(self, store: Any, number: int) -> float:
        """How many seconds this one may still work, as the others do."""
        if 0 in self.lost:
            return LOST_SECONDS
        try:
            # one that has done its part may have left while the first still saves
            if not all(there(store, f"done/{number}/{rank}") for rank in self.lost):
                return LOST_SECONDS
            return LAST_SECONDS if there(store, f"failed/{number}") else math.inf
        except RescueError:  # the first one is gone
            return LOST_SECONDS

    def _unprepared(self, path: Path, answers: dict[int, Any]) -> str | None:
        """Why they cannot begin: what one of them lacks, or a GPU that two of them have."""
        found = {0: _ready(path), **answers}
        for rank in range(self.start.size):
            if rank not in found:
                return f"{self.named(rank)} does not answer. Start all of them anew."
            if found[rank]["error"]:
                return f"{self.named(rank)}: {found[rank]['error']}"
        at: dict[Any, int] = {}
        for rank, said in sorted(found.items()):
            gpu = said["gpu"] and (self.members[rank]["host"], said["gpu"])
            if gpu and gpu in at:
                return (
                    f"{self.named(at[gpu])} and {self.named(rank)} see the same GPU alone. Start "
                    "as many processes as there are GPUs, or use --device cpu."
                )
            at[gpu] = rank
        return None

    def _first_failure(
        self, path: Path, error: Exception | None, codes: dict[int, Any]
    ) -> Exception | None:
        """What went wrong first: what this one stopped of, else the word left, else who left none.

        `codes` are the others' by rank.
        """
        if isinstance(error, StoppedError | InUseError):
            return error
        lost = [rank for rank in range(1, self.start.size) if codes.get(rank, 1)]
        if error is None and not lost:
            return None
        if (word := word_of(RunDirectory(path))) is not None:
            return from_code(f"rank {word.rank}: {word.message}", word.exit_code)
        if not lost:
            return error
        first = next((rank for rank in self.lost if rank in lost), lost[0])
        return RescueError(
            f"{self.named(first)} ended and left no word. Where memory ran out, use smaller "
            "micro-batches. Go on with --resume."
        )

    def dismiss(self, code: int) -> None:
        """All leave with this code, the others first."""
        _leave_in_peace()
        with contextlib.suppress(RescueError, RuntimeError):
            self.tell(f"order/{self.runs}", {"exit": code})
            self.answers("left", self._last_seconds)

    def follow(self) -> int:
        """Does what the first process says, until it says with which code to leave."""
        signal.signal(signal.SIGTERM, _terminated)
        rank = self.start.rank
        while True:
            number, self.runs = self.runs, self.runs + 1
            order = self.hear(f"order/{number}")
            if "exit" in order:
                _leave_in_peace()
                self.tell(f"left/{rank}", None)
                return int(order["exit"])
            path = Path(order["run"])
            self._become(number)
            self.tell(f"ready/{number}/{rank}", _ready(path))
            if self.hear(f"go/{number}"):
                self.tell(f"done/{number}/{rank}", code_of(self._work(number, path)))


def code_of(error: Exception | None) -> int:
    """The exit code of a command that ends with this error, or without any."""
    if error is None:
        return 0
    return error.exit_code if isinstance(error, RescueError) else 1


def leave(code: int) -> NoReturn:
    """As `worker.main` does, without what the interpreter would still take down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_in_peace() -> None:
    """torchrun ends all others as soon as one has left with an error; all of them leave with it."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _terminated(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _ready(path: Path) -> dict[str, Any]:
    """Whether this process sees the prepared directory, and by which GPU it is going to compute."""
    from rescue_cli.runs.processes import wait_for

    try:
        wait_for(path, PREPARE_SECONDS / 2)
        if read_environment(RunDirectory(path))["device"] != "cuda":
            return {"error": None, "gpu": None}
        return {"error": None, "gpu": _gpu()}
    except RescueError as error:
        return {"error": str(error), "gpu": None}


def _gpu() -> str:
    import torch

    from rescue_cli import distributed

    if not torch.cuda.is_available():
        raise UsageError("there is no GPU for it. Use --device cpu, or give it one.")
    return str(torch.cuda.get_device_properties(distributed.gpu_index()).uuid)
