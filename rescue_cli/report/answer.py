"""The opening of the page: one sentence, and every result as a strip on an axis that all share."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rescue_cli.analysis.claims import is_claimed
from rescue_cli.analysis.stats import LEVEL
from rescue_cli.formatting import format_count
from rescue_cli.metrics.names import METRICS
from rescue_cli.report.table import ResultLine
from rescue_cli.rundir.planned import format_planned

MARGIN = 0.08  # of the axis, left free on both sides
LAST_STEP = "last step"  # what the lines of a run itself are called beside its evaluations
LEAST_SPAN = 0.5  # points, of an axis whose results are all equal


def describe_result(
    line: ResultLine, baseline: tuple[str, float] | None = None, subject: str | None = None
) -> str:
    """What was measured, how sure that is, and against what, in one sentence.

    Args:
        line: A run's, a sweep's or a study row's result.
        baseline: A class, and the percentage of the test images that it has.
        subject: What was measured, by default the line's path.
    """
    metric, on = METRICS[line.metric].removesuffix(" %"), ""
    if line.images is not None:
        on = f" on {format_count(line.images, 'test image', ',')}"
    measured, value = f"{subject or line.path}: {line.measured.mean:.2f} % {metric}", ""
    if line.measured.n > 1 or line.missing:
        planned, _, ends = format_planned(
            line.measured.n, [run.how for run in line.missing.values()]
        ).partition(" (")
        value = f", the mean of {planned} seeds" + (f" ({ends}" if ends else "")
    if line.interval is not None:
        value += f" (95 %: {line.interval[0]:.1f} to {line.interval[1]:.1f})"
    against = ""
    if line.paper is not None:
        against = f"; the paper reports {line.paper.mean:.2f}"
    elif baseline is not None:
        against = f'; always answering "{baseline[0]}" gives {baseline[1]:.1f}'
    return f"{measured}{on}{value}{against}."


def leading_claim(pairs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What may be claimed of the side with the highest mean, and what has to be said with it.

    Of several claims that with the largest difference; beside it the pair of this side, if any,
    that shows none.
    """
    ahead: dict[str, float] = {}  # by a side, the sum of its leads over the others
    main = {(pair["a"], pair["b"]): pair for pair in reversed(pairs)}  # on the main test set
    for (a, b), pair in main.items():
        ahead[a] = ahead.get(a, 0.0) - pair["difference"]
        ahead[b] = ahead.get(b, 0.0) + pair["difference"]

    def rank(pair: Mapping[str, Any]) -> tuple[bool, float, float]:
        better = pair["b"] if pair["difference"] > 0 else pair["a"]
        on_main = pair is main[pair["a"], pair["b"]]
        return on_main, ahead[better], abs(pair["difference"])

    claimed = [pair for pair in pairs if is_claimed(pair, LEVEL)]
    chosen = max(claimed or pairs, key=rank)
    first, _, more = chosen["claim"].partition(". ")
    if len(pairs) > 1:
        best = max(ahead, key=lambda name: ahead[name])
        equal = [pair for pair in main.values() if best in (pair["a"], pair["b"])
                 and pair is not chosen and not is_claimed(pair, LEVEL)]  # fmt: skip
        said = [f"{pair['claim'].partition('. ')[0].rstrip('.')}." for pair in equal[-1:]]
        count = f"{len(claimed)} of {len(pairs)} comparisons show a difference."
        more = " ".join(filter(None, [count, *said, more]))
    return f"{first.rstrip('.')}.", more


def strip_charts(
    lines: Sequence[ResultLine], *, alone: bool = False, itself: str = LAST_STEP
) -> list[dict[str, Any]]:
    """A chart for each metric of the lines: positions in percent of its width, and ticks.

    `alone`: all lines are of one run or sweep, whose path need not be repeated: it is `itself`.
    """
    by_metric: dict[str, list[ResultLine]] = {}
    for line in lines:
        by_metric.setdefault(line.metric, []).append(line)
    return [_chart(metric, each, itself if alone else None) for metric, each in by_metric.items()]


def _chart(metric: str, lines: Sequence[ResultLine], itself: str | None) -> dict[str, Any]:
    values = [value for line in lines for value in _values(line)]
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max(high - low, LEAST_SPAN) / 2 / (1 - 2 * MARGIN)
    low, high = middle - half, middle + half

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return {
        "label": METRICS[metric],
        "ticks": [(at(tick), f"{tick:g}") for tick in _ticks(low, high) if 0 <= tick <= 100],
        "rows": [
            _row(line, name, at, several_sets=len({each.set for each in lines}) > 1)
            for line, name in zip(lines, _names(lines, itself), strict=True)
        ],
        "has_paper": any(line.paper is not None for line in lines),
        "has_seeds": any(len(line.seeds) > 1 for line in lines),
        "has_interval": any(line.interval is not None for line in lines),
    }  # fmt: skip


def _values(line: ResultLine) -> list[float]:
    """Everything that the line's strip shows."""
    paper = [] if line.paper is None else [line.paper.mean]
    return [line.measured.mean, *(line.interval or ()), *line.seeds.values(), *paper]


def _names(lines: Sequence[ResultLine], itself: str | None) -> list[str]:
    """The lines' paths; of an evaluation below its run, the path within that.

    Where all are of one run or sweep, that is `itself`, as in the table below; of a single line,
    the test set.
    """
    if itself is not None and len(lines) == 1:
        return [lines[0].set]
    names, above = [], ""
    for line in lines:
        within = line.path.removeprefix(f"{above}/")
        is_evaluation = bool(above) and within.startswith("evals/")
        names.append(within if is_evaluation else itself or line.path)
        above = above if is_evaluation else line.path
    return names


def _row(
    line: ResultLine, name: str, at: Callable[[float], float], *, several_sets: bool
) -> dict[str, Any]:
    seeds: Mapping[int, float] = line.seeds if len(line.seeds) > 1 else {}
    return {
        "name": name,
        "note": line.note or (line.set if several_sets and line.set != "-" else ""),
        "value": f"{line.measured.mean:.2f}",
        "x": at(line.measured.mean),
        "interval": None if line.interval is None else tuple(map(at, line.interval)),
        "seeds": [at(value) for seed, value in seeds.items() if seed],
        "first": at(seeds[0]) if 0 in seeds else None,
        "paper": None if line.paper is None else at(line.paper.mean),
        "words": _words(line),
    }


def _words(line: ResultLine) -> str:
    """The strip for those who do not see it."""
    parts = [f"{line.measured.mean:.2f} %"]
    if line.interval is not None:
        parts.append(f"95 % interval {line.interval[0]:.2f} to {line.interval[1]:.2f}")
    if len(line.seeds) > 1:
        parts.append(format_count(len(line.seeds), "seed"))
    if line.paper is not None:
        parts.append(f"paper {line.paper.mean:.2f}")
    return ", ".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers from `low` to `high`."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
