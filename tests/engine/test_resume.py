"""A run can be stopped or killed anywhere and goes on exactly, to the last bit."""

import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescue_cli.rundir import RunDirectory
from tests.helpers.processes import (
    Command,
    assert_same,
    checkpoint_of,
    held_while_evaluating,
    last_step,
    metrics_of,
    saved_after,
    saved_step,
    start,
    steps_at,
    stuck_while_saving,
    trained,
)

STEPS = 48  # 6 epochs of 8
PER_EPOCH = 8
RESIDENT = [
    "--recipe",
    "quickstart",
    "data.subset=[512, 127]",
    "model.width=4",
    "train.batch_size=64",
    "train.device_batch_size=32",
    "train.epochs=6",
    "train.log_every=2",
    "train.checkpoint_epochs=0.375",
    "averaging={name: ema, decay: 0.9, every: 2}",
    "eval.batch_size=4",
]


def train(
    run: Path,
    recipe: Sequence[str],
    *options: str,
    output: str = "",
    largest_file: int | None = None,
) -> Command:
    """Starts or goes on with the run."""
    arguments = ["train", "--resume", "--json", "--out", run, *options, *recipe]
    return start(arguments, run.with_name(f"{run.name}{output}"), largest_file=largest_file)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    run = tmp_path_factory.mktemp("resident") / "reference"
    train(run, RESIDENT).ends(0)
    return run


@pytest.mark.slow
def test_a_run_killed_five_times_ends_as_the_one_never_killed(
    reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    middles = steps_at(20260, 3, 3, 24)

    for step in middles:  # in mid-epoch, wherever the process is at that moment
        command = train(run, RESIDENT)
        command.until(trained(run, step))
        command.kill()
        assert step <= last_step(run, "train") < STEPS

    command = train(run, RESIDENT)  # in the middle of writing a checkpoint
    before = saved_step(run)
    with stuck_while_saving(run, command):
        command.kill()
    assert saved_step(run) == before, "the checkpoint before it is untouched"

    command = train(run, RESIDENT)  # during an evaluation
    evaluating = held_while_evaluating(run, command, PER_EPOCH)
    command.kill()
    assert metrics_of(run)[-1] == {**metrics_of(run)[-1], "kind": "train", "step": evaluating}

    train(run, RESIDENT).ends(0)
    assert_same(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_stopped_run_saves_where_it_stopped_and_goes_on_exactly(
    number: int, code: int, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = train(run, RESIDENT)
    command.until(trained(run, 13 if number == signal.SIGTERM else 27))
    reached = last_step(run, "train")
    command.send(number)
    message = command.ends(code)
    step = saved_step(run)
    assert step >= reached
    assert f"error: stopped at step {step} of {STEPS}; the checkpoint is saved." in message
    assert f"rescue train --resume --out {run}" in message

    train(run, RESIDENT).ends(0)
    assert_same(run, reference)


def test_a_run_stopped_during_evaluation_evaluates_again(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = train(run, RESIDENT)
    command.until(trained(run, PER_EPOCH))  # one evaluation is to be on record
    step = held_while_evaluating(run, command, PER_EPOCH)
    command.send(signal.SIGTERM)
    command.send(signal.SIGCONT)
    command.ends(143)
    assert checkpoint_of(run)["progress"]["evaluated"] == step - PER_EPOCH, "it is not on record"
    assert saved_step(run) == step

    train(run, RESIDENT).ends(0)
    assert_same(run, reference)


def test_a_run_killed_before_its_result_was_written_only_evaluates(
    reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = train(run, RESIDENT)
    command.until(saved_after(run, STEPS))
    command.kill()
    RunDirectory(run).result.unlink(missing_ok=True)

    message = train(run, RESIDENT).ends(0)
    assert f"resumed at step {STEPS} of {STEPS}" in message
    assert_same(run, reference)


def test_resuming_a_finished_run_prints_its_result(reference: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in reference.rglob("*.pt")}
    command = train(reference, RESIDENT, output="-again")
    assert "finished already; nothing to do" in command.ends(0)
    assert command.result()["steps"] == STEPS
    assert {f: f.stat().st_mtime_ns for f in reference.rglob("*.pt")} == before


# --- streamed ---


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JPEGs in three classes, of different sizes."""
    root = tmp_path_factory.mktemp("pictures")
    bits = np.random.Generator(np.random.Philox(3))
    for split, count in (("train", 16), ("val", 7)):
        for label, name in enumerate(("ash", "birch", "cedar")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = (40 + 3 * i, 50 - i, 3)
                noise = bits.integers(0, 120, size) + 60 * np.eye(3, dtype=np.int64)[label]
                Image.fromarray(noise.astype(np.uint8)).save(root / split / name / f"{i}.jpg")
    return root


def streamed(root: Path) -> list[str]:
    return [
        "--recipe",
        "pytorch",
        f"data={{name: folder, root: {root}, train_size: 32, train_interpolation: bilinear}}",
        "model={name: resnet9, width: 4, logit_scale: 0.125}",
        "eval.sizes=[32]",
        "eval.batch_size=4",
        "train.batch_size=16",
        "train.device_batch_size=8",
        "train.epochs=7",
        "train.log_every=1",
        "train.checkpoint_epochs=0.5",
        "train.channels_last=false",
    ]


@pytest.mark.slow
def test_a_streamed_run_goes_on_exactly_with_any_number_of_loader_workers(
    pictures: Path, tmp_path: Path
) -> None:
    recipe = streamed(pictures)
    never_killed = tmp_path / "reference"
    train(never_killed, recipe, "--workers", "2").ends(0)

    run = tmp_path / "run"
    for workers, step in zip(("1", "3", "0"), steps_at(7, 3, 2, 17), strict=True):
        command = train(run, recipe, "--workers", workers)
        command.until(trained(run, step))
        command.kill()
    train(run, recipe, "--workers", "2").ends(0)
    assert_same(run, never_killed)
