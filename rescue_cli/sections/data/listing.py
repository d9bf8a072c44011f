"""Lists the image files in a folder, normalises their names, and counts the files it skips."""

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

# PIL's names of image formats; of a file with several frames or pages the first is read
FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "TGA"}
FORMATS |= {"AVIF", "HEIF", "QOI", "PCX", "SGI", "ICO"}
# Files and folders that Windows, macOS (in archives) and Synology create
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}
SYSTEM_FILES |= {"system volume information", "lost+found"}
HIDDEN_FILES = "hidden or system files"
OTHER_EXTENSIONS = "without an image extension"
EMPTY_FILES = "empty"
BROKEN_LINKS = "broken links or not regular files"
BESIDE_CLASSES = "outside the class folders"
LINK_CYCLE = "links to a parent folder"
EXTENSIONS_WITH_PLUGIN = {".avif", ".avifs", ".heic", ".heif", ".hif"}
HEIC_CURE = "for .heic: pip install 'rescue[heic]'"
NO_DECODER = f"without a decoder ({HEIC_CURE})"
# Byte order marks, as Notepad and PowerShell write them. UTF-32 precedes UTF-16, whose mark begins
# UTF-32's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@lru_cache
def image_extensions() -> frozenset[str]:
    """The file extensions that PIL can read here; with the extra `heic` also HEIC's."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    formats = FORMATS if features.check("avif") else FORMATS - {"AVIF"}
    registered = Image.registered_extensions()
    return frozenset(e for e, kind in registered.items() if kind in formats and kind in Image.OPEN)


def lacks_decoder(path: str) -> bool:
    """Whether a file has the extension of a format that only the extra `heic` can read."""
    ending = os.path.splitext(path)[1].lower()
    return ending in EXTENSIONS_WITH_PLUGIN and ending not in image_extensions()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (macOS' `._x.jpg`) or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


@dataclass
class SkippedFiles:
    """Counts the files that were not read by reason, with the first path for each reason.

    `check_sizes`: skip empty files (costs a stat per file). `read_elsewhere`: names of files that
    are not images but are read in another way, and so are not counted. `messages`: further notes.
    """

    check_sizes: bool = False
    read_elsewhere: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    extensions: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def add(self, reason: str, path: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, path)

    def add_file(self, path: str) -> None:
        """Counts a file without an image extension."""
        ending = os.path.splitext(path)[1].lower()
        if ending in EXTENSIONS_WITH_PLUGIN:
            self.add(NO_DECODER, path)
            return
        self.add(OTHER_EXTENSIONS, path)
        self.extensions[ending or "none"] += 1

    def merge(self, other: "SkippedFiles") -> None:
        self.counts += other.counts
        self.extensions += other.extensions
        self.first = {**other.first, **self.first}
        self.messages += other.messages

    def summary(self) -> str:
        """The counts on one line; empty where nothing was skipped."""
        parts = []
        for reason, count in self.counts.items():
            common = ", ".join(f"{n} {ending}" for ending, n in self.extensions.most_common(5))
            detail = f" ({common})" if reason == OTHER_EXTENSIONS else ""
            parts.append(f"{count} {reason}{detail}, the first {printable(self.first[reason])}")
        return "; ".join(parts)

    def notes(self) -> tuple[str, ...]:
        """The messages and the summary, one sentence each, for `Dataset.notes`."""
        summary = self.summary()
        return (*self.messages, *([f"skipped files: {summary}"] if summary else []))


def list_images(folder: Path, skipped: SkippedFiles) -> list[str]:
    """Paths, relative to `folder`, of the images in it and in its subfolders; raises `DataError`.

    In torchvision's order: those of the folder itself by name, then folder by folder.
    """
    return list_files(folder, image_extensions(), skipped)


def list_files(folder: Path, extensions: Collection[str], skipped: SkippedFiles) -> list[str]:
    """As `list_images`, for the files with one of these extensions."""
    return list(_list_with_sizes(folder, extensions, skipped))


def list_images_with_sizes(folder: Path, skipped: SkippedFiles) -> dict[str, int | None]:
    """As `list_images`, with the sizes in bytes where `skipped` checks them."""
    return _list_with_sizes(folder, image_extensions(), skipped)


def _list_with_sizes(
    folder: Path, extensions: Collection[str], skipped: SkippedFiles
) -> dict[str, int | None]:
    listed = _walk_folder(str(folder), "", extensions, skipped, frozenset())
    folders = sorted(listed, key=lambda entry: entry[0].removesuffix("/"))
    return {f"{path}{name}": sizes[name] for path, sizes in folders for name in sorted(sizes)}


def _walk_folder(
    root: str,
    path: str,
    extensions: Collection[str],
    skipped: SkippedFiles,
    ancestors: frozenset[object],
) -> Iterator[tuple[str, dict[str, int | None]]]:
    """Yields (path from the root with its slash, sizes by file name) for the folder and each
    subfolder; a size is None where `skipped` does not check it.
    """
    folder = os.path.join(root, path)
    sizes: dict[str, int | None] = {}
    folders = []
    try:
        status = os.stat(folder)
        if (identity := (status.st_dev, status.st_ino)) in ancestors:
            skipped.add(LINK_CYCLE, folder)
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    skipped.add(HIDDEN_FILES, entry.path)
                elif _is_folder(entry):
                    folders.append(entry.name)
                elif entry.name[entry.name.rfind(".") :].lower() not in extensions:
                    if entry.name not in skipped.read_elsewhere:
                        skipped.add_file(entry.path)
                elif not _is_file(entry):
                    skipped.add(BROKEN_LINKS, entry.path)
                elif (size := entry.stat().st_size if skipped.check_sizes else None) == 0:
                    skipped.add(EMPTY_FILES, entry.path)
                else:
                    sizes[entry.name] = size
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be listed: {error.strerror}.") from None
    yield path, sizes
    for name in folders:
        yield from _walk_folder(root, f"{path}{name}/", extensions, skipped, ancestors | {identity})


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
    """The names of the folders in `root` that are not hidden; raises `DataError`.

    Empty where `root` does not exist.
    """
    if not root.is_dir():
        return []
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if not is_hidden(e.name) and _is_folder(e))
    except OSError as error:
        raise DataError(f"{root}: cannot be listed: {error.strerror}.") from None


def count_stray_files(root: Path, skipped: SkippedFiles) -> None:
    """Counts images and hidden files directly in `root`, beside the class folders."""
    with os.scandir(root) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                skipped.add(HIDDEN_FILES, entry.path)
            elif _is_image(entry):
                skipped.add(BESIDE_CLASSES, entry.path)


def holds_images(folder: Path, depth: int) -> bool:
    """Whether the folder, or a subfolder at most `depth` levels down, holds an image."""
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


def index_by_stem(folder: Path, extensions: Collection[str]) -> dict[str, str]:
    """Maps each file's path without its extension (NFC) to its path, for these extensions.

    Of files that differ in the extension alone a JPEG is taken. Empty where there is no folder.
    """
    if not folder.is_dir():
        return {}
    names = list_files(folder, extensions, SkippedFiles())
    names.sort(key=lambda name: name.lower().endswith((".jpg", ".jpeg")))
    return {normalise_name(stem(name)): name for name in names}


# --- splits ---

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_name(name: str) -> str | None:
    """The split that a folder name stands for (`val` for `Validation`), else None."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def find_split_folder(root: Path, split: str) -> Path | None:
    """The split's folder in `root`, by its name or one of its synonyms; raises `DataError`."""
    if (root / split).is_dir():
        return root / split
    matches = [name for name in list_folders(root) if split_name(name) == split]
    if len(matches) > 1:
        raise DataError(
            f"{root}: {' and '.join(matches)} may both be '{split}'. Rename one, or name "
            "the folders with data.train_root= and data.test_root=."
        )
    return root / matches[0] if matches else None


