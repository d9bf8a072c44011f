"""One, two and four processes train and evaluate the same thing, and fail together."""

import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch._C._distributed_c10d import HashStore
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from rescue_cli import distributed
from rescue_cli import recipe as recipes
from rescue_cli.build.feeds import Machine
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.cli import common
from rescue_cli.engine import signals
from rescue_cli.rundir import (
    FailureRecord,
    RunDirectory,
    read_failure,
    read_json,
    write_failure,
)
from rescue_cli.runs import processes, result
from rescue_cli.runs.environment import describe_environment
from rescue_cli.runs.failure import record_failure
from rescue_cli.sections.data import Images
from rescue_cli.sections.data.memory import MemoryFeed
from rescue_cli.sections.sampling import SamplingContext, shuffled
from tests.helpers.processes import (
    PATIENCE,
    Command,
    alive,
    assert_same,
    checkpoint_of,
    corrupt_test_file,
    group_of,
    metrics_of,
    random_dataset,
    saved_step,
    start,
    trained,
    until_gone,
)

FOUR_MICRO_BATCHES = [
    "data.subset=[320, 127]",
    "model.width=4",
    "train.batch_size=32",
    "train.device_batch_size=8",
    "train.epochs=2",
    "train.log_every=5",
    "train.precision=float64",
    "averaging={name: ema, decay: 0.9, every: 1}",
    "eval.batch_size=10",
]


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_micro_batch_holds_the_same_samples_on_any_number_of_processes(world_size: int) -> None:
    steps = SamplingContext(samples=100, batch_size=32, micro_batch_size=8, per_epoch=3, seed=5)
    numbers = np.arange(100, dtype=np.int64)
    images = Images(np.zeros((100, 1, 2, 2), dtype=np.uint8), numbers)

    def samples(worlds: int, step: int) -> dict[int, list[int]]:
        cpu = torch.device("cpu")
        feeds = [
            MemoryFeed(
                images, shuffled(steps), range(r, 4, worlds), max_corrupt=0, device=cpu, log=print
            )
            for r in range(worlds)
        ]
        return {
            b.micro_batch: b.targets.tolist() for feed in feeds for b in feed.micro_batches(step)
        }

    for step in range(9):
        alone = samples(1, step)
        assert sorted(alone) == [0, 1, 2, 3]
        assert samples(world_size, step) == alone
        assert len({i for held in alone.values() for i in held}) == 32, "none twice in an epoch"


@pytest.mark.slow
def test_twenty_steps_on_one_two_and_four_processes_give_the_same_weights(tmp_path: Path) -> None:
    recipe = recipes.load("quickstart", FOUR_MICRO_BATCHES)
    states = {}
    for world_size in (1, 2, 4):
        run = tmp_path / str(world_size)
        for worker in group_of(world_size, run, recipe, tmp_path / f"told{world_size}"):
            worker.ends(0)
        states[world_size] = checkpoint_of(run)

    assert states[1]["progress"]["step"] == 20
    alone = states[1]
    for world_size in (2, 4):
        for part in ("model", "average"):
            for name, tensor in states[world_size][part].items():
                assert difference(tensor, alone[part][name]) <= 1e-10, (world_size, part, name)
    norms = [name for name in alone["model"] if name.endswith("running_var")]
    assert len(norms) == 8
    assert all(int(alone["model"][n.replace("var", "mean")].count_nonzero()) for n in norms)
    losses = {w: [line["loss"] for line in metrics_of(tmp_path / str(w))] for w in states}
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-10)
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-10)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the tensor's largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300))


# --- the command, through torchrun ---

TWO = [
    "--recipe",
    "quickstart",
    "data.subset=[256, 127]",
    "model.width=4",
    "train.batch_size=32",
    "train.device_batch_size=16",
    "train.epochs=4",
    "train.log_every=3",
    "train.checkpoint_epochs=0.5",
    "averaging={name: ema, decay: 0.9, every: 2}",
    "eval.batch_size=10",
]


