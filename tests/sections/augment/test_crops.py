"""Crops that are cut before pixels are resized, against scaling first and cropping then."""

import numpy as np
import pytest
from PIL import Image

from rescue_cli.errors import UsageError
from rescue_cli.sections.augment import Operation
from rescue_cli.sections.augment.crops import scale_jitter_crop, squash_crop
from rescue_cli.sections.data.decode import Box, centre_crop, crop_resize

DRAWS = np.random.default_rng(0).random((4000, 3), dtype=np.float32)


def boxes(
    crop: Operation, height: int, width: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([crop.apply(height, width, draws) for draws in DRAWS])


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


def smooth(width: int, height: int) -> Image.Image:
    """A picture of waves, on which a resizing's details are below a grey level."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 80 + k) * np.cos(y / 60 - k) * 100 + 128 for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 640), (256, 256)])
def test_a_squashed_crop_is_a_crop_of_the_squashed_image(width: int, height: int) -> None:
    image = smooth(width, height)
    whole = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)).astype(int)
    crop = squash_crop(side=256, size=230)
    for draws in DRAWS[:20, :2]:
        box = Box(*crop.apply(height, width, draws))
        found = crop_resize(image, box, 230, 230, "bilinear").permute(1, 2, 0).numpy().astype(int)
        top, left = round(box.top / height * 256), round(box.left / width * 256)
        wanted = whole[top : top + 230, left : left + 230]
        assert np.abs(found - wanted).max() <= 3, "a box begins within half a pixel of a whole one"


def test_a_squashed_crop_reaches_every_place() -> None:
    crop = squash_crop(side=256, size=230)
    found = np.array([crop.apply(375, 500, draws[:2]) for draws in DRAWS])
    assert (found[:, 2:] == (round(375 * 230 / 256), round(500 * 230 / 256))).all()
    assert found[:, 0].min() == found[:, 1].min() == 0
    assert (found[:, 0] + found[:, 2]).max() == 375
    assert (found[:, 1] + found[:, 3]).max() == 500
    with pytest.raises(UsageError, match=r"squash-crop\).size: 230 must not be above side \(200\)"):
        squash_crop(side=200, size=230)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 640), (256, 256)])
def test_a_squashed_test_image_is_pils(width: int, height: int) -> None:
    image = smooth(width, height)
    whole = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR))
    found = centre_crop(image, 230, 230 / 256, "bilinear", "squash").permute(1, 2, 0).numpy()
    assert np.array_equal(found, whole[13:243, 13:243])
    with_pixels = centre_crop(np.asarray(image), 230, 230 / 256, "bilinear", "squash")
    differences = np.abs(with_pixels.permute(1, 2, 0).numpy().astype(int) - found.astype(int))
    assert differences.max() <= 1
