"""The run directories that other tests write are as `rescue train` leaves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescue_cli.analysis import sides
from rescue_cli.analysis.sweep import read_sweep
from rescue_cli.errors import DivergedError
from rescue_cli.rundir import RunDirectory, read_json, read_metrics
from rescue_cli.rundir.planned import MissingRun
from tests.conftest import Rescue
from tests.helpers.synthetic_runs import made_failure, made_run, made_sweep

TINY = [
    "model.width=4", "data.subset=[256,200]", "train.batch_size=32", "train.device_batch_size=32",
    "train.epochs=2", "eval.tta=[none,flip]",
]  # fmt: skip


def shape(value: Any) -> Any:
    """The keys and types of a value that JSON can have; a number is a number."""
    if isinstance(value, Mapping):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, int | float) or value is None else type(value)


def test_a_made_run_has_the_files_of_a_trained_one(rescue: Rescue, tmp_path: Path) -> None:
    assert rescue("train", "--out", "trained", *TINY).code == 0
    made_run(tmp_path / "made", {"test none": 40.5, "test flip": 41.0}, overrides=TINY)
    trained, made = (RunDirectory(tmp_path / name) for name in ("trained", "made"))
    assert made.recipe.read_text() == trained.recipe.read_text()
    for name in ("result", "environment"):
        first, second = (read_json(getattr(run, name)) for run in (trained, made))
        assert shape(second) == shape(first)
    assert (
        read_json(made.result)["sets"][1]["protocol"]
        == (read_json(trained.result)["sets"][1]["protocol"])
    )
    assert shape(read_metrics(made.metrics)) == shape(read_metrics(trained.metrics))
    for stem in ("test-none", "test-flip"):
        with np.load(trained.predictions(stem)) as one, np.load(made.predictions(stem)) as other:
            assert set(one) == set(other)
            assert {k: v.shape for k, v in one.items() if k != "classes"} == {
                k: v.shape for k, v in other.items() if k != "classes"
            }
    assert rescue("report", "made").code == 0


def test_a_made_sweep_has_the_given_results(tmp_path: Path) -> None:
    tops = {0: 40.0, 1: 42.5, 5: 41.0}
    folder = made_sweep(
        tmp_path / "sweep", tops, overrides=TINY, losses={0: 1.5, 1: 1.25, 5: 2.0},
        diverged={2: "diverged at step 3"},
    )  # fmt: skip
    found = read_sweep(folder)
    assert found.values("test") == pytest.approx(tops)
    assert found.missing == {2: MissingRun("diverged", "diverged at step 3")}
    assert [r["loss"] for r in found.results.values()] == pytest.approx([1.5, 1.25, 2.0])
    right = sides.correct_predictions(sides.load_predictions(folder / "seed-1"))
    assert (100 * right.mean(), len(right)) == (42.5, 200)
    assert sides.read_points(folder / "seed-1")[-1].top1 == pytest.approx(42.5)


def test_a_made_failure_is_a_workers_failure_record(tmp_path: Path) -> None:
    run = RunDirectory(made_failure(tmp_path / "run", DivergedError("the loss is nan")))
    assert json.loads(run.failure.read_text()) == {
        "rank": 0, "exit_code": 4, "message": "the loss is nan",
    }  # fmt: skip
