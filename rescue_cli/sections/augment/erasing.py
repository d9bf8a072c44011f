"""Random erasing (Zhong et al. 2017) as in timm: one rectangle of a normalised image."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rescue_cli.recipe.schema import Fraction, Positive
from rescue_cli.rng import Floats
from rescue_cli.sections.augment.named_operations import box_muller
from rescue_cli.sections.augment.operations import Operation

TRIES = 10
COLOUR_COLUMN = 1 + 2 * TRIES + 2  # the first column of the draws for the colour


class ErasingDraws(NamedTuple):
    """Ten candidates per image: shares of the area and ratios height / width, (n, 10) each."""

    areas: NDArray[np.float64]
    ratios: NDArray[np.float64]
    corners: NDArray[np.float64]  # (n, 2): top and left as shares of the possible positions
    erased: NDArray[np.bool_]  # (n,)


def random_erasing(
    *,
    p: Fraction,
    mode: Literal["pixel", "const", "rand"],
    area: tuple[Fraction, Fraction],
    ratio: tuple[Positive, Positive],
) -> Operation:
    """With probability `p` overwrites a rectangle with a random share of the area and ratio.

    Ten tries to find one smaller than the image. `const` writes 0, the mean colour; `rand` one
    normal colour; `pixel` normal noise from the device's generator, which the engine seeds for each
    micro-batch.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])

    def plan(draws: Floats) -> tuple[Any, ...]:
        uniform = draws.astype(np.float64)
        tries = uniform[:, 1 : 1 + 2 * TRIES].reshape(-1, TRIES, 2)
        tried = ErasingDraws(
            area[0] + (area[1] - area[0]) * tries[..., 0],
            np.exp(low + (high - low) * tries[..., 1]),
            uniform[:, 1 + 2 * TRIES : COLOUR_COLUMN],
            uniform[:, 0] < p,
        )
        return tried, box_muller(draws[:, COLOUR_COLUMN::2], draws[:, COLOUR_COLUMN + 1 :: 2])

    def apply(images: Tensor, tried: ErasingDraws, colours: Tensor) -> Tensor:
        for row, top, left, height, width in erased_boxes(tried, *images.shape[-2:]):
            region = images[row, :, top : top + height, left : left + width]
            if mode == "pixel":
                region.normal_()
            elif mode == "rand":
                region.copy_(colours[row, : len(region), None, None].expand_as(region))
            else:
                region.zero_()
        return images

    columns = COLOUR_COLUMN + 2 * 3
    return Operation(columns, "normalised", apply, plan, from_device=mode == "pixel")


def erased_boxes(
    tried: ErasingDraws, height: int, width: int
) -> list[tuple[int, int, int, int, int]]:
    """(row, top, left, height, width) in pixels for each image with a rectangle."""
    areas = tried.areas * (height * width)
    heights = np.rint(np.sqrt(areas * tried.ratios)).astype(np.int64)
    widths = np.rint(np.sqrt(areas / tried.ratios)).astype(np.int64)
    fits = (heights < height) & (widths < width)
    first = fits.argmax(1)
    rows = np.flatnonzero(tried.erased & fits.any(1))
    h, w = heights[rows, first[rows]], widths[rows, first[rows]]
    top, left = (
        (tried.corners[rows] * np.stack([height - h + 1, width - w + 1], 1)).astype(np.int64).T
    )
    return list(zip(*(a.tolist() for a in (rows, top, left, h, w)), strict=True))
