"""Decodes image files to uint8 pixels, crops and resizes them."""

import io
import math
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Decoder, Exif, Interpolation
from rescue_cli.sections.annotations import ASPECT
from rescue_cli.sections.data.jpeg_region import region_decoder
from rescue_cli.sections.data.rgb import Reading, UnknownRangeError, to_rgb
from rescue_cli.sections.data.splits import Pixels

Resize = Literal["shorter", "squash"]
# What PIL raises for a corrupt image; the last for one that claims too many pixels
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**62  # PIL warns above it and refuses twice as many
_PIL = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
DEFAULT_READING = Reading()
LARGEST_PART = 0.6  # of the pixels: above it, the whole image takes less time than a part of it
OTHER_EXIF: dict[Exif, Exif] = {"applied": "ignored", "ignored": "applied"}
UPRIGHT = 1
# EXIF orientation -> what turns the stored pixels upright, for PIL images and for arrays
_ORIENTATIONS: dict[int, tuple[Image.Transpose, Callable[[Pixels], Pixels]]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda a: a[:, ::-1]),
    3: (Image.Transpose.ROTATE_180, lambda a: a[::-1, ::-1]),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda a: a[::-1]),
    5: (Image.Transpose.TRANSPOSE, lambda a: a.swapaxes(0, 1)),
    6: (Image.Transpose.ROTATE_270, lambda a: a[::-1].swapaxes(0, 1)),
    7: (Image.Transpose.TRANSVERSE, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    8: (Image.Transpose.ROTATE_90, lambda a: a.swapaxes(0, 1)[::-1]),
}
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap height and width
# Keywords of text chunks where a PNG may hold EXIF beside eXIf; all may follow the pixels
_EXIF_IN_TEXT = (b"Raw profile type exif", b"XML:com.adobe.xmp")
KEYWORD_BYTES = 80  # enough to hold a text chunk's keyword
# PIL's warnings would break the progress display; an image that is too large is an error anyway
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def within(self, other: "Box") -> "Box":
        """The same pixels, counted from the corner of `other`."""
        return Box(self.top - other.top, self.left - other.left, self.height, self.width)


@dataclass(frozen=True)
class Part:
    """The decoded pixels (height, width, 3) uint8 of a box of an image, and the image's size."""

    pixels: Pixels
    box: Box
    size: tuple[int, int]  # height, width


Needed = Callable[[int, int], Box]  # height and width of an image -> the part that is needed


