"""Shards on object stores and web servers: read by fsspec, kept on disk as far as there is room."""

import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from rescue_cli.errors import STORES, DataError, UsageError
from rescue_cli.rundir import read_json, write_atomically
from rescue_cli.sections.data.first_process import lock_first, remove
from rescue_cli.sections.data.packed.index import Shard, cache_folder, digest

ATTEMPTS = 8  # of a read; the waits between them add up to 32 seconds
FIRST_WAIT = 0.25  # seconds; each is twice as long as the one before
REFUSED = (401, 403, 404, 410)  # of HTTP; asking again does not help
CACHE_GB = 100.0  # of whole shards on disk, unless RESCUE_CACHE_GB says another size
BUFFER = 8 << 20  # bytes that are read at a time where a shard is listed and not kept
Result = TypeVar("Result")


@dataclass(frozen=True)
class Mirror:
    """A URL's files as empty files in a local folder, and their shards by that path."""

    url: str
    folder: Path
    shards: Mapping[Path, Shard]


_MIRRORS: dict[Path, Mirror] = {}  # of this process and those it forks, by their folders


def is_url(text: str) -> bool:
    """Whether this names files of a store, not a path on this machine."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme in STORES


@lru_cache
def mirror(url: str, endings: tuple[str, ...], small: tuple[str, ...]) -> Path:
    """A local folder (or file) that stands for the URL: it has an empty file for each shard with
    one of these `endings`, and copies of the files whose names match one of `small`.

    Listed once by a process. Raises `DataError`, and `UsageError` without the package that reads
    such URLs.
    """
    base = url.rstrip("/")
    files = dict(sorted(_retry(base, partial(_list, base)).items()))
    places = {name: f"{base}/{name}" if name else base for name in files}
    of_files = [(name, facts["size"], _stamp(facts)) for name, facts in files.items()]
    # Named after what it lists, so that processes that make it at the same time agree
    root = cache_folder() / "remote" / digest([base, *of_files])
    folder = root / PurePosixPath(base).name
    shards: dict[Path, Shard] = {}
    for name, size, stamp in of_files:
        path = folder / name if name else folder
        if path.suffix not in endings and not any(fnmatch(path.name, each) for each in small):
            continue
        if ".." in path.parts:
            raise DataError(f"{places[name]}: a name must not hold '..'. Rename the file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in endings:
            path.touch()
            shards[path] = Shard(places[name], int(size), stamp)
        else:
            content = _retry(places[name], partial(_read, places[name], None, None))
            write_atomically(path, methodcaller("write", content))
    if not shards:
        raise DataError(
            f"{url}: no shard there ({', '.join(endings)}). Pack the images with rescue pack and "
            "upload the folder, or give the folder that holds the shards."
        )
    for path in root.rglob("pack.json"):
        sums = {each["file"]: each["sha256"] for part in _shards_in(path) for each in part}
        shards = {p: s._replace(sha256=sums.get(p.name, "")) for p, s in shards.items()}
    _MIRRORS[folder] = Mirror(base, folder, shards)
    return folder


def _shards_in(pack: Path) -> Iterable[list[dict[str, str]]]:
    shards: Mapping[str, list[dict[str, str]]] = read_json(pack).get("shards", {})
    return shards.values()


def shard_of(path: Path) -> Shard | None:
    """The shard that an empty file of a mirror stands for; None for any other file."""
    for mirror_ in _MIRRORS.values():
        if (shard := mirror_.shards.get(path)) is not None:
            return shard
    return None


def with_urls(text: str) -> str:
    """The text with URLs in place of the folders that stand for them."""
    for mirror_ in _MIRRORS.values():
        text = text.replace(str(mirror_.folder), mirror_.url)
    return text


def fits_cache(size: int) -> bool:
    """Whether shards of so many bytes in all can be kept on disk at the same time."""
    return size <= _cache_bytes()


def read_range(shard: Shard, start: int, size: int) -> bytes:
    """Bytes of a shard from the store; raises `DataError` where it does not give them."""
    data = _retry(shard.place, lambda: _read(shard.place, start, start + size))
    if len(data) != size:
        raise DataError(f"{shard.place}: ends before byte {start + size}. Upload the file again.")
    return data


def kept_shard(shard: Shard) -> Path:
    """The shard on disk, fetched by one process for all if it is not there; raises `DataError`.

    The shards that were not used for longest make room for it.
    """
    file = cache_folder() / "shards" / digest(shard)
    while not _is_there(file, shard):
        with lock_first(file.with_suffix(".lock")) as first:
            if first and not _is_there(file, shard):
                _fetch(shard, file)
    os.utime(file)
    return file


def open_shard(shard: Shard, *, keep: bool) -> BinaryIO:
    """The shard as a file that can be read from any place; of a store kept on disk with `keep`."""
    if not shard.is_remote:
        return Path(shard.place).open("rb")
    if keep:
        return kept_shard(shard).open("rb")
    return io.BufferedReader(_Ranges(shard), BUFFER)


class _Ranges(io.RawIOBase):
    """A shard of a store as a file."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.shard.size}[whence]
        self.at = start + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.shard.size - self.at))
        if size:
            buffer[:size] = read_range(self.shard, self.at, size)
        self.at += size
        return size


