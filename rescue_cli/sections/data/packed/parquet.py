"""Parquet files with a column of encoded images, as the Hugging Face hub has them.

pyarrow reads rows; that an image can be read alone needs the place of its bytes, which the pages'
headers tell (https://github.com/apache/parquet-format).
"""

import contextlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescue_cli.errors import DataError, UsageError
from rescue_cli.sections.data.listing import EMPTY_FILES, SkippedFiles
from rescue_cli.sections.data.packed.members import Block, Member, Scan, unreadable

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class")
DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # types of pages
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8  # encodings of values
HEADER_BYTES = 1 << 14  # of a page's header at first; one with long statistics has more
LENGTH = struct.Struct("<I")
# What reading a broken file raises here
BROKEN = (OSError, EOFError, ValueError, OverflowError, MemoryError, struct.error)


class Span(NamedTuple):
    """Where a value lies, as in `Member`."""

    offset: int
    size: int
    block: int


class Columns(NamedTuple):
    """The columns that are read: of encoded images, of their paths if there is one, of classes."""

    image: str
    path: str | None
    label: str
    classes: tuple[str, ...]


def scan_parquet(
    opened: BinaryIO, shard: str, skipped: SkippedFiles, label_field: str | None
) -> Scan:
    """The images of a parquet file; raises `DataError`, and `UsageError` without pyarrow."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{shard}: pyarrow, which reads parquet, is not installed. Use pip install "
            "'rescue[parquet]'."
        ) from None
    try:
        with parquet.ParquetFile(opened) as table:
            columns = _choose_columns(shard, table.schema_arrow, label_field)
            metadata, names = table.metadata, [c.path for c in table.schema]
            number = names.index(columns.image)
            levels = table.schema.column(number).max_definition_level
            if metadata.num_row_groups == 0:
                return Scan([], [])
            codec = metadata.row_group(0).column(number).compression
            pages = _Pages(opened, "" if codec == "UNCOMPRESSED" else codec.lower(), levels)
            members: list[Member] = []
            row = 0
            for group in range(metadata.num_row_groups):
                spans = pages.read(metadata.row_group(group).column(number))
                values = [columns.label, *([columns.path] if columns.path else [])]
                rows = table.read_row_group(group, columns=values)
                of_rows = zip(spans, *(_values(rows, name) for name in values), strict=True)
                for span, label, *path in of_rows:
                    name = (path[0] if path else None) or f"{PurePosixPath(shard).stem}-{row:08}"
                    row += 1
                    if span is None or span.size == 0:
                        skipped.add(EMPTY_FILES, f"{shard}/{name}")
                        continue
                    if label is None:
                        raise DataError(f"{shard}: row {row - 1} has no {columns.label}. Add it.")
                    members.append(Member(_plain_path(name), label, *span))
    except (KeyError, IndexError):
        raise unreadable(shard, "a page is broken") from None
    except (pa.ArrowException, *BROKEN) as error:
        raise unreadable(shard, error) from None
    return Scan(members, pages.blocks, pages.codec, columns.classes)


def _plain_path(path: str) -> str:
    """The path as it may stand in an archive: relative, and of plain parts."""
    parts = path.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part.strip(".")) or path


def _values(rows: Any, column: str) -> list[Any]:
    """A column's values, of a column inside a struct as well (`image.path`)."""
    name, *inside = column.split(".")
    values = rows.column(name)
    for part in inside:
        values = values.combine_chunks().field(part)
    listed: list[Any] = values.to_pylist()
    return listed


