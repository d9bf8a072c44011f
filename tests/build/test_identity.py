"""A run knows its data by what they are: it goes on wherever they lie, and on no others."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rescue_cli import recipe as recipes
from rescue_cli.analysis.compare import choose_pairing
from rescue_cli.analysis.consistency import run_changes
from rescue_cli.analysis.sweep import read_sweep as read_sweep
from rescue_cli.build import identity
from rescue_cli.build.evaluation import describe_images
from rescue_cli.build.feeds import list_dataset
from rescue_cli.build.networks import match_labels, warn_of_old_head, weights_classes
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_json
from rescue_cli.runs.directory import reserve
from rescue_cli.sections.annotations import Objects
from rescue_cli.sections.data import (
    Boxed,
    Dataset,
    FileNames,
    Files,
    Images,
    compute_fingerprint,
    describe_difference,
    fingerprint_from_arrays,
    list_split,
)
from tests.conftest import Rescue
from tests.helpers.processes import assert_same, checkpoint_of, start
from tests.helpers.synthetic_runs import made_run, made_sweep

CLASSES = ("ash", "birch", "cedar")
IMAGES = {"train": 16, "val": 7}  # of each class
Change = Callable[[Path], object]


def draw(root: Path) -> Path:
    """Class folders of PNGs in three colours, each image of its own size."""
    bits = np.random.Generator(np.random.Philox(3))
    for split, count in IMAGES.items():
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = bits.integers(0, 120, (32 + i, 40 - label, 3))
                noise = noise + 60 * np.eye(3, dtype=np.int64)[label]
                file = root / split / name / f"{i:02}.png"
                Image.fromarray(noise.astype(np.uint8)).save(file)
    return root


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return recipes.load("pytorch", [f"data={{name: folder, root: {root}}}", *overrides])


def seen(root: Path, *overrides: str) -> identity.Identity:
    recipe = recipe_of(root, *overrides)
    return identity.identify(recipe, list_dataset(recipe))


# --- each change of a folder: what is said of it ---


def each_split(change: Callable[[Path], object]) -> Change:
    return lambda root: [change(root / split) for split in IMAGES]


def renamed(split: Path) -> None:
    (split / "birch").rename(split / "dogwood")


def swapped(root: Path) -> None:
    """Two images change places between their classes."""
    a, b = root / "train/ash/03.png", root / "train/birch/03.png"
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)


def grown(root: Path) -> None:
    shutil.copy(root / "train/ash/00.png", root / "train/ash/99.png")


def shrunk(root: Path) -> None:
    for file in sorted((root / "train").rglob("*.png")):
        if int(file.stem) >= 6:
            file.unlink()


def replaced(root: Path) -> None:
    image = Image.open(root / "train/ash/02.png").rotate(90, expand=True)
    image.save(root / "train/ash/02.png")


def moved_to_other_class(root: Path) -> None:
    (root / "train/ash/05.png").rename(root / "train/cedar/50.png")


def touched(root: Path) -> None:
    """Other times, as a copy has."""
    for file in root.rglob("*.png"):
        os.utime(file, (1, 1))


def same_size(root: Path) -> None:
    """Another image of as many bytes, which nothing but reading it can tell."""
    file = root / "train/ash/02.png"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def hidden(root: Path) -> None:
    (root / "train/ash/.DS_Store").write_bytes(b"x")


TABLE: dict[str, tuple[Change, str | None]] = {
    "rename a class": (
        each_split(renamed),
        "the class 'birch' is missing and the class 'dogwood' is new (3 classes, was 3)",
    ),
    "remove a class": (
        each_split(lambda split: shutil.rmtree(split / "cedar")),
        "the class 'cedar' is missing (2 classes, was 3)",
    ),
    "shrink": (shrunk, "train: 18 images, and was 48: 30 missing, the first ash/06.png"),
    "grow": (grown, "train: 49 images, and was 48: 1 new, the first ash/99.png"),
    "shrink the test set": (
        lambda root: (root / "val/cedar/06.png").unlink(),
        "val: 20 images, and was 21: 1 missing, the first cedar/06.png",
    ),
    "rename the test set": (
        lambda root: (root / "val").rename(root / "test"),
        "its test set is test, and was val",
    ),
    "an image to another class": (
        moved_to_other_class,
        "train: 48 images, and was 48: 1 missing, the first ash/05.png; 1 new, the first "
        "cedar/50.png",
    ),
    "replace an image by another": (
        replaced,
        "train: 1 image has other bytes; the first is ash/02.png",
    ),
    "swap two images": (swapped, "train: 2 images have other bytes; the first is ash/03.png"),
    "other times": (touched, None),
    "a hidden file": (hidden, None),
    "another image of the same size": (same_size, None),
}


@pytest.mark.parametrize("case", TABLE)
def test_what_is_said_of_a_changed_folder(case: str, tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    before = seen(root).data
    change, wanted = TABLE[case]

    change(root)

    message = describe_difference(before, seen(root).data)
    assert (message is None) == (wanted is None), message
    assert message is None or message.startswith(str(wanted)), message


def test_images_that_moved_between_training_and_test_are_said_to_have(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    few, many = (seen(root, f"data.holdout={count}").data for count in (9, 12))
    moved = describe_difference(few, many)
    assert moved is not None
    assert moved.endswith(f"3 in holdout now, the first {moved.rpartition(' ')[2]}")
    back = describe_difference(many, few)
    assert back is not None
    assert "3 from holdout, the first " in back
    assert not {"missing", "new"} & {*moved.split(), *back.split()}


def test_a_replaced_image_is_named_with_both_sizes(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    before, size = seen(root).data, (root / "train/ash/02.png").stat().st_size
    (root / "train/ash/02.png").write_bytes(b"x" * 1234)
    assert str(describe_difference(before, seen(root).data)).endswith(
        f"ash/02.png (1,234, was {size:,})"
    )


def test_the_order_of_a_listing_and_the_folder_it_lies_in_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw(tmp_path / "pictures")
    before = seen(root)
    shutil.copytree(root, other := tmp_path / "elsewhere" / "other")
    ordered = os.scandir

    class Backwards(list[Any]):
        """A listing from the last name to the first, with or without `with`."""

        def __init__(self, path: Any) -> None:
            super().__init__(sorted(ordered(path), key=lambda entry: entry.name, reverse=True))

        def __enter__(self) -> "Backwards":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    after = seen(other)
    assert after.data.digest == before.data.digest
    assert before.places == {"data.root": str(root)}
    assert after.places == {"data.root": str(other)}


def test_one_folder_is_as_good_as_two(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    two = recipes.load(
        "pytorch",
        [f"data={{name: folder, train_root: {root}/train, test_root: {root}/val}}"],
    )
    other = identity.identify(two, list_dataset(two))
    assert other.data.digest == seen(root).data.digest
    assert list(other.places) == ["data.train_root", "data.test_root"]


def test_held_out_images_are_known(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    before = seen(root, "data.holdout=9").data
    assert list(before.splits) == ["train", "holdout"]
    grown(root)
    assert describe_difference(before, seen(root, "data.holdout=9").data) is not None


# --- other data than class folders ---


def draw_images(count: int = 20) -> Dataset:
    bits = np.random.Generator(np.random.Philox(5))
    images = Images(bits.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8), np.arange(count) % 3)
    return Dataset(images, {"test": images.take(np.arange(6))}, CLASSES)


def test_what_is_said_of_other_arrays() -> None:
    data = draw_images()
    before = compute_fingerprint(data, ["test"])
    assert describe_difference(before, compute_fingerprint(data, ["test"])) is None

    pixels = data.train.pixels.copy()  # type: ignore[union-attr]
    pixels[17, 0, 0, 0] ^= 1
    other = replace(data, train=Images(pixels, data.train.labels))
    message = describe_difference(before, compute_fingerprint(other, ["test"]))
    assert message == "train: 1 image has other pixels; the first is image 17"

    labels = data.train.labels.copy()
    labels[[4, 5]] = labels[[5, 4]]
    other = replace(data, train=replace(data.train, labels=labels))
    message = describe_difference(before, compute_fingerprint(other, ["test"]))
    assert message == "train: 2 labels differ; image 4 is 'cedar', and was 'birch'"

    other = replace(data, train=data.train.take(np.arange(18)))
    assert (
        describe_difference(before, compute_fingerprint(other, ["test"]))
        == "train: 18 images, and was 20"
    )
    other = replace(data, classes=("ash", "cedar", "birch"))
    assert describe_difference(before, compute_fingerprint(other, ["test"])) == (
        "its classes are in another order: 'cedar' where 'birch' was"
    )


def test_images_listed_in_another_order_are_other_data(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    data = list_dataset(recipe_of(root))
    backwards = data.train.take(np.arange(len(data.train))[::-1])
    message = describe_difference(
        compute_fingerprint(data, []), compute_fingerprint(replace(data, train=backwards), [])
    )
    assert message == "train: the same 48 images in another order, from cedar/15.png on"


def test_other_boxes_are_other_data(tmp_path: Path) -> None:
    names = FileNames.of(tmp_path, ["a.jpg", "b.jpg"])
    boxes = [Objects.of([((0, 0, 4, 4), 1, False)]), Objects.of([((1, 1, 3, 3), 2, False)])]
    whole = Boxed(names, np.zeros(2, dtype=np.int64), tuple(boxes))
    cut = Boxed(names, whole.labels, (boxes[0], Objects.of([((1, 1, 3, 2), 2, False)])))
    before, now = (compute_fingerprint(Dataset(s, {}, ("cat", "dog")), []) for s in (whole, cut))
    assert describe_difference(before, now) == "train: 1 image has other boxes; the first is b.jpg"


def test_accents_taken_apart_by_a_copy_are_the_same_names(tmp_path: Path) -> None:
    labels = np.zeros(2, dtype=np.int64)
    whole, apart = (
        list_split(Files(FileNames.of(tmp_path, names), labels))
        for names in (
            ["Ch\u00eane/a.jpg", "\u00c9rable/b.jpg"],
            ["Che\u0302ne/a.jpg", "E\u0301rable/b.jpg"],
        )
    )
    assert whole.digest == apart.digest


def test_what_is_kept_can_be_read_again(tmp_path: Path) -> None:
    for data, tests in (
        (draw_images(), ["test"]),
        (list_dataset(recipe_of(draw(tmp_path / "pictures"))), ["val"]),
    ):
        found = compute_fingerprint(data, tests)
        np.savez_compressed(tmp_path / "kept.npz", **found.arrays())  # type: ignore[arg-type]
        with np.load(tmp_path / "kept.npz") as arrays:
            again = fingerprint_from_arrays(arrays)
        assert again.digest == found.digest
        assert list(again.splits) == list(found.splits)


# --- runs ---


def begun(run: Path, recipe: Recipe, *, finished: bool = False) -> RunDirectory:
    """A run directory as it is once something is trained."""
    found = RunDirectory(run)
    found.last.parent.mkdir(parents=True)
    found.recipe.write_text(recipe.to_yaml())
    found.last.touch()
    found.metrics.touch()
    if finished:
        found.result.touch()
    identity.write_record(found, identity.identify(recipe, list_dataset(recipe)))
    return found


def test_a_run_resumes_where_its_data_have_moved(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "first"), tmp_path / "second"
    run = begun(tmp_path / "run", recipe_of(first))
    first.rename(second)

    assert not reserve(run.path, recipe_of(second), resume=True)

    assert recipes.recipe_in(run.path).data.options["root"] == str(second)
    data = list_dataset(recipe_of(second))
    message = identity.check_or_record(run, recipe_of(second), data)
    assert message == [
        f"moved: data.root: {first}, now {second}; the same images (train 48, val 21)"
    ]
    assert read_json(run.data)["places"] == [{"data.root": str(first)}, {"data.root": str(second)}]
    assert identity.check_or_record(run, recipe_of(second), data) == []  # once is enough


def test_a_run_does_not_resume_with_other_data(tmp_path: Path) -> None:
    root, other = draw(tmp_path / "pictures"), draw(tmp_path / "other")
    shrunk(other)
    run = begun(tmp_path / "run", recipe_of(root))
    with pytest.raises(DataError) as error:
        reserve(run.path, recipe_of(other), resume=True)
    assert str(error.value) == (
        f"{run.path}: was trained on other data (data.root: {other}): train: 18 images, and was "
        "48: 30 missing, the first ash/06.png. Restore it, or start a new run with "
        "another --out."
    )
    assert recipes.recipe_in(run.path).data.options["root"] == str(root), "it stays as it was"
    with pytest.raises(UsageError, match=r"of another recipe: optim\.lr: "):
        reserve(run.path, recipe_of(other, "optim.lr=0.7"), resume=True)


def test_a_run_without_names_on_record_tells_the_numbers(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    run = begun(tmp_path / "run", recipe_of(root))
    run.listing.write_bytes(b"cut off")
    shrunk(root)
    with pytest.raises(DataError, match=r"train: 18 images, and was 48\. Restore it"):
        identity.check_or_record(run, recipe_of(root), list_dataset(recipe_of(root)))


def test_a_run_of_an_older_version_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "first"), draw(tmp_path / "second")
    run = begun(tmp_path / "run", recipe_of(first))
    run.data.unlink()
    with pytest.raises(DataError, match="kept no record of its data"):
        reserve(run.path, recipe_of(second), resume=True)

    data = list_dataset(recipe_of(first))
    assert identity.check_or_record(run, recipe_of(first), data) == [
        "this run has no record of its data; whether it is the same is not checked"
    ]
    assert identity.check_or_record(run, recipe_of(first), data) == [], "from now on it is known"


def test_a_run_that_has_not_trained_takes_any_data(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "first"), draw(tmp_path / "second")
    shrunk(second)
    run = begun(tmp_path / "run", recipe_of(first))
    run.last.unlink()
    reserve(run.path, recipe_of(second), resume=True)
    assert identity.check_or_record(run, recipe_of(second), list_dataset(recipe_of(second))) == []
    assert read_json(run.data)["places"] == [{"data.root": str(second)}]


def test_data_named_by_the_environment_may_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load("pytorch", ["data={name: folder}"])
    draw(tmp_path / "a" / "folder")
    draw(tmp_path / "b" / "folder")
    monkeypatch.setenv("RESCUE_DATA", str(tmp_path / "a"))
    run = begun(tmp_path / "run", recipe)
    monkeypatch.setenv("RESCUE_DATA", str(tmp_path / "b"))
    (message,) = identity.check_or_record(run, recipe, list_dataset(recipe))
    assert message.startswith(f"moved: data.root: {tmp_path}/a/folder, now {tmp_path}/b/folder; ")


@pytest.mark.parametrize("key", ["model.weights", "teacher.weights"])
def test_weights_may_move_and_may_not_be_others(key: str, tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("moved", 0.0), ("other", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / name / "w.safetensors")

    def recipe(name: str) -> Recipe:
        teacher = "{name: network, temperature: 1.0, hard: 1.0, soft: 1.0}"
        overrides = ["data={name: fashion-mini}", f"teacher={teacher}"]
        return recipes.load("pytorch", [*overrides, f"{key}={tmp_path / name}/w.safetensors"])

    run = begun(tmp_path / "run", recipe("a"))
    reserve(run.path, recipe("moved"), resume=True)
    with pytest.raises(DataError) as error:
        reserve(run.path, recipe("other"), resume=True)
    assert f"{key}: {tmp_path}/other/w.safetensors is not the file it started from" in str(
        error.value
    )
    with pytest.raises(UsageError, match=f"of another recipe: {key}: "):
        reserve(run.path, recipe("a").with_overrides(f"{key}=timm:resnet18"), resume=True)
    part = recipe("a").with_overrides(f"{key}={tmp_path}/a/w.safetensors#model_ema")
    with pytest.raises(DataError, match="#model_ema is not the file it started from"):
        reserve(run.path, part, resume=True)


# --- sweeps, comparisons and reports ---


def known_as(run: Path, digest: str, **weights: str) -> None:
    splits = {name: {"images": 48, "digest": digest} for name in ("train", "test")}
    record = {"format": 1, "digest": digest, "classes": list(CLASSES), "splits": splits}
    RunDirectory(run).data.write_text(
        json.dumps({**record, "weights": weights, "places": [{"data.root": "/a"}]})
    )


def test_a_sweep_whose_data_and_weights_moved_is_one_sweep(tmp_path: Path) -> None:
    tops = {0: 80.0, 1: 81.0}
    for seed, top1 in tops.items():
        place = f"/scratch/{seed}"
        made_run(
            tmp_path / f"seed-{seed}", top1, seed=seed,
            overrides=[f"model.weights={place}/w.safetensors", f"data.sets={{v2: {place}/v2}}"],
        )  # fmt: skip
    with pytest.raises(DataError, match=r"data\.sets\.v2: /scratch/"):  # nobody knows
        read_sweep(tmp_path)
    for seed in tops:
        known_as(tmp_path / f"seed-{seed}", "d1", **{"model.weights": "w1"})
    assert list(read_sweep(tmp_path).results) == [0, 1]

    known_as(tmp_path / "seed-1", "d2", **{"model.weights": "w1"})
    with pytest.raises(DataError, match=r"data\.train: 48 images, fingerprint d"):
        read_sweep(tmp_path)
    known_as(tmp_path / "seed-1", "d1", **{"model.weights": "w2"})
    with pytest.raises(DataError, match=r"model\.weights: fingerprint w"):
        read_sweep(tmp_path)


def test_runs_that_differ_in_places_alone_are_paired(tmp_path: Path) -> None:
    from rescue_cli.analysis.sides import load_side

    names = ("a", "b")
    for name in names:
        made_sweep(
            tmp_path / name, {0: 80.0, 1: 81.0},
            overrides=[f"model.weights=/scratch/{name}/w.safetensors"],
        )  # fmt: skip
        for seed in (0, 1):
            known_as(tmp_path / name / f"seed-{seed}", "d1", **{"model.weights": "w1"})
    sides = [load_side(str(tmp_path / name)) for name in names]
    assert choose_pairing(*sides).why == "same recipe and seeds, trained twice"
    runs = [tmp_path / name / "seed-0" for name in names]
    assert run_changes(*runs) == {}

    known_as(runs[1], "d2", **{"model.weights": "w2"})
    assert list(run_changes(*runs)) == ["data.train", "model.weights"]


# --- evaluation ---


def weights_of(folder: Path, classes: tuple[str, ...]) -> Recipe:
    """A recipe with the weights of a run that knows these classes."""
    folder.mkdir(exist_ok=True)
    metadata = {"classes": json.dumps(classes)}
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors", metadata)
    return recipes.load(
        "pytorch",
        ["data={name: folder, root: nowhere}", f"model.weights={folder}/model.safetensors"],
    )


def test_labels_of_an_evaluation_go_by_the_names(tmp_path: Path) -> None:
    data = draw_images()
    names = [data.classes[label] for label in data.tests["test"].labels]
    recipe = weights_of(tmp_path / "run", ("cedar", "ash", "birch"))
    found, message = match_labels(recipe, data)
    assert found.classes == ("cedar", "ash", "birch")
    assert [found.classes[label] for label in found.tests["test"].labels] == names
    assert str(message).endswith(
        "differs is 'cedar' in place of 'ash'. Classes are matched by name."
    )


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (CLASSES, None),
        # birch is called dogwood now, and cedar moved up
        (("ash", "aspen", "birch"), "'birch' is at another position"),
        (("ash", "birch"), "has 2 classes and the data has 3"),
    ],
)
def test_classes_at_other_places_are_refused(
    known: tuple[str, ...], wanted: str | None, tmp_path: Path
) -> None:
    recipe = weights_of(tmp_path / "run", known)
    if wanted is None:
        assert match_labels(recipe, draw_images())[1] is None
        return
    with pytest.raises((DataError, UsageError), match=wanted):
        match_labels(recipe, draw_images())


def test_classes_of_other_names_in_their_order_are_said(tmp_path: Path) -> None:
    recipe = weights_of(tmp_path / "run", ("Esche", "Birke", "Zeder"))
    data = draw_images()
    found, message = match_labels(recipe, data)
    assert found is data
    assert str(message).startswith("warning: ")
    assert str(message).endswith("Classes are matched by position.")
    assert "model.new_head=true starts a new one" in str(warn_of_old_head(recipe, data.classes))


def test_an_evaluation_says_that_its_images_are_others(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    trained = begun(tmp_path / "run", recipe_of(root, "data.holdout=0"))
    recipe = weights_of(tmp_path / "run", CLASSES).with_overrides(f"data.root={root}")
    assert identity.compare_test_sets(recipe, list_dataset(recipe)) == []
    (root / "val/ash/02.png").unlink()
    assert identity.compare_test_sets(recipe, list_dataset(recipe)) == [
        f"{trained.path}: was tested on other images: val: 20 images, and was 21: 1 missing, the "
        "first ash/02.png"
    ]


def test_held_out_images_that_may_have_been_learnt_are_refused(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    begun(tmp_path / "run", recipe_of(root, "data.holdout=9"))
    recipe = weights_of(tmp_path / "run", CLASSES)
    recipe = recipe.with_overrides(f"data.root={root}", "data.holdout=9")
    assert identity.compare_test_sets(recipe, list_dataset(recipe)) == []
    grown(root)
    with pytest.raises(DataError, match="It may have been trained on some of these"):
        identity.compare_test_sets(recipe, list_dataset(recipe))


def test_a_test_set_that_is_drawn_anew_is_not_said_to_be_missing(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures") / "train"
    held = ("data.test_holdout=9", f"data.root={root}")
    run = begun(tmp_path / "run", recipe_of(root, "data.test_holdout=9"))
    recipe = weights_of(tmp_path / "run", CLASSES).with_overrides(*held)
    drawn = {*names_of(list_dataset(recipe).tests["holdout-test"])}
    for number in range(50, 58):
        shutil.copy(root / "ash/00.png", root / f"ash/{number}.png")
    now = list_dataset(recipe)
    gone = sorted(drawn - {*names_of(now.tests["holdout-test"])})
    assert gone, "the new images would have to displace some"
    verb = "1 image of then is" if len(gone) == 1 else f"{len(gone)} images of then are"
    with pytest.raises(DataError) as refused:
        identity.compare_test_sets(recipe, now)
    assert str(refused.value).startswith(
        f"{run.path}: holdout-test is drawn anew, from a folder that has changed since the "
        f"training (8 files added, 0 removed): {verb} no longer in it, the first {gone[0]}, and "
    )
    cure = "in one folder per class: data.test_holdout=0 data.test_root=DIR."
    assert str(refused.value).endswith(cure)
    assert "missing" not in str(refused.value)


def names_of(split: Any) -> list[str]:
    return [split.names.name(index) for index in range(len(split))]


def test_images_that_the_network_was_trained_on_are_counted_in_the_protocol(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    begun(tmp_path / "run", recipe_of(root))
    later = tmp_path / "later"
    shutil.copytree(root / "val", later)
    (later / "ash" / "05.png").write_bytes(b"another image of this name")
    for number in range(9):
        shutil.copy(root / f"train/birch/{number:02}.png", later / "birch" / f"{number:02}.png")
    recipe = weights_of(tmp_path / "run", CLASSES)
    recipe = recipe.with_overrides(f"data.root={root}", f"data.test_root={later}")
    data = list_dataset(recipe)
    (test,) = data.tests.values()
    trained = {*names_and_sizes(data.train)} & {*names_and_sizes(test)}
    assert 9 <= len(trained) < len(test)
    assert describe_images(recipe, test, data.train)["trained_on"] == len(trained)
    (warning,) = identity.compare_test_sets(recipe, data)[:1]
    assert f"was trained on {len(trained)} of these {len(test)} images" in warning
    assert "trained_on" not in describe_images(recipe_of(root), test, data.train)


def names_and_sizes(split: Any) -> list[tuple[str, int]]:
    return list(zip(names_of(split), split.names.sizes().tolist(), strict=True))


def test_a_part_of_the_held_out_images_was_not_learnt(tmp_path: Path) -> None:
    root = draw(tmp_path / "pictures")
    begun(tmp_path / "run", recipe_of(root, "data.holdout=9"))
    recipe = weights_of(tmp_path / "run", CLASSES)
    recipe = recipe.with_overrides(f"data.root={root}", "data.holdout=9", "data.subset=[30, 6]")
    (message,) = identity.compare_test_sets(recipe, list_dataset(recipe))
    assert "was tested on other images: holdout: 6 images, and was 9: 3 missing" in message


@pytest.mark.parametrize("weights", ["timm", "timm:resnet18", "elsewhere/w.safetensors"])
def test_only_weights_of_a_run_have_images_of_their_own(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "elsewhere"):
        folder.mkdir(exist_ok=True)
        (folder / "data.json").write_text("[]")
    recipe = recipe_of(draw(tmp_path / "pictures"), f"model.weights={weights}")
    assert identity.compare_test_sets(recipe, list_dataset(recipe)) == []


def test_weights_that_timm_downloads_name_no_classes_of_a_file() -> None:
    recipe = recipes.load("transfer-linear", ["data={name: fashion-mini}"])
    assert recipe.model.options["weights"] == "timm"
    assert warn_of_old_head(recipe, CLASSES) is None
    assert weights_classes(recipe) == ()
    assert match_labels(recipe, draw_images())[1] is None


# --- through the command ---

SMALL = [
    "model={name: resnet9, width: 4, logit_scale: 0.125}",
    "eval.sizes=[32]",
    "eval.crops=[1.0]",
    "train.batch_size=8",
    "train.device_batch_size=8",
    "train.epochs=2",
    "train.log_every=1",
    "train.checkpoint_epochs=0.5",
    "train.channels_last=false",
    "train.snapshots=[10]",
]


def data_of(root: Path) -> str:
    return f"data={{name: folder, root: {root}, train_size: 32, train_interpolation: bilinear}}"


def test_a_killed_run_goes_on_in_the_same_bits_where_its_data_have_moved(tmp_path: Path) -> None:
    root, elsewhere = draw(tmp_path / "pictures"), tmp_path / "elsewhere"
    reference, run = tmp_path / "reference", tmp_path / "run"

    def train(output: str, *arguments: object) -> Any:
        given = ["train", "--resume", "--workers", "0", *arguments]
        return start(given, tmp_path / "told" / output)

    train("first", "--out", reference, "--recipe", "pytorch", data_of(root), *SMALL).ends(0)
    shutil.copytree(reference, run)  # as a kill at step 10 leaves it
    shutil.copy(RunDirectory(run).snapshot(10), RunDirectory(run).last)
    RunDirectory(run).result.unlink()
    assert checkpoint_of(run)["progress"]["step"] == 10

    root.rename(elsewhere)
    shutil.copytree(elsewhere, root)
    shrunk(root)
    message = train("shrunk", "--out", run).ends(3)
    assert "train: 18 images, and was 48: 30 missing, the first ash/06.png" in message
    assert checkpoint_of(run)["progress"]["step"] == 10, "nothing was trained"

    message = train("moved", "--out", run, f"data.root={elsewhere}").ends(0)
    assert f"moved: data.root: {root}, now {elsewhere}; the same images" in message
    assert "resumed at step 10 of 12" in message
    assert_same(run, reference)

    RunDirectory(run).data.unlink()  # as runs of an older version are
    RunDirectory(run).result.unlink()
    shutil.rmtree(elsewhere)
    root.rename(elsewhere)
    older = recipes.recipe_in(run).with_overrides("train.snapshots=[]")
    RunDirectory(run).recipe.write_text(older.to_yaml())
    message = train("older", "--out", run).ends(3)
    assert "last.pt: is at step 12, and this run has 4 steps" in message


def test_a_sweep_goes_on_where_its_data_have_moved(rescue: Rescue, tmp_path: Path) -> None:
    root, elsewhere = draw(tmp_path / "pictures"), tmp_path / "elsewhere"
    small = [*SMALL[:-1], "train.epochs=0.5", "--workers", "0"]
    sweep = ["seed-sweep", "--recipe", "pytorch", "--out", "sweep", "--json"]
    first = rescue(*sweep, "--seeds", "1", data_of(root), *small)
    assert first.code == 0, first.err
    root.rename(elsewhere)

    second = rescue(*sweep, "--seeds", "2", data_of(elsewhere), *small)
    assert second.code == 0, second.err
    assert json.loads(second.out)["n"] == 2
    moved = f"moved: data.root: {root}, now {elsewhere}; the same images (train 48, val 21)"
    assert moved in second.notes

    shrunk(elsewhere)
    third = rescue(*sweep, "--seeds", "3", data_of(elsewhere), *small)
    assert third.code == 3
    assert "seed-0: was trained on other data" in third.err
    assert not (tmp_path / "sweep" / "seed-2").exists()
