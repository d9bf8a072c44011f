"""Steps that are taken and undone before the clock starts."""

from pathlib import Path
from typing import Any

import pytest

from rescue_cli.engine.loop import WARM_UP_STEPS, Loop
from rescue_cli.engine.step import Step
from rescue_cli.rundir import RunDirectory, read_json, write_json
from rescue_cli.runs import worker
from tests.conftest import Rescue
from tests.helpers.processes import assert_same

TINY = (
    *("data.subset=[160, 32]", "model.width=4", "train.epochs=2", "train.batch_size=32"),
    "train.log_every=1",
)
EMA = "averaging={name: ema, decay: 0.5, every: 1}"
LAMB = "optim={name: lamb, lr: 0.01, weight_decay: 0.02, max_grad_norm: 1.0}"
PROXY = "selection={name: proxy, share: 0.5, every: 2, model: {width: 4}}"


@pytest.mark.parametrize(
    "options",
    [
        (EMA, "train.device_batch_size=16"),
        (LAMB, PROXY, "train.device_batch_size=32"),
    ],
    ids=["ema", "lamb and a proxy"],
)
def test_a_run_that_warmed_up_is_the_run_that_did_not(
    options: tuple[str, ...], rescue: Rescue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = rescue("train", *TINY, *options, "--out", tmp_path / "cold")
    assert cold.code == 0, cold.err
    assert "to warm up" not in cold.out
    taken: list[int] = []
    call = Step.__call__

    def counted(self: Step, step: int) -> None:
        taken.append(step)
        call(self, step)

    def make_loop(**values: Any) -> Loop:
        return Loop(**{**values, "warms_up": True})

    monkeypatch.setattr(Step, "__call__", counted)
    monkeypatch.setattr(worker, "Loop", make_loop)
    warm = rescue("train", *TINY, *options, "--out", tmp_path / "warm")
    assert warm.code == 0, warm.err
    assert taken == [*range(WARM_UP_STEPS), *range(10)]
    assert "s to warm up: steps that were undone" in warm.out
    file = RunDirectory(tmp_path / "warm").result
    result = read_json(file)
    assert result.pop("seconds_warmup") > 0
    write_json(file, result)
    assert_same(tmp_path / "warm", tmp_path / "cold")


@pytest.mark.parametrize(("compiles", "warms_up"), [("true", True), ("false", False)])
def test_what_compiles_warms_up(
    compiles: str, warms_up: bool, rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_loop(**values: Any) -> Loop:
        assert values["warms_up"] is warms_up
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "Loop", make_loop)
    ended = rescue("train", *TINY, "train.device_batch_size=16", f"train.compile={compiles}")
    assert ended.code == 130, ended.err
