"""Where each image lies in a data set's shards: made once, kept on disk, memory-mapped."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescue_cli.errors import DataError, RescueError
from rescue_cli.rng import Indices
from rescue_cli.rundir import write_atomically
from rescue_cli.sections.data.first_process import lock_first
from rescue_cli.sections.data.listing import SkippedFiles, image_extensions, normalise_name
from rescue_cli.sections.data.packed.members import Label, Scan

VERSION = 1  # of what is kept on disk
TABLE = "index.json"


class Shard(NamedTuple):
    """A file: its path or URL, its size, what changes with its content (a time, an ETag), and its
    SHA-256 where the pack of a store says it.
    """

    place: str
    size: int
    stamp: str
    sha256: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether it lies on a store."""
        return "://" in self.place


@dataclass(frozen=True)
class PackedIndex:
    """The images of shards by class, and in a class by folder and name, as folders are listed.

    Arrays are memory-mapped. `blocks`: offset, size and unpacked size of compressed blocks.
    """

    shards: tuple[Shard, ...]
    codec: str
    classes: tuple[str, ...]
    numbers: Mapping[str, int]  # of the classes, where the shards have numbers
    notes: tuple[str, ...]
    resized: str  # what was done to the images; empty for originals
    name_bytes: NDArray[np.uint8]  # as `FileNames` has them
    name_ends: Indices
    labels: Indices  # the index of the class
    shard: NDArray[np.int32]
    offset: Indices
    size: Indices
    block: NDArray[np.int32]
    blocks: Indices  # (blocks, 3)
    stored: Indices  # the images in the order in which the shards hold them

    def __len__(self) -> int:
        return len(self.labels)


ARRAYS = (
    "name_bytes",
    "name_ends",
    "labels",
    "shard",
    "offset",
    "size",
    "block",
    "blocks",
    "stored",
)


def load_index(
    shards: Sequence[Shard],
    folder: str,
    names: Sequence[str],
    resized: str,
    key: str,
    shipped: Path | None,
    scan: Callable[[Shard, SkippedFiles], Scan],
) -> PackedIndex:
    """The index of the images below `folder` (with its slash, or empty) in these shards.

    Read from the user's cache, where it is kept for these shards, sizes and stamps; else made,
    by one process for all. Raises `DataError`.

    Args:
        names: The names of the classes by number, where the shards themselves have none.
        resized: What was done to the images.
        key: What else the index depends on.
        shipped: A file that `save_index` wrote beside these shards, which need not be read then.
    """
    facts = [VERSION, *shards, folder, names, resized, key, sorted(image_extensions())]
    kept = cache_folder() / "indexes" / digest(facts)
    if (index := _read(kept)) is not None:
        return index
    with lock_first(kept.with_suffix(".lock")) as first:
        if not first and (index := _read(kept)) is not None:
            return index
        if shipped is not None:
            table, arrays = _read_shipped(shipped, shards)
        else:
            table, arrays = _Builder(shards, folder, names).build(scan)
        return _keep(kept, {**table, "resized": resized}, arrays)


def save_index(index: PackedIndex, file: Path) -> None:
    """Writes the index into one file, to go along with its shards."""
    table = {"codec": index.codec, "classes": index.classes, "numbers": index.numbers, "notes": []}
    arrays = {name: getattr(index, name) for name in ARRAYS}
    arrays["table"] = np.array(json.dumps(table))
    write_atomically(file, lambda opened: np.savez_compressed(opened, **arrays))


