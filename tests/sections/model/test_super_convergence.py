"""Super-convergence's ResNet, its parameters' rates and Caffe's update, restated layer by layer."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.build.networks import create_network
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.errors import UsageError
from rescue_cli.sections.model import MODELS
from rescue_cli.sections.model.caffe import CaffeBatchNorm2d

State = Mapping[str, Tensor]


def means_of_windows(x: Tensor) -> Tensor:
    """Caffe's AVE pooling of 3x3, stride 2: ceil((side - 3) / 2) + 1 windows, cut at the edge."""
    side = math.ceil((x.shape[-1] - 3) / 2) + 1
    rows = [
        [x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].mean((2, 3)) for j in range(side)]
        for i in range(side)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def normalised(x: Tensor, w: State, path: str) -> Tensor:
    """Batch norm of a batch in training, by its formula."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    shape = (1, -1, 1, 1)
    scaled = (x - mean) / (variance + 1e-5).sqrt() * w[f"{path}.weight"].view(shape)
    return scaled + w[f"{path}.bias"].view(shape)


def restated(images: Tensor, mean: Tensor, w: State, blocks: int) -> Tensor:
    """The prototxt's layers in training: a flat loop over its blocks."""

    def conv(x: Tensor, path: str, stride: int = 1) -> Tensor:
        return functional.conv2d(x, w[f"{path}.weight"], w[f"{path}.bias"], stride, 1)

    x = normalised(conv(images - mean, "features.1"), w, "features.2").clamp(min=0)
    for place in range(3 * blocks):
        path, halving = f"features.{4 + place}.body", place in (blocks, 2 * blocks)
        y = normalised(conv(x, f"{path}.0", 2 if halving else 1), w, f"{path}.1").clamp(min=0)
        y = normalised(conv(y, f"{path}.3"), w, f"{path}.4")
        if halving:
            y = (y + means_of_windows(x)).clamp(min=0)
            x = torch.cat([y, torch.zeros_like(y)], 1)
        else:
            x = (y + x).clamp(min=0)
    assert x.shape[1:] == (64, 8, 8)
    return x.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]


def test_the_net_is_the_prototxts_layer_by_layer_forward_and_backward() -> None:
    torch.manual_seed(0)
    model = MODELS["super-convergence"](10, 3, depth=20, norm_momentum=0.05).double()
    images = torch.rand(6, 3, 32, 32, dtype=torch.float64) * 255
    mean = images.mean(0)
    model.get_submodule("features.0").init_from([images])  # type: ignore[operator]
    copies = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    found, wanted = model(images), restated(images, mean, copies, 3)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    labels = torch.arange(6)
    torch.autograd.backward(functional.cross_entropy(found, labels))
    torch.autograd.backward(functional.cross_entropy(wanted, labels))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, copies[name].grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("depth", "rectified"), [(20, 19), (56, 55), (110, 109)])
def test_parameters_and_layers_are_as_many_as_the_files_have(depth: int, rectified: int) -> None:
    def block(features: int) -> int:  # two convolutions with biases, scale and shift after each
        return 2 * (9 * features**2 + features + 2 * features)

    n = (depth - 2) // 6
    first = 3 * 16 * 9 + 16 + 2 * 16
    stages = n * block(16) + block(16) + (n - 1) * block(32) + block(32) + (n - 1) * block(64)
    model = MODELS["super-convergence"](10, 3, depth=depth, norm_momentum=0.05)
    assert sum(p.numel() for p in model.parameters()) == first + stages + 64 * 10 + 10
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == depth - 1 == rectified
    assert all(c.kernel_size == (3, 3) and c.bias is not None for c in convs)
    assert sum(c.stride == (2, 2) for c in convs) == 2


@pytest.mark.parametrize("depth", [2, 9, 57])
def test_a_depth_that_the_structure_has_not_is_refused(depth: int) -> None:
    with pytest.raises(UsageError, match=r"is not 6 n \+ 2. Use 20, 56 or 110"):
        MODELS["super-convergence"](10, 3, depth=depth, norm_momentum=0.05)


