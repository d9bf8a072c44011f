"""Mutated images become pixels or our error, in little memory."""

import contextlib
import io
import random
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rescue_cli.batch import View
from rescue_cli.recipe.sections import Decoder
from rescue_cli.sections.augment.crops import random_resized_crop
from rescue_cli.sections.data.formats.class_folders import read_class_folders
from rescue_cli.sections.data.jpeg_region import region_decoder
from rescue_cli.sections.data.stream import Cropping, FileFeed, TrainSamples
from rescue_cli.sections.data.stream_eval import EvalSamples, FileEvalFeed
from rescue_cli.sections.sampling import SamplingContext, shuffled
from tests.faults.tally import Tally
from tests.helpers.mutations import mutate

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
COUNT = 200  # of each format
CPU = torch.device("cpu")
MOST_MB = 2_500  # twice as many pixels as PIL warns of, in RGB and once converted
FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "gif": ("GIF", {"save_all": True}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
}
MODES = ("RGB", "L", "RGBA", "P", "I;16", "CMYK", "1", "F")
STARTS = (b"\xff\xc0", b"\xff\xc2")  # of a JPEG's frame, baseline and progressive
EDGES = (0, 1, 0xFFFF, 0x7FFF, 30_000, 12_000)  # sides that a header may claim


def encoded(kind: str, draw: random.Random) -> bytes:
    """A small image of a mode that the format has."""
    name, options = FORMATS[kind]
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (48, 60, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((120, 90))
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(1, 9)
    while True:
        file = io.BytesIO()
        more = {"progressive": True} if kind == "jpeg" and draw.random() < 0.3 else {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            picture.convert(draw.choice(MODES)).save(file, name, exif=exif, **options, **more)
            return file.getvalue()


def spoiled(kind: str, draw: random.Random) -> bytes:
    """The bytes changed anywhere, a part repeated, or another size in the header."""
    data = bytearray(encoded(kind, draw))
    match draw.randrange(4):
        case 0:
            for _ in range(draw.randrange(1, 30)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            with_size(kind, data, draw.choice(EDGES), draw.choice(EDGES))
        case _:
            data = bytearray(mutate(bytes(data), draw))
    if kind == "png" and draw.random() < 0.7:
        with_checksums(data)
    return bytes(data)


def with_checksums(data: bytearray) -> None:
    """Makes the checksums of a PNG's chunks right, so that their content is read."""
    start = 8
    while start + 12 <= len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        end = start + 8 + length
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[start + 4 : end]))
        start = end + 4


def with_size(kind: str, data: bytearray, width: int, height: int) -> None:
    """Writes a size where the format has it."""
    if kind == "png":
        data[16:24] = struct.pack(">II", width, height)
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "jpeg":
        start = next(i for i in range(len(data)) if bytes(data[i : i + 2]) in STARTS)
        data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    elif kind == "tiff":
        for tag, value in ((256, width), (257, height)):
            start = data.find(struct.pack("<H", tag))
            data[start + 8 : start + 12] = struct.pack("<I", value)
    else:
        data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)


def trained_on(root: Path, decoder: Decoder) -> None:
    """A crop of the only image in the folder, as a training has it."""
    crop = random_resized_crop(scale=(0.08, 1.0), ratio=(0.75, 1.33))
    samples = TrainSamples(
        read_class_folders(root, {"a": 0}, complete=True),
        Cropping(crop, 32, "bilinear"), 1, 0, decoder,
    )  # fmt: skip
    feed = FileFeed(
        samples, shuffled(SamplingContext(1, 1, 1, 1, seed=0)), range(1),
        steps=1, max_corrupt=0, workers=0, device=CPU, log=lambda _: None,
    )  # fmt: skip
    with contextlib.closing(feed):
        feed.start(0)
        (batch,) = feed.micro_batches(0)
    assert (batch.images.shape, batch.images.dtype) == ((1, 3, 32, 32), torch.uint8)


def evaluated_on(root: Path) -> None:
    """The centre of the only image in the folder, as an evaluation has it."""
    files = read_class_folders(root, {"a": 0}, complete=True)
    samples = EvalSamples(files, [View(32, 0.9)], "bicubic", "pil")
    (batch,) = FileEvalFeed(samples, 1, 0, CPU).batches(0, 1)
    assert batch.views[View(32, 0.9)].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("kind", FORMATS)
def test_images(kind: str, tally: Tally) -> None:
    region_decoder()  # compiles it
    file = tally.folder / "images" / "a" / f"image.{kind}"
    file.parent.mkdir(parents=True)
    root = file.parents[1]
    ways: list[Callable[[], None]] = [
        lambda: trained_on(root, "fast"),
        lambda: trained_on(root, "pil"),
        lambda: evaluated_on(root),
    ]
    for way in ways:
        file.write_bytes(encoded(kind, random.Random(0)))
        way()
    for case in range(COUNT):
        file.write_bytes(spoiled(kind, random.Random(f"{kind} {case}")))
        tally.attempt(case, ways[case % len(ways)])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MOST_MB * 1024
