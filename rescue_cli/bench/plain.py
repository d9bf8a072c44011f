"""The training step against the same network in plain PyTorch: what each optimisation gains.

A process reads the allocator's settings only when it starts, so two processes alternate, one with
them and one without.
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
from rescue_cli.bench.timing import alternate
from rescue_cli.errors import RescueError, from_code
from rescue_cli.recipe import Recipe

VARIABLE = "GLIBC_TUNABLES"
# A name of `timed_process.VARIANTS`, and whether with the allocator's settings
Variant = tuple[str, bool]
NCHW, PLAIN = ("plain, NCHW", False), ("plain", False)
LAYERS, OPTIMIZER = ("our layers", False), ("our optimizer", False)
ENGINE, TUNED, COMPILED = ("engine", False), ("engine", True), ("compiled", True)
# Optimisation -> the step before and after it; one at a time
OPTIMISATIONS: Mapping[str, tuple[Variant, Variant]] = {
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
    """Images/s of our step (`ours`) and of the plain one (`theirs`), `ratio` of their times, and
    `gains`: by which factor each optimisation speeds up the step before it.

    Plain is the recipe's network in eager mode, channels last, in the recipe's precision, on ready
    float32 batches in NCHW, with torch's optimizers and without the allocator's `settings` (None
    if the system has none). Our step includes augmentation. Medians over rounds; the order
    alternates. If torch.compile does not work, its row is missing and `with_compile` is None,
    unless the recipe compiles. Raises `RescueError`.
    """
    variants = list(dict.fromkeys(variant for pair in OPTIMISATIONS.values() for variant in pair))
    if settings is None:
        variants = list(dict.fromkeys((name, False) for name, _ in variants))

    def time_all(variants: Sequence[Variant]) -> dict[Variant, list[float]]:
        with ExitStack() as stack:
            processes = {}
            for tuned in {tuned for _, tuned in variants}:
                names = [name for name, wants_tuned in variants if wants_tuned == tuned]
                start = _start_process(recipe, device, names, settings if tuned else None)
                processes[tuned] = stack.enter_context(start)
            return _time_alternately(processes, variants, steps, rounds)

    try:
        seconds = time_all(variants)
    except ProcessEndedError:  # torch.compile can fail by ending the process
        if recipe.train.compile:
            raise
        seconds = time_all([variant for variant in variants if variant[0] != COMPILED[0]])
    images = steps * recipe.train.batch_size
    shipped = COMPILED if recipe.train.compile else TUNED
    return {
        "what": f"step of {recipe.name} on {device}, {recipe.train.precision}, "
        f"batch {recipe.train.batch_size}, against plain PyTorch",
        **_figures(seconds, shipped, images, settings is not None),
        "unit": "images/s",
    }


def _figures(
    seconds: Mapping[Variant, Sequence[float]], shipped: Variant, images: int, has_settings: bool
) -> dict[str, Any]:
    """Rates and gains; a gain is the median over rounds of time before / time after."""

    def times(variant: Variant) -> Sequence[float]:
        return seconds[variant] if has_settings else seconds[(variant[0], False)]

    compiles = any(name == COMPILED[0] for name, _ in seconds)

    def speedup(before: Variant, after: Variant) -> dict[str, float]:
        ratios = sorted(b / a for b, a in zip(times(before), times(after), strict=True))
        return {"times": median(ratios), "low": ratios[0], "high": ratios[-1]}

    gains = {
        name: {**speedup(before, after), "images_per_second": images / median(times(after))}
        for name, (before, after) in OPTIMISATIONS.items()
        if (has_settings or before[0] != after[0]) and (compiles or after != COMPILED)
    }
    whole = speedup(PLAIN, shipped)
    compiled = speedup(PLAIN, COMPILED)["times"] if compiles else None
    return {
        "ours": images / median(times(shipped)),
        "theirs": images / median(times(PLAIN)),
        "ratio": 1 / whole["times"],
        "ratio_low": 1 / whole["high"],
        "ratio_high": 1 / whole["low"],
        "without_settings": 1 / speedup(PLAIN, ENGINE)["times"],
        "with_settings": 1 / speedup(PLAIN, TUNED)["times"] if has_settings else None,
        "with_compile": None if compiled is None else 1 / compiled,
        "gains": gains,
    }


def _time_alternately(
    processes: Mapping[bool, "TimedProcess"], variants: Sequence[Variant], steps: int, rounds: int
) -> dict[Variant, list[float]]:
    """Seconds of each variant, one entry per round."""
    for name, tuned in variants:
        processes[tuned].time_steps(name, max(2, steps // 4))
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for name, tuned in alternate(variants, rounds):
        seconds[name, tuned].append(processes[tuned].time_steps(name, steps))
    return seconds


class ProcessEndedError(RescueError):
    """A timed process has ended."""


class TimedProcess:
    """A process of `timed_process.py`, which computes only while it answers a request."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def time_steps(self, variant: str, steps: int) -> float:
        """Seconds of that many steps of a variant."""
        return float(self.request(f"{variant}\t{steps}"))

    def request(self, line: str) -> str:
        """Sends a line and returns the answer; raises `ProcessEndedError`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            raise ProcessEndedError(f"bench step: the timed process ended with {code}.")
        return answer


@contextmanager
def _start_process(
    recipe: Recipe, device: str, variants: Sequence[str], settings: str | None
) -> Iterator[TimedProcess]:
    """A process that has built the variants; raises its error if it cannot."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment |= lifetime.parent_variable()
    if settings is not None:
        environment[VARIABLE] = settings
    call = [sys.executable, "-P", "-m", "rescue_cli.bench.timed_process"]
    pipe = subprocess.PIPE
    with subprocess.Popen(call, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            timed = TimedProcess(process)
            request = {"recipe": recipe.to_yaml(), "device": device, "variants": list(variants)}
            failure = json.loads(timed.request(json.dumps(request)))
            if failure:
                raise from_code(failure["message"], failure["exit_code"])
            yield timed
        finally:
            process.kill()
