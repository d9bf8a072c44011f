"""The nets of fast CIFAR-10 training against restatements written out here, and their parts."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, distributed, nn
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.bench.plain_layers import replace_layers
from rescue_cli.build.check import check_recipe
from rescue_cli.build.feeds import Machine, build_normalise, initialise_from_images
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.errors import UsageError
from rescue_cli.sections.data import Dataset, FileNames, Files, Images
from rescue_cli.sections.model import MODELS, Celu, GhostBatchNorm2d, Whitening
from rescue_cli.sections.model.airbench import add_dirac
from rescue_cli.sections.model.pooling import GlobalMaxPool2d
from tests.helpers.kernels import Kernels
from tests.helpers.processes import random_dataset

CPU = torch.device("cpu")
WHITENED: dict[str, Any] = {"whitening_images": 10, "whitening_eps": 1e-2}
FROZEN: dict[str, Any] = {"celu": 0.3, "ghost": 4, "frozen_scale": True}
LADDER: dict[str, dict[str, Any]] = {
    "baseline": {},
    "maxpool": {"pool": "before-norm"},
    "celu": {"pool": "before-norm", "celu": 0.075},
    "ghost-norm": {"pool": "before-norm", "celu": 0.075, "ghost": 4},
    "frozen-scale": {"pool": "before-norm", **FROZEN},
    "whitening": {"pool": "before-norm", **FROZEN, **WHITENED},
}
NORM: dict[str, Any] = {"norm_momentum": 0.4, "norm_eps": 1e-12, "logit_scale": 1 / 9}
AIRBENCH: dict[str, Any] = {
    **NORM,
    "whitening_images": 10,
    "whitening_eps": 5e-4,
    "whitening_bias": "zeros",
}
MUON: dict[str, Any] = {"logit_scale": 1 / 256, "head_init_std": 1.0, "whitening_bias": "uniform"}
KIN: dict[str, dict[str, Any]] = {
    "airbench94": {**AIRBENCH, "widths": (64, 256, 256)},
    "airbench94-muon": {**AIRBENCH, "widths": (64, 256, 256), **MUON},
    "airbench95": {**AIRBENCH, "widths": (128, 384, 384)},
    "airbench96": {
        **AIRBENCH, "widths": (128, 384, 512), "convs": 3, "residual": True, "norm_momentum": 0.1,
    },
    "airbench96-proxy": {**AIRBENCH, "widths": (32, 64, 64), "norm_momentum": 0.1},
    "hlb": {
        **AIRBENCH, "widths": (64, 256, 512), "dirac": "added", "whitening_bias": None,
        "whitening_eps": 1e-2, "whitening_centred": True,
    },
    "hiverge": {
        **AIRBENCH, "widths": (64, 256, 256), **MUON, "activation": "silu", "norm_momentum": 0.4434,
    },
}  # fmt: skip
Act = Callable[[Tensor], Tensor]


def resnet9(width: int = 4, **keys: Any) -> nn.Module:
    return MODELS["resnet9"](10, 3, width=width, logit_scale=0.125, **keys)


def airbench(name: str, *, divide: int = 1) -> nn.Module:
    """The net of that name, its widths divided."""
    keys = {**KIN[name], "widths": tuple(w // divide for w in KIN[name]["widths"])}
    return MODELS["airbench"](10, 3, **keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_celu_is_torchs_to_single_precision(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(64, 33, 31, 17)).to(dtype).contiguous(memory_format=layout)
    gradient = torch.randn_like(x)
    ours, torchs = (x.clone().requires_grad_() for _ in range(2))
    y = Celu(0.3)(ours * 1)
    z = functional.celu(torchs * 1, 0.3, inplace=True)  # whose slope follows from the result
    y.backward(gradient)
    z.backward(gradient)  # type: ignore[no-untyped-call]
    assert y.stride() == z.stride()
    a_step = torch.finfo(dtype).eps  # where the two lie on either side of a rounding
    torch.testing.assert_close(y, z, rtol=a_step, atol=4e-8)
    torch.testing.assert_close(ours.grad, torchs.grad, rtol=a_step, atol=2e-6)
    if dtype == torch.bfloat16:
        assert (y != z).float().mean() < 0.01


def test_the_plain_network_of_the_bench_computes_what_ours_computes() -> None:
    recipe = recipes.load("myrtle", ["train.precision=float64", "model.width=8"])
    ours, plain = (build_network(recipe, 10, CPU).train() for _ in range(2))
    replace_layers(plain)
    kinds = {type(layer) for layer in plain.modules()}
    assert nn.CELU in kinds
    assert not kinds & {Celu, GhostBatchNorm2d}
    images = torch.randn(128, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(images), plain(images))


# --- restatements ---


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def celu(alpha: float) -> Act:
    return lambda x: x.clamp(min=0) + (alpha * ((x / alpha).exp() - 1)).clamp(max=0)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def pool(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2]
    y: Tensor = x.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
    return y


class Hand:
    """Convolutions and norms in the order of a net's state, one taken at each call."""

    def __init__(self, net: nn.Module, *, eps: float, groups: int = 1) -> None:
        state = {k: v.clone() for k, v in net.state_dict().items()}
        self.training = net.training
        self.eps = eps
        self.groups = groups
        self.filters: Iterator[Tensor] = iter([v for v in state.values() if v.ndim == 4])
        names = [k.removesuffix(".running_mean") for k in state if k.endswith("running_mean")]
        parts = ("weight", "bias", "running_mean", "running_var")
        self.norms = iter([[state[f"{name}.{part}"] for part in parts] for name in names])
        self.bias = next((v for k, v in state.items() if k == "whitening.bias"), None)
        self.head = state["head.weight"]
        self.first_statistics: tuple[Tensor, Tensor] | None = None  # of the batch, unbiased

    def conv(self, x: Tensor, padding: int = 1, bias: Tensor | None = None) -> Tensor:
        y: Tensor = functional.conv2d(x, next(self.filters), bias, padding=padding)
        return y

    def norm(self, x: Tensor) -> Tensor:
        """Over every image, or over images g, g + groups, ... for each g."""
        weight, bias, mean, var = (p[:, None, None] for p in next(self.norms))
        if not self.training:
            scaled: Tensor = (x - mean) / (var + self.eps) ** 0.5 * weight + bias
            return scaled
        y = torch.empty_like(x)
        found = []
        for g in range(self.groups):
            group = x[g :: self.groups]
            flat = group.transpose(0, 1).flatten(1)
            centre = flat.mean(1)
            spread = ((flat - centre[:, None]) ** 2).mean(1)
            y[g :: self.groups] = (group - centre[:, None, None]) / (
                spread[:, None, None] + self.eps
            ) ** 0.5 * weight + bias
            found.append((centre, spread * flat.shape[1] / (flat.shape[1] - 1)))
        if self.first_statistics is None:
            means, variances = zip(*found, strict=True)
            self.first_statistics = (torch.stack(means).mean(0), torch.stack(variances).mean(0))
        return y


