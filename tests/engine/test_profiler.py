"""`rescue train --profile`."""

import gzip
import json
from pathlib import Path

import pytest

from rescue_cli.rundir import RunDirectory, read_json
from tests.conftest import Rescue

TINY = ("data.subset=[{}, 32]", "model.width=4", "train.batch_size=32", "train.epochs=1")


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "recorded"), [(14, range(7, 12)), (2, range(1, 2))])
def test_a_profile_has_a_few_steps_with_their_parts_by_name(
    steps: int, recorded: range, rescue: Rescue, tmp_path: Path
) -> None:
    subset = TINY[0].format(32 * steps)
    small = (subset, *TINY[1:], "train.device_batch_size=16")
    ended = rescue("train", *small, "--profile", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    run = RunDirectory(tmp_path / "run")
    events = json.loads(gzip.decompress(run.profile.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [n for n in names if n.startswith("ProfilerStep")] == [
        f"ProfilerStep#{number}" for number in recorded
    ]
    for part in ("augment", "mix", "forward and loss"):
        assert names.count(part) == 2 * len(recorded), "one for each of two micro-batches"
    assert names.count("optimizers") == names.count("average") == len(recorded)
    table = run.profile_table.read_text()
    assert table.startswith(f"of {len(recorded)} step")
    assert "aten::convolution_backward" in table


def test_without_the_option_there_is_no_profile(rescue: Rescue, tmp_path: Path) -> None:
    small = (TINY[0].format(64), *TINY[1:], "train.device_batch_size=16")
    assert rescue("train", *small, "--out", tmp_path / "run").code == 0
    run = RunDirectory(tmp_path / "run")
    assert not run.profile.exists()
    assert "profile" not in read_json(run.environment)


def test_a_resumed_run_that_ends_too_soon_says_that_nothing_was_profiled(
    rescue: Rescue, tmp_path: Path
) -> None:
    small = (TINY[0].format(32 * 14), *TINY[1:], "train.device_batch_size=32")
    assert rescue("train", *small, "--out", tmp_path / "run").code == 0
    run = RunDirectory(tmp_path / "run")
    run.result.unlink()  # as if killed just before it was written
    again = rescue("train", "--resume", "--profile", "--out", run.path)
    assert again.code == 0, again.err
    warning = "warning: --profile: too few steps were left, so nothing was profiled"
    assert warning in run.log.read_text()
    assert not run.profile.exists()
