"""Runs on two machines, of which one fails: when the other ends, what it says, what is resumed.

Needs root: `make test-cluster`.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rescue_cli.rundir import RunDirectory, read_failure
from tests.helpers.machines import PORT, Machines, Process, can_be_made, wait_until
from tests.helpers.processes import assert_same, saved_step, trained

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not can_be_made(), reason="no network namespaces: make test-cluster, root"),
]
SMALL = (
    "data.subset=[256, 127]", "model.width=4", "train.batch_size=32",
    "train.device_batch_size=16", "train.log_every=3", "train.checkpoint_epochs=0.5",
    "eval.batch_size=10", "train.epochs=12", "--device", "cpu", "--workers", "0",
)  # fmt: skip
STEPS = 12 * 8
KILLED_SECONDS = 20.0  # for the others to end; 3 on an idle machine
CUT_OFF_SECONDS = 90.0  # half a minute without an answer, and as long for torchrun; 63 measured
LAUNCHERS = ("--nodes", "srun")
GONE = "cannot be reached: its machine or the network is down."


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one machine, in two processes, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    with Machines() as machines:
        words = ["train", "--out", "run", *SMALL, "--procs", 2]
        machines.both[0].cores += machines.both[1].cores
        machines.both[0].start(words, folder / "told", folder).ends(0)
    return folder / "run"


@pytest.fixture
def machines() -> Iterator[Machines]:
    with Machines() as both:
        yield both


def start(
    machines: Machines, launcher: str, folder: Path, *more: object, out: Path | str = "run"
) -> list[Process]:
    """The same run on both machines, one process each."""
    commands = []
    for rank, machine in enumerate(machines.both):
        words: list[object] = ["train", "--out", out, *SMALL, *more]
        variables = {}
        if launcher == "--nodes":
            words += ["--nodes", 2, "--node-rank", rank, "--rendezvous", machines.rendezvous]
            words += ["--procs", 2]
        else:
            variables = {
                "MASTER_ADDR": machines.both[0].address, "MASTER_PORT": str(PORT),
                "SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2",
            }  # fmt: skip
        output = folder / f"told-{len(more)}-{rank}"
        commands.append(machine.start(words, output, folder, **variables))
    return commands


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_train_the_bits_of_one(
    launcher: str, machines: Machines, whole: Path, tmp_path: Path
) -> None:
    for command in start(machines, launcher, tmp_path):
        command.ends(0)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_machine_whose_processes_are_killed_is_told_at_once(
    launcher: str, lost: int, machines: Machines, whole: Path, tmp_path: Path
) -> None:
    commands = start(machines, launcher, tmp_path)
    wait_until(trained(tmp_path / "run", 30), commands[0])
    machines.both[lost].kill()
    since = time.monotonic()
    message = commands[1 - lost].ends(1)
    assert time.monotonic() - since < KILLED_SECONDS
    last = message.strip().splitlines()[-1]
    if launcher == "--nodes" and lost == 0:  # with it torchrun's store of the rendezvous
        cause = rf"--rendezvous: {machines.rendezvous}: the first machine has ended or cannot be "
    elif launcher == "--nodes":
        cause = rf"rank 0: rank {lost}, on another machine, ended without a failure record\. "
    else:
        cause = rf"rank {lost} \(pid \d+ on {machines.both[lost].name}\) ended without a failure "
    assert re.match(f"error: {cause}", last), message
    resume_and_compare(launcher, machines, whole, tmp_path)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_machines_that_cannot_reach_each_other_both_end(
    launcher: str, lost: int, machines: Machines, whole: Path, tmp_path: Path
) -> None:
    commands = start(machines, launcher, tmp_path)
    wait_until(trained(tmp_path / "run", 30), commands[0])
    machines.cut_off(machines.both[lost])
    since = time.monotonic()
    for command in commands:
        *_, last = command.ends(1).strip().splitlines()
        assert last.startswith("error: ")
        assert GONE in last
    assert time.monotonic() - since < CUT_OFF_SECONDS
    failure = read_failure(RunDirectory(tmp_path / "run"))
    assert failure is not None
    assert GONE in failure.message
    machines.connect(machines.both[lost])
    resume_and_compare(launcher, machines, whole, tmp_path)


def resume_and_compare(launcher: str, machines: Machines, whole: Path, folder: Path) -> None:
    """Resumes the run on both machines; its result has the bits of an undisturbed one."""
    run = folder / "run"
    assert 0 < saved_step(run) < STEPS
    assert not (run / "result.json").exists()
    for command in start(machines, launcher, folder, "--resume"):
        command.ends(0)
    assert f" of {STEPS}" in (run / "log.txt").read_text().split(" resumed at step ")[1]
    assert_same(run, whole)


# --- the folder that they share ---


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An empty folder to mount on, which is unmounted in the end."""
    folder = tmp_path / "shared"
    folder.mkdir()
    yield folder
    while subprocess.run(["umount", folder], capture_output=True).returncode == 0:
        pass


@pytest.mark.skipif(shutil.which("bindfs") is None, reason="no bindfs: make test-cluster")
def test_a_slow_shared_folder_changes_no_bit(
    mounted: Path, machines: Machines, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "behind").mkdir()
    rates = ["--read-rate=100k", "--write-rate=50k"]
    subprocess.run(["bindfs", *rates, tmp_path / "behind", mounted], check=True)
    commands = start(machines, "--nodes", tmp_path, out=mounted / "run")
    for command in commands:
        command.ends(0)
    assert_same(mounted / "run", whole)
    result = whole.joinpath("result.json")
    assert result.exists()


def test_a_full_shared_folder_ends_both_and_is_named(
    mounted: Path, machines: Machines, whole: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mounted], check=True)
    commands = start(machines, "--nodes", tmp_path, out=mounted / "run")
    wait_until(trained(mounted / "run", 30), commands[0])
    full = mounted / "full"
    with pytest.raises(OSError, match="No space left"):
        full.write_bytes(bytes(2**21))
    since = time.monotonic()
    messages = [command.ends(1) for command in commands]
    assert time.monotonic() - since < KILLED_SECONDS
    # There is no space for a failure record either
    assert re.search(r"rank 0: .*/run/\S+: could not be written \(", messages[0]), messages[0]
    assert "No space left on device" in messages[0]
    ends = (
        r"rank 0, on another machine, ended without a failure record\.|the first machine has ended"
    )
    assert re.search(ends, messages[1]), messages[1]
    full.unlink()
    for command in start(machines, "--nodes", tmp_path, "--resume", out=mounted / "run"):
        command.ends(0)
    assert_same(mounted / "run", whole)