def bounding_box(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of them."""
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom = max(box.top + box.height for box in boxes)
    right = max(box.left + box.width for box in boxes)
    return Box(top, left, bottom - top, right - left)


def describe_error(error: BaseException) -> str:
    """Why a file could not be read, without Python's details."""
    if isinstance(error, UnidentifiedImageError):
        return "not a readable image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * MAX_PIXELS:,} pixels, the most that are read"
    message = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(message.split()) or type(error).__name__


def exif_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, and for TIFF, which PIL turns itself."""
    if image.format == "TIFF":
        return UPRIGHT
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return value if value in _ORIENTATIONS else UPRIGHT
    except Exception:  # PIL's errors for broken EXIF have no common base
        return UPRIGHT


def image_size(path: Path, exif: Exif) -> tuple[int, int]:
    """(height, width) of the image as read with `data.exif`, from the file's header.

    Raises what PIL raises.
    """
    with Image.open(path) as image:
        height, width = image.height, image.width
        if exif == "ignored" or (image.format == "PNG" and not _png_has_exif(path)):
            return height, width
        return (width, height) if exif_orientation(image) in SIDEWAYS else (height, width)


def _png_has_exif(path: Path) -> bool:
    """Looks at the chunk headers: PIL would decode the pixels to find chunks that follow them."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            content = file.read(min(length, KEYWORD_BYTES))
            if kind == b"eXIf" or content.startswith(_EXIF_IN_TEXT):
                return True
            file.seek(length - len(content) + 4, os.SEEK_CUR)
    return False


def read_image(path: Path, decoder: Decoder, reading: Reading) -> Any:
    """A PIL image for the decoder `pil`, an array (height, width, 3) uint8 for `fast`.

    Raises `DataError` where the recipe must set `data.range`, and what PIL raises for a corrupt
    file.
    """
    try:
        return decode_image(path.read_bytes(), decoder, reading)
    except UnknownRangeError as error:
        raise DataError(f"{path}: {error}") from None


def decode_image(
    data: bytes,
    decoder: Decoder,
    reading: Reading = DEFAULT_READING,
    needed: Needed | None = None,
) -> Any:
    """As `read_image`, for a file's bytes; raises `UnknownRangeError`, and what PIL raises.

    Where only a part of the image is `needed`, it may come alone, as a `Part`.
    """
    if decoder == "pil":
        return decode_with_pil(data, reading)
    if needed is not None and (part := _decode_part(data, reading, needed)) is not None:
        return part
    return decode_to_array(data, reading)


def decode_with_pil(data: bytes, reading: Reading = DEFAULT_READING) -> Image.Image:
    """The image in RGB, decoded by PIL; raises as `decode_image`."""
    with Image.open(io.BytesIO(data)) as image:
        orientation = exif_orientation(image) if reading.exif == "applied" else UPRIGHT
        converted = to_rgb(image, data, reading)
    return (
        converted if orientation == UPRIGHT else converted.transpose(_ORIENTATIONS[orientation][0])
    )


def decode_to_array(data: bytes, reading: Reading = DEFAULT_READING) -> Pixels:
    """The image (height, width, 3) uint8, by libjpeg-turbo, and by PIL where that refuses.

    CMYK, whose conversion to RGB differs, and very large images are decoded by PIL as well. Raises
    as `decode_image`.
    """
    if _jpeg_size(data) is not None:
        try:
            decoded: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            return _turn_upright(decoded, _jpeg_orientation(data, reading))
        except ValueError:
            pass  # truncated, or decoded with warnings: PIL decides
    return np.array(decode_with_pil(data, reading))  # a copy: torch warns about read-only arrays


def _decode_part(data: bytes, reading: Reading, needed: Needed) -> Part | None:
    """What is needed of a JPEG file; None where the whole image must be decoded."""
    decode_region, size = region_decoder(), _jpeg_size(data)
    if decode_region is None or size is None or _jpeg_orientation(data, reading) != UPRIGHT:
        return None
    box = needed(*size)
    if box.height * box.width > LARGEST_PART * size[0] * size[1]:
        return None
    pixels = decode_region(data, box.top, box.left, box.height, box.width)
    return None if pixels is None else Part(pixels, box, size)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG file as stored; None where PIL must decode it, or refuse to."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    known = space in ("RGB", "YCbCr", "Gray") and height * width <= MAX_PIXELS
    return (height, width) if known else None


def _jpeg_orientation(data: bytes, reading: Reading) -> int:
    """EXIF's orientation where it is applied."""
    if reading.exif == "ignored" or (b"Exif" not in data and b"tiff:Orientation" not in data):
        return UPRIGHT
    with Image.open(io.BytesIO(data)) as image:
        return exif_orientation(image)


def _turn_upright(stored: Pixels, orientation: int) -> Pixels:
    """The decoded pixels of a JPEG file turned upright."""
    if orientation == UPRIGHT:
        return stored
    upright: Pixels = np.ascontiguousarray(_ORIENTATIONS[orientation][1](stored))
    return upright


def height_and_width(image: Pixels | Part | Image.Image) -> tuple[int, int]:
    """(height, width), of a part's whole image."""
    if isinstance(image, Part):
        return image.size
    if isinstance(image, Image.Image):
        return image.height, image.width
    return image.shape[0], image.shape[1]


def crop_resize(
    image: Pixels | Part | Image.Image,
    box: Box,
    height: int,
    width: int,
    interpolation: Interpolation,
) -> Tensor:
    """Crops `box` and resizes it with antialiasing: (3, height, width) uint8, channels last.

    A PIL image is resized by PIL; an array by torch's uint8 kernels, within one grey level of
    PIL's (bicubic: 99.9 % of the values).
    """
    if isinstance(image, Image.Image):
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        cut = image.crop(edges).resize((width, height), _PIL[interpolation])
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    if isinstance(image, Part):
        box, image = box.within(image.box), image.pixels
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    # Only where all four strides are channels-last (numpy's [None] has stride 0) does torch resize
    # without a conversion to planes: 0.15 ms instead of 0.23, with 0.01 for a copy; and
    # torch warns about read-only arrays
    planes = torch.from_numpy(np.require(part, None, ["C", "W"])).unsqueeze(0).permute(0, 3, 1, 2)
    if (box.height, box.width) == (height, width):
        return planes[0]
    return torch.nn.functional.interpolate(
        planes, (height, width), mode=interpolation, antialias=True, align_corners=False
    )[0]


def centre_crop(
    image: Pixels | Image.Image,
    size: int,
    crop: float,
    interpolation: Interpolation,
    resize: Resize = "shorter",
) -> Tensor:
    """Resizes the shorter side to floor(size / crop) and crops the centre, as timm does.

    `resize="squash"` resizes both sides to that length. Returns (3, size, size) uint8.
    """
    height, width = height_and_width(image)
    short = math.floor(size / crop)
    if resize == "squash":
        resized = (short, short)
    elif height < width:
        resized = (short, int(short * width / height))
    else:
        resized = (int(short * height / width), short)
    top, left = (round((side - size) / 2) for side in resized)
    if max(resized) > ASPECT * min(resized):
        return crop_of_resized(image, resized, Box(top, left, size, size), interpolation)
    whole: Any = crop_resize(image, Box(0, 0, height, width), *resized, interpolation)
    centre: Tensor = whole[:, top : top + size, left : left + size]
    return centre


def crop_of_resized(
    image: Pixels | Image.Image, size: tuple[int, int], box: Box, interpolation: Interpolation
) -> Tensor:
    """The part `box` of the image resized to `size`, without resizing the rest, by PIL."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    down, along = image.height / size[0], image.width / size[1]
    edges = (box.left * along, box.top * down)
    ends = ((box.left + box.width) * along, (box.top + box.height) * down)
    part = image.resize((box.width, box.height), _PIL[interpolation], box=(*edges, *ends))
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)