def two(run: Path, output: Path) -> Command:
    """Starts or goes on with a run on two processes."""
    words = ["train", "--resume", "--json", "--procs", "2", "--out", run, *TWO]
    return start(words, output, cores=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that nothing happened to."""
    run = tmp_path_factory.mktemp("pair") / "run"
    two(run, run.with_name("told")).ends(0)
    return run


@pytest.mark.slow
def test_a_run_on_two_processes_survives_a_killed_rank_and_a_signal_exactly(
    pair: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    command = two(run, tmp_path / "killed")
    command.until(trained(run, 9))
    workers = command.workers()
    assert set(workers) == {0, 1}
    victim = workers[1]
    os.kill(victim, signal.SIGKILL)
    until_gone([workers[0]])
    message = command.ends(1)
    error = message[message.index("error: ") :]
    assert error.startswith(f"error: rank 1 (pid {victim}) was killed by SIGKILL.")
    assert str(run / "logs") in error
    assert "--resume" in error
    assert not alive(victim)

    command = two(run, tmp_path / "stopped")
    command.until(trained(run, 15))
    command.send(signal.SIGTERM)
    message = command.ends(143)
    step = saved_step(run)
    assert 15 <= step < 32
    assert re.search(rf"error: (rank \d: )?stopped at step {step} of 32", message), message[-500:]

    two(run, tmp_path / "again").ends(0)
    assert_same(run, pair)


@pytest.mark.parametrize("procs", [None, 2])
def test_eval_equals_the_runs_own_last_evaluation_exactly(
    procs: int | None, pair: Path, tmp_path: Path
) -> None:
    options = [] if procs is None else ["--procs", str(procs)]
    command = start(
        ["eval", "--json", "--out", tmp_path / "eval", *options, pair], tmp_path / "told", cores=2
    )
    command.ends(0)
    found, own = command.result(), read_json(RunDirectory(pair).result)
    assert found["count"] == 127, "a count that neither the batches nor the processes divide"
    for key in ("top1", "top5", "loss", "count", "protocol"):
        assert found[key] == own[key], key
    assert predictions(tmp_path / "eval") == predictions(pair)


def predictions(run: Path) -> dict[str, bytes]:
    with np.load(RunDirectory(run).predictions("test")) as file:
        arrays: dict[str, NDArray[np.generic]] = {name: file[name] for name in file.files}
    return {name: array.tobytes() for name, array in arrays.items()}


def test_a_world_size_that_does_not_divide_the_micro_batches_names_those_that_do(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    words = ["train", "--procs", "3", "--out", run, "train.device_batch_size=32"]
    message = start(words, tmp_path / "told").ends(2)
    assert (
        "error: --procs: 3 processes do not divide the 4 micro-batches of a step. "
        "Use 1, 2, 4, or another train.device_batch_size." in message
    )
    assert not run.exists(), "nothing was started"


def test_processes_of_other_machines_take_no_core_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = [
        describe_environment(
            verb="train",
            seed=0,
            device="cpu",
            procs=procs,
            nodes=nodes,
            workers=None,
            cache=tmp_path,
        )
        for procs, nodes in ((1, 1), (8, 8))
    ]
    assert found[0]["threads"] == found[1]["threads"] == len(os.sched_getaffinity(0))


def test_a_peak_that_an_earlier_run_left_is_not_this_runs() -> None:
    cpu = torch.device("cpu")
    stood = result.process_peak_mb()
    assert result.measure_peak_memory(cpu, 2 * stood) == {"peak_memory_mb": None}
    risen = result.measure_peak_memory(cpu, stood - 1)
    assert risen == {"peak_memory_mb": pytest.approx(stood, abs=1)}


def test_a_gpu_has_what_its_allocator_reserved_beside_what_tensors_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 4 * 2**20)
    measured = result.measure_peak_memory(torch.device("cuda", 0), 9.0)
    assert measured == {"peak_memory_mb": 3.0, "peak_reserved_mb": 4.0}
    shown = common._format_memory(measured)
    assert shown == ", peak 3 MB (4 reserved)"


# --- the first failure ---

CORRUPT = FailureRecord(0, 3, "val/x.png: cannot be decoded. Repair the file.")
BUG = FailureRecord(0, 1, "Traceback (most recent call last):\n  ...\nRuntimeError: no connection")
HEARD = FailureRecord(0, 143, "stopped at step 7 of 9")
LAUNCHER = -signal.SIGTERM


@pytest.mark.parametrize(
    ("word", "left", "ended", "exit_code", "message"),
    [
        # (rank, exit code, seconds after the first); the word was left so many seconds after it
        (CORRUPT, 0, [(0, 3, 0), (1, LAUNCHER, 0)], 3, "rank 0: val/x.png: cannot be decoded."),
        (CORRUPT, 0, [(0, 3, 0), (1, -signal.SIGKILL, 30)], 3, "rank 0: val/x.png"),
        (CORRUPT, 0, [(0, 3, 0), (1, 143, 7)], 3, "rank 0: val/x.png"),
        (CORRUPT, 0, [(0, 3, 0), (1, -signal.SIGABRT, 0)], 3, "rank 0: val/x.png"),
        (BUG, 0, [(0, 1, 0), (1, LAUNCHER, 0)], 1, "rank 0: Traceback"),
        (BUG, 0, [(0, 1, 0), (1, -signal.SIGABRT, 0)], 1, "rank 0: Traceback"),
        (None, 0, [(1, -signal.SIGKILL, 0), (0, LAUNCHER, 0)], 1, "rank 1 (pid 11) was killed by "
         "SIGKILL. If memory ran out, use smaller micro-batches. Resume with --resume."),
        (None, 0, [(1, -signal.SIGKILL, 0), (0, 143, 7)], 1, "rank 1 (pid 11) was killed by SIG"),
        (BUG, 0, [(1, -signal.SIGKILL, 0), (0, 1, 0)], 1, "rank 1 (pid 11) was killed by SIGKILL"),
        (CORRUPT, 9, [(1, -signal.SIGKILL, 0), (0, 3, 1)], 1, "rank 1 (pid 11) was killed by SIG"),
        (HEARD, 3, [(1, -signal.SIGSEGV, 0), (0, 143, 7)], 1, "rank 1 (pid 11) was killed by "
         "SIGSEGV. Resume with --resume."),
        (HEARD, 0, [(0, 143, 0), (1, 143, 0)], 143, "stopped at step 7"),
        (None, 0, [(1, 1, 0), (0, LAUNCHER, 0)], 1, "rank 1 ended with 1."),
        (None, 0, [(0, LAUNCHER, 0), (1, 2, 1)], 2, "another run is using this directory"),
        (None, 0, [(1, LAUNCHER, 0), (0, LAUNCHER, 0)], 1, "rank 1 (pid 11) was killed by "
         "SIGTERM. Resume with --resume."),
    ],
)  # fmt: skip
def test_the_first_failure_is_told_and_no_signal_of_the_launcher(
    word: FailureRecord | None,
    left: int,
    ended: list[tuple[int, int, int]],
    exit_code: int,
    message: str,
    tmp_path: Path,
) -> None:
    failures = {rank: ProcessFailure(rank, 10 + rank, code, "") for rank, code, _ in ended}
    start_of_all = failures[ended[0][0]].timestamp
    for rank, _, later in ended:
        failures[rank].timestamp = start_of_all + later
    if word is not None:
        run = RunDirectory(tmp_path)
        write_failure(run, word)
        os.utime(run.failure, (start_of_all + left, start_of_all + left))
    found = processes._first_failure(tmp_path, ChildFailedError("worker", failures))
    assert message in str(found)
    assert found.exit_code == exit_code


def test_what_an_attempt_said_is_forgotten_when_all_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = tmp_path / "logs" / "attempt_1"
    (attempt / "0").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(attempt / "0" / "error.json"))
    run = RunDirectory(tmp_path)
    now = attempt.stat().st_mtime
    for count, left, kept in (("0", -5, True), ("1", 5, True), ("1", -5, False), ("1", -5, False)):
        if kept:
            write_failure(run, CORRUPT)
        if run.failure.exists():
            os.utime(run.failure, (now + left, now + left))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        with record_failure(run):
            pass
        assert run.failure.exists() == kept, (count, left)


@pytest.mark.slow
def test_a_rank_that_meets_a_corrupt_file_is_told_while_the_other_sits_in_a_collective(
    tmp_path: Path,
) -> None:
    words, bad = corrupt_test_file(tmp_path)
    run = tmp_path / "run"
    given = ["train", "--recipe", "pytorch", "--procs", "2", "--workers", "1", "--out", run, *words]
    message = start(given, tmp_path / "told", cores=2).ends(3)
    error = message[message.index("error: ") :]
    assert error.startswith(f"error: rank 1: {bad}: cannot be decoded: "), error


def leave_no_group() -> None:
    """Leaving a process group takes for ever, as with NCCL where another sits in a collective."""
    dist.destroy_process_group = lambda *_: time.sleep(3 * PATIENCE)


def test_a_rank_that_fails_records_it_and_ends_without_leaving_the_group(tmp_path: Path) -> None:
    words, bad = corrupt_test_file(tmp_path)
    run = tmp_path / "run"
    recipe = recipes.load("pytorch", words)
    workers = group_of(2, run, recipe, tmp_path / "told", workers=1, change=leave_no_group)
    workers[1].ends(3)
    failure = read_failure(RunDirectory(run))
    assert failure is not None
    assert (failure.rank, failure.exit_code) == (1, 3)
    assert failure.message.startswith(f"{bad}: cannot be decoded: ")
    assert "another process has ended" in workers[0].ends(1)


# --- a signal to a rank whose main thread waits for another ---


def be_impatient() -> None:
    signals.AGREE_SECONDS = 0.5


def test_a_rank_that_waits_for_another_hears_a_signal_and_ends_in_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = recipes.load("quickstart", [*TWO[2:], "train.epochs=4000"])
    first, second = group_of(2, run, recipe, tmp_path / "told", change=be_impatient)
    try:
        first.until(trained(run, 12))
        second.hold()
        time.sleep(2)  # a step takes a hundredth: the first now waits for the second's gradients
        saved = RunDirectory(run).last.read_bytes()
        first.send(signal.SIGTERM)
        since = time.monotonic()
        first.ends(143)
        assert time.monotonic() - since < 60  # 2.5, and much for a busy machine
    finally:
        first.kill()
        second.kill()
    failure = read_failure(RunDirectory(run))
    assert failure is not None
    assert (failure.rank, failure.exit_code) == (0, 143)
    assert failure.message.startswith("stopped before the processes could agree to save, after ")
    assert failure.message.endswith(" s. The last checkpoint is kept.")
    assert RunDirectory(run).last.read_bytes() == saved


# --- compiled ---


def compile_without_inductor() -> None:
    """Compiles for a backend that needs no C++ compiler."""
    setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # noqa: B010


@pytest.mark.slow
def test_a_compiled_run_on_two_processes_is_the_same_run(tmp_path: Path) -> None:
    short = [*FOUR_MICRO_BATCHES, "data.subset=[64, 20]"]
    states = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        recipe = recipes.load("quickstart", [*short, f"train.compile={str(compiled).lower()}"])
        change = compile_without_inductor if compiled else None
        for worker in group_of(2, run, recipe, tmp_path / f"told{compiled}", change=change):
            worker.ends(0)
        states.append(checkpoint_of(run))
    eager, compiled_state = states
    for part in ("model", "average"):
        assert compiled_state[part].keys() == eager[part].keys()
        for name, tensor in compiled_state[part].items():
            assert difference(tensor, eager[part][name]) <= 1e-10, (part, name)


def test_a_compiled_step_exchanges_gradients_while_others_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    cpu = torch.device("cpu")
    sizes = ["train.batch_size=4", "train.device_batch_size=2", "train.compile=true"]
    recipe = recipes.load("quickstart", [*sizes, "model.width=64"])
    events: list[str] = []

    # DDP demands these annotations
    def exchange(
        group: dist.ProcessGroup,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[torch.Tensor]:
        events.append("exchange")
        return allreduce_hook(group, bucket)

    distributed.set_membership(HashStore(), rank=0, size=1, local_rank=0, run=0)
    try:
        with distributed.process_group(cpu):
            network = build_network(recipe, 10, cpu)
            step = build_step(
                recipe, network, random_dataset(1, 28, 64), Machine(cpu, 0, Path()), print
            )
            model: Any = step.model
            model.register_comm_hook(None, exchange)
            first: Any = next(network.parameters())  # its gradient is computed last
            first.register_post_accumulate_grad_hook(lambda _: events.append("first layer"))
            step.feed.start(0)
            for number in range(2):  # buckets are filled anew after the first step
                events.clear()
                step(number)
    finally:
        if dist.is_initialized():  # as after a failure, which no peer is to wait for
            dist.destroy_process_group()
        distributed.clear_membership()
        torch.compiler.reset()
    # The first micro-batch exchanges nothing, the last its first bucket before the last gradient
    assert events == ["first layer", "exchange", "first layer", "exchange"]
