"""The command within a group that torchrun, srun or mpirun started, and what is left of one."""

import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch.distributed as dist

from rescue_cli.errors import UsageError
from rescue_cli.rundir import RunDirectory, read_environment, read_failure
from rescue_cli.runs import group as groups
from rescue_cli.runs import rendezvous
from rescue_cli.runs.group import FAILED_SECONDS, Group
from rescue_cli.runs.launcher import (
    GroupLaunch,
    clear_torchrun_variables,
    detect,
    first_host,
)
from rescue_cli.runs.rendezvous import ENDED_SECONDS, Ties
from tests.conftest import Rescue
from tests.helpers.processes import (
    PATIENCE,
    Command,
    assert_same,
    corrupt_test_file,
    descendants,
    rank_of,
    saved_step,
    start,
    trained,
)

SMALL = (
    "data.subset=[256, 127]", "model.width=4", "train.batch_size=32",
    "train.device_batch_size=16", "train.log_every=3", "train.checkpoint_epochs=0.5",
    "eval.batch_size=10",
)  # fmt: skip
BY_HAND = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
STEP = {
    "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[007-009],x",
    "ENVIRONMENT": "BATCH",
}  # fmt: skip
# As slurmd 22.05 gives it to a batch script of two tasks, before any step of it
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "ENVIRONMENT": "BATCH"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
PMI = {"PMI_RANK": "0", "PMI_SIZE": "3"}
ELASTIC = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


# --- what the environment says ---


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (BY_HAND, ("WORLD_SIZE", 0, 2, "127.0.0.1", 29511, 0, False)),
        (BY_HAND | ELASTIC, ("torchrun", 0, 2, "127.0.0.1", 29511, 1, True)),
        (STEP, ("srun", 1, 4, "gpu007", 20_000 + 77 * 31 + 2, 0, False)),
        (STEP | BY_HAND, ("WORLD_SIZE", 0, 2, "127.0.0.1", 29511, 0, False)),
        (STEP | {"SLURM_STEP_NUM_NODES": "1"}, ("srun", 1, 4, "127.0.0.1", 22_389, 0, False)),
        (STEP | {"MASTER_ADDR": "a", "MASTER_PORT": "5"}, ("srun", 1, 4, "a", 5, 0, False)),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
            ("srun", 0, 2, "127.0.0.1", 20_000, 0, False),
        ),
        (OPEN_MPI, ("mpirun", 1, 2, "127.0.0.1", 29500, 0, False)),
        (STEP | OPEN_MPI, ("mpirun", 1, 2, "127.0.0.1", 29500, 0, False)),
        (STEP | PMI, ("srun", 1, 4, "gpu007", 22_389, 0, False)),
        (
            PMI | {"MASTER_ADDR": "a"},
            ("mpirun", 0, 3, "a", 29500, 0, False),
        ),
    ],
)
def test_a_group_is_what_its_starter_says(
    environment: dict[str, str], place: tuple[object, ...]
) -> None:
    start = detect(environment)
    assert start is not None
    assert (
        start.launcher, start.rank, start.size, start.host, start.port, start.attempt, start.hosted
    ) == place  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "5"},
        {"LOCAL_RANK": "1"},
        STEP | {"RANK": "0", "WORLD_SIZE": "1"},  # torchrun within a task of srun
        STEP | OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        BATCH,
        STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "3"},  # of salloc: no task, and no rank
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_process_is_no_group(environment: dict[str, str]) -> None:
    assert detect(environment) is None


def test_the_cure_leaves_no_other_group() -> None:
    for environment in (STEP, STEP | PMI, STEP | OPEN_MPI, STEP | BY_HAND | PMI, OPEN_MPI):
        start = detect(environment)
        assert start is not None
        assert detect({k: v for k, v in environment.items() if k not in start.variables}) is None


