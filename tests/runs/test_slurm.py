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
import timm
import torch
from safetensors.torch import load_file, save_file

from rescue_cli.cli import common
from rescue_cli.errors import DataError, RescueError
from rescue_cli.rundir import RunDirectory, write_json
from rescue_cli.runs import slurm
from tests.conftest import Rescue
from tests.helpers.shards import write_folder

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


def requeue(job: str) -> None:
    subprocess.run(["scontrol", "requeue", job], check=True)
    start_again(job)


def start_again(job: str) -> None:
    """Waits until a job is requeued, and starts it at once: SLURM would do so after two minutes."""
    call = ["squeue", "--noheader", "--states=PENDING", f"--jobs={job}", "--format=%r"]
    end = time.monotonic() + 120
    while "BeginTime" not in subprocess.run(call, capture_output=True, text=True).stdout:
        assert time.monotonic() < end, "the job was not requeued"
        time.sleep(0.5)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def requeued_once(folder: Path, run: Path, *words: object) -> str:
    """What the command says that queues several runs in `queued`, one of which is requeued."""
    with Waiting(folder, *words, "--out", "queued", *ON_SLURM) as queue:
        queue.wait_for(is_at_step(run, 20))
        requeue(job_of(run, folder / "queued"))
        queue.ends()
    assert starts(run) == 2
    return queue.stderr


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
    said = requeued_once(tmp_path, tmp_path / "queued" / "seed-1", *words)
    assert "4 of 4" in said
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
        start_again(job)
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
- {recipe: quickstart, set: [optim.lr=0.1], label: [low]}
- {recipe: quickstart, set: [optim.lr=0.2], label: [high]}
"""


@runs_here
def test_a_study_is_one_array_and_its_requeued_run_equals_a_local_one(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(STUDY)
    words = ("study", "own.yaml", "--seeds", 2, *SMALL)
    run = tmp_path / "queued" / "01" / "seed-0"
    assert "4 of 4" in requeued_once(tmp_path, run, *words)
    jobs = json.loads((tmp_path / "queued" / ".slurm" / "jobs.json").read_text())
    assert len({job.partition("_")[0] for job in jobs.values()}) == 1
    assert {job.partition("_")[2] for job in jobs.values()} == {"0", "1", "2", "3"}
    run_here(tmp_path, *words, "--out", "local", "--only", 1)
    assert_same(run, tmp_path / "local" / "01" / "seed-0")


@runs_here
def test_transfers_are_one_array_and_a_requeued_one_equals_a_local_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos")
    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    words = (
        "transfer", "--from", "weights.safetensors", "--model", "test_resnet", "--to", "photos",
        "--recipe", "transfer-layerwise", "--seeds", 2, "--epochs", 30, "data.train_size=64",
        "eval.sizes=[64]", "eval.every=100", "train.precision=float32", "train.batch_size=4",
        "train.device_batch_size=4", "train.log_every=1",
    )  # fmt: skip
    run = tmp_path / "queued" / "weights" / "seed-0"
    assert "2 of 2" in requeued_once(tmp_path, run, *words)
    run_here(tmp_path, *words, "--out", "local")
    assert_same(run, tmp_path / "local" / "weights" / "seed-0")


@runs_here
def test_a_range_test_is_one_job_that_goes_on_where_it_was_requeued(tmp_path: Path) -> None:
    words = ("lr-range-test", *SMALL, "--steps", 300, "--points", 10, "--json")
    with Waiting(tmp_path, *words, "--on", "slurm") as test:
        folder = tmp_path / "runs" / "lr-range-test" / "quickstart" / "0"
        test.wait_for(is_at_step(folder / "seed-0", 20))
        requeue(job_of(folder, folder))
        summary = json.loads(test.ends())
        assert "seed-0 took" in test.stderr
    assert starts(folder / "seed-0") == 2
    run_here(tmp_path, *words, "--out", "local")
    local = json.loads((tmp_path / "local" / "lr-range.json").read_text())
    assert summary == {key: local[key] for key in summary}
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
        ("seed-sweep --slurm time=5", "--slurm: options of sbatch, and this command runs here."),
        ("seed-sweep --on slurm --slurm gpu", "--slurm: 'gpu' is not KEY=VALUE."),
        ("train --on slurm --slurm time=4:00", "--slurm: time=4:00 must be a whole number of min"),
        ("train --on slurm --nodes 2 --procs 3", "--nodes: 3 processes cannot be divided evenly"),
        ("train --on slurm --nodes 2 --slurm nodes=2", "--slurm nodes: --nodes, --gpus and --pro"),
        ("train --on slurm --gpus 2 --slurm nodes=2", "--slurm nodes: --nodes, --gpus and --procs"),
        ("train --on slurm --rendezvous a:1", "--rendezvous: depends on the nodes that SLURM giv"),
        ("train --on slurm train.device_batch_size=auto", "train.device_batch_size=auto: depends"),
        (
            "train --on slurm --nodes 3",
            "tasks of SLURM: 3 processes do not divide the 1 micro-batches of a step.",
        ),
        (
            "seed-sweep --on slurm --slurm nodes=2",
            "--slurm nodes and ntasks_per_node: 2 processes do not divide the 1 micro-batches",
        ),
        ("study own.yaml --on slurm --budget 1", "--budget: SLURM starts the runs."),
    ],
)
def test_what_the_queue_cannot_be_asked_is_refused(
    rescue: Rescue, words: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(STUDY)
    ended = rescue(*words.split())
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize(
    ("given", "settings", "tasks", "gpus"),
    [
        ([], {}, 1, 1),
        (["nodes=2"], {"nodes": 2, "ntasks_per_node": 1}, 2, 2),
        (
            ["nodes=2", "gpus-per-node=a100:4"],
            {"nodes": 2, "gpus_per_node": "a100:4", "ntasks_per_node": 4},
            8,
            8,
        ),
        (["gpus_per_node=4"], {"gpus_per_node": 4}, 1, 4),
        (
            ["nodes=2", "ntasks_per_node=3", "gpus_per_task=1"],
            {"nodes": 2, "ntasks_per_node": 3, "gpus_per_task": 1},
            6,
            6,
        ),
        (
            ["setup=module load a", "setup=export B=1", "srun_args=--mpi none", "cpus_per_task=8"],
            {
                "setup": ["module load a", "export B=1"],
                "srun_args": ["--mpi", "none", "--cpus-per-task=8"],
                "cpus_per_task": 8,
            },
            1,
            1,
        ),
    ],
)
def test_several_nodes_have_a_task_for_each_gpu(
    given: list[str], settings: dict[str, object], tasks: int, gpus: int
) -> None:
    parsed = slurm.parse_settings(given)
    assert parsed == settings
    assert (slurm.count_tasks(parsed), slurm.count_gpus(parsed)) == (tasks, gpus)


# Tools of a SLURM that takes every job and then has none
TOOLS = {
    "sbatch": 'cp "$1" submitted.sh && echo Submitted batch job 7',
    "srun": "exit 1",
    "squeue": "exit 0",
    "scancel": "exit 0",
}


@pytest.fixture
def forgetful_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What it was given last."""
    pytest.importorskip("submitit")
    for name, line in TOOLS.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{line}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    return tmp_path / "submitted.sh"


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ("train", "--nodes", "2", "--gpus", "4", "train.device_batch_size=32"),
            ["nodes=2", "gpus-per-node=2", "ntasks-per-node=2", "time=240"],
        ),
        (("train", "--slurm", "partition=gpu", "--slurm", "time=90"), ["partition=gpu", "time=90"]),
        (("seed-sweep", "--seeds", "4", "--jobs", "2"), ["array=0-3%2"]),
        (("study", "own.yaml", "--seeds", "3"), ["array=0-5%6"]),
        (("tune", "--slurm", "qos=long"), ["qos=long"]),
        (("lr-range-test", "--slurm", "mem=8G"), ["mem=8G"]),
    ],
)
def test_a_dry_run_prints_what_sbatch_is_given_and_submits_nothing(
    words: tuple[str, ...],
    lines: list[str],
    forgetful_slurm: Path,
    rescue: Rescue,
    tmp_path: Path,
) -> None:
    (tmp_path / "own.yaml").write_text(STUDY)
    given = [*words, "--on", "slurm", "--out", "out"]
    planned = rescue(*given, "--dry-run")
    assert planned.code == 0, planned.err
    assert not forgetful_slurm.exists()
    assert not (tmp_path / "out").exists()
    _, start, script = planned.out.partition("#!/bin/bash\n")
    for line in lines:
        assert f"\n#SBATCH --{line}\n" in script
    assert rescue(*given).code == 1  # its jobs are gone at once
    assert forgetful_slurm.read_text() == (start + script).removesuffix("\n")


