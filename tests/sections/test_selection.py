"""The proxy that picks the images to train on, against the source's two loops written down."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.batch import Batch
from rescue_cli.build.check import check_recipe
from rescue_cli.build.feeds import Machine
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.errors import UsageError
from rescue_cli.sections.selection import KeepHardest
from tests.helpers.processes import random_dataset

SMALL = ["model.widths=[8,8,8]", "train.batch_size=16", "train.device_batch_size=16"]
STEPS = 9  # the proxy learns on steps 0, 4 and 8


def a_step(folder: Path, *overrides: str) -> tuple[recipes.Recipe, Any]:
    recipe = recipes.load("airbench96-filter", [*SMALL, "train.precision=float64", *overrides])
    cpu = torch.device("cpu")
    data = random_dataset(3, 32, 64)
    network = build_network(recipe, 10, cpu)
    step = build_step(recipe, network, data, Machine(cpu, 0, folder), print)
    step.feed.start(0)
    return recipe, step


def proxy_alone(recipe: recipes.Recipe, network: nn.Module, batches: list[Batch]) -> list[Tensor]:
    """airbench96_faster's first loop: which images of each batch are kept."""
    trained = [p for p in network.parameters() if p.requires_grad]
    biases = [p for p in trained if p.ndim == 1]  # all of norms: nothing else here has one
    others = [p for p in trained if p.ndim > 1]
    weights, norms = (item.options for item in recipe.optim)
    optimizer = torch.optim.SGD(
        [
            {"params": biases, "lr": norms["lr"], "weight_decay": norms["weight_decay"]},
            {"params": others, "lr": weights["lr"], "weight_decay": weights["weight_decay"]},
        ],
        momentum=0.85,
        nesterov=True,
    )
    first = [group["lr"] for group in optimizer.param_groups]
    total = 4 * 45  # steps, four an epoch
    kept = []
    for number, batch in enumerate(batches):
        rising = min(number / (total / 10), 1.0)
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * (0.2 + 0.8 * rising)
        losses = functional.cross_entropy(
            network(batch.images), batch.targets, label_smoothing=0.2, reduction="none"
        )
        mask = torch.zeros(len(losses), dtype=torch.bool)
        mask[losses.argsort()[-8:]] = True
        kept.append(mask)
        if number % 4 == 0:
            optimizer.zero_grad()
            (losses * mask).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return kept


def test_a_proxy_keeps_and_learns_what_the_sources_first_loop_does(tmp_path: Path) -> None:
    recipe, step = a_step(tmp_path)
    alone = copy.deepcopy(step.select.learner.network)
    whole = [step.augment(next(iter(step.feed.micro_batches(number)))) for number in range(STEPS)]
    kept = proxy_alone(recipe, alone, whole)
    for number, (batch, mask) in enumerate(zip(whole, kept, strict=True)):
        chosen = step.select(batch)
        assert torch.equal(chosen.images, batch.images[mask]), f"step {number}"
        assert torch.equal(chosen.targets, batch.targets[mask])
    for ours, theirs in zip(
        step.select.learner.network.parameters(), alone.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_loss_is_summed_over_the_images_that_are_kept(tmp_path: Path) -> None:
    assert a_step(tmp_path)[1].loss_factor == 8
    assert a_step(tmp_path, "selection.share=0.25")[1].loss_factor == 4
    assert a_step(tmp_path, "~selection")[1].loss_factor == 16
    assert a_step(tmp_path, "loss.reduction=mean")[1].loss_factor == 1


def test_a_selection_goes_on_from_its_state_as_if_never_stopped(tmp_path: Path) -> None:
    _, step = a_step(tmp_path)
    _, other = a_step(tmp_path, "train.seed=1")
    for number in range(5):
        step(number)
    other.select.load_state_dict(copy.deepcopy(step.select.state_dict()))
    assert isinstance(step.select, KeepHardest)
    for number in range(5, STEPS):
        batch = step.augment(next(iter(step.feed.micro_batches(number))))
        assert torch.equal(step.select(batch).images, other.select(batch).images)


def test_a_proxy_needs_a_step_in_one_micro_batch() -> None:
    recipe = recipes.load("airbench96-filter", ["train.device_batch_size=512"])
    with pytest.raises(
        UsageError, match=r"selection \(proxy\): a step of 2 micro-batches\. The proxy needs"
    ):
        check_recipe(recipe)


def test_a_proxy_that_cannot_be_built_is_refused() -> None:
    recipe = recipes.load("airbench96-filter", ["selection.model={width: 3}"])
    with pytest.raises(UsageError, match=r"model \(airbench\): unknown key 'width'"):
        check_recipe(recipe)
