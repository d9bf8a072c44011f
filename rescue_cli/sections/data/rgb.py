"""Converts images of any kind to 8-bit RGB: 16-bit, transparent, palette, CMYK."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rescue_cli.recipe import DataKeys
from rescue_cli.recipe.sections import Background, Exif

COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
MAX_16_BITS = 2**16 - 1
PNG = b"\x89PNG"
DEEP_PNG = (b"\x10\x02", b"\x10\x04", b"\x10\x06")  # of a PNG: 16 bits, and several channels


@dataclass(frozen=True)
class Reading:
    """How a file's pixels become RGB; the fields are the keys of `data` with the same names.

    `exif`: whether EXIF's orientation is applied. `background`: the colour under transparent
    pixels; `ignored` drops the alpha channel, as timm's and torchvision's loaders do. `range`: the
    values that become black and white in files with more than 8 bits.
    """

    exif: Exif = "ignored"
    background: Background = "white"
    range: tuple[float, float] | None = None

    @classmethod
    def of(cls, keys: DataKeys) -> "Reading":
        """As the keys of `data` say."""
        return cls(keys.exif, keys.background, keys.range)

    @property
    def unusual(self) -> dict[str, Any]:
        """The keys with another value than the default, which the evaluation protocol records."""
        options = {"exif": self.exif, "background": self.background, "range": self.range}
        return {key: options[key] for key in options if options[key] != getattr(Reading, key)}


class UnknownRangeError(ValueError):
    """Raised where a file does not say which pixel value is white."""


def to_rgb(image: Image.Image, data: bytes, reading: Reading) -> Image.Image:
    """The image in RGB, 8 bits per channel; `data` is the file's content.

    Raises `UnknownRangeError`, and what PIL raises.
    """
    if image.mode[0] in "IF":
        return _paste_on_background(*_grey_to_8_bits(image, data, reading), reading.background)
    _check_channel_bits(image, data, reading)
    _scale_transparency(image, data)
    if reading.background == "ignored" or not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return _paste_on_background(image, image, reading.background)


def _scale_transparency(image: Image.Image, data: bytes) -> None:
    """Scales a PNG's transparent value, which has the file's bit depth, to PIL's 8 bits."""
    transparent = image.info.get("transparency")
    bits = data[24] if data[:4] == PNG else 8
    if isinstance(transparent, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif isinstance(transparent, int) and image.mode == "L":
        image.info["transparency"] = transparent * 255 // (2**bits - 1)


def _paste_on_background(
    image: Image.Image, alpha: Image.Image | None, background: Background
) -> Image.Image:
    """RGB, with the background where `alpha` (or an RGBA image's own) is 0."""
    if alpha is None or background == "ignored":
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, COLOURS[background])
    canvas.paste(image, mask=alpha)
    return canvas


def _grey_to_8_bits(
    image: Image.Image, data: bytes, reading: Reading
) -> tuple[Image.Image, Image.Image | None]:
    """A grey image scaled to 8 bits, and its alpha where a PNG names a transparent value."""
    values = np.array(image)
    grey = _scale_to_8_bits(values, *_black_and_white(image, data, values, reading))
    if image.format == "TIFF" and _tiff_tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        grey = 255 - grey  # PIL inverts 8-bit images itself, but not deeper ones
    transparent = image.info.get("transparency")
    alpha = (
        None
        if transparent is None
        else Image.fromarray(np.where(values == transparent, 0, 255).astype("B"))
    )
    return Image.fromarray(grey), alpha


def _tiff_tag(image: Any, number: int, otherwise: Any) -> Any:
    return image.tag_v2.get(number, otherwise)


def _black_and_white(
    image: Image.Image, data: bytes, values: Any, reading: Reading
) -> tuple[float, float]:
    """The values that become black and white."""
    return reading.range or (0.0, float(white_level(image, data, values)[0]))


def _scale_to_8_bits(values: Any, low: float, high: float) -> Any:
    """uint8: 0 at `low` and 255 at `high`, rounded; NaN is black."""

    def grey(part: Any) -> Any:
        return np.nan_to_num(np.clip((part - low) / (high - low), 0, 1) * 255).round().astype("B")

    if values.dtype.itemsize == 2:
        return grey(np.arange(2**16, dtype=np.float64))[values]
    scaled = np.empty(values.shape, dtype=np.uint8)
    for row, line in enumerate(values):  # row by row: no 64-bit copy of the whole image
        scaled[row] = grey(line.astype(np.float64))
    return scaled


def white_level(image: Image.Image, data: bytes, values: Any) -> tuple[int, str]:
    """The value that is white, and its source: the bits that the file has, or uses.

    A PNG's sBIT chunk says how many bits it uses. The standard has the values stretched to 16 bits,
    but many files do not: if no value exceeds sBIT's bits, their maximum is white. Raises
    `UnknownRangeError`.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "32-bit floats" if image.mode == "F" else "32-bit or signed integers"
        raise UnknownRangeError(
            f"its pixels are {kind}, from {np.nanmin(values):g} to {np.nanmax(values):g}, and the "
            "file does not say which values are black and white. Give data.range=[BLACK,WHITE]."
        )
    if image.format == "TIFF":
        bits = min(16, int(max(_tiff_tag(image, BITS_PER_SAMPLE, (16,)))))
        return 2**bits - 1, f"{bits} bits"
    used = significant_bits(data)
    if used is not None and used < 16 and values.max(initial=0) < 2**used:
        return 2**used - 1, "its sBIT"
    return MAX_16_BITS, "16 bits"


def significant_bits(data: bytes) -> int | None:
    """The largest number of bits in a PNG's sBIT chunk, or None."""
    if data[:4] != PNG:
        return None
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"sBIT" and length:
            return max(data[at + 8 : at + 8 + length], default=None)
        if kind in (b"PLTE", b"IDAT"):
            return None
        at += 12 + length
    return None


def _check_channel_bits(image: Image.Image, data: bytes, reading: Reading) -> None:
    """Raises `UnknownRangeError` for a colour image whose white is not 65535.

    PIL keeps the upper 8 bits of each channel, which is right only for that white.
    """
    bits = bits_per_channel(image, data)
    if bits == 8:
        return
    if reading.range is not None:
        why = "data.range needs all of them"
    elif (used := significant_bits(data) or bits) < bits and _highest_value(image) < 2 ** (
        used - 8
    ):
        why = f"no value exceeds the {used} bits of its sBIT"
    else:
        return
    raise UnknownRangeError(
        f"has {bits} bits per channel, of which only the upper 8 are read, but {why}. "
        "Convert it to 8 bits per channel."
    )


def _highest_value(image: Image.Image) -> int:
    return max(int(np.max(channel.getextrema())) for channel in image.split()[:3])


def bits_per_channel(image: Image.Image, data: bytes) -> int:
    """The bits per channel of a colour image."""
    if image.format == "TIFF":
        return int(max(_tiff_tag(image, BITS_PER_SAMPLE, (8,))))
    return 16 if data[:4] == PNG and data[24:26] in DEEP_PNG else 8
