"""The step against the same network written straight down: what each of our measures gains.

The allocator's settings are read as a process starts, so two processes, one without and one with
them, take turns.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from rescue_cli import lifetime
from rescue_cli.bench.interleave import each_round
from rescue_cli.errors import RescueError, from_code
from rescue_cli.recipe import Recipe

VARIABLE = "GLIBC_TUNABLES"
Way = tuple[str, bool]  # a name of `contender.WAYS`, and whether with the allocator's settings
NCHW, PLAIN = ("plain, NCHW", False), ("plain", False)
LAYERS, OPTIMIZER = ("our layers", False), ("our optimizer", False)
ENGINE, TUNED, COMPILED = ("engine", False), ("engine", True), ("compiled", True)
# What was done -> the step before and after it, one thing at a time
MEASURES: Mapping[str, tuple[Way, Way]] = {
    "layout: channels last": (NCHW, PLAIN),
    "layers: CELU, ghost norm": (PLAIN, LAYERS),
    "optimizer: fused or batched": (LAYERS, OPTIMIZER),
    "engine: augmentation and all": (OPTIMIZER, ENGINE),
    "allocator: settings": (ENGINE, TUNED),
    "compile: train.compile=true": (TUNED, COMPILED),
}


def against_plain(
    recipe: Recipe, device: str, settings: str | None, *, steps: int, rounds: int
) -> dict[str, Any]:
    """Images/s of our step as it ships (`ours`) and of the plain one (`theirs`), `ratio` of their
    times, and `gains`: how many times as fast each measure makes the step before it.

    Plain is the recipe's own network in torch's eager mode, channels last, in the recipe's
    precision, on float32 batches that lie ready in NCHW, with torch's own optimizers and without
    the allocator's `settings` (None where a system has none). Ours bears its augmentation.
    Medians over rounds; who goes first alternates. Where torch's compiler does not work, its row is
    missing and `with_compile` None, unless the recipe compiles. Raises `RescueError`.
    """
    ways = list(dict.fromkeys(way for pair in MEASURES.values() for way in pair))
    if settings is None:
        ways = list(dict.fromkeys((name, False) for name, _ in ways))

    def timed(ways: Sequence[Way]) -> dict[Way, list[float]]:
        with ExitStack() as stack:
            processes = {
                tuned: stack.enter_context(
                    _contender(recipe, device, [n for n, t in ways if t == tuned], settings, tuned)
                )
                for tuned in {tuned for _, tuned in ways}
            }
            return _in_turn(processes, ways, steps, rounds)

    try:
        seconds = timed(ways)
    except ContenderEndedError:
        if recipe.train.compile:
            raise
        seconds = timed([way for way in ways if way[0] != COMPILED[0]])
    images = steps * recipe.train.batch_size
    shipped = COMPILED if recipe.train.compile else TUNED
    return {
        "what": f"step of {recipe.name} on {device}, {recipe.train.precision}, "
        f"batch {recipe.train.batch_size}, against plain PyTorch",
        **_figures(seconds, shipped, images, settings is not None),
        "unit": "images/s",
    }


def _figures(
    seconds: Mapping[Way, Sequence[float]], shipped: Way, images: int, has_settings: bool
) -> dict[str, Any]:
    """Rates and gains; a gain is the median over rounds of the time before by the time after."""

    def times(way: Way) -> Sequence[float]:
        return seconds[way] if has_settings else seconds[(way[0], False)]

    compiles = any(name == COMPILED[0] for name, _ in seconds)

    def faster(before: Way, after: Way) -> dict[str, float]:
        ratios = sorted(b / a for b, a in zip(times(before), times(after), strict=True))
        return {"times": median(ratios), "low": ratios[0], "high": ratios[-1]}

    gains = {
        what: {**faster(before, after), "images_per_second": images / median(times(after))}
        for what, (before, after) in MEASURES.items()
        if (has_settings or before[0] != after[0]) and (compiles or after != COMPILED)
    }
    whole = faster(PLAIN, shipped)
    compiled = faster(PLAIN, COMPILED)["times"] if compiles else None
    return {
        "ours": images / median(times(shipped)),
        "theirs": images / median(times(PLAIN)),
        "ratio": 1 / whole["times"],
        "ratio_low": 1 / whole["high"],
        "ratio_high": 1 / whole["low"],
        "without_settings": 1 / faster(PLAIN, ENGINE)["times"],
        "with_settings": 1 / faster(PLAIN, TUNED)["times"] if has_settings else None,
        "with_compile": None if compiled is None else 1 / compiled,
        "gains": gains,
    }


def _in_turn(
    processes: Mapping[bool, "Contender"], ways: Sequence[Way], steps: int, rounds: int
) -> dict[Way, list[float]]:
    for name, tuned in ways:
        processes[tuned].seconds(name, max(2, steps // 4))
    found: dict[Way, list[float]] = {way: [] for way in ways}
    for turn in each_round(rounds):
        for name, tuned in ways[:: 1 if turn % 2 else -1]:
            found[name, tuned].append(processes[tuned].seconds(name, steps))
    return found


class ContenderEndedError(RescueError):
    """A timed process is no more."""


class Contender:
    """A process of `contender.py`, which computes only while it is asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def seconds(self, way: str, steps: int) -> float:
        """Of so many steps, one after another."""
        return float(self.ask(f"{way}\t{steps}"))

    def ask(self, line: str) -> str:
        """The process's answer; raises `ContenderEndedError`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            raise ContenderEndedError(f"bench step: the timed process ended with {code}.")
        return answer


@contextmanager
def _contender(
    recipe: Recipe, device: str, ways: Sequence[str], settings: str | None, tuned: bool
) -> Iterator[Contender]:
    """The process, its ways built; raises what went wrong in it."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment |= lifetime.parent_variable()
    if tuned:
        assert settings is not None
        environment[VARIABLE] = settings
    call = [sys.executable, "-P", "-m", "rescue_cli.bench.contender"]
    pipe = subprocess.PIPE
    with subprocess.Popen(call, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            contender = Contender(process)
            asked = {"recipe": recipe.to_yaml(), "device": device, "ways": list(ways)}
            failure = json.loads(contender.ask(json.dumps(asked)))
            if failure:
                raise from_code(failure["message"], failure["exit_code"])
            yield contender
        finally:
            process.kill()
