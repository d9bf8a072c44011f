"""Random erasing against timm's on thousands of images."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from rescue_cli.rng import uniform
from rescue_cli.sections.augment.erasing import erased_boxes, random_erasing

AREA, RATIO = (0.02, 0.3333), (0.3, 3.3333)
N = 5000


def erase(images: Tensor, p: float, mode: Any, seed: int = 0) -> tuple[Tensor, list[Any]]:
    """The images after the operation, and (row, top, left, height, width) of what it erased."""
    op = random_erasing(p=p, mode=mode, area=AREA, ratio=RATIO)
    tried, colours = op.plan(uniform(seed, "augment", 0, 0, (len(images), op.columns)))
    found = op.apply(images.clone(), tried, torch.from_numpy(colours))
    return found, erased_boxes(tried, *images.shape[-2:])


def zeroed(image: Tensor) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the rectangle that is 0."""
    rows = (image[0] == 0).any(1).nonzero().flatten()
    columns = (image[0] == 0).any(0).nonzero().flatten()
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


def test_rectangles_are_distributed_as_timms() -> None:
    images = torch.ones(N, 1, 64, 48)
    ours, _ = erase(images, 0.25, "const")
    torch.manual_seed(0)
    timms: Any = RandomErasing(  # type: ignore[no-untyped-call]
        0.25, *AREA, *RATIO, mode="const", device="cpu"
    )
    theirs = timms(images.clone())
    counts, shapes = [], []
    for found in (ours, theirs):
        erased = (found == 0).flatten(1).any(1)
        counts.append([int(erased.sum()), int((~erased).sum())])
        shapes.append(np.array([zeroed(image) for image in found[erased]]))
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    assert abs(counts[0][0] / N - 0.25) < 4 * 0.43 / np.sqrt(N)
    for column in range(4):
        assert stats.ks_2samp(shapes[0][:, column], shapes[1][:, column]).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_only_the_rectangle_changes_and_to_what_the_mode_says(
    mode: str, channels_last: bool
) -> None:
    torch.manual_seed(1)
    images = torch.full((200, 3, 40, 56), 9.0)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    found, rectangles = erase(images, 0.5, mode)
    assert 60 < len(rectangles) < 140
    colours = []
    for row, top, left, height, width in rectangles:
        region = found[row, :, top : top + height, left : left + width].clone()
        found[row, :, top : top + height, left : left + width] = 9.0
        share = height * width / (40 * 56)
        assert 0.015 < share < 0.36
        assert 0.2 < height / width < 4.5
        if mode == "const":
            assert not region.any()
        elif mode == "rand":
            assert torch.equal(region.amin((1, 2)), region.amax((1, 2)))
            colours += region[:, 0, 0].tolist()
        else:
            colours += region.flatten()[::17].tolist()
    assert torch.equal(found, images), "nothing else changed"
    if colours:
        assert stats.kstest(colours, stats.norm.cdf).pvalue > 1e-3


def test_noise_comes_from_the_devices_generator_that_the_engine_seeds() -> None:
    images = torch.zeros(20, 3, 32, 32)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(erase(images, 1.0, "pixel")[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_where_no_try_fits_the_image_stays_as_it_is() -> None:
    """As in timm a rectangle must be smaller than the image on both sides."""
    images = torch.ones(50, 3, 1, 40)
    found, rectangles = erase(images, 1.0, "const")
    assert all(height == 0 for _, _, _, height, _ in rectangles), "rounded down to nothing"
    assert torch.equal(found, images)
