"""What a user leans on when images, folders or loader workers fail; and `rescue predict`."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rescue_cli.batch import View
from rescue_cli.build.feeds import build_normalise, load_dataset
from rescue_cli.build.networks import build_network
from rescue_cli.errors import DataError, RescueError
from rescue_cli.inference import predict_images
from rescue_cli.recipe import DataKeys, recipe_in
from rescue_cli.rng import random_words
from rescue_cli.sections.data import Files, Images, load, stream_eval
from rescue_cli.sections.data.corrupt import REDRAWS
from rescue_cli.sections.data.formats.class_folders import class_folders, read_class_folders
from rescue_cli.sections.data.memory import MemoryFeed
from rescue_cli.sections.data.stream import Cropping, FileFeed, TrainSamples
from rescue_cli.sections.data.stream_eval import EvalSamples, FileEvalFeed
from rescue_cli.sections.model import weights
from rescue_cli.sections.sampling import SamplingContext, shuffled
from rescue_cli.sections.tta import TTAS
from tests.conftest import Rescue
from tests.helpers.processes import start

CPU = torch.device("cpu")
STEPS = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images in two classes; every image has one colour of its own, which is its name."""
    for number in range(40):
        path = tmp_path / "images" / ("even", "odd")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (number, 100, number)).save(path)
    return tmp_path / "images"


def split_of(root: Path) -> Files:
    return read_class_folders(
        root, {n: i for i, n in enumerate(class_folders(root))}, complete=True
    )


def feed(root: Path, log: list[str], *, workers: int = 0, max_corrupt: int = 100) -> FileFeed:
    """Two micro-batches of four images a step, five steps an epoch: every image once."""
    files = split_of(root)
    return FileFeed(
        TrainSamples(files, Cropping(None, 8, "bilinear"), 4, 0, "fast"),
        shuffled(SamplingContext(len(files), 8, 4, STEPS, seed=0)),
        range(2),
        steps=STEPS * 2,
        max_corrupt=max_corrupt,
        workers=workers,
        device=CPU,
        log=log.append,
    )


def shown(of: FileFeed, steps: int = STEPS) -> list[tuple[int, int]]:
    """(the image's own number, its label) of every place in order."""
    found = []
    with contextlib.closing(of):
        of.start(0)
        for step in range(steps):
            for batch in of.micro_batches(step):
                numbers = batch.images[:, 0, 0, 0].tolist()
                found += list(zip(numbers, batch.targets.tolist(), strict=True))
    return found


