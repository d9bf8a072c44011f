"""Two ways of doing the same thing, timed in turn in one run."""

import sys
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch


def in_turn(
    ours: Callable[[], None],
    theirs: Callable[[], None],
    *,
    calls: int,
    rounds: int,
    images: int,
    device: torch.device,
) -> dict[str, Any]:
    """Images/s of both, and the median over rounds of our time by theirs, with its extremes.

    A round is `calls` calls of each, of `images` images a call; who goes first alternates.
    """
    for warm_up in (ours, theirs):
        seconds(warm_up, max(2, calls // 4), device)
    pairs = []
    for turn in each_round(rounds):
        order = (ours, theirs) if turn % 2 else (theirs, ours)
        times = {f: seconds(f, calls, device) for f in order}
        pairs.append((times[ours], times[theirs]))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ours": calls * images / median(a for a, _ in pairs),
        "theirs": calls * images / median(b for _, b in pairs),
        "ratio": median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
    }


def each_round(rounds: int) -> Iterable[int]:
    """The rounds' numbers; a bar on a terminal counts them, and moves between them only."""
    from rich.console import Console
    from rich.progress import track

    out, shown = Console(stderr=True), sys.stderr.isatty()
    return track(
        range(rounds), "rounds", console=out, auto_refresh=False, transient=True, disable=not shown
    )


def seconds(run: Callable[[], None], calls: int, device: torch.device) -> float:
    """Wall-clock seconds of so many calls, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
