"""Numbers that must not change: losses and rates of the shipped recipes, and the draws under them.

After a change that is meant to alter them: `python -m tests.test_golden` writes golden.json anew.
"""

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from rescue_cli import recipe as recipes
from rescue_cli import rng
from rescue_cli.build.feeds import Machine
from rescue_cli.build.networks import build_network, create_network
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.build.step import build_step
from rescue_cli.recipe import DataKeys
from rescue_cli.sections.data import FACTS, Dataset, FileNames, Files, Images, load
from rescue_cli.sections.model import MODELS
from rescue_cli.sections.optim import assign_parameters
from tests.helpers import rectangles
from tests.helpers.processes import random_dataset

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 5
PER_EPOCH = 100  # steps, of the learning-rate curves
MICRO_BATCHES = ["train.batch_size=16", "train.device_batch_size=8", "train.precision=float64"]
# A head that is fitted as a whole takes no steps
NAMES = [name for name in recipes.names() if not recipes.load(name).fits_head]
SMALL_NETWORKS: dict[str, dict[str, Any]] = {  # of our own; those without an entry are small
    "resnet9": {"width": 4, "ghost": 4},
    "airbench": {"widths": [8, 8, 8]},
    "smith-resnet56": {"depth": 14},
    "super-convergence": {"depth": 8},
    "faster-rcnn": {"backbone": "test_resnet", "min_size": 48, "max_size": 64, "proposals": 8},
    "fcn": {"backbone": "test_resnet"},
}
NARROWEST = {"smith-wide32": "smith-resnet56", "smith-densenet40": "smith-resnet56"}
ZOO_KEYS = ("init", "norm_momentum", "pooling", "drop_path", "zero_init_last")
# What golden.json was computed with beside the rules of `smallest`
LARGER = ("a1", "a2", "a3")
ZERO_INIT_LAST = (
    "bot-baseline", "bot-efficient-linear-scaling", "bot-efficient-warmup",
    "1cycle-imagenet-resnet50", "step-imagenet-resnet50",
)  # fmt: skip


def smallest(name: str) -> list[str]:
    """Overrides that make a recipe's network, images and batch small."""
    tree = recipes.load(name).tree
    model, changes = tree["model"], list(MICRO_BATCHES)
    if model["name"] in NARROWEST:
        small = {"name": NARROWEST[model["name"]], "depth": 14, "norm_momentum": 0.1}
        changes.append(f"model={json.dumps(small)}")
    elif model["name"] in MODELS:
        keys = SMALL_NETWORKS.get(model["name"], {}).items()
        changes += [f"model.{key}={json.dumps(value)}" for key, value in keys if key in model]
    else:
        small = {"name": "test_resnet", **{key: model[key] for key in ZOO_KEYS if key in model}}
        changes += [f"model={json.dumps(small)}", "data.train_size=32"]
    if "selection" in tree:  # from the whole batch
        changes.append("train.device_batch_size=16")
    if "teacher" in tree:  # a file; its loss is tested in test_bag_of_tricks.py
        changes.append("~teacher")
    task = FACTS[tree["data"]["name"]].task
    if task == "detection":
        changes += ["train.batch_size=2", "train.device_batch_size=1"]
    if task == "segmentation":
        crop = {"name": "scale-crop", "short_side": 48, "scale": [0.5, 2.0], "size": 48}
        changes.append(f"augment={json.dumps([crop])}")
    if name in LARGER:
        changes.append("data.train_size=64")
    if name in ZERO_INIT_LAST:
        changes.append("~model.zero_init_last")
    return changes


# How far a loss may lie from the one on record. A processor scales images in float32 as it likes,
# and where it rounds a level the other way, a batch's loss moves by up to 4e-7, with boxes or masks
# by 3e-6, and by 30 times that a few steps on.
TOLERANCE = 1e-5
SCENES_SCALED = {"segmentation-ade20k": 2e-3}


