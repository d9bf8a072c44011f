"""A crop that is decoded alone has the pixels that a decode of the whole image gives it."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from rescue_cli.sections.data import decode, jpeg_region
from rescue_cli.sections.data.decode import (
    UNREADABLE,
    Box,
    Part,
    bounding_box,
    crop_resize,
    decode_image,
)
from rescue_cli.sections.data.jpeg_region import region_decoder
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.splits import Pixels

SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")
SIZES = ((1, 1), (7, 9), (16, 16), (17, 33), (97, 64), (131, 203), (240, 319))
pytestmark = pytest.mark.skipif(region_decoder() is None, reason="no C compiler here")


@pytest.fixture(autouse=True)
def any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of any size are decoded alone, so that large ones are compared, too."""
    monkeypatch.setattr(decode, "LARGEST_PART", 1.0)


def photograph(height: int, width: int, seed: int) -> Pixels:
    """Waves and noise: edges in every block, in brightness and in colour."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    frequency, phase = rng.uniform(0.02, 0.4, (2, 3)), rng.uniform(0, 6, 3)
    waves = np.sin(rows[..., None] * frequency[0] + columns[..., None] * frequency[1] + phase)
    noisy = 128 + 90 * waves + rng.normal(0, 25, (height, width, 3))
    pixels: Pixels = noisy.clip(0, 255).astype(np.uint8)
    return pixels


def encoded(pixels: Pixels, subsampling: str, quality: int = 85) -> bytes:
    grey = subsampling == "Gray"
    given = np.ascontiguousarray(pixels[..., :1]) if grey else pixels
    data: bytes = simplejpeg.encode_jpeg(
        given, quality, "GRAY" if grey else "RGB", "444" if grey else subsampling
    )
    return data


def again(data: bytes, **options: Any) -> bytes:
    """The same image, with PIL's options for a JPEG file."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "JPEG", quality=85, **options)
    return file.getvalue()


def random_box(height: int, width: int, rng: np.random.Generator) -> Box:
    rows, columns = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in (height, width))
    return Box(*map(int, (rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])))


def cut(image: Pixels, box: Box) -> Pixels:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def assert_same(data: bytes, box: Box, reading: Reading | None = None) -> None:
    """The region alone has the pixels of the whole, with each decoder."""
    part = decode_image(data, "fast", reading or Reading(), lambda *_: box)
    assert isinstance(part, Part)
    assert part.pixels.shape == (box.height, box.width, 3)
    np.testing.assert_array_equal(part.pixels, cut(decode_image(data, "fast"), box))
    np.testing.assert_array_equal(part.pixels, cut(np.asarray(decode_image(data, "pil")), box))


