"""Mutated annotations and shards are read or refused, and nothing is written outside."""

import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rescue_cli.errors import DataError
from rescue_cli.sections.data import Dataset, Files
from rescue_cli.sections.data.decode import UNREADABLE, describe_error
from rescue_cli.sections.data.packed.write import Packing
from tests.faults.tally import Tally
from tests.helpers import rectangles, shards
from tests.helpers.mutations import mutate, mutate_tree
from tests.sections.data.test_packed import KINDS, content, pack, read

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
COUNT = 250  # of each kind of annotations, and 100 of each kind of shards
VALUES: list[Any] = [
    None, True, 0, -1, 1, 2.5, 10**30, 1e308, float("nan"), float("inf"), "", "x", "../0.png",
    "/etc/passwd", "0.png", [], {}, [[]], [1, 2, 3], [[1, 2, 3]], [-5, -5, 1e9, 1e9], {"a": 1},
    {"size": [48, 64], "counts": "o0"}, {"size": [2**31, 2**31], "counts": [2**62]},
    {"size": [48, 64], "counts": [5, -3]}, ["a", "b", "c", "d"],
]  # fmt: skip
BOMB = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 20}">' for n in range(12))
ENTITIES = [
    f'<!DOCTYPE a [<!ENTITY e0 "boom">{BOMB}]><annotation><object><name>&e12;</name></object>'
    "</annotation>",
    '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><object><name>&e;</name>'
    "</object></annotation>",
    '<!DOCTYPE a SYSTEM "file:///dev/zero"><annotation/>',
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p;]><annotation/>',
    "<a>" * 100_000,
]
WORDS = ["", "nan", "-5", "1e999", "9" * 5000, "red", "<b/>", "&lt;", "\u200b", "../../x", "1.5"]


def use(dataset: Dataset) -> None:
    """Reads the target of every image; raises `DataError` for what a feed takes for one."""
    for split in (dataset.train, *dataset.tests.values()):
        assert isinstance(split, Files)
        for place in range(len(split)):
            try:
                split.target(place)
                split.names.read(place)
            except UNREADABLE as error:
                raise DataError(describe_error(error)) from None


def spoil_voc(root: Path, draw: random.Random) -> None:
    """Changes an XML file, or a list of images."""
    files = sorted(root.glob("Annotations/*.xml")) * 2 + sorted(root.glob("ImageSets/*/*.txt"))
    file = draw.choice(files)
    text = file.read_text()
    match draw.randrange(4):
        case 0:
            file.write_bytes(mutate(text.encode(), draw))
        case 1 if file.suffix == ".xml":
            file.write_text(draw.choice(ENTITIES))
        case _:
            parts = text.replace(">", ">\n").replace("<", "\n<").split("\n")
            place = draw.randrange(len(parts))
            parts[place : place + draw.randrange(3)] = [draw.choice(WORDS)] * draw.randrange(3)
            file.write_text("".join(parts) if file.suffix == ".xml" else "\n".join(parts))


def spoil_coco(root: Path, draw: random.Random) -> None:
    """Changes the tree or the bytes of a JSON file."""
    file = draw.choice(sorted(root.rglob("*.json")))
    data = file.read_bytes()
    if draw.random() < 0.2:
        file.write_bytes(draw.choice([mutate(data, draw), b"[" * 100_000, b"9" * 10_000, b"NaN"]))
        return
    tree = json.loads(data)
    if draw.random() < 0.7:  # else of the lists themselves
        entries = draw.choice([tree["annotations"], tree["images"], tree["categories"]])
        place = draw.randrange(len(entries))
        entries[place] = mutate_tree(entries[place], draw, VALUES)
    else:
        tree = mutate_tree(tree, draw, VALUES)
    file.write_text(json.dumps(tree))


ANNOTATIONS: dict[str, tuple[str, Callable[[Path], Path], Callable[[Path, random.Random], None]]]
ANNOTATIONS = {
    "VOC": ("voc-folder", lambda root: rectangles.voc(root, 3, 2), spoil_voc),
    "COCO boxes": ("coco-boxes", lambda root: rectangles.coco(root, 3, 2), spoil_coco),
    "COCO masks": ("coco-masks", lambda root: rectangles.coco(root, 3, 2), spoil_coco),
}


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_annotations(kind: str, tally: Tally) -> None:
    name, make, spoil = ANNOTATIONS[kind]
    original, root = make(tally.folder / "original"), tally.folder / "mutated"
    use(read(original, name))
    for case in range(COUNT):
        shutil.copytree(original, root)
        spoil(root, random.Random(f"{kind} {case}"))
        tally.attempt(case, lambda: use(read(root, name)), (OSError,))
        shutil.rmtree(root)


def packed(kind: str, folder: Path, out: Path) -> Path:
    """Shards of that kind."""
    if kind == "pack":
        pack(folder, out, Packing("tar", 10**9))
        return out
    return KINDS[kind](folder, out)


@pytest.mark.parametrize("kind", [*KINDS, "pack"])
def test_shards(kind: str, tally: Tally) -> None:
    out = tally.folder / "shards"
    out.mkdir()
    made = packed(kind, shards.write_folder(tally.folder / "folder"), out)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    content(read(made))
    for case in range(100):
        draw = random.Random(f"{kind} {case}")
        file = draw.choice(files)
        data = file.read_bytes()
        file.write_bytes(mutate(data, draw))
        tally.attempt(case, lambda: content(read(made)), (OSError,))
        file.write_bytes(data)


NAMES = ["../out.jpg", "/tmp/out.jpg", "train/../../out.jpg", "train/cat/../../../out.jpg", "a\0b"]
NAMES += ["train//cat/x.jpg", "./train/cat/x.jpg", "train/cat/" + "x" * 5000 + ".jpg", "\udcff.jpg"]
LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]


def hostile(file: Path, image: bytes, draw: random.Random) -> None:
    """An archive with some names that lead elsewhere, and links."""
    names = [f"{split}/{name}/{n}.jpg" for split in ("train", "val") for name in "ab" for n in "01"]
    names += draw.choices(NAMES, k=2)
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                member = zipfile.ZipInfo(name.replace("\udcff", "é"))
                member.external_attr = draw.choice([0, 0o120777 << 16])
                archive.writestr(member, image)
        return
    with tarfile.open(file, "w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name.replace("\0", ""))
            if draw.random() < 0.3:
                entry.type = draw.choice(LINKS)
                entry.linkname = draw.choice(["/etc/passwd", *NAMES]).replace("\0", "")
                tar.addfile(entry)
                continue
            entry.size = len(image)
            tar.addfile(entry, io.BytesIO(image))


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_hostile_names(ending: str, tally: Tally) -> None:
    image = next(shards.write_folder(tally.folder / "folder").rglob("*.jpg")).read_bytes()
    file = tally.folder / "shards" / f"photos{ending}"
    file.parent.mkdir()
    for case in range(100):
        hostile(file, image, random.Random(f"{ending} {case}"))
        tally.attempt(case, lambda: content(read(file)))
    assert not os.path.exists(tally.folder / "out.jpg")