def test_what_sbatch_refuses_is_told_and_leaves_nothing(
    forgetful_slurm: Path, rescue: Rescue, tmp_path: Path
) -> None:
    (forgetful_slurm.parent / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho sbatch: error: invalid partition specified: gpu >&2; exit 1\n"
    )
    ended = rescue("train", "--on", "slurm", "--slurm", "partition=gpu", "--out", "run")
    assert ended.code == 2
    assert "error: --slurm: sbatch refuses the job: sbatch: error: invalid part" in ended.notes[-1]
    assert not (tmp_path / "run" / "recipe.yaml").exists()


class Here:
    """An executor whose jobs run in this process, at once."""

    def map_array(self, job: Callable[[Path], int], paths: list[Path]) -> list[SimpleNamespace]:
        for path in paths:
            job(path)
        return [SimpleNamespace(job_id="7") for _ in paths]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_executor", lambda *_: Here())
    monkeypatch.setattr(slurm, "_refused_submission", contextlib.nullcontext)
    monkeypatch.setattr(slurm, "_queued_jobs", set)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (("recipes", "show", "a2"), 0, "name: a2", ""),
        (("recipes", "show", "nosuch"), 2, "", "error: recipe: 'nosuch' is not known."),
    ],
)
def test_a_verb_in_a_job_prints_and_ends_as_here(
    at_once: None,  # noqa: ARG001
    words: tuple[str, ...],
    code: int,
    out: str,
    err: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".slurm").mkdir()
    assert slurm.run_verb(words, {}, tmp_path) == code
    printed = capsys.readouterr()
    assert out in printed.out
    assert printed.err.splitlines()[0] == f"job 7: rescue {' '.join(words)}"
    assert err in printed.err