def variants(height: int, width: int, seed: int) -> Iterator[bytes]:
    pixels = photograph(height, width, seed)
    for subsampling in SUBSAMPLINGS:
        yield encoded(pixels, subsampling)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        first = encoded(pixels, "444", 95)
        yield again(first, subsampling=subsampling, progressive=True)
        yield again(first, subsampling=subsampling, restart_marker_blocks=3)
        yield again(first, subsampling=subsampling, restart_marker_rows=1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_region_has_the_pixels_of_the_whole_image(height: int, width: int) -> None:
    rng = np.random.default_rng(height * width)
    for number, data in enumerate(variants(height, width, height + width)):
        for box in [random_box(height, width, rng) for _ in range(12)]:
            try:
                assert_same(data, box)
            except AssertionError as error:
                raise AssertionError(f"variant {number}, {box}") from error


def test_a_region_at_each_edge_and_one_pixel_wide_is_exact() -> None:
    data = encoded(photograph(70, 90, 1), "420")
    for top, left, height, width in (
        (0, 0, 70, 90), (0, 0, 1, 1), (69, 89, 1, 1), (0, 16, 70, 1), (31, 0, 1, 90),
        (15, 15, 2, 2), (16, 16, 16, 16), (32, 48, 38, 42), (17, 0, 20, 90), (33, 1, 3, 89),
    ):  # fmt: skip
        assert_same(data, Box(top, left, height, width))


def test_the_regions_of_256_photographs_are_exact(imagenet_sample: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [path.read_bytes() for path in sorted(imagenet_sample.glob("*/*.JPEG"))]
    counted = 0
    for data in contents:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        box = random_box(height, width, rng)
        part = decode_image(data, "fast", Reading(), lambda *_, box=box: box)
        counted += isinstance(part, Part)
        found = part.pixels if isinstance(part, Part) else cut(part, box)
        np.testing.assert_array_equal(found, cut(decode_image(data, "fast"), box))
    assert len(contents) == 256
    assert counted >= 250  # CMYK and files with errors are decoded whole


def outcome(data: bytes, box: Box, *, alone: bool) -> Any:
    """The pixels of a box, or the kind of error."""
    try:
        image = decode_image(data, "fast", Reading(), (lambda *_: box) if alone else None)
    except UNREADABLE as error:
        return type(error)
    return image.pixels if isinstance(image, Part) else cut(image, box)


def test_a_damaged_file_has_the_same_outcome_as_when_it_is_decoded_whole() -> None:
    """Cut short, or with bytes changed, removed or repeated: the same pixels or the same error."""
    rng = np.random.default_rng(4)
    outcomes: dict[str, int] = {"error": 0, "pixels": 0}
    originals = [*variants(97, 130, 2)]
    for number in range(600):
        data = bytearray(originals[number % len(originals)])
        place = int(rng.integers(2, len(data)))
        kind = number % 5
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place : place + 4] = rng.bytes(4)
        elif kind == 2:
            del data[place : place + int(rng.integers(1, 40))]
        elif kind == 3:
            data[place:place] = data[place - int(rng.integers(1, place)) : place]
        else:
            data[place : place + 1] = b"\xff" + bytes([int(rng.integers(0xC0, 0x100))])
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(bytes(data))
        except ValueError:
            height, width = 97, 130
        if height * width > 10**6:
            continue
        box = random_box(height, width, rng)
        alone, whole = (outcome(bytes(data), box, alone=each) for each in (True, False))
        assert isinstance(alone, type) == isinstance(whole, type), (number, alone, whole)
        if isinstance(alone, type):
            assert alone is whole
        else:
            np.testing.assert_array_equal(alone, whole, err_msg=f"{number}: {box}")
        outcomes["error" if isinstance(alone, type) else "pixels"] += 1
    assert min(outcomes.values()) > 50


def test_a_file_that_is_cut_short_below_the_region_is_corrupt_as_ever() -> None:
    data = encoded(photograph(240, 320, 3), "420")
    with pytest.raises(OSError, match="truncated"):
        decode_image(data[: len(data) * 3 // 4], "fast", Reading(), lambda *_: Box(0, 0, 20, 20))


def test_views_cut_from_their_common_region_are_those_cut_from_the_image() -> None:
    data = encoded(photograph(200, 260, 5), "420")
    boxes = [Box(20, 30, 90, 100), Box(60, 10, 70, 50), Box(90, 140, 40, 61)]
    part = decode_image(data, "fast", Reading(), lambda *_: bounding_box(boxes))
    whole = decode_image(data, "fast")
    assert isinstance(part, Part)
    assert (part.box, part.size) == (Box(20, 10, 110, 191), (200, 260))
    for box in boxes:
        view, expected = (crop_resize(image, box, 64, 64, "bicubic") for image in (part, whole))
        np.testing.assert_array_equal(view.numpy(), expected.numpy())


def test_most_of_an_image_is_decoded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LARGEST_PART", 0.6)
    data = encoded(photograph(100, 100, 8), "420")
    for height, alone in ((60, True), (61, False)):
        box = Box(5, 0, height, 100)
        assert isinstance(decode_image(data, "fast", Reading(), lambda *_, b=box: b), Part) == alone


def test_an_image_that_is_turned_by_its_exif_is_decoded_whole() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = again(encoded(photograph(40, 60, 6), "444"), exif=exif)
    box = Box(1, 2, 30, 20)
    turned = decode_image(data, "fast", Reading(exif="applied"), lambda *_: box)
    assert turned.shape == (60, 40, 3)
    assert_same(data, box)


def test_without_a_compiler_or_a_cache_whole_images_are_decoded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    data, box = encoded(photograph(64, 64, 7), "420"), Box(8, 8, 20, 20)
    for variable, value in (("CC", "no-such-compiler"), ("CC", "false")):
        jpeg_region.region_decoder.cache_clear()
        monkeypatch.setenv(variable, value)
        assert region_decoder() is None
        assert decode_image(data, "fast", Reading(), lambda *_: box).shape == (64, 64, 3)
    monkeypatch.delenv("CC")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jpeg_region.region_decoder.cache_clear()
    assert region_decoder() is None
    monkeypatch.undo()
    jpeg_region.region_decoder.cache_clear()
    assert region_decoder() is not None


def test_what_another_account_compiled_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is it looked for in RESCUE_CACHE, which accounts may share."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    monkeypatch.setenv("RESCUE_CACHE", str(shared))
    monkeypatch.setenv("XDG_CACHE_HOME", str(own))
    uses = []
    for account in (os.getuid(), os.getuid() + 1):
        monkeypatch.setattr(os, "getuid", lambda account=account: account)
        jpeg_region.region_decoder.cache_clear()
        uses.append(region_decoder() is not None)
    monkeypatch.undo()
    jpeg_region.region_decoder.cache_clear()
    assert uses == [True, False]
    assert [file.suffix for file in own.rglob("*") if file.is_file()] == [".so"]
    assert not shared.exists()
