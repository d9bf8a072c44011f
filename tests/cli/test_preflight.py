"""`rescue preflight`: each check passes and fails, and a kill test finds equal and other bits."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rescue_cli import estimate
from rescue_cli.analysis import kill_test, preflight
from rescue_cli.analysis.kill_test import KillTest, find_different, read_tensors, run_kill_test
from rescue_cli.analysis.preflight import attempt, describe_kill_test, format_bytes
from rescue_cli.errors import DataError, RescueError
from rescue_cli.recipe import Recipe, load, recipe_in
from rescue_cli.rundir import RunDirectory
from rescue_cli.runs.directory import reserve
from rescue_cli.sections.data import FileNames, Files
from tests.conftest import Rescue
from tests.helpers.processes import start

MAX_CORRUPT = "data.max_corrupt=1"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of four training and two test images, of 16 pixels."""
    for split, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), (40 * number, 0, 90)).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


SMALL = (
    "data.name=folder", "data.root=photos", "model.name=resnet18", "data.train_size=16",
    "eval.sizes=[16]", "train.batch_size=8", "train.device_batch_size=4", "train.epochs=3",
)  # fmt: skip


def checked(rescue: Rescue, code: int, *more: str) -> dict[str, dict[str, Any]]:
    ended = rescue("preflight", "--recipe", "pytorch", *SMALL, *more, "--json")
    assert ended.code == code, ended.err
    answer = json.loads(ended.out)
    assert answer["ok"] is (code == 0)
    return {check["check"]: check for check in answer["checks"]}


def verdicts(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: check["verdict"] for name, check in checks.items()}


def test_a_training_that_can_begin_passes_in_a_table_of_a_screens_width(
    rescue: Rescue, photos: Path, tmp_path: Path
) -> None:
    given = ("--gpu-memory", "1", "--images-per-second", "0.01", "--price", "2", "--gpus", "2")
    checks = checked(rescue, 0, *given)
    assert verdicts(checks) == dict.fromkeys(
        ["recipe", "memory", "hours", "data", "train files", "train images", "val files",
         "val images", "disk"], "ok",
    )  # fmt: skip
    assert checks["recipe"]["updates"] == 3
    assert checks["hours"]["hours"] == pytest.approx(24 / 0.01 / 3600)
    assert checks["hours"]["cost"] == pytest.approx(24 / 0.01 / 3600 * 2 * 2)
    size = sum(file.stat().st_size for file in (photos / "train").rglob("*.jpg"))
    assert checks["train files"]["bytes"] == size
    assert (checks["train images"]["decoded"], checks["train images"]["of"]) == (8, 8)
    lines = rescue("preflight", "--recipe", "pytorch", *SMALL).out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["check", "figure", "verdict"]
    assert not (tmp_path / "runs").exists()


def test_images_that_cannot_be_decoded_fail_where_training_would(
    rescue: Rescue, photos: Path
) -> None:
    corrupt = photos / "train" / "dog" / "1.jpg"
    corrupt.write_bytes(b"no image")
    images = checked(rescue, 0, MAX_CORRUPT)["train images"]
    assert (images["verdict"], images["decoded"]) == ("warning", 7)  # one of at most one
    assert "train/dog/1.jpg: not a readable image" in images["figure"]
    (photos / "train" / "cat" / "1.jpg").write_bytes(b"no image")
    assert verdicts(checked(rescue, 1, MAX_CORRUPT))["train images"] == "fails"
    (photos / "val" / "dog" / "1.jpg").write_bytes(b"no image")
    checks = checked(rescue, 1)
    assert verdicts(checks)["train images"] == "warning"
    assert verdicts(checks)["val images"] == "fails"  # test images are never replaced
    shutil.rmtree(photos)
    assert verdicts(checked(rescue, 1, "train.steps_per_epoch=2"))["data"] == "fails"


