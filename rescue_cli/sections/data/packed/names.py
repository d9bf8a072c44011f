"""The images of shards as `FileNames` of a split."""

import contextlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.rng import Indices
from rescue_cli.sections.data.packed import remote
from rescue_cli.sections.data.packed.index import PackedIndex, Shard, stored_order
from rescue_cli.sections.data.packed.members import unreadable
from rescue_cli.sections.data.packed.parquet import unpack
from rescue_cli.sections.data.splits import FileNames, Files, Storage

OPEN_SHARDS = 64  # of a process
OPEN_KEPT = 4  # of those fetched from a store: the disk has no room for a dropped one that is open
UNPACKED_BLOCKS = 4  # kept by a process


@dataclass(frozen=True)
class PackedNames(FileNames):
    """Images inside shards. `rows`: their places in the index; None for all of them.

    `whole`: shards of a store are fetched whole and kept, as far as there is room; else each image
    is read alone.
    """

    index: PackedIndex
    rows: Indices | None = None
    whole: bool = True

    def row(self, position: int) -> int:
        """The place in the index of the image at this position."""
        return position if self.rows is None else int(self.rows[position])

    def read(self, position: int) -> bytes:
        index, row = self.index, self.row(position)
        shard = index.shards[index.shard[row]]
        start, size, block = int(index.offset[row]), int(index.size[row]), int(index.block[row])
        if block < 0:
            return _read_range(shard, start, size, whole=self.whole)
        place = map(int, index.blocks[block])
        return _unpacked(shard, index.codec, *place, whole=self.whole)[start : start + size]

    def place(self, position: int) -> str:
        """The shard, and in it the class and the name of the image."""
        shard = self.index.shards[self.index.shard[self.row(position)]]
        return f"{shard.place}/{self.name(position)}"

    @property
    def resized(self) -> str:
        return self.index.resized

    def stamps(self) -> Iterable[str]:
        for position in range(len(self)):
            row = self.row(position)
            shard = self.index.shards[self.index.shard[row]]
            yield f"{shard.place}\0{shard.size}\0{shard.stamp}\0{self.index.offset[row]}"

    def kept_whole(self) -> "PackedNames":
        return replace(self, whole=True)

    def storage(self) -> Storage:
        """The images in the order in which the shards hold them, and where each shard ends."""
        index = self.index
        if self.rows is None:
            order, shard = index.stored, index.shard
        else:
            shard = index.shard[self.rows]
            order = stored_order(shard, index.block[self.rows], index.offset[self.rows])
        counts = np.bincount(shard, minlength=len(index.shards))
        return Storage(order, np.cumsum(counts[counts > 0]))

    def take(self, indices: Indices) -> "PackedNames":
        names = super().take(indices)
        rows = indices if self.rows is None else self.rows[indices]
        return PackedNames(
            names.root,
            names.block,
            names.ends,
            self.index,
            rows,
            self.whole,
            bytes_listed=names.bytes_listed,
        )


def packed_files(root: Path, index: PackedIndex, label_of: Indices) -> Files:
    """All images of the index, labelled by `label_of` their class (classes,)."""
    in_order = np.array_equal(label_of, np.arange(len(label_of)))
    labels = index.labels if in_order else label_of[index.labels]
    whole = remote.fits_cache(sum(shard.size for shard in index.shards))
    names = PackedNames(
        str(root),
        index.name_bytes,
        index.name_ends,
        index,
        whole=whole,
        bytes_listed=index.size,
    )
    return Files(names, labels)


class _Descriptor:
    """A file that is open until nobody uses it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if "number" in vars(self):
            os.close(self.number)


_open = lru_cache(maxsize=OPEN_SHARDS)(_Descriptor)
_open_kept = lru_cache(maxsize=OPEN_KEPT)(_Descriptor)


def _descriptor_of(shard: Shard) -> _Descriptor:
    if not shard.is_remote:
        return _open(shard.place)
    while True:
        with contextlib.suppress(FileNotFoundError):  # another process has made room meanwhile
            return _open_kept(str(remote.kept_shard(shard)))


def _read_range(shard: Shard, start: int, size: int, *, whole: bool) -> bytes:
    """Bytes of a shard, without a position in the file that forked processes would share.

    Raises `DataError`.
    """
    if shard.is_remote and not whole:
        return remote.read_range(shard, start, size)
    try:
        file = _descriptor_of(shard)  # kept from closing by this name
        data = os.pread(file.number, size, start)
    except OSError as error:  # of many images: none of them is to be replaced as corrupt
        raise unreadable(shard.place, error.strerror) from None
    if len(data) != size:
        raise DataError(
            f"{shard.place}: ends before byte {start + size}, and was longer when it was indexed. "
            "Copy or download the file again."
        )
    return data


@lru_cache(maxsize=UNPACKED_BLOCKS)
def _unpacked(
    shard: Shard, codec: str, start: int, size: int, unpacked: int, *, whole: bool
) -> bytes:
    data = _read_range(shard, start, size, whole=whole)
    if codec != "deflate":
        return unpack(data, codec, unpacked)
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, unpacked)
    except zlib.error as error:
        raise OSError(f"{shard.place}: {error}") from None
