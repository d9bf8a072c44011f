"""How the processes of a group find each other, and notice that one of them has ended."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rescue_cli.errors import RescueError, UsageError
from rescue_cli.runs.launcher import BY_HAND, LOCALHOST, GroupLaunch

POLL_SECONDS = 0.05  # between looks at the store
NOTE_SECONDS = 5.0  # after which a note says who is waited for
CONNECT_SECONDS = 10.0
# Of a tie: a machine that does not answer is given up after 10 + 4 x 5 seconds
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
DONE = b"."  # what a process that is done sends before it ends
ENDED_SECONDS = 2.0  # for the others, once a process has ended without a failure record
LOCAL_TIMEOUT = 120.0  # seconds for the others to start on this machine, by hand,
TIMEOUT = 600.0  # and elsewhere, where a queue or a container may delay them


def meet(
    launch: GroupLaunch, arguments: Sequence[str], note: Callable[[str], None]
) -> tuple[Any, list[dict[str, Any]]]:
    """The group's store, and by rank what each process says of itself, once all have started.

    Raises `UsageError` where some do not start in time.
    """
    from rescue_cli import distributed

    hosts = (LOCALHOST, "localhost", "::1", socket.gethostname())
    local = launch.launcher == BY_HAND and launch.host in hosts
    end = time.monotonic() + (LOCAL_TIMEOUT if local else TIMEOUT)
    serves = launch.rank == 0 and not launch.hosted
    with _waiter(launch, note, end) as wait:
        if not serves:
            wait(lambda: [] if _answers(launch) else [0])
        try:
            store = distributed.create_store(launch.host, launch.port, serves=serves, seconds=30)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"{_describe(launch)}: the address cannot be used ({reason}). Set MASTER_PORT to a "
                f"free port, and MASTER_ADDR to the machine of rank 0. {launch.cure}"
            ) from None
        store = distributed.prefix_store(store, f"rescue/{launch.attempt}")
        member = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cores": sorted(os.sched_getaffinity(0)),
            "arguments": list(arguments),
        }
        store.set(f"here/{launch.rank}", json.dumps(member))
        ranks = range(launch.size) if launch.rank == 0 else [0]
        wait(lambda: [r for r in ranks if not has_key(store, f"here/{r}")])
        if launch.rank == 0:
            members = [json.loads(store.get(f"here/{r}")) for r in ranks]
            store.set("members", json.dumps(members))
        wait(lambda: [] if has_key(store, "members") else [0])
    return store, json.loads(store.get("members"))


@contextlib.contextmanager
def _waiter(
    launch: GroupLaunch, note: Callable[[str], None], end: float
) -> Iterator[Callable[[Callable[[], list[int]]], None]]:
    """A function that waits until no rank is missing; notes once which, and raises `UsageError`.

    The time until `end` and the one note are shared by all waits.
    """
    note_at = time.monotonic() + NOTE_SECONDS

    def wait(missing: Callable[[], list[int]]) -> None:
        nonlocal note_at
        while ranks := missing():
            who = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
            if time.monotonic() > end:
                raise UsageError(f"{_describe(launch)}: rank {who} did not start. {launch.cure}")
            if time.monotonic() > note_at:
                note_at = end
                left = f"{end - time.monotonic():.0f} s at most"
                note(f"{_describe(launch)}: waiting for rank {who}, {left}. {launch.cure}")
            time.sleep(POLL_SECONDS)

    yield wait


@dataclass
class Ties:
    """Connections by which processes notice each other's end: rank 0's to each other one.

    The system closes them with the process. A heartbeat would also stop in a process that lives but
    is held up by a long import. Of a machine that is gone nothing is closed: what it does not
    answer, tells after half a minute.
    """

    ended: list[int] = field(default_factory=list)  # ranks: rank 0 sees all, the others rank 0
    unreachable: set[int] = field(default_factory=set)  # those of them that did not answer
    _connections: list[socket.socket] = field(default_factory=list)

    def release(self) -> None:
        """Says that this process ends because it is done."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(DONE)

    def describe(self, rank: int, name: str) -> str:
        """What became of an ended rank, and what helps; `name` says where it ran."""
        if rank in self.unreachable:
            what = "cannot be reached: its machine or the network is down."
        else:
            what = "ended without a failure record. If memory ran out, use smaller micro-batches."
        return f"{name} {what} Resume with --resume."

    def accept(self, server: socket.socket, size: int) -> None:
        """Waits for connections of the other ranks, and watches each."""
        while True:
            _in_background(self._greet, server.accept()[0], size)

    def _greet(self, connection: socket.socket, size: int) -> None:
        with connection:
            rank = 0
            with contextlib.suppress(OSError):
                rank = int.from_bytes(connection.recv(4, socket.MSG_WAITALL))
            if 0 < rank < size:  # anything else is no process of this group
                self.watch(connection, rank)

    def watch(self, connection: socket.socket, rank: int) -> None:
        """Adds the rank when its process ends before it is done."""
        self._connections.append(connection)
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        try:
            if connection.recv(1) == DONE:
                return
        except ConnectionResetError:
            pass
        except OSError:  # no answer, or no way to it
            self.unreachable.add(rank)
        self.ended.append(rank)


def tie(launch: GroupLaunch, store: Any) -> Ties:
    """Ties this process to rank 0, or as rank 0 to all others; one that cannot connect is not
    watched.
    """
    ties = Ties()
    if launch.rank == 0:
        family = socket.getaddrinfo(launch.host, None)[0][0]
        server = socket.create_server(("", 0), family=family, backlog=launch.size)
        store.set("ties", str(server.getsockname()[1]))
        _in_background(ties.accept, server, launch.size)
    else:
        with contextlib.suppress(OSError, RuntimeError):  # the store fails if rank 0 has ended
            address = launch.host, int(store.get("ties"))
            connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
            connection.sendall(launch.rank.to_bytes(4))
            _in_background(ties.watch, connection, 0)
    return ties


def _in_background(action: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=action, args=arguments, daemon=True).start()


def _describe(launch: GroupLaunch) -> str:
    return (
        f"{' and '.join(launch.variables[:2])} in the environment: rank {launch.rank} of "
        f"{launch.size} at {launch.host}:{launch.port}"
    )


def _answers(launch: GroupLaunch) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((launch.host, launch.port), timeout=1).close()
        return True
    return False


def has_key(store: Any, key: str) -> bool:
    """Raises `RescueError` where the store's process has ended."""
    try:
        return bool(store.check([key]))
    except RuntimeError:
        raise unreachable_store_error() from None


def unreachable_store_error() -> RescueError:
    """The error of a process that cannot reach rank 0, which serves the store."""
    return RescueError(
        "the first process of the group has ended. Its output says why; the last checkpoint is "
        "kept."
    )
