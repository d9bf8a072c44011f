"""Test images that are training images too are refused, or told."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescue_cli.errors import DataError
from rescue_cli.recipe import DataKeys
from rescue_cli.sections.data import load, overlap


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders train/cat/ and train/dog/ of six images, and val/ of three, all different."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, (9, 9, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.bmp")  # all of one size in bytes
    return tmp_path


def notes(root: Path, **keys: str) -> tuple[str, ...]:
    return load("folder", DataKeys(root=str(root), **keys), root).notes  # type: ignore[arg-type]


def test_the_training_folder_is_no_test_set(photos: Path) -> None:
    train = photos / "train"
    (photos / "link").symlink_to(train)
    for name in ("train", "link"):
        with pytest.raises(DataError) as error:
            notes(photos, test_root=str(photos / name))
        assert str(error.value) == (
            f"{photos / name}: is both the training folder and the test set 'val'; accuracy on "
            "images that were trained on says nothing about new ones. Set data.test_root= to other "
            "images, or remove it and hold out training images with data.test_holdout=2, as a "
            "transfer without --recipe does by itself."
        )


def test_files_with_the_content_of_a_training_file_are_counted(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert notes(photos) == ()
    for number in (1, 2):
        shutil.copy(photos / f"train/cat/{number}.bmp", photos / f"val/dog/{number}-again.bmp")
    (line,) = notes(photos)
    assert line == (
        f"warning: val: 2 of 8 test images are training images too, the first {photos}/val/dog/"
        f"1-again.bmp, which is {photos}/train/cat/1.bmp, in another class (dog and cat). The "
        "accuracy on them says nothing about "
        "new images. Keep one file of each such pair, in the right class."
    )
    for split in ("holdout", "holdout-test"):
        key = "holdout" if split == "holdout" else "test_holdout"
        held = load("folder", DataKeys(root=str(photos), **{key: 4}), photos)  # type: ignore[arg-type]
        assert (list(held.tests), held.notes) == ([split], ())
    monkeypatch.setattr(overlap, "SAMPLE", 7)
    assert notes(photos)[0].startswith("warning: val: at least ")
