"""Image files as people have them: turned, deep, transparent, of four inks, very long."""

import io
import math
import multiprocessing
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin, features

from rescue_cli.recipe.sections import Background, Decoder
from rescue_cli.sections.annotations import Sample
from rescue_cli.sections.augment.annotated import scale_crop
from rescue_cli.sections.data.annotated import Masked, number_classes
from rescue_cli.sections.data.decode import (
    Box,
    centre_crop,
    crop_resize,
    decode_image,
    decode_to_array,
    decode_with_pil,
    describe_error,
    image_size,
)
from rescue_cli.sections.data.rgb import Reading, UnknownRangeError
from rescue_cli.sections.data.splits import FileNames
from rescue_cli.sections.task.segmentation import highest

ORIENTATION = 0x0112
DECODERS: tuple[Decoder, ...] = ("pil", "fast")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "MPO", *(["AVIF"] if features.check("avif") else []))


def colours(height: int = 43, width: int = 61) -> Any:
    """Smooth planes that no turn or mirror leaves as they are."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / width, y * 255 / height, (x + 2 * y) * 255 / (width + 2 * height)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def grey() -> Any:
    return colours()[..., 2]


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned_file(kind: str, orientation: int, image: Image.Image | None = None) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return file_of(image or Image.fromarray(colours()), kind, exif=exif)


def png(values: Any, *chunks: tuple[bytes, bytes], bits: int = 16) -> bytes:
    """A PNG of (height, width) or (height, width, channels); below 8 bits, of packed bytes."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    width = values.shape[1] * 8 // bits if bits < 8 else values.shape[1]
    header = struct.pack(">IIBBBBB", width, values.shape[0], bits, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "B").tobytes() for row in values)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def tiff(data: bytes, bits: int, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A grey TIFF of the size of `grey`, little-endian, in one strip."""
    height, width = grey().shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def shown(data: bytes, **keys: Any) -> Any:
    return np.array(decode_with_pil(data, Reading(**keys))).astype(int)


def near(found: Any, wanted: Any, most: int = 1) -> None:
    wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=-1)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted.astype(int)).max() <= most


# --- orientation ---


@pytest.mark.parametrize("kind", FORMATS)
def test_orientation_is_applied_as_pil_applies_it_by_both_decoders(
    kind: str, tmp_path: Path
) -> None:
    seen = set()
    for orientation in range(10):
        data = turned_file(kind, orientation)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        (tmp_path / "image").write_bytes(data)
        for decoder in DECODERS:
            found = np.array(decode_image(data, decoder, Reading(exif="applied")))
            assert np.array_equal(found, np.array(upright.convert("RGB"))), (orientation, decoder)
        seen.add(found.tobytes() + bytes(found.shape[:1]))
        assert image_size(tmp_path / "image", "applied") == found.shape[:2]
        stored = image_size(tmp_path / "image", "ignored")
        assert stored == np.array(decode_with_pil(data)).shape[:2]
    assert len(seen) == 8, "each of the eight is another picture; 0 and 9 are none"


def test_a_png_may_say_its_orientation_behind_its_pixels(tmp_path: Path) -> None:
    plain, turned = file_of(Image.fromarray(colours()), "PNG"), turned_file("PNG", 6)
    at = turned.index(b"eXIf") - 4
    chunk = turned[at : at + 12 + int.from_bytes(turned[at : at + 4], "big")]
    end = plain.index(b"IEND") - 4
    (tmp_path / "late.png").write_bytes(plain[:end] + chunk + plain[end:])
    assert image_size(tmp_path / "late.png", "applied") == (61, 43)
    assert shown((tmp_path / "late.png").read_bytes(), exif="applied").shape == (61, 43, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*"])
def test_broken_exif_turns_nothing(exif: bytes) -> None:
    data = file_of(Image.fromarray(colours()), "JPEG", exif=exif)
    for decoder in DECODERS:
        found = decode_image(data, decoder, Reading(exif="applied"))
        assert np.array_equal(np.array(found), np.array(decode_with_pil(data)))


def test_crops_of_a_turned_photograph_agree_between_the_decoders() -> None:
    data = turned_file("JPEG", 6, Image.fromarray(colours(300, 400)))
    slow, fast = (decode_image(data, decoder, Reading(exif="applied")) for decoder in DECODERS)
    assert fast.flags.c_contiguous, "as the fast resize wants it"
    for box in (Box(0, 0, 400, 300), Box(31, 17, 250, 120)):
        ours, theirs = (crop_resize(image, box, 96, 96, "bilinear") for image in (fast, slow))
        assert (ours.int() - theirs.int()).abs().max() <= 1


# --- more than 8 bits ---


def test_sixteen_bits_are_grey_and_not_white() -> None:
    deep = grey().astype(np.uint16) * 257
    files = {
        "png": file_of(Image.fromarray(deep), "PNG"),
        "tiff": file_of(Image.fromarray(deep), "TIFF"),
        "big-endian tiff": file_of(Image.fromarray(deep.astype(">u2")), "TIFF"),
        "white is zero": tiff((65535 - deep).astype("<u2").tobytes(), 16, photometric=0),
    }
    for name, data in files.items():
        assert np.array_equal(shown(data)[..., 0], grey()), name
    near(shown(png(colours().astype(np.uint16) * 257)), colours())


def test_twelve_bits_in_sixteen_are_scaled_as_sbit_says() -> None:
    twelve = np.round(grey() * (4095 / 255)).astype(np.uint16)
    near(shown(png(twelve, (b"sBIT", b"\x0c"))), grey())
    stretched = (twelve << 4) | (twelve >> 8)  # as the standard has it
    near(shown(png(stretched, (b"sBIT", b"\x0c"))), grey())
    assert shown(png(twelve)).max() <= 16, "without sBIT the file says 16 bits"
    near(shown(png(twelve), range=(0, 4095)), grey())


def test_colours_of_which_only_lower_bits_are_used_are_refused() -> None:
    """PIL reads the upper 8 bits of a colour: black, where the lower 12 hold the picture."""
    twelve = np.round(colours() * (4095 / 255)).astype(np.uint16)
    stretched = (twelve << 4) | (twelve >> 8)
    near(shown(png(stretched, (b"sBIT", b"\x0c\x0c\x0c"))), colours())
    with pytest.raises(UnknownRangeError, match=r"upper 8 are read, but no value .* 12 bits"):
        decode_with_pil(png(twelve, (b"sBIT", b"\x0c\x0c\x0c")))
    with pytest.raises(
        UnknownRangeError, match=r"data\.range needs all of them\. Convert it to 8 bits"
    ):
        decode_with_pil(png(twelve), Reading(range=(0, 4095)))


def test_a_tiff_of_twelve_bits_is_white_at_4095() -> None:
    even = np.concatenate([grey(), grey()[:, -1:]], axis=1)
    twelve = np.round(even * (4095 / 255)).astype(np.uint32)
    first, second = twelve[:, ::2], twelve[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    rows = packed.astype(np.uint8).reshape(43, -1)[:, : math.ceil(61 * 12 / 8)]
    near(shown(tiff(rows.tobytes(), 12)), grey())


def floats() -> Any:
    return (grey() / 255).astype(np.float32)


def test_float_and_32_bit_files_need_a_range() -> None:
    files = {
        "floats": (file_of(Image.fromarray(floats()), "TIFF"), (0.0, 1.0)),
        "integers": (file_of(Image.fromarray(grey().astype(np.int32) * 1000), "TIFF"), (0, 255000)),
        "signed": (tiff((grey().astype("<i2") - 128).tobytes(), 16, sample_format=2), (-128, 127)),
    }
    for data, ends in files.values():
        with pytest.raises(UnknownRangeError, match=r"Give data\.range=\[BLACK,WHITE\]\."):
            decode_with_pil(data)
        near(shown(data, range=ends), grey())


def test_a_range_cuts_what_lies_beyond_and_what_is_no_number_is_black() -> None:
    values = floats()
    values[:2] = [[np.nan], [np.inf]]
    found = shown(file_of(Image.fromarray(values), "TIFF"), range=(0.25, 0.75))
    assert (found[0] == 0).all()
    assert (found[1] == 255).all()
    near(found[2:], np.clip((floats()[2:] - 0.25) / 0.5, 0, 1) * 255)


def test_a_range_is_no_matter_of_8_bits() -> None:
    data = file_of(Image.fromarray(colours()), "PNG")
    assert np.array_equal(shown(data, range=(0, 10)), colours())


# --- transparency, palettes, inks ---


def clear_files() -> dict[str, tuple[bytes, Any, Any]]:
    """A file, its colours, and its alpha from 0 to 1."""
    alpha = colours()[..., 0]
    rgba = Image.fromarray(np.dstack([colours(), alpha]))
    grey_alpha = Image.merge("LA", [Image.fromarray(grey()), Image.fromarray(alpha)])
    two = Image.fromarray((grey() > 100).astype(np.uint8), "P")
    two.putpalette([200, 10, 30, 20, 180, 60])
    of_two = np.array(two.convert("RGB"))
    first = (np.array(two) != 0) * 1.0
    key = Image.fromarray(np.where(grey()[..., None] > 100, colours(), np.uint8(7)))
    not_key = (np.array(key) != 7).any(-1) * 1.0
    deep = np.where(grey() > 100, grey(), 7).astype(np.uint16) * 257
    marked = (b"tRNS", struct.pack(">H", 7 * 257))
    deep_key = np.array(key).astype(np.uint16) * 257
    marks = (b"tRNS", struct.pack(">HHH", *[7 * 257] * 3))
    four = (np.tile(np.arange(0, 60, 2), (43, 1)) % 16).astype(np.uint8)
    packed, steps = four[:, ::2] << 4 | four[:, 1::2], four * 17
    return {
        "4 bits, one grey": (
            png(packed, (b"tRNS", b"\0\x06"), bits=4),
            steps[..., None].repeat(3, -1),
            (four != 6) * 1.0,
        ),
        "RGBA": (file_of(rgba, "PNG"), colours(), alpha / 255),
        "LA": (file_of(grey_alpha, "PNG"), grey()[..., None].repeat(3, -1), alpha / 255),
        "WebP": (file_of(rgba, "WEBP", lossless=True, exact=True), colours(), alpha / 255),
        "TIFF": (file_of(rgba, "TIFF"), colours(), alpha / 255),
        "P": (file_of(two, "PNG", transparency=0), of_two, first),
        "P, alpha by colour": (
            file_of(two, "PNG", transparency=bytes([51, 255])), of_two, 0.2 + 0.8 * first,
        ),
        "GIF": (file_of(two, "GIF", transparency=0), of_two, first),
        "RGB, one colour": (file_of(key, "PNG", transparency=(7, 7, 7)), np.array(key), not_key),
        "16 bits, one grey": (
            png(deep, marked), (deep >> 8)[..., None].repeat(3, -1), (deep != 7 * 257) * 1.0,
        ),
        "16 bits, one colour": (png(deep_key, marks), np.array(key), not_key),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(clear_files()))
def test_what_is_transparent_is_seen_on_a_named_background(name: str) -> None:
    data, colour, alpha = clear_files()[name]
    assert alpha.min() < 1
    under: dict[Background, int] = {"white": 255, "black": 0, "grey": 128}
    for background, level in under.items():
        wanted = colour * alpha[..., None] + level * (1 - alpha[..., None])
        near(shown(data, background=background), np.round(wanted))
    assert np.array_equal(shown(data), shown(data, background="white"))


def test_ignored_leaves_the_colours_below() -> None:
    for name in ("RGBA", "LA", "WebP", "TIFF", "P", "RGB, one colour", "16 bits, one grey"):
        data, colour, _ = clear_files()[name]
        near(shown(data, background="ignored"), colour)


def test_inks_are_those_of_the_picture_whoever_wrote_them() -> None:
    """Adobe's programs store CMYK inverted, and so does PIL: a positive must come out."""
    plain = Image.fromarray(np.full((16, 16, 3), (200, 40, 90), np.uint8))
    data = file_of(plain.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    for decoder in DECODERS:
        near(np.array(decode_image(data, decoder)).astype(int), np.array(plain), 4)


def test_a_masks_numbers_stay_as_they_are(tmp_path: Path) -> None:
    numbers = (np.arange(43 * 61).reshape(43, 61) % 5).astype(np.uint8)
    mask = Image.fromarray(numbers, "P")
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200, 250, 250, 250])
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    mask.save(tmp_path / "a.png", transparency=2, exif=exif)
    names = FileNames.of(tmp_path, ["a.png"])
    split = Masked(names, np.zeros(1, np.int64), names, number_classes(5, 0))
    assert np.array_equal(split.target(0), numbers)


