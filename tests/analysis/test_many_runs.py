"""What is computed in blocks, or read once, for a thousand runs is what the short way gives."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipys

from rescue_cli import recipe as recipes
from rescue_cli.analysis import stats
from rescue_cli.analysis.sides import read_points
from rescue_cli.analysis.sweep import read_sweep
from rescue_cli.report import page
from rescue_cli.rundir import RunDirectory, read_curve, read_metrics
from tests.helpers.synthetic_runs import made_run, made_sweep

RNG = np.random.default_rng(34)
SMALL = ("data.subset=[256,200]", "train.epochs=3")


def accuracies(n: int, digits: int) -> NDArray[np.float64]:
    """With few digits equal values are common, and sums differ in their rounding."""
    return RNG.normal(90, 1, n).round(digits)


def whole_p(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The p of 20,000 exchanges that are all in memory at once."""
    rng, m = np.random.default_rng(0), len(a)
    orders = np.array([rng.permutation(m + len(b)) for _ in range(20_000)])
    shuffled = np.concatenate([a, b])[orders]
    differences = shuffled[:, m:].mean(1) - shuffled[:, :m].mean(1)
    seen = b.mean() - a.mean()
    rounding = 100 * np.finfo(np.float64).eps * abs(seen)
    tails = [(differences <= seen + rounding).sum(), (differences >= seen - rounding).sum()]
    return float(min(1.0, 2 * (min(tails) + 1) / 20_001))


@pytest.mark.parametrize("digits", [1, 9])
@pytest.mark.parametrize("block", [1, 999, 2**20])
def test_a_permutation_test_in_blocks_has_the_same_p(
    block: int, digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "BLOCK", block)
    monkeypatch.setattr(stats, "KEPT", 0)
    a, b = accuracies(12, digits), accuracies(17, digits) + 0.5
    assert stats.two_sample_permutation_test(a, b) == whole_p(a, b)


@pytest.mark.parametrize("digits", [1, 9])
@pytest.mark.parametrize("n", [4, 14, 15, 40])
def test_flipping_signs_in_blocks_has_the_same_p(
    n: int, digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "BLOCK", 700 * n)
    differences = accuracies(n, digits) - 89.9
    whole = scipys.permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if 2**n <= 20_000 else 20_000,
        rng=np.random.default_rng(0),
    )
    assert stats.sign_flip_test(differences) == whole.pvalue


def test_more_than_a_thousand_pairs_can_be_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.0 ** 1024 is no float."""
    monkeypatch.setattr(stats, "EXACT", 50)
    assert 0 < stats.sign_flip_test(accuracies(1100, 2) - 90) <= 1


def test_the_bound_of_skewness_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stats._skewness_bound.__wrapped__(60)
    monkeypatch.setattr(stats, "BLOCK", 60 * 7)
    assert stats._skewness_bound.__wrapped__(60) == whole


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 40), (40, 40)])
def test_superiority_is_the_share_of_pairs_with_ties_as_half(m: int, n: int) -> None:
    for digits in (0, 1):
        a, b = accuracies(m, digits), accuracies(n, digits)
        pairs = [(y > x) + 0.5 * (y == x) for x, y in product(a, b)]
        assert stats.probability_of_superiority(a, b)[0] == sum(pairs) / (m * n)


@pytest.mark.parametrize("name", ["quickstart", "a3", "transfer-layerwise"])
def test_a_seed_gives_the_recipe_that_its_override_gives(name: str) -> None:
    recipe = recipes.load(name)
    overridden, seeded = recipe.with_overrides("train.seed=2026"), recipe.with_seed(2026)
    assert seeded == overridden
    assert seeded.to_yaml() == overridden.to_yaml()
    assert recipe.train.seed != 2026, "the recipe itself keeps its seed"
    assert recipe.tree["train"]["seed"] == recipe.train.seed


def test_the_seconds_of_an_evaluation_are_those_trained_until_then(tmp_path: Path) -> None:
    """Of lines as they may be: several a step, seconds that fall, evaluations before training."""
    run = RunDirectory(made_run(tmp_path / "run", 60.0, overrides=SMALL))
    evaluation = next(line for line in read_metrics(run.metrics) if line["kind"] == "eval")
    train = next(line for line in read_metrics(run.metrics) if line["kind"] == "train")
    steps = [(0, None), (1, 5.0), (1, None), (1, 4.0), (2, 3.0), (3, 7.0), (3, None), (9, None)]
    lines = [
        {**(evaluation if spent is None else {**train, "seconds": spent}), "step": step}
        for step, spent in steps
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = {line["step"]: line["seconds"] for line in lines if line["kind"] == "train"}
    expected = [
        max((spent for step, spent in seconds.items() if step <= line["step"]), default=0.0)
        for line in read_curve(run.metrics)
    ]
    assert [point.seconds for point in read_points(run.path)] == expected == [0.0, 4.0, 7.0, 7.0]


def test_lines_of_sweeps_read_before_are_those_read_again(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, top1 in zip(paths, (60.0, 70.0), strict=True):
        made_sweep(path, {1: top1, 4: top1 + 1}, diverged={0: "at step 3"}, overrides=SMALL)
    lines = page.result_lines(paths)
    assert page.result_lines(paths, {path: read_sweep(path) for path in paths}) == lines
    assert [line.measured.mean for line in lines] == pytest.approx([60.5, 70.5])
    assert page.first_run(paths[1]) == paths[1] / "seed-1"
