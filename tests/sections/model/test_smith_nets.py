"""Smith's nets against plain restatements of their Caffe files, and what Caffe's fillers draw."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.build.check import check_ingredients
from rescue_cli.build.feeds import initialise_from_images, load_dataset
from rescue_cli.build.networks import build_network, create_network
from rescue_cli.errors import UsageError
from rescue_cli.sections.model import MODELS, DataDependentInit, init_weights
from rescue_cli.sections.optim import assign_parameters

CPU = torch.device("cpu")
Array = NDArray[np.float64]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters_are_as_many_as_the_caffe_files_have() -> None:
    made = {
        name: create_network(recipes.load(name), 10)
        for name in (
            "1cycle-3layer", "1cycle-resnet56", "1cycle-wide32", "1cycle-densenet40",
            "1cycle-lenet",
        )
    }  # fmt: skip
    assert {name: count(model) for name, model in made.items()} == {
        "1cycle-3layer": 89_578,
        "1cycle-resnet56": 860_874,
        "1cycle-wide32": 5_903_626,
        "1cycle-densenet40": 1_019_722,
        "1cycle-lenet": 431_080,
    }


def pooled(x: Array, kind: str) -> Array:
    """Caffe's pooling of windows of 3, stride 2, as its loops run: sizes rounded up, ends cut."""
    n, channels, height, width = x.shape
    rows, columns = (math.ceil((side - 3) / 2) + 1 for side in (height, width))
    out = np.zeros((n, channels, rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, 2 * i : min(2 * i + 3, height), 2 * j : min(2 * j + 3, width)]
            out[:, :, i, j] = window.max((2, 3)) if kind == "max" else window.mean((2, 3))
    return out


def local_norm(x: Array) -> Array:
    """LRN, norm_region WITHIN_CHANNEL, local_size 3, alpha 5e-5, beta 0.75."""
    padded = np.pad(x**2, ((0, 0), (0, 0), (1, 1), (1, 1)))
    _, _, height, width = x.shape
    total = sum(padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
    return np.asarray(x * (1 + 5e-5 * total / 9) ** -0.75)


def test_the_3_layer_net_is_caffes_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = MODELS["smith-3layer"](10, 3).double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    for name, value in weights.items():  # of a size at which the normalisation bends
        value.copy_(torch.randn_like(value) * (0.1 if "conv" in name else 0.01))
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64) * 255
    mean = images.mean(0)
    model.get_submodule("mean_image").init_from([images])  # type: ignore[operator]

    def conv(x: Array, name: str) -> Array:
        y = functional.conv2d(
            torch.from_numpy(x), weights[f"{name}.weight"], weights[f"{name}.bias"], padding=2
        )
        return y.numpy()

    x = (images - mean).numpy()
    x = local_norm(np.maximum(pooled(conv(x, "conv1"), "max"), 0))
    x = local_norm(pooled(np.maximum(conv(x, "conv2"), 0), "mean"))
    x = pooled(np.maximum(conv(x, "conv3"), 0), "mean")
    assert x.shape == (3, 64, 4, 4)
    expected = x.reshape(3, -1) @ weights["head.weight"].numpy().T + weights["head.bias"].numpy()
    np.testing.assert_allclose(model(images).detach().numpy(), expected, rtol=1e-9)


def test_the_3_layer_net_begins_with_gaussians_of_its_file() -> None:
    torch.manual_seed(0)
    model = MODELS["smith-3layer"](10, 3)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        else:
            std = 1e-4 if name.startswith("conv1") else 0.01
            assert float(p.detach().std()) == pytest.approx(std, rel=0.05)


def block(x: Tensor, state: dict[str, Tensor], path: str, halving: bool) -> Tensor:
    """conv, norm, ReLU, conv, norm, plus the input or its projection; in evaluation."""

    def convolved(y: Tensor, conv: str, norm: str, stride: int, padding: int) -> Tensor:
        y = functional.conv2d(
            y, state[f"{conv}.weight"], state[f"{conv}.bias"], stride=stride, padding=padding
        )
        return functional.batch_norm(
            y,
            state[f"{norm}.running_mean"],
            state[f"{norm}.running_var"],
            state[f"{norm}.weight"],
            state[f"{norm}.bias"],
        )

    y = convolved(x, f"{path}.body.0", f"{path}.body.1", 2 if halving else 1, 1).relu()
    y = convolved(y, f"{path}.body.3", f"{path}.body.4", 1, 1)
    return y + (convolved(x, f"{path}.shortcut.0", f"{path}.shortcut.1", 2, 0) if halving else x)


def test_resnet20_is_two_three_and_three_blocks_with_nothing_after_their_sums() -> None:
    torch.manual_seed(0)
    model = MODELS["smith-resnet56"](10, 3, depth=20, norm_momentum=0.1).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    model.train()
    model(images)  # running statistics that are no longer 0 and 1
    model.eval()
    state = model.state_dict()
    x = functional.conv2d(images, state["features.1.weight"], state["features.1.bias"], padding=1)
    x = functional.batch_norm(
        x,
        state["features.2.running_mean"],
        state["features.2.running_var"],
        state["features.2.weight"],
        state["features.2.bias"],
    ).relu()
    for place, halving in enumerate([False, False, True, False, False, True, False, False], 4):
        x = block(x, state, f"features.{place}", halving)
    assert x.shape == (4, 64, 8, 8)
    expected = x.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 8, 21, 54])