def resnet9_by_hand(hand: Hand, x: Tensor, act: Act, pools: str, *, whitened: bool) -> Tensor:
    """`pools`: where the pool of a pooled block is, before the norm or around the activation."""

    def block(x: Tensor, *, pooled: bool = False) -> Tensor:
        x = hand.conv(x)
        x = hand.norm(pool(x) if pooled and pools == "before-norm" else x)
        x = act(pool(x) if pooled and pools == "before-activation" else x)
        return pool(x) if pooled and pools == "after-activation" else x

    x = act(hand.norm(hand.conv(hand.conv(x), padding=0))) if whitened else block(x)
    x = block(x, pooled=True)
    x = x + block(block(x))
    x = block(block(x, pooled=True), pooled=True)
    x = x + block(block(x))
    logits: Tensor = x.amax((2, 3)) @ hand.head.T / 8
    return logits


def airbench_by_hand(
    hand: Hand, x: Tensor, act: Act, *, convs: int, residual: bool, logit_scale: float
) -> Tensor:
    x = gelu(hand.conv(x, padding=0, bias=hand.bias))
    for _ in range(3):
        x = act(hand.norm(pool(hand.conv(x))))
        entered = x
        for number in range(convs - 1):
            x = hand.norm(hand.conv(x))
            last = number == convs - 2
            x = act(x + entered if residual and last else x)
    logits: Tensor = x.amax((2, 3)) @ hand.head.T * logit_scale
    return logits


def prepared(net: nn.Module, *, training: bool) -> tuple[nn.Module, Tensor]:
    """The net in float64 with random statistics and norms, and images for it."""
    torch.manual_seed(3)
    net = net.double().train(training)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert isinstance(module.running_mean, Tensor)
                assert isinstance(module.running_var, Tensor)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.bias.normal_()
                if module.weight.requires_grad:
                    module.weight.uniform_(0.5, 2)
            if isinstance(module, Whitening):
                module.init_from([torch.randn(20, 3, 8, 8)])
    return net, torch.randn(8, 3, 32, 32, dtype=torch.float64)


