"""Which files are shards, and which splits they hold."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rescue_cli.errors import DataError
from rescue_cli.rundir import read_json
from rescue_cli.sections.data.listing import (
    SkippedFiles,
    holds_images,
    is_hidden,
    list_folders,
    normalise_name,
    read_lines,
    split_name,
)
from rescue_cli.sections.data.packed import remote
from rescue_cli.sections.data.packed.index import PackedIndex, Shard, kept_text, load_index
from rescue_cli.sections.data.packed.members import Scan
from rescue_cli.sections.data.packed.parquet import scan_parquet
from rescue_cli.sections.data.packed.tar import scan_tar
from rescue_cli.sections.data.packed.zip import scan_zip

ENDINGS = (".tar", ".zip", ".parquet")
CLASS_FILES = ("classes.txt", "classnames.txt")  # beside the shards: the classes by number
PACK_FILE = "pack.json"  # which `rescue pack` writes
INDEX_FILE = "index-{}.npz"  # beside it, of a split
HUB_FOLDER = "data"  # of a data set's repository on the Hugging Face hub
_WORD = re.compile(r"[A-Za-z]+")


class Source(NamedTuple):
    """Shards that are read as one split; perhaps a `folder` (with its slash) of a single one."""

    shards: tuple[Path, ...]
    folder: str = ""


def folder_of(place: str) -> Path:
    """The folder or file that a recipe names; for a URL the local folder that stands for it."""
    if remote.is_url(place):
        return remote.mirror(place, ENDINGS, (PACK_FILE, INDEX_FILE.format("*"), *CLASS_FILES))
    return Path(os.path.expanduser(place))  # unlike Path.expanduser, leaves ~nobody as it is


def is_images(path: Path) -> bool:
    """Whether the path is a folder, or a file that holds images."""
    return path.is_dir() or (path.is_file() and path.suffix in ENDINGS)


def find_source(root: Path) -> Source | None:
    """The shards whose images are those of `root`, which may be a file, a folder of shards, a
    split of either (`photos.zip/train`), or neither. Raises `DataError`.
    """
    if (archive := _archive_of(root)) is not None:
        folder = _folder_inside(archive, root.relative_to(archive).parts)
        return None if folder is None else Source((archive,), folder)
    if root.is_dir():
        of_split = _shards_by_split(root)
        split, shards = next(iter(of_split.items())) if len(of_split) == 1 else (None, ())
        split = split or split_name(root.name)
    else:
        split = split_name(root.name)
        shards = _shards_by_split(root.parent).get(split, ()) if split else ()
    if not shards:
        return None
    is_archive = len(shards) == 1 and _pack_of(shards[0]) is None
    return Source(shards, (is_archive and _folder_inside(shards[0], (), split)) or "")


def packed_splits(root: Path) -> list[str] | None:
    """The splits of the shards at `root`; none if they are not split, None if it has no shards."""
    if (archive := _archive_of(root)) is not None:
        inside = _folder_inside(archive, root.relative_to(archive).parts)
        children = [] if inside is None else _children(_folders_in(archive), inside)
        return sorted({split for name in children if (split := split_name(name))})
    of_split = _shards_by_split(root) if root.is_dir() else {}
    return [name for name in of_split if name] if of_split else None


def open_index(source: Source, label_field: str | None) -> PackedIndex:
    """The index of the images, made or read; raises `DataError`."""
    folder = source.shards[0].parent
    file = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    names = [normalise_name(line) for line in read_lines(file)] if file else []
    pack = _pack_of(source.shards[0])
    facts = {} if pack is None else read_json(pack / PACK_FILE)
    resized = str(facts.get("resized", ""))
    shards = [_shard(path) for path in source.shards]
    keep = remote.fits_cache(sum(shard.size for shard in shards))

    def scan(shard: Shard, skipped: SkippedFiles) -> Scan:
        return _scan(shard, skipped, label_field, keep=keep)

    shipped = None
    if pack is not None and label_field is None:
        shipped = _shipped_index(pack, facts, shards)
    return load_index(shards, source.folder, names, resized, label_field or "", shipped, scan)


def _pack_of(shard: Path) -> Path | None:
    """The folder of the pack that a shard belongs to; None for shards of other programs."""
    folders = (shard.parent, shard.parent.parent)
    return next((folder for folder in folders if (folder / PACK_FILE).is_file()), None)


def _shipped_index(pack: Path, facts: Mapping[str, Any], shards: Sequence[Shard]) -> Path | None:
    """The index that goes along with exactly these shards of a pack, if there is one."""
    here = [(PurePosixPath(shard.place).name, shard.size) for shard in shards]
    for split, written in facts.get("shards", {}).items():
        file = pack / INDEX_FILE.format(split)
        if file.is_file() and [(each["file"], each["bytes"]) for each in written] == here:
            return file
    return None


def _shard(path: Path) -> Shard:
    if (shard := remote.shard_of(path)) is not None:
        return shard
    status = path.stat()
    return Shard(str(path), status.st_size, str(status.st_mtime_ns))


def _scan(
    shard: Shard, skipped: SkippedFiles, label_field: str | None, *, keep: bool = True
) -> Scan:
    with remote.open_shard(shard, keep=keep) as opened:
        if shard.place.endswith(".tar"):
            return scan_tar(opened, shard.place, skipped, label_field)
        if shard.place.endswith(".zip"):
            return scan_zip(opened, shard.place, skipped)
        return scan_parquet(opened, shard.place, skipped, label_field)


def _archive_of(root: Path) -> Path | None:
    """The shard that `root` is, or that it is a folder in."""
    return next(
        (path for path in (root, *root.parents) if path.suffix in ENDINGS and path.is_file()), None
    )


def _shards_by_split(folder: Path) -> dict[str | None, tuple[Path, ...]]:
    """The shards in a folder, or in its folder `data`, by the split in their names, or by None.

    None at all beside folders of images. Raises `DataError` for a shard without a split's name
    among others that have one.
    """
    shards = _shard_files(folder) or _shard_files(folder / HUB_FOLDER)
    others = [folder / name for name in list_folders(folder) if shards and name != HUB_FOLDER]
    if not shards or holds_images(folder, 0) or any(holds_images(path, 1) for path in others):
        return {}
    of_split: dict[str | None, tuple[Path, ...]] = {}
    for path in shards:
        split = next((s for word in _WORD.findall(path.stem) if (s := split_name(word))), None)
        of_split[split] = (*of_split.get(split, ()), path)
    if None in of_split and len(of_split) > 1:
        raise DataError(
            f"{of_split[None][0]}: of which split are its images? Other shards beside it have a "
            "split (train, val, test) in their names. Rename the file, or move it elsewhere."
        )
    return of_split


def _shard_files(folder: Path) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(ENDINGS))
    except OSError:
        return []
    return [folder / name for name in names if not is_hidden(name) and (folder / name).is_file()]


# --- folders in an archive ---


def _folder_inside(archive: Path, parts: Sequence[str], split: str | None = None) -> str | None:
    """The folder in an archive, with its slash, that these parts of a path name; None without it.

    Folders around all others are passed over: `photos.zip/train` may be `photos/train/` in it. A
    part may be a synonym of a split's name. `split`: what the archive as a whole is.
    """
    folders = _folders_in(archive)
    whole = "".join(f"{part}/" for part in parts)
    if parts and any(folder.startswith(whole) for folder in folders):
        return whole
    folder = _enter(folders, split)
    for part in parts:
        children = _children(folders, folder)
        synonyms = [c for c in children if split_name(c) is not None]
        same = [c for c in synonyms if split_name(c) == split_name(part)]
        if not same:
            return None
        folder += f"{same[0]}/"
    return folder


def _enter(folders: frozenset[str], split: str | None) -> str:
    """The innermost folder that is around all images and is neither a class nor a split."""
    folder = ""
    while folder not in folders and len(children := _children(folders, folder)) == 1:
        inner = f"{folder}{children[0]}/"
        is_other_split = split_name(children[0]) is not None and split_name(children[0]) != split
        if is_other_split or not _children(folders, inner):
            break
        folder = inner
    return folder


def _children(folders: Iterable[str], folder: str) -> list[str]:
    """The names of the folders in `folder`, sorted."""
    below = (each[len(folder) :] for each in folders if each.startswith(folder))
    return sorted({each.partition("/")[0] for each in below if each})


@lru_cache(maxsize=8)
def _folders_in(archive: Path) -> frozenset[str]:
    """The folders, with their slash, of an archive's images without labels beside them."""
    shard = _shard(archive)

    def list_folders_in() -> str:
        members = _scan(shard, SkippedFiles(), None).members
        folders = {m.name[: m.name.rfind("/") + 1] for m in members if m.label is None}
        return json.dumps(sorted(folders))

    if archive.suffix == ".parquet":
        return frozenset()
    return frozenset(json.loads(kept_text("folders", shard, list_folders_in)))
