"""Pixels of any kind to 8 bits of RGB: deep, transparent, of a palette, of four inks."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rescue_cli.recipe import DataKeys
from rescue_cli.recipe.sections import Background, Exif

COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value
SIXTEEN = 2**16 - 1
PNG = b"\x89PNG"
DEEP = (b"\x10\x02", b"\x10\x04", b"\x10\x06")  # of a PNG: 16 bits, and several channels


@dataclass(frozen=True)
class Reading:
    """How a file's pixels become RGB: the keys of `data` of the same names.

    `exif`: whether its orientation is applied. `background`: what lies under transparent pixels;
    `ignored` leaves the alpha channel out, as timm's and torchvision's loaders do. `range`: the
    values that become black and white, of files with more than 8 bits.
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
        """The keys that a protocol tells: those that say anything but the default."""
        told = {"exif": self.exif, "background": self.background, "range": self.range}
        return {key: told[key] for key in told if told[key] != getattr(Reading, key)}


class RangeUnknown(ValueError):
    """Of pixels of which the file does not say which value is white."""


def to_rgb(image: Image.Image, data: bytes, reading: Reading) -> Image.Image:
    """The image in RGB, 8 bits a channel; `data` is its file.

    Raises `RangeUnknown`, and what PIL raises.
    """
    if image.mode[0] in "IF":
        return _on_background(*_of_one_channel(image, data, reading), reading.background)
    _check_colours(image, data, reading)
    _scale_clear(image, data)
    if reading.background == "ignored" or not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return _on_background(image, image, reading.background)


def _scale_clear(image: Image.Image, data: bytes) -> None:
    """Brings the value that a PNG calls transparent, which has the file's bits, to PIL's 8."""
    clear = image.info.get("transparency")
    bits = data[24] if data[:4] == PNG else 8
    if isinstance(clear, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif isinstance(clear, int) and image.mode == "L":
        image.info["transparency"] = clear * 255 // (2**bits - 1)


def _on_background(
    image: Image.Image, alpha: Image.Image | None, background: Background
) -> Image.Image:
    """RGB, where `alpha` (or an RGBA image's own) is 0 the background."""
    if alpha is None or background == "ignored":
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, COLOURS[background])
    canvas.paste(image, mask=alpha)
    return canvas


def _of_one_channel(
    image: Image.Image, data: bytes, reading: Reading
) -> tuple[Image.Image, Image.Image | None]:
    """A grey image of more than 8 bits in 8, and its alpha where a PNG names a clear value."""
    values = np.array(image)
    grey = _scaled(values, *_ends(image, data, values, reading))
    if image.format == "TIFF" and _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        grey = 255 - grey  # which PIL does of 8 bits, and not of more
    clear = image.info.get("transparency")
    alpha = (
        None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype("B"))
    )
    return Image.fromarray(grey), alpha


def _tag(image: Any, number: int, otherwise: Any) -> Any:
    return image.tag_v2.get(number, otherwise)


def _ends(image: Image.Image, data: bytes, values: Any, reading: Reading) -> tuple[float, float]:
    """The values that become black and white."""
    return reading.range or (0.0, float(white(image, data, values)[0]))


def _scaled(values: Any, low: float, high: float) -> Any:
    """uint8: 0 at `low` and 255 at `high`, rounded; what is not a number is black."""

    def grey(some: Any) -> Any:
        return np.nan_to_num(np.clip((some - low) / (high - low), 0, 1) * 255).round().astype("B")

    if values.dtype.itemsize == 2:
        return grey(np.arange(2**16, dtype=np.float64))[values]
    found = np.empty(values.shape, dtype=np.uint8)
    for row, line in enumerate(values):  # a line at a time: no second image of 64 bits a pixel
        found[row] = grey(line.astype(np.float64))
    return found


def white(image: Image.Image, data: bytes, values: Any) -> tuple[int, str]:
    """The value that is white, and what says so: the bits that the file has, or uses.

    A PNG says in sBIT how many it uses. By the standard its values are then stretched to 16 bits,
    but many are not: where none is above what sBIT's bits hold, that is white. Raises
    `RangeUnknown`.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "32-bit floats" if image.mode == "F" else "32-bit or signed integers"
        raise RangeUnknown(
            f"its pixels are {kind}, from {np.nanmin(values):g} to {np.nanmax(values):g}, and the "
            "file does not say which are black and white. Give data.range=[BLACK,WHITE]."
        )
    if image.format == "TIFF":
        bits = min(16, int(max(_tag(image, BITS_PER_SAMPLE, (16,)))))
        return 2**bits - 1, f"{bits} bits"
    used = significant_bits(data)
    if used is not None and used < 16 and values.max(initial=0) < 2**used:
        return 2**used - 1, "its sBIT"
    return SIXTEEN, "16 bits"


def significant_bits(data: bytes) -> int | None:
    """What a PNG's chunk sBIT says, of the channel with the most; None where it says nothing."""
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


def _check_colours(image: Image.Image, data: bytes, reading: Reading) -> None:
    """PIL keeps the upper 8 bits of each channel, which is right where white is 65535.

    Raises `RangeUnknown` where it is another value.
    """
    bits = bits_of_colours(image, data)
    if bits == 8:
        return
    if reading.range is not None:
        why = "data.range needs all"
    elif (used := significant_bits(data) or bits) < bits and _highest(image) < 2 ** (used - 8):
        why = f"no value is above what the {used} bits of its sBIT hold"
    else:
        return
    raise RangeUnknown(
        f"has {bits} bits in each of its channels, of which the upper 8 are read, and {why}. "
        "Write it with 8 bits a channel."
    )


def _highest(image: Image.Image) -> int:
    return max(int(np.max(channel.getextrema())) for channel in image.split()[:3])


def bits_of_colours(image: Image.Image, data: bytes) -> int:
    """How many bits a channel has, of a file with several."""
    if image.format == "TIFF":
        return int(max(_tag(image, BITS_PER_SAMPLE, (8,))))
    return 16 if data[:4] == PNG and data[24:26] in DEEP else 8