def assert_statistics_moved(net: nn.Module, before: dict[str, Tensor], hand: Hand) -> None:
    """The first norm's statistics went towards the batch's by its momentum."""
    name, norm = next((k, m) for k, m in net.named_modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.momentum is not None
    assert hand.first_statistics is not None
    for part, batch in zip(("running_mean", "running_var"), hand.first_statistics, strict=True):
        expected = (1 - norm.momentum) * before[f"{name}.{part}"] + norm.momentum * batch
        torch.testing.assert_close(getattr(norm, part), expected, rtol=1e-10, atol=1e-12)


# --- nets ---


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LADDER)
def test_every_rung_of_the_ladder_is_the_net_written_out(name: str, training: bool) -> None:
    keys = LADDER[name]
    net, images = prepared(resnet9(**keys), training=training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hand = Hand(net, eps=1e-5, groups=2 if "ghost" in keys else 1)
    act = celu(keys["celu"]) if "celu" in keys else relu
    pools = keys.get("pool", "after-activation")
    expected = resnet9_by_hand(hand, images, act, pools, whitened="whitening_eps" in keys)
    torch.testing.assert_close(net(images), expected, rtol=1e-9, atol=1e-10)
    if training:
        assert_statistics_moved(net, before, hand)


@pytest.mark.parametrize("training", [True, False])
def test_a_pool_between_norm_and_activation_is_the_same_function(training: bool) -> None:
    net, images = prepared(resnet9(), training=training)
    moved = resnet9_by_hand(Hand(net, eps=1e-5), images, relu, "before-activation", whitened=False)
    torch.testing.assert_close(net(images), moved, rtol=1e-9, atol=1e-10)
    if training:  # a norm with fixed statistics and a positive scale commutes with the pool
        other = resnet9_by_hand(Hand(net, eps=1e-5), images, relu, "before-norm", whitened=False)
        assert (other - moved).abs().max() > 0.01


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", KIN)
def test_airbench_and_its_kin_are_the_nets_written_out(name: str, training: bool) -> None:
    keys = KIN[name]
    net, images = prepared(airbench(name, divide=8), training=training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hand = Hand(net, eps=1e-12)
    expected = airbench_by_hand(
        hand,
        images,
        silu if name == "hiverge" else gelu,
        convs=3 if name == "airbench96" else 2,
        residual=name == "airbench96",
        logit_scale=keys["logit_scale"],
    )
    torch.testing.assert_close(net(images), expected, rtol=1e-9, atol=1e-10)
    if training:
        assert_statistics_moved(net, before, hand)


@pytest.mark.parametrize(
    ("net", "trained", "frozen"),
    [
        # 6,573,120 is the count that the DAWNBench entries state
        (lambda: resnet9(64), 6_573_120, 0),
        # scales of 2,240 channels fixed; 27 x 27 fixed and 27 x 64 trained for 3 x 64 x 9
        (lambda: resnet9(64, frozen_scale=True, **WHITENED), 6_570_880, 2_240 + 729),
        (lambda: airbench("airbench94"), 1_971_352, 24 * 12 + 1_152),
        (lambda: airbench("airbench94-muon"), 1_971_352, 24 * 12 + 1_152),
        (lambda: airbench("hiverge"), 1_971_352, 24 * 12 + 1_152),
        (lambda: airbench("hlb"), 4_333_696, 24 * 12 + 1_664),
    ],
)
def test_parameters(net: Callable[[], nn.Module], trained: int, frozen: int) -> None:
    found = {True: 0, False: 0}
    for parameter in net().parameters():
        found[parameter.requires_grad] += parameter.numel()
    assert found == {True: trained, False: frozen}


def test_a_head_of_a_given_spread() -> None:
    spreads = [
        airbench(name).get_parameter("head.weight").std().item()
        for name in ("airbench94-muon", "airbench94")
    ]
    # torch's Linear is uniform up to 1 / sqrt(inputs), whose deviation is that / sqrt(3)
    assert spreads == pytest.approx([1.0, 1 / (256 * 3) ** 0.5], rel=0.03)


# --- filters that pass their inputs through ---


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Those that are trained."""
    found = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return [m for m in found if not isinstance(m, Whitening)]


@pytest.mark.parametrize("name", ["airbench94", "airbench96"])
def test_the_first_filters_of_each_convolution_pass_their_inputs_through(name: str) -> None:
    for conv in convolutions(airbench(name)):
        images = torch.randn(1, conv.in_channels, 5, 5)
        out = conv(images)
        torch.testing.assert_close(out[:, : conv.in_channels], images, rtol=0, atol=0)
        assert (out[:, conv.in_channels :].abs() > 0).all()


def test_hlb_passes_through_in_second_convolutions_and_beside_random_weights_in_first() -> None:
    for number, conv in enumerate(convolutions(airbench("hlb"))):
        images = torch.randn(1, conv.in_channels, 5, 5)
        passed = torch.equal(conv(images)[:, : conv.in_channels], images)
        assert passed == (number % 2 == 1)


def test_an_added_identity_keeps_mean_and_deviation() -> None:
    random = torch.randn(6, 4, 3, 3, dtype=torch.float64) + 0.1
    identity = torch.zeros_like(random)
    for channel in range(4):
        identity[channel, channel, 1, 1] = 1
    both = random + identity
    deviations = [((w - w.mean()) ** 2).sum().div(6 * 4 * 9 - 1).sqrt() for w in (random, both)]
    expected = (both - both.mean()) / deviations[1] * deviations[0] + random.mean()
    first, other = random.clone(), torch.randn(4, 4, 3, 3, dtype=torch.float64)
    add_dirac(first, [other])
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other, identity[:4], rtol=0, atol=0)


# --- whitening ---


def photographs(folder: Path) -> Tensor:
    """50 of CIFAR-10's training photographs, normalised, (n, 3, 32, 32) float64."""
    files = sorted((folder / "train").glob("*/*"))[::4]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)


def patches_by_hand(images: Tensor, size: int) -> Tensor:
    """Every size x size patch as a row in the order (channel, row, column)."""
    last = images.shape[-1] - size + 1
    windows = [images[..., i : i + last, j : j + last] for i in range(size) for j in range(size)]
    return torch.stack(windows, 2).flatten(1, 2).permute(0, 2, 3, 1).flatten(0, 2)


def whitening(*, size: int, eps: float, mirrored: bool, centred: bool) -> Whitening:
    return Whitening(
        3, size, padding=0, mirrored=mirrored, bias=None, images=1, eps=eps, centred=centred
    ).double()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("size", "mirrored"), [(3, False), (2, True)])