def _choose_columns(shard: str, schema: Any, label_field: str | None) -> Columns:
    """Raises `DataError` where the images or the classes could be several columns, or none."""
    import pyarrow as pa

    features: dict[str, Any] = {}
    with contextlib.suppress(KeyError, ValueError, TypeError):  # not all are written by `datasets`
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    images = {}
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            has_path = kind.get_field_index("path") >= 0
            images[field.name] = (f"{field.name}.bytes", f"{field.name}.path" * has_path or None)
        elif (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and (
            field.name.lower() in IMAGE_COLUMNS
        ):
            images[field.name] = (field.name, None)
    names = ", ".join(schema.names)
    if len(images) != 1:
        raise DataError(
            f"{shard}: {len(images)} of the columns ({names}) hold encoded images "
            "(image: {bytes, path}, or bytes), and must be one."
        )
    (image, path) = next(iter(images.values()))
    coded = [name for name, each in features.items() if each.get("_type") == "ClassLabel"]
    labels = coded or [name for name in LABEL_COLUMNS if name in schema.names]
    if label_field is not None:
        labels = [label_field] if label_field in schema.names else []
    elif len(labels) > 1 and LABEL_COLUMNS[0] in labels:
        labels = [LABEL_COLUMNS[0]]
    if len(labels) != 1:
        several = f"several may ({', '.join(labels)})" if labels else "none does"
        raise DataError(
            f"{shard}: which of the columns ({names}) holds the classes? By its name {several}. "
            "Say it with data.label_field=COLUMN."
        )
    classes = features.get(labels[0], {}).get("names") or ()
    return Columns(image, path, labels[0], tuple(map(str, classes)))


class _Pages:
    """Finds the values in the pages of a column of bytes, one row group after another."""

    def __init__(self, file: BinaryIO, codec: str, levels: int) -> None:
        self.file = file
        self.codec = codec
        self.levels = levels  # the definition level of a value that is not null
        self.blocks: list[Block] = []

    def read(self, chunk: Any) -> list[Span | None]:
        """Each row's value; None for null."""
        starts = [chunk.data_page_offset, chunk.dictionary_page_offset]
        at = min(start for start in starts if start)
        end = at + chunk.total_compressed_size
        rows: list[Span | None] = []
        dictionary: list[Span] = []
        while at < end:
            header, length = self._header(at)
            at += length
            body = Block(at, header[3], header[2])
            at += header[3]
            if header[1] == DICTIONARY:
                dictionary = self._plain(*self._unpack(body))
            elif header[1] == DATA:
                rows += self._data_page(body, header[5], dictionary)
            elif header[1] == DATA_V2:
                rows += self._data_page_v2(body, header[8], dictionary)
        if len(rows) != chunk.num_values:
            raise EOFError(f"a column of {chunk.num_values} rows has {len(rows)} in its pages")
        return rows

    def _header(self, at: int) -> tuple[dict[int, Any], int]:
        """A page's header, by number of field, and its length in bytes."""
        size = HEADER_BYTES
        while True:
            self.file.seek(at)
            data = self.file.read(size)
            try:
                return read_struct(data, 0)
            except IndexError:
                if len(data) < size:
                    raise EOFError("a page's header is cut off") from None
            size *= 8

    def _unpack(self, block: Block) -> tuple[bytes, int, int]:
        """The block's bytes; where they begin in the file, and -1; or 0, and the block's number."""
        self.file.seek(block.offset)
        data = self.file.read(block.size)
        if not self.codec:
            return data, block.offset, -1
        self.blocks.append(block)
        return unpack(data, self.codec, block.unpacked), 0, len(self.blocks) - 1

    def _plain(self, data: bytes, start: int, block: int, at: int = 0) -> list[Span]:
        """Values that each follow their length."""
        spans = []
        while at < len(data):
            (size,) = LENGTH.unpack_from(data, at)
            at += LENGTH.size
            if at + size > len(data):
                raise EOFError("a value is longer than its page")
            spans.append(Span(start + at, size, block))
            at += size
        return spans

    def _data_page(
        self, body: Block, header: dict[int, Any], dictionary: list[Span]
    ) -> Iterator[Span | None]:
        data, start, block = self._unpack(body)
        count, encoding, at = header[1], header[2], 0
        present = np.ones(count, dtype=bool)
        if self.levels:
            (length,) = LENGTH.unpack_from(data)
            at = LENGTH.size + length
            present = self._present(data[LENGTH.size : at], count)
        return self._rows(present, encoding, (data, start, block), at, dictionary)

    def _data_page_v2(
        self, body: Block, header: dict[int, Any], dictionary: list[Span]
    ) -> Iterator[Span | None]:
        """Its levels come before what is compressed."""
        count, encoding, length = header[1], header[4], header[5] + header[6]
        self.file.seek(body.offset)
        present = self._present(self.file.read(length), count)
        values = Block(body.offset + length, body.size - length, body.unpacked - length)
        if header.get(7, True):
            unpacked = self._unpack(values)
        else:
            unpacked = self.file.read(values.size), values.offset, -1
        return self._rows(present, encoding, unpacked, 0, dictionary)

    def _present(self, data: bytes, count: int) -> NDArray[np.bool_]:
        """Which of the rows are not null, by their definition levels."""
        if not self.levels:
            return np.ones(count, dtype=bool)
        levels = read_runs(data, 0, self.levels.bit_length(), count)
        return np.equal(levels, self.levels)

    def _rows(
        self,
        present: NDArray[np.bool_],
        encoding: int,
        unpacked: tuple[bytes, int, int],
        at: int,
        dictionary: Sequence[Span],
    ) -> Iterator[Span | None]:
        if encoding == PLAIN:
            spans = self._plain(*unpacked, at)
        elif encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
            data, count = unpacked[0], int(present.sum())
            places = read_runs(data, at + 1, data[at], count) if count else ()
            spans = [dictionary[place] for place in places]
        else:
            raise OSError(f"encoding {encoding} of its images is not supported; write them plain")
        if len(spans) < present.sum():
            raise EOFError("a page has fewer values than rows")
        each = iter(spans)
        return (next(each) if is_there else None for is_there in present)


def unpack(data: bytes, codec: str, size: int) -> bytes:
    """Decompresses a page to its `size` in bytes; raises `OSError`."""
    import pyarrow as pa

    try:
        unpacked: bytes = pa.decompress(data, size, codec=codec, asbytes=True)
    except pa.ArrowException as error:
        raise OSError(str(error)) from None
    return unpacked


def read_runs(data: bytes, at: int, width: int, count: int) -> NDArray[np.int64]:
    """`count` numbers of `width` bits in parquet's hybrid of runs and packed bits."""
    values = np.zeros(0, dtype=np.int64)
    while len(values) < count:
        header, at = read_varint(data, at)
        if header & 1:
            size = (header >> 1) * width
            packed = np.frombuffer(data, np.uint8, min(size, len(data) - at), at)
            bits = np.unpackbits(packed, bitorder="little")
            rows = bits[: len(bits) // width * width].reshape(-1, width)
            run = rows.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
            at += size
        else:
            size = (width + 7) // 8
            run = np.full(header >> 1, int.from_bytes(data[at : at + size], "little"))
            at += size
        if not len(run):
            raise EOFError("a run of levels is empty")
        values = np.concatenate([values, run])
    return values[:count]


# --- Thrift's compact protocol ---


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number and where it ends; raises `IndexError`."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct's values by number of field, and where it ends; raises `IndexError`."""
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            zigzag, at = read_varint(data, at)
            number = (zigzag >> 1) ^ -(zigzag & 1)
        fields[number], at = _read_value(data, at, head & 0x0F)
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2:
            return kind == 1, at
        case 3:
            return data[at], at + 1
        case 4 | 5 | 6:
            zigzag, at = read_varint(data, at)
            return (zigzag >> 1) ^ -(zigzag & 1), at
        case 7:
            return None, at + 8
        case 8:
            size, at = read_varint(data, at)
            data[at + size]  # is there
            return data[at : at + size], at + size
        case 9 | 10:
            head, at = data[at], at + 1
            size = head >> 4
            if size == 15:
                size, at = read_varint(data, at)
            values = []
            for _ in range(size):
                value, at = _read_value(data, at, head & 0x0F)
                values.append(value)
            return values, at
        case 12:
            return read_struct(data, at)
        case _:
            raise OSError(f"a page's header has a value of unknown type {kind}")
