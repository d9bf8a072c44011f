"""How often each printed test errs and each interval covers, over runs of known truth.

`python -m tests.analysis.error_rates` prints the tables; test_error_rates.py checks a part of
them in every run.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescue_cli.analysis import stats
from rescue_cli.analysis.bootstrap import bootstrap_difference
from rescue_cli.analysis.compare import CHANCE, compare_pairs
from rescue_cli.analysis.interim import level_per_look, plan_looks
from rescue_cli.analysis.sides import Side
from rescue_cli.analysis.stats import (
    Sample,
    is_skewed,
    paired_t_test,
    probability_of_superiority,
    sample,
    sign_flip_test,
    t_interval,
    two_sample_permutation_test,
    welch_test,
)

SIZES = (2, 3, 5, 10, 100)
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


@dataclass(frozen=True)
class Rate:
    """How often something happened that should happen in `nominal` of the cases."""

    nominal: float
    count: int
    trials: int

    @property
    def seen(self) -> float:
        return self.count / self.trials

    @property
    def error(self) -> float:
        """The Monte Carlo standard error, were the nominal rate true."""
        return math.sqrt(self.nominal * (1 - self.nominal) / self.trials)

    def __str__(self) -> str:
        own = math.sqrt(max(self.seen * (1 - self.seen), 1 / self.trials) / self.trials)
        return f"{100 * self.seen:.1f} ± {100 * own:.1f}"


def over(nominal: float, trials: int, happens: Callable[[np.random.Generator], bool]) -> Rate:
    """The rate over seeded trials."""
    rng = np.random.default_rng(7)
    return Rate(nominal, sum(bool(happens(rng)) for _ in range(trials)), trials)


# --- runs of known truth ---


def normal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(90, 0.3, n)


def counted(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Normal runs, tested on so few images that results repeat: one is two thirds of the std."""
    return np.round(normal(rng, n) / 0.2) * 0.2


