"""Crops that are cut before pixels are resized, against scaling first and cropping then."""

import numpy as np
import pytest

from rescue_cli.augment import FileCrop
from rescue_cli.augment.crops import scale_jitter_crop
from rescue_cli.errors import UsageError

DRAWS = np.random.default_rng(0).random((4000, 3), dtype=np.float32)


def boxes(
    crop: FileCrop, height: int, width: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([crop.box(height, width, draws) for draws in DRAWS])


def test_a_crop_of_224_from_a_short_side_of_256_to_480_pixels() -> None:
    found = boxes(scale_jitter_crop(short_side=(256, 480), size=224), 375, 500)
    assert (found[:, 2] == found[:, 3]).all()
    lengths = 224 / found[:, 2] * 375  # what the short side of 375 was scaled to
    assert lengths.min() == pytest.approx(256, rel=0.004)
    assert lengths.max() == pytest.approx(480, rel=0.004)
    assert lengths.mean() == pytest.approx(368, rel=0.01)


def test_every_place_inside_the_image_is_reached_and_none_outside() -> None:
    found = boxes(scale_jitter_crop(short_side=(256, 480), size=224), 375, 500)
    top, left, side = found[:, 0], found[:, 1], found[:, 2]
    assert top.min() == left.min() == 0
    assert (top + side).max() == 375
    assert (left + side).max() == 500
    middle = (top + side / 2).mean(), (left + side / 2).mean()
    assert middle == pytest.approx((187.5, 250), rel=0.02)


def test_the_same_length_everywhere_is_a_plain_random_crop() -> None:
    found = boxes(scale_jitter_crop(short_side=(256, 256), size=256), 300, 400)
    assert (found[:, 2] == 300).all()
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("short_side", [(200, 480), (480, 256)])
def test_a_range_that_falls_or_is_below_the_size_is_refused(short_side: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"scale-jitter-crop\).short_side"):
        scale_jitter_crop(short_side=short_side, size=224)
