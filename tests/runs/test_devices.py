"""Which GPUs a run uses: those that the user made visible, and a line about those left idle."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rescue_cli import recipe as recipes
from rescue_cli.errors import UsageError
from rescue_cli.runs import pool
from rescue_cli.runs.environment import select_gpu
from rescue_cli.runs.many import local_jobs
from rescue_cli.runs.single import describe_idle_gpus, plan_launch
from tests.conftest import Rescue

# Works as `rescue_cli.runs.worker -`: a directory per line on stdin, its exit code on stdout
SUCCEED = "import sys\nfor line in sys.stdin: print(0, flush=True)"
UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1c1f5ad4"
MIG = "MIG-3a1ec2b8-1d52-5e1a-8a39-6ab1d0d4d4fb,MIG-7b0b5cb2"


@pytest.mark.parametrize(
    ("visible", "rocm", "given"),
    [
        ({}, False, {"CUDA_VISIBLE_DEVICES": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, False, {"CUDA_VISIBLE_DEVICES": "5"}),
        ({"CUDA_VISIBLE_DEVICES": " 4 , 5 "}, False, {"CUDA_VISIBLE_DEVICES": "5"}),
        ({"CUDA_VISIBLE_DEVICES": UUIDS}, False, {"CUDA_VISIBLE_DEVICES": "GPU-1c1f5ad4"}),
        ({"CUDA_VISIBLE_DEVICES": MIG}, False, {"CUDA_VISIBLE_DEVICES": "MIG-7b0b5cb2"}),
        # SLURM may set those of both makers
        (
            {"CUDA_VISIBLE_DEVICES": "4,5", "ROCR_VISIBLE_DEVICES": "4,5"},
            False,
            {"CUDA_VISIBLE_DEVICES": "5"},
        ),
        ({}, True, {"HIP_VISIBLE_DEVICES": "1"}),
        ({"HIP_VISIBLE_DEVICES": "4,5"}, True, {"HIP_VISIBLE_DEVICES": "5"}),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, True, {"CUDA_VISIBLE_DEVICES": "5"}),
        (
            {"HIP_VISIBLE_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": "0,1"},
            True,
            {"HIP_VISIBLE_DEVICES": "5"},
        ),
        ({"ROCR_VISIBLE_DEVICES": "4,5"}, True, {"HIP_VISIBLE_DEVICES": "1"}),
    ],
)
def test_one_gpu_is_chosen_by_its_place_among_the_visible(
    visible: Mapping[str, str], rocm: bool, given: Mapping[str, str]
) -> None:
    assert select_gpu(1, {"PATH": "/bin", **visible}, rocm=rocm) == given


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reports eight GPUs, on which nothing can run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "none")
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)


def refuse(*_: object) -> None:
    raise UsageError("this GPU computes nothing")


@pytest.mark.usefixtures("eight_gpus")
def test_runs_at_the_same_time_get_the_gpus_that_the_command_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environments: list[dict[str, str]] = []

    def start_process(environment: dict[str, str]) -> subprocess.Popen[str]:
        environments.append(environment)
        call, pipe = [sys.executable, "-S", "-c", SUCCEED], subprocess.PIPE
        return subprocess.Popen(call, stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr(pool, "_start_process", start_process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "8,9,10,11,12,13,14,15")
    base = recipes.load("quickstart")
    runs = {tmp_path / str(n): base.with_overrides(f"train.seed={n}") for n in range(3)}
    jobs = local_jobs("cuda", None, 0, tmp_path / ".cache")
    assert [ended.error for ended in jobs.train(runs)] == [None] * 3
    assert [given["CUDA_VISIBLE_DEVICES"] for given in environments] == ["8", "9", "10"]
    assert capsys.readouterr().err.splitlines() == [
        "3 of 8 GPUs are used: there are as many runs to train (3), each on one GPU. More runs use "
        "more; rescue train shares one run among several."
    ]


# --- idle GPUs ---


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "visible", "line"),
    [
        (256, 64, 4, None),
        (256, 64, 1, None),
        (256, 64, 0, None),
        (
            256,
            64,
            8,
            "4 of 8 GPUs are used: a step has 4 micro-batches of 64 images. "
            "train.device_batch_size=32 uses all; batch norm then sees smaller micro-batches.",
        ),
        (
            96,
            96,
            8,
            "1 of 8 GPUs is used: a step has 1 micro-batch of 96 images. "
            "train.device_batch_size=12 uses all; batch norm then sees smaller micro-batches.",
        ),
        (
            256,
            64,
            3,
            "2 of 3 GPUs are used: a step has 4 micro-batches of 64 images. "
            "A train.batch_size that 3 divides can use all.",
        ),
    ],
)
def test_gpus_that_a_run_does_not_use_are_named_with_the_cure(
    batch_size: int, micro_batch_size: int, visible: int, line: str | None
) -> None:
    train = replace(
        recipes.load("pytorch").train, batch_size=batch_size, device_batch_size=micro_batch_size
    )
    launch = plan_launch(train, "cuda", default=visible)
    assert launch.idle_gpus == line
    if line and "device_batch_size=" in line:
        size = int(line.partition("device_batch_size=")[2].split()[0])
        cured = plan_launch(replace(train, device_batch_size=size), "cuda", default=visible)
        assert (cured.procs, cured.idle_gpus) == (visible, None)


def test_who_asks_for_a_number_of_processes_is_told_nothing() -> None:
    train = recipes.load("pytorch").train
    assert plan_launch(train, "cuda", 2, default=8).idle_gpus is None


def test_a_command_that_takes_one_process_by_default_names_the_option() -> None:
    train = recipes.load("pytorch").train
    assert train.micro_batches == 8
    assert describe_idle_gpus(train, 1, 8, "--procs") == (
        "1 of 8 GPUs is used: --procs is 1 by default. --procs 8 uses all."
    )
    assert describe_idle_gpus(train, 1, 6, "--procs") == (
        "1 of 6 GPUs is used: --procs is 1 by default. --procs 4 uses 4."
    )
    one = replace(train, device_batch_size=train.batch_size)
    assert describe_idle_gpus(one, 1, 8, "--procs") == (
        "1 of 8 GPUs is used: a step has 1 micro-batch of 256 images. "
        "train.device_batch_size=32 and --procs 8 uses all; batch norm then sees smaller "
        "micro-batches."
    )


@pytest.mark.usefixtures("eight_gpus")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("train", "--dry-run"),
            "4 of 8 GPUs are used: a step has 4 micro-batches of 32 images. "
            "train.device_batch_size=16 uses all; batch norm then sees smaller micro-batches.",
        ),
        (
            ("lr-range-test", "--steps", "10", "--points", "10"),
            "1 of 8 GPUs is used: --procs is 1 by default. --procs 4 uses 4.",
        ),
        (
            ("tune",),
            "1 of 8 GPUs is used: tune trains one run at a time, in one process. Others can work "
            "on other commands, each with CUDA_VISIBLE_DEVICES of its own.",
        ),
    ],
)
def test_each_command_says_once_which_gpus_it_uses(
    words: tuple[str, ...], line: str, rescue: Rescue
) -> None:
    output = rescue(*words, "train.device_batch_size=32", "--device", "cuda")
    assert output.notes.count(line) == 1, output.err


def test_an_evaluation_says_which_gpus_it_uses(
    rescue: Rescue, request: pytest.FixtureRequest
) -> None:
    assert rescue("train", "--smoke", "--out", "run").code == 0
    request.getfixturevalue("eight_gpus")
    output = rescue("eval", "run", "--device", "cuda")
    line = "1 of 8 GPUs is used: --procs is 1 by default. --procs 8 uses all."
    assert output.notes.count(line) == 1, output.err