def spoil(root: Path) -> list[Path]:
    """One image cut off, one empty."""
    broken = [root / "even" / "06.png", root / "odd" / "13.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:50])
    broken[1].write_bytes(b"")
    return broken


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_and_empty_images_are_replaced_counted_and_named_once(
    folder: Path, workers: int
) -> None:
    intact = shown(feed(folder, []))
    assert sorted(number for number, _ in intact) == list(range(40))
    broken = spoil(folder)
    log: list[str] = []
    of = feed(folder, log, workers=workers)
    found = shown(of, 2 * STEPS)  # two epochs: each broken image is met twice
    assert all(label == number % 2 for number, label in found), "the label of what is shown"
    assert of.replaced == 4
    assert sorted(of.corrupt) == [str(p) for p in broken]
    assert len(log) == 2
    for path in broken:
        (line,) = [line for line in log if str(path) in line]
        assert line.startswith(f"corrupt image replaced: {path}: ")
        assert len(line) > len(f"corrupt image replaced: {path}: ")
    differing = [i for i, (a, b) in enumerate(zip(intact, found, strict=False)) if a != b]
    assert [intact[i][0] for i in sorted(differing)] == [
        number for number, _ in intact if number in (6, 13)
    ], "no other place is touched"


def test_the_redraw_is_a_function_of_seed_and_image(folder: Path) -> None:
    intact = shown(feed(folder, []))
    spoil(folder)
    found = shown(feed(folder, []))
    assert found == shown(feed(folder, [], workers=2))
    index = 3  # even/06.png in the order of the files
    (word,) = random_words(0, "redraw", index, 0, 1)
    expected = int(word % np.uint64(40))
    files = split_of(folder)
    assert files.names.name(index) == "even/06.png"
    place = [number for number, _ in intact].index(6)
    assert found[place][0] == int(Path(files.names.name(expected)).stem)


def test_an_image_that_stands_in_brings_its_own_label(folder: Path) -> None:
    for path in folder.glob("even/*.png"):
        path.write_bytes(b"")
    of = feed(folder, [])
    found = shown(of)
    assert {number % 2 for number, _ in found} == {1}
    assert {label for _, label in found} == {1}
    assert (of.replaced, len(of.corrupt)) == (20, 20)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_corrupt_images_than_allowed_end_the_run_with_their_list(
    folder: Path, workers: int
) -> None:
    broken = spoil(folder)
    shown(feed(folder, [], max_corrupt=2))  # as many as allowed
    with pytest.raises(DataError) as error:
        shown(feed(folder, [], workers=workers, max_corrupt=1))
    assert error.value.exit_code == 3
    first, *listed = str(error.value).splitlines()
    assert first == (
        "data.max_corrupt: 2 images are corrupt, more than 1. "
        "Repair or remove them, or raise the number:"
    )
    assert sorted(line.strip() for line in listed) == [str(p) for p in broken]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_where_everything_is_corrupt_ends_in_one_clear_sentence(
    folder: Path, workers: int
) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        shown(feed(folder, [], workers=workers))
    assert error.value.exit_code == 3
    assert "Traceback" not in str(error.value)
    assert f"corrupt, as are the {REDRAWS - 1} images drawn in its place" in str(error.value)
    assert str(error.value).startswith(str(folder))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["even/06.png", "odd/13.png"])
def test_a_corrupt_test_image_is_an_error_that_names_it(
    folder: Path, workers: int, name: str
) -> None:
    spoil(folder)
    other = {"even/06.png": "odd/13.png", "odd/13.png": "even/06.png"}[name]
    (folder / other).unlink()
    samples = EvalSamples(split_of(folder), [View(8, 1.0)], "bilinear", "pil")
    with pytest.raises(DataError) as error:
        list(FileEvalFeed(samples, 10, workers, CPU).batches(0, 1))
    assert error.value.exit_code == 3
    assert str(error.value).startswith(f"{folder / name}: cannot be decoded: ")
    assert "repair or remove the file" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_corrupt_test_images_are_named_at_once(folder: Path, workers: int) -> None:
    spoil(folder)
    (folder / "even" / "12.png").write_bytes(b"")
    samples = EvalSamples(split_of(folder), [View(8, 1.0)], "bilinear", "pil")
    with pytest.raises(DataError) as error:
        list(FileEvalFeed(samples, 4, workers, CPU).batches(0, 1))
    first, *listed = str(error.value).splitlines()
    assert first.startswith(f"{len(listed)} images cannot be decoded. Images of a test or held-out")
    named = sorted(line.strip().partition(": ")[0] for line in listed)
    assert named == [str(folder / name) for name in ("even/06.png", "even/12.png", "odd/13.png")]


def test_where_the_search_for_corrupt_images_is_cut_short_there_may_be_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(folder)
    monkeypatch.setattr(stream_eval, "SEARCH_SECONDS", 0)
    samples = EvalSamples(split_of(folder), [View(8, 1.0)], "bilinear", "pil")
    with pytest.raises(DataError, match=r"^at least 1 image cannot be decoded\. "):
        list(FileEvalFeed(samples, 4, 0, CPU).batches(0, 1))