@pytest.mark.parametrize("eps", [1e-9, 1e-2])
def test_whitened_patches_of_photographs_are_uncorrelated(
    cifar_folders: Path, size: int, mirrored: bool, eps: float, centred: bool
) -> None:
    images = photographs(cifar_folders)
    layer = whitening(size=size, eps=eps, mirrored=mirrored, centred=centred)
    layer.init_from(torch.split(images, 64))
    count = 3 * size**2
    patches = patches_by_hand(images, size)
    filters = layer.weight.flatten(1)[:count]
    rows = patches @ filters.T
    if centred:
        patches, rows = patches - patches.mean(0), rows - rows.mean(0)
    spectrum = torch.linalg.svdvals(patches) ** 2 / (len(patches) - centred)
    found = rows.T @ rows / (len(rows) - centred)
    expected = torch.diag(spectrum / (spectrum + eps))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    if eps < 1e-6:
        torch.testing.assert_close(found, torch.eye(count).double(), rtol=0, atol=1e-4)
    out = layer(images)
    torch.testing.assert_close(
        out[:, :count].movedim(1, -1).flatten(0, 2), patches_by_hand(images, size) @ filters.T
    )
    assert layer.out_channels == count * (1 + mirrored)
    if mirrored:
        torch.testing.assert_close(out[:, count:], -out[:, :count])


def test_filters_depend_on_neither_batches_nor_the_sign_that_eigh_picks(
    cifar_folders: Path,
) -> None:
    images = photographs(cifar_folders)
    found = []
    for batches in ((images,), torch.split(images.flip(0), 7), (images.float(),)):
        layer = whitening(size=2, eps=5e-4, mirrored=True, centred=False)
        layer.init_from(batches)
        found.append(layer.weight)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-3)


def recipe_of(**model: Any) -> Any:
    keys = {"name": "airbench", **AIRBENCH, "widths": [8, 8, 8], **model}
    item = ", ".join(f"{key}: {_yaml(value)}" for key, value in keys.items())
    sizes = ("train.batch_size=8", "train.device_batch_size=8")
    return recipes.load("quickstart").with_overrides(*sizes, f"model={{{item}}}")


