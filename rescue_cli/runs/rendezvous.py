"""How the processes of a group find each other, and what is said while they wait."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rescue_cli.errors import RescueError, UsageError
from rescue_cli.runs.launcher import BY_HAND, HERE, Start

LOOK_SECONDS = 0.05  # between looks at what the others say
TOLD_SECONDS = 5.0  # after which a wait is said, and who is waited for
TIE_SECONDS = 10.0  # for one connection
PATIENCE_HERE = 120.0  # seconds for the others to begin on this machine, as by hand,
PATIENCE = 600.0  # and elsewhere, where a queue or a container comes before


def meet(
    start: Start, words: Sequence[str], note: Callable[[str], None]
) -> tuple[Any, list[dict[str, Any]]]:
    """Where they tell each other, and what each says of itself by rank, once all are there.

    Raises `UsageError` where they do not come.
    """
    from rescue_cli import distributed

    hosts = (HERE, "localhost", "::1", socket.gethostname())
    here = start.starter == BY_HAND and start.host in hosts
    end = time.monotonic() + (PATIENCE_HERE if here else PATIENCE)
    serves = start.rank == 0 and not start.hosted
    with _waiting(start, note, end) as wait:
        if not serves:
            wait(lambda: [] if _answers(start) else [0])
        try:
            store = distributed.create_store(start.host, start.port, serves=serves, seconds=30)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"{_place(start)}: the address cannot be used ({reason}). Set MASTER_PORT to a "
                f"free one, and MASTER_ADDR to the machine of rank 0. {start.cure}"
            ) from None
        store = distributed.prefix_store(store, f"rescue/{start.attempt}")
        mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cores": sorted(os.sched_getaffinity(0)),
            "words": list(words),
        }
        store.set(f"here/{start.rank}", json.dumps(mine))
        all_of_them = range(start.size) if start.rank == 0 else [0]
        wait(lambda: [r for r in all_of_them if not there(store, f"here/{r}")])
        if start.rank == 0:
            members = [json.loads(store.get(f"here/{r}")) for r in all_of_them]
            store.set("members", json.dumps(members))
        wait(lambda: [] if there(store, "members") else [0])
    return store, json.loads(store.get("members"))


@contextlib.contextmanager
def _waiting(
    start: Start, note: Callable[[str], None], end: float
) -> Iterator[Callable[[Callable[[], list[int]]], None]]:
    """Waits until nobody is missing; says once for whom, and raises `UsageError` at the end."""
    told = time.monotonic() + TOLD_SECONDS

    def wait(missing: Callable[[], list[int]]) -> None:
        nonlocal told
        while ranks := missing():
            who = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
            if time.monotonic() > end:
                raise UsageError(f"{_place(start)}: rank {who} did not come. {start.cure}")
            if time.monotonic() > told:
                told = end
                note(
                    f"{_place(start)}: waiting for rank {who}, {end - time.monotonic():.0f} s at "
                    f"most. {start.cure}"
                )
            time.sleep(LOOK_SECONDS)

    yield wait


def tie(start: Start, store: Any) -> list[int]:
    """The ranks that have ended, as they do: the first sees all others, and they see the first.

    By a connection, which the system ends with the process: a beat would stop, too, in one that
    lives and is held up by a long import. Who cannot connect is not seen; torchrun looks itself.
    """
    ended: list[int] = []
    if not start.hosted and start.rank == 0:
        family = socket.getaddrinfo(start.host, None)[0][0]
        server = socket.create_server(("", 0), family=family, backlog=start.size)
        store.set("ties", str(server.getsockname()[1]))
        _in_background(_accept, server, start.size, ended)
    elif not start.hosted:
        with contextlib.suppress(OSError, RuntimeError):  # of the store, where the first is gone
            address = start.host, int(store.get("ties"))
            connection = socket.create_connection(address, timeout=TIE_SECONDS)
            connection.sendall(start.rank.to_bytes(4))
            _in_background(_until_it_ends, connection, 0, ended)
    return ended


def _in_background(action: Callable[..., None], *given: Any) -> None:
    threading.Thread(target=action, args=given, daemon=True).start()


def _accept(server: socket.socket, size: int, ended: list[int]) -> None:
    while True:
        _in_background(_hear, server.accept()[0], size, ended)


def _hear(connection: socket.socket, size: int, ended: list[int]) -> None:
    with connection:
        rank = 0
        with contextlib.suppress(OSError):
            rank = int.from_bytes(connection.recv(4, socket.MSG_WAITALL))
        if 0 < rank < size:  # else a stranger
            _until_it_ends(connection, rank, ended)


def _until_it_ends(connection: socket.socket, rank: int, ended: list[int]) -> None:
    """Nobody says anything more; a machine that is gone is asked in vain for half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    with contextlib.suppress(OSError):
        connection.recv(1)
    ended.append(rank)


def _place(start: Start) -> str:
    return (
        f"{' and '.join(start.variables[:2])} in the environment: rank {start.rank} of "
        f"{start.size} at {start.host}:{start.port}"
    )


def _answers(start: Start) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((start.host, start.port), timeout=1).close()
        return True
    return False


def there(store: Any, key: str) -> bool:
    try:
        return bool(store.check([key]))
    except RuntimeError:
        raise gone() from None


def gone() -> RescueError:
    """What to tell where the first process no longer answers."""
    return RescueError(
        "the first process of the group is gone. What it said says why; the last checkpoint stands."
    )
