"""`rescue plan`: steps, memory and cost against the paper's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from rescue_cli import estimate
from rescue_cli.build.outline import epoch_length
from rescue_cli.estimate.memory import Live
from rescue_cli.recipe import architectures, load
from tests.conftest import Rescue

SMALL = ["model.name=resnet18"]


def planned(rescue: Rescue, *arguments: str) -> dict[str, Any]:
    code, out, _ = rescue("plan", *arguments, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("recipe", "updates", "memory", "hours"),
    [("a1", 375_000, 22_095, 110), ("a2", 187_500, 22_095, 55), ("a3", 62_500, 11_390, 15)],
)
def test_plans_are_what_the_papers_table_1_reports(
    rescue: Rescue, recipe: str, updates: int, memory: int, hours: int
) -> None:
    per_epoch = hours / load(recipe).train.epochs
    found = planned(
        rescue,
        "--recipe",
        recipe,
        "--gpus",
        "4",
        "--hours-per-epoch",
        str(per_epoch),
        "--price",
        "3",
    )
    assert list(found)[:6] == [
        "recipe", "parameters", "flops", "updates", "images", "peak_memory_mb",
    ]  # fmt: skip
    assert found["updates"] == updates
    assert found["images"] == 2048 * updates
    assert found["peak_memory_mb"] == pytest.approx(memory, rel=0.05)
    assert (found["parameters"], found["flops"]) == (25_557_032, 4_089_184_256)
    assert found["hours"] == pytest.approx(hours)
    assert found["cost"] == pytest.approx(4 * 3 * hours)


@pytest.mark.parametrize(
    ("recipe", "name"), [("a1", "resnet18"), ("a3", "regnety_040"), ("a3", "efficientnet_b0")]
)
def test_memory_of_other_networks_is_near_the_papers_table_3(recipe: str, name: str) -> None:
    row = architectures.row_of(name)
    assert row is not None
    cost = row["cost"][recipe]
    micro_batch_size = architectures.BATCH // cost["gpus"]
    resolved = load(recipe, [f"model.name={name}"])
    found = estimate.peak_memory(resolved, micro_batch_size, cost["gpus"])
    assert found / 1000 == pytest.approx(cost["memory_gb"], rel=0.05)


def test_memory_grows_by_the_same_for_each_image_and_not_with_more_micro_batches() -> None:
    recipe = load("a3", SMALL)
    one, two, four = (estimate.peak_memory(recipe, n, 4) for n in (64, 128, 256))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    larger = load("a3", [*SMALL, "train.batch_size=8192"])
    assert estimate.peak_memory(recipe, 128) == estimate.peak_memory(larger, 128)


def test_memory_counts_storages_once_in_blocks_of_512_bytes_while_they_live() -> None:
    with FakeTensorMode(), Live() as live:
        first = torch.empty(1000)  # 4,000 bytes in 8 blocks
        assert live.now == 4096
        second = first[:10].reshape(2, 5)
        assert live.now == 4096
        third = first + 1
        assert live.now == 8192
        del first, third
        assert (live.now, live.peak) == (4096, 8192)
        del second
        assert live.now == 0


def test_a_plan_of_averaged_weights_says_nothing_that_is_torchs_own(rescue: Rescue) -> None:
    ended = rescue("plan", "--recipe", "myrtle")
    assert (ended.code, ended.err) == (0, "")


def test_a_teacher_costs_a_forward_pass_of_his_own(rescue: Rescue) -> None:
    found = {
        name: json.loads(rescue("plan", "--recipe", name, "--json").out)["petaflop"]
        for name in ("bot-label-smoothing", "bot-distill")
    }
    images = 120 * (1_281_167 // 1024) * 1024
    per_image = (found["bot-distill"] - found["bot-label-smoothing"]) / images
    assert per_image * 1e15 / 2 == pytest.approx(11.8e9, rel=0.01)  # ResNet-152-D at 224 px


def test_plan_warns_and_names_the_largest_micro_batch_that_fits(rescue: Rescue) -> None:
    recipe = load("a3", SMALL)
    code, _, err = rescue(
        "plan", "--recipe", "a3", *SMALL, "--gpus", "2", "--gpu-memory", "2", "--json"
    )
    peak = estimate.peak_memory(recipe, gpus=2)
    assert code == 0
    assert err == (
        f"warning: micro-batches of 512 images need {peak:.0f} MB, more than the 2048 MB of a GPU. "
        "The largest micro-batch that fits is 256: train.device_batch_size=256.\n"
    )
    assert estimate.peak_memory(recipe, 256, 2) <= 2048 < peak
    assert estimate.largest_micro_batch(recipe, peak, 100.0, 2) is None


def test_plan_counts_the_teachers_forward_pass_and_says_so(rescue: Rescue) -> None:
    out = rescue("plan", "--recipe", "bag-of-tricks").out.splitlines()
    (at,) = (n for n, line in enumerate(out) if line.startswith("training image: "))
    assert out[at].endswith("a step as 3 forward passes")
    assert out[at + 1] == " " * 16 + "and the teacher's forward pass"


def test_plan_prints_what_is_needed_and_assumed(rescue: Rescue) -> None:
    code, out, err = rescue(
        "plan",
        "--recipe", "a3", "--model", "resnet18", "--epochs", "10", "--images-per-second", "1000",
        "--price", "2.5",
    )  # fmt: skip
    assert code == 0
    lines = dict(line.split(":", 1) for line in out.splitlines())
    assert lines["recipe"].strip() == "a3, resnet18"
    assert lines["parameters"].strip() == "11,689,512"
    assert lines["multiply-adds"].strip() == "1.81 G per image, forward pass, at 224 px"
    assert lines["steps"].strip() == "6,250 of 2048 images, 4 micro-batches of 512"
    assert lines["training image"].endswith(
        " GFLOP: 2 per multiply-add, a step as 3 forward passes"
    )
    per_image = float(lines["training image"].split()[0])
    assert float(lines["training"].split()[0]) == pytest.approx(12.8 * per_image, rel=0.01)
    assert max(map(len, out.splitlines())) <= 80
    assert lines["images"].strip() == "12,800,000 in 10 epochs"
    assert lines["hours"].strip() == "3.6 on 1 GPU"
    assert lines["cost"].strip() == "8.89 in the currency of --price"
    assert err.splitlines() == [
        "--model sets: model.name=resnet18 data.train_size=160 eval.sizes=[224]",
        "the paper trained ResNet-18 on 2 GPUs with 1024 images each; for the same micro-batches, "
        "give train.device_batch_size=1024",
        "--epochs sets: train.epochs=10 schedule.warmup_epochs=0.5",
    ]


def test_small_networks_and_short_runs_are_not_rounded_to_0(rescue: Rescue) -> None:
    out = rescue("plan", "--recipe", "quickstart", "--images-per-second", "2000").out
    lines = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in out.splitlines()}
    assert lines["multiply-adds"].startswith("9.71 M per image, forward pass")
    assert lines["hours"] == "0.00491 on 1 GPU"


def test_hours_and_cost_are_null_where_nobody_says_how_fast(rescue: Rescue) -> None:
    found = planned(rescue, "--recipe", "quickstart")
    assert (found["hours"], found["cost"]) == (None, None)
    assert found["updates"] == 6 * (6000 // 128)
    assert found["peak_memory_mb"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--gpus", "3"],
            "--gpus: 3 processes do not divide the 4 micro-batches of a step. Use 1, 2, 4, or "
            "another train.device_batch_size.",
        ),
        (
            ["--price", "2"],
            "--price: needs the hours. Give --images-per-second or --hours-per-epoch.",
        ),
        (
            ["--images-per-second", "9", "--hours-per-epoch", "1"],
            "--images-per-second and --hours-per-epoch give the same figure. Give only one.",
        ),
        (["--gpu-memory", "0"], "--gpu-memory: 0.0 must be a finite number above 0."),
        (["--price", "nan"], "--price: nan must be a finite number above 0."),
        (
            ["data={name: folder, root: x, train_size: 160}"],
            "data: the number of images is not known before they are read. Give the length of an "
            "epoch as train.steps_per_epoch=N.",
        ),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(
    rescue: Rescue, arguments: list[str], message: str
) -> None:
    code, out, err = rescue("plan", "--recipe", "a3", *arguments)
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"


def test_a_frozen_network_sees_each_image_once() -> None:
    """100 epochs of a head cost one forward pass over 40 images, of 4.09 G multiply-adds each."""
    batch = ["train.batch_size=20", "train.device_batch_size=20"]
    found = estimate.petaflop(load("transfer-linear", batch), 200, 2)
    assert found == pytest.approx(2 * 40 * 4.087e9 / 1e15, rel=1e-3)


def test_an_epoch_has_the_images_that_are_there(rescue: Rescue, tmp_path: Path) -> None:
    """Two of ImageNet's classes, five images each, are no 1,281,167 images."""
    for name in ("n01440764", "n02102040"):
        for split in ("train", "val"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    words = [f"data.root={tmp_path}", "train.batch_size=2", "train.device_batch_size=2"]
    assert epoch_length(load("pytorch", words)) == 5
    there = json.loads(rescue("train", "--recipe", "pytorch", *words, "--dry-run", "--json",
                              "train.precision=float32").out)  # fmt: skip
    assert (there["training_images"], there["steps_per_epoch"]) == (10, 5)
    elsewhere = [f"data.root={tmp_path / 'nowhere'}", *words[1:]]
    assert epoch_length(load("pytorch", elsewhere)) == 1_281_167 // 2


def test_a_head_that_is_fitted_has_no_steps_to_plan(rescue: Rescue) -> None:
    ended = rescue("plan", "--recipe", "transfer-probe", "data.name=fashion-mini")
    assert ended.code == 2
    assert "transfer-probe has no steps to plan" in ended.err
