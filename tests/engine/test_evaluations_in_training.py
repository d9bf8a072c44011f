"""What the evaluations of a run measure: test-time augmentation at the end only."""

from pathlib import Path

import pytest

from rescue_cli.analysis.sides import read_points
from rescue_cli.rundir import RunDirectory, read_metrics, read_result
from tests.conftest import Rescue

TINY = ("data.subset=[160, 32]", "model.width=4", "train.epochs=3")
BATCH = ("train.batch_size=32", "train.device_batch_size=32")


@pytest.mark.parametrize(
    ("listed", "in_training"),
    [
        (["flip", "none"], "none"),
        (["flip-translate", "flip"], "flip-translate"),
        (["flip"], "flip"),
    ],
)
def test_test_time_augmentation_beside_none_waits_for_the_last_step(
    listed: list[str], in_training: str, rescue: Rescue, tmp_path: Path
) -> None:
    ended = rescue("train", *TINY, *BATCH, f"eval.tta=[{','.join(listed)}]", "--out", "run")
    assert ended.code == 0, ended.err
    run = RunDirectory(tmp_path / "run")
    tests = [line for line in read_metrics(run.metrics) if line["kind"] == "eval"]
    measured = [(line["step"], line["tta"]) for line in tests]
    assert measured == [(5, in_training), (10, in_training), *((15, tta) for tta in listed)]
    # The curve and the best step are of what every evaluation measures, the result of the first
    tops = [line["top1"] for line in tests if line["tta"] == in_training]
    assert [point.top1 for point in read_points(run.path)] == tops
    result = read_result(run)
    assert result["best"]["top1"] == max(tops)
    assert [entry["protocol"]["tta"] for entry in result["sets"]] == listed
    assert result["top1"] == next(line["top1"] for line in tests[2:] if line["tta"] == listed[0])
