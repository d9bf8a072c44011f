"""What augmentation does off a CPU, taken on one: the same pixels, by fewer kernels and bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rescue_cli.batch import Batch
from rescue_cli.recipe import load
from rescue_cli.sections.augment import Augment, named_operations
from rescue_cli.sections.augment.kernels import devices
from rescue_cli.sections.augment.named_operations import GEOMETRIC, NAMED_OPERATIONS
from rescue_cli.sections.augment.operations import flip
from rescue_cli.sections.augment.pipeline import Normalise
from tests.helpers.kernels import Kernels

CPU = torch.device("cpu")
FILL = torch.tensor([124, 116, 104], dtype=torch.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = [
    (name, kernel)
    for name in NAMED_OPERATIONS
    for kernel in (("bilinear", "bicubic") if name in GEOMETRIC else ("",))
]


def images(n: int, height: int, width: int) -> Tensor:
    """Noise, and the same with few levels, as flat areas have."""
    draws = torch.Generator().manual_seed(height)
    noise = torch.randint(0, 256, (n, 3, height, width), generator=draws, dtype=torch.uint8)
    return torch.cat([noise, noise & 0b11100000])


def argument_of(name: str, count: int) -> Tensor:
    share = torch.linspace(-1, 1, count, dtype=torch.float64)
    if "Posterize" in name:
        return (4 * (share + 1)).floor()
    if "Solarize" in name:
        return (64 * (share + 1)).floor()
    if name == "HueShift":
        return share / 2
    if name in GEOMETRIC:
        degrees_or_pixels = name.startswith("Rotate") or ("Translate" in name and "Given" in name)
        return share * (28.5 if degrees_or_pixels else 0.4)
    return share + 1  # a factor of a blend


@pytest.mark.parametrize(("name", "kernel"), KINDS)
@pytest.mark.parametrize("size", [(33, 47), (2, 2), (3, 9)])
def test_every_operation_gives_the_same_pixels_off_the_cpu(
    name: str, kernel: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = images(4, *size)
    argument = argument_of(name, len(pixels))
    options = {"kernel": kernel, "fill": FILL} if kernel else {}
    operation = NAMED_OPERATIONS[name]
    values = operation.values(argument, *size)
    on_cpu = operation.apply(pixels, *values, **options)
    before = pixels.clone()
    monkeypatch.setattr(devices, "on_cpu", lambda _: False)
    off_cpu = operation.apply(pixels, *values, **options)
    assert torch.equal(on_cpu, off_cpu)
    assert torch.equal(pixels, before)
    if min(size) > 3 and name not in ("HueShift", "HueFactor"):
        assert not torch.equal(on_cpu, pixels)


@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mirrored_and_normalised_images_are_the_same_off_the_cpu(
    given: torch.memory_format,
    channels_last: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = images(3, 6, 5).to(memory_format=given)
    normalise = Normalise(MEAN, STD, CPU, dtype, channels_last)
    draws = torch.linspace(0, 0.99, 6)[:, None]
    on_cpu = normalise(flip(p=0.5).apply(pixels, draws))
    monkeypatch.setattr(devices, "on_cpu", lambda _: False)
    off_cpu = normalise(flip(p=0.5).apply(pixels, draws))
    assert torch.equal(on_cpu, off_cpu)
    assert off_cpu.dtype == dtype
    assert off_cpu.is_contiguous(memory_format=normalise.format)


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_operations_along_an_axis_are_done_together_where_no_image_has_two(
    interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many layers, so that an image is often sheared and moved along the same axis."""
    (flips, drawn) = (item for item in load("a2").augment if item.name != "random-resized-crop")
    assert flips.name == "flip"
    operation = replace(
        drawn, options={**drawn.options, "layers": 4, "p": 1.0, "interpolation": interpolation}
    )()
    pixels, draws = images(40, 12, 9), np.random.default_rng(3).random((80, 24), np.float32)
    groups, *rest = operation.plan(draws)
    slides = [g for g in groups if NAMED_OPERATIONS[g.name].slides]
    arguments, fill = (torch.from_numpy(value) for value in rest)
    on_cpu = operation.apply(pixels, groups, arguments, fill)
    monkeypatch.setattr(devices, "on_cpu", lambda _: False)
    assert torch.equal(operation.apply(pixels, groups, arguments, fill), on_cpu)
    calls = named_operations._calls(groups, arguments, 12, 9, fill)
    fewer = named_operations._with_slides_together(calls, groups)
    assert len(fewer) <= len(calls) - len(slides) // 3
    rows = sorted(row for call in fewer for row in call.rows)
    assert rows == sorted(row for group in groups for row in group.rows)


def test_a2s_augmentation_moves_fewer_bytes_off_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 64 views, all of an operation's at once."""
    monkeypatch.setattr(named_operations, "IMAGES_AT_A_TIME", 64)
    operations = [item() for item in load("a2").augment]
    augment = Augment(operations, Normalise(MEAN, STD, CPU, torch.float32, True), 0, 100)
    pixels = images(32, 64, 64).to(memory_format=torch.channels_last)
    batch = Batch(pixels, torch.zeros(64), 3, 0, np.arange(64))
    with Kernels() as on_cpu:
        wanted = augment(batch).images
    monkeypatch.setattr(devices, "on_cpu", lambda _: False)
    with Kernels() as off_cpu:
        assert torch.equal(augment(batch).images, wanted)
    assert off_cpu.bytes < 0.8 * on_cpu.bytes
    assert off_cpu.count < 0.8 * on_cpu.count
