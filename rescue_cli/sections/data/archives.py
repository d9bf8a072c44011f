"""Downloads that are verified before use, and archives that cannot write outside their folder."""

import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from rescue_cli.errors import DataError
from rescue_cli.sections.data.decode import describe_error


def download_once(url: str, target: Path, md5: str | None) -> Path:
    """Downloads `url` to `target` unless it exists, and verifies it; raises `DataError`."""
    if target.exists():
        check_md5(target, md5)
    else:
        _download(url, target, md5)
    return target


def check_md5(path: Path, md5: str | None) -> None:
    """Raises `DataError` where the file's MD5 is known and differs."""
    if reason := _md5_mismatch(path, md5):
        raise DataError(f"{path}: {reason}. Delete the file and download it again.")


def _download(url: str, target: Path, md5: str | None) -> None:
    """Downloads under a temporary name and renames the file once it is complete and verified."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as source, partial.open("wb") as file:
            shutil.copyfileobj(source, file)
        if reason := _md5_mismatch(partial, md5):
            raise OSError(reason)
        os.replace(partial, target)
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        cause = getattr(error, "reason", None)  # a URLError's underlying error
        description = describe_error(cause if isinstance(cause, OSError) else error)
        raise DataError(
            f"{target}: no such file, and {url} could not be downloaded ({description}). "
            "Put the file there by hand, or set data.root= to the data."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _md5_mismatch(path: Path, md5: str | None) -> str | None:
    if md5 is None:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    return None if digest == md5 else f"its MD5 is {digest}, not {md5}"


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive into `folder` completely or not at all; raises `DataError`.

    Members that would be written outside the folder are refused. The content is renamed into place
    at the end, so that neither a killed run nor a concurrent one sees a partial folder.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter=_refuse_outside)
            for entry in sorted(os.listdir(scratch)):
                _move_into_place(Path(scratch, entry), folder / entry)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked: {error}. Nothing was unpacked. "
            "Delete the file and download it again."
        ) from None


def _move_into_place(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError:
        if not target.is_dir():  # a directory: another process was faster
            raise


def _refuse_outside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's data filter, which also refuses absolute paths instead of making them relative."""
    if member.name.startswith("/"):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)
