"""Random crops that are taken when a file is decoded, before resizing."""

import math

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, Positive, PositiveInt
from rescue_cli.rng import Floats
from rescue_cli.sections.augment.operations import Operation

TRIES = 10


def random_resized_crop(
    *,
    scale: tuple[Fraction, Fraction],
    ratio: tuple[Positive, Positive],
) -> Operation:
    """A box with a random share of the area and a random aspect ratio (Szegedy et al. 2015).

    `scale`: range of the share; `ratio`: range of width / height. Ten tries as in torchvision and
    timm, then the largest central box with an allowed ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])

    def box(height: int, width: int, draws: Floats) -> tuple[int, int, int, int]:
        for area_draw, ratio_draw, top_draw, left_draw in draws.reshape(TRIES, 4).tolist():
            area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
            aspect = math.exp(low + (high - low) * ratio_draw)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w
        w, h = width, height
        if width / height < ratio[0]:
            h = max(1, round(width / ratio[0]))
        elif width / height > ratio[1]:
            w = max(1, round(height * ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w

    return Operation(TRIES * 4, "file", box)


def squash_crop(*, side: PositiveInt, size: PositiveInt) -> Operation:
    """A random square of `size` pixels from the image squashed to a square of `side` pixels.

    That is how Caffe's ImageNet databases were made (BVLC/caffe, examples/imagenet, RESIZE=true).
    The equivalent box is cut from the original image, then resized.
    """
    if size > side:
        raise UsageError(f"augment (squash-crop).size: {size} must not be above side ({side}).")

    def box(height: int, width: int, draws: Floats) -> tuple[int, int, int, int]:
        top_draw, left_draw = draws.tolist()
        h, w = (max(1, round(size / side * length)) for length in (height, width))
        return int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w

    return Operation(2, "file", box)


def scale_jitter_crop(
    *, short_side: tuple[PositiveInt, PositiveInt], size: PositiveInt
) -> Operation:
    """A random square of `size` pixels from the image with its shorter side scaled at random.

    The length of the shorter side is an integer in the range `short_side` (He et al. 2015, 3.4;
    Simonyan and Zisserman 2015). The equivalent box is cut from the original image, then resized.
    """
    low, high = short_side
    if not size <= low <= high:
        raise UsageError(
            f"augment (scale-jitter-crop).short_side: [{low}, {high}] must be in increasing order "
            f"and not below size ({size})."
        )

    def box(height: int, width: int, draws: Floats) -> tuple[int, int, int, int]:
        scale_draw, top_draw, left_draw = draws.tolist()
        length = low + int(scale_draw * (high - low + 1))
        side = max(1, round(size / length * min(height, width)))
        return int(top_draw * (height - side + 1)), int(left_draw * (width - side + 1)), side, side

    return Operation(3, "file", box)
