"""Bytes of an image file to uint8 pixels of the size that the network sees."""

import io
import math
import os
import struct
import warnings
from collections.abc import Callable
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
from rescue_cli.sections.data.rgb import RangeUnknown, Reading, to_rgb
from rescue_cli.sections.data.splits import Pixels

Resize = Literal["shorter", "squash"]
# What PIL raises for a broken image; the last for one that claims an absurd number of pixels
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
LARGEST = Image.MAX_IMAGE_PIXELS or 2**62  # beyond it PIL warns; it refuses twice as many
_PIL = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
DEFAULT_READING = Reading()
OTHERWISE: dict[Exif, Exif] = {"applied": "ignored", "ignored": "applied"}
UPRIGHT = 1
# EXIF's orientation -> what turns the stored pixels upright, in PIL and of an array
_TURNS: dict[int, tuple[Image.Transpose, Callable[[Pixels], Pixels]]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda a: a[:, ::-1]),
    3: (Image.Transpose.ROTATE_180, lambda a: a[::-1, ::-1]),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda a: a[::-1]),
    5: (Image.Transpose.TRANSPOSE, lambda a: a.swapaxes(0, 1)),
    6: (Image.Transpose.ROTATE_270, lambda a: a[::-1].swapaxes(0, 1)),
    7: (Image.Transpose.TRANSVERSE, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    8: (Image.Transpose.ROTATE_90, lambda a: a.swapaxes(0, 1)[::-1]),
}
LYING = (5, 6, 7, 8)  # orientations that swap height and width
# Where a PNG says its orientation, but in eXIf; all may follow the pixels
_EXIF_IN_TEXT = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords of text chunks
KEYWORD = 80  # bytes of a text chunk that hold its keyword
# Raw lines between ours; an image that is too large is an error of its own
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def reason_of(error: BaseException) -> str:
    """Why a file could not be read, without what only Python knows of it."""
    if isinstance(error, UnidentifiedImageError):
        return "no kind of image that is known"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than the {2 * LARGEST:,} pixels that are read at most"
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split()) or type(error).__name__


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8. 1 where the file says none, and of TIFF, which PIL turns when it reads it."""
    if image.format == "TIFF":
        return UPRIGHT
    try:
        said = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return said if said in _TURNS else UPRIGHT
    except Exception:  # what PIL raises for broken EXIF has no common base
        return UPRIGHT


def image_size(path: Path, exif: Exif) -> tuple[int, int]:
    """(height, width) of the image as it is read with `data.exif`, by the file's header.

    Raises what PIL raises.
    """
    with Image.open(path) as image:
        height, width = image.height, image.width
        if exif == "ignored" or (image.format == "PNG" and not _png_has_exif(path)):
            return height, width
        return (width, height) if orientation(image) in LYING else (height, width)


def _png_has_exif(path: Path) -> bool:
    """By the heads of its chunks: PIL would read the pixels to find those that follow them."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            begins = file.read(min(length, KEYWORD))
            if kind == b"eXIf" or begins.startswith(_EXIF_IN_TEXT):
                return True
            file.seek(length - len(begins) + 4, os.SEEK_CUR)
    return False


def read_image(path: Path, decoder: Decoder, reading: Reading) -> Any:
    """A PIL image where PIL is to crop and resize, else an array (height, width, 3) uint8.

    Raises `DataError` where the recipe must say more, and what PIL raises for a broken file.
    """
    try:
        return decode(path.read_bytes(), decoder, reading)
    except RangeUnknown as error:
        raise DataError(f"{path}: {error}") from None


def decode(data: bytes, decoder: Decoder, reading: Reading = DEFAULT_READING) -> Any:
    """As `read_image`, of a file's bytes; raises `RangeUnknown`, and what PIL raises."""
    return pil_image(data, reading) if decoder == "pil" else pixels(data, decoder, reading)


def pil_image(data: bytes, reading: Reading = DEFAULT_READING) -> Image.Image:
    """The image in RGB."""
    with Image.open(io.BytesIO(data)) as image:
        turn = orientation(image) if reading.exif == "applied" else UPRIGHT
        found = to_rgb(image, data, reading)
    return found if turn == UPRIGHT else found.transpose(_TURNS[turn][0])


def pixels(data: bytes, decoder: Decoder, reading: Reading = DEFAULT_READING) -> Pixels:
    """The image (height, width, 3) uint8. `fast` is libjpeg-turbo, with PIL for what it refuses.

    CMYK, whose conversion to RGB differs, and what is absurdly large go to PIL as well.

    Raises what PIL raises where PIL cannot read the file either.
    """
    if decoder == "fast" and data[:2] == b"\xff\xd8":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space in ("RGB", "YCbCr", "Gray") and height * width <= LARGEST:
                decoded: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
                return decoded if reading.exif == "ignored" else _turned(decoded, data)
        except ValueError:
            pass  # truncated or with warnings: PIL decides
    return np.array(pil_image(data, reading))  # a copy: torch warns of what it may not write


def _turned(stored: Pixels, data: bytes) -> Pixels:
    """The pixels of a JPEG file upright."""
    if b"Exif" not in data and b"tiff:Orientation" not in data:
        return stored
    with Image.open(io.BytesIO(data)) as image:
        turn = orientation(image)
    if turn == UPRIGHT:
        return stored
    found: Pixels = np.ascontiguousarray(_TURNS[turn][1](stored))
    return found


def size_of(image: Pixels | Image.Image) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    return image.shape[0], image.shape[1]


def crop_resize(
    image: Pixels | Image.Image, box: Box, height: int, width: int, interpolation: Interpolation
) -> Tensor:
    """The box of the image resized with antialiasing, (3, height, width) uint8, channels last.

    A PIL image is resized by PIL; an array by torch's uint8 kernels, within one grey level of
    PIL's (bicubic: 99.9 % of the values).
    """
    if isinstance(image, Image.Image):
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        cut = image.crop(edges).resize((width, height), _PIL[interpolation])
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    # Only where all four strides are those of channels last (numpy's [None] has a stride of 0) does
    # torch resize without making planes of the image: 0.15 ms instead of 0.23, the copy 0.01
    planes = torch.from_numpy(np.array(part)).unsqueeze(0).permute(0, 3, 1, 2)
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
    """Shorter side to floor(size / crop), then the centre: (3, size, size) uint8, as in timm.

    `squash` resizes both sides to that length.
    """
    height, width = size_of(image)
    short = math.floor(size / crop)
    if resize == "squash":
        resized = (short, short)
    elif height < width:
        resized = (short, int(short * width / height))
    else:
        resized = (int(short * height / width), short)
    top, left = (round((side - size) / 2) for side in resized)
    if max(resized) > ASPECT * min(resized):
        return resized_part(image, resized, Box(top, left, size, size), interpolation)
    whole: Any = crop_resize(image, Box(0, 0, height, width), *resized, interpolation)
    centre: Tensor = whole[:, top : top + size, left : left + size]
    return centre


def resized_part(
    image: Pixels | Image.Image, size: tuple[int, int], box: Box, interpolation: Interpolation
) -> Tensor:
    """What `box` cuts out of the image resized to `size`, without the rest, by PIL."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    down, along = image.height / size[0], image.width / size[1]
    edges = (box.left * along, box.top * down)
    ends = ((box.left + box.width) * along, (box.top + box.height) * down)
    part = image.resize((box.width, box.height), _PIL[interpolation], box=(*edges, *ends))
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)
