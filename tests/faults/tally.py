"""Counts what comes of faults, and notices what must not: other errors, hangs, code, writing."""

import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rescue_cli.errors import RescueError

SECONDS = 60  # that one case may take on a busy machine
ROOM = 4 * 2**30  # bytes of addresses that one case may take beside what there is
_RUNS = ("os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "subprocess.Popen")
_WRITES = ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink")
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class HangError(BaseException):
    """A case took too long; nothing that is tested may catch it."""


class Tally:
    """What came of the cases of one test. They may write below `folder` alone."""

    def __init__(self, what: str, folder: Path) -> None:
        self.what, self.folder = what, folder
        self.valid = self.refused = 0
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.started = time.monotonic()
        self.seconds = 0.0

    @property
    def count(self) -> int:
        return self.valid + self.refused + self.failures.total()

    def attempt(
        self, case: object, action: Callable[[], object], refusals: tuple[type[Exception], ...] = ()
    ) -> None:
        """Calls `action`: it is valid, or refused by a `RescueError` or one of `refusals`."""
        failure = ""
        refused_by: tuple[type[Exception], ...] = (RescueError, *refusals)
        with _watched(self.folder) as seen, _limited():
            try:
                action()
                outcome = "valid"
            except refused_by:
                outcome = "refused"
            except (Exception, HangError) as error:
                failure = _describe(error)
        if seen or failure:
            self.fail(case, failure or min(seen))
        elif outcome == "valid":
            self.valid += 1
        else:
            self.refused += 1

    def fail(self, case: object, failure: str) -> None:
        self.failures[failure] += 1
        self.examples.setdefault(failure, str(case))

    def end(self) -> None:
        """Raises `AssertionError` with the kinds of failures and the first case of each, or where
        nothing was tried.
        """
        assert self.count
        self.seconds = time.monotonic() - self.started
        listed = [f"{n} x {kind} [{self.examples[kind]}]" for kind, n in self.failures.items()]
        assert not listed, "\n".join(listed)


def _describe(error: BaseException) -> str:
    """The error, and the last line of the package that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "rescue_cli" in frame.filename] or frames
    text = " ".join(str(error).split())[:100]
    return f"{type(error).__name__}: {text} ({Path(own[-1].filename).name}:{own[-1].lineno})"


@contextmanager
def _limited() -> Iterator[None]:
    """Raises `HangError` in a body that takes longer than `SECONDS`, and `MemoryError` in one that
    takes more than `ROOM`.
    """

    def stop(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class _Watch:
    """What Python's audit events say of the body that is watched."""

    folder: Path | None = None
    seen: set[str] = set()  # noqa: RUF012

    @classmethod
    def hear(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if cls.folder is None:
            return
        if event in _RUNS:
            cls.seen.add(f"{event} {arguments[0]}")
        elif event in _WRITES or (event == "open" and (arguments[2] or 0) & _CHANGES):
            path = arguments[0]
            if not isinstance(path, int) and not cls._may_write(os.fsdecode(path)):
                cls.seen.add(f"{event} {os.fsdecode(path)}")

    @classmethod
    def _may_write(cls, path: str) -> bool:
        whole = os.path.realpath(path)
        return whole.startswith((f"{cls.folder}/", "/dev/")) or "__pycache__" in whole


sys.addaudithook(_Watch.hear)


@contextmanager
def _watched(folder: Path) -> Iterator[set[str]]:
    """What the body executed, and what it wrote outside of the folder."""
    seen: set[str] = set()
    _Watch.seen = seen
    _Watch.folder = folder.resolve()
    try:
        yield seen
    finally:
        _Watch.folder = None