@contextlib.contextmanager
def drawn_in_float64() -> Iterator[None]:
    """Initial weights that every processor draws alike.

    In float32 they differ by a rounding, which a high rate makes a tenth of the loss in five steps.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@drawn_in_float64()
def losses(name: str, folder: Path, steps: int = STEPS) -> list[float]:
    """The mean loss of each of the first steps of a shipped recipe, small, in float64."""
    recipe = recipes.load(name, smallest(name))
    cpu = torch.device("cpu")
    known = FACTS[recipe.data.name]
    if known.task != "classification":
        data = annotated(known.task, folder / "annotated")
    else:
        data = random_dataset(known.channels, known.size, 64) if known.size else files(folder)
    machine = Machine(cpu, 0, folder)
    network = build_network(recipe, len(data.classes), cpu)
    step = build_step(recipe, network, data, machine, print)
    step.feed.start(0)
    found = []
    for number in range(steps):
        step.loss_sum.zero_()
        step(number)
        found.append(float(step.loss_sum))
    return found


def annotated(task: str, root: Path) -> Dataset:
    """Drawn images with boxes or masks."""
    if not root.exists():
        (rectangles.voc if task == "detection" else rectangles.masks)(root, 16, 1)
    name = "voc-folder" if task == "detection" else "mask-folder"
    return load(name, DataKeys(root=str(root)), root)


def files(folder: Path) -> Dataset:
    """PNG files, which every decoder reads alike."""
    images = random_dataset(3, 48, 64).train
    assert isinstance(images, Images)
    names = [f"{number}.png" for number in range(len(images))]
    for name, pixels in zip(names, images.pixels, strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / name)
    split = Files(FileNames.of(folder, names), images.labels)
    return Dataset(split, {"val": split}, tuple("abcdefghij"))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_losses_of_a_shipped_recipe_are_what_they_were(name: str, tmp_path: Path) -> None:
    stored = json.loads(GOLDEN.read_text())["losses"][name]
    found = losses(name, tmp_path)
    np.testing.assert_allclose(found, stored, rtol=SCENES_SCALED.get(name, TOLERANCE))
    assert losses(name, tmp_path, 2) == found[:2], "a second run is bitwise equal"


def test_every_shipped_recipe_has_golden_losses() -> None:
    assert set(json.loads(GOLDEN.read_text())["losses"]) == set(NAMES)


def curve(name: str) -> list[list[float]]:
    """A recipe's learning rates, one a schedule, at 25 steps from its first to its last."""
    recipe = recipes.load(name)
    schedules = build_schedules(recipe, PER_EPOCH)
    last = round(recipe.train.epochs * PER_EPOCH) - 1
    steps = [round(place) for place in np.linspace(0, last, 25)]
    return [[schedule(step).lr * ratio for step in steps] for schedule, ratio in schedules]


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rates_of_a_shipped_recipe_are_what_they_were(name: str) -> None:
    stored = json.loads(GOLDEN.read_text())["curves"][name]
    np.testing.assert_allclose(curve(name), stored, rtol=1e-9)


def groups(name: str) -> list[dict[str, Any]]:
    """Each optimizer item's parameters, decay and rates at its first, middle and last step."""
    recipe = recipes.load(name)
    with torch.device("meta"):
        network = create_network(recipe, FACTS[recipe.data.name].classes or 10)
    found = assign_parameters(network, recipe.optim)
    last = math.ceil(round(recipe.train.epochs * PER_EPOCH, 6)) - 1
    return [
        {
            "name": item.name,
            "params": item.options.get("params", "all"),
            "decayed": len(claim.decayed),
            "undecayed": len(claim.undecayed),
            "weight_decay": item.options["weight_decay"],
            "rates": [schedule(step).lr * ratio for step in (0, last // 2, last)],
        }
        for item, claim, (schedule, ratio) in zip(
            recipe.optim, found, build_schedules(recipe, PER_EPOCH), strict=True
        )
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_parameter_groups_of_a_shipped_recipe_are_what_they_were(name: str) -> None:
    stored = json.loads(GOLDEN.read_text())["groups"][name]
    for found, wanted in zip(groups(name), stored, strict=True):
        assert found.pop("rates") == pytest.approx(wanted.pop("rates"), rel=1e-9)
        assert found == wanted


# --- draws ---


def some_draws() -> list[float]:
    return [float(u) for u in rng.uniform(3, "augment", 5, 1, (8,))]


def an_order() -> list[int]:
    return [int(i) for i in rng.permute(np.arange(12), 12, 3, 1)]


def test_the_draws_are_what_they_were() -> None:
    stored = json.loads(GOLDEN.read_text())
    assert some_draws() == stored["uniform"]
    assert an_order() == stored["order"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 255, 1000, 4096, 50_000])
def test_an_order_holds_every_item_once(size: int) -> None:
    order = rng.permute(np.arange(size), size, 1, 2)
    assert np.array_equal(np.sort(order), np.arange(size))


def test_a_part_of_an_order_needs_not_the_rest() -> None:
    whole = rng.permute(np.arange(1000), 1000, 4, 7)
    assert np.array_equal(rng.permute(np.array([999, 0, 500]), 1000, 4, 7), whole[[999, 0, 500]])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        rng.permute(np.arange(500), 500, seed, epoch).tobytes()
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16


def test_orders_are_spread_as_chance_spreads_them() -> None:
    size, epochs = 10, 2000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[np.arange(size), rng.permute(np.arange(size), size, 11, epoch)] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    first, second = (rng.permute(np.arange(5000), 5000, 0, epoch) for epoch in (0, 1))
    assert abs(stats.spearmanr(first, second).statistic) < 0.06
    assert abs(stats.spearmanr(first, np.arange(5000)).statistic) < 0.06


def test_uniform_draws_are_uniform_and_differ_with_what_they_are_for() -> None:
    blocks = [
        rng.uniform(seed, purpose, step, micro_batch, (2000,))
        for seed in (0, 1)
        for purpose in ("augment", "crop")
        for step in (0, 1)
        for micro_batch in (0, 1)
    ]
    for block in blocks:
        assert block.dtype == np.float32
        assert 0 <= block.min() <= block.max() < 1
        assert stats.kstest(block, "uniform").pvalue > 1e-3
    correlations = np.corrcoef(np.stack(blocks)) - np.eye(len(blocks))
    assert np.abs(correlations).max() < 0.1


def regenerate(names: Sequence[str]) -> None:
    """Writes what the code computes now for these recipes; the others stay as they are."""
    values = json.loads(GOLDEN.read_text())
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            values["losses"][name] = losses(name, Path(folder))
        values["curves"][name] = curve(name)
        values["groups"][name] = groups(name)
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    regenerate(sys.argv[1:])
