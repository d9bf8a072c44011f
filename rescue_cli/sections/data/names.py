"""Names as people's file systems and editors write them: normal forms, byte order marks, spaces."""

import codecs
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from rescue_cli.errors import DataError

# Longest first: UTF-32's mark begins with UTF-16's. Notepad and PowerShell write them
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def plain(name: str) -> str:
    """The name in Unicode's composed form (NFC), without spaces and line ends around it.

    macOS and the archives made there hold an accent as a character of its own (NFD).
    """
    return unicodedata.normalize("NFC", name).strip("\ufeff \t\r\n")


def shown(name: object) -> str:
    """The name for a person; bytes that are no UTF-8 as `\\udc..`, which can be printed."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def file_of(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder, in whichever normal form it lies there."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((p for form in dict.fromkeys(forms) if (p := folder / form).is_file()), None)


def demand_utf8(path: Path) -> None:
    """Raises `DataError` for a name of bytes that are no UTF-8."""
    if not os.fsencode(path.name).isascii() and shown(path.name) != path.name:
        raise DataError(
            f"{shown(path)}: its name is not UTF-8, and a class is called by it. Rename it "
            "(convmv -f latin1 -t utf8 --notest does so)."
        )


def lines_of(file: Path) -> list[str]:
    """The lines that are not empty, in UTF-8 or as a byte order mark says; raises `DataError`."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from None
    mark, encoding = next((m for m in _MARKS if content.startswith(m[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}: line {line} is not {encoding}. Save it as UTF-8.") from None
    every = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in every if line.strip()]


def row_of(
    line: str, is_file: Callable[[str], bool], is_class: Callable[[str], bool]
) -> tuple[str, str] | None:
    """File and class of a line `FILE CLASS` or `FILE,CLASS`, either of which may hold spaces.

    Where what stands after a file is no class, its first word is taken for it: Kaggle's tables go
    on after the class. None where no known file stands before a comma or a space.
    """
    places = [place for place, letter in enumerate(line) if letter in ", \t"]
    parts = [tuple(plain(part).strip('"') for part in (line[:p], line[p + 1 :])) for p in places]
    rows = [(file, label) for file, label in parts if is_file(file)]
    for row in rows:
        if is_class(row[1]):
            return row
    return next(((file, re.split(r"[,\s]", label)[0]) for file, label in rows), None)


def stem(name: str) -> str:
    """The name up to its ending."""
    return name.rpartition(".")[0] or name