def test_a_verb_whose_job_was_cancelled_is_no_result(
    at_once: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / ".slurm").mkdir()
    monkeypatch.setattr(slurm.Job, "_execute", lambda *_, **__: 143)
    with pytest.raises(RescueError, match="job 7 left the queue before the command had ended"):
        slurm.run_verb(("recipes",), {}, tmp_path)


def test_only_the_first_task_of_a_job_speaks_and_cleans_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The others may begin when it has already failed."""
    run = RunDirectory(tmp_path)
    (tmp_path / ".slurm").mkdir()
    monkeypatch.setattr(slurm.Job, "_execute", lambda *_, **__: 0)
    for rank, is_kept in (("1", True), ("0", False)):
        monkeypatch.setenv("SLURM_PROCID", rank)
        write_json(run.failure, {"rank": 0, "exit_code": 3, "message": "its own"})
        slurm.Train(())(tmp_path)
        slurm.Verb(("recipes",))(tmp_path)
        assert run.failure.exists() is is_kept
        assert (tmp_path / ".slurm" / "ended.json").exists() is not is_kept


def test_a_job_is_given_the_command_without_its_place() -> None:
    words = "tune --on slurm --slurm a=b --out x --slurm=c=d --seeds 3 optim.lr=1 --on=slurm"
    kept = common._without_options(words.split(), ("--on", "--slurm", "--out"))
    assert kept == ["tune", "--seeds", "3", "optim.lr=1"]


def test_without_slurm_the_sweep_says_so_and_where_it_can_run(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ended = rescue("seed-sweep", "--seeds", "2", "--on", "slurm")
    assert ended.code == 2
    assert "--on slurm: there is no squeue on this machine." in ended.err
