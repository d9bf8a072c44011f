"""The section `data`: data sets, where their files are, and how they are decoded."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.recipe import DataItem, DataKeys
from rescue_cli.sections.data.annotated import Boxed
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
    PACKAGED,
    Location,
    channels_of,
    facts_of,
    normalisation,
)
from rescue_cli.sections.data.overlap import check_folders, note_contradictions, note_shared_images
from rescue_cli.sections.data.own import own_data
from rescue_cli.sections.data.packed.remote import with_urls
from rescue_cli.sections.data.resident import make_resident
from rescue_cli.sections.data.rgb import Reading
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
    "PACKAGED",
    "Boxed",
    "Dataset",
    "Features",
    "FileNames",
    "Files",
    "Fingerprint",
    "Images",
    "Location",
    "Split",
    "SplitListing",
    "channels_of",
    "compute_fingerprint",
    "describe_difference",
    "facts_of",
    "fingerprint_from_arrays",
    "hold_out",
    "imagenet_class_names",
    "is_coco",
    "list_split",
    "load",
    "make_resident",
    "normalisation",
    "own_data",
    "relabel",
    "take_subset",
]


def load(
    name: str,
    keys: DataKeys,
    cache: Path,
    *,
    test_only: bool = False,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Reads the data set `name`: held out, cut to a subset and kept in memory as `keys` say.

    With `test_only` the training folder may be missing and is not decoded; `classes` are the class
    names of the weights that are evaluated. Raises `DataError` and `UsageError`.
    """
    location = Location(name, keys, test_only and not keys.holds_out, classes)
    try:
        whole: Dataset = keys(location) if isinstance(keys, DataItem) else DATASETS[name](location)
    except DataError as error:
        raise DataError(with_urls(str(error))) from None
    whole = replace(whole, notes=tuple(map(with_urls, whole.notes)))
    same = check_folders(whole, keys, own=facts_of(name, keys).images is None)
    rest = hold_out(whole, keys.test_holdout, key="test_holdout")
    dataset = take_subset(hold_out(rest, keys.holdout, keys.fold), keys.subset)
    if keys.channels is not None:
        dataset = grey_to_rgb(dataset)
    if location.test_only:
        dataset = replace(dataset, train=dataset.train.take(np.zeros(0, dtype=np.int64)))
    facts = facts_of(name, keys)
    size = facts.size
    dataset = replace(dataset, notes=(*dataset.notes, *same))
    if facts.images is None:  # the user's own folder
        remarks = describe_splits([dataset.train, *dataset.tests.values()], Reading.of(keys))
        shared = [*note_shared_images(dataset), *note_contradictions(dataset.train)]
        dataset = replace(dataset, notes=(*dataset.notes, *remarks, *shared))
    if dataset.train.annotated:
        return dataset
    dataset = replace(dataset, notes=(*dataset.notes, *note_classes_without_images(dataset)))
    resident = keys.resident if keys.resident is not None else size is not None
    if not resident:
        return dataset
    side = keys.train_size or size or 224
    return make_resident(dataset, side, keys.train_interpolation, cache, Reading.of(keys))
