"""How a run ends badly: the exit code, the sentence, and what still stands afterwards."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rescue_cli.cli import main
from rescue_cli.engine import checkpoint
from rescue_cli.errors import DataError, MemoryExhausted
from rescue_cli.recipe.schema import PositiveInt
from rescue_cli.rundir import RunDirectory, read_metrics
from rescue_cli.runs.worker import work
from rescue_cli.sections.model import MODELS
from tests.helpers.processes import Command, checkpoint_of, last_step, saved_step, start, trained

SMALL = [
    "--recipe",
    "quickstart",
    "data.subset=[256, 50]",
    "model.width=8",
    "train.batch_size=64",
    "train.device_batch_size=64",
    "train.epochs=6",
    "train.log_every=1",
    "train.checkpoint_epochs=0.5",
]


def train(run: Path, *options: str, largest_file: int | None = None) -> Command:
    words = ["train", "--out", run, *SMALL, *options]
    return start(words, run.with_name(f"{run.name}-told"), largest_file=largest_file)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its first epoch; to be copied."""
    run = tmp_path_factory.mktemp("killed") / "run"
    command = train(run)
    command.until(trained(run, 7))
    command.kill()
    assert saved_step(run) >= 4
    return run


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(killed, copy)
    return copy


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    message = train(run, "optim.lr=1.0e30", "schedule.factors=[0.0, 1, 0]").ends(4)
    found = re.search(
        r"error: the loss is (nan|inf) between steps (\d+) and (\d+) \(learning rate (\S+)\); "
        r"the last finite loss was (\S+)\. .*The last good checkpoint is kept\.",
        message,
    )
    assert found, message[-1500:]
    step = int(found[3])
    assert int(found[2]) == step - 1 == last_step(run, "train"), "losses are read at each step"
    assert float(found[4]) > 1e27
    if RunDirectory(run).last.exists():
        state = checkpoint.load(RunDirectory(run).last, torch.device("cpu"))
        assert all(t.isfinite().all() for t in state["model"].values())
        assert state["progress"]["step"] < step
    assert not RunDirectory(run).result.exists()


def test_a_run_that_diverges_after_a_resume_knows_the_loss_from_before(run: Path) -> None:
    loss = last_loss_before(run)
    tree = RunDirectory(run).recipe.read_text()
    tree = tree.replace("lr: 0.4", "lr: 1.0e+38").replace("log_every: 1", "log_every: 4")
    RunDirectory(run).recipe.write_text(tree)  # no loss is read before the first that is not finite
    message = start(["train", "--resume", "--out", run], run.with_name("told")).ends(4)
    assert f"the last finite loss was {loss:.4g}." in message, message[-800:]


def last_loss_before(run: Path) -> float:
    step = saved_step(run)
    lines = read_metrics(RunDirectory(run).metrics)
    return float(next(x["loss"] for x in lines if x["kind"] == "train" and x["step"] == step))


class Greedy(nn.Module):
    """A network whose activations the device has no room for."""

    def __init__(self, classes: int, *, in_training: bool) -> None:
        super().__init__()
        self.head = nn.Linear(28 * 28, classes)
        self.in_training = in_training

    def forward(self, images: Tensor) -> Tensor:
        if self.training == self.in_training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        logits: Tensor = self.head(images.flatten(1))
        return logits


