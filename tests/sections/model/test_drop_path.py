"""Stochastic depth of the zoo's networks: the rate of each block, and what a draw does."""

import pytest
import torch
from torch import Tensor, nn

from rescue_cli.sections.model import timm_model


def drop_rates(model: nn.Module) -> list[float]:
    """Each residual block's rate, 0 where it drops nothing."""
    from timm.layers.drop import DropPath

    stages = [model.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]
    rates = []
    for block in (block for stage in stages for block in stage.children()):
        drop = block.drop_path
        rates.append(drop.drop_prob if isinstance(drop, DropPath) else 0.0)
    return rates


def test_rates_rise_linearly_from_0_to_that_of_the_last_block() -> None:
    """A1 and A2: 0.05 x i / 15 over the 16 blocks of ResNet-50 (Huang et al. 2016, eq. 4)."""
    with torch.device("meta"):
        rates = drop_rates(timm_model("resnet50", 1000, 3, drop_path=0.05))
    assert rates == pytest.approx([0.05 * i / 15 for i in range(16)], rel=1e-6)


@pytest.mark.parametrize("rate", [None, 0.0])
def test_without_a_rate_nothing_is_dropped(rate: float | None) -> None:
    with torch.device("meta"):
        assert drop_rates(timm_model("resnet50", 1000, 3, drop_path=rate)) == [0.0] * 16


def branch(block: nn.Module, images: Tensor) -> Tensor:
    """What a block of identity shortcut adds to each image before the last ReLU."""
    seen: list[Tensor] = []
    handle = block.get_submodule("drop_path").register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.detach().clone())  # added to in place
    )
    block(images)
    handle.remove()
    return seen[0]


def test_an_image_keeps_its_branch_scaled_or_loses_it_whole() -> None:
    """By a draw of its own; what is kept is divided by the share of those who keep it."""
    rate, count = 0.25, 4000
    model = timm_model("test_resnet", 10, 3, drop_path=rate, zero_init_last=False)
    last = list(model.get_submodule("layer4").children())[-1]
    model.train()
    torch.manual_seed(0)
    first = last.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    one = torch.randn(1, first.in_channels, 2, 2)
    images = one.expand(count, -1, -1, -1)  # alike, so that only the draws tell them apart
    for module in last.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    kept = branch(last, images)
    last.eval()
    whole = branch(last, one)
    dropped = (kept == 0).flatten(1).all(1)
    torch.testing.assert_close(kept[~dropped], (whole / (1 - rate)).expand_as(kept[~dropped]))
    assert 900 < int(dropped.sum()) < 1100  # 1,000 expected, deviation 27


def test_the_device_generator_decides_who_is_dropped() -> None:
    """It is seeded from (seed, step, micro-batch), so a resumed step drops the same branches."""
    from rescue_cli.engine.step import seed_device

    model = timm_model("test_resnet", 10, 3, drop_path=0.5, zero_init_last=False).train()
    images = torch.randn(8, 3, 32, 32)
    outputs = []
    for step, micro_batch in ((5, 1), (5, 1), (5, 2), (6, 1)):
        seed_device(torch.device("cpu"), 0, step, micro_batch)
        outputs.append(model(images).detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[3])