@pytest.mark.parametrize("words", [("--nodes", "2"), ("--node-rank=1",), ("--rendezvous=a:1",)])
def test_a_task_that_is_a_machine_joins_no_group(
    words: tuple[str, ...], rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    output = rescue("train", *words, "--gpus", "1", "no=such")
    assert output.code == 2
    assert "SLURM" not in output.err


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK": "0"},
            "RANK=0 in the environment, without WORLD_SIZE, MASTER_ADDR and MASTER_PORT: a group "
            "of processes needs all four. Set them (torchrun does), or, to run alone: "
            "unset RANK.",
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            "RANK=1 and WORLD_SIZE=2 in the environment, without MASTER_ADDR and MASTER_PORT: a "
            "group of processes needs all four. Set them (torchrun does), or, to run alone: "
            "unset RANK WORLD_SIZE.",
        ),
        ({"WORLD_SIZE": "2"}, "to run alone: unset WORLD_SIZE."),
        (
            BY_HAND | {"RANK": "2"},
            "RANK: 2 must be below WORLD_SIZE, which is 2. If they are left over from another "
            "command, run alone with: unset RANK WORLD_SIZE.",
        ),
        (BY_HAND | {"RANK": "x"}, "RANK: 'x' in the environment is not a number."),
        (BY_HAND | {"WORLD_SIZE": "-2"}, "WORLD_SIZE: '-2' in the environment is not a number."),
        (
            BY_HAND | {"MASTER_PORT": "http"},
            "MASTER_PORT: 'http' in the environment is not a number.",
        ),
        (STEP | {"SLURM_PROCID": "4"}, "SLURM_PROCID: 4 must be below SLURM_STEP_NUM_TASKS"),
        (STEP | {"SLURM_STEP_NODELIST": ""}, "SLURM_NODELIST: '' names no machine."),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "Pass MASTER_ADDR=HOST to all of them"),
    ],
)
def test_half_a_group_and_none_that_can_be_are_refused(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        detect(environment)
    assert message in str(error.value)


def test_the_first_of_slurms_machines_is_found() -> None:
    for nodes, host in (
        ("a", "a"), ("a,b", "a"), ("n[1-3]", "n1"), ("n[01,04-7],m", "n01"),
        ("gpu-a[003-010]-ib,b[1-2]", "gpu-a003-ib"),
    ):  # fmt: skip
        assert first_host(nodes) == host


def test_what_a_command_starts_sees_nothing_of_torchrun() -> None:
    mine = {"PATH": "/bin", "SLURM_PROCID": "0", "MASTER": "x", "TORCH_HOME": "y", "RANKS": "2"}
    theirs = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "ROLE_RANK": "1"}
    both = mine | theirs | BY_HAND | ELASTIC
    clear_torchrun_variables(both)
    assert both == mine


