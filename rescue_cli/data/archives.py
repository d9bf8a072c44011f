"""Downloads verified before they are opened, archives that cannot write outside their folder."""

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from rescue_cli.errors import DataError


def fetch(url: str, target: Path, md5: str | None) -> Path:
    """Downloads `url` to `target` and verifies it; raises `DataError` with the cure."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        try:
            with urllib.request.urlopen(url, timeout=60) as source, partial.open("wb") as file:
                shutil.copyfileobj(source, file)
        except (urllib.error.URLError, OSError) as error:
            partial.unlink(missing_ok=True)
            raise DataError(
                f"{target}: not there, and {url} could not be downloaded ({error}). "
                "Put the file there by hand or point data.root= at the data."
            ) from None
        os.replace(partial, target)
    verify(target, md5)
    return target


def verify(path: Path, md5: str | None) -> None:
    """Raises `DataError` where the file's checksum is known and differs."""
    if md5 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise DataError(
            f"{path}: its md5 is {found}, not {md5}. Delete the file and fetch it again."
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive; a member that leaves the folder or links out of it is refused."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked: {error}. Nothing more was written."
        ) from None