def _is_there(file: Path, shard: Shard) -> bool:
    return file.is_file() and file.stat().st_size == shard.size


def _fetch(shard: Shard, file: Path) -> None:
    """Downloads a shard whole or not at all, and checks it; raises `DataError`."""
    if not fits_cache(shard.size):
        raise DataError(
            f"RESCUE_CACHE_GB: is less than the {shard.size / 1e9:.3g} GB of {shard.place} alone. "
            "Raise it, or read image by image with sampling.name=shuffled."
        )
    _make_room(file.parent, shard.size)
    partial = file.with_suffix(f".{os.getpid()}.partial")

    def download() -> None:
        system, path = _system(shard.place)
        system.get_file(path, str(partial))
        if partial.stat().st_size != shard.size:
            raise OSError(f"{partial.stat().st_size} of {shard.size} bytes came")
        with partial.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if shard.sha256 not in ("", digest):
            raise OSError("its SHA-256 is not that of pack.json")

    try:
        _retry(shard.place, download)
        os.replace(partial, file)
    finally:
        remove(partial)


def _make_room(folder: Path, size: int) -> None:
    """Removes the shards that were not used for longest until `size` bytes fit."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for path in folder.iterdir():
        if not path.suffix:
            try:
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
            except OSError:
                continue  # another process has removed it
    used = sum(each for _, each, _ in kept)
    for _, each, path in sorted(kept):
        if used + size <= _cache_bytes():
            break
        remove(path)  # a process that has it open can still read it
        used -= each


def _cache_bytes() -> float:
    given = os.environ.get("RESCUE_CACHE_GB", "")
    try:
        gigabytes = float(given or CACHE_GB)
    except ValueError:
        gigabytes = math.nan
    if not gigabytes >= 0:
        raise UsageError(f"RESCUE_CACHE_GB: '{given}' is not a number of gigabytes.")
    return gigabytes * 1e9


# --- fsspec ---


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. fsspec keeps one for each process."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except ImportError:
        package = STORES[url.partition("://")[0]]
        raise UsageError(
            f"{url}: {package}, which reads such URLs, is not installed. Use pip install {package}."
        ) from None
    return system, path


def _list(url: str) -> dict[str, dict[str, Any]]:
    """The files at a URL by their path below it; of a file itself, by an empty path."""
    system, path = _system(url.rstrip("/"))
    system.invalidate_cache()
    if system.isfile(path):
        return {"": system.info(path)}
    listed = system.find(path, maxdepth=2, detail=True)
    start = len(path.rstrip("/")) + 1
    return {name[start:]: facts for name, facts in listed.items()}


def _stamp(facts: Mapping[str, Any]) -> str:
    """What changes with a file's content, as its store names it."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "LastModified", "mtime"):
        if facts.get(key):
            return str(facts[key])
    return ""


def _read(url: str, start: int | None, end: int | None) -> bytes:
    system, path = _system(url)
    data: bytes = system.cat_file(path, start=start, end=end)
    return data


def _retry(url: str, work: Callable[[], Result]) -> Result:
    """What `work` returns; after an error it is repeated, ever later. Raises `DataError`."""
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except UsageError:
            raise
        except Exception as error:  # the errors of stores have no common base
            reason = " ".join(str(error).split()) or type(error).__name__
            is_refused = isinstance(error, FileNotFoundError | PermissionError)
            if is_refused or getattr(error, "status", None) in REFUSED:
                message = f"{url}: {reason}. Check the URL and your credentials."
                raise DataError(message) from None
            if attempt == ATTEMPTS:
                raise DataError(
                    f"{url}: could not be read in {ATTEMPTS} attempts: {reason}. Start again with "
                    "--resume when the store answers."
                ) from None
        time.sleep(wait)
        wait *= 2
    raise AssertionError