def minority(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """One run in ten nearly diverges: it ends 3 points, ten standard deviations, lower."""
    return rng.normal(90, 0.3, n) - 3 * (rng.random(n) < 0.1)


def lognormal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Errors of log-normal runs."""
    return 90 - 0.3 * rng.lognormal(0, 1, n)


MEANS = {normal: 90.0, minority: 89.7, lognormal: 90 - 0.3 * math.exp(0.5)}


def side(name: str, values: NDArray[np.float64]) -> Side:
    return Side(name, sample(values), dict(enumerate(values)))


# --- what is printed, each with its nominal rate ---


def mean_covered(draw: Draw, n: int, trials: int) -> Rate:
    """The interval of a sweep's mean."""

    def covers(rng: np.random.Generator) -> bool:
        band = t_interval(sample(draw(rng, n)))
        return band is not None and band[0] <= MEANS[draw] <= band[1]  # type: ignore[index]

    return over(0.95, trials, covers)


def welch(n: int, trials: int, *, ratio: float = 1.0, more: int = 1, shared: float = 0.0) -> Rate:
    """False claims where b scatters `ratio` times as a, has `more` times its runs, or shares."""

    def claims(rng: np.random.Generator) -> bool:
        common = np.zeros(n * more)
        common[:n] = math.sqrt(shared) * rng.normal(size=n)
        own = math.sqrt(1 - shared)
        a = common[:n] + own * rng.normal(size=n)
        b = ratio * (common + own * rng.normal(size=n * more))
        p = welch_test(sample(a), sample(b)).p
        return p is not None and p < 0.05

    return over(0.05, trials, claims)


def pairs(n: int, trials: int) -> Rate:
    """False claims of the paired test, half of whose spread the seeds share."""

    def claims(rng: np.random.Generator) -> bool:
        seed = rng.normal(size=n)
        p = paired_t_test(seed + rng.normal(size=n), seed + rng.normal(size=n)).p
        return p is not None and p < 0.05

    return over(0.05, trials, claims)


def difference_covered(n: int, trials: int) -> Rate:
    """The interval of a difference, by Welch's test; b scatters twice as a."""

    def covers(rng: np.random.Generator) -> bool:
        a, b = rng.normal(0, 1, n), rng.normal(1, 2, n)
        band = welch_test(sample(a), sample(b)).interval()
        return band is not None and band[0] <= 1 <= band[1]

    return over(0.95, trials, covers)


def permuted(n: int, trials: int) -> Rate:
    """False claims by exchanging runs."""
    return over(
        0.05, trials, lambda rng: two_sample_permutation_test(normal(rng, n), normal(rng, n)) < 0.05
    )


def flipped(n: int, trials: int) -> Rate:
    """False claims by flipping the signs of differences."""
    return over(0.05, trials, lambda rng: sign_flip_test(normal(rng, n) - normal(rng, n)) < 0.05)


def claimed(draw: Draw, n: int, trials: int, more: int = 1) -> Rate:
    """False claims of `compare` for two sweeps of one recipe, warnings and permutations included.

    b has `more` times as many runs.
    """

    def claims(rng: np.random.Generator) -> bool:
        (pair,) = compare_pairs([side("a", draw(rng, n)), side("b", draw(rng, n * more))])
        return " is better than " in pair["claim"]

    return over(0.05, trials, claims)


def found(draw: Draw, n: int, trials: int) -> Rate:
    """Claims of `compare` for a recipe that is six standard deviations better."""

    def claims(rng: np.random.Generator) -> bool:
        (pair,) = compare_pairs([side("a", draw(rng, n)), side("b", draw(rng, n) + 1.8)])
        return "b is better than " in pair["claim"]

    return over(0.95, trials, claims)


def warned(draw: Draw, n: int, trials: int) -> Rate:
    """Samples that `compare` calls skewed."""
    return over(0.01, trials, lambda rng: is_skewed(draw(rng, n)))


def one_run(n: int, trials: int, ratio: float = 1.0) -> Rate:
    """Single runs of one recipe said to be above or below a sweep, on the stated assumption."""

    def says(rng: np.random.Generator) -> bool:
        alone = Side("b", Sample(float(rng.normal(0, ratio)), None, 1))
        (pair,) = compare_pairs([side("a", rng.normal(0, 1, n)), alone])
        assert " is better than " not in pair["claim"]
        return pair["p"] is not None and pair["p"] < 0.05

    return over(0.05, trials, says)


def seed_noise(trials: int) -> Rate:
    """Pairs of runs of one recipe as far apart as the sentence on two networks says."""

    def apart(rng: np.random.Generator) -> bool:
        a, b = rng.normal(0, 1, 2)
        return bool(abs(a - b) / CHANCE >= 1)

    return over(0.05, trials, apart)


def family(n: int, trials: int) -> tuple[Rate, Rate]:
    """Four sweeps of one recipe: any false claim by Holm, and all six intervals at once."""
    wrong, whole = 0, 0
    rng = np.random.default_rng(7)
    for _ in range(trials):
        found = compare_pairs([side(str(i), normal(rng, n)) for i in range(4)])
        wrong += any(pair["p"] < 0.05 for pair in found)
        whole += all(pair["low"] <= 0 <= pair["high"] for pair in found)
    return Rate(0.05, wrong, trials), Rate(0.95, whole, trials)


def joint_intervals(n: int, trials: int) -> Rate:
    """All six intervals at once of four recipes half a point apart, cut off at 0 by claims."""

    def cover(rng: np.random.Generator) -> bool:
        shifts = np.array([0.0, 0.0, 0.5, 1.0])
        found = compare_pairs([side(str(i), normal(rng, n) + shifts[i]) for i in range(4)])
        true = [shifts[int(pair["b"])] - shifts[int(pair["a"])] for pair in found]
        return all(p["low"] <= t <= p["high"] for p, t in zip(found, true, strict=True))

    return over(0.95, trials, cover)


def beats(n: int, trials: int, shift: float) -> Rate:
    """The interval of the probability that a run of b beats one of a, `shift` stds higher."""
    from scipy.special import ndtr

    truth = float(ndtr(shift / math.sqrt(2)))

    def covers(rng: np.random.Generator) -> bool:
        _, low, high = probability_of_superiority(rng.normal(0, 1, n), rng.normal(shift, 1, n))
        return low <= truth <= high

    return over(0.95, trials, covers)


def inside_expected(n: int, trials: int, published: int = 4) -> Rate:
    """Sweeps of the published recipe itself that the check calls outside."""

    def outside(rng: np.random.Generator) -> bool:
        claim, ours = sample(normal(rng, published)), sample(normal(rng, n))
        p = welch_test(claim, ours).p
        return p is not None and p < 0.05

    return over(0.05, trials, outside)


def wilson(accuracy: float, count: int, trials: int) -> Rate:
    """The interval of one network's accuracy."""

    def covers(rng: np.random.Generator) -> bool:
        low, high = stats.wilson_interval(int(rng.binomial(count, accuracy)), count)
        return low <= 100 * accuracy <= high

    return over(0.95, trials, covers)


def mcnemar(images: int, trials: int) -> Rate:
    """Two networks of one true accuracy, called different on test images drawn anew."""

    def claims(rng: np.random.Generator) -> bool:
        hard = rng.random(images)
        a, b = (rng.random(images) < 0.98 - 0.4 * (hard < 0.2) for _ in range(2))
        return stats.mcnemar_test(a, b)[2] < 0.05

    return over(0.05, trials, claims)


def scene_bootstrap(count: int, trials: int, draws: int) -> Rate:
    """Two segmentations of one true mIoU, called different on scenes drawn anew."""

    def claims(rng: np.random.Generator) -> bool:
        counts = [_segmented(rng, shared) for shared in [_drawn(rng, count)] * 2]
        found = bootstrap_difference({"counts": counts[0]}, {"counts": counts[1]}, draws=draws)
        return "p" in found and found["p"] < 0.05

    return over(0.05, trials, claims)


def _drawn(rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many pixels of each of 4 classes the scenes have, and how hard each scene is."""
    pixels = rng.integers(100, 2000, (count, 4))
    return pixels, rng.normal(0, 0.5, count)


def _segmented(
    rng: np.random.Generator, drawn: tuple[NDArray[np.int64], NDArray[np.float64]]
) -> NDArray[np.int64]:
    """(scenes, 3, classes): intersections, predicted and true pixels of a network on the scenes."""
    pixels, hard = drawn
    share = 1 / (1 + np.exp(-(1.5 + hard[:, None] + rng.normal(0, 0.5, pixels.shape))))
    hit = (pixels * share).astype(np.int64)
    wrong = (pixels * 0.2 * rng.random(pixels.shape)).astype(np.int64)
    return np.stack([hit, hit + wrong, pixels], 1)


def sequentially(most: int, trials: int, draw: Draw = normal) -> Rate:
    """False claims of `seed-sweep --until` against 10 runs of the same recipe."""

    def claims(rng: np.random.Generator) -> bool:
        a, b = draw(rng, 10), draw(rng, most)
        looks = plan_looks(most)
        level = level_per_look(looks)
        return any(
            (p := compare_pairs([side("a", a), side("b", b[:n])], level=level)[0]["p"]) is not None
            and p < level
            for n in looks
        )

    return over(0.05, trials, claims)


def looked_after_every_seed(most: int, trials: int) -> Rate:
    """What it replaces: a test at 5 % after each seed from the third on."""

    def claims(rng: np.random.Generator) -> bool:
        a, b = normal(rng, 10), normal(rng, most)
        found = (welch_test(sample(a), sample(b[:n])).p for n in range(3, most + 1))
        return any(p is not None and p < 0.05 for p in found)

    return over(0.05, trials, claims)


def planned_runs(n: int, trials: int) -> tuple[Rate, Rate]:
    """Pilots of n runs whose plan has the power of 80 %: by the upper bound, and by their std."""
    from rescue_cli.analysis.stats import runs_needed

    enough = runs_needed(0.5, 1.0, 0.05, paired=False)
    assert enough is not None
    by_bound = by_std = 0
    rng = np.random.default_rng(7)
    for _ in range(trials):
        found = welch_test(sample(rng.normal(0, 1, n)), sample(rng.normal(0, 1, n)))
        assert found.std is not None
        by_bound += (found.runs_needed(0.5) or 0) >= enough
        by_std += (runs_needed(0.5, found.std, 0.05, paired=False) or 0) >= enough
    return Rate(0.8, by_bound, trials), Rate(0.5, by_std, trials)


def best_of(n: int, trials: int) -> Rate:
    """What chance alone gives the best seed of a sweep, by the sweep before it."""
    rng = np.random.default_rng(7)
    inside, band = 0, (0.0, 0.0)
    for number in range(trials + 1):
        found = stats.best_seed_bias(rng.normal(0, 1, n), rng.normal(0, 1, n), draws=1000)
        inside += bool(number) and band[0] <= found.inflation[0] <= band[1]
        band = found.inflation[1:]
    return Rate(0.95, inside, trials)


def correlated(n: int, trials: int) -> Rate:
    """Fisher's interval of a correlation of 0.6."""

    def covers(rng: np.random.Generator) -> bool:
        a = rng.normal(size=n)
        _, low, high = stats.correlation_interval(a, 0.6 * a + 0.8 * rng.normal(size=n))
        return low <= 0.6 <= high

    return over(0.95, trials, covers)


# --- the tables ---


def by_runs(trials: int) -> Iterator[tuple[str, float, list[Rate | None]]]:
    """Each line of the first table: what, the nominal rate in percent, and the rates by runs."""
    few = max(200, trials // 10)

    def line(what: str, nominal: float, rate: Callable[[int], Rate], least: int = 2,
             most: int = 100) -> tuple[str, float, list[Rate | None]]:  # fmt: skip
        return what, nominal, [rate(n) if least <= n <= most else None for n in SIZES]

    yield line("mean of a sweep, interval", 95, lambda n: mean_covered(normal, n, trials))
    yield line("- a diverging tenth", 95, lambda n: mean_covered(minority, n, trials))
    yield line("- log-normal errors", 95, lambda n: mean_covered(lognormal, n, trials))
    yield line("difference, interval (Welch, stds 1 : 2)", 95,
               lambda n: difference_covered(n, trials))  # fmt: skip
    yield line("Welch, equal stds", 5, lambda n: welch(n, trials))
    yield line("Welch, stds 1 : 4", 5, lambda n: welch(n, trials, ratio=4))
    yield line("Welch, stds 4 : 1, three times the runs", 5,
               lambda n: welch(n, trials, ratio=0.25, more=3))  # fmt: skip
    yield line("Welch, seeds correlate by 0.5", 5, lambda n: welch(n, trials, shared=0.5))
    yield line("paired", 5, lambda n: pairs(n, trials))
    yield line("exchange permutation", 5, lambda n: permuted(n, few), most=10)
    yield line("sign-flip permutation", 5, lambda n: flipped(n, few), most=10)
    yield line("compare, normal runs", 5, lambda n: claimed(normal, n, few), most=10)
    yield line("compare, a diverging tenth", 5, lambda n: claimed(minority, n, few), most=10)
    yield line("- 3 times the runs", 5, lambda n: claimed(minority, n, few, more=3), most=10)
    yield line("compare, log-normal errors", 5, lambda n: claimed(lognormal, n, few), most=10)
    yield line("- 3 times the runs", 5, lambda n: claimed(lognormal, n, few, more=3), most=10)
    yield line("compare, few test images", 5, lambda n: claimed(counted, n, few), most=10)
    yield line("- b 6 stds above: claimed", 95, lambda n: found(counted, n, few), least=3,
               most=10)  # fmt: skip
    yield line("called skewed: normal runs", 1, lambda n: warned(normal, n, trials), least=3)
    yield line("called skewed: a diverging tenth", 1, lambda n: warned(minority, n, trials),
               least=3)  # fmt: skip
    yield line("called skewed: log-normal errors", 1, lambda n: warned(lognormal, n, trials),
               least=3)  # fmt: skip
    yield line("one run against a sweep, as assumed", 5, lambda n: one_run(n, few))
    yield line('- scatters 4 times (said: "if")', 5, lambda n: one_run(n, few, ratio=4))
    yield line("4 sweeps: any false claim (Holm)", 5, lambda n: family(n, few)[0], most=10)
    yield line("4 sweeps: six intervals at once", 95, lambda n: family(n, few)[1], most=10)
    yield line("- of recipes that differ", 95, lambda n: joint_intervals(n, few), most=10)
    yield line("P(run of b beats a), b = a", 95, lambda n: beats(n, few, 0.0))
    yield line("- b 1 std above", 95, lambda n: beats(n, few, 1.0))
    yield line("- b 3 stds above", 95, lambda n: beats(n, few, 3.0))
    yield line("--check-expected, claim of 4 runs", 5, lambda n: inside_expected(n, trials))
    yield line("correlation, interval", 95, lambda n: correlated(n, few), least=5)
    yield line("best seed by chance, band", 95, lambda n: best_of(n, few), least=5)
    yield line("runs for --want: enough (upper bound)", 80, lambda n: planned_runs(n, 200)[0])
    yield line("- by the pilot's own std", 50, lambda n: planned_runs(n, 200)[1])


def others(trials: int) -> Iterator[tuple[str, float, Rate]]:
    """What does not depend on a number of runs."""
    few = max(200, trials // 10)
    for accuracy, count in ((0.5, 20), (0.9, 153), (0.99, 153), (0.896, 1000), (0.7972, 50_000)):
        yield f"Wilson, {100 * accuracy:g} % of {count}", 95, wilson(accuracy, count, few)
    for images in (153, 1000, 10_000):
        yield f"McNemar, two networks on {images} images", 5, mcnemar(images, few)
    yield "two runs at the seed noise told", 5, seed_noise(trials)
    for count in (10, 20, 50, 100):
        yield f"bootstrap over {count} scenes", 5, scene_bootstrap(count, few, 1000)
    for most in (5, 10, 20):
        yield f"--until, up to {most} seeds", 5, sequentially(most, few)
        yield f"- looked after every seed up to {most}", 5, looked_after_every_seed(most, few)
    yield "--until, a diverging tenth", 5, sequentially(20, few, minority)


def main(trials: int) -> None:
    print(f"Rates in percent, ± their Monte Carlo error; {trials} trials, or a tenth of them.\n")
    print("| | nominal | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---|" + "---|" * (len(SIZES) + 1))
    for what, nominal, rates in by_runs(trials):
        cells = ("-" if rate is None else str(rate) for rate in rates)
        print(f"| {what} | {nominal:g} | {' | '.join(cells)} |", flush=True)
    print("\n| | nominal | seen |\n|---|---|---|")
    for what, nominal, rate in others(trials):
        print(f"| {what} | {nominal:g} | {rate} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.analysis.error_rates")
    parser.description = "Print how often each test errs and each interval covers."
    parser.add_argument("trials", type=int, nargs="?", default=20_000, help="default: 20000")
    main(parser.parse_args().trials)