def test_a_killed_loader_worker_ends_the_run_with_the_cure(folder: Path) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    of = feed(folder, [], workers=2)
    of.start(0)
    list(of.micro_batches(0))
    children = [c for c in multiprocessing.active_children() if c.pid not in before]
    assert len(children) == 2
    for child in children:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    started = time.monotonic()
    with contextlib.closing(of), pytest.raises(RescueError) as error:
        _ = [list(of.micro_batches(step)) for step in range(1, 2 * STEPS)]
    assert time.monotonic() - started < 30
    assert error.value.exit_code == 1
    assert "a loader worker was killed" in str(error.value)
    assert "use fewer workers (--workers), then --resume" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_ends_the_run_and_is_not_called_corrupt(
    folder: Path, workers: int
) -> None:
    log: list[str] = []
    training = feed(folder, log, workers=workers)
    test = EvalSamples(split_of(folder), [View(8, 1.0)], "bilinear", "pil")
    (folder / "even/06.png").unlink()
    gone = f"{folder}/even/06.png: is gone since the folder was listed. Put it back."
    with pytest.raises(DataError) as error:
        shown(training)
    assert (str(error.value), log) == (gone, [])
    with pytest.raises(DataError) as error:
        list(FileEvalFeed(test, 10, workers, CPU).batches(0, 1))
    assert str(error.value) == gone


# --- through the command ---


def test_a_test_set_without_a_class_is_evaluated_and_the_class_named(
    rescue: Rescue, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "val")
    shutil.rmtree(tmp_path / "val" / "odd")
    for number in range(0, 40, 4):
        (folder / "odd" / f"{number + 1:02}.png").unlink()
    found = rescue(
        *("train", "--recipe", "quickstart", "--epochs", "1", "--out", str(tmp_path / "run")),
        *("data={name: folder, train_size: 16, resident: true}", "eval.sizes=[16]", "--json"),
        *(f"data.train_root={folder}", f"data.test_root={tmp_path}/val", "model.width=4"),
        *("train.batch_size=8", "train.device_batch_size=4", "loss.class_weights=balanced"),
    )
    assert found.code == 0, found.err
    note = (
        "val: no image of 1 of 2 classes (odd): recall unknown; balanced accuracy averages the "
        "other 1."
    )
    assert note in found.err
    assert "class weights: 0.75 (even) to 1.5 (odd)" in found.err
    result = json.loads(found.out)
    shared, lacking = result["notes"]
    assert shared.startswith("warning: val: 20 of 20 test images are training images too")
    assert lacking == note
    even, odd = result["sets"][0]["per_class"]
    assert (even["class"], even["images"]) == ("even", 20)
    assert odd == {"class": "odd", "images": 0, "recall": None}
    assert result["balanced_accuracy"] == even["recall"] == pytest.approx(result["top1"])
    assert (tmp_path / "run/predictions/val-classes.csv").read_text().endswith('\n"odd",,0\n')
    # By the names that the weights carry: the training folder is not there, nor is a class
    again = rescue(
        *("eval", str(tmp_path / "run"), "--json", "~data.train_root"),
        f"data.test_root={tmp_path}/val",
    )
    assert again.code == 0, again.err
    assert note in again.err
    assert json.loads(again.out)["top1"] == result["top1"]


# --- rescue predict ---


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run of quickstart."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = ["train", "--recipe", "quickstart", "--smoke", "--out", folder / "run"]
    start(words, folder / "told").ends(0)
    return folder / "run"


def stored(run: Path) -> tuple[dict[str, Any], Images]:
    """The predictions of the run's last evaluation, and the images they are of."""
    with np.load(run / "predictions" / "test.npz") as arrays:
        predictions = dict(arrays)
    test = load_dataset(recipe_in(run), run / "cache").tests["test"]
    assert isinstance(test, Images)
    return predictions, test


def test_predict_says_of_an_image_what_evaluation_said(quickstart: Path, tmp_path: Path) -> None:
    predictions, test = stored(quickstart)
    files = []
    for index in range(8):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(test.pixels[index, 0]).save(files[-1])
    found = predict_images(quickstart, files, 10, "cpu")
    assert [entry["image"] for entry in found] == [str(file) for file in files]
    for index, entry in enumerate(found):
        guesses = entry["classes"]
        assert len(guesses) == 10
        assert sum(g["probability"] for g in guesses) == pytest.approx(1, abs=1e-12)
        assert guesses == sorted(guesses, key=lambda g: -g["probability"])
        assert guesses[0]["class"] == predictions["classes"][predictions["top"][index, 0]]
        expected = predictions["probabilities"][index]
        assert guesses[0]["probability"] == pytest.approx(expected, abs=1e-5)
    (fewer,) = predict_images(quickstart / "model.safetensors", files[:1], 3, "cpu")
    for one, other in zip(fewer["classes"], found[0]["classes"], strict=False):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
    assert len(fewer["classes"]) == 3
    assert sum(g["probability"] for g in fewer["classes"]) < 1


