"""What a GPU computes against what a CPU computes; on the pretend device, that these tests work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rescue_cli import recipe as recipes
from rescue_cli.build.networks import create_network
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.sections.augment.named_operations import NAMED_OPERATIONS, Group, apply_groups
from rescue_cli.sections.model import GhostBatchNorm2d
from rescue_cli.sections.model.pooling import GlobalMaxPool2d

CPU = torch.device("cpu")


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.gpu), "pretend"])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "pretend":
        request.getfixturevalue("pretend_cuda")
    elif not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device("cuda", 0)


@pytest.mark.parametrize("name", NAMED_OPERATIONS)
def test_an_augmentation_gives_the_same_levels(name: str, gpu: torch.device) -> None:
    draws = np.random.Generator(np.random.Philox(3))
    images = torch.from_numpy(draws.integers(0, 256, (16, 3, 33, 40), dtype=np.uint8))
    magnitudes = draws.uniform(0, 8, 16)
    arguments = torch.from_numpy(NAMED_OPERATIONS[name].argument(magnitudes, np.ones(16)))
    groups, fill = [Group(name, "bilinear", list(range(16)))], torch.tensor([1, 2, 3])
    here, there = (
        apply_groups("x", images.to(device), groups, arguments.to(device), fill.to(device))
        for device in (CPU, gpu)
    )
    assert (there.cpu().short() - here.short()).abs().max() <= 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("make", [GlobalMaxPool2d, lambda: GhostBatchNorm2d(8, 4)])
def test_a_layer_of_ours_has_the_same_output_and_gradients(
    make: Callable[[], nn.Module], layout: Any, gpu: torch.device
) -> None:
    inputs = torch.randn(16, 8, 6, 6, dtype=torch.float64).to(memory_format=layout)
    outcomes = []
    for device in (CPU, gpu):
        layer = make().double().to(device)
        x = inputs.clone().to(device).requires_grad_()
        y = layer(x)
        (y * y).sum().backward()
        assert x.grad is not None
        state = [value.cpu().double() for value in layer.state_dict().values()]
        outcomes.append([y.detach().cpu(), x.grad.cpu(), *state])
    for here, there in zip(*outcomes, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-12)


SMALL = {
    "a2": ["model.name=test_resnet"],
    "bot-baseline": ["model.name=test_resnet"],
    "deit": ["model={name: test_vit, img_size: 32, drop_path: 0.1}", "data.train_size=32"],
    "airbench94": ["model.widths=[4,8,8]"],
    "airbench94-muon": ["model.widths=[4,8,8]"],
    "myrtle": ["model.width=4"],
}


@pytest.mark.parametrize("name", SMALL)
def test_an_optimizer_moves_weights_alike(name: str, gpu: torch.device) -> None:
    recipe = recipes.load(name, [*SMALL[name], "train.precision=float64"])
    moved = []
    for device in (CPU, gpu):
        torch.manual_seed(0)
        network = create_network(recipe, 10).double().to(device)
        optimizers = build_optimizers(recipe, network, 10, torch.amp.GradScaler(enabled=False))
        draws = np.random.Generator(np.random.Philox(5))
        for step in range(20, 23):  # after the warm-up's first, which is at rate 0
            optimizers.set_rates(step)
            for parameter in network.parameters():
                gradient = torch.from_numpy(draws.normal(size=tuple(parameter.shape)))
                parameter.grad = gradient.to(device)
            optimizers.step()
        moved.append([p.detach().cpu() for p in network.parameters()])
    for here, there in zip(*moved, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-9)
