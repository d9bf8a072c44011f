"""The test images that a network gets most wrong or doubts most, as thumbnails where they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescue_cli.analysis.image_tables import doubtful_labels, label_table, read_image_table
from rescue_cli.analysis.sides import correct_predictions
from rescue_cli.errors import RescueError
from rescue_cli.recipe import recipe_in
from rescue_cli.report.html import image_url
from rescue_cli.report.pictures import read_samples
from rescue_cli.rundir import RunDirectory, read_arrays, read_environment

if TYPE_CHECKING:
    from PIL.Image import Image

    from rescue_cli.sections.data import Split
    from rescue_cli.sections.data.rgb import Reading

SHOWN = 12  # of the worst, and of the most doubtful
SIDE = 176  # pixels of a thumbnail, twice what a phone shows


@dataclass(frozen=True)
class Photograph:
    """A test image with what it is and what it was taken for."""

    name: str  # of the file where it is known, else its number in the test set
    label: str
    predicted: str
    probability: float  # percent, of the predicted class
    url: str | None  # of the thumbnail


@dataclass(frozen=True)
class Hardest:
    """The images of one test set that are the hardest for one network."""

    wrong: int  # of `count` images
    count: int
    worst: list[Photograph]  # wrong; those whose label is least probable to it come first
    doubtful: list[Photograph]  # right; those with the least probable first class come first
    missing: str  # why there are no thumbnails; empty where there are


def find_hardest(path: Path, set_name: str, file: Path) -> Hardest | None:
    """Those of a run's stored predictions; None of a detector or a segmentation network."""
    arrays = read_arrays(file)
    if not {"labels", "top", "probabilities", "classes"} <= arrays.keys():
        return None
    worst, doubtful = hardest_indices(arrays)
    try:
        split, missing = _find_split(path, set_name, arrays), ""
    except RescueError as error:
        split, missing = None, str(error)
    names = _file_names(file, len(arrays["labels"]))
    return Hardest(
        wrong=int((~correct_predictions(arrays)).sum()),
        count=len(arrays["labels"]),
        worst=[_photograph(path, arrays, int(i), split, names) for i in worst],
        doubtful=[_photograph(path, arrays, int(i), split, names) for i in doubtful],
        missing=missing,
    )


@dataclass(frozen=True)
class DoubtfulLabels:
    """Training images whose label looks wrong, and how many there are."""

    count: int
    shown: list[Photograph]


def find_doubtful_labels(path: Path, size: int) -> DoubtfulLabels | None:
    """Those of a run at that image size; None where there are none or it is not known."""
    table = label_table(path, size)
    if table is None or not (rows := doubtful_labels(table)):
        return None
    from rescue_cli.sections.data.rgb import Reading

    data = recipe_in(path).data
    reading, root = Reading.of(data), f"{data.root}/"
    return DoubtfulLabels(
        len(rows),
        [
            Photograph(
                row.file.removeprefix(root), row.label, row.predicted, 100 * row.probability,
                _file_url(Path(row.file), reading),
            )
            for row in rows[:SHOWN]
        ],
    )  # fmt: skip


def _file_url(file: Path, reading: "Reading") -> str | None:
    """The thumbnail of a file; None where it is none or is broken."""
    from rescue_cli.sections.data.decode import UNREADABLE, read_image

    try:
        image = read_image(file, "pil", reading)
    except UNREADABLE:
        return None
    image.thumbnail((SIDE, SIDE))
    return image_url(image)


def hardest_indices(
    arrays: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices of the worst and of the most doubtful images, at most `SHOWN` of each.

    The worst are wrong, and have the highest loss (where images have several right labels and so
    no loss: the highest probability of the wrong class). The most doubtful are right, and have the
    lowest probability.
    """
    correct, probabilities = correct_predictions(arrays), arrays["probabilities"]
    badness = arrays.get("losses", probabilities)
    worst = np.argsort(-badness, kind="stable")
    doubtful = np.argsort(probabilities, kind="stable")
    return worst[~correct[worst]][:SHOWN], doubtful[correct[doubtful]][:SHOWN]


def _find_split(path: Path, set_name: str, arrays: Mapping[str, NDArray[Any]]) -> "Split":
    """The test images, in the order of the predictions; raises `RescueError` without them."""
    from rescue_cli.sections.data import load

    recipe, classes = recipe_in(path), [str(name) for name in arrays["classes"]]
    keys = replace(recipe.data, resident=False if recipe.data.resident else recipe.data.resident)
    cache = Path(read_environment(RunDirectory(path))["cache"])
    dataset = load(recipe.data.name, keys, cache, test_only=True, classes=tuple(classes))
    split = dataset.tests.get(set_name)
    if split is None:
        raise RescueError(f"{set_name} has the images of another set, with labels of its own.")
    labels = [dataset.classes[label] for label in split.labels]
    predicted = [classes[label] for label in np.ravel(arrays["labels"])]
    if labels != predicted:
        raise RescueError("the data set has other images now than when they were predicted.")
    return split


def _file_names(file: Path, count: int) -> Sequence[str]:
    """The files in the table beside the predictions; empty without one, as in older runs."""
    try:
        names = [row.file for row in read_image_table(file.with_suffix(".csv"))]
    except RescueError:
        return []
    return names if len(names) == count else []


def _photograph(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    index: int,
    split: "Split | None",
    names: Sequence[str],
) -> Photograph:
    classes = arrays["classes"]
    labels = [int(label) for label in np.atleast_1d(arrays["labels"][index]) if label >= 0]
    image = None if split is None else _thumbnail(path, split, index)
    files = getattr(split, "names", None) or getattr(getattr(split, "files", None), "names", None)
    if files is not None:
        name = files.name(index)
    else:
        name = names[index] if names and not names[index].isdecimal() else f"image {index}"
    return Photograph(
        name=name,
        label=" or ".join(str(classes[label]) for label in labels),
        predicted=str(classes[arrays["top"][index][0]]),
        probability=100 * float(arrays["probabilities"][index]),
        url=None if image is None else image_url(image),
    )


def _thumbnail(path: Path, split: "Split", index: int) -> "Image | None":
    """The whole image, at most `SIDE` pixels high and wide; None where its file is broken."""
    from PIL import Image

    from rescue_cli.sections.data import Files
    from rescue_cli.sections.data.decode import UNREADABLE
    from rescue_cli.sections.data.rgb import Reading
    from rescue_cli.sections.data.samples import read_file

    if not isinstance(split, Files):
        return image_of(split.pixels[index])
    try:
        image: Image.Image = read_file(split, index, "pil", Reading.of(recipe_in(path).data))
    except (*UNREADABLE, RescueError):
        return None
    image.thumbnail((SIDE, SIDE))
    return image


def image_of(pixels: NDArray[np.uint8]) -> "Image":
    """(channels, height, width) uint8 as a PIL image, at most `SIDE` pixels high and wide."""
    from PIL import Image

    grey = len(pixels) == 1
    image = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((SIDE, SIDE))
    return image


def sample_gallery(file: Path) -> list[dict[str, str]]:
    """The stored images of a run with their labels: `url` and `caption`; empty without the file."""
    if not file.is_file():
        return []
    images, labels = read_samples(file)
    return [
        {"url": image_url(image_of(image)), "caption": str(label)}
        for image, label in zip(images, labels, strict=True)
    ]