def test_a_depth_that_the_structure_has_not_is_refused(depth: int) -> None:
    with pytest.raises(UsageError, match=r"is not 6 n \+ 8. Use 20, 56 or 110"):
        MODELS["smith-resnet56"](10, 3, depth=depth, norm_momentum=0.1)


def test_densenet_is_twelve_layers_of_growth_twelve_between_transitions() -> None:
    model = MODELS["smith-densenet40"](10, 3, dropout=0.2, norm_momentum=0.1)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs]
    expected = [(3, 16, 3), *((16 + 12 * i, 12, 3) for i in range(12)), (160, 160, 1)]
    expected += [*((160 + 12 * i, 12, 3) for i in range(12)), (304, 304, 1)]
    expected += [(304 + 12 * i, 12, 3) for i in range(12)]
    assert shapes == expected
    assert all(c.bias is None for c in convs)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2] * 38
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_mean_image_is_that_of_all_training_images(cifar_folders: Path) -> None:
    recipe = recipes.load("1cycle-3layer", [f"data.root={cifar_folders}"])
    data = load_dataset(recipe, cifar_folders)
    network = build_network(recipe, 10, CPU)
    initialise_from_images(recipe, network, data, CPU)
    (layer,) = (m for m in network.modules() if isinstance(m, DataDependentInit))
    expected = data.train.pixels.astype(np.float64).mean(0)  # type: ignore[union-attr]
    assert expected.shape == (3, 32, 32)
    assert expected.std() > 1
    mean = network.state_dict()["mean_image.mean"]
    assert layer.images is None
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("filler", "std", "largest"),
    [("xavier", math.sqrt(1 / 288), math.sqrt(3 / 288)), ("msra", math.sqrt(2 / 288), None)],
)
def test_fillers_are_caffes(filler: str, std: float, largest: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 200, 3), nn.BatchNorm2d(200), nn.Linear(288, 500))
    init_weights(model, filler)  # type: ignore[arg-type]
    state = model.state_dict()
    for layer in ("0", "2"):
        weight = state[f"{layer}.weight"]
        assert float(weight.std()) == pytest.approx(std, rel=0.02)
        assert not state[f"{layer}.bias"].any()
        if largest is not None:
            assert 0.99 * largest < float(weight.abs().max()) <= largest
    assert torch.equal(state["1.weight"], torch.ones(200))


def test_initial_weights_are_the_recipes_for_any_network() -> None:
    recipe = recipes.load("quickstart", ["model.init=msra"])
    model = create_network(recipe, 10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    inputs = convs[-1].weight[0].numel()
    std = float(convs[-1].weight.detach().std())
    assert std == pytest.approx(math.sqrt(2 / inputs), rel=0.05)
    with pytest.raises(UsageError, match="model"):
        check_ingredients(recipes.load("quickstart", ["model.init=gauss"]))


def test_a_parameter_named_itself_leaves_its_group() -> None:
    recipe = recipes.load("1cycle-3layer")
    found = assign_parameters(create_network(recipe, 10), recipe.optim)
    assert [claim.decayed for claim in found] == [
        ("conv1.weight", "conv2.weight", "conv3.weight", "conv3.bias"),
        ("conv1.bias", "conv2.bias"),
        ("head.weight",),
        ("head.bias",),
    ]
    wrong = [replace(recipe.optim[0], params=name) for name in ("all", "conv4.bias")]
    with pytest.raises(
        UsageError, match=r"optim\[1\].params: 'conv4.bias' is not a group or parameter"
    ):
        assign_parameters(create_network(recipe, 10), wrong)
