"""What Smith's ImageNet files have otherwise than timm's networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rescue_cli import recipe as recipes
from rescue_cli.batch import Measurement
from rescue_cli.build.check import check_recipe
from rescue_cli.build.evaluation import describe_protocol
from rescue_cli.build.feeds import Machine, build_test_feed
from rescue_cli.build.networks import create_network
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.errors import UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.sections.data import load
from rescue_cli.sections.model import timm_model
from rescue_cli.sections.model.timm_models import unsupported_keys
from rescue_cli.sections.optim import assign_parameters

CPU = torch.device("cpu")
NAMES = [
    f"{kind}-imagenet-{net}" for kind in ("1cycle", "step") for net in ("resnet50", "inception")
]


def sizes(recipe: str, layers: list[str]) -> dict[str, int]:
    """How high the outputs of a recipe's layers are for an image of 230 pixels."""
    found: dict[str, int] = {}
    with torch.device("meta"):
        network = create_network(recipes.load(recipe), 1000).eval()

        def noted(name: str) -> object:
            return lambda _module, _inputs, output: found.update({name: output.shape[-1]})

        for name in layers:
            network.get_submodule(name).register_forward_hook(noted(name))  # type: ignore[arg-type]
        network(torch.zeros(1, 3, 230, 230))
    return found


def test_pooling_rounds_up_as_caffe_does() -> None:
    """ceil((side - 3) / 2) + 1, without padding: 112 -> 56, 54 -> 27, 27 -> 13, 13 -> 6."""
    layers = ["conv2d_2b", "maxpool_3a", "conv2d_4a", "maxpool_5a", "mixed_6a", "mixed_7a"]
    found = sizes("1cycle-imagenet-inception", layers)
    assert list(found.values()) == [112, 56, 54, 27, 13, 6]
    found = sizes("1cycle-imagenet-resnet50", ["conv1", "maxpool", "layer2", "layer3", "layer4"])
    assert list(found.values()) == [115, 57, 29, 15, 8]


def test_resnet50_strides_in_the_1x1_and_keeps_999_parts_of_its_statistics() -> None:
    for name in ("1cycle-imagenet-resnet50", "step-imagenet-resnet50"):
        with torch.device("meta"):
            network = create_network(recipes.load(name), 1000)
        for stage in ("layer2", "layer3", "layer4"):
            block = network.get_submodule(f"{stage}.0")
            assert block.conv1.stride == (2, 2)
            assert block.conv2.stride == (1, 1)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(m.momentum, m.eps) for m in norms} == {(0.001, 1e-5)}


def test_inceptions_norms_keep_nine_tenths_and_the_first_has_statistics_of_zero() -> None:
    with torch.device("meta"):
        network = create_network(recipes.load("1cycle-imagenet-inception"), 1000)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 204
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-3)}
    network.train()
    assert [m.training for m in norms] == [False] + [True] * 203


def test_a_norm_on_statistics_of_zero_is_a_factor_in_training_and_in_evaluation() -> None:
    torch.manual_seed(0)
    network = timm_model("resnet18", 10, 3, first_norm="zeros").double()
    state = network.state_dict()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    seen: list[Tensor] = []
    network.get_submodule("bn1").register_forward_hook(
        lambda *a: seen.append(a[2].detach().clone())
    )
    convolved = network.get_submodule("conv1")(images)
    weight, bias = (torch.randn(convolved.shape[1], dtype=torch.float64) for _ in range(2))
    state["bn1.norm.weight"].copy_(weight)
    state["bn1.norm.bias"].copy_(bias)
    for training in (True, False):
        network.train(training)
        network(images)
    shape = (1, -1, 1, 1)
    wanted = convolved / 1e-5**0.5 * weight.view(shape) + bias.view(shape)
    for found in seen:
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-10, atol=1e-10)
    assert not state["bn1.norm.running_mean"].any()
    assert not state["bn1.norm.running_var"].any()
    assert state["bn1.norm.num_batches_tracked"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_biases_have_twice_the_rate_and_no_decay(name: str) -> None:
    recipe = recipes.load(name)
    with torch.device("meta"):
        network = create_network(recipe, 1000)
    found = assign_parameters(network, recipe.optim)
    biases = [
        f"{path}.bias"
        for path, m in network.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None
    ]
    assert len(biases) == (1 if "resnet50" in name else 41)
    assert set(found[1].decayed) == set(biases)
    assert [ratio for _, ratio in build_schedules(recipe, 10)] == [1.0, 2.0]
    assert recipe.optim[1].options["weight_decay"] == 0.0
    assert recipe.optim[0].options["weight_decay"] > 0


def test_a_squashing_recipe_tests_squashed_images_without_mirrors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        for kind in ("a", "b"):
            (tmp_path / name / kind).mkdir(parents=True)
            pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / kind / "1.png")
    recipe = recipes.load("1cycle-imagenet-resnet50", ["data.name=folder", f"data.root={tmp_path}"])
    assert recipe.eval.ttas == ("none",)
    data = load("folder", DataKeys(root=str(tmp_path)), tmp_path / "cache")
    (split,) = data.tests.values()
    feed = build_test_feed(recipe, split, Machine(CPU, 0, tmp_path))
    (shown,) = feed.batches(0, 1)
    (images,) = shown.views.values()
    for kind, found in zip("ab", images, strict=True):
        with Image.open(tmp_path / "val" / kind / "1.png") as image:
            whole = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), whole[13:243, 13:243])


def test_squashing_is_part_of_the_protocol_and_needs_whole_files() -> None:
    wanted = [("1cycle-imagenet-resnet50", "squash"), ("pytorch", None)]
    for name, resize in wanted:
        recipe = recipes.load(name)
        measurement = Measurement(recipe.eval.sizes[0], recipe.eval.crops[0], "none")
        assert describe_protocol(recipe, "val", measurement, False).get("resize") == resize
    with pytest.raises(UsageError, match=r"eval\.resize: squash needs whole files"):
        check_recipe(
            recipes.load("1cycle-imagenet-resnet50", ["data.resident=true", "data.train_size=256"])
        )


@pytest.mark.parametrize(
    ("key", "what"),
    [("norm_momentum=0.1", "batch norm"), ("first_norm=zeros", "batch norm"),
     ("pooling=caffe", "max pooling")],
)  # fmt: skip
def test_what_a_network_has_no_layer_for_is_refused(key: str, what: str) -> None:
    recipe = recipes.load("deit", ["model.name=vit_tiny_patch16_224", f"model.{key}"])
    name = key.partition("=")[0]
    message = rf"model\.{name}: the network has no {what}\. Remove it with ~model\.{name}\."
    with pytest.raises(UsageError, match=message), torch.device("meta"):
        create_network(recipe, 1000)
    assert unsupported_keys("vit_tiny_patch16_224", [name]) == [name]
    assert unsupported_keys("resnet18", [name]) == []