def test_files_that_are_empty_or_gone_are_counted(photos: Path) -> None:
    (photos / "empty.jpg").touch()
    names = [f"train/cat/{number}.jpg" for number in range(4)] * 600  # more than a thread takes
    size = sum((photos / name).stat().st_size for name in names)
    for number, (more, verdict) in enumerate([((), "ok"), (("empty.jpg", "gone.jpg"), "fails")]):
        listed = FileNames.of(photos, [*names, *more])
        files = Files(listed, np.zeros(len(listed), dtype=np.int64))
        check = preflight._check_sizes("train files", files, 1)
        assert (check.verdict, check.values) == (verdict, {"bytes": size, "bad": 2 * number})
    assert f"2 missing, empty or not readable, the first {photos}/empty.jpg" in check.figure
    assert preflight._check_sizes("train files", files, 2).verdict == "warning"


def test_shards_are_checked_as_they_were_indexed(rescue: Rescue, photos: Path) -> None:
    shutil.make_archive(str(photos), "zip", photos)
    checks = checked(rescue, 0, "data.root=photos.zip")
    assert checks["train files"]["figure"].startswith("8 images in 1 shard, ")
    assert checks["train images"]["decoded"] == 8
    names = SimpleNamespace(place=str(photos.with_suffix(".zip")), size=5, is_remote=False)
    assert not preflight._is_as_indexed(names)  # type: ignore[arg-type]


def test_what_is_too_large_for_gpu_or_disk_fails(
    rescue: Rescue, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=250 * 2**20))
    checks = checked(rescue, 1, "--gpu-memory", "0.001", "train.snapshots=[1]")
    assert verdicts(checks)["memory"] == "fails"
    assert "Even a micro-batch of one image does not fit." in checks["memory"]["figure"]
    disk = checks["disk"]
    assert disk["verdict"] == "fails"
    parameters = checks["recipe"]["parameters"]
    # Weights and momentum, 4 bytes each: the last checkpoint, the one that replaces it, a snapshot
    assert disk["needed_bytes"] == pytest.approx(parameters * 4 * (2 * 3 + 3), rel=0.01)
    assert photos.exists()
    assert f"free in {tmp_path}" in disk["figure"]


def test_weights_that_are_missing_fail(rescue: Rescue, photos: Path) -> None:
    weights = photos / "weights.safetensors"
    weights.write_bytes(b"1234")
    more = (f"model.weights={weights}", "train.steps_per_epoch=2")
    checks = checked(rescue, 0, *more)
    assert (checks["model.weights"]["verdict"], checks["model.weights"]["bytes"]) == ("ok", 4)
    weights.unlink()
    assert verdicts(checked(rescue, 1, *more))["weights"] == "fails"


@pytest.mark.parametrize(
    "words", [(), ("model.width=8", "averaging={name: ema, decay: 0.9, every: 1}")]
)
def test_the_predicted_checkpoint_is_the_one_that_is_written(
    words: Sequence[str], rescue: Rescue, tmp_path: Path
) -> None:
    assert rescue("train", "--smoke", "--out", "run", *words).code == 0
    checkpoint, weights = estimate.saved_megabytes(recipe_in(tmp_path / "run"))
    run = RunDirectory(tmp_path / "run")
    for predicted, file in ((checkpoint, run.last), (weights, run.weights)):
        size = file.stat().st_size
        tensors = predicted * 2**20
        assert tensors < size < 1.02 * tensors + 60_000  # the rest are names and headers


# --- the kill test ---


