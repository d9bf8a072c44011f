"""Tar files: WebDataset's shards, or class folders in an archive."""

import json
import os
import tarfile
from collections.abc import Sequence
from typing import Any, BinaryIO

from rescue_cli.errors import DataError
from rescue_cli.sections.data.listing import BROKEN_LINKS, EMPTY_FILES, SkippedFiles, stem
from rescue_cli.sections.data.packed.members import Label, Member, Scan, is_image_name, unreadable

JSON_KEYS = ("cls", "label", "class", "class_id", "label_name", "class_name", "target")
MAX_LABEL_BYTES = 1 << 20
LOOKED_AT = 1 << 20  # bytes after the end of an archive, which are padding


def scan_tar(opened: BinaryIO, shard: str, skipped: SkippedFiles, label_field: str | None) -> Scan:
    """The images of an uncompressed tar file; raises `DataError`, which names `shard`.

    An image's label is the content of KEY.cls or an entry of KEY.json beside KEY.jpg, as WebDataset
    writes them. A tar file inside it holds images of the class that it is named after, as in the
    archive of ImageNet's training images.
    """
    images: list[Member] = []
    labels: dict[str, Label] = {}
    fields = JSON_KEYS if label_field is None else (label_field,)
    try:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        _scan(opened, shard, "", size, fields, images, labels, skipped)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise unreadable(shard, error) from None
    if not labels:
        return Scan(images, [])
    members = [
        image._replace(label=labels.get(stem(image.name), labels.get(_key(image.name))))
        for image in images
    ]
    bare = [member.name for member in members if member.label is None]
    if bare:
        raise DataError(
            f"{shard}: {len(bare)} of {len(members)} images have no label, the first {bare[0]}. "
            f"Add {stem(bare[0])}.cls to the file, or remove the image."
        )
    return Scan(members, [])


def _scan(
    opened: BinaryIO,
    shard: str,
    folder: str,
    end: int,
    fields: Sequence[str],
    images: list[Member],
    labels: dict[str, Label],
    skipped: SkippedFiles,
) -> None:
    """Adds the images and labels of the tar file from where `opened` is to the byte `end`."""
    with tarfile.open(fileobj=opened, mode="r:") as tar:
        while (entry := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all that it has read
            name = folder + entry.name.removeprefix("./")
            kind = name[name.rfind(".") :].lower()
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                skipped.add(BROKEN_LINKS, f"{shard}/{name}")
            elif kind in (".cls", ".json"):
                opened.seek(entry.offset_data)
                labels[stem(name)] = _read_label(
                    opened.read(min(entry.size, MAX_LABEL_BYTES)), kind, f"{shard}/{name}", fields
                )
            elif kind == ".tar" and not folder:
                opened.seek(entry.offset_data)
                inner = entry.offset_data + entry.size
                _scan(opened, shard, f"{stem(name)}/", inner, fields, images, labels, skipped)
            elif is_image_name(name, shard, skipped):
                if entry.size:
                    images.append(Member(name, None, entry.offset_data, entry.size))
                else:
                    skipped.add(EMPTY_FILES, f"{shard}/{name}")

        _check_end(opened, tar.offset, end)


def _check_end(opened: BinaryIO, start: int, end: int) -> None:
    """Raises `tarfile.ReadError` where there is no end of an archive: tarfile takes a broken header
    for it, and all that follows would be left out.
    """
    opened.seek(start)
    rest = opened.read(min(end - start, LOOKED_AT))
    if len(rest) < tarfile.BLOCKSIZE or rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise tarfile.ReadError(f"it breaks off at byte {start}")
    if rest.strip(b"\0"):
        raise tarfile.ReadError(f"another archive follows its end at byte {start}")


def _key(name: str) -> str:
    """What WebDataset takes for a sample's key: the path up to the name's first dot."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _read_label(content: bytes, kind: str, place: str, fields: Sequence[str]) -> Label:
    """The class that a label file names: its name, or its number."""
    try:
        value: Any = content.decode().strip()
        if kind == ".json":
            value = json.loads(value)
            if isinstance(value, dict):
                value = next((value[key] for key in fields if key in value), None)
        elif value.isdecimal():
            value = int(value)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        expected = f"an entry {' or '.join(fields[:3])}" if kind == ".json" else "a class"
        raise DataError(f"{place}: has no label: {expected} must be there. Correct it.")
    return value
