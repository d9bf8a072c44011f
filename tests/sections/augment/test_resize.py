"""Images that grow from epoch to epoch, and what they save."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from rescue_cli import estimate
from rescue_cli import recipe as recipes
from rescue_cli.build.check import check_recipe
from rescue_cli.build.feeds import Machine, build_normalise
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.errors import UsageError
from tests.helpers.processes import random_dataset

GROWING = "augment=[{name: progressive-resize, sizes: [16, 24], until: [1, 2]}]"
SMALL = ["model.widths=[8,8,8]", "train.batch_size=16", "train.device_batch_size=16"]


def test_sizes_last_until_their_epoch_and_the_pixels_are_torchs(tmp_path: Path) -> None:
    recipe = recipes.load("airbench94", [*SMALL, "train.precision=float64", GROWING])
    cpu, data = torch.device("cpu"), random_dataset(3, 32, 64)
    step = build_step(
        recipe, build_network(recipe, 10, cpu), data, Machine(cpu, 0, tmp_path), print
    )
    step.feed.start(0)
    for number in range(16):  # four steps an epoch
        batch = next(iter(step.feed.micro_batches(number)))
        plain = build_normalise(recipe, cpu)(batch.images)
        side = (16, 24, 32, 32)[number // 4]
        wanted = functional.interpolate(plain, (side, side), mode="bilinear", antialias=True)
        np.testing.assert_allclose(step.augment(batch).images, wanted, atol=1e-12)
    step(0)
    step(15)


def test_a_size_needs_an_end() -> None:
    wrong = "augment=[{name: progressive-resize, sizes: [16, 24], until: [2, 2]}]"
    with pytest.raises(UsageError, match="Give each size the epoch in which it ends"):
        check_recipe(recipes.load("airbench94", [wrong]))


def test_the_operations_of_a_training_follow_sizes_and_selection() -> None:
    def training(name: str, *overrides: str) -> float:
        recipe = recipes.load(name, list(overrides))
        steps = round(recipe.train.epochs * 48)
        return estimate.petaflop(recipe, steps, 48)

    network = estimate.network_of(recipes.load("airbench95"))
    at = {side: estimate.flops(network, side).multiply_adds for side in (16, 24, 32)}
    an_epoch = 2 * 3 * 48 * 1024 / 1e15
    assert training("airbench95") == pytest.approx(15 * an_epoch * at[32])
    growing = an_epoch * (at[16] + at[24] + 13 * at[32])
    assert training("airbench95", GROWING) == pytest.approx(growing)
    # the source's first lines
    assert training("airbench96-filter") == pytest.approx(3.1, rel=0.02)
    assert training("airbench96") == pytest.approx(4.91, rel=0.02)
