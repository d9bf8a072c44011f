"""One set of small images as class folders and in every kind of shard."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ("cat", "dog", "émeu")
SIDE = 40


def write_folder(root: Path, train: int = 12, val: int = 5, side: int = SIDE) -> Path:
    """So many noisy images a class in `train/` and `val/`, some in subfolders, most as JPEG."""
    random = np.random.default_rng(4)
    for split, count in (("train", train), ("val", val)):
        for name in CLASSES:
            for number in range(count):
                folder = root / split / name / ("more" if number % 5 == 4 else "")
                folder.mkdir(parents=True, exist_ok=True)
                coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((side + number, side))
                image.save(folder / f"{number}.{'png' if number % 4 == 3 else 'jpg'}")
    return root


def files_of(root: Path, split: str) -> list[Path]:
    return sorted(path for path in (root / split).rglob("*") if path.is_file())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def as_archive(root: Path, out: Path) -> Path:
    """`photos.tar`, with folders around the splits."""
    with tarfile.open(out / "photos.tar", "w") as tar:
        tar.add(root, "my/photos")
    return out / "photos.tar"


def as_zip(root: Path, out: Path, method: int) -> Path:
    with zipfile.ZipFile(out / "photos.zip", "w", method) as archive:
        for path in [*files_of(root, "val"), *files_of(root, "train")]:
            archive.write(path, path.relative_to(root))
    return out / "photos.zip"


def as_web_dataset(root: Path, out: Path, *, label: Callable[[str], tuple[str, bytes]]) -> Path:
    """Three shuffled tar shards a split; `label` gives ending and content of a label's file."""
    for split in ("train", "val"):
        paths = files_of(root, split)
        order = np.random.default_rng(1).permutation(len(paths))
        for number in range(3):
            with tarfile.open(out / f"photos-{split}-{number:06}.tar", "w") as tar:
                for index in order[number::3]:
                    path = paths[index]
                    name = path.relative_to(root / split).as_posix()
                    ending, content = label(name.partition("/")[0])
                    add(tar, name, path.read_bytes())
                    add(tar, f"{name.rpartition('.')[0]}{ending}", content)
    return out


def by_number(name: str) -> tuple[str, bytes]:
    return ".cls", str(CLASSES.index(name)).encode()


def by_name(name: str) -> tuple[str, bytes]:
    return ".json", json.dumps({"label": name, "width": 3}).encode()


def as_parquet(root: Path, out: Path, **options: Any) -> Path:
    """As the Hugging Face hub has a data set; `options` are those of pyarrow's `write_table`."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (out / "data").mkdir()
    label = {"names": list(CLASSES), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, name in (("train", "train"), ("val", "validation")):
        paths = files_of(root, split)
        names = [path.relative_to(root / split).as_posix() for path in paths]
        images = [
            {"bytes": path.read_bytes(), "path": name}
            for path, name in zip(paths, names, strict=True)
        ]
        labels = [CLASSES.index(name.partition("/")[0]) for name in names]
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
        parquet.write_table(table, out / "data" / f"{name}-00000-of-00001.parquet", **options)
    return out
