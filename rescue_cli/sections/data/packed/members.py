"""What a shard holds, before it is put in order."""

from pathlib import PurePosixPath
from typing import NamedTuple

from rescue_cli.errors import DataError
from rescue_cli.sections.data.listing import (
    HIDDEN_FILES,
    SkippedFiles,
    image_extensions,
    is_hidden,
)

Label = str | int | None


class Member(NamedTuple):
    """An image's bytes in a shard: in the file itself, or in one of its compressed `blocks`.

    `name`: its path with `/`, which begins with its class where `label` is None. `label`: the name
    of its class, or its number.
    """

    name: str
    label: Label
    offset: int  # in bytes, from the start of the file or of the unpacked block
    size: int
    block: int = -1


class Block(NamedTuple):
    """Compressed bytes of a shard, which are unpacked as a whole."""

    offset: int
    size: int
    unpacked: int


class Scan(NamedTuple):
    """The images of a shard in its order; the names of its classes by number, if it has any.

    `codec`: what the blocks are compressed with.
    """

    members: list[Member]
    blocks: list[Block]
    codec: str = ""
    classes: tuple[str, ...] = ()


def is_image_name(name: str, shard: object, skipped: SkippedFiles) -> bool:
    """Whether this is the path of an image that is read; counts it in `skipped` if it is not."""
    path = PurePosixPath(name)
    if any(is_hidden(part) for part in path.parts):
        skipped.add(HIDDEN_FILES, f"{shard}/{name}")
        return False
    if path.suffix.lower() not in image_extensions():
        skipped.add_file(f"{shard}/{name}")
        return False
    return True


def unreadable(shard: object, reason: object) -> DataError:
    """The error for a shard whose structure is broken."""
    return DataError(f"{shard}: cannot be read: {reason}. Copy or download the file again.")
