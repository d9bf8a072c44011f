"""`seed-sweep --on slurm`: refusals anywhere, and four seeds where SLURM runs (make test-slurm)."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rescue_cli.errors import DataError, RescueError
from rescue_cli.rundir import RunDirectory, write_json
from rescue_cli.runs import slurm
from tests.conftest import Rescue

SMALL = (
    "model.width=4", "data.subset=[512,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=30", "train.log_every=1", "eval.every=30",
)  # fmt: skip


def _slurm_runs() -> bool:
    """Whether its tools are here and its controller answers."""
    if shutil.which("sbatch") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=10).returncode == 0
    return False


runs_here = pytest.mark.skipif(
    not _slurm_runs(), reason="no SLURM runs here: make test-slurm starts one"
)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "rescue_cli", "seed-sweep", "--seeds", "4", *SMALL, *words]


@runs_here
def test_four_seeds_one_of_them_requeued_equal_those_of_a_local_sweep(tmp_path: Path) -> None:
    environment = {**os.environ, "RESCUE_ALLOCATOR": "off"}
    cores = len(os.sched_getaffinity(0))
    queued = command("--out", "queued", "--on", "slurm", "--slurm", f"cpus_per_task={cores}")
    with subprocess.Popen(
        queued, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE
    ) as process:
        run = tmp_path / "queued" / "seed-1"
        try:
            _wait_for(lambda: len(_lines(run)) > 20, seconds=300)
            jobs = json.loads((tmp_path / "queued" / ".slurm" / "jobs.json").read_text())
            subprocess.run(["scontrol", "requeue", jobs[str(run)]], check=True)
            _, message = process.communicate(timeout=900)
        finally:
            process.kill()
    assert process.returncode == 0, message
    assert "4 of 4" in message
    assert len((run / "command.txt").read_text().splitlines()) == 2  # begun, and gone on
    subprocess.run(command("--out", "local"), cwd=tmp_path, env=environment, check=True)
    for seed in range(4):
        ours, theirs = (tmp_path / f / f"seed-{seed}" for f in ("queued", "local"))
        assert json.loads((ours / "result.json").read_text())["steps"] == 30 * 16
        weights = [load_file(path / "model.safetensors") for path in (ours, theirs)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
        assert _lines(ours) == _lines(theirs)


def _lines(run: Path) -> list[tuple[object, ...]]:
    """Losses and accuracies by step, without clocks."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line["loss"], line.get("top1")) for line in lines]


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "SLURM did not come so far in time"
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("word", "code", "message"),
    [
        (None, 1, "job 7 left the queue without a failure record."),
        ({"rank": 0, "exit_code": 3, "message": "no such folder"}, 3, "no such folder"),
    ],
)
def test_a_job_is_judged_by_its_own_failure_record_and_not_an_earlier_jobs(
    word: dict[str, object] | None,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunDirectory(tmp_path / "seed-0")
    write_json(run.failure, {"rank": 0, "exit_code": 3, "message": "an earlier job's"})

    class Executor:
        def map_array(self, _train: object, paths: list[Path]) -> list[SimpleNamespace]:
            assert paths == [run.path]
            if word is not None:
                write_json(run.failure, word)
            return [SimpleNamespace(job_id="7")]

    monkeypatch.setattr(slurm, "_executor", lambda *_: Executor())
    monkeypatch.setattr(slurm, "_queued_jobs", set)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    error: RescueError | None
    try:
        (ended,) = slurm.run_all([run.path], {}, (), tmp_path)
        path, error = ended.path, ended.error
    except DataError as fatal:
        path, error = run.path, fatal
    assert path == run.path
    assert error is not None
    assert (error.exit_code, message in str(error)) == (code, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--slurm", "time=5"), "--slurm: options of sbatch, and this command runs here."),
        (("--on", "slurm", "--slurm", "gpu"), "--slurm: 'gpu' is not KEY=VALUE."),
    ],
)
def test_what_the_queue_cannot_be_asked_is_refused(
    rescue: Rescue, words: tuple[str, ...], message: str
) -> None:
    ended = rescue("seed-sweep", "--seeds", "2", *words)
    assert ended.code == 2
    assert message in ended.err


def test_without_slurm_the_sweep_says_so_and_where_it_can_run(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ended = rescue("seed-sweep", "--seeds", "2", "--on", "slurm")
    assert ended.code == 2
    assert "--on slurm: there is no squeue on this machine." in ended.err
