"""The section `data`: which images, where they are, and how they become pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rescue_cli.sections.data.datasets import DATASETS
from rescue_cli.sections.data.decoding_notes import describe_splits
from rescue_cli.sections.data.fingerprint import (
    Fingerprint,
    SplitListing,
    compute_fingerprint,
    describe_difference,
    fingerprint_from_arrays,
    list_split,
)
from rescue_cli.sections.data.formats.coco import is_coco
from rescue_cli.sections.data.imagenet import imagenet_class_names
from rescue_cli.sections.data.location import (
    FACTS,
    Facts,
    Keys,
    Location,
    channels_of,
    normalisation,
)
from rescue_cli.sections.data.paired import Boxed, Masked, Paired
from rescue_cli.sections.data.resident import make_resident
from rescue_cli.sections.data.scenes import SceneEvalFeed, SceneFeed, TestScenes, TrainScenes
from rescue_cli.sections.data.splits import (
    Dataset,
    Features,
    FileNames,
    Files,
    Images,
    Split,
    grey_to_rgb,
    hold_out,
    note_classes_without_images,
    relabel,
    take_subset,
)

__all__ = [
    "DATASETS",
    "FACTS",
    "Boxed",
    "Dataset",
    "Facts",
    "Features",
    "FileNames",
    "Files",
    "Fingerprint",
    "Images",
    "Keys",
    "Location",
    "Masked",
    "Paired",
    "SceneEvalFeed",
    "SceneFeed",
    "Split",
    "SplitListing",
    "TestScenes",
    "TrainScenes",
    "channels_of",
    "compute_fingerprint",
    "describe_difference",
    "fingerprint_from_arrays",
    "grey_to_rgb",
    "hold_out",
    "imagenet_class_names",
    "is_coco",
    "list_split",
    "load",
    "make_resident",
    "normalisation",
    "relabel",
    "take_subset",
]


def load(
    name: str,
    keys: Keys,
    cache: Path,
    *,
    test_only: bool = False,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """The data set called `name`, held out, cut and made resident as `keys` say.

    With `test_only` its training folder may be missing, and is not decoded; `classes` are those
    that the weights to be evaluated know.
    """
    place = Location(name, keys, test_only and not keys.holdout, classes)
    dataset = take_subset(hold_out(DATASETS[name](place), keys.holdout, keys.fold), keys.subset)
    if keys.channels is not None:
        dataset = grey_to_rgb(dataset)
    if place.test_only:
        dataset = replace(dataset, train=dataset.train.take(np.zeros(0, dtype=np.int64)))
    size = FACTS[name].size
    if FACTS[name].images is None:  # a folder of one's own
        said = describe_splits([dataset.train, *dataset.tests.values()], keys.reading)
        dataset = replace(dataset, notes=(*dataset.notes, *said))
    if isinstance(dataset.train, Paired):
        return dataset
    dataset = replace(dataset, notes=(*dataset.notes, *note_classes_without_images(dataset)))
    resident = keys.resident if keys.resident is not None else size is not None
    if not resident:
        return dataset
    side = keys.train_size or size or 224
    return make_resident(dataset, side, keys.train_interpolation, cache, keys.reading)