def test_predict_follows_the_runs_test_time_augmentation(quickstart: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quickstart, copy)
    from safetensors.torch import save_file

    read = weights.read_weights(copy)
    recipe = recipe_in(copy).with_overrides("eval.tta=flip")
    changed = {**read.metadata, "recipe": recipe.to_yaml()}
    save_file(read.tensors, copy / "model.safetensors", changed)
    _, test = stored(quickstart)
    lopsided = int(np.argmax([np.abs(p - p[..., ::-1].astype(int)).sum() for p in test.pixels]))
    file = tmp_path / "image.png"
    Image.fromarray(test.pixels[lopsided, 0]).save(file)
    (found,) = predict_images(copy, [file], 10, "cpu")
    (plain,) = predict_images(quickstart, [file], 10, "cpu")
    network = build_network(
        recipe.with_overrides(f"model.weights={copy / 'model.safetensors'}"), 10, CPU
    ).eval()
    pixels = build_normalise(recipe, CPU)(torch.from_numpy(test.pixels[lopsided : lopsided + 1]))
    with torch.inference_mode():
        expected = TTAS["flip"](network, pixels).double().softmax(1)[0]
    got = [g["probability"] for g in found["classes"]]
    assert got == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-7)
    assert got != pytest.approx([g["probability"] for g in plain["classes"]], abs=1e-7)


def test_predict_refuses_what_is_not_an_image(quickstart: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        broken.write_bytes(content)
        with pytest.raises(DataError) as error:
            predict_images(quickstart, [broken], 3, "cpu")
        assert error.value.exit_code == 3
        assert str(error.value).startswith(f"{broken}: cannot be decoded: ")
    with pytest.raises(DataError, match="file not found"):
        predict_images(quickstart, [tmp_path / "absent.png"], 3, "cpu")


def test_a_corrupt_training_image_of_a_resident_folder_gives_way_to_another(
    tmp_path: Path,
) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                grey = np.full((8, 8, 3), 100 * number + i, np.uint8)
                Image.fromarray(grey).save(folder / f"{i}.png")
    broken = tmp_path / "train" / "cat" / "2.png"
    broken.write_bytes(broken.read_bytes()[:50])
    keys = DataKeys(root=str(tmp_path), resident=True, train_size=8)
    images = load("folder", keys, tmp_path / "cache").train
    assert isinstance(images, Images)
    assert [path for path, _ in images.corrupt] == [str(broken)]
    assert (images.labels == (images.pixels[:, 0, 0, 0] >= 100)).all()  # the label came along
    message: list[str] = []
    steps = SamplingContext(samples=8, batch_size=4, micro_batch_size=4, per_epoch=2, seed=0)
    for most in (1, 0):
        feed = MemoryFeed(
            images, shuffled(steps), [0], max_corrupt=most, device=CPU, log=message.append
        )
        if most:
            feed.start(0)
            feed.start(0)
            assert (feed.replaced, feed.corrupt, len(message)) == (1, [str(broken)], 1)
        else:
            with pytest.raises(DataError, match=r"max_corrupt: 1 images are corrupt, more than 0"):
                feed.start(0)
    broken.rename(tmp_path / "test" / "cat" / "9.png")
    with pytest.raises(DataError, match="Images of a test or held-out set are never replaced"):
        load("folder", keys, tmp_path / "cache")


def test_an_evaluation_does_without_the_training_folder(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "val" / name / "0.png")
    keys = DataKeys(root=str(tmp_path))
    data = load("folder", keys, tmp_path / "cache", test_only=True)
    assert (data.classes, len(data.tests["val"]), len(data.train)) == (("cat", "dog"), 2, 0)
    with pytest.raises(DataError, match="train: no such folder"):
        load("folder", keys, tmp_path / "cache")