# --- very long, very large ---


def grown(work: Callable[[], object]) -> float:
    """2^20 bytes by which a process's peak rises where it does the work."""

    def child(into: Any) -> None:
        torch.set_num_threads(1)  # OpenMP's other threads are not forked, and it waits for them
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        into.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    found: float = ours.recv()
    process.join()
    return found


def test_a_strip_is_cut_without_being_made_whole() -> None:
    """8000 x 3 pixels took 2.5 GB: at a shorter side of 256 they are 680,000 long."""
    strip = np.zeros((3, 8000, 3), np.uint8)
    for image in (strip, Image.fromarray(strip), Image.fromarray(strip.transpose(1, 0, 2).copy())):
        assert grown(partial(centre_crop, image, 224, 0.875, "bicubic")) < 100
    mask = np.zeros((3, 8000), np.uint8)
    sample = Sample(torch.from_numpy(strip).permute(2, 0, 1), mask)
    crop = scale_crop(short_side=520, scale=(0.5, 2.0), size=480)
    assert grown(lambda: crop.apply(sample, np.full(3, 0.9, np.float32))) < 100


@pytest.mark.parametrize(("height", "width"), [(31, 620), (620, 31), (20, 1000)])
def test_a_strips_centre_is_that_of_the_whole(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(colours(height, width))
    part = centre_crop(image, 64, 0.875, "bicubic")
    fast = centre_crop(np.array(image), 64, 0.875, "bicubic")
    mask = np.arange(height * width, dtype=np.uint8).reshape(height, width) % 7
    sample = Sample(torch.from_numpy(np.array(image)).permute(2, 0, 1), mask)
    crop = scale_crop(short_side=60, scale=(0.9, 1.1), size=64)
    draws = np.array([0.3, 0.6, 0.7], np.float32)
    cut = crop.apply(sample, draws)
    for module in ("rescue_cli.sections.data.decode", "rescue_cli.sections.augment.annotated"):
        monkeypatch.setattr(f"{module}.ASPECT", 1000)
    whole = centre_crop(image, 64, 0.875, "bicubic")
    assert part.shape == whole.shape == fast.shape
    assert (part.int() - whole.int()).abs().max() <= 1
    assert (fast.int() - whole.int()).abs().max() <= 1
    of_whole = crop.apply(sample, draws)
    assert np.array_equal(cut.target, of_whole.target)
    assert (cut.image.int() - of_whole.image.int()).abs().max() <= 1


def test_the_class_of_each_pixel_is_found_a_few_classes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randn(1, 7, 5, 6, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(logits, (20, 31), mode="bilinear").argmax(1)[0]
    assert torch.equal(highest(logits, (20, 31)), whole)
    monkeypatch.setattr(
        sys.modules["rescue_cli.sections.task.segmentation"], "AT_ONCE", 2 * 20 * 31
    )
    assert torch.equal(highest(logits, (20, 31)), whole)


def test_a_bomb_is_refused_in_plain_words() -> None:
    header = struct.pack(">4sIIBBBBB", b"IHDR", 20_000, 20_000, 1, 0, 0, 0, 0)
    checked = header + struct.pack(">I", zlib.crc32(header))
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + checked
    data += struct.pack(">I4s", 9, b"IDAT")
    with pytest.raises(Image.DecompressionBombError) as raised:
        decode_to_array(data, Reading(exif="applied"))
    assert describe_error(raised.value) == "more than 178,956,970 pixels, the most that are read"


def test_a_moving_picture_is_its_first_frame() -> None:
    first, second = Image.fromarray(colours()), Image.fromarray(255 - colours())
    for kind in ("WEBP", "PNG", "TIFF"):
        data = file_of(first, kind, save_all=True, append_images=[second], lossless=True)
        near(shown(data), colours(), 2)
    few = first.quantize(64)
    near(
        shown(file_of(few, "GIF", save_all=True, append_images=[second])),
        np.array(few.convert("RGB")),
    )


def test_pnginfo_of_pil_carries_what_sbit_says() -> None:
    """As a program that uses PIL would write it."""
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", b"\x0a")
    ten = np.round(grey() * (1023 / 255)).astype(np.uint16)
    near(shown(file_of(Image.fromarray(ten), "PNG", pnginfo=info)), grey())
