"""`train.device_batch_size=auto`: the largest micro-batch that fits."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from rescue_cli import estimate
from rescue_cli.recipe import load
from tests.conftest import Rescue

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
    again = rescue("train", AUTO, "--resume", "--out", tmp_path / "run")
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


def test_boxes_are_not_estimated(rescue: Rescue) -> None:
    ended = rescue("train", "--recipe", "detection-voc", AUTO, "--device", "cpu", "--dry-run")
    assert ended.code == 2
    assert "train.device_batch_size=auto: works for classification" in ended.err