@pytest.mark.parametrize("name", ["super-convergence", "smith-densenet40"])
def test_convolutions_begin_with_msra_and_the_last_layer_with_xavier(name: str) -> None:
    torch.manual_seed(0)
    keys = {"depth": 56} if name == "super-convergence" else {"dropout": 0.2}
    model = MODELS[name](100, 3, norm_momentum=0.05, **keys)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            inputs = layer.weight[0].numel()
            of = 2 if isinstance(layer, nn.Conv2d) else 1
            std = math.sqrt(of / inputs)
            sampled = 4 / math.sqrt(2 * layer.weight.numel())  # four standard errors of a std
            assert float(layer.weight.detach().std()) == pytest.approx(std, rel=sampled)
            assert layer.bias is None or not layer.bias.any()
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    bound = math.sqrt(3 / head.in_features)
    assert 0.99 * bound < float(head.weight.detach().abs().max()) <= bound


def test_running_statistics_are_caffes_sums_by_the_sum_of_their_weights() -> None:
    torch.manual_seed(0)
    norm = CaffeBatchNorm2d(4, momentum=0.05).double()
    sums, squares, weight = torch.zeros(4).double(), torch.zeros(4).double(), 0.0
    for step in range(30):
        x = torch.randn(5, 4, 3, 3, dtype=torch.float64) * (step + 1) + step
        torch.testing.assert_close(
            norm(x), functional.batch_norm(x, None, None, training=True), rtol=1e-10, atol=1e-10
        )
        weight = 0.95 * weight + 1
        sums = 0.95 * sums + x.mean((0, 2, 3))
        squares = 0.95 * squares + x.transpose(0, 1).flatten(1).var(1)  # divided by n - 1
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    norm.eval()
    shape = (1, 4, 1, 1)
    mean, variance = (sums / weight).view(shape), (squares / weight).view(shape)
    wanted = (x - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), wanted, rtol=1e-10, atol=1e-10)


def multipliers(name: str, net: str) -> tuple[float, float]:
    """A parameter's factors of rate and decay, as the network files of the recipe's nets have."""
    if name == "head.bias":
        return 2.0, 1.0 if net in ("super-convergence", "smith-densenet40") else 0.0
    if net == "super-convergence" and name.endswith("bias") and ".body." not in name:
        return (1.0, 1.0) if name == "features.2.bias" else (2.0, 0.0)
    if net == "super-convergence" and name.endswith((".body.0.bias", ".body.3.bias")):
        return 2.0, 0.0
    return 1.0, 1.0


@pytest.mark.parametrize(
    ("name", "lr"),
    [
        ("clr-resnet56", 3.0), ("step-resnet56", 0.35), ("1cycle-resnet56", 0.8),
        ("1cycle-wide32", 1.0), ("step-wide32", 0.1), ("1cycle-densenet40", 4.0),
        ("step-densenet40", 0.1),
    ],
)  # fmt: skip
def test_every_parameter_moves_as_in_caffes_solver(name: str, lr: float) -> None:
    """Three updates: V = mu V + rate (g + decay w), with Nesterov (1 + mu) V - mu V before."""
    torch.manual_seed(0)
    recipe = recipes.load(name, ["schedule={name: constant}"])
    network = create_network(recipe, 10).double()
    first = recipe.optim[0].options
    assert first["lr"] == lr
    mu, nesterov, decay = first["momentum"], first["nesterov"], first["weight_decay"]
    ours = build_optimizers(recipe, network, 10, torch.amp.GradScaler("cpu", enabled=False))
    weights = {n: p.detach().clone() for n, p in network.named_parameters()}
    velocity = {n: torch.zeros_like(w) for n, w in weights.items()}
    for step in range(3):
        for n, p in network.named_parameters():
            gradient = torch.randn_like(p)
            p.grad = gradient.clone()
            rate, decayed = multipliers(n, recipe.model.name)
            before = velocity[n]
            velocity[n] = mu * before + lr * rate * (gradient + decay * decayed * weights[n])
            moved = (1 + mu) * velocity[n] - mu * before if nesterov else velocity[n]
            weights[n] = weights[n] - moved
        ours.set_rates(step)
        ours.step()
    for n, p in network.named_parameters():
        torch.testing.assert_close(p.detach(), weights[n], rtol=1e-10, atol=1e-12)
