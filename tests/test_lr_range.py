"""`rescue lr-range-test`, through the command on images that ship with the package."""

import json
import math
from pathlib import Path

import pytest

from rescue_cli import range_test
from rescue_cli import recipe as recipes
from rescue_cli.errors import StoppedError, UsageError
from rescue_cli.range_test import Ramp, Reading
from tests.conftest import Rescue

TINY = ("model.width=4", "data.subset=[640,200]", "train.batch_size=32",
        "train.device_batch_size=32")  # fmt: skip
QUICK = ("lr-range-test", "--epochs", "1.5", "--points", "10", "--out", "test", *TINY)
NONE = dict.fromkeys(("valley", "steepest", "slide", "minimum"))


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
    assert [run["seed"] for run in written["runs"]] == [0, 1, 0]
    full, _, half = written["runs"]
    assert len(full["rates"]) == len(full["test_losses"]) == len(full["accuracies"])
    assert len(full["rates"]) == 10
    assert half["steps"] == full["steps"] / 2
    assert (tmp_path / "test" / "lr-range.png").read_bytes()[:4] == b"\x89PNG"
    before = (tmp_path / "test" / "seed-0" / "metrics.jsonl").read_text()
    again = rescue(*QUICK, "--seeds", "2", "--end", "2", "--json")
    assert json.loads(again.out) == found
    assert (tmp_path / "test" / "seed-0" / "metrics.jsonl").read_text() == before


def test_a_test_loss_that_is_not_finite_is_read_as_such(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "step": 5, "loss": 2.0},
        {"kind": "eval", "step": 5, "loss": None, "top1": 10.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    ramp = Ramp(0.0, 1.0, shape="linear", momentum=None, epochs=1, points=10)
    found = range_test.read(tmp_path, ramp, 10, 0, diverged=False)
    assert math.isnan(found.test_losses[0])
    assert found.accuracies == [10.0]


def test_a_report_points_at_the_tests_own_picture(rescue: Rescue) -> None:
    assert rescue(*QUICK).code == 0
    ended = rescue("report", "test")
    assert ended.code == 3
    assert "test: is a search, and has its own page. Open test/lr-range.png." in ended.err


def test_stopped_it_says_how_it_goes_on(rescue: Rescue, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise StoppedError("stopped at step 3", 130)

    monkeypatch.setattr("rescue_cli.launch.run_directory", stop)
    ended = rescue(*QUICK)
    assert ended.code == 130
    assert "run 1 of 2: seed-0" in ended.err
    assert "The same command with --out test goes on." in ended.err


def test_a_run_that_diverges_ends_there_and_is_read(rescue: Rescue) -> None:
    call = (*QUICK, "--end", "1e6", "--ramp", "exponential", "optim.weight_decay=0.5")
    ended = rescue(*call)
    assert ended.code == 0
    again = rescue(*call)
    assert again.out == ended.out
    assert "test/seed-0: diverged before" in again.err
    assert "diverged: the loss is" in ended.err
    assert "max_lr" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_no_turn_is_said_and_nothing_is_applied(rescue: Rescue, tmp_path: Path) -> None:
    ended = rescue(*QUICK, "--end", "0.01", "--apply", "mine.yaml")
    assert "no turn found up to 0.01: the largest stable rate lies beyond" in ended.out
    assert ended.code == 2
    assert "--apply: no turn was found up to 0.01" in ended.err
    assert not (tmp_path / "mine.yaml").exists()


def test_what_is_applied_is_a_valid_recipe_with_the_groups_ratios() -> None:
    base = recipes.load("airbench94-muon")
    given = range_test.applied(base, 0.12, (0.95, 0.85))
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


def reading(rate: float | None) -> Reading:
    return Reading(rate, ["said"], [], NONE)


@pytest.mark.parametrize(
    ("rates", "half", "trusted", "reason"),
    [
        ([0.5, 0.6, 0.9], 0.5, True, ""),
        ([0.4, 0.6, 0.9], 0.5, False, "between seeds it moves from 0.4 to 0.9"),
        ([0.5, 0.6, 0.7], 0.2, False, "with half the steps it is 0.2"),
        ([0.5, None, 0.7], 0.5, False, "no turn found up to 1 in 1 of 3 runs"),
        ([0.5, 0.6, 0.7], None, False, "with half the steps no turn is found"),
    ],
)
def test_a_suggestion_that_moves_by_more_than_two_is_not_trusted(
    rates: list[float | None], half: float | None, trusted: bool, reason: str
) -> None:
    found = range_test.answer([reading(rate) for rate in rates], reading(half), 1.0)
    assert found.trusted is trusted
    assert "; ".join(found.reasons) == reason
    assert found.max_lr == pytest.approx(0.6)


def test_without_any_turn_there_is_no_rate() -> None:
    found = range_test.answer([reading(None)], reading(None), 3.0)
    assert (found.max_lr, found.min_lr, found.trusted) == (None, None, False)
    assert found.reasons == ["no turn found up to 3 in 1 of 1 runs"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ramp", "cubic"), "--ramp: 'cubic' is not known. Use linear or exponential."),
        (("--momentum", "0.9"), "--momentum: '0.9' is not A:B."),
        (("--momentum", "1.0:0.9"), "--momentum: 1.0:0.9 must be at least 0 and below 1"),
        (("--steps", "20", "--epochs", "1"), "--steps and --epochs say the same thing."),
        (("--start", "5", "--end", "1"), "Give a start_lr below end_lr"),
    ],
)
def test_bad_words_are_refused(rescue: Rescue, words: tuple[str, ...], said: str) -> None:
    ended = rescue("lr-range-test", *words)
    assert ended.code == 2
    assert said in ended.err


def test_momentum_is_read_as_it_is_written() -> None:
    assert range_test.momentum_of("0.95:0.85") == (0.95, 0.85)
    assert range_test.momentum_of(None) is None
    with pytest.raises(UsageError):
        range_test.momentum_of("a:b")
