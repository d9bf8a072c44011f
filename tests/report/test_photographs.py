"""The images that are hardest for a network, and their thumbnails."""

import base64
import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rescue_cli import recipe as recipes
from rescue_cli.report.photographs import (
    Photograph,
    find_doubtful_labels,
    find_hardest,
    hardest_indices,
)
from rescue_cli.rundir import CROSS_VALIDATED, RunDirectory

CLASSES = ("cat", "dog")
PER_CLASS = 4  # photographs; the image `index` of the set is a grey of 20 + 25 * index
PROBABILITIES = [0.9, 0.6, 0.95, 0.7, 0.8, 0.55, 0.99, 0.85]
WRONG = (1, 6)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was measured on eight photographs, two of which it got wrong."""
    labels = np.repeat([0, 1], PER_CLASS)
    for index, label in enumerate(labels):
        for split in ("train", "val"):
            file = tmp_path / "photos" / split / CLASSES[label] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (300, 200), (20 + 25 * index,) * 3).save(file)
    folder = tmp_path / "run"
    (folder / "predictions").mkdir(parents=True)
    data = f"data={{name: folder, root: {tmp_path / 'photos'}, train_size: 32}}"
    recipe = recipes.load("transfer-linear", [data])
    RunDirectory(folder).recipe.write_text(recipe.to_yaml())
    machine = {"verb": "train", "device": "cpu", "threads": 1, "workers": 0, "cache": "cache"}
    RunDirectory(folder).environment.write_text(json.dumps(machine))
    top = np.stack([labels, 1 - labels], 1)
    top[list(WRONG)] = top[list(WRONG)][:, ::-1]
    np.savez(
        folder / "predictions" / "val.npz",
        labels=labels, top=top, probabilities=np.array(PROBABILITIES), classes=np.array(CLASSES),
        losses=np.where(np.isin(np.arange(8), WRONG), 5.0, 0.1) - np.arange(8) / 100,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_training_images_whose_label_looks_wrong_are_shown(
    fine_tuned: bool, run: Path, tmp_path: Path
) -> None:
    """Those of a fitted head; a run of fine-tuning has none, and the search's are taken."""
    rows = [("cat/0.png", "cat", "dog", 0.97), ("cat/1.png", "cat", "cat", 0.99),
            ("dog/9.png", "dog", "cat", 0.95), ("dog/5.png", "dog", "cat", 0.6)]  # fmt: skip
    final = tmp_path / "out" / "weights" / "seed-0"
    shutil.copytree(run, final)
    assert find_doubtful_labels(final, 32) is None
    kept = tmp_path / "out" / "search" / "probe-32" if fine_tuned else final
    file = RunDirectory(kept).image_table(CROSS_VALIDATED)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("file", "label", "predicted", "probability"))
        writer.writerows((tmp_path / "photos" / "train" / name, *rest) for name, *rest in rows)
    found = find_doubtful_labels(final, 32)
    assert found is not None
    assert found.count == 2
    first, missing = found.shown
    assert (first.name, first.label, first.predicted) == ("train/cat/0.png", "cat", "dog")
    assert first.probability == pytest.approx(97)
    assert abs(int(pixels_of(first).mean()) - 20) <= 1
    assert (missing.name, missing.url) == ("train/dog/9.png", None)


def pixels_of(photo: Photograph) -> Any:
    assert photo.url is not None
    content = base64.b64decode(photo.url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_the_hardest_images_are_shown_with_what_they_are(run: Path) -> None:
    hardest = find_hardest(run, "val", run / "predictions" / "val.npz")
    assert hardest is not None
    assert (hardest.wrong, hardest.count, hardest.missing) == (2, 8, "")
    assert [(p.name, p.label, p.predicted, p.probability) for p in hardest.worst] == [
        ("cat/1.png", "cat", "dog", 60.0), ("dog/6.png", "dog", "cat", 99.0)
    ]  # fmt: skip
    names = [photo.name for photo in hardest.doubtful]
    assert names == ["dog/5.png", "cat/3.png", "dog/4.png", "dog/7.png", "cat/0.png", "cat/2.png"]
    for photo in (*hardest.worst, *hardest.doubtful):
        pixels = pixels_of(photo)
        assert pixels.shape == (117, 176, 3)
        index = int(Path(photo.name).stem)
        assert np.abs(pixels.astype(int) - (20 + 25 * index)).max() <= 3, "JPEG may round"


def test_without_the_data_there_are_names_and_the_reason(run: Path, tmp_path: Path) -> None:
    file = run / "predictions" / "val.npz"
    shutil.rmtree(tmp_path / "photos")
    hardest = find_hardest(run, "val", file)
    assert hardest is not None
    assert [(photo.name, photo.url) for photo in hardest.worst] == [
        ("image 1", None), ("image 6", None)
    ]  # fmt: skip
    assert str(tmp_path / "photos") in hardest.missing
    with file.with_suffix(".csv").open("w", newline="") as table:
        rows = [[f"{n}.png", "cat", "dog", 0.5] for n in range(8)]
        csv.writer(table).writerows([["file", "label", "predicted", "probability"], *rows])
    hardest = find_hardest(run, "val", file)
    assert hardest is not None
    assert [photo.name for photo in hardest.worst] == ["1.png", "6.png"]


def test_images_that_are_not_those_that_were_predicted_are_not_shown(
    run: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos" / "val"
    (photos / "cat" / "1.png").rename(photos / "dog" / "1.png")
    hardest = find_hardest(run, "val", run / "predictions" / "val.npz")
    assert hardest is not None
    assert all(photo.url is None for photo in (*hardest.worst, *hardest.doubtful))
    assert "other images now" in hardest.missing


def test_images_with_several_right_labels_are_ordered_by_probability() -> None:
    arrays = {
        "labels": np.array([[0, 1], [2, -1], [2, -1], [0, -1]]),
        "top": np.array([[1, 0], [0, 1], [1, 2], [0, 1]]),
        "probabilities": np.array([0.5, 0.6, 0.9, 0.4]),
    }
    worst, doubtful = hardest_indices(arrays)
    assert (worst.tolist(), doubtful.tolist()) == ([2, 1], [3, 0])
