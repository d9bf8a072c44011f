"""Annotations against pixels: what masks, VOC's boxes and COCO's JSON say of images that differ."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.batch import EvalBatch, View
from rescue_cli.build import transfer
from rescue_cli.build.check import check_recipe
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.report.table import measurement_table
from rescue_cli.sections.annotations import IGNORED
from rescue_cli.sections.data import compute_fingerprint, describe_difference, load, relabel
from rescue_cli.sections.data.decode import DEFAULT_READING
from rescue_cli.sections.data.formats.coco_shapes import Shape, ShapeMasks, draw_mask
from rescue_cli.sections.data.samples import read_sample
from rescue_cli.sections.task.segmentation import Segmentation
from rescue_cli.sections.tta import PLAIN
from tests.conftest import Rescue
from tests.helpers import rectangles

Edit = Callable[[dict[str, Any]], object]


def read(name: str, root: Path, **keys: Any) -> Any:
    return load(name, DataKeys(root=str(root), **keys), root / "cache")


def evaluated(name: str, root: Path, *classes: str) -> Any:
    """As an evaluation of weights that know these classes reads it."""
    return load(name, DataKeys(root=str(root)), root / "cache", test_only=True, classes=classes)


def other_form(folder: Path, name: str) -> None:
    """Renames a file, with an accent apart from its letter as macOS has it."""
    (folder / name).rename(folder / unicodedata.normalize("NFD", f"café{Path(name).suffix}"))


# --- masks ---


def binary(root: Path, names: str = "ground\nvessel\n", high: int = 255) -> Path:
    """Masks of 0 and 255, as painting programs and most data sets of two classes have them."""
    rectangles.masks(root, 3, 2)
    (root / "classes.txt").write_text(names)
    for file in root.glob("*/masks/*.png"):
        mask = np.array(Image.open(file))
        Image.fromarray(np.where((mask == 1) | (mask == 2), high, 0).astype(np.uint8)).save(file)
    return root


def test_masks_of_0_and_255_are_refused_with_the_key_that_reads_them(tmp_path: Path) -> None:
    root = binary(tmp_path / "masks")
    with pytest.raises(DataError) as refused:
        read("mask-folder", root)
    assert "holds 255, which is ignored, and no mask of train holds the class 'vessel'" in str(
        refused.value
    )
    assert "data.mask_values={ground: 0, vessel: 255}" in str(refused.value)
    data = read("mask-folder", root, mask_values={"ground": 0, "vessel": 255})
    assert data.classes == ("ground", "vessel")
    assert np.unique(data.train.target(0)).tolist() == [0, 1]
    assert data.notes == ()
    output = read("mask-folder", root, mask_values={"ignored": 255})
    assert np.unique(output.train.target(0)).tolist() == [0, IGNORED]
    assert output.notes == (
        "train has no pixel of 1 of 2 classes: vessel",
        "test has no pixel of 1 of 2 classes: vessel",
    )


def test_a_test_set_of_0_and_255_beside_a_training_set_of_0_and_1_is_refused(
    tmp_path: Path,
) -> None:
    root = binary(tmp_path / "masks", high=1)
    assert read("mask-folder", root).notes == ()
    for file in (root / "test" / "masks").iterdir():
        Image.fromarray(np.array(Image.open(file)) * np.uint8(255)).save(file)
    with pytest.raises(DataError, match="no mask of test holds the class 'vessel'"):
        read("mask-folder", root)


def test_a_class_without_a_pixel_is_told_where_nothing_is_ignored(tmp_path: Path) -> None:
    root = binary(tmp_path / "masks", "ground\nvessel\nlesion\n", high=1)
    assert read("mask-folder", root).notes == (
        "train has no pixel of 1 of 3 classes: lesion",
        "test has no pixel of 1 of 3 classes: lesion",
    )


def test_a_rare_class_that_the_test_set_lacks_beside_a_border_is_told(tmp_path: Path) -> None:
    root = rectangles.masks(tmp_path / "masks", 4, 2)
    for file in (root / "test" / "masks").iterdir():
        mask = np.array(Image.open(file))
        Image.fromarray(np.where(mask == 2, 0, mask).astype(np.uint8)).save(file)
    assert read("mask-folder", root).notes == ("test has no pixel of 1 of 3 classes: green",)


def test_masks_are_evaluated_without_training_images_and_held_out_without_others(
    tmp_path: Path,
) -> None:
    root = rectangles.masks(tmp_path / "masks", 4, 2)
    whole = read("mask-folder", root)
    (root / "train").rename(tmp_path / "away")
    data = evaluated("mask-folder", root, *whole.classes)
    assert np.array_equal(data.tests["test"].target(1), whole.tests["test"].target(1))
    with pytest.raises(DataError, match="train/images: no such folder"):
        read("mask-folder", root)
    (tmp_path / "away").rename(root / "train")
    (root / "test").rename(tmp_path / "test")
    held = read("mask-folder", root, holdout=1)
    assert (list(held.tests), len(held.train)) == (["holdout"], 3)


@pytest.mark.parametrize("mode", ["1", "I;16"])
def test_masks_of_one_bit_and_of_sixteen_are_read(tmp_path: Path, mode: str) -> None:
    root = binary(tmp_path / "masks", high=1)
    file = root / "train" / "masks" / "0.png"
    plain = read("mask-folder", root).train.target(0)
    mask = np.array(Image.open(file))
    (Image.fromarray(mask > 0) if mode == "1" else Image.fromarray(mask.astype(np.uint16))).save(
        file
    )
    with Image.open(file) as image:
        assert image.mode == mode
    assert np.array_equal(read("mask-folder", root).train.target(0), plain)


def test_values_that_mean_nothing_are_named(tmp_path: Path) -> None:
    root = binary(tmp_path / "masks")
    data = read("mask-folder", root, mask_values={"ground": 0, "vessel": [254]})
    data.train.target(0)  # 255 stays ignored
    Image.fromarray(np.full((48, 64), 600, np.uint16)).save(root / "train" / "masks" / "0.png")
    with pytest.raises(
        ValueError, match=r"0.png: a label 600, where data.mask_values names 0, 254"
    ):
        data.train.target(0)
    with pytest.raises(
        UsageError, match=r"data.mask_values.vessel: 0 is already used. Use it once"
    ):
        read("mask-folder", root, mask_values={"ground": 0, "vessel": 0})
    recipe = recipes.load("segmentation-ade20k", ["data.mask_values={sky: 1}", "data.root=/none"])
    with pytest.raises(UsageError, match=r"data.mask_values: is for data.name=mask-folder"):
        check_recipe(recipe)


def test_a_mask_of_another_size_is_refused_before_training(tmp_path: Path) -> None:
    root = rectangles.masks(tmp_path / "masks", 2, 1)
    mask = root / "test" / "masks" / "2.png"
    Image.open(mask).resize((32, 24), Image.Resampling.NEAREST).save(mask)
    with pytest.raises(DataError) as refused:
        read("mask-folder", root)
    assert str(refused.value).startswith(
        f"{mask}: annotates an image of 32 x 24 pixels, but {root / 'test' / 'images' / '2.png'} "
        "is 64 x 48 with data.exif=ignored."
    )


def test_the_share_of_ignored_pixels_and_the_loss_stand_beside_every_miou() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(1, 3, 4, 10))).float()
    mask = rng.integers(0, 3, (4, 10)).astype(np.uint8)
    mask[0] = IGNORED
    task = Segmentation(len, 3)  # type: ignore[arg-type]
    view = View(4, 1.0)
    images = [torch.zeros(3, 4, 10)] * 2
    batch = EvalBatch(torch.arange(2), [mask, mask], {view: images})
    model: Any = lambda _: logits  # noqa: E731
    (rows,) = task.rows(model, batch, view, lambda images: images, [PLAIN])
    found = task.measure(rows.numpy(), 2, None)
    assert found.metrics["ignored"] == 25.0
    wanted = functional.cross_entropy(logits, torch.from_numpy(mask)[None].long(), ignore_index=255)
    assert found.loss == pytest.approx(float(wanted))
    right = (logits[0].argmax(0).numpy() == mask)[1:].mean()
    assert found.metrics["pixels"] == pytest.approx(100 * right)
    assert str(found).startswith("mIoU ")
    assert "ignored 25.00 %  loss" in str(found)
    entry = {"set": "test", "size": 4, "crop": 1.0, "protocol": {"tta": "none"}, "count": 2}
    headings, _ = measurement_table({"sets": [{**entry, **found.metrics, "loss": found.loss}]})
    assert headings[4:7] == ["mIoU %", "pixels %", "ignored %"]


def test_masks_are_found_in_the_other_normal_form(tmp_path: Path) -> None:
    root = rectangles.masks(tmp_path / "masks", 2, 1)
    before = read("mask-folder", root).train.target(0)
    (root / "train" / "images" / "0.png").rename(root / "train" / "images" / "café.png")
    other_form(root / "train" / "masks", "0.png")
    found = read("mask-folder", root).train
    assert np.array_equal(found.target(1), before)
    values = {unicodedata.normalize("NFD", "allée"): 0, "red": 1, "green": 2}
    assert read("mask-folder", root, mask_values=values).classes[0] == "allée"


# --- VOC ---


def test_halved_images_are_refused_with_both_sizes(tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc", 3, 1)
    for file in (root / "JPEGImages").iterdir():
        Image.open(file).resize((32, 24)).save(file)
    xml, image = root / "Annotations" / "0.xml", root / "JPEGImages" / "0.png"
    with pytest.raises(DataError) as refused:
        read("voc-folder", root)
    assert str(refused.value).startswith(
        f"{xml}: annotates an image of 64 x 48 pixels, but {image} is 32 x 24 with "
        "data.exif=ignored."
    )
    for file in (root / "Annotations").iterdir():  # and where no size is said, by the boxes
        file.write_text(rectangles.annotation(rectangles.image(int(file.stem))[1], (0, 0)))
    with pytest.raises(DataError, match=rf"a box extends to .* but {image} is 32 x 24 pixels"):
        read("voc-folder", root)


def test_swapped_sides_are_said_to_be_swapped(tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc", 2, 1)
    text = rectangles.annotation(rectangles.image(0)[1], (48, 64))
    (root / "Annotations" / "0.xml").write_text(text)
    with pytest.raises(DataError, match=r"is 64 x 48 \(width and height are swapped\)"):
        read("voc-folder", root)


def test_boxes_of_the_upright_picture_on_one_stored_lying_name_the_key(tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc", 2, 1)
    file = root / "JPEGImages" / "0.png"
    lying = Image.open(file).rotate(90, expand=True)
    exif = Image.Exif()
    exif[274] = 6
    file.unlink()
    lying.save(file.with_suffix(".jpg"), exif=exif)
    with pytest.raises(DataError, match=r"is 48 x 64 .* set data.exif=applied"):
        read("voc-folder", root)
    assert len(read("voc-folder", root, exif="applied").train) == 2


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (("0.1", "0.2", "0.5", "0.6"), "no box extends beyond the first pixel"),
        (("1", "nan", "5", "6"), "a box edge is not a finite number: 1.0, nan, 5.0, 6.0"),
        (("1", "1", "inf", "6"), "a box edge is not a finite number"),
    ],
)
def test_boxes_that_are_no_pixels_are_refused(
    tmp_path: Path, box: tuple[str, ...], message: str
) -> None:
    root = rectangles.voc(tmp_path / "voc", 1, 1)
    edges = "".join(
        f"<{edge}>{value}</{edge}>"
        for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    (root / "Annotations" / "0.xml").write_text(
        f"<annotation><object><name>red</name><bndbox>{edges}</bndbox></object></annotation>"
    )
    with pytest.raises(DataError, match=message):
        read("voc-folder", root)


def test_an_image_that_cannot_be_read_is_left_to_whoever_decodes_it(tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc", 3, 1)
    (root / "JPEGImages" / "0.png").write_bytes(b"broken")
    assert len(read("voc-folder", root).train) == 3


def test_voc_without_a_list_of_test_images_has_those_that_are_held_out(tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc", 4, 1)
    (root / "ImageSets" / "Main" / "test.txt").unlink()
    held = read("voc-folder", root, holdout=1)
    assert (list(held.tests), len(held.train)) == (["holdout"], 3)
    with pytest.raises(DataError, match=r"val.txt: no such file"):
        read("voc-folder", root)


def test_voc_of_test_images_alone_has_the_classes_that_the_weights_know(tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc", 2, 1)  # the third has no green
    wanted = read("voc-folder", root)
    (root / "ImageSets" / "Main" / "train.txt").unlink()
    data = evaluated("voc-folder", root, "green", "red")
    assert data.classes == wanted.classes
    assert data.notes == ("test has no object of 1 of 2 classes: green",)
    assert data.tests["test"].target(0).labels.tolist() == [2]
    assert evaluated("voc-folder", root, "bird").classes == ("red",)
    with pytest.raises(DataError, match=r"train.txt: no such file"):
        read("voc-folder", root)


# --- COCO ---


def edited(root: Path, edit: Edit, split: str = "train") -> Path:
    file = root / split / "_annotations.coco.json"
    tree = json.loads(file.read_text())
    edit(tree)
    file.write_text(json.dumps(tree))
    return file


@pytest.mark.parametrize("layout", ["folders", "official"])
def test_coco_has_the_boxes_of_the_same_images_in_voc(tmp_path: Path, layout: str) -> None:
    voc = read("voc-folder", rectangles.voc(tmp_path / "voc"))
    data = read("coco-boxes", rectangles.coco(tmp_path / "coco", layout=layout))
    assert data.classes == ("red", "green"), "by number; the one without an object is left out"
    assert data.notes == ()
    (test,) = data.tests
    assert test == ("test" if layout == "folders" else "val")
    for mine, theirs in ((data.train, voc.train), (data.tests[test], voc.tests["test"])):
        assert len(mine) == len(theirs)
        for place in range(len(mine)):
            ours, wanted = mine.target(place), theirs.target(place)
            assert ours.boxes.tolist() == wanted.boxes.tolist()
            names = [[d.classes[label - 1] for label in o.labels]
                     for d, o in ((data, ours), (voc, wanted))]  # fmt: skip
            assert names[0] == names[1]
            assert mine.names.path(place).is_file()


@pytest.mark.parametrize("layout", ["folders", "official"])
def test_coco_paints_the_masks_of_the_same_images(tmp_path: Path, layout: str) -> None:
    pytest.importorskip("faster_coco_eval")
    masks = read("mask-folder", rectangles.masks(tmp_path / "masks"))
    data = read("coco-masks", rectangles.coco(tmp_path / "coco", layout=layout))
    assert data.classes == ("background", "red", "green")
    for place in range(len(data.train)):
        wanted = masks.train.target(place)
        assert np.array_equal(data.train.target(place)[1:], wanted[1:]), "but the ignored border"


def test_run_lengths_crowds_and_overlaps_are_painted() -> None:
    pytest.importorskip("faster_coco_eval")
    box = (0.0, 0.0, 0.0, 0.0)
    large = Shape(1, False, (np.array([0.0, 0, 4, 0, 4, 4, 0, 4]),), box)
    small = Shape(2, False, {"size": [4, 5], "counts": [5, 2, 13]}, box)  # down the columns
    crowd = Shape(1, True, {"size": [4, 5], "counts": [14, 6]}, box)
    merely = Shape(2, False, None, (4.0, 0.0, 5.0, 1.0))
    found = draw_mask([small, large, crowd, merely], (5, 4))
    wanted = np.array(
        [[1, 1, 1, 1, 255], [1, 2, 1, 1, 255], [1, 2, 1, 1, 255], [1, 1, 1, 1, 255]], np.uint8
    )
    assert np.array_equal(found, wanted)
    assert np.array_equal(draw_mask([large], (5, 4))[:, 4], [0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"dimensions|pixels"):
        draw_mask([Shape(1, False, {"size": [4, 5], "counts": [5, 90]}, box)], (5, 4))


def test_what_a_coco_file_has_too_much_of_is_counted_and_named(tmp_path: Path) -> None:
    root = rectangles.coco(tmp_path / "coco", 3, 1)
    Image.new("RGB", (64, 48)).save(root / "train" / "extra.png")
    (root / "train" / "._0.png").write_bytes(b"")

    def edit(tree: dict[str, Any]) -> None:
        first = tree["annotations"][0]
        odd = {"id": 50, "image_id": 101, "category_id": 3, "segmentation": [], "iscrowd": 0}
        tree["annotations"] += [
            dict(first),
            {**first, "image_id": [999]},
            {**odd, "bbox": [4, 4, 0, 9]},
            {**odd, "id": 51, "bbox": [50, 40, 40, 40]},
            {**odd, "id": 52, "bbox": [90, 40, 4, 4]},
            {**odd, "id": 53, "bbox": [1, 1, 9, 9], "iscrowd": 1},
        ]
        tree["images"].append({"id": 7, "file_name": "empty.png", "width": 64, "height": 48})

    Image.new("RGB", (64, 48)).save(root / "train" / "empty.png")
    file = edited(root, edit)
    data = read("coco-boxes", root)
    assert data.notes == (
        f"1 annotation occurs twice and counts once; first in {file}",
        f"1 annotation refers to an image that is not listed, and is left out; first in {file}",
        "1 image has no entry in _annotations.coco.json, and is left out; first in "
        f"{root / 'train' / 'extra.png'}",
        f"1 box without area is left out; first in {file}, 1.png",
        f"1 box extends beyond its image and is clipped; first in {file}, 1.png",
        f"1 box lies outside its image and is left out; first in {file}, 1.png",
    )
    assert len(data.train) == 4
    assert len(data.train.target(3).boxes) == 0, "an image without objects stays"
    assert data.train.target(1).boxes[-2:].tolist() == [[50, 40, 64, 48], [1, 1, 10, 10]]
    assert data.train.target(1).difficult[-2:].tolist() == [False, True]


def _first(**changes: Any) -> Edit:
    return lambda tree: tree["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t["images"][0].update(width=32, height=24),
         "0.png: annotates an image of 32 x 24 pixels, but .*0.png is 64 x 48"),
        (lambda t: t["images"][1].update(id=100), "images: the id 100 occurs twice"),
        (lambda t: t["images"][1].update(file_name="0.png"), "0.png is listed 2 times"),
        (lambda t: t["images"][1].update(file_name="gone.png"),
         r"gone.png: no such file \(1 of 3 images"),
        (lambda t: t["categories"][1].update(id=1), "categories: the id 1 occurs twice"),
        (lambda t: t["categories"][1].update(name="green"), "two categories are called 'green'"),
        (lambda t: t.pop("categories"), "has no list 'categories'"),
        (lambda t: t["images"].clear(), "lists no image"),
        (lambda t: t["annotations"][0].pop("id"), r"annotations\[0\] must have an id"),
        (lambda t: t["annotations"].clear(), "'green' is not a category|no image has objects"),
        (_first(category_id=4), "annotation 1: category_id 4 is not in the categories"),
        (_first(category_id=[3]), r"annotation 1: category_id \[3\] is not in the categories"),
        (_first(bbox=[1, 2, 3]), "0.png: annotation 1: not enough values"),
        (_first(bbox=[1, 2, float("nan"), 4]), "1: a box edge is not a finite number"),
        (_first(bbox=None, segmentation=[]), "annotation 1: has neither a box nor polygons"),
        (_first(bbox=None, segmentation=[[1, 2, 3, 4, 5]]), "a polygon has 5 coordinates"),
        (lambda t: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in t["annotations"]],
         "no box extends beyond the first pixel"),
    ],
)  # fmt: skip
def test_what_a_coco_file_cannot_mean_is_refused(tmp_path: Path, edit: Edit, message: str) -> None:
    root = rectangles.coco(tmp_path / "coco", 3, 1)
    edited(root, edit)
    if "no image has objects" in message:
        edited(root, edit, "test")
    with pytest.raises(DataError, match=message):
        read("coco-boxes", root)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [64, 48], "counts": [10, 20]}, "run lengths have height and width"),
        ([[1, 2, 3, 4, 5]], "a polygon has 5 coordinates"),
        ([[0, 0, 1e9, 0, 9, 9]], "a polygon reaches further out of its image, of 64 x 48 pixels"),
    ],
)
def test_shapes_of_another_size_are_refused(
    tmp_path: Path, segmentation: Any, message: str
) -> None:
    root = rectangles.coco(tmp_path / "coco", 1, 1)
    edited(root, _first(segmentation=segmentation))
    with pytest.raises(DataError, match=message):
        read("coco-masks", root)


def test_objects_without_a_shape_are_ignored_pixels_and_a_set_without_any_is_refused(
    tmp_path: Path,
) -> None:
    pytest.importorskip("faster_coco_eval")
    root = rectangles.coco(tmp_path / "coco", 2, 1)
    file = edited(root, _first(segmentation=[]))
    data = read("coco-masks", root)
    assert data.notes[:1] == (
        f"1 object has a box but no shape: the pixels of the box are ignored; first in {file}, "
        "0.png: annotation 1",
    )
    _, box = rectangles.image(0)[1][0]
    assert (data.train.target(0)[box.top : box.bottom, box.left : box.right] == IGNORED).all()
    edited(root, lambda t: [a.update(segmentation=[]) for a in t["annotations"]])
    with pytest.raises(
        DataError, match=r"no annotation has a segmentation. .*data.name=coco-boxes"
    ):
        read("coco-masks", root)


def test_shapes_go_by_the_names_of_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    data = read("coco-masks", rectangles.coco(tmp_path / "coco", 1, 1))
    found = relabel(data, ("background", "green", "red"))
    swapped = np.array([0, 2, 1], np.uint8)
    for mine, theirs in ((found.train, data.train), (found.tests["test"], data.tests["test"])):
        assert isinstance(mine, ShapeMasks)
        assert np.array_equal(mine.target(0), swapped[theirs.target(0)])
    with pytest.raises(DataError, match="the weights have the background as class 2"):
        relabel(data, ("red", "green", "background"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t["annotations"][0]["segmentation"][0].__setitem__(0, 1.5),
        lambda t: t["annotations"][0].update(category_id=10),
        lambda t: t["annotations"][0].update(iscrowd=1),
        lambda t: t["annotations"][0].update(segmentation={"size": [48, 64], "counts": [9, 9]}),
        lambda t: t["annotations"].pop(0),
    ],
)
def test_a_fingerprint_tells_shapes_that_were_changed(tmp_path: Path, edit: Edit) -> None:
    pytest.importorskip("faster_coco_eval")
    root = rectangles.coco(tmp_path / "coco", 2, 1)

    def known() -> Any:
        return compute_fingerprint(read("coco-masks", root), ["test"])

    before = known()
    assert describe_difference(before, known()) is None
    edited(root, edit)
    message = describe_difference(before, known())
    assert message == "train: 1 image has other shapes; the first is train/0.png"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["coco-boxes", "coco-masks"])
def test_an_evaluation_without_an_object_of_a_class_has_the_classes_of_the_weights(
    tmp_path: Path, name: str, training: bool
) -> None:
    pytest.importorskip("faster_coco_eval")
    root = rectangles.coco(tmp_path / "coco", 2, 1)  # the third has no green
    classes = ("red", "green") if name == "coco-boxes" else ("background", "red", "green")
    wanted = read(name, root)
    if not training:
        shutil.rmtree(root / "train")
    data = evaluated(name, root, *classes)
    assert data.classes == wanted.classes == classes
    assert data.notes == ("test has no object of 1 of 2 classes: green",)
    marks = [compute_fingerprint(d, ["test"]).splits["test"].digest for d in (data, wanted)]
    assert marks[0] == marks[1]
    assert evaluated(name, root, "bird").classes[-1] == ("green" if training else "red")


def test_names_in_the_other_normal_form_are_the_same(tmp_path: Path) -> None:
    root = rectangles.coco(tmp_path / "coco", 2, 1)
    other_form(root / "train", "0.png")

    def rename(tree: dict[str, Any]) -> None:
        tree["images"][0]["file_name"] = "café.png"
        tree["categories"][1]["name"] = unicodedata.normalize("NFD", "rosé ")

    edited(root, lambda t: t["categories"][1].update(name="rosé"), "test")
    with pytest.raises(DataError, match=r"0.png is in none of"):
        read("coco-boxes", root)
    edited(root, rename)
    data = read("coco-boxes", root)
    assert data.classes == ("rosé", "green")
    assert data.train.names.path(0).is_file()
    assert data.notes == ()


@pytest.mark.parametrize("counts", [["a"], [{}], [1.5], [-3]])
def test_runs_that_are_no_numbers_are_refused_with_the_file(tmp_path: Path, counts: Any) -> None:
    pytest.importorskip("faster_coco_eval")
    root = rectangles.coco(tmp_path / "coco", 1, 1)
    edited(root, _first(segmentation={"size": [48, 64], "counts": counts}))
    split = read("coco-masks", root).train
    with pytest.raises(DataError, match=r"Repair the mask of .*train/0.png"):
        read_sample(split, 0, "pil", DEFAULT_READING)


def test_which_files_of_a_folder_are_cocos(tmp_path: Path) -> None:
    root = rectangles.coco(tmp_path / "coco", 4, 1, "official")
    file = root / "annotations" / "instances_train2017.json"
    (root / "annotations" / "captions_train2017.json").write_text("{}")
    (root / "annotations" / "._instances_train2017.json").write_text("")
    assert len(read("coco-boxes", root).train) == 4
    second = file.with_name("instances_train2014.json")
    second.write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"train2014.json and .*train2017.json both"):
        read("coco-boxes", root)
    second.unlink()
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"none to test on. .* data.test_holdout=N"):
        read("coco-boxes", root)
    held = read("coco-boxes", root, holdout=1)
    assert (len(held.train), len(held.tests["holdout"])) == (3, 1)
    file.unlink()
    with pytest.raises(DataError, match="has no training annotations"):
        read("coco-boxes", root)


def test_a_folder_with_cocos_json_is_known_in_a_transfer(tmp_path: Path) -> None:
    root = rectangles.coco(tmp_path / "coco", 1, 1)
    for task, name in (("detection-voc", "coco-boxes"), ("segmentation-ade20k", "coco-masks")):
        begun = transfer.plan_transfer(recipes.load(task), "timm:test_resnet", str(root), [])
        assert f'data.name="{name}"' in begun.overrides
    voc = rectangles.voc(tmp_path / "voc", 1, 1)
    begun = transfer.plan_transfer(recipes.load("detection-voc"), "timm:test_resnet", str(voc), [])
    assert 'data.name="voc-folder"' in begun.overrides


def test_a_run_on_cocos_json_prints_the_share_that_is_ignored(
    rescue: Rescue, tmp_path: Path
) -> None:
    pytest.importorskip("faster_coco_eval")
    root = rectangles.coco(tmp_path / "coco", 4, 1)
    edited(root, _first(iscrowd=1), "test")
    ended = rescue(
        "train", "--recipe", "segmentation-ade20k", "model.backbone=test_resnet",
        "eval.sizes=[48]", "train.batch_size=4",
        "train.device_batch_size=4", "train.epochs=1", "eval.every=1", "train.precision=float32",
        "data.name=coco-masks", f"data.root={root}", "--workers", "0", "--json", "--out", "run",
        "augment=[{name: scale-crop, short_side: 48, scale: [0.5, 2.0], size: 48}]",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    _, box = rectangles.image(4)[1][0]
    share = 100 * (box.right - box.left) * (box.bottom - box.top) / (64 * 48)
    assert found["ignored"] == pytest.approx(share)
    assert f"ignored {share:.2f} %" in ended.err
