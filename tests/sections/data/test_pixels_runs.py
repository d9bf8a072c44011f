"""`data.exif`, `data.background` and `data.range` in recipes, runs and predictions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from rescue_cli import recipe as recipes
from rescue_cli.batch import Measurement, View
from rescue_cli.build.check import check_recipe
from rescue_cli.build.evaluation import describe_protocol
from rescue_cli.build.transfer import plan_transfer
from rescue_cli.build.weights import Source, find_weights
from rescue_cli.errors import DataError, UsageError
from rescue_cli.inference import _reading, predict_images
from rescue_cli.recipe import DataKeys
from rescue_cli.recipe import changes as plans
from rescue_cli.recipe.sections import Exif
from rescue_cli.runs.directory import reserve
from rescue_cli.sections.data import FACTS, load
from rescue_cli.sections.data.decoding_notes import describe_files
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.splits import Files, Images
from rescue_cli.sections.data.stream import Cropping, TrainSamples
from rescue_cli.sections.data.stream_eval import EvalSamples, FileEvalFeed
from tests.conftest import Rescue
from tests.sections.data.test_pixels import colours, file_of, floats, turned_file

OF_FILES = [n for n in recipes.names() if FACTS[recipes.load(n).data.name].size is None]


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """Two classes of pictures that lie on their side, as phones store them."""
    for split in ("train", "val"):
        for name, picture in (("a", colours(60, 80)), ("b", 255 - colours(60, 80))):
            folder = tmp_path / "phone" / split / name
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes(turned_file("PNG", 6, Image.fromarray(picture)))
            Image.fromarray(picture).rotate(-90, expand=True).save(folder / "upright.png")
    return tmp_path / "phone"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of timm's with weights that anyone can make again."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    network = timm.create_model("test_resnet", num_classes=1000)
    save_file(network.state_dict(), file, metadata={"architecture": "test_resnet"})
    return file


# --- the keys ---


def test_every_recipe_that_reads_files_says_that_it_ignores_orientation() -> None:
    assert len(OF_FILES) > 30
    for name in OF_FILES:
        assert recipes.load(name).data.options["exif"] == "ignored", name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.exif=yes", "data (imagenette).exif: 'yes' is not one of applied, ignored."),
        ("data.exif=true", "data (imagenette).exif: true is not one of applied, ignored."),
        ("data.background=pink", "is not one of white, black, grey, ignored."),
        ("data.range=[4095, 0]", "data.range: [4095.0, 0.0] must be in increasing"),
        (
            "data.range=4095",
            "data (imagenette).range: 4095 is not a list of 2 items (a number each)",
        ),
    ],
)
def test_another_value_is_refused(change: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_recipe(recipes.load("imagenette-5", [change]))
    assert message in str(raised.value)


def test_a_recipe_without_the_key_is_one_that_ignores_orientation(tmp_path: Path) -> None:
    new = recipes.load("imagenette-5")
    old = new.with_overrides("~data.exif")
    assert plans.differences(old.tree, new.tree) == {}
    applied = new.with_overrides("data.exif=applied")
    assert plans.differences(old.tree, applied.tree) == {"data.exif": ("ignored", "applied")}
    assert reserve(tmp_path / "run", old, resume=False)
    assert not reserve(tmp_path / "run", new, resume=True), "an old run goes on by the new recipe"
    with pytest.raises(UsageError, match=r"data\.exif: ignored -> applied"):
        reserve(tmp_path / "run", applied, resume=True)


def test_the_protocol_tells_what_is_not_as_papers_have_it() -> None:
    def output(*changes: str) -> dict[str, Any]:
        at = Measurement(224, 0.875, "none")
        found = describe_protocol(recipes.load("imagenette-5", changes), "val", at, False)
        return {key: found[key] for key in ("exif", "background", "range") if key in found}

    assert output() == output("~data.exif") == {}
    assert output("data.exif=applied") == {"exif": "applied"}
    assert output("data.background=black", "data.range=[0, 4095]") == {
        "background": "black",
        "range": (0.0, 4095.0),
    }


# --- transfer, weights without a recipe, prediction ---


def test_a_transfer_to_a_folder_turns_its_images_and_to_a_known_set_does_not(
    weights: Path, phone: Path
) -> None:
    base = recipes.load("transfer")
    assert 'data.exif="applied"' in plan_transfer(base, str(weights), str(phone), []).overrides
    for to, given in (("flowers102", []), (str(phone), ["data.exif=ignored"])):
        assert not any("exif" in o for o in plan_transfer(base, str(weights), to, given).overrides)
    boxes = plan_transfer(recipes.load("detection-voc"), str(weights), str(phone), [])
    assert 'data.exif="applied"' in boxes.overrides


def test_weights_without_a_recipe_see_a_folder_upright_and_imagenet_as_papers_do(
    weights: Path,
) -> None:
    size = ("eval.sizes=[64]", "eval.crops=[1.0]")
    on_folder = find_weights(str(weights), [*size, "data.name=folder"]).recipe
    assert on_folder.data.options["exif"] == "applied"
    given = [*size, "data.name=folder", "data.exif=ignored"]
    assert find_weights(str(weights), given).recipe.data.options["exif"] == "ignored"
    assert "exif" not in find_weights(str(weights), list(size)).recipe.data.options


def test_a_prediction_is_read_as_the_run_was_and_upright_where_none_says() -> None:
    def exif(name: str, *changes: str, known: bool = True) -> Exif:
        trained = recipes.load(name)
        recipe = trained.with_overrides(*changes)
        source = Source("", "", recipe, {}, trained=trained if known else None)
        return _reading(source, changes).exif

    assert exif("imagenette-5") == "ignored"
    assert exif("imagenette-5", "data.exif=applied") == "applied"
    assert exif("imagenette-5", "~data.exif") == "ignored", "a run made before there was the key"
    assert exif("quickstart") == "applied", "its images are no files"
    assert exif("quickstart", "data.exif=ignored") == "ignored"
    assert exif("pytorch", known=False) == "applied", "weights of others"
    assert exif("pytorch", "data.exif=ignored", known=False) == "ignored"


def test_a_phones_picture_is_predicted_upright_and_the_command_says_so(
    rescue: Rescue, weights: Path, phone: Path
) -> None:
    images = phone / "val" / "a" / "0.png", phone / "val" / "a" / "upright.png"
    ended = rescue("predict", weights, *images, "--json")
    assert ended.code == 0, ended.err
    turned, upright = json.loads(ended.out)
    assert turned["classes"] == upright["classes"]
    assert turned["protocol"]["exif"] == "applied"
    assert "images: EXIF orientation applied (data.exif)" in ended.err
    assert "1 of 2 images are stored rotated or mirrored, and turned upright" in ended.err
    lying = rescue("predict", weights, *images, "data.exif=ignored", "--json")
    first, second = json.loads(lying.out)
    assert second["classes"] == upright["classes"]
    assert first["classes"] != upright["classes"]
    assert first["protocol"]["exif"] == "ignored"
    refused = rescue("predict", weights, images[0], "optim.lr=1.0")
    assert refused.code == 2
    assert "optim.lr: has no effect on an evaluation" in refused.err


def test_floats_are_predicted_by_the_range_that_is_given(weights: Path, tmp_path: Path) -> None:
    for name, values in (("floats.tif", floats()), ("bytes.tif", np.uint8(floats() * 255))):
        (tmp_path / name).write_bytes(file_of(Image.fromarray(values), "TIFF"))
    files = [tmp_path / "floats.tif", tmp_path / "bytes.tif"]
    with pytest.raises(DataError, match=r"floats\.tif: its pixels are 32-bit floats, from 0 to 0"):
        predict_images(weights, files, 3, "cpu")
    deep, plain = predict_images(weights, files, 1, "cpu", changes=["data.range=[0,1]"])
    assert deep["classes"][0]["class"] == plain["classes"][0]["class"]
    assert deep["protocol"]["range"] == (0.0, 1.0)


# --- feeds ---


def first(split: Any) -> Any:
    assert isinstance(split, Files)
    return split


def test_every_way_to_an_image_turns_it(phone: Path, tmp_path: Path) -> None:
    keys = DataKeys(root=str(phone), exif="applied")
    files = load("folder", keys, tmp_path)
    train, test = first(files.train), first(files.tests["val"])
    for decoder in ("pil", "fast"):
        cut = Cropping(None, 48, "bilinear")
        samples = TrainSamples(train, cut, 4, 0, decoder, Reading.of(keys))
        image = samples.read(0, [])[1]
        assert np.array_equal(np.array(image), np.array(samples.read(1, [])[1]))
        shown = EvalSamples(test, [View(48, 1.0)], "bilinear", decoder, reading=Reading.of(keys))
        turned, upright = shown[[0, 1]].images[0]
        assert torch.equal(turned, upright)
    resident = load("folder", replace(keys, resident=True, train_size=48), tmp_path)
    assert isinstance(resident.train, Images)
    assert np.array_equal(resident.train.pixels[0], resident.train.pixels[1])
    lying = load("folder", replace(keys, resident=True, train_size=48, exif="ignored"), tmp_path)
    assert isinstance(lying.train, Images)
    assert not np.array_equal(lying.train.pixels[0], lying.train.pixels[1]), "not from the cache"


def test_a_file_without_a_range_ends_a_run_and_is_not_replaced(phone: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        file = phone / split / "a" / "0.png"
        file.write_bytes(file_of(Image.fromarray(floats()), "TIFF"))
    keys = DataKeys(root=str(phone))
    files = load("folder", keys, tmp_path)
    cut = Cropping(None, 48, "bilinear")
    with pytest.raises(DataError, match=r"train/a/0\.png: its pixels are 32-bit floats"):
        TrainSamples(first(files.train), cut, 4, 0, "fast", Reading.of(keys)).read(0, [])
    samples = EvalSamples(first(files.tests["val"]), [View(48, 1.0)], "bilinear", "fast")
    with pytest.raises(DataError, match=r"val/a/0\.png: its pixels are 32-bit floats"):
        next(FileEvalFeed(samples, 2, 0, torch.device("cpu")).batches(0, 1))
    with pytest.raises(DataError, match=r"Give data\.range=\[BLACK,WHITE\]"):
        load("folder", replace(keys, resident=True, train_size=48), tmp_path)


def test_a_folders_notes_name_what_is_read_in_a_way_of_its_own(phone: Path, tmp_path: Path) -> None:
    clear = Image.fromarray(np.dstack([colours(), colours()[..., 0]]))
    (phone / "train" / "a" / "1.png").write_bytes(file_of(clear, "PNG"))
    deep = file_of(Image.fromarray(colours()[..., 0].astype(np.uint16) * 257), "PNG")
    (phone / "train" / "b" / "1.png").write_bytes(deep)
    *message, shared = load("folder", DataKeys(root=str(phone)), tmp_path).notes
    assert shared.startswith("warning: val: 4 of 4 test images are training images too")
    assert message == [
        "4 of 10 images are stored rotated or mirrored, and used so; data.exif=applied "
        f"turns them; the first is {phone}/train/a/0.png",
        "1 of 10 images are transparent, and shown on white (data.background); the first "
        f"is {phone}/train/a/1.png",
        "1 of 10 images have more than 8 bits: white is 65535, from 16 bits (data.range "
        f"overrides it); the first is {phone}/train/b/1.png",
    ]
    upright = load("folder", DataKeys(root=str(phone), exif="applied"), tmp_path).notes
    assert "turned upright by EXIF (data.exif=applied)" in upright[0]


def test_ordinary_files_are_worth_no_word(tmp_path: Path) -> None:
    files = {
        "a.jpg": file_of(Image.fromarray(colours()), "JPEG"),
        "b.png": turned_file("PNG", 1),
        "c.gif": file_of(Image.fromarray(colours()).quantize(16), "GIF"),
        "d.png": b"no image",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert describe_files([tmp_path / name for name in files], Reading()) == ()
    moving = file_of(
        Image.fromarray(colours()), "GIF", save_all=True, append_images=[Image.new("RGB", (61, 43))]
    )
    (tmp_path / "e.gif").write_bytes(moving)
    (only,) = describe_files([tmp_path / "e.gif"], Reading())
    assert only.startswith("1 of 1 images have several frames, of which the first is")


# --- masks ---


def test_a_mask_that_fits_the_stored_pixels_alone_names_the_key(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        (tmp_path / split / "images" / "a.jpg").write_bytes(turned_file("JPEG", 6))
        Image.fromarray(np.zeros((43, 61), np.uint8)).save(tmp_path / split / "masks" / "a.png")
    (tmp_path / "classes.txt").write_text("ground\nsky\n")
    pairs: Any = load("mask-folder", DataKeys(root=str(tmp_path)), tmp_path).train
    views = [View(48, 1.0)]
    assert EvalSamples(pairs, views, "bilinear", "fast")[[0]].fault is None
    turned = EvalSamples(pairs, views, "bilinear", "fast", reading=Reading(exif="applied"))
    assert turned[[0]].fault == (
        f"{tmp_path}/train/images/a.jpg: its mask is 43 x 61 pixels, the image 61 x 43 with "
        "data.exif=applied: set data.exif=ignored."
    )
