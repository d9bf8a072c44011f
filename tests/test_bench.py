"""`rescue bench` measures what it says: the same files, the same augmentation, sums that add up."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rescue_cli import recipe as recipes
from rescue_cli.bench import timms
from rescue_cli.bench.train import measured_recipe
from rescue_cli.cli import main
from rescue_cli.errors import UsageError


def said(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rescue", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a2s_input_in_timms_words() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert timms.options(recipes.load("a2")) == {
        "scale": (0.08, 1.0),
        "ratio": (0.75, 1.3333333333333333),
        "hflip": 0.5,
        "auto_augment": "rand-m7-n2-p0.5-mstd0.5-inc1",
        "color_jitter": None,
        "interpolation": "bicubic",
        "mean": mean,
        "std": std,
    }


def test_timm_understands_these_words_as_the_recipe_means_them() -> None:
    from timm.data.transforms_factory import create_transform

    given = timms.options(recipes.load("a3"))
    steps = create_transform(160, is_training=True, use_prefetcher=True, **given).transforms
    crop, flip, augment, _ = steps
    assert (crop.size, tuple(crop.scale), flip.p) == ((160, 160), (0.08, 1.0), 0.5)
    assert crop.interpolation.value == "bicubic"
    assert augment.num_layers == 2
    assert {(op.magnitude, op.prob, op.magnitude_std) for op in augment.ops} == {(6, 0.5, 0.5)}
    assert "PosterizeIncreasing" in {op.name for op in augment.ops}


def test_what_timms_loader_has_not_is_refused() -> None:
    jittered = recipes.load("a2", ["augment=[{name: pca-lighting, std: 0.1}]"])
    with pytest.raises(UsageError) as error:
        timms.options(jittered)
    assert str(error.value) == (
        "augment (pca-lighting): timm's loader has no such augmentation. "
        "Leave it out of the comparison with ~augment.pca-lighting."
    )


def test_other_opponents_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(monkeypatch, "train", "--against", "dali") == 2
    assert "--against: 'dali' is not known. Use timm." in capsys.readouterr().err


@pytest.fixture
def few(imagenet_sample: Path, tmp_path: Path) -> Path:
    """32 of the photographs."""
    for folder in sorted(imagenet_sample.iterdir())[::8]:
        shutil.copytree(folder, tmp_path / "few" / folder.name)
    return tmp_path / "few"


def test_bench_input_says_what_a_view_costs(
    few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("train.batch_size=48", "train.device_batch_size=12", "data.train_size=64")
    options = ("--recipe", "a2", "--data", str(few), "--against", "timm", "--rounds", "1")
    assert said(monkeypatch, "input", *options, "--json", *sizes) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["what"] == (
        "worker of a2's input at 64 px, 32 images x 2, timm: rand-m7-n2-p0.5-mstd0.5-inc1"
    )
    assert found["unit"] == "views/s a core"
    assert found["ratio"] == pytest.approx(found["ours"] / found["theirs"])
    assert found["ours"] == pytest.approx(1e3 / found["worker_ms"])
    parts = found["worker_ms"] + found["loading_ms"] + found["device_ms"]
    assert found["total_ms"] == pytest.approx(parts)
    assert found["total_ratio"] == pytest.approx(parts / found["theirs_total_ms"])
    assert found["theirs_total_ms"] > 1e3 / found["theirs"]
    assert found["ours"] > found["alone"], "an image decoded for three views"


def test_without_repeats_there_is_nothing_to_share(
    few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("train.batch_size=32", "train.device_batch_size=16", "data.train_size=64")
    options = ("--recipe", "a3", "--data", str(few), "--rounds", "1")
    assert said(monkeypatch, "input", *options, "--json", *sizes) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ours"] == found["alone"]
    assert said(monkeypatch, "input", *options, *sizes) == 0
    _, speed, alone, cost, total = capsys.readouterr().out.splitlines()
    assert speed.startswith("views/s a core: ours ")
    assert alone.startswith("  each image decoded for one view: ")
    assert cost.startswith("CPU ms a view: worker ")
    assert total.startswith("  in all ")


def test_bench_train_times_three_loops(
    cifar_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("train.batch_size=16", "train.device_batch_size=16", "train.precision=float32")
    options = ("--data", str(cifar_folders), "--against", "timm", "--steps", "2", "--rounds", "1")
    assert said(monkeypatch, "train", *options, "--json", *small) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == (
        "resnet18 at 32 px, batch 16, float32: a loop of timm's parts "
        "with rand-m7-n2-p0.5-mstd0.5-inc1"
    )
    assert found["unit"] == "images/s"
    ours, theirs, bare = (1 / found[key] for key in ("ours", "theirs", "bare"))
    assert found["ours_adds"] == pytest.approx(ours - bare)
    assert found["theirs_adds"] == pytest.approx(theirs - bare)
    assert found["ratio"] == pytest.approx((ours - bare) / (theirs - bare))


def test_bench_train_needs_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(monkeypatch, "train", "--data", str(tmp_path)) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: bench train: timm's loader reads class folders, and {tmp_path}/train is not "
        "there. Give --data DIR with folders train/ and test/."
    )


def test_bench_train_measures_a2s_ingredients_in_this_processors_precision() -> None:
    recipe = measured_recipe(None, ["data.root=/nowhere"])
    computed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert recipe.train.precision == ("bfloat16" if computed else "float32")
    assert (recipe.optim[0].name, recipe.mix.name, recipe.loss.name) == (
        "lamb",
        "mixup-or-cutmix",
        "binary-cross-entropy",
    )
    assert dict(recipe.mix.options) == {"mixup": 0.1, "cutmix": 1.0, "switch": 0.5}
    assert recipe.train.channels_last
    assert recipe.train.slices == 1


def test_bench_inference_takes_size_and_figure_from_the_papers_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--batch-size", "2", "--batches", "1", "--rounds", "1", "--device", "cpu", "--json")
    assert said(monkeypatch, "inference", "--model", "resnet18", *quick) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == "inference of resnet18 on cpu, 224 px, batch 2, float32, channels last"
    assert found["paper_v100_float16"] == 7960.5
    assert (found["theirs"], found["ratio"], found["unit"]) == (None, None, "images/s")
    # a transformer made for another size, at one where the paper has no figure
    smaller = ("--model", "vit_tiny_patch16_224", "--size", "64", "--no-channels-last")
    assert said(monkeypatch, "inference", *smaller, *quick) == 0
    found = json.loads(capsys.readouterr().out)
    assert "64 px" in found["what"]
    assert "channels first" in found["what"]
    assert found["paper_v100_float16"] is None


def test_bench_inference_of_a_net_outside_the_table_has_timms_test_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--batch-size", "1", "--batches", "1", "--rounds", "1", "--device", "cpu", "--json")
    assert said(monkeypatch, "inference", "--model", "mobilenetv3_small_050", *quick) == 0
    assert " 224 px" in json.loads(capsys.readouterr().out)["what"]
    assert said(monkeypatch, "inference", "--model", "test_resnet", *quick) == 0
    assert " 160 px" in json.loads(capsys.readouterr().out)["what"]