class ForkedRunner:
    """Trains in processes that hold torch already."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0

    def train(self, undisturbed: Path, killed: Path, recipe: Recipe) -> None:
        self.resume(undisturbed, recipe)
        command = self._start(killed, recipe)
        command.until(kill_test._LostSteps(killed))
        command.kill()

    def resume(self, path: Path, recipe: Recipe) -> None:
        self._start(path, recipe).ends(0)

    def _start(self, path: Path, recipe: Recipe) -> Any:
        self.number += 1
        reserve(path, recipe, resume=True)
        words = ["train", "--resume", "--out", path, "--device", "cpu"]
        return start(words, self.folder / f"told-{self.number}")


@pytest.mark.slow
def test_a_kill_test_resumes_in_the_middle_and_finds_equal_bits(tmp_path: Path) -> None:
    given = ["model.width=4", "train.epochs=300"]
    recipe = load("quickstart").with_overrides(*given)
    test = run_kill_test(recipe, given, tmp_path, ForkedRunner(tmp_path), cuda=False)
    assert 0 < test.resumed_at < test.killed_after < test.steps
    assert test.resumed_at % 4 == 0  # an eighth of the steps
    weights = load_file(tmp_path / "killed-0" / "model.safetensors")
    assert (test.equal, test.tensors) == (True, len(weights))
    assert describe_kill_test(test).verdict == "ok"


def test_one_bit_that_differs_is_found_and_fails(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3), "b": torch.tensor([0.0, float("nan")])}
    save_file(tensors, tmp_path / "one", {"made": "now"})
    save_file(tensors, tmp_path / "two", {"made": "later"})
    one, two = (read_tensors(tmp_path / name) for name in ("one", "two"))
    assert find_different(one, two) == []
    tensors["a"][2] = -0.0
    save_file(tensors, tmp_path / "two")
    assert find_different(one, read_tensors(tmp_path / "two")) == ["a"]
    save_file({"a": torch.zeros(1, 3), "c": tensors["b"]}, tmp_path / "two")
    assert find_different(one, read_tensors(tmp_path / "two")) == ["a", "b", "c"]
    check = describe_kill_test(KillTest(32, 9, 8, 2, ["a"]))
    assert check.verdict == "fails"
    assert check.figure.endswith("1 of 2 tensors of weights differ, the first a")


class TooFast:
    """Ends before it can be killed."""

    def train(self, undisturbed: Path, killed: Path, recipe: Recipe) -> None:
        assert undisturbed != killed
        assert recipe.train.epochs == 1
        killed.mkdir()
        RunDirectory(killed).result.touch()

    def resume(self, path: Path, recipe: Recipe) -> None:
        raise AssertionError(path, recipe)


def test_a_run_that_cannot_be_killed_in_time_is_made_longer(tmp_path: Path) -> None:
    with pytest.raises(RescueError, match="a run of 2048 steps ended before it could be killed"):
        run_kill_test(load("quickstart"), [], tmp_path, TooFast(), cuda=False)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_runs_of_a_kill_test_are_short_and_deterministic_on_a_gpu() -> None:
    given = ["train.epochs=300", "train.device_batch_size=64"]
    recipe = load("a2").with_overrides(*given)
    short = kill_test.short_recipe(recipe, given, 32, cuda=True)
    assert (short.train.epochs, short.train.steps_per_epoch) == (1, 32)
    assert (short.train.device_batch_size, short.train.deterministic) == (64, True)
    assert short.train.micro_batches == recipe.train.micro_batches
    kept = kill_test.short_recipe(
        recipe, [*given, "train.deterministic=false"], 32, cuda=True
    )  # as the user has it
    assert not kept.train.deterministic


def test_a_check_that_raises_fails_with_its_message() -> None:
    def broken() -> list[preflight.Check]:
        raise DataError("no such folder")

    (check,) = attempt("data", broken)
    assert (check.name, check.figure, check.verdict) == ("data", "no such folder", "fails")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1536, "1.5 KB"),
        (3 * 2**30, "3 GB"),
        (2**52, "4,096 TB"),
    ],
)
def test_bytes_are_told_in_units_of_1024(number: int, text: str) -> None:
    assert format_bytes(number) == text.replace("4,096", "4.1e+03")


def test_a_kill_test_of_a_recipe_without_steps_is_not_judged(rescue: Rescue) -> None:
    assert KillTest(1, 1, 1, 1, []).equal
    ended = rescue("preflight", "--recipe", "transfer-probe", "--kill-test", "--json",
                   "model.weights=null", "data.name=fashion-mini")  # fmt: skip
    checks = {check["check"]: check for check in json.loads(ended.out)["checks"]}
    assert checks["kill test"]["verdict"] == "not judged"
    assert checks["disk"]["checkpoint_bytes"] == 0


@pytest.mark.long
def test_the_command_kills_and_resumes_a_run_here(rescue: Rescue, tmp_path: Path) -> None:
    ended = rescue("preflight", "--kill-test", "model.width=4", "--json", "--device", "cpu")
    assert ended.code == 0, ended.out
    test = json.loads(ended.out)["checks"][-1]
    assert (test["check"], test["verdict"], test["different"]) == ("kill test", "ok", 0)
    assert 0 < test["resumed_at"] < test["killed_after"] < test["steps"]
    assert not [*tmp_path.glob("runs/quickstart/.kill-test-*")]
