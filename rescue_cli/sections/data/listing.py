"""What lies in a folder: images of every kind that can be read, and what is passed over."""

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image, features

from rescue_cli.errors import DataError

# PIL's names of what holds a picture; of several frames or pages the first is read
FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "TGA"}
FORMATS |= {"AVIF", "HEIF", "QOI", "PCX", "SGI", "ICO"}
# What file managers leave behind: Windows', macOS' (in archives), Synology's
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}
SYSTEM_FILES |= {"system volume information", "lost+found"}
HIDDEN_FILES = "hidden or of the system"
OTHER_EXTENSIONS = "with another ending than an image's"
EMPTY_FILES = "empty"
BROKEN_LINKS = "broken links or no files"
BESIDE_CLASSES = "beside the class folders"
LINK_CYCLE = "links to a folder above them"
EXTENSIONS_WITH_PLUGIN = {".avif", ".avifs", ".heic", ".heif", ".hif"}
NO_DECODER = "without a decoder here (for .heic: pip install pillow-heif)"
# Longest first: UTF-32's mark begins with UTF-16's. Notepad and PowerShell write them
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@lru_cache
def image_extensions() -> frozenset[str]:
    """The endings of the images that can be read here, HEIC's where `pillow-heif` is there."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    formats = FORMATS if features.check("avif") else FORMATS - {"AVIF"}
    known = Image.registered_extensions()
    return frozenset(e for e, kind in known.items() if kind in formats and kind in Image.OPEN)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no one's image: hidden (macOS' `._x.jpg`), or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


@dataclass
class SkippedFiles:
    """What was not read, by the reason, with the first of each; `told` are sentences of their own.

    `sizes` asks for the size of every file: an empty one is passed over. Files called as in `read`
    are read as something else.
    """

    sizes: bool = False
    read: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    extensions: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def add(self, reason: str, path: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, path)

    def add_file(self, path: str) -> None:
        """A file whose ending is no known image's."""
        ending = os.path.splitext(path)[1].lower()
        self.add(NO_DECODER if ending in EXTENSIONS_WITH_PLUGIN else OTHER_EXTENSIONS, path)
        self.extensions[ending or "none"] += 1

    def join(self, other: "SkippedFiles") -> None:
        self.counts += other.counts
        self.extensions += other.extensions
        self.first = {**other.first, **self.first}
        self.told += other.told

    def listed(self) -> str:
        """How much of each, on one line; empty where there is nothing."""
        parts = []
        for reason, count in self.counts.items():
            most = ", ".join(f"{n} {ending}" for ending, n in self.extensions.most_common(5))
            of = f" ({most})" if reason == OTHER_EXTENSIONS else ""
            parts.append(f"{count} {reason}{of}, the first {printable(self.first[reason])}")
        return "; ".join(parts)

    def notes(self) -> tuple[str, ...]:
        """A sentence each, for `Dataset.notes`."""
        listed = self.listed()
        return (*self.told, *([f"files passed over: {listed}"] if listed else []))


def list_images(folder: Path, passed: SkippedFiles) -> list[str]:
    """The images in the folder and in those below, as paths from it; raises `DataError`.

    In torchvision's order: those of the folder itself by name, then folder by folder.
    """
    return list_files(folder, image_extensions(), passed)


def list_files(folder: Path, kinds: Collection[str], passed: SkippedFiles) -> list[str]:
    """As `list_images`, the files with one of these endings."""
    every = _walk_folder(str(folder), "", kinds, passed, frozenset())
    found = sorted(every, key=lambda each: each[0].removesuffix("/"))
    return [f"{below}{name}" for below, names in found for name in sorted(names)]


