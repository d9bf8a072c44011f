"""`rescue lr-range-test`, through the command on images that ship with the package."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rescue_cli import recipe as recipes
from rescue_cli.analysis import lr_range, lr_range_runs
from rescue_cli.analysis.curves import Verdict, overfitting_rates
from rescue_cli.analysis.lr_range import Curves, Ramp, RunEstimate, read_curves
from rescue_cli.analysis.lr_range_runs import RangeTest
from rescue_cli.build.feeds import list_dataset
from rescue_cli.cli.lr_range_test import parse_momentum
from rescue_cli.errors import StoppedError, UsageError
from rescue_cli.formatting import format_duration
from rescue_cli.report import lr_range as picture
from tests.analysis.simulated_range_tests import TURNING, WITHOUT, Family, every_setting, simulated
from tests.conftest import Rescue

TINY = ("model.width=4", "data.subset=[640,200]", "train.batch_size=32",
        "train.device_batch_size=32")  # fmt: skip
QUICK = ("lr-range-test", "--epochs", "1.5", "--points", "10", "--out", "test", *TINY)
NONE = dict.fromkeys(("valley", "steepest", "minimum"))


def a_ramp(**changes: object) -> Ramp:
    keys = {"start": 0.01, "end": 1.0, "shape": "linear", "momentum": None, "epochs": 2.0}
    return Ramp(**{**keys, "points": 10, **changes})  # type: ignore[arg-type]


def test_it_answers_writes_its_curves_and_a_picture_and_goes_on(
    rescue: Rescue, tmp_path: Path
) -> None:
    ended = rescue(*QUICK, "--seeds", "2", "--end", "2", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert {"max_lr", "min_lr", "trusted", "suggestions", "seeds"} <= found.keys()
    assert [seed["seed"] for seed in found["seeds"]] == [0, 1]
    written = json.loads((tmp_path / "test" / "lr-range.json").read_text())
    assert [run["seed"] for run in written["runs"]] == [
        0,
        1,
        2,
    ]  # the half run is a seed of its own
    cost = (
        "3 runs: 2 x 30 steps, and half as many (15) to confirm; 30 evaluations of 200 test images"
    )
    assert ended.err.count(cost) == 1
    full, _, half = written["runs"]
    assert len(full["rates"]) == len(full["test_losses"]) == len(full["accuracies"])
    assert len(full["rates"]) == 10
    assert half["steps"] == full["steps"] / 2
    assert (tmp_path / "test" / "lr-range.png").read_bytes()[:4] == b"\x89PNG"
    before = (tmp_path / "test" / "seed-0" / "metrics.jsonl").read_text()
    again = rescue(*QUICK, "--seeds", "2", "--end", "2", "--json")
    assert json.loads(again.out) == found
    result = json.loads((tmp_path / "test" / "seed-0" / "result.json").read_text())
    took = sum(result[f"seconds_{part}"] for part in ("prepare", "train", "eval"))
    assert f"seed-0 took {format_duration(took)}; at most " in again.err, "though not now"
    assert (tmp_path / "test" / "seed-0" / "metrics.jsonl").read_text() == before


def test_a_test_loss_that_is_not_finite_is_read_as_such(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "step": 5, "epoch": 0.5, "loss": 2.0, "seconds": 1.0, "lr": 0.5},
        {
            "kind": "eval",
            "step": 5,
            "epoch": 0.5,
            "set": "test",
            "size": 28,
            "crop": 1.0,
            "tta": "none",
            "loss": None,
            "top1": 10.0,
        },
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    ramp = Ramp(0.0, 1.0, shape="linear", momentum=None, epochs=1, points=10)
    found = read_curves(tmp_path, ramp.rate, 10, 0, 10, diverged=False)
    assert math.isnan(found.test_losses[0])
    assert found.accuracies == [10.0]


def test_a_report_points_at_the_tests_own_picture(rescue: Rescue) -> None:
    assert rescue(*QUICK).code == 0
    ended = rescue("report", "test")
    assert ended.code == 3
    assert "test: holds a search and not a sweep. Open test/lr-range.png." in ended.err


def test_stopped_it_says_how_it_goes_on(rescue: Rescue, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StoppedError("stopped at step 3", 130)

    monkeypatch.setattr("rescue_cli.runs.single.run_directory", stop)
    ended = rescue(*QUICK)
    assert ended.code == 130
    assert "run 1 of 2: seed-0" in ended.err
    assert "The same command with --out test resumes it." in ended.err


def test_a_run_that_diverges_ends_there_and_is_read(rescue: Rescue) -> None:
    call = (*QUICK, "--end", "1e6", "--ramp", "exponential", "optim.weight_decay=0.5")
    ended = rescue(*call)
    assert ended.code == 0
    again = rescue(*call)
    assert again.out == ended.out
    assert "test/seed-0: diverged before" in again.err
    assert "diverged: the loss is" in ended.err
    assert "Lower optim.lr" not in ended.err
    assert max(map(len, ended.out.splitlines())) <= 80


def test_no_turn_is_said_and_nothing_is_applied(rescue: Rescue, tmp_path: Path) -> None:
    ended = rescue(*QUICK, "--end", "0.01", "--apply", "mine.yaml")
    assert ended.code == 2
    assert "--apply: no rate was found (seed 0: " in ended.err
    assert not (tmp_path / "mine.yaml").exists()


def test_what_is_applied_is_a_valid_recipe_with_the_groups_ratios() -> None:
    base = recipes.load("airbench94-muon")
    given = lr_range.with_one_cycle(base, 0.12, (0.95, 0.85))
    before = [float(item.options["lr"]) for item in base.optim]
    after = [float(item.options["lr"]) for item in given.optim]
    assert after == pytest.approx([lr / 2 for lr in before])
    assert given.schedule.options["stepsize_epochs"] == pytest.approx(3.6)
    assert given.schedule.options["momentum"] == [0.95, 0.85]


def test_a_ramp_changes_the_schedules_and_nothing_else_of_the_training() -> None:
    base = recipes.load("airbench94-muon", ["data.root=/nowhere"])
    tested = a_ramp().of(base, seed=3, per_epoch=25)
    assert tested.schedule.name == "ramp"
    assert not any("schedule" in item.options for item in tested.optim)
    for mine, theirs in zip(tested.optim, base.optim, strict=True):
        kept = {k: v for k, v in theirs.options.items() if k != "schedule"}
        assert (mine.name, dict(mine.options)) == (theirs.name, kept)
    for section in ("data", "augment", "model", "loss", "averaging"):
        assert tested.tree.get(section) == base.tree.get(section)
    assert tested.train.seed == 3
    assert tested.train.batch_size == base.train.batch_size


def reading(rate: float | None, verdict: Verdict = "falling", spacing: float = 1.1) -> RunEstimate:
    message: Verdict = verdict if rate is None else "turn"
    return RunEstimate(rate, message, None, spacing, ["said"], [], NONE)


@pytest.mark.parametrize(
    ("rates", "half", "trusted", "reason"),
    [
        ([0.5, 0.6, 0.9], 0.5, True,
         "seeds 0, 1, 2 and, with half the steps, seed 3 agree within a factor of 2"),
        ([0.6], 0.5, True, "seed 0 and, with half the steps, seed 1 agree within a factor of 2"),
        ([0.6], None, False, "with half the steps, seed 1: no turn found up to 1, still improving, "
         "so there is no second run to agree with"),
        ([0.4, 0.6, 0.9], 0.5, False, "it ranges from 0.4 to 0.9 between seeds"),
        ([0.5, 0.6, 0.7], 0.2, False, "with half the steps, seed 3, it is 0.2"),
        ([0.6, None, 0.7], 0.5, False, "seed 1: no turn found up to 1, still improving"),
    ],
)  # fmt: skip
def test_a_rate_is_trusted_where_independent_runs_agree_within_two(
    rates: list[float | None], half: float | None, trusted: bool, reason: str
) -> None:
    found = lr_range.combine_estimates([reading(rate) for rate in rates], reading(half), 1.0)
    assert found.trusted is trusted
    assert "; ".join(found.reasons) == reason
    assert found.max_lr == pytest.approx(0.6)


def test_no_rate_is_named_at_which_another_run_was_lost() -> None:
    died = replace(reading(0.5), bounded_above=0.6)
    found = lr_range.combine_estimates([died, reading(0.8), reading(0.9)], reading(0.5), 1.0)
    assert (found.max_lr, found.bounded_above) == (0.5, 0.6)
    early = replace(reading(None, "died"), bounded_above=0.2)
    found = lr_range.combine_estimates([early, reading(0.8)], reading(0.8), 1.0)
    assert (found.max_lr, found.verdict, found.trusted) == (None, "died", False)
    found = lr_range.combine_estimates([reading(None), early], reading(None), 1.0)
    assert (found.max_lr, found.verdict) == (None, "died")
    assert found.advice(a_ramp()) == "Try --start 0.0002 --end 0.2 --ramp exponential."


def test_points_further_apart_than_two_agree_on_nothing() -> None:
    found = lr_range.combine_estimates([reading(0.5, spacing=2.2)], reading(0.5), 1.0)
    assert found.reasons == ["the next point is at 2.2 times the rate: too coarse to tell"]


def test_without_any_turn_there_is_no_rate() -> None:
    found = lr_range.combine_estimates([reading(None)], reading(None), 3.0)
    assert (found.max_lr, found.min_lr, found.trusted) == (None, None, False)
    assert found.reasons == ["seed 0: no turn found up to 3, still improving"]
    assert found.advice(a_ramp(end=3.0)) == "Give a higher --end, such as 30."


def test_a_run_that_learned_at_once_and_is_noisy_is_not_said_to_have_learned_nothing() -> None:
    rng = np.random.default_rng(0)
    accuracies = list(65 + 12 * rng.standard_normal(40))
    losses = list(1 + 0.3 * rng.standard_normal(40))
    one = Curves(0, 40, list(np.linspace(0.1, 4, 40)), losses, losses, accuracies, classes=10)
    assert lr_range.estimate_max_lr(one).verdict == "noisy"


def test_a_run_that_only_explodes_says_which_rates_to_try() -> None:
    one = Curves(0, 8, [26.3, 51.7, 55.3], [5.0, 9.0, math.nan], [1e9, 7e9, math.nan],
                 [10.0, 10.0, math.nan], classes=10)  # fmt: skip
    message = lr_range.estimate_max_lr(one)
    assert (message.max_lr, message.verdict, message.bounded_above) == (None, "died", 26.3)
    found = lr_range.combine_estimates([message], message, 1000.0)
    assert found.advice(a_ramp()) == "Try --start 0.0263 --end 26.3 --ramp exponential."


def test_far_too_high_a_rate_is_told_and_not_applied(rescue: Rescue, tmp_path: Path) -> None:
    words = ("optim.lr=1e4", "--apply", "mine.yaml", "--apply-untrusted")
    ended = rescue(*QUICK, *words)
    assert ended.code == 2
    assert "no rate found" in ended.out
    assert "Try --start " in ended.err
    assert not (tmp_path / "mine.yaml").exists()


def a_finding(half: float) -> Any:
    """What a test found whose runs turn at 0.3 and, with half the steps, at `half`."""
    answer = lr_range.combine_estimates([reading(0.3)], reading(half), 1.0)
    return SimpleNamespace(answer=answer, ramp=a_ramp(), recipe=recipes.load("quickstart"))


def test_what_is_not_trusted_is_applied_only_where_it_is_forced(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    with pytest.raises(UsageError, match=r"0\.3 is not trusted \(with half the steps"):
        RangeTest.write_recipe(a_finding(0.1), file, untrusted=False)
    assert not file.exists()
    RangeTest.write_recipe(a_finding(0.1), file, untrusted=True)
    message = file.read_text().splitlines()[0]
    assert message.endswith("NOT TRUSTED, applied anyway: with half the steps, seed 1, it is 0.1.")
    assert recipes.load(str(file)).optim[0].options["lr"] == 0.3
    RangeTest.write_recipe(a_finding(0.3), file, untrusted=False)
    assert "trusted: seed 0 and, with half the steps, seed 1 agree" in file.read_text()


def test_a_large_test_set_is_cut_and_the_training_set_is_not() -> None:
    recipe = recipes.load("quickstart")
    data = list_dataset(recipe)
    cut, message = lr_range_runs._limit_test_images(recipe, data, 100)
    assert message == "100 of 1,000"
    assert cut.data.options["subset"] == [6000, 100]
    assert lr_range_runs._limit_test_images(recipe, data, 1000) == (recipe, "1,000")
    given = recipe.with_overrides("data.subset=[640, 200]")
    assert lr_range_runs._limit_test_images(given, list_dataset(given), 100) == (given, "200")


# --- detection and segmentation ---


def a_curve(turn: float, low: float, high: float) -> list[float]:
    """Falls from high to low until the rate `turn`, then rises back."""
    rates = np.linspace(0.01, 1, 40)
    way = np.where(rates <= turn, (turn - rates) / turn, (rates - turn) / (1 - turn))
    return list(low + (high - low) * way)


def of_detector(accuracies: list[float]) -> Curves:
    losses = a_curve(0.5, 0.4, 2.0)
    nothing = [math.nan] * 40
    return Curves(0, 40, list(np.linspace(0.01, 1, 40)), losses, nothing, accuracies, 3, "ap50")


def test_a_detector_is_judged_by_its_training_loss_and_by_ap50() -> None:
    later = lr_range.estimate_max_lr(of_detector([70 - x for x in a_curve(0.6, 0.0, 60.0)]))
    assert later.max_lr == pytest.approx(0.5, abs=0.06)
    assert later.evidence[0].startswith("training loss: turns at ")
    assert later.evidence[1].startswith("AP50: turns at 0.6")
    sooner = lr_range.estimate_max_lr(of_detector([70 - x for x in a_curve(0.3, 0.0, 60.0)]))
    assert sooner.max_lr == pytest.approx(0.3, abs=0.06)


def test_an_ap50_that_stays_at_nought_says_nothing_of_the_rate() -> None:
    message = lr_range.estimate_max_lr(of_detector([0.0] * 40))
    assert (message.verdict, message.bounded_above) == ("turn", None)
    assert message.evidence[1] == "AP50: stays near 0 and is not used"


def test_a_segmentation_is_judged_by_its_test_loss_and_by_miou() -> None:
    rates = list(np.linspace(0.01, 1, 40))
    rising, good = a_curve(0.9, 0.1, 2.0), [60 - x for x in a_curve(0.9, 0.0, 50.0)]
    message = lr_range.estimate_max_lr(
        Curves(0, 40, rates, rising, a_curve(0.4, 0.5, 1.0), good, 11, "miou")
    )
    assert message.max_lr == pytest.approx(0.4, abs=0.06)
    assert [line.split(":")[0] for line in message.evidence] == ["test loss", "mIoU"]
    noise = list(60 + 12 * np.random.default_rng(0).standard_normal(40))
    flat = lr_range.estimate_max_lr(Curves(0, 40, rates, noise, noise, noise, 11, "miou"))
    assert flat.verdict == "noisy", "it has learned: a guess has a mIoU of 9.1 at most"


def test_a_run_that_is_never_better_than_at_its_start_does_not_overfit() -> None:
    """Its test loss explodes; what fastai would suggest of it is not to be used."""
    rates, accuracies = np.linspace(0.1, 4, 40).tolist(), np.linspace(30, 18, 40).tolist()
    losses = [2.0 + 0.001 * i + 0.3 * max(0, i - 30) for i in range(40)]
    curves = Curves(0, 92, rates, [2.0] * 40, losses, accuracies, 10)
    assert overfitting_rates(rates, losses, curves.errors) == []
    sentences = RangeTest(recipes.load("quickstart"), a_ramp(end=4.0), [curves, curves]).sentences
    assert "the largest stable rate is below 0.1" in sentences
    assert not [line for line in sentences if "overfitting" in line]
    alone = "fastai's suggestions, from the training loss alone, which these runs do not confirm: "
    assert sentences[-1].startswith(alone)


def lagging(accuracies: list[float]) -> Curves:
    """The training loss falls; the test loss rises from 1.6 past that of a guess, and falls."""
    rates = list(np.linspace(0.1, 4, 40))
    test = [*np.linspace(2.3, 1.6, 8), 1.7, 1.9, 2.1, 4.0, 8.0, 12.0, *np.linspace(11.0, 0.9, 26)]
    return Curves(0, 40, rates, list(np.linspace(2.3, 1.0, 40)), test, accuracies, 10)


def test_a_test_loss_of_a_guess_is_overfitting_only_where_the_score_is_better() -> None:
    near, better = [*[12.0] * 20, *np.linspace(12, 60, 20)], list(np.linspace(50, 60, 40))
    assert lr_range.estimate_max_lr(lagging(near)).overfitting == []
    ((low, high),) = lr_range.estimate_max_lr(lagging(better)).overfitting
    assert (low, high) == pytest.approx((0.8, 1.1), abs=0.11)
    unknown = replace(lagging(near), classes=None)
    assert lr_range.estimate_max_lr(unknown).overfitting == [(low, high)]


def test_an_accuracy_rises_where_its_error_falls() -> None:
    curves = lagging(list(np.linspace(10, 60, 40)))
    loss, accuracy = lr_range.estimate_max_lr(curves).evidence
    assert (loss, accuracy) == (
        "test loss: still falling, no turn up to 4",
        "accuracy: still rising, no turn up to 4",
    )


def test_ranges_of_overfitting_are_those_of_every_seed() -> None:
    ranges = ([(0.1, 0.3), (0.5, 0.8)], [(0.2, 0.6)], [(0.1, 0.9)])
    each = [replace(reading(0.5), overfitting=spans) for spans in ranges]
    assert lr_range.shared_overfitting(each[:1]) == [(0.1, 0.3), (0.5, 0.8)]
    assert lr_range.shared_overfitting(each) == [(0.2, 0.3), (0.5, 0.6)]
    assert lr_range.shared_overfitting([*each, reading(0.5)]) == []


@pytest.mark.parametrize("trusted", [True, False])
def test_the_picture_says_of_what_it_marks_what_the_text_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(picture, "save_figure", lambda figure, _path: saved.append(figure))
    rates = list(np.linspace(0.01, 1, 40))
    loss, better = a_curve(0.5, 0.4, 2.0), [90 - x for x in a_curve(0.5, 0.0, 70.0)]
    turning = Curves(0, 40, rates, loss, loss, better, 10)
    falling = list(np.linspace(2.0, 0.4, 40))
    rising = Curves(2, 40, rates, falling, falling, list(np.linspace(20, 90, 40)), 10)
    runs = [turning, replace(turning, seed=1), turning if trusted else rising]
    test = RangeTest(recipes.load("quickstart"), a_ramp(), runs)
    assert test.answer.trusted == trusted
    picture.draw_range_test(tmp_path / "range.png", test)
    labels = {text.get_text() for text in saved[0].legends[0].get_texts()}
    marks = ("valley", "steepest fall per decade", "minimum / 10")
    assert {f"fastai's {mark}, seed 0" for mark in marks} <= labels
    assert ("largest stable rate" in labels) == trusted
    assert ("largest stable rate, not trusted" in labels) != trusted
    assert [mark for mark in marks if f"{mark}: " not in test.sentences[-1]] == []


# --- the whole decision, on curves whose answer is known ---


@pytest.mark.parametrize("family", [*TURNING, *WITHOUT], ids=lambda family: str(family.__name__))
def test_a_trusted_rate_is_seldom_wrong_by_three(family: Family) -> None:
    # 180 tests: where 2 % are wrong, 10 or more are in 0.3 % of all seeds
    found = simulated(family, every_setting(), 10, 1).ours
    assert found.trusted_wrong < 10


@pytest.mark.parametrize("family", TURNING, ids=lambda family: str(family.__name__))
def test_a_clear_turn_is_mostly_trusted(family: Family) -> None:
    clear = [s for s in every_setting() if s.points >= 20 and s.noise < 0.1]
    found = simulated(family, clear, 8, 1).ours
    assert found.trusted >= 0.7 * found.draws


@pytest.mark.long
@pytest.mark.parametrize("family", [*TURNING, *WITHOUT], ids=lambda family: str(family.__name__))
def test_below_two_percent_of_trusted_rates_are_wrong_by_three(family: Family) -> None:
    for seeds in (1, 3):
        found = simulated(family, every_setting(), 100, seeds, seed=1).ours
        assert found.trusted_wrong < 0.02 * found.draws


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ramp", "cubic"), "--ramp: 'cubic' is not known. Use linear or exponential."),
        (("--momentum", "0.9"), "--momentum: '0.9' is not A:B."),
        (("--momentum", "1.0:0.9"), "--momentum: 1.0:0.9 must be at least 0 and below 1"),
        (("--steps", "20", "--epochs", "1"), "--steps and --epochs set the same thing."),
        (("--start", "5", "--end", "1"), "Give a start_lr below end_lr"),
    ],
)
def test_bad_words_are_refused(rescue: Rescue, words: tuple[str, ...], message: str) -> None:
    ended = rescue("lr-range-test", *words)
    assert ended.code == 2
    assert message in ended.err


def test_momentum_is_read_as_it_is_written() -> None:
    assert parse_momentum("0.95:0.85") == (0.95, 0.85)
    assert parse_momentum(None) is None
    with pytest.raises(UsageError):
        parse_momentum("a:b")
