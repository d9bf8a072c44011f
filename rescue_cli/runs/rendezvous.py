"""How the processes of a group find each other, and notice that one of them has ended."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rescue_cli.errors import RescueError, UsageError
from rescue_cli.runs.launcher import BY_HAND, LOCALHOST, GroupLaunch

POLL_SECONDS = 0.05  # between looks at the store
NOTE_SECONDS = 5.0  # after which a note says who is waited for
CONNECT_SECONDS = 10.0
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


def watch_ends(launch: GroupLaunch, store: Any) -> list[int]:
    """A list to which the ranks of ended processes are added: rank 0 sees all, the others rank 0.

    Each keeps a connection open, which the system closes with the process. A heartbeat would also
    stop in a process that lives but is held up by a long import. A process that cannot connect is
    not watched; torchrun watches its processes itself.
    """
    ended: list[int] = []
    if not launch.hosted and launch.rank == 0:
        family = socket.getaddrinfo(launch.host, None)[0][0]
        server = socket.create_server(("", 0), family=family, backlog=launch.size)
        store.set("ties", str(server.getsockname()[1]))
        _in_background(_accept, server, launch.size, ended)
    elif not launch.hosted:
        with contextlib.suppress(OSError, RuntimeError):  # the store fails if rank 0 has ended
            address = launch.host, int(store.get("ties"))
            connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
            connection.sendall(launch.rank.to_bytes(4))
            _in_background(_wait_for_close, connection, 0, ended)
    return ended


def _in_background(action: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=action, args=arguments, daemon=True).start()


def _accept(server: socket.socket, size: int, ended: list[int]) -> None:
    while True:
        _in_background(_watch_connection, server.accept()[0], size, ended)


def _watch_connection(connection: socket.socket, size: int, ended: list[int]) -> None:
    with connection:
        rank = 0
        with contextlib.suppress(OSError):
            rank = int.from_bytes(connection.recv(4, socket.MSG_WAITALL))
        if 0 < rank < size:  # anything else is no process of this group
            _wait_for_close(connection, rank, ended)


def _wait_for_close(connection: socket.socket, rank: int, ended: list[int]) -> None:
    """Adds the rank when its process ends; of a machine that is gone, after half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    with contextlib.suppress(OSError):
        connection.recv(1)
    ended.append(rank)


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
