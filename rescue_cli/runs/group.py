"""A command that torchrun, srun or mpirun started in several processes, which share each run.

Rank 0 executes the command. For each run it names the prepared directory to the other ranks, and
all of them train or evaluate it together. At the end all exit with rank 0's exit code.
"""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rescue_cli.errors import InUseError, RescueError, StoppedError, UsageError, from_code
from rescue_cli.rundir import (
    FailureRecord,
    RunDirectory,
    read_environment,
    read_failure,
    write_failure,
)
from rescue_cli.runs.directory import wait_until_prepared
from rescue_cli.runs.launcher import BY_HAND, GroupLaunch
from rescue_cli.runs.rendezvous import (
    ENDED_SECONDS,
    POLL_SECONDS,
    Ties,
    has_key,
    meet,
    tie,
    unreachable_store_error,
)

WATCH_SECONDS = 0.5  # between looks at whether another process has failed
PREPARE_SECONDS = 60.0  # for a new folder to appear on a network file system
FAILED_SECONDS = 10.0  # for the others to record how a run failed, and for all to exit

_current: "Group | None" = None


def current_group() -> "Group | None":
    """The group that this process is rank 0 of; None where the command was started alone."""
    return _current


def is_restarted() -> bool:
    """Whether torchrun has started this command again after a failure."""
    return _current is not None and _current.launch.attempt > 0


def requested_processes(procs: int | None, option: str = "--procs") -> tuple[int | None, str]:
    """How many processes share a run, and what says so: the option or the group's launcher.

    Raises `UsageError` where the two differ.
    """
    if _current is None:
        return procs, option
    launch = _current.launch
    if procs not in (None, launch.size):
        raise UsageError(
            f"{option}: {procs}, and this command runs as {launch.size} processes "
            f"({launch.launcher}). Remove it, or start the command once."
        )
    return launch.size, launch.launcher


def refuse_in_group(options: dict[str, bool]) -> None:
    """Raises `UsageError` for the first option that is given although the group decides it."""
    given = [option for option, is_given in options.items() if is_given]
    if given and _current is not None:
        launch = _current.launch
        raise UsageError(
            f"{given[0]}: this command runs as {launch.size} processes already "
            f"({launch.launcher}). Remove it, or start the command once."
        )


@contextlib.contextmanager
def join_group(
    launch: GroupLaunch, arguments: Sequence[str], note: Callable[[str], None]
) -> Iterator[None]:
    """Rank 0 executes the body; the other ranks follow it and exit in here.

    Raises `UsageError` where the others do not start, or were given other arguments.
    """
    from rescue_cli import distributed

    global _current
    store, members = meet(launch, arguments, note)
    # On its own machine torchrun watches its processes itself
    alone = launch.hosted and len({member["host"] for member in members}) == 1
    group = Group(launch, store, members, Ties() if alone else tie(launch, store))
    if launch.rank:
        try:
            code = group.follow()
        except SystemExit as signalled:  # see `_exit_on_signal`
            code = int(signalled.code or 0)
        exit_now(code)
    _current, code = group, 1
    try:
        group.require_same_arguments()
        yield
        code = 0
    except RescueError as error:
        code = error.exit_code
        raise
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    finally:
        _current = None
        group.dismiss(code)
        distributed.clear_membership()
    exit_now(code)


