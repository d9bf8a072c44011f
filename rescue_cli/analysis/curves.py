"""Analysis of loss curves (Smith 2018, sections 3 and 4): turns, overfitting, underfitting.

Every function accepts noisy curves of any length.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescue_cli.formatting import format_count

Curve = NDArray[np.float64]
Diagnosis = Literal["underfitting", "overfitting", "divergence", "plateau"]
Verdict = Literal["turn", "died", "nothing learned", "noisy", "too few points", "falling", "flat"]
FEWEST = 5  # points that an analysis needs
CALM = 2 * FEWEST  # points at least that noise is estimated from
DEPARTED = 0.1  # of the improvement: a smaller rise is not a turn
STILL_FALLING = 0.02  # of the improvement, from the third quarter of a curve to its last
SHARP = 0.5  # of the improvement, lost within a tenth of the curve
# Points that a turn needs before and after it. Fewer may be chance: with noise alone the lowest of
# n points has only one before it, or only one after it, in 2 / n of the curves.
BEFORE, AFTER = 4, 2
BEYOND_NOISE = 4.0  # standard deviations that a fall or a rise must exceed
SMOOTHED = 0.55  # the standard deviation of white noise after `smooth`, relative to before


@dataclass(frozen=True)
class Turn:
    """The largest stable learning rate by one curve.

    `rate` is None unless the verdict is `turn`. From the rate `bounded_above` on, where it is not
    None, the curve is no better than at its start, whether or not there was a turn before.
    """

    rate: float | None
    verdict: Verdict
    bounded_above: float | None
    evidence: str


def smooth(values: Sequence[float] | Curve) -> Curve:
    """A running median of three, which removes single spikes, then a running mean of three.

    NaN from the first value on that is not finite.
    """
    curve, _ = _finite(values)
    kept = _running(_running(curve, np.median), np.mean)
    return np.concatenate([kept, np.full(len(values) - len(kept), np.nan)])


def noise_std(values: Sequence[float] | Curve) -> float:
    """The standard deviation of a curve around its trend, from its second differences."""
    curve = np.asarray(values, dtype=np.float64)
    if len(curve) < FEWEST:
        return 0.0
    bends = np.diff(curve, 2)
    return float(1.4826 * np.median(np.abs(bends - np.median(bends))) / np.sqrt(6))


def find_turn(
    rates: Sequence[float],
    values: Sequence[float],
    what: str = "test loss",
    ceiling: float = math.inf,
) -> Turn:
    """Where a falling curve, over rising rates, begins to rise for good.

    `values` are losses, or negated accuracies; `ceiling` is the value of a guess: above it nothing
    was learned. There is a turn where the curve

    - improved by more than its noise, over at least `BEFORE` points,
    - and then rose for good by more than its noise and a tenth of the improvement, over at least
      `AFTER` points or until a value that is not finite or no better than the first.

    The rate is the last one whose value is within the noise of the lowest.
    """
    finite, end = _finite(values)
    curve = np.minimum(finite, ceiling)
    cut = _worse_from(curve, end)
    kept = curve[:cut]  # smoothed by itself: otherwise a blow-up affects the points before it
    bound = None if cut is None else float(rates[cut])

    def result(verdict: Verdict, words: str, rate: float | None = None) -> Turn:
        return Turn(rate, verdict, bound, f"{what}: {words}")

    dies = "" if bound is None else f", no better than at the start from {bound:.3g} on"
    if len(kept) < BEFORE:
        if bound is None:
            return result("too few points", f"{len(curve)} points are too few to judge")
        few: Verdict = "too few points" if len(kept) else "nothing learned"
        where = (
            f"only {format_count(len(kept), 'point')} before" if len(kept) else "the first point"
        )
        words = f"from {bound:.3g} on, {where}, no better than at the start"
        return result("died" if end is not None else few, words)
    near = _near_the_lowest(kept, noise_std(finite[:cut][:CALM]))
    # How far it blows up does not matter
    curve = np.minimum(curve, kept[: int(kept.argmin()) + 1].max())
    before, bottom, after = kept[: near.start], kept[near.start : near.stop], curve[near.stop :]
    if not _above(before, bottom, near.spread):
        verdict: Verdict = "nothing learned" if end is None else "died"
        return result(
            verdict,
            f"no improvement beyond the noise of its points up to {rates[len(kept) - 1]:.3g}{dies}",
        )
    if bound is None and (len(after) < AFTER or not _above(after, bottom, near.spread)):
        return result(*_no_turn(kept, near, rates))
    if near.last + 1 < BEFORE:
        points = format_count(near.last, "point")
        words = f"turns at {rates[near.last]:.3g}, {points} before it: too few"
        return result("too few points", words + dies)
    rate = float(rates[near.last])
    return result("turn", f"turns at {rate:.3g}{dies}", rate)


@dataclass(frozen=True)
class _Near:
    """The points near the lowest: from `start` to before `stop`.

    `last`: the last one within the noise of the lowest; `way`: how far the curve fell; `spread`:
    its noise.
    """

    start: int
    stop: int
    last: int
    way: float
    spread: float


def _near_the_lowest(curve: Curve, spread: float) -> _Near:
    smoothed = smooth(curve)
    lowest = int(smoothed.argmin())
    least = float(smoothed[lowest])
    way = float(smoothed[: lowest + 1].max()) - least
    departed = least + max(DEPARTED * way, BEYOND_NOISE * SMOOTHED * spread)
    near = np.flatnonzero(smoothed <= departed)
    # One point more: smoothing delays a steep rise by a point
    alike = np.flatnonzero(curve[: near[-1] + 2] <= least + spread)
    index = int(alike[-1]) if len(alike) else lowest
    return _Near(int(near[0]), max(int(near[-1]), index) + 1, index, way, spread)


def _above(some: Curve, bottom: Curve, spread: float) -> bool:
    """Whether the mean of some points is above that of the lowest ones by more than noise."""
    if not len(some):
        return False
    errors = (max(spread, noise_std(part)) / len(part) ** 0.5 for part in (some, bottom))
    difference = float(some.mean() - bottom.mean())
    return difference > float(BEYOND_NOISE * math.hypot(*errors))


def _worse_from(curve: Curve, end: int | None) -> int | None:
    """The index from which a curve stays no better than its start; None where it ends better.

    `end`: the index from which it is not finite, if any.
    """
    if not len(curve):
        return end
    ceiling = curve[: int(curve.argmin()) + 1].max()
    first = len(curve)
    while first > 0 and curve[first - 1] >= ceiling:
        first -= 1
    enough = AFTER if end is None else 1  # a last point alone may be noise
    return first if first <= len(curve) - enough else end


def _no_turn(curve: Curve, near: _Near, rates: Sequence[float]) -> tuple[Verdict, str]:
    """The verdict on a curve without a turn, by how it ends."""
    upto = f"up to {rates[len(curve) - 1]:.3g}"
    if _falls_at_the_end(curve, near.way, near.spread):
        return "falling", f"still falling, no turn {upto}"
    after = curve[near.stop :]
    lowest = curve[near.start : near.stop].mean()
    if len(after) >= AFTER and after.mean() - lowest > DEPARTED * near.way:
        return "noisy", f"noise hides any turn {upto}"
    return "flat", f"flat at the end, no turn {upto}"


def _falls_at_the_end(curve: Curve, way: float, spread: float) -> bool:
    """Whether the last quarter is lower than the one before it by more than noise."""
    quarter = max(1, len(curve) // 4)
    before, after = curve[-2 * quarter : -quarter], curve[-quarter:]
    fall = float(before.mean() - after.mean())
    return bool(fall > max(STILL_FALLING * way, 3 * spread / quarter**0.5))


def overfitting_rates(
    rates: Sequence[float], test_losses: Sequence[float], errors: Sequence[float]
) -> list[tuple[float, float]]:
    """Ranges of the rate below the turn over which test loss and generalisation error both rise.

    Rises within the noise of either curve do not count, nor what comes after the loss has risen
    above that at the lowest rate: a run that has lost what it learned does not overfit.
    """
    curve, _ = _finite(test_losses)
    gap, _ = _finite(errors)
    turned = find_turn(rates, test_losses).rate
    stable = len(curve) if turned is None else list(rates).index(turned) + 1
    count = min(stable, len(gap))
    if count < FEWEST:
        return []
    loss = smooth(curve[:count])
    lost = loss > loss[0] + 3 * noise_std(curve[:count])
    count = int(lost.argmax()) if lost.any() else count
    if count < FEWEST:
        return []
    curve, gap, loss = curve[:count], smooth(gap[:count]), loss[:count]
    ranges: list[tuple[float, float]] = []
    first = 0
    for index in range(1, count + 1):
        rises = index < count and loss[index] > loss[index - 1] and gap[index] > gap[index - 1]
        if rises:
            continue
        last = index - 1
        enough = (
            loss[last] - loss[first] > 3 * noise_std(curve),
            gap[last] - gap[first] > 3 * noise_std(gap),
        )
        if last > first and all(enough):
            ranges.append((float(rates[first]), float(rates[last])))
        first = index
    return ranges


def diagnose_fit(losses: Sequence[float]) -> Diagnosis:
    """How a run fits, from its test loss over time.

    `divergence`: a sharp rise, or a loss that is not finite. `overfitting`: the loss rises at the
    end, but slowly. `underfitting`: it still falls at the end. Else `plateau`.
    """
    curve, end = _finite(losses)
    if end is not None:
        return "divergence"
    if len(curve) < FEWEST:
        return "underfitting" if len(curve) > 1 and curve[-1] < curve[0] else "plateau"
    smoothed, spread = smooth(curve), noise_std(curve)
    lowest = int(smoothed.argmin())
    way = max(float(smoothed[: lowest + 1].max() - smoothed[lowest]), 1e-12)
    back = float(smoothed[-1] - smoothed[lowest])
    if back > max(DEPARTED * way, 3 * spread):
        tenth = max(1, len(curve) // 10)
        climbs = smoothed[tenth:] - smoothed[:-tenth]
        first = min(lowest, len(climbs) - 1)
        return "divergence" if climbs[first:].max() > SHARP * way else "overfitting"
    return "underfitting" if _falls_at_the_end(curve, way, spread) else "plateau"


# --- fastai's learning rate finder ---


def suggest_rates(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float | None]:
    """Three of fastai's suggestions for a learning rate, on a logarithmic scale.

    From smoothed training losses: `valley`, the middle of the longest decreasing subsequence;
    `steepest`, the steepest fall; `minimum`, a tenth of the rate of the lowest loss. None where
    there are too few finite points. fastai omits the first tenth and the last five of its hundred
    points. Its fourth, `slide`, is designed for as many: with 40 or fewer it chose one of the first
    two points in 87 % of simulated curves, and smoothed twice in 86 %.
    """
    curve, _ = _finite(losses)
    points = np.asarray(rates, dtype=np.float64)[: len(curve)]
    curve, points = curve[points > 0], points[points > 0]
    if len(curve) < FEWEST or len(np.unique(points)) < len(points):
        return dict.fromkeys(("valley", "steepest", "minimum"))
    curve = smooth(curve)
    slope = np.gradient(curve, np.log10(points))
    indices = {
        "valley": _valley(curve),
        "steepest": int(slope.argmin()),
        "minimum": int(curve.argmin()),
    }
    rate = {name: float(points[index]) for name, index in indices.items()}
    return {**rate, "minimum": rate["minimum"] / 10}


def _valley(curve: Curve) -> int:
    """The middle of the longest decreasing subsequence, by the index that fastai's code computes.

    One point before its start plus a third and a sixth of its length: for the first two points -1,
    the last point of all (fastai 2.7.8, callback/schedule.py, `valley`).
    """
    longest = np.ones(len(curve), dtype=np.int64)
    for index in range(1, len(curve)):
        higher = longest[:index][curve[:index] > curve[index]]
        longest[index] = 1 + (higher.max() if len(higher) else 0)
    last = int(longest.argmax())
    count = int(longest[last])
    return last - count + count // 3 + count // 6 if count > 1 else 0


def _finite(values: Sequence[float] | Curve) -> tuple[Curve, int | None]:
    """The curve up to its first value that is not finite, and that value's index, if any."""
    curve = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(curve))
    return (curve, None) if not len(bad) else (curve[: bad[0]], int(bad[0]))


def _running(curve: Curve, of: Callable[..., Any]) -> Curve:
    """`of` each point and its two neighbours; of two points at the ends."""
    if len(curve) < 3:
        return curve
    inside = of(np.lib.stride_tricks.sliding_window_view(curve, 3), axis=1)
    return np.concatenate([[of(curve[:2])], inside, [of(curve[-2:])]])