def _yaml(value: Any) -> str:
    return f"{value:.12f}" if isinstance(value, float) else str(value)  # 1e-12 lacks YAML's dot


def test_a_run_whitens_by_training_images_spaced_over_the_set(tmp_path: Path) -> None:
    recipe = recipe_of(whitening_images=7)
    data = random_dataset(1, 28, 40)
    machine = Machine(CPU, 0, tmp_path)
    network = build_network(recipe, 10, CPU)
    step = build_step(recipe, network, data, machine, print)
    assert isinstance(data.train, Images)
    places = [0, 5, 11, 17, 22, 28, 34]  # of 40
    images = build_normalise(recipe, CPU)(torch.from_numpy(data.train.pixels[places])).double()
    patches = patches_by_hand(images, 2)
    values, vectors = np.linalg.eigh((patches.T @ patches / len(patches)).numpy())
    scaled = torch.from_numpy(vectors / np.sqrt(values + 5e-4)).T.flip(0)
    layer = next(m for m in network.modules() if isinstance(m, Whitening))
    found = layer.weight.detach().flatten(1).double()
    signs = (found[:4] * scaled).sum(1, keepdim=True).sign()
    torch.testing.assert_close(
        found, torch.cat([scaled * signs, -scaled * signs]), rtol=0, atol=1e-4
    )

    before = {k: v.clone() for k, v in network.state_dict().items()}
    step.feed.start(0)
    step(0)
    step(1)
    assert torch.equal(layer.weight, before["whitening.weight"])
    assert not torch.equal(network.state_dict()["whitening.bias"], before["whitening.bias"])


def test_a_set_smaller_than_asked_for_is_used_whole() -> None:
    data, filters = random_dataset(1, 28, 16), []
    for images in (16, 5000):
        network = build_network(recipe_of(whitening_images=images), 10, CPU)
        initialise_from_images(recipe_of(whitening_images=images), network, data, CPU)
        filters.append(network.state_dict()["whitening.weight"])
    assert torch.equal(*filters)


def test_whitening_wants_images_in_memory(tmp_path: Path) -> None:
    recipe = recipe_of()
    files = Files(FileNames.of(tmp_path, []), np.zeros(0, dtype=np.int64))
    data = Dataset(files, {"test": files}, tuple("abcdefghij"))
    with pytest.raises(UsageError) as error:
        initialise_from_images(recipe, build_network(recipe, 10, CPU), data, CPU)
    assert str(error.value) == (
        "model (airbench): is initialised from 10 training images, and fashion-mini is read "
        "from files. Set data.resident=true."
    )


def test_whitening_wants_both_its_keys() -> None:
    with pytest.raises(UsageError) as error:
        resnet9(whitening_images=10)
    assert str(error.value) == (
        "model (resnet9): whitening needs two keys, and 'whitening_eps' is missing. "
        "Add model.whitening_eps, or remove the other."
    )


# --- ghost batch norm ---


PATHS = ("_by_chunks", "_by_reshape")  # on a CPU, and elsewhere


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ghost norm takes this path on a CPU."""
    name: str = request.param
    monkeypatch.setattr(GhostBatchNorm2d, "_by_chunks", getattr(GhostBatchNorm2d, name))
    return name


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ghost_norm_is_batch_norm_of_each_group(layout: torch.memory_format) -> None:
    torch.manual_seed(5)
    images = torch.randn(12, 3, 5, 4, dtype=torch.float64).to(memory_format=layout)
    wanted = torch.randn_like(images)
    norm = GhostBatchNorm2d(3, 4).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    norm(ours).backward(wanted)
    weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    statistics = [(torch.zeros(3).double(), torch.ones(3).double()) for _ in range(3)]
    expected = [
        functional.batch_norm(theirs[i : i + 4], *moving, weight, bias, True, 0.1, 1e-5)
        for i, moving in zip((0, 4, 8), statistics, strict=True)
    ]
    torch.cat(expected).backward(wanted)  # type: ignore[no-untyped-call]
    means, variances = zip(*statistics, strict=True)
    pairs = (
        (norm(images), torch.cat(expected)),
        (ours.grad, theirs.grad),
        (norm.weight.grad, weight.grad),
        (norm.bias.grad, bias.grad),
    )
    for found, reference in pairs:
        torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-10)
    fresh = GhostBatchNorm2d(3, 4).double()
    fresh(images)
    assert norm(images).is_contiguous(memory_format=layout)
    moved = [(fresh.running_mean, means), (fresh.running_var, variances)]
    for buffer, each in moved:
        torch.testing.assert_close(buffer, torch.stack(each).mean(0), rtol=1e-10, atol=1e-10)
    assert fresh.num_batches_tracked == 1


def test_off_the_cpu_ghost_norm_makes_as_few_kernels_for_many_groups_as_for_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And an activation that changes its result in place adds no copies."""

    def kernels(groups: int) -> int:
        block = nn.Sequential(GhostBatchNorm2d(3, 4), nn.CELU(0.3, inplace=True))
        images = torch.randn(4 * groups, 3, 5, 4).to(memory_format=torch.channels_last)
        images.requires_grad_()
        with Kernels() as counted:
            block(images).sum().backward()
        count: int = counted.count
        return count

    in_chunks = kernels(16)
    monkeypatch.setattr(GhostBatchNorm2d, "_by_chunks", GhostBatchNorm2d._by_reshape)
    assert kernels(2) == kernels(16) <= 30 < in_chunks