def greedy(classes: int, _channels: int, *, width: PositiveInt) -> nn.Module:
    """Of an even width at training, of an odd one at evaluation."""
    return Greedy(classes, in_training=width % 2 == 0)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (
            8,
            "error: train.device_batch_size: 48 images do not fit into the memory of the device "
            "(CUDA out of memory. Tried to allocate 9 GiB.). Try train.device_batch_size=24 (batch",
        ),
        (
            9,
            "error: eval.batch_size: 250 images (or the whole test set, if smaller) do not "
            "fit into the memory of the device (CUDA out of memory. Tried to allocate 9 GiB.). "
            "Set a smaller",
        ),
    ],
)
def test_out_of_memory_says_which_micro_batch_to_try(
    width: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(MODELS, "greedy", greedy)
    run = tmp_path / "run"
    words = ["train", "--out", str(run), *SMALL, f"model={{name: greedy, width: {width}}}"]
    words += ["train.batch_size=96", "train.device_batch_size=48"]
    monkeypatch.setattr(sys, "argv", ["rescue", *words])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as ended:
        main()
    torch.set_num_threads(threads)
    assert ended.value.code == MemoryExhausted.exit_code == 5
    assert message in capsys.readouterr().err


def test_a_full_disk_during_a_checkpoint_leaves_the_old_one(run: Path) -> None:
    before, step = RunDirectory(run).last.read_bytes(), saved_step(run)
    limit = len(before) * 2 // 3
    command = train(run, "--resume", largest_file=limit)
    message = command.ends(1)
    assert re.search(
        rf"error: {RunDirectory(run).last}: could not be written \(.+\)\. "
        r"The previous file is intact\. Free space and resume\.",
        message,
    ), message[-1500:]
    assert RunDirectory(run).last.read_bytes() == before
    assert not list(run.rglob("*.partial")), "the half is removed, since the disk is full"
    assert f"resumed at step {step}" in train(run, "--resume").ends(0)


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = train(run, "train.epochs=1000")
    first.until(trained(run, 3))
    for option in ("--resume", "--json"):
        words = ["train", "--out", run, *SMALL, "train.epochs=1000", option]
        message = start(words, tmp_path / "second").ends(2)
        assert f"error: {run}: another run is using this directory." in message
    reached = last_step(run, "train")
    first.until(trained(run, reached + 1))  # the first is none the worse
    first.kill()
    message = train(run).ends(2)
    assert f"error: {run}: holds a run already. Use another --out, or --resume." in message


def test_resuming_with_another_recipe_names_the_keys(run: Path) -> None:
    before = RunDirectory(run).recipe.read_text()
    message = train(run, "--resume", "optim.lr=0.2", "train.seed=3").ends(2)
    assert "holds a run of another recipe: " in message
    assert "optim.lr: 0.4 -> 0.2" in message
    assert "train.seed: 0 -> 3" in message
    assert RunDirectory(run).recipe.read_text() == before


def test_resuming_where_nothing_is_starts_at_step_0(tmp_path: Path) -> None:
    run = tmp_path / "new"
    message = train(run, "--resume", "train.epochs=1").ends(0)
    assert "resumed" not in message
    assert saved_step(run) == 4


# --- checkpoints that are not what they seem ---


class Trap:
    """What a pickle calls when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "malicious", "another format"])
def test_a_file_that_is_no_checkpoint_is_refused_and_nothing_in_it_runs(
    kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    last = RunDirectory(run).last
    whole = last.read_bytes()
    if kind == "malicious":
        torch.save({"format": checkpoint.FORMAT, "progress": Trap()}, last)
    elif kind == "another format":
        torch.save({"format": checkpoint.FORMAT + 1}, last)
    else:
        last.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hi"}[kind])
    with pytest.raises(DataError, match=re.escape(f"{last}: not a checkpoint")):
        checkpoint.load(last, torch.device("cpu"))
    with pytest.raises(DataError, match="Delete it and start again"):
        work(run)
    assert not (tmp_path / "sprung").exists()


def _momentum(state: dict[str, Any]) -> dict[int, Any]:
    found: dict[int, Any] = state["updates"]["optimizers"][0]["state"]
    return found


MISFITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no step": lambda state: state["progress"].update(step=None),
    "a step that no run has": lambda state: state["progress"].update(step=-2),
    "an accuracy as text": lambda state: state["progress"].update(best={"top1": "9"}),
    "no weights": lambda state: state.pop("model"),
    "no momentum": lambda state: _momentum(state).clear(),
    "no momentum of a tensor": lambda state: _momentum(state).pop(3),
    "a momentum by another name": lambda state: _momentum(state).update({3: {"x": torch.ones(1)}}),
    "a short momentum": lambda state: _momentum(state)[3].update(momentum_buffer=torch.ones(2)),
    "a scalar for a state": lambda state: _momentum(state).update({3: torch.zeros(())}),
    "a list of corrupt files that is none": lambda state: state.update(corrupt=3),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_checkpoint_that_does_not_fit_the_run_is_refused_before_a_step(
    kind: str, run: Path
) -> None:
    last = RunDirectory(run).last
    state = checkpoint_of(run)
    MISFITS[kind](state)
    torch.save(state, last)
    with pytest.raises(DataError, match=re.escape(f"{last}: does not fit this run: ")):
        work(run)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to")])
def test_where_memory_runs_out_the_checkpoint_is_not_blamed(
    error: Exception, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), checkpoint.fitting(tmp_path / "last.pt"):
        raise error


def test_a_fault_of_the_users_own_code_is_no_fault_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "passed_own_code", lambda _: True)
    with pytest.raises(KeyError), checkpoint.fitting(tmp_path / "last.pt"):
        raise KeyError("mine")


def test_the_trap_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save(Trap(), tmp_path / "trap.pt")
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").is_dir()


def test_a_checkpoint_holds_what_a_run_is_and_no_generator(run: Path) -> None:
    assert set(checkpoint_of(run)) == {
        "format",
        "progress",
        "model",
        "updates",
        "average",
        "selection",
        "loss_sum",
        "replaced",
        "corrupt",
    }
