"""`--on slurm`: what is submitted and refused, anywhere; real runs by `make test-cluster`."""

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
from typing import Self

import pytest
import torch
from safetensors.torch import load_file

from rescue_cli.errors import DataError, RescueError
from rescue_cli.rundir import RunDirectory, write_json
from rescue_cli.runs import slurm
from tests.conftest import Rescue

CORES = len(os.sched_getaffinity(0))
ENVIRONMENT = {**os.environ, "RESCUE_ALLOCATOR": "off"}
# One at a time: both nodes are this machine, and each run takes all of its cores
ON_SLURM = ("--on", "slurm", "--slurm", f"cpus_per_task={CORES}", "--jobs", "1")
SMALL = (
    "model.width=4", "data.subset=[512,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=10", "train.log_every=1", "eval.every=10",
)  # fmt: skip


def _slurm_runs() -> bool:
    """Whether its tools are here and its controller answers."""
    if shutil.which("sbatch") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=10).returncode == 0
    return False


def runs_here(test: Callable[..., None]) -> Callable[..., None]:
    skip = pytest.mark.skipif(
        not _slurm_runs(), reason="no SLURM runs here: make test-cluster starts one"
    )
    marked: Callable[..., None] = pytest.mark.cluster(skip(test))
    return marked


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "rescue_cli", *map(str, words)]


class Waiting:
    """A command that waits for its jobs; it is killed at the end of the body."""

    def __init__(self, folder: Path, *words: object) -> None:
        self.folder = folder
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                command(*words), cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                stderr=stderr,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < end, "SLURM did not come so far in time"
            time.sleep(0.2)

    def ends(self) -> str:
        """What it has printed, once it has ended well."""
        out, _ = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, self.stderr
        return str(out)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


def job_of(path: Path, submissions: Path) -> str:
    """The id of the job that works on a path."""
    return str(json.loads((submissions / ".slurm" / "jobs.json").read_text())[str(path)])


def run_here(folder: Path, *words: object) -> None:
    subprocess.run(command(*words), cwd=folder, env=ENVIRONMENT, check=True)


def is_at_step(run: Path, step: int) -> Callable[[], bool]:
    return lambda: len(_lines(run)) > step


def assert_same(ours: Path, theirs: Path) -> None:
    """Weights bit for bit, and all lines of metrics but for the clock."""
    weights = [load_file(path / "model.safetensors") for path in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    assert _lines(ours) == _lines(theirs)


def starts(run: Path) -> int:
    """How often `rescue train` has begun or resumed it."""
    return len((run / "command.txt").read_text().splitlines())


@runs_here
def test_four_seeds_one_of_them_requeued_equal_those_of_a_local_sweep(tmp_path: Path) -> None:
    words = ("seed-sweep", "--seeds", 4, *SMALL)
    queued = ("--out", "queued", *ON_SLURM)
    with Waiting(tmp_path, *words, *queued) as sweep:
        run = tmp_path / "queued" / "seed-1"
        sweep.wait_for(is_at_step(run, 20))
        subprocess.run(["scontrol", "requeue", job_of(run, tmp_path / "queued")], check=True)
        sweep.ends()
        assert "4 of 4" in sweep.stderr
    assert starts(run) == 2
    run_here(tmp_path, *words, "--out", "local")
    for seed in range(4):
        ours, theirs = (tmp_path / f / f"seed-{seed}" for f in ("queued", "local"))
        assert json.loads((ours / "result.json").read_text())["steps"] == 10 * 16
        assert_same(ours, theirs)


@runs_here
def test_a_run_on_two_nodes_that_is_preempted_equals_one_on_two_local_processes(
    tmp_path: Path,
) -> None:
    words = ("train", *SMALL, "train.device_batch_size=16")
    with Waiting(tmp_path, *words, "--on", "slurm", "--nodes", 2, "--json") as train:
        run = tmp_path / "runs" / "quickstart" / "0"
        train.wait_for(is_at_step(run, 20))
        # As SLURM announces the end of the time limit, or a preemption
        job = job_of(run, run)
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        assert json.loads(train.ends())["steps"] == 10 * 16
    assert starts(run) == 2
    assert " resumed at step " in (run / "log.txt").read_text()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["procs"] == 2
    assert "#SBATCH --nodes=2\n" in (run / ".slurm" / f"{job}_submission.sh").read_text()
    run_here(tmp_path, *words, "--procs", 2, "--out", "local")
    assert_same(run, tmp_path / "local")


STUDY = """
name: own
columns: {rate: optim.lr}
points: seeds
cells:
- {recipe: quickstart, set: [optim.lr=0.1], label: [low], n: 2}
- {recipe: quickstart, set: [optim.lr=0.2], label: [high], n: 2}
"""


@runs_here
def test_a_study_is_one_array_and_its_requeued_run_equals_a_local_one(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(STUDY)
    words = ("study", "own.yaml", *SMALL)
    with Waiting(tmp_path, *words, "--out", "queued", *ON_SLURM) as study:
        run = tmp_path / "queued" / "01" / "seed-0"
        study.wait_for(is_at_step(run, 20))
        subprocess.run(["scontrol", "requeue", job_of(run, tmp_path / "queued")], check=True)
        study.ends()
        assert "4 of 4" in study.stderr
    jobs = json.loads((tmp_path / "queued" / ".slurm" / "jobs.json").read_text())
    assert len({job.partition("_")[0] for job in jobs.values()}) == 1
    assert {job.partition("_")[2] for job in jobs.values()} == {"0", "1", "2", "3"}
    assert starts(run) == 2
    run_here(tmp_path, *words, "--out", "local", "--only", 1, "--seeds", 1)
    assert_same(run, tmp_path / "local" / "01" / "seed-0")


@runs_here
def test_a_range_test_is_one_job_that_goes_on_where_it_was_requeued(tmp_path: Path) -> None:
    words = ("lr-range-test", *SMALL, "--steps", 300, "--points", 10, "--json")
    with Waiting(tmp_path, *words, "--on", "slurm") as test:
        folder = tmp_path / "runs" / "lr-range-test" / "quickstart" / "0"
        test.wait_for(is_at_step(folder / "seed-0", 20))
        subprocess.run(["scontrol", "requeue", job_of(folder, folder)], check=True)
        summary = json.loads(test.ends())
        assert "seed-0 took" in test.stderr
    assert starts(folder / "seed-0") == 2
    run_here(tmp_path, *words, "--out", "local")
    assert summary == json.loads((tmp_path / "local" / "lr-range.json").read_text())
    assert_same(folder / "seed-0", tmp_path / "local" / "seed-0")


@runs_here
def test_a_kill_test_on_two_nodes_finds_equal_bits(tmp_path: Path) -> None:
    words = ("preflight", *SMALL, "train.device_batch_size=16", "--kill-test", "--json")
    with Waiting(tmp_path, *words, "--on", "slurm", "--slurm", "nodes=2") as preflight:
        checks = {each["check"]: each for each in json.loads(preflight.ends())["checks"]}
    assert checks["SLURM"]["verdict"] == "ok"
    test = checks["kill test"]
    assert (test["verdict"], test["different"]) == ("ok", 0)
    assert 0 < test["resumed_at"] < test["killed_after"] < test["steps"]
    assert not list(tmp_path.glob("runs/quickstart/*"))


def _lines(run: Path) -> list[tuple[object, ...]]:
    """Losses and accuracies by step, without clocks."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line["loss"], line.get("top1")) for line in lines]


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
