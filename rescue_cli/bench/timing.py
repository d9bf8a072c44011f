"""Wall-clock times of two functions, measured alternately in one run."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeVar

import torch

Thing = TypeVar("Thing")


def time_alternately(
    ours: Callable[[], None],
    theirs: Callable[[], None],
    *,
    calls: int,
    rounds: int,
    images: int,
    device: torch.device,
) -> dict[str, Any]:
    """Images/s of both, and the ratio of our time to theirs: median, lowest, highest over rounds.

    A round is `calls` calls of each, at `images` images per call. Which goes first alternates.
    """
    for warm_up in (ours, theirs):
        time_calls(warm_up, max(2, calls // 4), device)
    seconds: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
    for function in alternate((ours, theirs), rounds):
        seconds[function].append(time_calls(function, calls, device))
    ratios = sorted(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
    return {
        "ours": calls * images / median(seconds[ours]),
        "theirs": calls * images / median(seconds[theirs]),
        "ratio": median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
    }


def show_rounds(rounds: int) -> Iterable[int]:
    """The numbers of the rounds, counted on a terminal by a bar that moves only between them."""
    from rich.console import Console
    from rich.progress import track

    out, shown = Console(stderr=True), sys.stderr.isatty()
    return track(
        range(rounds), "rounds", console=out, auto_refresh=False, transient=True, disable=not shown
    )


def alternate(things: Iterable[Thing], rounds: int) -> Iterator[Thing]:
    """All of them in each round, in an order that is reversed from round to round, so that other
    work on the machine does not always slow the same one.
    """
    order = list(things)
    for number in show_rounds(rounds):
        yield from order[:: 1 if number % 2 else -1]


def time_calls(function: Callable[[], None], calls: int, device: torch.device) -> float:
    """Wall-clock seconds of `calls` calls, including the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@contextmanager
def one_thread() -> Iterator[None]:
    """Without torch's thread pool, whose threads use CPU time while they wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