def _walk_folder(
    root: str, below: str, kinds: Collection[str], passed: SkippedFiles, above: frozenset[object]
) -> Iterator[tuple[str, list[str]]]:
    """(path from the root with its slash, names) of the folder and of each below it."""
    here = os.path.join(root, below)
    names, folders = [], []
    try:
        status = os.stat(here)
        if (me := (status.st_dev, status.st_ino)) in above:
            passed.add(LINK_CYCLE, here)
            return
        with os.scandir(here) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    passed.add(HIDDEN_FILES, entry.path)
                elif _is_folder(entry):
                    folders.append(entry.name)
                elif entry.name[entry.name.rfind(".") :].lower() not in kinds:
                    if entry.name not in passed.read:
                        passed.add_file(entry.path)
                elif not _is_file(entry):
                    passed.add(BROKEN_LINKS, entry.path)
                elif passed.sizes and entry.stat().st_size == 0:
                    passed.add(EMPTY_FILES, entry.path)
                else:
                    names.append(entry.name)
    except OSError as error:
        raise DataError(f"{printable(here)}: cannot be listed: {error.strerror}.") from None
    yield below, names
    for name in folders:
        yield from _walk_folder(root, f"{below}{name}/", kinds, passed, above | {me})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def list_folders(root: Path) -> list[str]:
    """The names of the folders right below `root` that may be someone's; raises `DataError`.

    None where there is no such folder.
    """
    if not root.is_dir():
        return []
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if not is_hidden(e.name) and _is_folder(e))
    except OSError as error:
        raise DataError(f"{root}: cannot be listed: {error.strerror}.") from None


def count_stray_files(root: Path, passed: SkippedFiles) -> None:
    """Counts what lies beside the folders below `root` and may have been meant."""
    with os.scandir(root) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                passed.add(HIDDEN_FILES, entry.path)
            elif _is_image(entry):
                passed.add(BESIDE_CLASSES, entry.path)


def holds_images(folder: Path, depth: int) -> bool:
    """Whether an image lies in the folder itself, or in those at most `depth` below it."""
    try:
        with os.scandir(folder) as entries:
            if any(_is_image(entry) for entry in entries):
                return True
        return depth > 0 and any(
            holds_images(folder / name, depth - 1) for name in list_folders(folder)
        )
    except (OSError, DataError):
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    ending = os.path.splitext(entry.name)[1].lower()
    return ending in image_extensions() and not is_hidden(entry.name) and not _is_folder(entry)


def index_by_stem(folder: Path, kinds: Collection[str]) -> dict[str, str]:
    """The files with these endings by their paths without them, in the composed normal form.

    Of files that differ in their endings alone a JPEG is taken. Empty where there is no folder.
    """
    if not folder.is_dir():
        return {}
    names = list_files(folder, kinds, SkippedFiles())
    names.sort(key=lambda name: name.lower().endswith((".jpg", ".jpeg")))
    return {normalise_name(stem(name)): name for name in names}


# --- splits ---

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_name(name: str) -> str | None:
    """Which split a folder of this name holds: `val` for `Validation`; None for any other name."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def find_split_folder(root: Path, split: str) -> Path | None:
    """The split's folder below `root`, by its own name or another of it; raises `DataError`."""
    if (root / split).is_dir():
        return root / split
    found = [name for name in list_folders(root) if split_name(name) == split]
    if len(found) > 1:
        raise DataError(
            f"{root}: holds {' and '.join(found)}, and each may be '{split}'. Rename one, or name "
            f"the folders: data.train_root=, data.test_root=."
        )
    return root / found[0] if found else None


def list_split_folders(root: Path) -> list[str]:
    """The names of the folders below `root` that are splits."""
    return [name for name in list_folders(root) if split_name(name)]


# --- names, and files of names ---


def normalise_name(name: str) -> str:
    """The name in Unicode's composed form (NFC), without spaces and line ends around it.

    macOS and the archives made there hold an accent as a character of its own (NFD).
    """
    return unicodedata.normalize("NFC", name).strip("\ufeff \t\r\n")


def printable(name: object) -> str:
    """The name for a person; bytes that are no UTF-8 as `\\udc..`, which can be printed."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder, in whichever normal form it lies there."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((p for form in dict.fromkeys(forms) if (p := folder / form).is_file()), None)


def check_utf8(path: Path) -> None:
    """Raises `DataError` for a name of bytes that are no UTF-8."""
    if not os.fsencode(path.name).isascii() and printable(path.name) != path.name:
        raise DataError(
            f"{printable(path)}: its name is not UTF-8, and a class is called by it. Rename it "
            "(convmv -f latin1 -t utf8 --notest does so)."
        )


def read_lines(file: Path) -> list[str]:
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


def stem(name: str) -> str:
    """The name up to its ending."""
    return name.rpartition(".")[0] or name
