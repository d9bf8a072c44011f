"""An image file and what it carries, read together."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Decoder
from rescue_cli.sections.annotations import Target, required_size
from rescue_cli.sections.data.decode import (
    OTHER_EXIF,
    Needed,
    decode_image,
    describe_error,
    height_and_width,
    image_size,
)
from rescue_cli.sections.data.rgb import Reading, UnknownRangeError
from rescue_cli.sections.data.splits import Files


def read_file(
    files: Files, index: int, decoder: Decoder, reading: Reading, needed: Needed | None = None
) -> Any:
    """As `decode_image`, for an image of a split, which may lie in a shard."""
    data = files.names.read(index)
    try:
        return decode_image(data, decoder, reading, needed)
    except UnknownRangeError as error:
        raise DataError(f"{files.names.place(index)}: {error}") from None


def read_sample(
    files: Files, index: int, decoder: Decoder, reading: Reading, needed: Needed | None = None
) -> tuple[Any, Target]:
    """The decoded image, as `read_file` has it, and its target.

    Raises what PIL raises for a broken image, and `DataError` where image and target do not fit.
    """
    path = files.names.path(index)
    image = read_file(files, index, decoder, reading, needed)
    try:
        target = files.target(index)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{describe_error(error)}. Repair the mask of {path}.") from None
    size, required = height_and_width(image), required_size(target)
    if required is None or required == size:
        return image, target
    sizes = " x ".join(map(str, required)), " x ".join(map(str, size))
    is_turned = required == image_size(path, OTHER_EXIF[reading.exif])
    cure = f"set data.exif={OTHER_EXIF[reading.exif]}" if is_turned else "Bring them to one size"
    raise DataError(
        f"{path}: its mask is {sizes[0]} pixels, the image {sizes[1]}"
        f"{f' with data.exif={reading.exif}: ' if is_turned else '. '}{cure}."
    )


def as_tensor(image: Any) -> Tensor:
    """A decoded image whole: (3, height, width) uint8, channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
