"""`train.device_batch_size=auto`: the largest micro-batch that fits."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from rescue_cli import estimate
from rescue_cli.recipe import load
from tests.conftest import Ended, Rescue

AUTO = "train.device_batch_size=auto"
SMALL = ("model.width=8", "train.batch_size=96", AUTO)


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_next_larger_divisor_of_the_batch_does_not_fit(gpus: int) -> None:
    recipe = load("quickstart", [*SMALL[:2], "train.device_batch_size=96"])
    limit = estimate.peak_memory(recipe, 24, gpus) + 0.1
    assert estimate.fit_micro_batch(recipe, limit, gpus) == (
        24,
        estimate.peak_memory(recipe, 24, gpus),
    )
    assert estimate.peak_memory(recipe, 32, gpus) > limit
    most = 96 // gpus
    assert estimate.fit_micro_batch(recipe, 1e6, gpus) == (
        most,
        estimate.peak_memory(recipe, most, gpus),
    )
    assert estimate.fit_micro_batch(recipe, 0.01, gpus) is None


def test_train_says_what_it_chose_and_that_batch_norm_changes(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = load("quickstart", [*SMALL[:2], "train.device_batch_size=96"])
    free = estimate.peak_memory(recipe, 24) / 0.85 + 0.1
    monkeypatch.setattr(import_module("rescue_cli.cli.train"), "free_memory_mb", lambda _: free)
    small = ("data.subset=[96, 32]", "train.epochs=1", *SMALL)
    ended = rescue("train", *small, "--device", "cpu", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert any(line.startswith("auto sets: train.device_batch_size=24 (") for line in ended.notes)
    assert (
        "warning: batch norm normalises over micro-batches of 24 images in place of 128, so the "
        "result may differ from the recipe's."
    ) in ended.notes
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recorded["train"]["device_batch_size"] == 24
    monkeypatch.setattr(import_module("rescue_cli.cli.train"), "free_memory_mb", lambda _: 1e6)
    for words in ((AUTO,), ("--recipe", "quickstart", *small)):
        again = rescue("train", *words, "--resume", "--out", tmp_path / "run")
        assert again.code == 0, again.err
        assert "finished already; nothing to do" in again.notes


def test_where_nothing_fits_the_run_does_not_start(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(import_module("rescue_cli.cli.train"), "free_memory_mb", lambda _: 0.01)
    ended = rescue("train", *SMALL, "--device", "cpu", "--out", tmp_path / "run")
    assert ended.code == 2
    assert ended.notes[-1] == (
        "error: train.device_batch_size: auto: not even one image fits into 0 MB. "
        "Use a smaller model or size."
    )
    assert not (tmp_path / "run").exists()


def micro_batch(ended: Ended) -> int:
    assert ended.code == 0, ended.err
    size: int = json.loads(ended.out)["recipe"]["train"]["device_batch_size"]
    return size


def test_it_is_a_share_of_the_batch_for_each_process(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = import_module("rescue_cli.cli.train")
    monkeypatch.setattr(command, "free_memory_mb", lambda _: 1e6)
    words = ("train", *SMALL, "--device", "cpu", "--dry-run", "--json")
    assert micro_batch(rescue(*words)) == 96
    assert micro_batch(rescue(*words, "--procs", "4")) == 24
    monkeypatch.setattr(command, "visible_devices", lambda _: 5)
    assert micro_batch(rescue(*words)) == 24, "5 do not divide 96 images, 4 do"
    refused = rescue(*words, "--procs", "5")
    assert refused.code == 2
    assert refused.notes[-1] == (
        "error: train.batch_size: 96 images cannot be shared evenly by 5 processes. Use a multiple."
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--smoke", "--smoke and train.device_batch_size=auto set the same thing. Give only one."),
        (
            "--resume",
            "train.device_batch_size=auto: a resumed run keeps its micro-batches, so it has to be "
            "named. Give --out RUN.",
        ),
    ],
)
def test_what_decides_the_micro_batch_too_is_refused(
    option: str, message: str, rescue: Rescue
) -> None:
    ended = rescue("train", *SMALL, option, "--device", "cpu")
    assert (ended.code, ended.notes[-1]) == (2, f"error: {message}")


def test_boxes_are_not_estimated(rescue: Rescue) -> None:
    ended = rescue("train", "--recipe", "detection-voc", AUTO, "--device", "cpu", "--dry-run")
    assert ended.code == 2
    assert "train.device_batch_size=auto: works for classification" in ended.err