def test_both_paths_of_ghost_norm_train_alike_cast_compiled_and_in_ddp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(6)
    images = torch.randn(12, 3, 5, 4).to(memory_format=torch.channels_last)
    layers = (nn.Conv2d(3, 6, 3), GhostBatchNorm2d(6, 4), nn.CELU(0.3, inplace=True))
    start = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def trained(wrap: Callable[[nn.Module], Any], *, cast: bool) -> dict[str, Tensor]:
        net = copy.deepcopy(start)
        wrapped = wrap(net)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            outputs = wrapped(images)
        assert outputs.is_contiguous(memory_format=torch.channels_last)
        (outputs.float() ** 3).mean().backward()
        gradients = {f"{name}.grad": p.grad for name, p in net.named_parameters()}
        return {**dict(net.named_buffers()), **gradients, "outputs": outputs.detach().float()}

    def compiled(net: nn.Module) -> Any:
        return torch.compile(net, dynamic=False, backend="aot_eager", fullgraph=True)

    def plain(net: nn.Module) -> Any:
        return net

    expected = {cast: trained(plain, cast=cast) for cast in (False, True)}
    monkeypatch.setattr(GhostBatchNorm2d, "_by_chunks", GhostBatchNorm2d._by_reshape)
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ways = ((plain, True), (compiled, True), (nn.parallel.DistributedDataParallel, False))
        for wrap, cast in ways:
            result, tolerance = trained(wrap, cast=cast), 2e-2 if cast else 1e-5
            for key, value in expected[cast].items():
                torch.testing.assert_close(
                    result[key], value, rtol=tolerance, atol=tolerance, msg=key
                )
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(("training", "count"), [(False, 12), (True, 4), (True, 3)])
def test_ghost_norm_is_plain_in_evaluation_and_of_one_group(training: bool, count: int) -> None:
    images = torch.randn(count, 3, 5, 4)
    ghost, plain = GhostBatchNorm2d(3, 4).train(training), nn.BatchNorm2d(3).train(training)
    torch.testing.assert_close(ghost(images), plain(images), rtol=0, atol=0)
    for name, buffer in plain.named_buffers():
        assert torch.equal(ghost.get_buffer(name), buffer)


def test_a_micro_batch_that_does_not_divide_into_groups_is_refused_before_a_device_is_touched() -> (
    None
):
    recipe = recipes.load("quickstart").with_overrides("model.ghost=48")
    with pytest.raises(UsageError) as error:
        check_recipe(recipe)
    assert str(error.value) == (
        "model.ghost: a micro-batch of 128 does not divide into groups of 48. "
        "Set train.device_batch_size to a multiple of 48, or model.ghost to a divisor."
    )


# --- pooling ---


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_global_maximum_and_its_gradient_are_those_of_adaptive_pooling(layout: Any) -> None:
    torch.manual_seed(1)
    ours = torch.randint(0, 4, (3, 5, 6, 7)).float().to(memory_format=layout).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()  # of four levels, so that maxima tie
    weights = torch.randn(3, 5, 1, 1)
    pooled, adaptive = GlobalMaxPool2d()(ours), nn.AdaptiveMaxPool2d(1)(theirs)
    assert pooled.equal(adaptive)
    (pooled * weights).sum().backward()
    (adaptive * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.equal(theirs.grad)
