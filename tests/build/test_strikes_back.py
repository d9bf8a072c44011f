"""A2 whole, on real photographs: its smoke run, and its ingredients killed and resumed."""

from pathlib import Path

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.rundir import RunDirectory, read_json
from tests.helpers.processes import Command, assert_same, group_of, start, steps_at, trained

SMALL = [
    "model.name=test_resnet",  # timm's smallest residual net: drop path, zero-initialised gammas
    "data.train_size=64",
    "eval.sizes=[64]",
    "train.precision=float32",
    "train.batch_size=32",
    "train.device_batch_size=8",
    "train.epochs=2",
    "train.log_every=1",
    "train.checkpoint_epochs=0.3",
    "data.subset=[256, 24]",
]


def small(run: Path, photographs: Path, procs: int, output: str) -> list[Command]:
    """Starts or goes on with A2's ingredients on a small net: the command, or a group."""
    keys = [*SMALL, f"data.train_root={photographs}", f"data.test_root={photographs}"]
    if procs == 1:
        words = ["train", "--recipe", "a2", "--resume", "--workers", 1, "--out", run, *keys]
        return [start(words, run.with_name(output))]
    return group_of(procs, run, recipes.load("a2", keys), run.with_name(output), workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("procs", [1, 2])
def test_a2s_ingredients_go_on_exactly_after_a_kill(
    procs: int, imagenet_sample: Path, tmp_path: Path
) -> None:
    """Repeated sampling, RandAugment, mixing, drop path, binary cross-entropy and LAMB."""
    never_killed, run = tmp_path / "reference", tmp_path / "run"
    for process in small(never_killed, imagenet_sample, procs, "told"):
        process.ends(0)
    for number, step in enumerate(steps_at(51, 2, 3, 13)):
        processes = small(run, imagenet_sample, procs, f"killed{number}")
        processes[0].until(trained(run, step))
        for process in processes:
            process.kill()
    for process in small(run, imagenet_sample, procs, "again"):
        process.ends(0)
    assert read_json(RunDirectory(run).result)["steps"] == 16
    assert_same(run, never_killed)


@pytest.mark.long
def test_the_smoke_run_of_a2_trains_resnet50_on_photographs(
    imagenet_sample: Path, tmp_path: Path
) -> None:
    where = [f"data.train_root={imagenet_sample}", f"data.test_root={imagenet_sample}"]
    words = ["train", "--recipe", "a2", "--smoke", "--json", "--out", tmp_path / "run", *where]
    command = start(words, tmp_path / "told", cores=2)
    message = command.ends(0)
    assert "--smoke sets: train.batch_size=32 train.device_batch_size=8" in message
    result = command.result()
    assert (result["recipe"], result["steps"], result["count"]) == ("a2", 2, 16)
    assert result["parameters"] == 25_557_032
    assert result["protocol"]["size"] == 224
    assert result["protocol"]["crop"] == 0.95
