"""`seed-sweep --until`: planned looks at made sweeps, and what an unplanned look costs."""

import json
from pathlib import Path

import pytest

from tests.conftest import Rescue
from tests.helpers.synthetic_runs import made_sweep

TINY = ("model.width=4", "data.subset=[256,200]", "train.batch_size=32",
        "train.device_batch_size=32", "train.epochs=2")  # fmt: skip
LOW = {seed: 50 + 0.5 * (seed % 3) for seed in range(6)}
HIGH = {seed: 60 + 0.5 * (seed % 4) for seed in range(10)}
CALL = ("seed-sweep", *TINY, "--seeds", "10", "--out", "b", "--until", "a", "--json")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    made_sweep(tmp_path / "a", LOW, overrides=TINY)
    made_sweep(tmp_path / "b", HIGH, overrides=TINY)
    return tmp_path


@pytest.mark.usefixtures("made")
def test_a_sweep_stops_at_the_first_significant_look(rescue: Rescue) -> None:
    ended, planned = rescue(*CALL), rescue(*CALL, "--dry-run")
    assert ended.code == 0, ended.err
    for told in (ended.err, planned.err):
        assert "looks after 3, 5, 10 seeds, each at p < 0.017: 5 % overall" in told
    assert "98.3 % interval" in ended.out
    found = json.loads(ended.out)["until"]
    assert found["look"]["number"] == 1
    assert found["n"] == [6, 3], "the seeds of the look, of the ten that are there"
    assert found["claim"].startswith("b is better than a by ")
    assert "look 2 of 3" not in ended.err
    assert json.loads(rescue(*CALL).out)["until"] == found


def test_a_sweep_without_a_difference_runs_to_its_last_look(rescue: Rescue, made: Path) -> None:
    made_sweep(made / "c", {seed: 50 + 0.5 * (seed % 4) for seed in range(10)}, overrides=TINY)
    words = [word if word != "b" else "c" for word in CALL]
    ended = rescue(*words)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["until"]["look"] == {
        "number": 3, "of": 3, "seeds": 10, "level": pytest.approx(0.05 / 3),
    }  # fmt: skip
    more = rescue(*(word if word != "10" else "20" for word in words))
    assert more.code == 2
    assert "c was started with other looks, against a with 10 seeds. Repeat that" in more.err


@pytest.mark.usefixtures("made")
def test_unplanned_looks_are_reported_and_cannot_become_planned(rescue: Rescue) -> None:
    assert "warning" not in rescue("compare", "a", "b").err
    assert "warning" not in rescue("compare", "a", "b").err, "the same look again"
    refused = rescue(*CALL)
    assert refused.code == 2
    assert "at a look that was not planned. Use a new --out." in refused.err


def test_comparing_again_after_more_seeds_gives_a_warning(rescue: Rescue, made: Path) -> None:
    assert "warning" not in rescue("compare", "a", "b").err
    made_sweep(made / "a", {6: 50.5}, overrides=TINY)
    again = rescue("compare", "a", "b")
    assert again.code == 0, again.err
    assert "a and b were compared before, with 16 runs in total." in again.err
    assert "warning" not in rescue("compare", "b", "80.0±0.5/5").err


@pytest.mark.usefixtures("made")
def test_comparing_a_planned_sweep_again_points_to_its_own_test(rescue: Rescue) -> None:
    assert rescue(*CALL).code == 0
    again = rescue("compare", "a", "b")
    assert again.code == 0, again.err
    assert "b was trained by --until against a, with 3 planned looks" in again.err
    assert rescue("report", "a", "b", "--out", "page.html").code == 0


def test_a_broken_plan_is_refused_and_a_broken_record_ignored(rescue: Rescue, made: Path) -> None:
    (made / "b" / ".compared.json").write_text('{"x": "y", "z": [1, "a", null]}')
    assert rescue("compare", "a", "b").code == 0
    (made / "b" / "until.json").write_text('{"against": 3}')
    refused = rescue(*CALL)
    assert refused.code == 3
    assert "until.json: against: 3 is not a string." in refused.err


@pytest.mark.usefixtures("made")
def test_a_single_number_is_refused_as_an_opponent(rescue: Rescue) -> None:
    refused = rescue(*CALL[:-2], "91.0")
    assert refused.code == 2
    assert "--until: 91.0 has no standard deviation." in refused.err