def _read_shipped(
    file: Path, shards: Sequence[Shard]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            table = json.loads(str(arrays["table"]))
            return {**table, "shards": shards}, {name: arrays[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{file}: cannot be read: {error}. Copy it again, or delete it: the shards are then "
            "read once to make it."
        ) from None


def kept_text(kind: str, shard: Shard, make: Callable[[], str]) -> str:
    """What `make` returns about a shard, read from the user's cache where it is there."""
    facts = [VERSION, kind, *shard, sorted(image_extensions())]
    file = cache_folder() / "indexes" / f"{digest(facts)}.json"
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        text = make()
    content = text.encode("utf-8", "surrogateescape")
    with contextlib.suppress(RescueError):  # without the cache it is only made again
        write_atomically(file, lambda opened: opened.write(content))
    return text


def digest(facts: Sequence[Any]) -> str:
    """A name for what is kept about these facts."""
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def cache_folder() -> Path:
    """The folder for what can be made again, which accounts may share."""
    return Path(os.environ.get("RESCUE_CACHE") or own_cache_folder())


def own_cache_folder() -> Path:
    """The same of this account alone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rescue")


def _read(kept: Path) -> PackedIndex | None:
    """The index that is kept in this folder; None where there is none that can be used."""
    try:
        table = json.loads((kept / TABLE).read_text(encoding="utf-8", errors="surrogateescape"))
        arrays = {
            name: np.asarray(np.load(kept / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            for name in ARRAYS
        }
        return PackedIndex(
            shards=tuple(Shard(*each) for each in table["shards"]),
            codec=table["codec"],
            classes=tuple(table["classes"]),
            numbers=table["numbers"],
            notes=tuple(table["notes"]),
            resized=table["resized"],
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _keep(kept: Path, table: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> PackedIndex:
    """Writes the index whole or not at all; elsewhere, for this process, where that fails."""
    try:
        folder = kept.parent / f".partial-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)  # not by mkdtemp: a shared cache is read by other accounts
    except OSError:
        folder, kept = Path(tempfile.mkdtemp(prefix="rescue-index-")), Path()
    try:
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        text = json.dumps(table)
        (folder / TABLE).write_text(text, encoding="utf-8", errors="surrogateescape")
        if kept.name:
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(folder, kept)
            folder = kept
        index = _read(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the index of the shards cannot be written: {error.strerror}. Make room, or "
            "set RESCUE_CACHE to another folder."
        ) from None
    finally:
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays until the end
    assert index is not None
    return index


def stored_order(shard: NDArray[np.int32], block: NDArray[np.int32], offset: Indices) -> Indices:
    """The order of images in storage, from where each lies (n,)."""
    order: Indices = np.lexsort((offset, block, shard))
    return order


@dataclass
class _Builder:
    """Collects the images of all shards, and puts them in order."""

    shards: Sequence[Shard]
    folder: str
    names: Sequence[str]
    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    codec: str = ""
    ids: dict[Label, int] = field(default_factory=dict)  # by label
    folders: dict[Label, str | None] = field(default_factory=dict)  # where all of its images lie
    name_bytes: bytearray = field(default_factory=bytearray)
    name_ends: "array[int]" = field(default_factory=lambda: array("q"))
    label_ids: "array[int]" = field(default_factory=lambda: array("i"))
    shard: "array[int]" = field(default_factory=lambda: array("i"))
    offset: "array[int]" = field(default_factory=lambda: array("q"))
    size: "array[int]" = field(default_factory=lambda: array("q"))
    block: "array[int]" = field(default_factory=lambda: array("i"))
    blocks: list[tuple[int, int, int]] = field(default_factory=list)

    def build(
        self, scan: Callable[[Shard, SkippedFiles], Scan]
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What is kept: the table and the arrays."""
        for number, shard in enumerate(self.shards):
            self._add(number, shard, scan(shard, self.skipped))
        if not self.name_ends:
            summary = self.skipped.summary() or "nothing"
            raise DataError(f"{self.shards[0].place}: no readable image in it ({summary}).")
        names = self._class_names()
        classes = sorted(set(names.values()))
        place = {name: index for index, name in enumerate(classes)}
        rank = np.array([place[names[label]] for label in self.ids], dtype=np.int64)
        order, labels, name_bytes, name_ends = self._sort(classes, rank)
        arrays: dict[str, NDArray[Any]] = {
            "name_bytes": name_bytes,
            "name_ends": name_ends,
            "labels": labels,
            "shard": np.array(self.shard, np.int32)[order],
            "offset": np.array(self.offset, np.int64)[order],
            "size": np.array(self.size, np.int64)[order],
            "block": np.array(self.block, np.int32)[order],
            "blocks": np.array(self.blocks, np.int64).reshape(-1, 3),
        }
        arrays["stored"] = stored_order(arrays["shard"], arrays["block"], arrays["offset"])
        table = {
            "shards": self.shards,
            "codec": self.codec,
            "classes": classes,
            "numbers": {names[label]: label for label in self.ids if isinstance(label, int)},
            "notes": self.skipped.notes(),
        }
        return table, arrays

    def _add(self, number: int, shard: Shard, scan: Scan) -> None:
        """Adds a shard's images; raises `DataError` where it does not go with those before."""
        if scan.classes and self.names and tuple(self.names) != scan.classes:
            raise DataError(
                f"{shard.place}: its {len(scan.classes)} classes are not those of "
                f"{self.shards[0].place}. Give shards of one data set."
            )
        if scan.blocks and self.codec not in ("", scan.codec):
            raise DataError(
                f"{shard.place}: is compressed by {scan.codec}, and {self.shards[0].place} by "
                f"{self.codec}. Give shards that are compressed alike."
            )
        self.names, self.codec = self.names or scan.classes, self.codec or scan.codec
        for member in scan.members:
            if not member.name.startswith(self.folder):
                continue
            name = member.name[len(self.folder) :]
            self.label_ids.append(self._label_id(name, member.label, shard))
            self.name_bytes += name.encode("utf-8", "surrogateescape")
            self.name_ends.append(len(self.name_bytes))
            self.shard.append(number)
            self.offset.append(member.offset)
            self.size.append(member.size)
            block = member.block if member.block < 0 else member.block + len(self.blocks)
            self.block.append(block)
        self.blocks += scan.blocks

    def _label_id(self, name: str, label: Label, shard: Shard) -> int:
        folder, slash, _ = name.partition("/")
        if label is None:
            if not slash:
                raise DataError(
                    f"{shard.place}/{self.folder}{name}: is in no class folder, and has no label. "
                    "Put it into a folder that is named after its class, or write its class into "
                    "KEY.cls beside it (rescue pack does)."
                )
            label = folder
        if self.folders.setdefault(label, folder if slash else None) != folder:
            self.folders[label] = None
        return self.ids.setdefault(label, len(self.ids))

    def _class_names(self) -> dict[Label, str]:
        """The name of each label's class. A number's: as the shards say, else its images' folder,
        where each number has a folder to itself, else the number.
        """
        numbers = [label for label in self.ids if isinstance(label, int)]
        if self.names:
            beyond = [number for number in numbers if not 0 <= number < len(self.names)]
            if beyond:
                raise DataError(
                    f"{self.shards[0].place}: label {beyond[0]}, where there are names of "
                    f"{len(self.names)} classes. Correct the labels or the names."
                )
            listed = Counter(self.names)
            names: dict[Label, str] = {
                n: self.names[n] if listed[self.names[n]] == 1 else f"{self.names[n]} ({n})"
                for n in numbers
            }
        else:
            folders = [self.folders[number] for number in numbers]
            has_own = None not in folders and len(set(folders)) == len(folders)
            names = {n: str(self.folders[n]) if has_own else str(n) for n in numbers}
        names |= {label: normalise_name(label) for label in self.ids if isinstance(label, str)}
        return names

    def _sort(
        self, classes: Sequence[str], rank: Indices
    ) -> tuple[Indices, Indices, NDArray[np.uint8], Indices]:
        """The order of the images, their labels, and their names as `FileNames` has them.

        A name begins with its class. As in torchvision's listing, the files of a folder come
        before those of its subfolders.
        """
        labels = rank[np.array(self.label_ids, dtype=np.int64)]
        by_class = np.argsort(labels, kind="stable")
        ends = np.searchsorted(labels[by_class], np.arange(len(classes)), side="right")
        name_bytes, name_ends, order = bytearray(), array("q"), []
        for class_, part in zip(classes, np.split(by_class, ends[:-1]), strict=True):
            named = [(self._name(int(index), class_), int(index)) for index in part]
            named.sort(key=lambda each: (each[0].rpartition("/")[::2], each[1]))
            for name, _ in named:
                name_bytes += name.encode("utf-8", "surrogateescape")
                name_ends.append(len(name_bytes))
            order.append(np.array([index for _, index in named], dtype=np.int64))
        return (
            np.concatenate(order),
            labels[by_class],
            np.frombuffer(bytes(name_bytes), dtype=np.uint8),
            np.array(name_ends, dtype=np.int64),
        )

    def _name(self, index: int, class_: str) -> str:
        start = self.name_ends[index - 1] if index else 0
        name = self.name_bytes[start : self.name_ends[index]].decode("utf-8", "surrogateescape")
        return name if normalise_name(name).startswith(f"{class_}/") else f"{class_}/{name}"
