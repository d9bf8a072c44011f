"""Trackers: what each gets of a run, also of one that is resumed."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.errors import UsageError
from rescue_cli.rundir import RunDirectory, read_metrics
from rescue_cli.runs.tracking import TRACKERS, VARIABLE, Trackers, check_trackers, name_numbers
from tests.conftest import Rescue

TINY = (
    "--smoke", "train.steps_per_epoch=4", "train.log_every=1", "model.width=4",
    "eval.tta=[none,flip]",
)  # fmt: skip
EVAL = {"set": "val", "size": 224, "crop": 0.95, "tta": "flip"}


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # and taken back in the end


def numbers(run: Path) -> dict[tuple[str, int], float]:
    """What every tracker should have: the numbers of `metrics.jsonl` by name and step."""
    return {
        (name, line["step"]): value
        for line in read_metrics(RunDirectory(run).metrics)
        for name, value in name_numbers(line.pop("kind"), line).items()
        if name.partition("/")[2] != "step"
    }


def test_numbers_are_named_by_what_they_are_of() -> None:
    line = {**EVAL, "epoch": 1.0, "top1": 50.0, "loss": None, "count": 10, "seconds": 2}
    assert name_numbers("eval", line) == {
        "val 224px@0.95 flip/top1": 50.0,
        "val 224px@0.95 flip/seconds": 2.0,
    }
    assert name_numbers("train", {"epoch": 1.0, "lr": 0.1}) == {"train/lr": 0.1}


def test_csv_has_the_numbers_of_the_metrics_once_also_after_a_resume(
    rescue: Rescue, tmp_path: Path
) -> None:
    ended = rescue("train", *TINY, "--track", "csv", "--out", "run")
    assert ended.code == 0, ended.err
    file = tmp_path / "run/metrics.csv"
    expected = numbers(tmp_path / "run")
    assert len({name for name, _ in expected}) > 8

    def found() -> list[tuple[str, int, float]]:
        with file.open(newline="") as lines:
            return [(r["name"], int(r["step"]), float(r["value"])) for r in csv.DictReader(lines)]

    assert {(name, step): value for name, step, value in found()} == pytest.approx(expected)
    # A resume from step 2 writes the later lines again
    run, recipe = RunDirectory(tmp_path / "run"), recipes.recipe_in(tmp_path / "run")
    again = Trackers(run, recipe)
    again.begin(2)
    again.close()
    assert {step for _, step, _ in found()} == {1, 2}


def test_a_name_that_is_unknown_or_not_installed_is_refused(rescue: Rescue) -> None:
    with pytest.raises(UsageError, match=r"--track: 'wandbb' is not known\. Did you mean 'wandb'"):
        check_trackers(["wandbb"])
    assert check_trackers(["csv,csv", "csv"]) == ["csv"], "a list is several names"
    ended = rescue("train", "--smoke", "--track", "tensorboad")
    assert ended.code == 2
    assert "Did you mean 'tensorboard'?" in ended.err


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each tracker keeps what it gets below this folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def read_tensorboard(run: Path) -> dict[tuple[str, int], float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }


def read_mlflow(_run: Path) -> dict[tuple[str, int], float]:
    import mlflow

    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'rescue'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["optim.lr"] == "0.4"
    assert run.info.status == "FINISHED"
    return {
        (name.replace(" ", "@", 2).replace("@", " ", 1) if "px " in name else name, m.step): m.value
        for name in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, name)
    }


def read_trackio(_run: Path) -> dict[tuple[str, int], float]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("rescue")
    return {
        (key, int(line["step"])): value
        for line in SQLiteStorage.get_logs("rescue", name)
        for key, value in line.items()
        if "/" in key
    }


def read_wandb(run: Path) -> dict[tuple[str, int], float]:
    from wandb.proto import wandb_internal_pb2

    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    found: dict[tuple[str, int], float] = {}
    for data in read_log(file.read_bytes()):
        record: Any = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
        step = json.loads(items["_step"])
        found |= {(k, step): json.loads(v) for k, v in items.items() if not k.startswith("_")}
    return found


def read_log(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after its 7 bytes of identification."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little for a header: the rest of a block is empty
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


READERS = {
    "mlflow": read_mlflow,
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.filterwarnings("ignore")  # theirs
def test_what_was_logged_is_read_back(name: str, rescue: Rescue, offline: Path) -> None:
    pytest.importorskip(name)
    ended = rescue("train", *TINY, "--track", name, "--out", "run")
    assert ended.code == 0, ended.err
    found = READERS[name](offline / "run")
    assert found == pytest.approx(numbers(offline / "run"), rel=1e-5)


def test_each_tracker_is_read_back_above() -> None:
    assert set(READERS) | {"csv"} == set(TRACKERS)
    assert os.environ[VARIABLE] == ""