def list_split_folders(root: Path) -> list[str]:
    """The names of the folders in `root` that stand for splits."""
    return [name for name in list_folders(root) if split_name(name)]


# --- names ---


def normalise_name(name: str) -> str:
    """The name in Unicode's composed form (NFC), stripped of spaces and line ends.

    macOS, and archives made there, store an accent as a separate character (NFD).
    """
    return unicodedata.normalize("NFC", name).strip("\ufeff \t\r\n")


def printable(name: object) -> str:
    """The name as printable text; bytes that are not UTF-8 become `\\udc..`."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder, whichever Unicode normal form it has on disk."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((p for form in dict.fromkeys(forms) if (p := folder / form).is_file()), None)


def check_utf8(path: Path) -> None:
    """Raises `DataError` for a name that is not UTF-8."""
    if not os.fsencode(path.name).isascii() and printable(path.name) != path.name:
        raise DataError(
            f"{printable(path)}: a class name must be UTF-8. Rename the folder "
            "(convmv -f latin1 -t utf8 --notest)."
        )


def read_lines(file: Path) -> list[str]:
    """The non-empty lines, in UTF-8 or as the byte order mark says; raises `DataError`."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from None
    bom, encoding = next((m for m in _MARKS if content.startswith(m[0])), (b"", "utf-8"))
    try:
        text = content[len(bom) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}: line {line} is not {encoding}. Save it as UTF-8.") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()]


def stem(name: str) -> str:
    """The name without its extension."""
    return name.rpartition(".")[0] or name
