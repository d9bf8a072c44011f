"""Archives are verified, unpacked whole or not at all, and never write outside their folder."""

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rescue_cli.errors import DataError
from rescue_cli.sections.data.archives import download_once, unpack


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def archive(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    """A tar of a good file, the given members (of 4 bytes where they are files), a good file."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info in (member("data/first.txt"), *members, member("data/last.txt")):
            info.size = 4 if info.isreg() else 0
            tar.addfile(info, io.BytesIO(b"evil") if info.isreg() else None)
    return path


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


HOSTILE = {
    "a parent folder": [member("../outside.txt")],
    "a parent folder deep inside": [member("data/../../outside.txt")],
    "an absolute path": [member("/tmp/rescue-test-outside.txt")],
    "a symbolic link to an absolute path": [member("data/link", tarfile.SYMTYPE, "/etc/passwd")],
    "a symbolic link to a parent": [member("data/link", tarfile.SYMTYPE, "../../outside.txt")],
    "a hard link to a parent": [member("data/link", tarfile.LNKTYPE, "../outside.txt")],
    "a file through a link": [
        member("data/link", tarfile.SYMTYPE, "../.."),
        member("data/link/outside.txt"),
    ],
    "a character device": [member("data/null", tarfile.CHRTYPE)],
    "a block device": [member("data/disk", tarfile.BLKTYPE)],
    "a named pipe": [member("data/pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", list(HOSTILE.values()), ids=list(HOSTILE))
def test_a_hostile_member_is_refused_and_nothing_is_written(
    tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    folder = tmp_path / "inside" / "root"
    folder.mkdir(parents=True)
    file = archive(tmp_path / "hostile.tar", *members)
    with pytest.raises(DataError) as error:
        unpack(file, folder)
    assert str(error.value).startswith(f"{file}: cannot be unpacked: ")
    assert everything(tmp_path) == {"hostile.tar", "inside", "inside/root"}
    assert not Path("/tmp/rescue-test-outside.txt").exists()


def test_links_and_folders_that_stay_inside_are_unpacked(tmp_path: Path) -> None:
    file = archive(
        tmp_path / "good.tar.gz", member("data/l", tarfile.SYMTYPE, "last.txt"), mode="w:gz"
    )
    unpack(file, tmp_path)
    assert (tmp_path / "data/l").read_bytes() == b"evil"
    assert everything(tmp_path) == {
        "good.tar.gz",
        "data",
        "data/first.txt",
        "data/l",
        "data/last.txt",
    }


def test_modes_that_run_or_bar_files_are_tamed(tmp_path: Path) -> None:
    setuid = member("data/program")
    setuid.mode = 0o6777
    unpack(archive(tmp_path / "modes.tar", setuid), tmp_path)
    assert (tmp_path / "data/program").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, mode: str, damage: str
) -> None:
    folder = tmp_path / "root"
    folder.mkdir()
    big = member("data/big.bin")
    content = b"".join(hashlib.sha256(bytes([i, j])).digest() for i in range(99) for j in range(99))
    file = tmp_path / "damaged.tar"
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        big.size = len(content)
        tar.addfile(big, io.BytesIO(content))
    whole = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        file.write_bytes(b"\xff" * 600 + whole[600:])
    with pytest.raises(DataError, match="cannot be unpacked") as error:
        unpack(file, folder)
    assert str(file) in str(error.value)
    assert everything(folder) == set()


def test_processes_that_unpack_at_once_all_find_the_whole(tmp_path: Path) -> None:
    file = archive(tmp_path / "good.tar", *(member(f"data/{i}.txt") for i in range(200)))
    folder = tmp_path / "root"
    folder.mkdir()
    failures: list[BaseException] = []

    def one() -> None:
        try:
            unpack(file, folder)
            assert len(everything(folder / "data")) == 202
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(everything(folder)) == 203


# --- checksums and downloads ---


def test_a_wrong_checksum_is_refused_before_unpacking(tmp_path: Path) -> None:
    file = archive(tmp_path / "data.tar")
    known = hashlib.md5(b"the archive as published").hexdigest()
    with pytest.raises(DataError) as error:
        download_once("http://127.0.0.1:9/data.tar", file, known)
    found = hashlib.md5(file.read_bytes()).hexdigest()
    assert str(error.value) == (
        f"{file}: its MD5 is {found}, not {known}. Delete the file and download it again."
    )


@contextmanager
def serving(answer: bytes) -> Iterator[str]:
    """A server on this machine that answers one request with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file.bin"
        thread.join()


def http(body: bytes, length: int, status: str = "200 OK") -> bytes:
    return f"HTTP/1.0 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + body


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_download_is_verified_and_kept(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    with serving(http(b"content", 7)) as url:
        assert download_once(url, target, hashlib.md5(b"content").hexdigest()) == target
    assert target.read_bytes() == b"content"
    assert everything(tmp_path / "new") == {"file.bin"}
    assert download_once("http://127.0.0.1:9/", target, None) == target, (
        "what is there is not fetched"
    )


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (http(b"", 0, "404 Not Found"), "(HTTP Error 404: Not Found)"),
        (b"\x00\x01 not http", "could not be downloaded ("),
        (b"", "could not be downloaded ("),
        (http(b"conte", 7), "could not be downloaded ("),
    ],
    ids=["404", "garbage", "hung up", "cut off"],
)
def test_a_download_that_fails_leaves_no_file_and_says_the_cure(
    tmp_path: Path, answer: bytes, why: str
) -> None:
    target = tmp_path / "file.bin"
    with serving(answer) as url, pytest.raises(DataError) as error:
        download_once(url, target, hashlib.md5(b"content").hexdigest())
    assert why in str(error.value)
    assert str(target) in str(error.value)
    assert "Put the file there by hand, or set data.root= to the data." in str(error.value)
    assert everything(tmp_path) == set()


def test_an_archive_with_another_content_is_not_kept_under_its_name(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    with serving(http(b"contend", 7)) as url, pytest.raises(DataError, match="MD5"):
        download_once(url, target, hashlib.md5(b"content").hexdigest())
    assert everything(tmp_path) == set()
