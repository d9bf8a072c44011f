"""The checks for a machine with a GPU, on the pretend device and without any."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rescue_cli.analysis import records
from rescue_cli.engine.step import Step
from rescue_cli.errors import DataError
from tests import gpu_check
from tests.gpu_check import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(sys, "argv", sys.argv)  # which a check sets
    threads = torch.get_num_threads()
    yield Place(tmp_path, None, small=True)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("pretend_cuda", "forked_workers")
@pytest.mark.parametrize("name", ["families", "step-airbench94"])
def test_a_check_passes_on_the_pretend_device(name: str, place: Place) -> None:
    outcome = gpu_check.attempt(name, place)
    assert outcome["ok"], outcome
    assert json.dumps(outcome)


@pytest.mark.usefixtures("pretend_cuda", "forked_workers")
def test_a_whole_run_goes_on_record(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = gpu_check.attempt("airbench94", place)
    assert outcome["ok"], outcome
    record = outcome["result"]["record"]
    file = place.out / "report.json"
    file.write_text(json.dumps({"records": [record]}))
    written = place.out / "airbench94.json"
    monkeypatch.setattr(records, "record_path", lambda _: written)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--add", str(file)])
    gpu_check.main()
    assert capsys.readouterr().out.strip() == str(written)
    (entry,) = json.loads(written.read_text())["runs"]
    assert entry == record["entry"]
    assert entry["environment"]["device"] == "cuda"
    assert entry["result"]["seconds_warmup"] > 0
    with pytest.raises(DataError, match="already recorded"):
        gpu_check.main()


def on_a_cpu(name: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    return gpu_check.attempt(name, place)


@pytest.mark.parametrize("name", ["agreement", "profile", "nccl"])
def test_a_check_passes_on_a_cpu(name: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = on_a_cpu(name, place, monkeypatch)
    assert outcome["ok"], outcome
    assert json.dumps(outcome)


@pytest.mark.slow
def test_a_run_that_is_stopped_is_compared_with_one_that_never_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = on_a_cpu("stop-and-resume", place, monkeypatch)
    assert outcome["ok"], outcome
    assert 0 < outcome["result"]["lines_before"] < 200


def test_memory_that_runs_out_is_the_outcome_that_is_wanted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda _: None)
    assert not on_a_cpu("out-of-memory", place, monkeypatch)["ok"], "there was enough"
    monkeypatch.setattr(Step, "__call__", exhaust)
    again = Place(place.out / "again", None, small=True)
    again.out.mkdir()
    outcome = on_a_cpu("out-of-memory", again, monkeypatch)
    assert outcome["ok"], outcome
    assert "train.device_batch_size" in outcome["result"]["message"]


def test_a_check_that_fails_or_hangs_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"device": {"ok": True, "result": {"a": 1}, "seconds": 0.1}}

    def answer(name: str, _place: Place, _seconds: float) -> dict[str, Any]:
        return answers.get(
            name, {"ok": False, "error": "Traceback\nRuntimeError: no", "seconds": 2}
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_check, "attempt_apart", answer)
    monkeypatch.setattr(sys, "argv", ["gpu_check", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{'device':<25}ok          0.1 s"
    assert lines[1] == f"{'families':<25}FAILED      2.0 s  RuntimeError: no"
    report = json.loads((tmp_path / gpu_check.FILE).read_text())
    assert list(report["checks"]) == list(gpu_check.CHECKS)


def test_a_check_that_hangs_is_ended(tmp_path: Path) -> None:
    outcome = gpu_check.attempt_apart("device", Place(tmp_path, None), 0.01)
    assert outcome == {"ok": False, "error": "not done after 0 s", "seconds": 0.01}


def test_without_a_gpu_the_file_says_that_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 0
    assert "no GPU here: nothing was checked" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / gpu_check.FILE).read_text())
    assert report == {"device": None, "checks": {}, "records": []}
