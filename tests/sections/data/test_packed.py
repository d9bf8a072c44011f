"""Images in tar, zip and parquet files are those of the folder that they were made from."""

import errno
import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rescue_cli.batch import View
from rescue_cli.errors import DataError, RescueError, UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.sections.data import Dataset, Files, Images, compute_fingerprint, load
from rescue_cli.sections.data.datasets import _labels_by_number
from rescue_cli.sections.data.memory import MemoryEvalFeed
from rescue_cli.sections.data.packed import index as index_module
from rescue_cli.sections.data.packed import location, write
from rescue_cli.sections.data.packed import names as names_module
from rescue_cli.sections.data.packed import parquet as parquet_module
from rescue_cli.sections.data.packed.names import PackedNames, packed_files
from rescue_cli.sections.data.packed.tar import scan_tar
from rescue_cli.sections.data.packed.write import Packing, read_splits, write_pack
from tests.conftest import Rescue
from tests.helpers import shards
from tests.helpers.mutations import mutate
from tests.helpers.shards import CLASSES, add, by_name, by_number

CPU = torch.device("cpu")
Make = Callable[[Path, Path], Path]
PARQUET: Mapping[str, dict[str, Any]] = {
    "snappy": {},
    "plain": {"compression": "none", "use_dictionary": False},
    "zstd, pages of version 2": {"compression": "zstd", "data_page_version": "2.0"},
    "many row groups": {"row_group_size": 7, "compression": "gzip"},
    "small pages": {"use_dictionary": False, "data_page_size": 3000, "write_batch_size": 1},
    "dictionary, then plain": {
        "compression": "none", "data_page_version": "2.0", "dictionary_pagesize_limit": 5000,
        "write_batch_size": 2,
    },
}  # fmt: skip


def as_parquet(options: dict[str, Any], root: Path, out: Path) -> Path:
    return shards.as_parquet(root, out, **options)


