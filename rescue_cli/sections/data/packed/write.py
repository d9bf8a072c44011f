"""Writes a data set's images into shards, one after another, each checked before the next."""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.rundir import read_json, write_json, write_text
from rescue_cli.sections.data.datasets import DATASETS
from rescue_cli.sections.data.decode import UNREADABLE, decode_with_pil
from rescue_cli.sections.data.fingerprint import compute_fingerprint
from rescue_cli.sections.data.listing import SkippedFiles, stem
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.packed.index import save_index
from rescue_cli.sections.data.packed.location import (
    CLASS_FILES,
    HUB_FOLDER,
    INDEX_FILE,
    PACK_FILE,
    find_source,
    open_index,
)
from rescue_cli.sections.data.packed.members import Member
from rescue_cli.sections.data.packed.parquet import scan_parquet
from rescue_cli.sections.data.packed.tar import scan_tar
from rescue_cli.sections.data.splits import Dataset, Files

FORMATS = ("tar", "parquet")
AT_ONCE = 256  # images that are read and resized before they are written; a row group
ORIENTATION = 0x0112  # EXIF's tag


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Args:
        shard_bytes: A shard ends with the image that reaches this size.
        max_side: Larger images are resized until their longer side has so many pixels, and saved
            as JPEG of this `quality`; None: every file is copied byte for byte.
    """

    format: str
    shard_bytes: int
    max_side: int | None = None
    quality: int = 90

    @property
    def resized(self) -> str:
        """What was done to the images, for protocols; empty where they are the originals."""
        if self.max_side is None:
            return ""
        return f"longer side at most {self.max_side} px, JPEG quality {self.quality}"


class Packed(NamedTuple):
    """An image as it is written."""

    name: str
    label: int
    data: bytes
    is_broken: bool = False  # it could not be resized, and is copied as it is


class Written(NamedTuple):
    """A shard that is there: its images, bytes and SHA-256; how many images were `broken`."""

    file: str
    images: int
    bytes: int
    sha256: str
    broken: int


def read_splits(name: str, root: str) -> Dataset:
    """The data set with all splits that are there; raises `DataError`, `UsageError`."""
    keys = DataKeys(root=root, resident=False)
    location = Location(name, keys)
    splits = {each: path for each in ("val", "test") if (path := location.split(each))}
    if splits:
        _, *more = splits
        keys = replace(keys, sets={each: str(splits[each]) for each in more})
    else:
        keys = replace(keys, holdout=1)  # asks for no test split; nothing is held out here
    dataset = DATASETS[name](Location(name, keys))
    for split in (dataset.train, *dataset.tests.values()):
        if not isinstance(split, Files) or split.annotated:
            raise UsageError(
                f"{name}: its images are no files with one label each, which are what can be "
                "packed. Use the data set as it is."
            )
    return dataset


def write_pack(
    dataset: Dataset, out: Path, packing: Packing, advance: Callable[[int, int], None]
) -> dict[str, list[Written]]:
    """Writes the shards of each split that are not there yet; returns all of them by split.

    Beside them lie `classes.txt` (a name a line, by number), `pack.json` and an index of each
    split. `advance` is told of images that are done: how many, and how many of them were there
    already. Raises `UsageError` where the folder holds something else, and `DataError` for a shard
    that does not read back as it was written.
    """
    classes = _folder_names(dataset)
    splits = {"train": dataset.train, **dataset.tests}
    tests = list(dataset.tests)
    facts = {
        "source": compute_fingerprint(dataset, tests).digest,
        **asdict(packing),
        "resized": packing.resized,
    }
    state = _begin(out, facts)
    folder = out if packing.format == "tar" else out / HUB_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_text(out / CLASS_FILES[0], "".join(f"{name}\n" for name in classes))
    done: dict[str, list[Written]] = {}
    for name, split in splits.items():
        assert isinstance(split, Files)
        there = {each["file"]: Written(**each) for each in state["shards"].get(name, [])}
        done[name] = []
        parts = _plan(split, packing.shard_bytes)
        for number, part in enumerate(parts):
            of_all = f"-of-{len(parts):05}" if packing.format == "parquet" else ""
            file = folder / f"{name}-{number:05}{of_all}.{packing.format}"
            written = there.get(file.name)
            if written is None or not file.is_file() or file.stat().st_size != written.bytes:
                written = _write_shard(file, split, part, packing, classes)
                advance(len(part), 0)
            else:
                advance(len(part), len(part))
            done[name].append(written)
            state["shards"][name] = [each._asdict() for each in done[name]]
            write_json(out / PACK_FILE, state)
        source = find_source(out / name)
        assert source is not None
        save_index(open_index(source, None), out / INDEX_FILE.format(name))
    return done


def _begin(out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the shards that are there; raises `UsageError` for those of another pack."""
    file = out / PACK_FILE
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"{out}: is not empty, and holds no pack. Give another folder.")
        return {**facts, "shards": {}}
    state = read_json(file)
    changed = [key for key, value in facts.items() if state.get(key) != value]
    if changed:
        key = changed[0]
        what = "the images of another folder, or others than today's"
        of_key = what if key == "source" else f"{key} {state.get(key)}, not {facts[key]}"
        raise UsageError(f"{out}: holds a pack with {of_key}. Give another folder.")
    return state


