"""What curves say (Smith 2018, sections 3 and 4): where a loss turns, and how a training fits.

Every function takes noisy curves of any length and always answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
Clue = Literal["underfitting", "overfitting", "divergence", "plateau"]
FEWEST = 5  # points that a judgement needs
CALM = 2 * FEWEST  # points that noise is measured over, at least
DEPARTED = 0.1  # of the way a curve has come: less of a way back is no turn
STILL_FALLING = 0.02  # of the way, from the third quarter of a curve to its last
SHARP = 0.5  # of the way, lost within a tenth of the curve


@dataclass(frozen=True)
class Turn:
    """The largest rate before a curve turns back for good; None where it does not."""

    rate: float | None
    evidence: str


def smooth(values: Sequence[float] | Curve) -> Curve:
    """A running median of three, which drops single spikes, then a running mean of three.

    From the first value on that is not finite, NaN.
    """
    curve, _ = _finite(values)
    kept = _running(_running(curve, np.median), np.mean)
    return np.concatenate([kept, np.full(len(values) - len(kept), np.nan)])


def noise(values: Sequence[float] | Curve) -> float:
    """The standard deviation of a curve about its own trend, from its second differences."""
    curve = np.asarray(values, dtype=np.float64)
    if len(curve) < FEWEST:
        return 0.0
    bends = np.diff(curve, 2)
    return float(1.4826 * np.median(np.abs(bends - np.median(bends))) / np.sqrt(6))


def turn(rates: Sequence[float], values: Sequence[float], what: str = "test loss") -> Turn:
    """Where a curve that should fall, over rising rates, begins to rise and does not come back.

    `values` are losses, or accuracies with their sign changed. The end of the finite part counts as
    a turn where something follows it. A way back is a turn if it is more than a tenth of the way
    that the curve had come, and more than its noise.
    """
    curve, end = _finite(values)
    if len(curve) < FEWEST:
        if end is None:
            return Turn(None, f"{what}: {len(curve)} points are too few to judge")
        return Turn(_before(rates, end), f"{what} is not finite from {rates[end]:.3g} on")
    # How far it blows up says nothing more, and would be smoothed into what came before
    curve = np.minimum(curve, curve[: int(curve.argmin()) + 1].max())
    smoothed = smooth(curve)
    lowest = int(smoothed.argmin())
    calm = max(lowest + 1, CALM)  # past it a training that falls apart is no measure of noise
    way = float(smoothed[: lowest + 1].max() - smoothed[lowest])
    if way <= 3 * noise(curve[:calm]):
        return Turn(None, f"{what}: it never improved beyond its noise up to {rates[-1]:.3g}")
    margin = max(DEPARTED * way, 3 * noise(smoothed[:calm]))
    if end is not None:  # its last points may be those that blow up
        last = int(np.flatnonzero(curve <= smoothed[lowest] + margin)[-1])
    else:
        last = int(np.flatnonzero(smoothed <= smoothed[lowest] + margin)[-1])
    if last < len(curve) - 2:
        return Turn(float(rates[last]), f"{what} turns at {rates[last]:.3g}")
    if end is not None:
        return Turn(float(rates[last]), f"{what} is not finite from {rates[end]:.3g} on")
    return Turn(None, f"{what}: no turn found up to {rates[len(curve) - 1]:.3g}")


def overfitting_rates(
    rates: Sequence[float], test_losses: Sequence[float], errors: Sequence[float]
) -> list[tuple[float, float]]:
    """Ranges of the rate, below the turn, over which test loss and generalisation error both rise.

    Rises within the noise of either curve do not count.
    """
    curve, _ = _finite(test_losses)
    gap, _ = _finite(errors)
    turned = turn(rates, test_losses).rate
    stable = len(curve) if turned is None else list(rates).index(turned) + 1
    count = min(stable, len(gap))
    if count < FEWEST:
        return []
    curve, gap = curve[:count], gap[:count]
    loss, gap = smooth(curve), smooth(gap)
    found: list[tuple[float, float]] = []
    first = 0
    for place in range(1, count + 1):
        rises = place < count and loss[place] > loss[place - 1] and gap[place] > gap[place - 1]
        if rises:
            continue
        last = place - 1
        enough = (
            loss[last] - loss[first] > 3 * noise(curve),
            gap[last] - gap[first] > 3 * noise(gap),
        )
        if last > first and all(enough):
            found.append((float(rates[first]), float(rates[last])))
        first = place
    return found


def clue(losses: Sequence[float], rates: Sequence[float] | None = None) -> Clue:
    """How a training fits, from its test loss over time and its learning rates, if they vary.

    `divergence`: a sharp rise, or no finite end. `overfitting`: the loss rises to the end while the
    rate is small. `underfitting`: it is still falling there. Else `plateau`.
    """
    curve, end = _finite(losses)
    if end is not None:
        return "divergence"
    if len(curve) < FEWEST:
        return "underfitting" if len(curve) > 1 and curve[-1] < curve[0] else "plateau"
    smoothed, spread = smooth(curve), noise(curve)
    lowest = int(smoothed.argmin())
    way = max(float(smoothed[: lowest + 1].max() - smoothed[lowest]), 1e-12)
    back = float(smoothed[-1] - smoothed[lowest])
    if back > max(DEPARTED * way, 3 * spread):
        tenth = max(1, len(curve) // 10)
        climbs = smoothed[tenth:] - smoothed[:-tenth]
        first = min(lowest, len(climbs) - 1)
        steepest = first + int(climbs[first:].argmax())
        at_large = rates is None or rates[steepest] >= max(rates) / 2
        return "divergence" if climbs[steepest] > SHARP * way and at_large else "overfitting"
    quarter = max(1, len(curve) // 4)
    before, after = curve[-2 * quarter : -quarter], curve[-quarter:]
    fall = float(before.mean() - after.mean())
    return (
        "underfitting" if fall > max(STILL_FALLING * way, 3 * spread / quarter**0.5) else "plateau"
    )


# --- what fastai's users know ---


def suggestions(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float | None]:
    """fastai's four suggestions for a learning rate, over the base-10 logarithm of the rate.

    From smoothed training losses: `valley`, the middle of the longest decreasing run of losses;
    `steepest`, the steepest fall; `slide`, from the right the end of the rise; `minimum`, a tenth
    of the rate of the lowest loss. None where there are too few finite points.
    """
    curve, _ = _finite(losses)
    points = np.asarray(rates, dtype=np.float64)[: len(curve)]
    curve, points = curve[points > 0], points[points > 0]
    if len(curve) < FEWEST or len(np.unique(points)) < len(points):
        return dict.fromkeys(("valley", "steepest", "slide", "minimum"))
    curve = smooth(curve)
    slope = np.gradient(curve, np.log10(points))
    found = {
        "valley": _valley(curve),
        "steepest": int(slope.argmin()),
        "slide": _slide(slope * np.ptp(np.log10(points)) / (len(points) - 1)),
        "minimum": int(curve.argmin()),
    }
    rate = {name: float(points[place]) for name, place in found.items()}
    return {**rate, "minimum": rate["minimum"] / 10}


def _valley(curve: Curve) -> int:
    """Half way into the longest decreasing subsequence, counted back from its end."""
    longest = np.ones(len(curve), dtype=np.int64)
    for place in range(1, len(curve)):
        higher = longest[:place][curve[:place] > curve[place]]
        longest[place] = 1 + (higher.max() if len(higher) else 0)
    last = int(longest.argmax())
    first = max(0, last - int(longest[last]))
    third = (last - first) / 3
    return first + int(third) + int(third / 2)


def _slide(slope: Curve, width: int = 15, threshold: float = 0.005) -> int:
    """A window slides down from the right until the slopes a point at its ends agree."""
    width = min(width, len(slope) // 2)
    right = len(slope) - 1
    while right - width > 0 and abs(slope[right] - slope[right - width]) > threshold:
        right -= 1
    return right - width


def _finite(values: Sequence[float] | Curve) -> tuple[Curve, int | None]:
    """The curve up to its first value that is not finite, and where that is."""
    curve = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(curve))
    return (curve, None) if not len(bad) else (curve[: bad[0]], int(bad[0]))


def _before(rates: Sequence[float], place: int) -> float:
    return float(rates[max(0, place - 1)])


def _running(curve: Curve, of: Any) -> Curve:
    """`of` over each point and its neighbours; fewer at the ends."""
    if len(curve) < 3:
        return curve
    return np.array([of(curve[max(0, i - 1) : i + 2]) for i in range(len(curve))])
