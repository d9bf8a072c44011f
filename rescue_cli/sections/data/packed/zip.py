"""Zip files of class folders."""

import struct
import zipfile
from typing import BinaryIO

from rescue_cli.errors import DataError
from rescue_cli.sections.data.listing import EMPTY_FILES, SkippedFiles
from rescue_cli.sections.data.packed.members import Block, Member, Scan, is_image_name, unreadable

LOCAL_HEADER = struct.Struct("<26x2H")  # of which the lengths of name and extra field are read
ENCRYPTED = 0x1


def scan_zip(opened: BinaryIO, shard: str, skipped: SkippedFiles) -> Scan:
    """The images of a zip file, stored or deflated; raises `DataError`, which names `shard`."""
    members: list[Member] = []
    blocks: list[Block] = []
    try:
        with zipfile.ZipFile(opened) as archive:
            for entry in archive.infolist():
                if entry.is_dir() or not is_image_name(entry.filename, shard, skipped):
                    continue
                if entry.file_size == 0:
                    skipped.add(EMPTY_FILES, f"{shard}/{entry.filename}")
                    continue
                method = entry.compress_type
                if entry.flag_bits & ENCRYPTED or method not in (
                    zipfile.ZIP_STORED,
                    zipfile.ZIP_DEFLATED,
                ):
                    raise DataError(
                        f"{shard}/{entry.filename}: is encrypted or compressed by another method "
                        "than deflate. Unpack the file."
                    )
                opened.seek(entry.header_offset)
                # The lengths in the central directory may differ from those before the data
                lengths = LOCAL_HEADER.unpack(opened.read(LOCAL_HEADER.size))
                start = entry.header_offset + LOCAL_HEADER.size + sum(lengths)
                if method == zipfile.ZIP_STORED:
                    members.append(Member(entry.filename, None, start, entry.file_size))
                else:
                    members.append(Member(entry.filename, None, 0, entry.file_size, len(blocks)))
                    blocks.append(Block(start, entry.compress_size, entry.file_size))
    # The last two are of names and of features that zipfile does not know
    except (
        zipfile.BadZipFile,
        struct.error,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise unreadable(shard, error) from None
    return Scan(members, blocks, "deflate")
