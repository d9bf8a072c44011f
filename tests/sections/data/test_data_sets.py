"""Every data set that a recipe can name, from files as they lie in the world."""

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image

from rescue_cli.errors import DataError, RescueError, UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.sections import data
from rescue_cli.sections.data import Dataset, Files, Images, Split, hold_out, take_subset
from rescue_cli.sections.data.splits import FileNames, balanced_indices

GOLDEN_SUBSET = [20, 38, 46, 50, 51, 53, 61, 62, 63]
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(name: str, cache: Path = Path("unused"), **keys: Any) -> Dataset:
    return data.load(name, DataKeys(**keys), cache)


def refusal(name: str, **keys: Any) -> str:
    """The message of the DataError that loading ends in."""
    with pytest.raises(DataError) as error:
        load(name, **keys)
    assert error.value.exit_code == 3
    return str(error.value)


def counts(split: Split) -> list[int]:
    return [int(n) for n in np.bincount(split.labels)]


def image(path: Path, shade: int = 128, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, shade)).save(path)


def files(split: Split) -> list[str]:
    assert isinstance(split, Files)
    return [split.names.name(i) for i in range(len(split))]


def in_memory(split: Split) -> Images:
    assert isinstance(split, Images)
    return split


# --- fashion-mini ---


def test_fashion_mini_holds_6000_and_1000_grey_images_balanced_over_ten_classes() -> None:
    dataset = load("fashion-mini")
    train, test = in_memory(dataset.train), in_memory(dataset.tests["test"])
    assert train.pixels.shape == (6000, 1, 28, 28)
    assert test.pixels.shape == (1000, 1, 28, 28)
    assert train.pixels.dtype == np.uint8
    assert counts(train) == [600] * 10
    assert counts(test) == [100] * 10
    assert dataset.classes[0] == "T-shirt/top"
    assert dataset.classes[9] == "Ankle boot"


def test_fashion_mini_looks_like_fashion_mnist() -> None:
    # Mean and deviation of the 60,000 training images are 0.2860 and 0.3530
    pixels = in_memory(load("fashion-mini").train).pixels / 255
    assert pixels.mean() == pytest.approx(0.2860, abs=0.003)
    assert pixels.std() == pytest.approx(0.3530, abs=0.003)


def test_fashion_mini_has_no_test_image_in_training() -> None:
    dataset = load("fashion-mini")
    train = {image.tobytes() for image in in_memory(dataset.train).pixels}
    test = {image.tobytes() for image in in_memory(dataset.tests["test"]).pixels}
    assert len(train & test) == 0


def test_fashion_mini_in_the_package_takes_at_most_3_megabytes() -> None:
    folder = Path(data.__file__).parent / "files"
    assert (folder / "fashion-mini.npz.xz").stat().st_size <= 3e6
    assert "MIT" in (folder / "FASHION-MNIST-LICENSE").read_text()


# --- IDX files ---


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    """The format of LeCun's page: 0, 0, 8 for bytes, the rank, sizes big-endian, the values."""
    head = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
    return head + values.tobytes()


