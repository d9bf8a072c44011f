"""The section `data`: which images, where they are, and how they become pixels."""

from pathlib import Path

from rescue_cli.data.known import DATASETS, imagenet_words
from rescue_cli.data.place import FACTS, Facts, Keys, Place, normalisation
from rescue_cli.data.resident import make_resident
from rescue_cli.data.splits import Dataset, FileNames, Files, Images, Split, hold_out, subset

__all__ = [
    "DATASETS",
    "FACTS",
    "Dataset",
    "Facts",
    "FileNames",
    "Files",
    "Images",
    "Keys",
    "Place",
    "Split",
    "hold_out",
    "imagenet_words",
    "load",
    "make_resident",
    "normalisation",
    "subset",
]


def load(name: str, keys: Keys, cache: Path) -> Dataset:
    """The data set called `name`, held out, cut and made resident as `keys` say."""
    dataset = subset(hold_out(DATASETS[name](Place(name, keys)), keys.holdout), keys.subset)
    size = FACTS[name].size
    resident = keys.resident if keys.resident is not None else size is not None
    if not resident:
        return dataset
    return make_resident(dataset, keys.train_size or size or 224, keys.train_interpolation, cache)
