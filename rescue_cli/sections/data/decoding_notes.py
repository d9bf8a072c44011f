"""Notes on how unusual files are read: rotated, more than 8 bits, transparent, several frames."""

import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rescue_cli.sections.data.decode import UNREADABLE, UPRIGHT, exif_orientation
from rescue_cli.sections.data.rgb import Reading, UnknownRangeError, bits_per_channel, white_level
from rescue_cli.sections.data.splits import Files, Split

SAMPLE = 64  # evenly spaced files per split; reading a header takes 0.2 ms


def describe_splits(splits: Iterable[Split], reading: Reading) -> tuple[str, ...]:
    """As `describe_files`, for a sample of each split's files."""
    files = []
    for split in splits:
        if isinstance(split, Files):
            names = split.names
            files += [(names.place(i), partial(names.read, i)) for i in _sample_indices(len(split))]
    return _describe(files, reading)


def describe_files(paths: Sequence[Path], reading: Reading) -> tuple[str, ...]:
    """A note for each property of a sample of the files that `reading` decides about."""
    chosen = [paths[index] for index in _sample_indices(len(paths))]
    return _describe([(str(path), path.read_bytes) for path in chosen], reading)


def _sample_indices(count: int) -> list[int]:
    return [int(index) for index in np.linspace(0, count - 1, min(SAMPLE, count))]


def _describe(
    files: Sequence[tuple[str, Callable[[], bytes]]], reading: Reading
) -> tuple[str, ...]:
    files_of: dict[str, list[str]] = {}
    for path, read in files:
        try:
            remarks = _describe_file(read(), reading)
        except (*UNREADABLE, UnknownRangeError):
            continue  # reported when the file is read
        for remark in remarks:
            files_of.setdefault(remark, []).append(path)
    images = "images" if len(files) < SAMPLE else "sampled images"
    return tuple(
        f"{len(paths)} of {len(files)} {images} {remark}; the first is {paths[0]}"
        for remark, paths in files_of.items()
    )


def _describe_file(data: bytes, reading: Reading) -> list[str]:
    with Image.open(io.BytesIO(data)) as image:
        remarks = [_describe_depth(image, data, reading)]
        if exif_orientation(image) != UPRIGHT:
            remarks.append(
                "are stored rotated or mirrored, and turned upright by EXIF (data.exif=applied)"
                if reading.exif == "applied"
                else "are stored rotated or mirrored, and used so; data.exif=applied turns them"
            )
        if image.has_transparency_data:
            remarks.append(
                "are transparent, and used without their alpha channel (data.background=ignored)"
                if reading.background == "ignored"
                else f"are transparent, and shown on {reading.background} (data.background)"
            )
        if image.format != "MPO" and getattr(image, "is_animated", False):
            remarks.append("have several frames, of which the first is read")
    return [remark for remark in remarks if remark]


def _describe_depth(image: Image.Image, data: bytes, reading: Reading) -> str:
    if image.mode[0] not in "IF":
        is_deep = bits_per_channel(image, data) > 8
        return "have more than 8 bits per channel: white is 65535 (16 bits)" if is_deep else ""
    if reading.range is not None:
        low, high = reading.range
        return f"have more than 8 bits: black is {low:g} and white {high:g} (data.range)"
    level, source = white_level(image, data, np.array(image))
    return f"have more than 8 bits: white is {level}, from {source} (data.range overrides it)"