def write_idx(folder: Path, *, zipped: bool) -> dict[str, NDArray[np.uint8]]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(5)
    arrays = {}
    for split, count in (("train", 30), ("t10k", 20)):
        arrays[f"{split}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    for name, values in arrays.items():
        content = idx_bytes(values)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("mnist", ""),
        ("mnist", "raw"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", ""),
        ("fashion-mnist", "raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_read_where_people_keep_them(
    tmp_path: Path, name: str, below: str, zipped: bool
) -> None:
    arrays = write_idx(tmp_path / "root" / below, zipped=zipped)
    dataset = load(name, root=str(tmp_path / "root"))
    train, test = in_memory(dataset.train), in_memory(dataset.tests["test"])
    np.testing.assert_array_equal(train.pixels[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(train.labels, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(test.pixels[:, 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert len(dataset.classes) == 10
    assert train.pixels.flags.writeable, "torch warns of arrays that it may not write"


def test_idx_files_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", zipped=False)
    theirs = torchvision.datasets.MNIST(str(tmp_path), train=True)
    ours = in_memory(load("mnist", root=str(tmp_path)).train)
    np.testing.assert_array_equal(ours.pixels[:, 0], theirs.data.numpy())
    np.testing.assert_array_equal(ours.labels, theirs.targets.numpy())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-100],
        lambda _: b"",
        lambda _: b"<html>404 Not Found</html>",
        lambda content: content[:2] + b"\x0d" + content[3:],
    ],
    ids=["truncated", "empty", "a web page", "floats instead of bytes"],
)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_idx_file_is_named(
    tmp_path: Path, file: str, spoil: Callable[[bytes], bytes]
) -> None:
    write_idx(tmp_path / "root", zipped=False)
    path = tmp_path / "root" / file
    path.write_bytes(spoil(path.read_bytes()))
    assert str(path) in refusal("mnist", root=str(tmp_path / "root"))


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "root", zipped=True)
    path = tmp_path / "root" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    assert str(path) in refusal("mnist", root=str(tmp_path / "root"))


def test_more_images_than_labels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "root", zipped=False)
    labels = tmp_path / "root" / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(29, dtype=np.uint8)))
    message = refusal("mnist", root=str(tmp_path / "root"))
    assert "30 images and 29 labels" in message


