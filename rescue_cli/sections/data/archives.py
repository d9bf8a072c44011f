"""Downloads verified before they are opened, archives that cannot write outside their folder."""

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
    """`target`, verified, downloaded where it is not there; raises `DataError` with the cure."""
    if target.exists():
        check_md5(target, md5)
    else:
        _download(url, target, md5)
    return target


def check_md5(path: Path, md5: str | None) -> None:
    """Raises `DataError` where the file's checksum is known and differs."""
    if reason := _md5_mismatch(path, md5):
        raise DataError(f"{path}: {reason}. Delete the file and fetch it again.")


def _download(url: str, target: Path, md5: str | None) -> None:
    """Under another name until it is whole and verified, so that only the right file is kept."""
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
        cause = getattr(error, "reason", None)  # of a URLError what the network said
        why = describe_error(cause if isinstance(cause, OSError) else error)
        raise DataError(
            f"{target}: not there, and {url} could not be downloaded ({why}). "
            "Put the file there by hand or point data.root= at the data."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _md5_mismatch(path: Path, md5: str | None) -> str | None:
    if md5 is None:
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    return None if found == md5 else f"its md5 is {found}, not {md5}"


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive whole or not at all; what would leave the folder is refused.

    It appears in `folder` by renaming, so that a run that was killed leaves no half of it and
    processes that unpack at once do not read each other's halves.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter=_refuse_outside)
            for entry in sorted(os.listdir(scratch)):
                _move_into_place(Path(scratch, entry), folder / entry)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked: {error}. Nothing was kept of it. "
            "Delete the file and fetch it again."
        ) from None


def _move_into_place(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise


def _refuse_outside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's data filter, which would make absolute paths relative: they are refused too."""
    if member.name.startswith("/"):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)