def _folder_names(dataset: Dataset) -> list[str]:
    """The name of each class's folder by its number; the class's name where there is none."""
    names = list(dataset.classes)
    for split in (*dataset.tests.values(), dataset.train):
        assert isinstance(split, Files)
        labels, first = np.unique(split.labels, return_index=True)
        for label, index in zip(labels, first, strict=True):
            folder, slash, _ = split.names.name(int(index)).partition("/")
            names[label] = folder if slash else names[label]
    return names


def _plan(split: Files, shard_bytes: int) -> list[range]:
    """The images of each shard: a shard ends with the image that reaches the size."""
    ends = np.cumsum(np.maximum(split.names.sizes(), 0))
    number = np.concatenate([[0], ends[:-1]]) // shard_bytes  # by where the image begins
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(split)], strict=True)]


def _write_shard(
    file: Path, split: Files, part: range, packing: Packing, classes: Sequence[str]
) -> Written:
    partial = file.with_name(f".{file.name}.partial")
    checksums: list[tuple[str, int, int]] = []
    broken = 0

    def images() -> Iterator[list[Packed]]:
        nonlocal broken
        with ThreadPoolExecutor() as pool:  # PIL works without the interpreter's lock
            for start in range(part.start, part.stop, AT_ONCE):
                some = range(start, min(start + AT_ONCE, part.stop))
                batch = list(pool.map(lambda index: _pack_image(split, index, packing), some))
                broken += sum(image.is_broken for image in batch)
                checksums.extend((i.name, i.label, zlib.crc32(i.data)) for i in batch)
                yield batch

    try:
        write = _write_tar if packing.format == "tar" else _write_parquet
        with partial.open("wb") as opened:
            write(opened, images(), classes)
            opened.flush()
            os.fsync(opened.fileno())
        _check(partial, file, packing.format, checksums)
        with partial.open("rb") as finished:
            digest = hashlib.file_digest(finished, "sha256").hexdigest()
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return Written(file.name, len(part), file.stat().st_size, digest, broken)


def _pack_image(split: Files, index: int, packing: Packing) -> Packed:
    """The file's bytes, or a JPEG of the resized image with the orientation that the file says."""
    name, label, data = split.names.name(index), int(split.labels[index]), split.names.read(index)
    side = packing.max_side
    if side is None:
        return Packed(name, label, data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "JPEG" and max(image.size) <= side:
                return Packed(name, label, data)
            exif = Image.Exif()
            if (orientation := image.getexif().get(ORIENTATION)) is not None:
                exif[ORIENTATION] = orientation
        pixels = decode_with_pil(data)
    except UNREADABLE:
        return Packed(name, label, data, is_broken=True)
    pixels.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
    content = io.BytesIO()
    pixels.save(content, "JPEG", quality=packing.quality, exif=exif)
    return Packed(f"{stem(name)}.jpg", label, content.getvalue())


def _write_tar(opened: Any, batches: Iterator[list[Packed]], _classes: Sequence[str]) -> None:
    with tarfile.open(fileobj=opened, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for batch in batches:
            for image in batch:
                for name, content in (
                    (image.name, image.data),
                    (f"{stem(image.name)}.cls", str(image.label).encode()),
                ):
                    entry = tarfile.TarInfo(name)  # time 0 and no owner: the same bits each time
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def _write_parquet(opened: Any, batches: Iterator[list[Packed]], classes: Sequence[str]) -> None:
    """As the library `datasets` writes images: `image` {bytes, path} and `label`."""
    import pyarrow as pa
    from pyarrow import parquet

    label = {"names": list(classes), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image_type, "label": pa.int64()}, metadata)
    # Encoded images do not compress, and an uncompressed page can be read from any place
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with parquet.ParquetWriter(opened, schema, **options) as writer:
        for batch in batches:
            images = [{"bytes": image.data, "path": image.name} for image in batch]
            table = {"image": images, "label": [image.label for image in batch]}
            writer.write_table(pa.table(table, schema=schema))


def _check(
    partial: Path, file: Path, format_: str, written: Sequence[tuple[str, int, int]]
) -> None:
    """Raises `DataError` where the shard does not read back as it was written."""
    skipped = SkippedFiles()
    with partial.open("rb") as opened:
        if format_ == "tar":
            members = scan_tar(opened, str(file), skipped, None).members
        else:
            members = scan_parquet(opened, str(file), skipped, None).members

        def checksum(member: Member) -> int:
            opened.seek(member.offset)
            return zlib.crc32(opened.read(member.size))

        back = [(member.name, member.label, checksum(member)) for member in members]
    if back != list(written):
        raise DataError(
            f"{file}: does not read back as it was written ({len(back)} of {len(written)} images). "
            "Check the disk, and pack again."
        )