@dataclass
class Group:
    """The processes that execute one command together; they communicate through `store`."""

    launch: GroupLaunch
    store: Any
    members: list[dict[str, Any]]  # by rank: host, pid, cores, arguments
    ties: Ties = field(default_factory=Ties)
    runs: int = 0
    leave_by: float = math.inf  # when this rank must have left a failed run (time.monotonic)

    def __str__(self) -> str:
        by = "" if self.launch.launcher == BY_HAND else f" of {self.launch.launcher}"
        return f"{self.launch.size} processes{by}"

    @property
    def ended(self) -> list[int]:
        """The ranks whose processes have ended: rank 0 sees all, the others rank 0."""
        return self.ties.ended

    @property
    def threads(self) -> int:
        """Threads per process: its cores, divided among the processes that may use them."""
        held: list[tuple[str, set[int]]] = [(m["host"], set(m["cores"])) for m in self.members]
        return min(
            max(1, len(cores) // sum(host == h and bool(cores & c) for h, c in held))
            for host, cores in held
        )

    @property
    def local_rank(self) -> int:
        """This process's rank among those on its machine."""
        hosts: list[str] = [m["host"] for m in self.members]
        return hosts[: self.launch.rank].count(hosts[self.launch.rank])

    def require_same_arguments(self) -> None:
        """Raises `UsageError` where a process was started with another command line."""
        first = self.members[0]["arguments"]
        for rank, member in enumerate(self.members):
            if member["arguments"] != first:
                raise UsageError(
                    f"{self.describe(rank)} was started with '{' '.join(member['arguments'])}', "
                    f"and rank 0 with '{' '.join(first)}'. Start all with the same. For separate "
                    f"runs, in each task: unset {' '.join(self.launch.variables)}."
                )

    def describe(self, rank: int) -> str:
        return f"rank {rank} (pid {self.members[rank]['pid']} on {self.members[rank]['host']})"

    def put(self, key: str, value: Any) -> None:
        """Writes a value to the store; raises `RescueError` where rank 0 has ended."""
        try:
            self.store.set(key, json.dumps(value))
        except RuntimeError:
            raise unreachable_store_error() from None

    def get(self, key: str) -> Any:
        """Waits for a value in the store; raises `RescueError` where rank 0 has ended."""
        while not has_key(self.store, key):
            time.sleep(POLL_SECONDS)
        return json.loads(self.store.get(key))

    def collect(self, kind: str, seconds: float) -> dict[int, Any]:
        """The values that other ranks put within so many seconds; ended ranks are left out."""
        waiting, values = set(range(1, self.launch.size)), {}
        end = time.monotonic() + seconds
        while waiting and time.monotonic() < end:
            ended = {*self.ended}  # before the look at what they put last
            for rank in [r for r in waiting if has_key(self.store, f"{kind}/{r}")]:
                values[rank] = json.loads(self.store.get(f"{kind}/{rank}"))
                waiting.remove(rank)
            waiting -= ended
            time.sleep(POLL_SECONDS)
        return values

    def work_on(self, path: Path) -> None:
        """All ranks work on a prepared run directory; raises the first failure."""
        number, self.runs = self.runs, self.runs + 1
        if number == 0:
            print(f"{self} run this command together", file=sys.stderr, flush=True)
        # The others must see the directory before any process joins the run's process group, in
        # which it would wait for the others
        self.put(f"order/{number}", {"run": str(path.resolve())})
        self._become_member(number)
        problem = self._find_problem(path, self.collect(f"ready/{number}", PREPARE_SECONDS))
        self.put(f"go/{number}", problem is None)
        if problem is not None:
            raise UsageError(problem)
        error = self._work(number, path)
        patience = PREPARE_SECONDS if error is None else self._last_seconds
        first = self._first_failure(path, error, self.collect(f"done/{number}", patience))
        if first is not None:
            raise first from None

    @property
    def _last_seconds(self) -> float:
        return ENDED_SECONDS if self.ended else FAILED_SECONDS

    def _become_member(self, number: int) -> None:
        from rescue_cli import distributed

        launch = self.launch
        distributed.set_membership(self.store, launch.rank, launch.size, self.local_rank, number)

    def _work(self, number: int, path: Path) -> Exception | None:
        """Works on the run; the error, of which the others are told as they wait for this rank."""
        from rescue_cli import distributed
        from rescue_cli.runs.failure import fails_on_all_ranks, record_failure
        from rescue_cli.runs.worker import work

        self.leave_by = math.inf
        with self._exit_with_the_others(number, path):
            try:
                with record_failure(RunDirectory(path)):
                    work(path)
            except Exception as error:
                if not isinstance(error, StoppedError):  # on which all ranks have agreed
                    with contextlib.suppress(RescueError):  # rank 0, with the store, may have ended
                        self.put(f"failed/{number}", code_of(error))
                # The next run needs a group of its own. This may wait for ranks in a collective,
                # for as long as the context around it allows.
                self.leave_by = time.monotonic() + distributed.LEAVE_SECONDS
                distributed.leave_failed_group(together=fails_on_all_ranks(error))
                return error
        return None

    @contextlib.contextmanager
    def _exit_with_the_others(self, number: int, path: Path) -> Iterator[None]:
        """Ends this process where another has failed, and this one waits for it in a collective, or
        takes too long to leave the run's process group.
        """
        from rescue_cli import distributed

        launch, over = self.launch, threading.Event()
        # A second connection: the main thread may block in the first one
        store = distributed.create_store(launch.host, launch.port, serves=False, seconds=30)
        store = distributed.prefix_store(store, f"rescue/{launch.attempt}")

        patience = math.inf

        def ask() -> None:
            nonlocal patience
            while not over.wait(WATCH_SECONDS):
                patience = self._patience(store, number)

        def watch() -> None:
            end = math.inf
            while time.monotonic() < min(end, self.leave_by):
                if over.wait(WATCH_SECONDS):
                    return
                # Of the store on a machine that is gone, an answer may never come
                end = min(end, time.monotonic() + (ENDED_SECONDS if 0 in self.ended else patience))
            first = self._first_failure(path, None, {})
            if launch.rank == 0 or 0 in self.ended:
                print(f"error: {first}", file=sys.stderr)
            if launch.rank == 0:
                self.store = store
                self.dismiss(code_of(first))
            exit_now(code_of(first))

        for target in (ask, watch):
            threading.Thread(target=target, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _patience(self, store: Any, number: int) -> float:
        """For how many more seconds this rank may work, by what the store has of the others."""
        try:
            # A rank that has done its part may have exited while rank 0 still saves
            if not all(has_key(store, f"done/{number}/{rank}") for rank in self.ended):
                return ENDED_SECONDS
            return FAILED_SECONDS if has_key(store, f"failed/{number}") else math.inf
        except RescueError:  # rank 0 has ended
            return ENDED_SECONDS

    def _find_problem(self, path: Path, answers: dict[int, Any]) -> str | None:
        """Why the ranks cannot begin: one of them lacks something, or two share a GPU."""
        ready = {0: _check_ready(path), **answers}
        for rank in range(self.launch.size):
            if rank not in ready:
                return f"{self.describe(rank)} does not respond. Start all processes again."
            if ready[rank]["error"]:
                return f"{self.describe(rank)}: {ready[rank]['error']}"
        owners: dict[Any, int] = {}
        for rank, answer in sorted(ready.items()):
            gpu = answer["gpu"] and (self.members[rank]["host"], answer["gpu"])
            if gpu and gpu in owners:
                return (
                    f"{self.describe(owners[gpu])} and {self.describe(rank)} see the same GPU and "
                    "no other. Start as many processes as there are GPUs, or use --device cpu."
                )
            owners[gpu] = rank
        return None

    def _first_failure(
        self, path: Path, error: Exception | None, codes: dict[int, Any]
    ) -> Exception | None:
        """The first failure: this rank's stop, else the failure record, else a rank without one.

        `codes` are the exit codes of the others by rank.
        """
        if isinstance(error, StoppedError | InUseError):
            return error
        failed = [rank for rank in range(1, self.launch.size) if codes.get(rank, 1)]
        if error is None and not failed:
            return None
        if (failure := read_failure(RunDirectory(path))) is not None:
            return from_code(f"rank {failure.rank}: {failure.message}", failure.exit_code)
        if not failed:
            return error
        lost = [rank for rank in self.ended if rank in (0, *failed)]
        first = lost[0] if lost else failed[0]
        message = self.ties.describe(first, self.describe(first))
        # For whoever looks at the run later
        record = FailureRecord(self.launch.rank, RescueError.exit_code, message)
        write_failure(RunDirectory(path), record)
        return RescueError(message)

    def dismiss(self, code: int) -> None:
        """Makes all ranks exit with this code, the others first."""
        _ignore_signals()
        with contextlib.suppress(RescueError, RuntimeError):
            self.put(f"order/{self.runs}", {"exit": code})
            self.collect("left", self._last_seconds)
        self.ties.release()

    def follow(self) -> int:
        """Carries out the orders of rank 0 until it orders to exit; the exit code."""
        signal.signal(signal.SIGTERM, _exit_on_signal)
        threading.Thread(target=self._exit_after_first, daemon=True).start()
        rank = self.launch.rank
        while True:
            number, self.runs = self.runs, self.runs + 1
            order = self.get(f"order/{number}")
            if "exit" in order:
                _ignore_signals()
                self.put(f"left/{rank}", None)
                return int(order["exit"])
            path = Path(order["run"])
            self._become_member(number)
            self.put(f"ready/{number}/{rank}", _check_ready(path))
            if self.get(f"go/{number}"):
                self.put(f"done/{number}/{rank}", code_of(self._work(number, path)))

    def _exit_after_first(self) -> None:
        """Ends this process after rank 0, for whose orders it would wait for ever if rank 0's
        machine is gone.
        """
        while 0 not in self.ended:
            time.sleep(WATCH_SECONDS)
        time.sleep(FAILED_SECONDS)  # a run that it works on is ended before, see above
        print(f"error: {self.ties.describe(0, self.describe(0))}", file=sys.stderr)
        exit_now(RescueError.exit_code)


def code_of(error: Exception | None) -> int:
    """The exit code of a command that ends with this error, or without any."""
    if error is None:
        return 0
    return error.exit_code if isinstance(error, RescueError) else 1


def exit_now(code: int) -> NoReturn:
    """Exits as `worker.main` does, without the interpreter's own clean-up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ignore_signals() -> None:
    """From here on: torchrun terminates all ranks once one has exited with an error, and all do."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _exit_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _check_ready(path: Path) -> dict[str, Any]:
    """Whether this process sees the prepared directory, and the GPU that it will use."""
    try:
        wait_until_prepared(path, PREPARE_SECONDS / 2)
        if read_environment(RunDirectory(path))["device"] != "cuda":
            return {"error": None, "gpu": None}
        return {"error": None, "gpu": _gpu_uuid()}
    except RescueError as error:
        return {"error": str(error), "gpu": None}


def _gpu_uuid() -> str:
    import torch

    from rescue_cli import distributed

    if not torch.cuda.is_available():
        raise UsageError("no GPU is visible to it. Use --device cpu, or make one visible.")
    return str(torch.cuda.get_device_properties(distributed.gpu_index()).uuid)