KINDS: Mapping[str, Make] = {
    "tar of folders": shards.as_archive,
    "zip, stored": lambda root, out: shards.as_zip(root, out, zipfile.ZIP_STORED),
    "zip, deflated": lambda root, out: shards.as_zip(root, out, zipfile.ZIP_DEFLATED),
    "WebDataset, numbers": lambda root, out: shards.as_web_dataset(root, out, label=by_number),
    "WebDataset, names": lambda root, out: shards.as_web_dataset(root, out, label=by_name),
    **{f"parquet, {name}": partial(as_parquet, options) for name, options in PARQUET.items()},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RESCUE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rescue"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made = tmp_path / "shards"
    made.mkdir()
    return made


def read(root: Path | str, name: str = "folder", **keys: Any) -> Dataset:
    return load(name, DataKeys(root=str(root), resident=False, **keys), Path())


def content(dataset: Dataset) -> dict[str, list[tuple[str, bytes, int]]]:
    """Name, bytes and label of each image, in order, by split."""
    splits = {"train": dataset.train, **dataset.tests}
    listed = {}
    for name, split in splits.items():
        assert isinstance(split, Files)
        names = split.names
        listed[name] = [
            (names.name(i), names.read(i), int(split.labels[i])) for i in range(len(split))
        ]
    return listed


def names_of(dataset: Dataset) -> PackedNames:
    assert isinstance(dataset.train, Files)
    assert isinstance(dataset.train.names, PackedNames)
    return dataset.train.names


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_the_folder_they_were_made_from(kind: str, folder: Path, out: Path) -> None:
    """The same classes, order, names, bytes, labels and fingerprint: so the same training."""
    expected, dataset = read(folder), read(KINDS[kind](folder, out))
    assert dataset.classes == CLASSES
    assert content(dataset) == content(expected)
    assert (
        compute_fingerprint(dataset, ["val"]).digest
        == compute_fingerprint(expected, ["val"]).digest
    )
    assert names_of(dataset).index.labels is dataset.train.labels, "no copy of 100 million labels"


@pytest.mark.parametrize("kind", ["zip, deflated", "WebDataset, numbers", "parquet, snappy"])
def test_subsets_folds_and_single_splits_are_those_of_the_folder(
    kind: str, folder: Path, out: Path
) -> None:
    made = KINDS[kind](folder, out)
    cuts: list[dict[str, Any]] = [{"subset": (9, 3)}, {"holdout": 6}, {"holdout": 6, "fold": 2}]
    for cut in cuts:
        assert content(read(made, **cut)) == content(read(folder, **cut))
    where = made if made.is_file() else sorted(made.rglob("*train*.*"))[0].parent
    keys = DataKeys(train_root=f"{where}/train", test_root=f"{where}/val", resident=False)
    apart = load("folder", keys, Path())
    assert content(apart) == content(read(folder))


def test_a_split_in_its_own_archive_and_shards_in_folders_of_splits(
    folder: Path, out: Path
) -> None:
    for split in ("train", "val"):
        with zipfile.ZipFile(
            out / f"{split}.zip", "w"
        ) as archive:  # holds train/cat/..., or cat/...
            for path in shards.files_of(folder, split):
                archive.write(path, path.relative_to(folder / ("" if split == "train" else split)))
    assert content(read(out)) == content(read(folder))
    for split in ("train", "val"):
        (out / "folders" / split).mkdir(parents=True)
        os.rename(out / f"{split}.zip", out / "folders" / split / "0.zip")
    assert content(read(out / "folders")) == content(read(folder))


def test_imagenets_archive_of_archives_is_read_as_it_is(folder: Path, out: Path) -> None:
    with tarfile.open(out / "ILSVRC2012_img_train.tar", "w") as tar:
        for name in CLASSES:
            inner = out / f"{name}.tar"
            with tarfile.open(inner, "w") as of_class:
                of_class.add(folder / "train" / name, ".")
            tar.add(inner, inner.name)
            inner.unlink()
    dataset = read(out / "ILSVRC2012_img_train.tar", test_root=str(folder / "val"))
    assert content(dataset) == content(read(folder))


def test_classes_go_by_number_where_the_shards_name_them_otherwise(folder: Path, out: Path) -> None:
    """ImageNet on the hub has words for classes, and the data set WordNet ids in that order."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    some = shards.files_of(folder, "train")[:3]
    images = [{"bytes": path.read_bytes(), "path": None} for path in some]
    names = [f"word {number % 990}" for number in range(1000)]  # ten names stand for two classes
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split in ("train", "validation"):
        table = pa.table({"image": images, "label": [995, 5, 17]})
        parquet.write_table(table.replace_schema_metadata(metadata), out / f"{split}-0.parquet")
    dataset = read(out, "imagenet")
    assert isinstance(dataset.train, Files)
    assert sorted(dataset.train.labels.tolist()) == [5, 17, 995]
    by_label = {label: data for _, data, label in content(dataset)["val"]}
    assert by_label == {
        995: some[0].read_bytes(),
        5: some[1].read_bytes(),
        17: some[2].read_bytes(),
    }
    assert names_of(dataset).index.classes == ("word 17", "word 5 (5)", "word 5 (995)")


def test_a_class_whose_name_is_another_ones_number_keeps_its_own() -> None:
    labels = {f"n{number}": number for number in range(4)}
    by_number = _labels_by_number({"3": 0, "0": 1}, ["3", "0"], labels)
    assert (by_number["3"], by_number["0"], by_number["2"]) == (0, 1, 2)


def test_other_programs_shards_without_folders_and_names(folder: Path, out: Path) -> None:
    with tarfile.open(out / "train-0.tar", "w") as tar:
        for number, path in enumerate(shards.files_of(folder, "train")):
            add(tar, f"{number:06}.{'left.' * (number % 2)}jpg", path.read_bytes())
            add(tar, f"{number:06}.cls", str(number % 11).encode())
            add(tar, f"{number:06}.txt", b"a caption")
    dataset = read(out, holdout=11)
    assert dataset.classes == tuple(sorted(map(str, range(11)))), "as folders of these names"
    assert any("without an image extension (36 .txt)" in note for note in dataset.notes)
    (out / "classes.txt").write_text("".join(f"class {n}\n" for n in range(11)))
    assert read(out, holdout=11).classes[:3] == ("class 0", "class 1", "class 10")
    (out / "classes.txt").write_text("only\n")
    with pytest.raises(DataError, match=r"train-0.tar: label \d+, where there are names of 1"):
        read(out, holdout=11)


def test_shards_in_memory_are_the_folder_in_memory(folder: Path, out: Path) -> None:
    """Decoded, and read from the cache of pixels, which leaves the labels memory-mapped."""
    made, feeds = shards.as_zip(folder, out, zipfile.ZIP_STORED), []
    for root in (folder, made, made):
        keys = DataKeys(root=str(root), resident=True, train_size=16)
        images = load("folder", keys, out / "pixels").tests["val"]
        assert isinstance(images, Images)
        feeds.append(MemoryEvalFeed(images, [View(16, 1.0)], 4, "bicubic", CPU))
    for feed in feeds[1:]:
        assert torch.equal(feed.images, feeds[0].images)
        assert torch.equal(feed.labels, feeds[0].labels)


def test_a_table_beside_image_files_is_no_shard(folder: Path, out: Path) -> None:
    shutil.copytree(folder, out / "photos")
    for place in ("photos", "photos/train"):
        (out / place / "metadata.parquet").write_bytes(b"no images")
    assert content(read(out / "photos")) == content(read(folder))


def test_splits_in_one_archive_of_a_folder_are_no_classes(folder: Path, out: Path) -> None:
    shards.as_archive(folder, out)
    with pytest.raises(
        DataError, match=r"holds splits \(train, val\) and no classes. Give .*photos.tar"
    ):
        read(out)


# --- the index ---


def test_the_index_is_made_once_and_again_for_other_shards(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shards.as_web_dataset(folder, out, label=by_number)
    scanned: list[str] = []
    scan = scan_tar

    def counting(opened: Any, shard: str, *rest: Any) -> Any:
        scanned.append(Path(shard).name)
        return scan(opened, shard, *rest)

    monkeypatch.setattr(location, "scan_tar", counting)
    before = content(read(made))
    assert len(scanned) == 6
    assert content(read(made)) == before
    assert len(scanned) == 6, "made once"
    with tarfile.open(made / "photos-train-000000.tar", "a") as tar:
        add(tar, "cat/new.jpg", before["train"][0][1])
        add(tar, "cat/new.cls", b"0")
    assert len(content(read(made))["train"]) == len(before["train"]) + 1
    assert len(scanned) == 9, "the three shards of the split that has changed"


def test_an_index_is_mapped_and_broken_ones_are_made_again(
    folder: Path, out: Path, cache: Path
) -> None:
    made = shards.as_archive(folder, out)
    dataset = read(made)
    index = names_of(dataset).index
    mapped = [getattr(index, name) for name in index_module.ARRAYS]
    assert all(isinstance(array.base, np.memmap) for array in mapped)
    modes = {path.stat().st_mode for path in cache.glob("indexes/*") if path.is_dir()}
    assert modes == {cache.stat().st_mode}, "other accounts read a cache that the umask shares"
    for file in cache.glob("indexes/*/labels.npy"):
        file.write_bytes(file.read_bytes()[:-3])
    for file in cache.glob("indexes/*.json"):
        file.write_bytes(b"")
    assert content(read(made)) == content(dataset)


def test_without_a_cache_the_index_is_made_for_the_process(
    folder: Path, out: Path, cache: Path
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    assert content(read(shards.as_archive(folder, out))) == content(read(folder))


def test_on_a_full_disk_what_is_listed_in_a_shard_is_listed_again(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    shard = index_module.Shard(str(out / "photos.zip"), 1, "1")
    assert index_module.kept_text("folders", shard, lambda: "listed") == "listed"


def test_a_page_of_parquet_with_fewer_values_than_rows_is_broken() -> None:
    pages, one_value = object.__new__(parquet_module._Pages), b"\1\0\0\0a"
    with pytest.raises(EOFError, match="fewer values than rows"):
        pages._rows(np.ones(2, dtype=bool), parquet_module.PLAIN, (one_value, 0, -1), 0, [])


def test_storage_has_the_order_of_the_shards(folder: Path, out: Path) -> None:
    names = names_of(read(shards.as_web_dataset(folder, out, label=by_number)))
    order, ends = names.storage()
    index = names.index
    assert ends.tolist() == [12, 24, 36]
    places = list(zip(index.shard[order].tolist(), index.offset[order].tolist(), strict=True))
    assert places == sorted(places)
    some = names.take(np.array([30, 2, 17, 9]))
    places_of_some = [(index.shard[r], index.offset[r]) for r in (30, 2, 17, 9)]
    assert some.storage().order.tolist() == sorted(range(4), key=lambda i: places_of_some[i])


# --- what is wrong with shards ---


def broken_tar(folder: Path, out: Path) -> Path:
    made = shards.as_archive(folder, out)
    made.write_bytes(made.read_bytes()[:3000])
    return made


def broken_header(folder: Path, out: Path) -> Path:
    made = shards.as_archive(folder, out)
    with tarfile.open(made) as tar:
        header = tar.getmembers()[20].offset
    data = bytearray(made.read_bytes())
    data[header + 100] ^= 1
    made.write_bytes(data)
    return made


def two_archives(folder: Path, out: Path) -> Path:
    made = shards.as_archive(folder, out)
    made.write_bytes(made.read_bytes() * 2)
    return made


def label_missing(folder: Path, out: Path) -> Path:
    with tarfile.open(out / "train.tar", "w") as tar:
        data = shards.files_of(folder, "train")[0].read_bytes()
        add(tar, "1.jpg", data)
        add(tar, "1.cls", b"0")
        add(tar, "2.jpg", data)
    return out


def label_empty(folder: Path, out: Path) -> Path:
    with tarfile.open(out / "train.tar", "w") as tar:
        add(tar, "1.jpg", shards.files_of(folder, "train")[0].read_bytes())
        add(tar, "1.json", b'{"caption": 3}')
    return out


def no_class(folder: Path, out: Path) -> Path:
    with tarfile.open(out / "train.tar", "w") as tar:
        add(tar, "1.jpg", shards.files_of(folder, "train")[0].read_bytes())
    return out


def mixed_splits(folder: Path, out: Path) -> Path:
    shards.as_web_dataset(folder, out, label=by_number)
    os.rename(out / "photos-val-000001.tar", out / "photos-0001.tar")
    return out


def two_labels(folder: Path, out: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = shards.files_of(folder, "train")[0].read_bytes()
    table = pa.table({"img": [data] * 4, "cls": [1, 3, 1, 3], "class": [2, 2, 2, 2]})
    parquet.write_table(table, out / "train.parquet")
    return out


def broken_parquet(folder: Path, out: Path) -> Path:
    shards.as_parquet(folder, out)
    file = next((out / "data").glob("train*"))
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)  # the first page's header
    file.write_bytes(data)
    return out


FAULTS: Mapping[str, tuple[Make, str]] = {
    "broken tar": (broken_tar, r"photos.tar: cannot be read: .*Copy or download the file again"),
    "broken header": (broken_header, r"photos.tar: cannot be read: it breaks off at byte \d+"),
    "two archives": (two_archives, r"cannot be read: another archive follows its end at byte"),
    "label missing": (label_missing, r"1 of 2 images have no label, the first 2.jpg. Add 2.cls"),
    "label empty": (label_empty, r"train.tar/1.json: has no label: an entry cls or label or class"),
    "no class": (no_class, r"train.tar/1.jpg: is in no class folder, and has no label"),
    "mixed splits": (mixed_splits, r"photos-0001.tar: of which split are its images\?"),
    "two labels": (two_labels, r"several may \(cls, class\). Say it with data.label_field=COLUMN"),
    "broken parquet": (broken_parquet, r"parquet: cannot be read: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_shard_is_named_with_the_cure(fault: str, folder: Path, out: Path) -> None:
    make, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        read(make(folder, out), holdout=1)


def test_the_field_of_the_label_can_be_said(folder: Path, out: Path) -> None:
    made = two_labels(folder, out)
    assert read(made, holdout=1, label_field="cls").classes == ("1", "3")
    assert read(made, holdout=1, label_field="class").classes == ("2",)
    with tarfile.open(out / "train.tar", "w") as tar:
        add(tar, "1.jpg", shards.files_of(folder, "train")[0].read_bytes())
        add(tar, "1.json", b'{"label": 1, "genus": "felis"}')
    (out / "train.parquet").unlink()
    assert read(
        out, train_root=str(out / "train.tar"), test_root=str(out), label_field="genus"
    ).classes == ("felis",)


def test_a_shard_that_ends_early_stops_the_run_and_is_no_corrupt_image(
    folder: Path, out: Path
) -> None:
    dataset = read(shards.as_archive(folder, out))
    os.truncate(out / "photos.tar", 20_000)
    assert isinstance(dataset.train, Files)
    with pytest.raises(DataError, match=r"photos.tar: ends before byte \d+, and was longer"):
        dataset.train.names.read(len(dataset.train) - 1)
    names_module._open.cache_clear()
    os.unlink(out / "photos.tar")
    with pytest.raises(DataError, match=r"photos.tar: cannot be read: No such file"):
        dataset.train.names.read(0)


def test_null_images_of_parquet_are_counted_and_left_out(folder: Path, out: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = shards.files_of(folder, "train")[0].read_bytes()
    images = [
        None if n % 3 == 1 else {"bytes": None if n % 7 == 5 else data, "path": f"{n}.jpg"}
        for n in range(40)
    ]
    table = pa.table({"image": images, "label": [n % 2 for n in range(40)]})
    for version in ("1.0", "2.0"):
        parquet.write_table(table, out / "train.parquet", data_page_version=version)
        dataset = read(out, holdout=2)
        kept = [n for n in range(40) if n % 3 != 1 and n % 7 != 5]
        names = {name for part in content(dataset).values() for name, _, _ in part}
        assert names == {f"{n % 2}/{n}.jpg" for n in kept}
        assert any(f"{40 - len(kept)} empty" in note for note in dataset.notes)


# --- packing ---


def pack(folder: Path, out: Path, packing: Packing) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    written = write_pack(
        read_splits("folder", str(folder)), out, packing, lambda *n: told.append(n)
    )
    return written, told


@pytest.mark.parametrize("kind", write.FORMATS)
def test_a_pack_is_the_folder_and_goes_on_where_it_stopped(
    kind: str, folder: Path, out: Path
) -> None:
    packing = Packing(kind, shard_bytes=10_000)
    written, told = pack(folder, out, packing)
    assert content(read(out)) == content(read(folder))
    assert sum(count for count, _ in told) == 51
    assert len(written["train"]) > 3, "several shards"
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    middle = next(path for path in files if path.name == written["train"][2].file)
    middle.unlink()
    state = json.loads((out / "pack.json").read_text())
    del state["shards"]["val"], state["shards"]["train"][3:]  # stopped after three shards
    (out / "pack.json").write_text(json.dumps(state))
    _, told = pack(folder, out, packing)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert [there > 0 for _, there in told[:4]] == [True, True, False, False]
    with pytest.raises(UsageError, match="holds a pack with max_side None, not 30"):
        pack(folder, out, Packing(kind, 10_000, max_side=30))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
def test_web_dataset_reads_what_was_packed(folder: Path, out: Path) -> None:
    wds = pytest.importorskip("webdataset")
    pack(folder, out, Packing("tar", shard_bytes=10**9))
    listed = list(wds.WebDataset(str(out / "train-00000.tar"), shardshuffle=False))
    assert [(sample.get("jpg") or sample["png"], int(sample["cls"])) for sample in listed] == [
        (data, label) for _, data, label in content(read(folder))["train"]
    ]


def test_pyarrow_reads_what_was_packed(folder: Path, out: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pack(folder, out, Packing("parquet", shard_bytes=10_000))
    tables = [parquet.read_table(path) for path in sorted((out / "data").glob("val*"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [(row["image"]["path"], row["image"]["bytes"], row["label"]) for row in rows] == content(
        read(folder)
    )["val"]


def test_resized_images_keep_shape_and_orientation_and_small_ones_their_bytes(
    tmp_path: Path, out: Path
) -> None:
    root = tmp_path / "photos"
    (root / "train" / "cat").mkdir(parents=True)
    picture = Image.linear_gradient("L").convert("RGB").resize((300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(root / "train" / "cat" / "wide.png", exif=exif)
    picture.resize((90, 60)).save(root / "train" / "cat" / "small.jpg", quality=30)
    (root / "train" / "cat" / "broken.jpg").write_bytes(b"no image")
    written, _ = pack(root, out, Packing("tar", 10**9, max_side=120, quality=95))
    assert written["train"][0].broken == 1
    source = location.find_source(out / "train")
    assert source is not None
    index = location.open_index(source, None)
    assert index.resized == "longer side at most 120 px, JPEG quality 95"
    names = packed_files(out, index, np.zeros(1, dtype=np.int64)).names
    data = {names.name(position): names.read(position) for position in range(3)}
    assert data["cat/broken.jpg"] == b"no image"
    assert data["cat/small.jpg"] == (root / "train" / "cat" / "small.jpg").read_bytes()
    wide = Image.open(io.BytesIO(data["cat/wide.jpg"]))
    assert (wide.size, wide.getexif()[0x0112]) == ((120, 80), 6)
    expected = picture.resize((120, 80), Image.Resampling.LANCZOS)
    assert np.abs(np.array(wide, float) - np.array(expected, float)).mean() < 1.5


def test_a_shard_that_does_not_read_back_is_an_error(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(*arguments: Any) -> Any:
        scanned = scan_tar(*arguments)
        return scanned._replace(members=scanned.members[:-1])

    monkeypatch.setattr(write, "scan_tar", lossy)
    with pytest.raises(
        DataError, match=r"train-00000.tar: does not read back .*\(35 of 36 images\)"
    ):
        pack(folder, out, Packing("tar", 10**9))
    assert not [file.name for file in out.iterdir() if "train" in file.name]


def test_the_command_says_what_it_packed_and_what_it_cannot(
    folder: Path, out: Path, rescue: Rescue
) -> None:
    ended = rescue("pack", folder, out / "new", "--max-side", 32)
    assert ended.out.splitlines() == [
        "train: 36 images in 1 shard, 0.1 MB",
        "val: 15 images in 1 shard, 0.1 MB",
        "resized: longer side at most 32 px, JPEG quality 90; every result of a run says so",
    ]
    assert ended.notes[-1] == str(out / "new")
    again = json.loads(rescue("pack", folder, out / "new", "--max-side", 32, "--json").out)
    assert [shard["images"] for shard in again["shards"]["train"]] == [36]
    (out / "full").mkdir()
    (out / "full" / "x").touch()
    for words, message in (
        ((out / "nothing", out / "a"), "no such file or folder"),
        ((folder, out / "full"), "is not empty, and holds no pack"),
        ((folder, out / "a", "--format", "rar"), "'rar' is not known"),
        ((folder, out / "a", "--name", "coco-boxes"), "has no training annotations"),
    ):
        refused = rescue("pack", *words)
        assert refused.code in (2, 3)
        assert message in refused.err


@pytest.mark.parametrize(
    "kind", ["tar of folders", "zip, deflated", "WebDataset, names", "parquet, snappy", "pack"]
)
def test_no_mutated_shard_ends_in_a_traceback(kind: str, folder: Path, out: Path) -> None:
    if kind == "pack":
        pack(folder, out, Packing("tar", 10**9))
        made = out
    else:
        made = KINDS[kind](folder, out)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    draw = random.Random(kind)
    refused = 0
    for _ in range(30):
        file = draw.choice(files)
        data = file.read_bytes()
        file.write_bytes(mutate(data, draw))
        try:
            content(read(made))
        except (RescueError, OSError):  # of an image's own block, as of a corrupt file
            refused += 1
        file.write_bytes(data)
    assert refused > 10