# --- downloads ---


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends every download to a port of this machine where nothing listens."""
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "train-images-idx3-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("imagenette", "imagenette2-160.tgz"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_download_that_fails_names_the_file_and_both_cures(
    tmp_path: Path, name: str, file: str
) -> None:
    message = refusal(name, root=str(tmp_path))
    assert str(tmp_path / file) in message
    assert "could not be downloaded" in message
    assert "Put the file there by hand, or set data.root= to the data." in message
    assert list(tmp_path.iterdir()) == []


# --- cifar10 ---


def test_a_python_version_of_cifar10_whose_checksums_differ_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in [*torchvision.datasets.CIFAR10.train_list, ["test_batch", ""]]:
        (folder / name).write_bytes(
            b"cos\nsystem\n(S'touch opened'\ntR."
        )  # a pickle that runs code
    for root in (tmp_path, folder):
        message = refusal("cifar10", root=str(root))
        assert str(folder) in message
        assert "Delete the folder to unpack it again." in message


def test_an_archive_of_cifar10_with_another_checksum_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"not the archive")
    message = refusal("cifar10", root=str(tmp_path))
    assert "MD5" in message
    assert "Delete the file and download it again." in message
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def test_cifar10_comes_from_class_folders_of_real_images(
    cifar_folders: Path, tmp_path: Path
) -> None:
    dataset = load("cifar10", tmp_path, root=str(cifar_folders))
    train, test = in_memory(dataset.train), in_memory(dataset.tests["test"])
    assert dataset.classes == CIFAR10
    assert train.pixels.shape == (200, 3, 32, 32)
    assert counts(train) == [20] * 10
    assert counts(test) == [10] * 10
    for row, place in ((0, "airplane/0000.jpg"), (199, "truck/0019.jpg")):
        with Image.open(cifar_folders / "train" / place) as opened:
            np.testing.assert_array_equal(train.pixels[row].transpose(1, 2, 0), np.array(opened))


def test_cifar10_takes_two_roots_of_its_own(cifar_folders: Path, tmp_path: Path) -> None:
    train, test = (str(cifar_folders / split) for split in ("train", "test"))
    dataset = load("cifar10", tmp_path, train_root=train, test_root=test)
    assert (len(dataset.train), len(dataset.tests["test"])) == (200, 100)


# --- imagenette ---


def test_imagenette_comes_from_its_real_folders(imagenette_folders: Path) -> None:
    dataset = load("imagenette", root=str(imagenette_folders))
    assert sorted({name.split("/")[0] for name in files(dataset.train)})[:2] == [
        "n01440764",
        "n02102040",
    ]
    assert dataset.classes[0] == "tench"
    assert dataset.classes[9] == "parachute"
    assert sorted(set(dataset.train.labels.tolist())) == list(range(10))
    for split, folder in ((dataset.train, "train"), (dataset.tests["val"], "val")):
        assert len(split) == len(list((imagenette_folders / folder).glob("*/*.JPEG")))


def test_an_imagenette_class_without_folder_is_named(
    imagenette_folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(imagenette_folders, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/val/n03000684")
    dataset = load("imagenette", root=str(tmp_path / "copy"))
    assert sorted(set(dataset.tests["val"].labels.tolist())) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert dataset.notes == (
        "val: no image of 1 of 10 classes (chain saw): recall unknown; balanced accuracy averages "
        "the other 9.",
    )
    shutil.rmtree(tmp_path / "copy/train/n03000684")
    message = refusal("imagenette", root=str(tmp_path / "copy"))
    assert f"{tmp_path}/copy/train/n03000684: the class folder is missing (1 of 10)" in message


# --- imagenet ---


def known_ids() -> list[str]:
    """The 1,000 WordNet ids, in an independent table: timm's, of ImageNet-1k's class indices."""
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo("imagenet-1k")
    return list(info.label_names())


def test_the_label_is_the_place_among_1000_ids_even_where_folders_are_missing(
    imagenet_sample: Path,
) -> None:
    root = str(imagenet_sample)
    dataset = load("imagenet", train_root=root, test_root=root)
    assert len(dataset.train) == 256
    assert len(dataset.classes) == 1000
    ids = known_ids()
    assert ids == sorted(ids)
    for name, label in zip(files(dataset.train), dataset.train.labels, strict=True):
        assert ids[label] == name.split("/")[0]
    by_file = dict(zip(files(dataset.train), dataset.train.labels.tolist(), strict=True))
    assert by_file["n01443537/n01443537_goldfish.JPEG"] == 1
    assert by_file["n01518878/n01518878_ostrich.JPEG"] == 9
    assert (dataset.classes[1], dataset.classes[9]) == ("goldfish", "ostrich")


@pytest.fixture
def flat_validation(imagenet_sample: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A training folder and a flat `val` of five photographs, named as in ILSVRC."""
    ids = {}
    chosen = sorted(imagenet_sample.glob("*/*.JPEG"))[::60]
    for number, path in enumerate(reversed(chosen), start=1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        for copy in (tmp_path / "train" / path.parent.name / path.name, tmp_path / "val" / name):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        ids[name] = path.parent.name
    return tmp_path, ids


@pytest.mark.parametrize("where", ["val", "."], ids=["in the folder", "above it"])
@pytest.mark.parametrize("by", ["id", "place"])
def test_a_flat_validation_folder_has_the_labels_of_its_text_file(
    flat_validation: tuple[Path, dict[str, str]], where: str, by: str
) -> None:
    root, ids = flat_validation
    known = known_ids()
    lines = [f"{n} {i if by == 'id' else known.index(i)}" for n, i in ids.items()]
    (root / where / "val_labels.txt").write_text("\n".join(lines) + "\n")
    split = load("imagenet", root=str(root)).tests["val"]
    assert files(split) == sorted(ids)
    assert [known[label] for label in split.labels] == [ids[name] for name in files(split)]


def test_a_flat_validation_folder_has_the_labels_of_kaggles_table(
    flat_validation: tuple[Path, dict[str, str]],
) -> None:
    root, ids = flat_validation
    rows = [f"{Path(n).stem},{i} 85 1 499 272 {i} 1 2 3 4" for n, i in ids.items()]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    split = load("imagenet", root=str(root)).tests["val"]
    assert [known_ids()[label] for label in split.labels] == [ids[name] for name in files(split)]


def test_a_flat_folder_without_labels_or_with_wrong_ones_is_refused(
    flat_validation: tuple[Path, dict[str, str]],
) -> None:
    root, ids = flat_validation
    assert "Put val_labels.txt (lines: FILE CLASS)" in refusal("imagenet", root=str(root))
    first, *others = ids
    table = root / "val_labels.txt"
    table.write_text("\n".join(f"{n} {ids[n]}" for n in others))
    assert f"{root}/val/{first}: has no line in {table}" in refusal("imagenet", root=str(root))
    table.write_text("\n".join(f"{n} 1000" for n in ids))
    assert "'1000' of" in refusal("imagenet", root=str(root))


def test_folders_0_to_999_are_labels_themselves(tmp_path: Path) -> None:
    image(tmp_path / "train/n01440764/a.jpg")
    image(tmp_path / "val/n01440764/a.jpg")
    for number in range(1000):
        image(tmp_path / f"v2/{number}/a.png")
    dataset = load("imagenet", root=str(tmp_path), sets={"v2": str(tmp_path / "v2")})
    assert list(dataset.tests) == ["val", "v2"]
    v2 = dataset.tests["v2"]
    assert [int(name.split("/")[0]) for name in files(v2)] == v2.labels.tolist()
    assert sorted(v2.labels.tolist()) == list(range(1000))


def test_an_evaluation_needs_and_reads_no_training_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RESCUE_DATA", raising=False)
    image(tmp_path / "val/n01443537/a.jpg")
    image(tmp_path / "train/not a class/a.jpg")
    for keys in (DataKeys(root=str(tmp_path)), DataKeys(test_root=str(tmp_path / "val"))):
        dataset = data.load("imagenet", keys, tmp_path, test_only=True)
        assert (len(dataset.train), list(dataset.tests)) == (0, ["val"])
        assert dataset.tests["val"].labels.tolist() == [1]
    image(tmp_path / "own/cat/a.jpg")
    keys = DataKeys(test_root=str(tmp_path / "own"), subset=(5, 5))
    dataset = data.load("folder", keys, tmp_path, test_only=True)
    assert (dataset.classes, len(dataset.tests["val"])) == (("cat",), 1)
    with pytest.raises(DataError, match=r"data\.root: missing"):
        data.load("imagenet", DataKeys(), tmp_path, test_only=True)


def test_a_folder_that_is_no_imagenet_class_is_named(tmp_path: Path) -> None:
    image(tmp_path / "train/n01440764/a.jpg")
    image(tmp_path / "train/n01440765/a.jpg")
    image(tmp_path / "train/old backup/a.jpg")
    message = refusal("imagenet", root=str(tmp_path))
    assert message.startswith(f"{tmp_path}/train/n01440765: not one of the classes. Did you mean")
    shutil.rmtree(tmp_path / "train/n01440765")
    message = refusal("imagenet", root=str(tmp_path))
    assert f"{tmp_path}/train/old backup: not one of the classes" in message
    assert len(message) < 1000, "a thousand known ids are no help"


# --- folder ---


@pytest.mark.parametrize("test_name", ["val", "test"])
def test_a_folder_of_ones_own_names_its_classes(tmp_path: Path, test_name: str) -> None:
    for split, count in (("train", 3), (test_name, 2)):
        for name in ("zebra", "Äpfel", "cat"):
            for i in range(count):
                image(tmp_path / split / name / f"{i}.jpg")
    (tmp_path / "train/cat/readme.txt").write_text("not an image")
    (tmp_path / "train/.cache").mkdir()
    dataset = load("folder", root=str(tmp_path))
    assert dataset.classes == ("cat", "zebra", "Äpfel")
    assert list(dataset.tests) == [test_name]
    assert counts(dataset.train) == [3, 3, 3]
    assert counts(dataset.tests[test_name]) == [2, 2, 2]
    assert files(dataset.train)[-1] == "Äpfel/2.jpg"


def test_numbered_classes_keep_their_labels_in_the_test_set(tmp_path: Path) -> None:
    # Sorted as text 10 stands before 2: the test set's labels must be those of training
    for split in ("train", "val"):
        for number in range(12):
            image(tmp_path / split / str(number) / "a.png")
    dataset = load("folder", root=str(tmp_path))
    assert dataset.classes == tuple(sorted(str(i) for i in range(12)))
    val = dataset.tests["val"]
    for name, label in zip(files(val), val.labels, strict=True):
        assert dataset.classes[label] == name.split("/")[0]


def test_two_roots_and_further_sets_of_a_folder(tmp_path: Path) -> None:
    for split in ("a", "b", "c"):
        image(tmp_path / split / "cat" / "1.PNG")
    dataset = load(
        "folder",
        train_root=str(tmp_path / "a"),
        test_root=str(tmp_path / "b"),
        sets={"other": str(tmp_path / "c")},
    )
    assert list(dataset.tests) == ["val", "other"]
    other = dataset.tests["other"]
    assert isinstance(other, Files)
    assert other.names.path(0) == tmp_path / "c/cat/1.PNG"


def test_what_is_wrong_with_a_folder_is_said_with_its_name(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert refusal("folder", root=f"{root}/none") == (
        f"{root}/none/train: no such folder. Set data.root= (or train_root, test_root)."
    )
    assert refusal("folder", root=root) == (
        f"{root}: holds no folder. Give a folder with train/ and val/, or with one folder of "
        "images for each class."
    )
    (tmp_path / "train").mkdir()
    assert f"{root}/train: has no class folders" in refusal("folder", root=root)
    (tmp_path / "train/cat").mkdir()
    assert f"{root}/train/cat: is empty. Remove the folder." in refusal("folder", root=root)
    image(tmp_path / "train/cat/a.png")
    message = refusal("folder", root=root)
    assert f"{root}/val: no such folder" in message
    assert "data.test_root=DIR" in message
    assert "data.test_holdout=1" in message
    image(tmp_path / "val/cat/a.png")
    image(tmp_path / "val/catt/a.png")
    message = refusal("folder", root=root)
    assert f"{root}/val/catt: not one of the classes. Did you mean 'cat'?" in message
    shutil.rmtree(tmp_path / "val/cat")
    assert "no image belongs to a class of the training set" in refusal(
        "folder", root=root, unknown_classes="skip"
    )


# --- where data are ---


def test_rescue_data_is_used_where_no_root_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_idx(tmp_path / "mnist", zipped=True)
    monkeypatch.setenv("RESCUE_DATA", str(tmp_path))
    pixels = in_memory(load("mnist").train).pixels
    np.testing.assert_array_equal(pixels[:, 0], arrays["train-images-idx3-ubyte"])
    image(tmp_path / "elsewhere/train/cat/a.png")
    image(tmp_path / "elsewhere/val/cat/a.png")
    given = load("folder", root=str(tmp_path / "elsewhere"))
    assert given.classes == ("cat",), "data.root goes before RESCUE_DATA"


@pytest.mark.parametrize(
    "name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "imagenette", "imagenet", "folder"]
)
def test_without_root_and_rescue_data_both_cures_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RESCUE_DATA", raising=False)
    assert refusal(name) == (
        f"data.root: missing; the data set '{name}' is not packaged with rescue. Give "
        f"data.root=DIR, or set RESCUE_DATA so that RESCUE_DATA/{name} is the folder."
    )


# --- subsets and hold-outs ---


def uneven() -> Dataset:
    """Three classes of 50, 10 and 4 training images; the pixel is the image's own number."""
    labels = np.repeat(np.arange(3), [50, 10, 4])
    pixels = np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1)
    test = Images(pixels[::2], labels[::2])
    return Dataset(Images(pixels, labels), {"test": test}, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("count", "of_each"),
    [(3, [1, 1, 1]), (12, [4, 4, 4]), (20, [8, 8, 4]), (30, [16, 10, 4]), (99, [50, 10, 4])],
)
def test_a_subset_is_balanced_as_far_as_the_classes_go(count: int, of_each: list[int]) -> None:
    train = in_memory(take_subset(uneven(), (count, 5)).train)
    assert counts(train) == of_each
    assert len(set(train.pixels.flat)) == len(train), "no image twice"
    whole = uneven().train
    np.testing.assert_array_equal(train.labels, whole.labels[train.pixels.ravel()])


def test_a_subset_does_not_change_between_runs() -> None:
    # Golden: a later version that draws others would silently change every --subset run
    chosen = in_memory(take_subset(uneven(), (9, 3)).train).pixels.ravel().tolist()
    assert chosen == in_memory(take_subset(uneven(), (9, 3)).train).pixels.ravel().tolist()
    assert chosen == GOLDEN_SUBSET
    assert chosen != [0, 1, 2, 50, 51, 52, 60, 61, 62], "drawn, not the first of each class"


def test_every_image_has_its_chance_in_a_subset() -> None:
    # Of 1,000 images of one class, 500 drawn: as many from the first half as from the second
    chosen = balanced_indices(np.zeros(1000, dtype=np.int64), 500)
    assert abs(int((chosen < 500).sum()) - 250) < 40  # hypergeometric, deviation 7.9


def test_a_holdout_is_disjoint_balanced_and_in_place_of_the_test_set() -> None:
    dataset = hold_out(load("fashion-mini"), 1000)
    assert list(dataset.tests) == ["holdout"]
    assert counts(dataset.train) == [500] * 10
    assert counts(dataset.tests["holdout"]) == [100] * 10
    whole = load("fashion-mini")
    both = [*in_memory(dataset.train).pixels, *in_memory(dataset.tests["holdout"]).pixels]
    assert sorted(p.tobytes() for p in both) == sorted(
        p.tobytes() for p in in_memory(whole.train).pixels
    )


def test_folds_share_no_image_and_each_is_balanced() -> None:
    whole = load("fashion-mini")
    seen: list[bytes] = []
    for fold in range(3):
        dataset = hold_out(whole, 600, fold)
        (name,) = dataset.tests
        assert name == ["holdout", "holdout-1", "holdout-2"][fold]
        assert counts(dataset.tests[name]) == [60] * 10
        assert len(dataset.train) == 5400
        seen += [pixels.tobytes() for pixels in in_memory(dataset.tests[name]).pixels]
    assert len(set(seen)) == len(seen) == 1800


def test_two_folds_are_what_one_of_twice_the_size_is() -> None:
    labels = uneven().train.labels
    whole, first, second = (
        set(balanced_indices(labels, n, k)) for n, k in ((20, 0), (10, 0), (10, 1))
    )
    assert first | second == whole


def test_a_fold_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data.fold: 3: 64 training images have only 3 folds"):
        hold_out(uneven(), 20, 3)
    with pytest.raises(
        UsageError, match=r"data.fold: 1 needs held-out images. Give data.holdout=N"
    ):
        load("fashion-mini", fold=1)


def test_a_holdout_needs_no_test_folder(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            image(tmp_path / "train" / name / f"{i}.png")
    dataset = load("folder", root=str(tmp_path), holdout=4)
    assert counts(dataset.train) == [3, 3]
    assert counts(dataset.tests["holdout"]) == [2, 2]
    assert not set(files(dataset.train)) & set(files(dataset.tests["holdout"]))


def test_a_holdout_that_leaves_nothing_to_train_is_refused() -> None:
    for count in (64, 65):
        with pytest.raises(UsageError, match=f"data.holdout: {count} of 64 training images leaves"):
            hold_out(uneven(), count)
    assert len(hold_out(uneven(), 63).train) == 1


def test_holdout_and_subset_together_are_cut_after_each_other() -> None:
    dataset = load("fashion-mini", holdout=600, subset=(200, 50))
    assert counts(dataset.train) == [20] * 10
    assert counts(dataset.tests["holdout"]) == [5] * 10


# --- memory ---


def test_the_names_of_imagenet_take_less_than_100_megabytes() -> None:
    ids = known_ids()
    names = [f"{ids[i % 1000]}/{ids[i % 1000]}_{i // 1000}.JPEG" for i in range(1_281_167)]
    block = FileNames.of(Path("/data/imagenet/train"), names)
    assert block.block.nbytes + block.ends.nbytes < 100e6
    for index in (0, 1, 640_000, 1_281_166):
        assert block.name(index) == names[index]


@pytest.mark.parametrize("name", list(data.DATASETS))
@pytest.mark.usefixtures("no_network")
def test_every_data_set_without_its_files_ends_in_a_data_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESCUE_DATA", str(tmp_path / "nowhere"))
    if name == "fashion-mini":
        assert len(load(name).train) == 6000
        return
    with pytest.raises(RescueError) as error:
        load(name)
    assert error.value.exit_code == 3
    assert str(tmp_path / "nowhere" / name) in str(error.value)
