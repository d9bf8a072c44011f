"""What users should know of how files are read: turned, deep, transparent, of several frames."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rescue_cli.sections.data.decode import UNREADABLE, UPRIGHT, exif_orientation
from rescue_cli.sections.data.rgb import Reading, UnknownRangeError, bits_per_channel, white_level
from rescue_cli.sections.data.splits import Files, Split

SAMPLE = 64  # files of a split, evenly spaced: a header takes 0.2 ms


def describe_splits(splits: Iterable[Split], reading: Reading) -> tuple[str, ...]:
    """`describe_files` on some files of each split."""
    paths = []
    for split in splits:
        if isinstance(split, Files):
            paths += [split.names.path(place) for place in _sample_indices(len(split))]
    return _describe_paths(paths, reading)


def describe_files(paths: Sequence[Path], reading: Reading) -> tuple[str, ...]:
    """A sentence for each way of reading that some files, evenly spaced, make a difference to."""
    return _describe_paths([paths[place] for place in _sample_indices(len(paths))], reading)


def _sample_indices(count: int) -> list[int]:
    return [int(place) for place in np.linspace(0, count - 1, min(SAMPLE, count))]


def _describe_paths(paths: Iterable[Path], reading: Reading) -> tuple[str, ...]:
    found: dict[str, list[Path]] = {}
    count = 0
    for path in paths:
        count += 1
        try:
            said = _describe_file(path, reading)
        except (*UNREADABLE, UnknownRangeError):
            continue  # said where it is read
        for words in said:
            found.setdefault(words, []).append(path)
    return tuple(
        f"{len(files)} of {count} images looked at {words}; the first is {files[0]}"
        for words, files in found.items()
    )


def _describe_file(path: Path, reading: Reading) -> list[str]:
    data = path.read_bytes()
    with Image.open(path) as image:
        found = [_describe_depth(image, data, reading)]
        if exif_orientation(image) != UPRIGHT:
            found.append(
                "are stored turned or mirrored, and turned upright by EXIF (data.exif=applied)"
                if reading.exif == "applied"
                else "are stored turned or mirrored, and seen so; data.exif=applied turns them"
            )
        if image.has_transparency_data:
            found.append(
                "are transparent, and seen without their alpha channel (data.background=ignored)"
                if reading.background == "ignored"
                else f"are transparent, and seen on {reading.background} (data.background)"
            )
        if image.format != "MPO" and getattr(image, "is_animated", False):
            found.append("have several frames, of which the first is read")
    return [words for words in found if words]


def _describe_depth(image: Image.Image, data: bytes, reading: Reading) -> str:
    if image.mode[0] not in "IF":
        deep = bits_per_channel(image, data) > 8
        return "have more than 8 bits a channel: white is 65535 by 16 bits" if deep else ""
    if reading.range is not None:
        low, high = reading.range
        return f"have more than 8 bits: black is {low:g} and white {high:g} (data.range)"
    value, by = white_level(image, data, np.array(image))
    return f"have more than 8 bits: white is {value} by {by} (data.range says another)"