# --- how they wait for each other ---


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_waited_for_is_told_and_how_to_go_on(
    rank: int, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "NOTE_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "LOCAL_TIMEOUT", 0.6)
    output: list[str] = []
    alone = GroupLaunch("WORLD_SIZE", tuple(BY_HAND), rank, 2, "127.0.0.1", port)
    place = f"RANK and WORLD_SIZE in the environment: rank {rank} of 2 at 127.0.0.1:{port}: "
    cure = (
        "If they are left over from another command, run alone with: "
        "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT."
    )
    with pytest.raises(UsageError) as error:
        rendezvous.meet(alone, ["train"], output.append)
    assert str(error.value) == f"{place}rank {1 - rank} did not start. {cure}"
    assert output == [f"{place}waiting for rank {1 - rank}, 0 s at most. {cure}"]


def test_a_port_that_another_program_holds_is_told() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        first = GroupLaunch("WORLD_SIZE", tuple(BY_HAND), 0, 2, "127.0.0.1", port)
        with pytest.raises(UsageError, match=r"the address cannot be used .*Set MASTER_PORT to a "):
            rendezvous.meet(first, ["train"], print)


def wait_for_ever(rank: int, port: int, folder: Path) -> None:
    """As in a collective of NCCL, whatever becomes of the others."""
    start = GroupLaunch("WORLD_SIZE", tuple(BY_HAND), rank, 3, "127.0.0.1", port)
    store, members = rendezvous.meet(start, ["train"], print)
    group = Group(start, store, members, rendezvous.tie(start, store))
    with group._exit_with_the_others(0, folder):
        (folder / str(rank)).touch()
        time.sleep(PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_one_that_is_killed_is_waited_for_by_nobody(killed: int, port: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=wait_for_ever, args=(rank, port, tmp_path)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + PATIENCE
    while len(list(tmp_path.iterdir())) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert all(process.is_alive() for process in processes)
    processes[killed].kill()
    since = time.monotonic()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [
        -signal.SIGKILL if rank == killed else 1 for rank in range(3)
    ]
    assert time.monotonic() - since < 60  # 10, and much for a busy machine


class Said:
    """A store in which these keys are."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def check(self, keys: list[str]) -> bool:
        return keys[0] in self.keys


def test_who_has_done_its_part_may_leave_while_the_first_still_saves() -> None:
    first = Group(GroupLaunch("srun", (), 0, 3, "127.0.0.1", 1), None, [], Ties([2]))
    assert first._patience(Said("done/1/2"), 1) == math.inf
    assert first._patience(Said("done/1/2", "failed/1"), 1) == FAILED_SECONDS
    assert first._patience(Said("done/0/2"), 1) == ENDED_SECONDS


def test_a_stranger_at_the_port_of_ties_is_no_end(port: int) -> None:
    first = GroupLaunch("WORLD_SIZE", tuple(BY_HAND), 0, 2, "127.0.0.1", port)
    output: dict[str, str] = {}

    class Store:
        set = output.__setitem__

    ended = rendezvous.tie(first, Store()).ended
    for message in (b"", b"GET / HTTP/1.1", (7).to_bytes(4), (1).to_bytes(4)):
        with socket.create_connection(("127.0.0.1", int(output["ties"]))) as connection:
            connection.sendall(message)
    end = time.monotonic() + PATIENCE
    while not ended and time.monotonic() < end:
        time.sleep(0.01)
    assert ended == [1]


# --- runs ---


def group(
    output: Path,
    words: Sequence[object],
    port: int,
    *,
    folder: Path,
    srun: bool = False,
    size: int = 2,
    change: Callable[[], None] | None = None,
) -> list[Command]:
    """Starts the command `size` times, as srun does or by hand."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS") if srun else ("RANK", "WORLD_SIZE")
    return [
        start(
            words,
            output.with_name(f"{output.name}-{rank}"),
            environment={**shared, names[0]: str(rank), names[1]: str(size)},
            folder=folder,
            cores=2,
            change=change,
        )
        for rank in range(size)
    ]


def all_end(commands: list[Command], code: int) -> str:
    """What the first said, once all have ended with this code; the others say nothing."""
    message = [command.ends(code) for command in commands]
    for number, command in enumerate(commands[1:], 1):
        assert (command.stdout.read_text(), message[number]) == ("", "")
    return message[0]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that the command started itself."""
    run = tmp_path_factory.mktemp("own") / "run"
    words = ["train", "--procs", "2", "--out", run, "train.epochs=4", *SMALL]
    start(words, run.with_name("told"), cores=2).ends(0)
    return run


@pytest.mark.slow
def test_a_group_makes_one_run_that_stops_and_goes_on_as_with_procs(
    own: Path, port: int, tmp_path: Path
) -> None:
    words = ["train", "--json", "train.epochs=4", *SMALL]
    run = tmp_path / "runs" / "quickstart" / "0"

    tasks = group(tmp_path / "srun", words, port, folder=tmp_path, srun=True)
    tasks[0].until(trained(run, 9))
    for task in tasks:  # as srun passes it on
        task.send(signal.SIGTERM)
    message = all_end(tasks, 143)
    assert message.startswith("runs/quickstart/0\n")
    assert "\n2 processes of srun run this command together\n" in message
    assert f"error: stopped at step {saved_step(run)} of 32" in message

    tasks = group(tmp_path / "hand", [*words, "--resume"], port, folder=tmp_path)
    message = all_end(tasks, 0)
    assert "\n2 processes run this command together\n" in message
    assert tasks[0].result()["steps"] == 32
    assert [entry.name for entry in run.parent.iterdir() if entry.name != ".cache"] == ["0"]
    assert read_environment(RunDirectory(run))["procs"] == 2
    assert_same(run, own)

    tasks = group(
        tmp_path / "eval",
        ["eval", "--json", "--out", tmp_path / "eval", run],
        port,
        folder=tmp_path,
    )
    all_end(tasks, 0)
    assert tasks[0].result()["loss"] == json.loads(RunDirectory(run).result.read_text())["loss"]


@pytest.mark.slow
def test_all_of_a_group_leave_with_the_code_of_what_went_wrong_first(
    port: int, tmp_path: Path
) -> None:
    words = ["train", "--out", "run", "train.epochs=400", *SMALL]
    tasks = group(tmp_path / "killed", words, port, folder=tmp_path)
    tasks[0].until(trained(tmp_path / "run", 9))
    tasks[1].kill()
    since = time.monotonic()
    message = tasks[0].ends(1)
    assert time.monotonic() - since < 60
    assert (
        f"error: rank 1 (pid {tasks[1].pid} on {socket.gethostname()}) ended without a failure "
        "record. If memory ran out, use smaller micro-batches. Resume with --resume." in message
    )

    tasks = group(tmp_path / "first", [*words, "--resume"], port, folder=tmp_path)
    tasks[0].until(trained(tmp_path / "run", 18))
    tasks[0].kill()
    since = time.monotonic()
    tasks[1].ends(1)
    assert time.monotonic() - since < 60

    refused = group(tmp_path / "refused", words, port, folder=tmp_path)
    assert "error: run: holds a run already. Use another --out, or --resume." in all_end(refused, 2)

    empty = [
        "train",
        "data={name: folder, root: none}",
        "train.device_batch_size=64",
        "--out=other",
    ]
    message = all_end(group(tmp_path / "data", empty, port, folder=tmp_path), 3)
    assert "none" in message
    assert not (tmp_path / "other").exists()


def leave_no_group() -> None:
    """Leaving a process group takes for ever, as with NCCL where another sits in a collective."""
    dist.destroy_process_group = lambda *_: time.sleep(3 * PATIENCE)
    groups.FAILED_SECONDS = 1.0


def test_a_failed_rank_that_cannot_leave_the_group_is_reported_and_ends(
    port: int, tmp_path: Path
) -> None:
    words, bad = corrupt_test_file(tmp_path)
    given = ["train", "--recipe", "pytorch", "--workers", "1", "--out", "run", *words]
    tasks = group(tmp_path / "told", given, port, folder=tmp_path, change=leave_no_group)
    message = [task.ends(3) for task in tasks]
    assert f"error: rank 1: {bad}: cannot be decoded: " in message[0]
    failure = read_failure(RunDirectory(tmp_path / "run"))
    assert failure is not None
    assert (failure.rank, failure.exit_code) == (1, 3)


def test_a_group_trains_on_after_a_run_that_diverged(port: int, tmp_path: Path) -> None:
    words = ["seed-sweep", "--seeds", "2", "--out", "sweep", "optim.lr=1.0e30", *SMALL]
    tasks = group(
        tmp_path / "told", [*words, "schedule.factors=[0.0, 1, 0]"], port, folder=tmp_path
    )
    all_end(tasks, 4)
    for seed in (0, 1):
        failure = read_failure(RunDirectory(tmp_path / "sweep" / f"seed-{seed}"))
        assert failure is not None
        assert failure.message.startswith("the loss is ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("train", "--procs", "4"),
            "--procs: 4, and this command runs as 2 processes (WORLD_SIZE). Remove it, ",
        ),
        (
            ("train", "--max-restarts", "1"),
            "--max-restarts: this command runs as 2 processes already",
        ),
        (
            ("train", "train.device_batch_size=128"),
            "WORLD_SIZE: 2 processes do not divide the 1 micro-batches",
        ),
        (("seed-sweep", "--jobs", "2", *SMALL), "--jobs: this command runs as 2 processes already"),
        (("bench", "step"), "bench: works in one process, and runs as 2 (WORLD_SIZE)."),
        (("transfer",), "transfer: give --from WEIGHTS and --to DATA"),
    ],
)
def test_what_a_group_cannot_do_is_refused_once(
    words: tuple[str, ...], message: str, port: int, tmp_path: Path
) -> None:
    tasks = group(tmp_path / "told", words, port, folder=tmp_path)
    output = [task.ends(2) for task in tasks]
    assert f"error: {message}" in output[0]
    assert words[0] == "bench" or output[1] == ""
    assert not list(tmp_path.glob("runs/*/[0-9]*/recipe.yaml"))


def test_a_sweep_trains_its_seeds_on_the_group_one_after_another(port: int, tmp_path: Path) -> None:
    words = ["seed-sweep", "--seeds", "2", "--json", "--out", "sweep", "train.epochs=1", *SMALL]
    tasks = group(tmp_path / "told", words, port, folder=tmp_path)
    message = all_end(tasks, 0)
    assert "one run at a time, on 2 processes" in message
    assert tasks[0].result()["n"] == 2
    for seed in (0, 1):
        assert read_environment(RunDirectory(tmp_path / "sweep" / f"seed-{seed}"))["procs"] == 2


def test_two_processes_that_were_told_different_things_are_no_group(
    port: int, tmp_path: Path
) -> None:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_STEP_NUM_TASKS": "2"}
    tasks = [
        start(
            ["train", f"--out={rank}", *SMALL],
            tmp_path / f"told{rank}",
            environment={**shared, "SLURM_PROCID": str(rank)},
            folder=tmp_path,
        )
        for rank in range(2)
    ]
    message = all_end(tasks, 2)
    assert (
        f"error: rank 1 (pid {tasks[1].pid} on {socket.gethostname()}) was started with" in message
    )
    assert "and rank 0 with 'train --out=0 " in message
    assert "in each task: unset SLURM_PROCID SLURM_STEP_NUM_TASKS." in message


@pytest.mark.slow
def test_torchrun_makes_one_run_and_goes_on_with_it_where_a_process_was_killed(
    own: Path, tmp_path: Path
) -> None:
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    call += ["--max-restarts", "1", "-m", "rescue_cli", "train", "train.epochs=4", *SMALL]
    run, printed = tmp_path / "runs" / "quickstart" / "0", tmp_path / "printed"
    with printed.open("w") as file, subprocess.Popen(
        call, cwd=tmp_path, stderr=file, stdout=subprocess.PIPE, text=True
    ) as torchrun:  # fmt: skip
        while not trained(run, 9)():
            assert torchrun.poll() is None, printed.read_text()
            time.sleep(0.01)
        ranks = {rank_of(pid): pid for pid in descendants(torchrun.pid)}
        os.kill(ranks[1], signal.SIGKILL)
        out, _ = torchrun.communicate()
    message = printed.read_text()
    assert torchrun.returncode == 0, message
    assert message.count("2 processes of torchrun run this command together") == 2
    assert out.count("top-1 %") == 1
    assert_same(run, own)


def test_one_process_of_torchrun_works_as_alone(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**BY_HAND, **ELASTIC, "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    words = ("seed-sweep", "--seeds", "1", "--out", "sweep", "train.epochs=1")
    assert rescue(*words, *SMALL).code == 0
    assert (tmp_path / "sweep" / "seed-0" / "result.json").exists()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", *ELASTIC} & {*os.environ}
