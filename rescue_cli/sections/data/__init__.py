"""The section `data`: which images, where they are, and how they become pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rescue_cli.recipe import DataKeys
from rescue_cli.sections.data.coco_files import is_coco
from rescue_cli.sections.data.datasets import DATASETS
from rescue_cli.sections.data.fingerprint import (
    Fingerprint,
    Listing,
    difference,
    fingerprint_of,
    from_arrays,
    listing_of,
)
from rescue_cli.sections.data.imagenet import imagenet_words
from rescue_cli.sections.data.location import (
    FACTS,
    PACKAGED,
    Facts,
    Place,
    channels_of,
    normalisation,
)
from rescue_cli.sections.data.notes import of_splits
from rescue_cli.sections.data.paired import Boxed, Masked, Paired
from rescue_cli.sections.data.resident import make_resident
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.scenes import SceneEvalFeed, SceneFeed, TestScenes, TrainScenes
from rescue_cli.sections.data.splits import (
    Dataset,
    Features,
    FileNames,
    Files,
    Images,
    Split,
    hold_out,
    in_colour,
    relabel,
    subset,
    without_images,
)

__all__ = [
    "DATASETS",
    "FACTS",
    "PACKAGED",
    "Boxed",
    "Dataset",
    "Facts",
    "Features",
    "FileNames",
    "Files",
    "Fingerprint",
    "Images",
    "Listing",
    "Masked",
    "Paired",
    "Place",
    "SceneEvalFeed",
    "SceneFeed",
    "Split",
    "TestScenes",
    "TrainScenes",
    "channels_of",
    "difference",
    "fingerprint_of",
    "from_arrays",
    "hold_out",
    "imagenet_words",
    "in_colour",
    "is_coco",
    "listing_of",
    "load",
    "make_resident",
    "normalisation",
    "relabel",
    "subset",
]


def load(
    name: str,
    keys: DataKeys,
    cache: Path,
    *,
    test_only: bool = False,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """The data set called `name`, held out, cut and made resident as `keys` say.

    With `test_only` its training folder may be missing, and is not decoded; `classes` are those
    that the weights to be evaluated know.
    """
    place = Place(name, keys, test_only and not keys.holdout, classes)
    dataset = subset(hold_out(DATASETS[name](place), keys.holdout, keys.fold), keys.subset)
    if keys.channels is not None:
        dataset = in_colour(dataset)
    if place.test_only:
        dataset = replace(dataset, train=dataset.train.take(np.zeros(0, dtype=np.int64)))
    size = FACTS[name].size
    if FACTS[name].images is None:  # a folder of one's own
        said = of_splits([dataset.train, *dataset.tests.values()], Reading.of(keys))
        dataset = replace(dataset, notes=(*dataset.notes, *said))
    if isinstance(dataset.train, Paired):
        return dataset
    dataset = replace(dataset, notes=(*dataset.notes, *without_images(dataset)))
    resident = keys.resident if keys.resident is not None else size is not None
    if not resident:
        return dataset
    side = keys.train_size or size or 224
    return make_resident(dataset, side, keys.train_interpolation, cache, Reading.of(keys))
