"""Folders as people have them: formats, sub-folders, system files, splits, and names."""

import os
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image, features

from rescue_cli.engine.recorder import Recorder
from rescue_cli.errors import DataError
from rescue_cli.recipe import DataKeys
from rescue_cli.recipe.sections import Decoder
from rescue_cli.rundir import RunDirectory, read_json
from rescue_cli.sections import data
from rescue_cli.sections.data import Dataset, Files, Split
from rescue_cli.sections.data.decode import decode_image, decode_to_array, image_size
from rescue_cli.sections.data.formats.class_folders import class_folders, read_class_folders
from rescue_cli.sections.data.listing import SkippedFiles, image_extensions, list_images, read_lines
from rescue_cli.sections.data.location import Location
from tests.conftest import Rescue

NFC = "Äpfel"
NFD = unicodedata.normalize("NFD", NFC)
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"
MARK = "\ufeff"


def load(name: str, root: Path, *, test_only: bool = False, **keys: Any) -> Dataset:
    return data.load(name, DataKeys(root=str(root), **keys), root / "cache", test_only=test_only)


def draw(path: Path, shade: int = 128) -> None:
    """An image whose last quarter no other path has, also after lossy compression."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (16, 16), (shade, 255 - shade, 7))
    red, green, blue, _ = zlib.crc32(os.fsencode(path)).to_bytes(4, "big")
    image.paste((red, green, blue), (8, 8, 16, 16))
    image.save(path)


def photos(root: Path, train: str = "train", test: str = "val", each: int = 5) -> Path:
    """Class folders cat/ and dog/ of two splits; no split but the classes where it is empty."""
    for split in dict.fromkeys((train, test)):
        for name in ("cat", "dog"):
            for number in range(each):
                draw(root / split / name / f"{number}.png", 20 * number)
    return root


def files(split: Split) -> list[str]:
    assert isinstance(split, Files)
    return [split.names.name(i) for i in range(len(split))]


def refusal(name: str, root: Path, **keys: Any) -> str:
    with pytest.raises(DataError) as error:
        load(name, root, **keys)
    assert error.value.exit_code == 3
    return str(error.value)


# --- formats ---

LOSSLESS = ("png", "tif", "tiff", "bmp", "dib", "ppm", "tga", "jp2", "webp", "gif", "qoi", "pcx")


@pytest.mark.parametrize("ending", [*LOSSLESS, "jpg", "jpeg", "JPG", "jfif", "avif"])
def test_images_of_every_format_are_listed_and_decoded(tmp_path: Path, ending: str) -> None:
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this PIL has no AVIF")
    drawn = Image.new("RGB", (16, 16), (255, 0, 0))
    drawn.paste((0, 0, 255), (0, 0, 16, 8))
    drawn.save(tmp_path / f"a.{ending}", lossless=True)  # an option of WebP's alone
    assert list_images(tmp_path, SkippedFiles()) == [f"a.{ending}"]
    content = (tmp_path / f"a.{ending}").read_bytes()
    decoders: tuple[Decoder, ...] = ("fast", "pil")
    for decoder in decoders:
        found = np.asarray(decode_image(content, decoder))
        slack = 0 if ending in LOSSLESS else 15  # colours run over the edge between them
        assert np.abs(found.astype(int) - np.asarray(drawn)).mean() <= slack


def test_of_several_frames_or_pages_the_first_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (200, 90)]
    for ending in ("gif", "tif", "webp", "png"):
        file = tmp_path / f"a.{ending}"
        frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_to_array(file.read_bytes())[0, 0].tolist() == [200, 0, 0]


def test_what_has_no_decoder_here_is_counted_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = image_extensions() - {".heic"}
    monkeypatch.setattr("rescue_cli.sections.data.listing.image_extensions", lambda: without)
    photos(tmp_path)
    (tmp_path / "train/cat/phone.heic").write_bytes(b"a picture")
    (tmp_path / "train/dog/notes.txt").write_bytes(b"a text")
    dataset = load("folder", tmp_path)
    assert len(dataset.train) == 10
    assert dataset.notes == (
        "skipped files: 1 without a decoder (for .heic: pip install 'rescue[heic]'), the "
        f"first {tmp_path}/train/cat/phone.heic; 1 without an image extension (1 .txt), the "
        f"first {tmp_path}/train/dog/notes.txt",
    )


# --- what lies between the images ---


def test_files_are_those_that_torchvision_reads_in_its_order(tmp_path: Path) -> None:
    for name in ("cat/b.png", "cat/a-b/1.png", "cat/a/b/2.png", "cat/a/3.tif", "dog/Z.jpg"):
        draw(tmp_path / name)
    theirs = torchvision.datasets.ImageFolder(str(tmp_path))
    passed = SkippedFiles()
    ours = read_class_folders(tmp_path, theirs.class_to_idx, complete=True, skipped=passed)
    assert [(str(ours.names.path(i)), int(ours.labels[i])) for i in range(len(ours))] == (
        theirs.samples
    )
    assert passed.notes() == (
        f"{tmp_path}: 3 of 5 images are in subfolders of their class folder and belong to that "
        "class; the first is cat/a/3.tif",
    )


def test_what_is_passed_over_is_counted_and_the_first_named(tmp_path: Path) -> None:
    root, cat = photos(tmp_path), tmp_path / "train" / "cat"
    for name in ("._0.png", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints"):
        (cat / name).write_bytes(APPLE_DOUBLE)
    for folder in (tmp_path / "train" / "__MACOSX", cat / "@eaDir"):
        draw(folder / "0.png")
    for name in ("list.txt", "a.dcm", "b.DCM"):
        (cat / name).write_bytes(b"x")
    (cat / "empty.png").touch()
    (cat / "gone.png").symlink_to("/nowhere/at all.png")
    (cat / "self.png").symlink_to("self.png")
    os.mkfifo(cat / "pipe.png")
    (cat / "round").symlink_to(cat)
    draw(root / "train" / "contact sheet.png")
    dataset = load("folder", root)
    assert (len(dataset.train), len(dataset.tests["val"])) == (10, 10)
    (note,) = dataset.notes
    start, *others = note.split("; ")
    assert start.startswith("skipped files: ")
    noted = {part.partition(", the first ")[0] for part in [start[15:], *others]}
    assert noted == {
        "6 hidden or system files",
        "3 without an image extension (2 .dcm, 1 .txt)",
        "1 empty",
        "3 broken links or not regular files",
        "1 links to a parent folder",
        "1 outside the class folders",
    }
    assert f"1 empty, the first {cat}/empty.png" in note
    clean = load("folder", photos(tmp_path / "clean"))
    assert clean.notes == ()


def test_masks_and_boxes_pass_over_the_same_files(tmp_path: Path) -> None:
    masks, voc = made_masks(tmp_path / "masks"), made_voc(tmp_path / "voc", "a", "b")
    for folder in (masks / "train/images", masks / "valid/images", voc / "JPEGImages"):
        (folder / "._0.png").write_bytes(APPLE_DOUBLE)
        (folder / "Thumbs.db").write_bytes(b"x")
    (voc / "Annotations" / "._a.xml").write_bytes(APPLE_DOUBLE)
    listed = voc / "ImageSets/Main/train.txt"
    listed.write_text("._a\na\n.DS_Store\n")
    of_masks = load("mask-folder", masks)
    assert files(of_masks.train) == ["train/images/0.png", "train/images/city/1.png"]
    assert of_masks.notes[-1].startswith("skipped files: 4 hidden or system files, the first")
    of_boxes = load("voc-folder", voc)
    assert files(of_boxes.train) == ["JPEGImages/a.jpg"]
    assert of_boxes.notes == (
        f"skipped files: 2 hidden or system files, the first ._a in {listed}",
    )


def test_a_class_of_nothing_that_can_be_read_says_what_lies_there(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "train/owl").mkdir()
    (tmp_path / "train/owl/scan.dcm").write_bytes(b"x")
    assert refusal("folder", tmp_path) == (
        f"{tmp_path}/train/owl: holds no readable image (1 without an image extension (1 .dcm), "
        f"the first {tmp_path}/train/owl/scan.dcm). Add images if it is a class, or move "
        f"it out of {tmp_path}/train."
    )


def test_folders_where_images_should_be_are_no_classes_by_themselves(tmp_path: Path) -> None:
    photos(tmp_path / "both")
    photos(tmp_path / "wrapped/photos", "", "")
    photos(tmp_path / "by class/cat")
    photos(tmp_path / "by class/dog")
    with pytest.raises(DataError, match=r"holds splits \(train, val\) and no classes"):
        class_folders(tmp_path / "both")
    with pytest.raises(DataError, match="photos: the only class, and it holds folders but no"):
        read_class_folders(tmp_path / "wrapped", {"photos": 0}, complete=True)
    with pytest.raises(DataError, match=r"cat: holds splits \(train, val\) and no images. Put"):
        read_class_folders(tmp_path / "by class", {"cat": 0, "dog": 1}, complete=True)


# --- splits ---


@pytest.mark.parametrize(
    ("train", "test", "called"),
    [
        ("train", "valid", "val"),
        ("train", "validation", "val"),
        ("Train", "Val", "val"),
        ("Training", "Testing", "test"),
    ],
)
def test_splits_by_their_other_names_are_read_and_told(
    tmp_path: Path, train: str, test: str, called: str
) -> None:
    dataset = load("folder", photos(tmp_path, train, test))
    assert (len(dataset.train), len(dataset.tests[called])) == (10, 10)
    assert dataset.notes == (f"{tmp_path}/{test}: used as the test set '{called}'",)


def test_two_folders_for_one_split_are_refused_and_an_unread_one_is_told(tmp_path: Path) -> None:
    photos(tmp_path, "train", "valid")
    photos(tmp_path, "train", "Validation")
    assert f"{tmp_path}: Validation and valid may both be 'val'" in (refusal("folder", tmp_path))
    photos(tmp_path / "three", "val", "test")
    photos(tmp_path / "three", "train", "val")
    dataset = load("folder", tmp_path / "three")
    test = tmp_path / "three" / "test"
    assert list(dataset.tests) == ["val"]
    assert dataset.notes == (
        f"{test}: is not used; data.sets={{test: {test}}} evaluates on it too",
    )
    assert load("folder", tmp_path / "three", sets={"test": str(test)}).notes == ()


def test_a_folder_without_a_split_is_told_how_many_images_to_hold_out(tmp_path: Path) -> None:
    photos(tmp_path, "", "", each=10)
    message = refusal("folder", tmp_path)
    assert message == (
        f"{tmp_path}: holds class folders, and no test split such as val/. Give data.test_root=DIR "
        "or hold out training images, equally many per class, with data.test_holdout=4."
    )
    dataset = load("folder", tmp_path, holdout=4)
    assert np.bincount(dataset.train.labels).tolist() == [8, 8]
    assert np.bincount(dataset.tests["holdout"].labels).tolist() == [2, 2]
    assert dataset.notes == (f"{tmp_path}: has no train/; all class folders are used for training",)
    photos(tmp_path / "half", "train", "train", each=10)
    assert f"{tmp_path}/half/val: no such folder. Add it, give data.test_root=DIR or hold out" in (
        refusal("folder", tmp_path / "half")
    )
    measured = DataKeys(root=str(tmp_path / "cats"))
    photos(tmp_path / "cats", "", "")
    with pytest.raises(DataError, match=rf"Give data.test_root={tmp_path}/cats\."):
        data.load("folder", measured, tmp_path, test_only=True)


def test_a_folder_of_one_class_is_named_with_the_folder_to_give(tmp_path: Path) -> None:
    photos(tmp_path, "train", "val")
    one = tmp_path / "train" / "cat"
    says = (
        f"{one}: holds images, and no class folders. Give a folder with one folder of images per "
        f"class, or with train/ and val/ that have these, such as {tmp_path}."
    )
    assert refusal("folder", one) == says
    with pytest.raises(DataError) as raised:
        data.load("folder", DataKeys(root=str(one)), tmp_path, test_only=True)
    assert str(raised.value) == says
    with pytest.raises(DataError) as raised:
        data.load("folder", DataKeys(train_root=str(one), holdout=2), tmp_path)
    assert str(raised.value) == says
    draw(tmp_path / "alone" / "images" / "a.png")
    assert refusal("folder", tmp_path / "alone" / "images").endswith("val/ that have these.")


def test_a_split_given_in_place_of_the_folder_above_is_understood(tmp_path: Path) -> None:
    photos(tmp_path)
    photos(tmp_path, "train", "test")
    dataset = load("folder", tmp_path / "train")
    assert (dataset.classes, len(dataset.train)) == (("cat", "dog"), 10)
    assert list(dataset.tests) == ["val"]
    note = f"data.root: {tmp_path}/train is a split; reading its parent {tmp_path}"
    assert dataset.notes[0] == note
    measured = load("folder", tmp_path / "test", test_only=True)
    assert list(measured.tests) == ["test"], "the split that was given, though there is a val"
    alone = photos(tmp_path / "other" / "test", "", "")  # called test, and no split of anything
    assert len(load("folder", alone, holdout=2).train) == 8
    assert files(load("mask-folder", made_masks(tmp_path / "m") / "train").train)


def test_a_folder_in_the_folder_of_an_archive_is_pointed_at(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    assert refusal("folder", tmp_path) == (
        f"{tmp_path}/train: no such folder. Set data.root= (or train_root, test_root), or use "
        f"data.root={tmp_path}/photos."
    )


def test_a_folder_one_level_too_high_is_answered_with_one_in_it(tmp_path: Path) -> None:
    photos(tmp_path / "later", "", "")
    photos(tmp_path / "photos", "", "")
    says = (
        f"{tmp_path}: holds folders of class folders (later, photos). Give one of them, such as "
        f"{tmp_path}/later"
    )
    assert refusal("folder", tmp_path) == f"{says}."
    with pytest.raises(DataError) as raised:
        data.load("folder", DataKeys(root=str(tmp_path)), tmp_path, test_only=True)
    assert str(raised.value) == f"{says}."
    draw(tmp_path / "new" / "a.png")  # so that the others look like classes, too
    draw(tmp_path / "new" / "b.png")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/x.bin").write_bytes(b"x")
    assert refusal("folder", tmp_path, holdout=2) == (
        f"{says}; or, if they are classes, move cache, which has no image, out of {tmp_path}."
    )
    (tmp_path / "cache/x.bin").unlink()
    (tmp_path / "cache").rmdir()
    assert load("folder", tmp_path, holdout=3).classes == ("later", "new", "photos")


# --- names ---


def test_class_names_in_other_normal_forms_are_one_class(tmp_path: Path) -> None:
    draw(tmp_path / "train" / NFC / "a.png")
    draw(tmp_path / "train" / "猫" / "a.png")
    draw(tmp_path / "val" / NFD / "a.png")
    draw(tmp_path / "val" / "猫\r" / "a.png")  # mkdir in a loop over a list of Windows'
    dataset = load("folder", tmp_path)
    assert dataset.classes == (NFC, "猫")
    assert dataset.tests["val"].labels.tolist() == [0, 1]
    assert (tmp_path / "val" / files(dataset.tests["val"])[0]).is_file(), "by its name on disk"
    draw(tmp_path / "train" / NFD / "b.png")
    both = load("folder", tmp_path)
    assert both.train.labels.tolist() == [0, 0, 1]
    assert f"2 folders are called {NFC}, in different Unicode normal forms" in both.notes[0]


def test_a_class_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    photos(tmp_path)
    try:
        os.rename(tmp_path / "train/dog", os.fsencode(tmp_path / "train") + b"/\xc4pfel")
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    message = refusal("folder", tmp_path)
    assert message.startswith(f"{tmp_path}/train/\\udcc4pfel: a class name must be UTF-8")
    message.encode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_are_read_as_editors_write_them(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(f"{NFC}{end}{end}b 1{end}".encode(encoding))
    assert read_lines(file) == [NFC, "b 1"]
    file.write_bytes("a\nÄpfel\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list.txt: line 2 is not utf-8. Save it as UTF-8."):
        read_lines(file)


def test_a_label_file_names_files_and_classes_with_spaces(tmp_path: Path) -> None:
    for name in ("cat", "golden retriever"):
        draw(tmp_path / "train" / name / "a.png")
    for name in ("slide val (1)", "b", f"{NFD} 2"):
        draw(tmp_path / "val" / f"{name}.png")
    rows = ["b.png golden retriever", "slide val (1).png,cat", f"{NFC} 2 1", "gone.png cat"]
    (tmp_path / "val/labels.txt").write_text(MARK + "\r\n".join(rows), newline="")
    dataset = load("folder", tmp_path)
    val = dataset.tests["val"]
    found = {unicodedata.normalize("NFC", n): int(i) for n, i in zip(files(val), val.labels)}  # noqa: B905
    assert found == {"b.png": 1, "slide val (1).png": 0, f"{NFC} 2.png": 1}
    assert dataset.notes == (f"{tmp_path}/val/labels.txt: 1 of 4 lines name no existing image",)


BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"


def made_voc(root: Path, train: str, val: str, cls: str = "cat") -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, name in (("train", train), ("val", val)):
        draw(root / "JPEGImages" / f"{name}.jpg")
        text = f"<annotation><object><name>{cls}</name>{BOX}</object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
        (root / "ImageSets/Main" / f"{split}.txt").write_text(f"{name}\n")
    return root


def made_masks(root: Path) -> Path:
    for split in ("train", "valid"):
        for name in ("0.png", "city/1.png"):
            draw(root / split / "images" / name)
            mask = root / split / "masks" / name
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 2).save(mask)
    (root / "classes.txt").write_text(f"{MARK}sky\r\n{NFD}\r\n", newline="")
    return root


def test_names_in_the_lists_of_voc_and_masks_are_understood(tmp_path: Path) -> None:
    voc = made_voc(tmp_path / "voc", "slide train (1)", f"{NFD} v 1", cls=NFD)
    lists = voc / "ImageSets" / "Main"
    (lists / "train.txt").write_text(f"{MARK}slide train (1)  1\r\n", newline="")
    (lists / "val.txt").rename(lists / "valid.txt")
    (lists / "valid.txt").write_text(f"{NFC} v 1.jpg\r\n", newline="")
    dataset = load("voc-folder", voc)
    assert dataset.classes == (NFC,)
    assert files(dataset.train) == ["JPEGImages/slide train (1).jpg"]
    assert files(dataset.tests["val"]) == [f"JPEGImages/{NFD} v 1.jpg"]
    masks = load("mask-folder", made_masks(tmp_path / "masks"))
    assert masks.classes == ("sky", NFC)
    assert masks.notes == (f"{tmp_path}/masks/valid: used as the test set 'val'",)
    assert len(masks.tests["val"]) == 2


def test_a_file_name_that_is_not_utf_8_can_be_told(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xc4pfel.png")
    recorder = Recorder(RunDirectory(tmp_path), writes=True, steps=1)
    recorder.open_log()
    recorder.log(f"corrupt image replaced: {name}: 猫")
    recorder.close()
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.endswith("replaced: \\udcc4pfel.png: 猫\n")
    passed = SkippedFiles()
    passed.add("empty", name)
    assert passed.notes()[0].encode().endswith(b"the first \\udcc4pfel.png")


# --- through the command ---


def test_a_run_a_transfer_and_predictions_on_a_folder_as_it_comes(
    rescue: Rescue, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    for name in ("猫", "US$ and $x$"):
        for number, ending in enumerate(("tif", "webp", "bmp", "gif", "jpg")):
            draw(root / "train" / name / "phone" / f"{number}.{ending}", 40 * number)
            draw(root / "valid" / name / f"{number}.{ending}", 40 * number)
            (root / "train" / name / "phone" / f"._{number}.{ending}").write_bytes(APPLE_DOUBLE)
    words = (
        "data.train_size=32", "eval.sizes=[32]", "train.precision=float32", "train.batch_size=5",
        "train.device_batch_size=5", "train.epochs=1", "model={name: test_resnet}",
    )  # fmt: skip
    made = rescue(
        "train", "--recipe", "pytorch", "--out", "run", "data.name=folder",
        f"data.root={root}/train", *words,
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "Warning" not in made.err
    notes = read_json(tmp_path / "run" / "result.json")["notes"]
    assert len(notes) == 4
    assert notes[-1].startswith("skipped files: 10 hidden or system files, the first")
    for note in notes:
        assert note in made.notes
    output = rescue("predict", "run", root / "valid", root / "train" / "猫" / "phone" / "._0.tif")
    assert output.code == 0, output.err
    assert output.notes[-1].startswith("skipped files: 1 hidden or system files")
    assert output.out.count(".gif") == 2
    empty = tmp_path / "nothing"
    empty.mkdir()
    refused = rescue("predict", "run", empty)
    assert refused.code == 3
    assert f"{empty}: no readable image." in refused.err
    (tmp_path / "photos" / "valid" / "猫" / ".DS_Store").write_bytes(b"x")
    measured = rescue("eval", "run", f"data.root={root}/valid")
    assert measured.code == 0, measured.err
    assert "1 hidden or system files" in measured.err
    moved = rescue(
        "transfer", "--from", "run", "--to", root, "--recipe", "pytorch", *words[:-1],
        "--out", "out",
    )  # fmt: skip
    assert moved.code == 0, moved.err
    assert moved.err.count("skipped files: 11 hidden or system files") == 1


# --- layouts that look alike ---


def test_the_split_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    photos(tmp_path)
    photos(tmp_path, "training")
    dataset = load("folder", tmp_path / "training")
    assert isinstance(dataset.train, Files)
    assert dataset.train.names.path(0).parts[-3] == "training"
    alone = load("folder", tmp_path / "val", test_only=True)
    assert not any("is a split" in note for note in alone.notes), "nothing else was read"


def test_train_may_be_a_class_beside_others(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        for number in range(4):
            draw(tmp_path / name / f"{number}.png", 20 * number)
    dataset = load("folder", tmp_path, holdout=3)
    assert (dataset.classes, len(dataset.train)) == (("bus", "car", "train"), 9)


def test_folders_beside_a_published_set_change_nothing(tmp_path: Path) -> None:
    draw(tmp_path / "pictures/x.png")
    (tmp_path / "cifar-10-batches-py").mkdir()
    place = Location("cifar10", DataKeys(root=str(tmp_path)))
    assert not place.has_train_folder


def test_a_split_that_a_holdout_replaces_is_not_offered(tmp_path: Path) -> None:
    dataset = load("folder", photos(tmp_path), holdout=2)
    assert not any("is not read" in note for note in dataset.notes)


def test_a_test_set_may_hold_one_class_in_folders_of_days(tmp_path: Path) -> None:
    photos(tmp_path)
    draw(tmp_path / "days/cat/monday/1.png")
    dataset = load("folder", tmp_path, test_root=str(tmp_path / "days"))
    assert [len(test) for test in dataset.tests.values()] == [1]


def test_a_png_that_says_its_orientation_after_the_pixels_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200)).save(tmp_path / "late.png", exif=exif)
    Image.new("RGB", (300, 200)).save(tmp_path / "none.png")
    data = (tmp_path / "late.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    moved = data[:start] + data[end:last] + data[start:end] + data[last:]
    (tmp_path / "late.png").write_bytes(moved)
    assert image_size(tmp_path / "late.png", "applied") == (300, 200)
    assert image_size(tmp_path / "late.png", "ignored") == (200, 300)
    assert image_size(tmp_path / "none.png", "applied") == (200, 300)
