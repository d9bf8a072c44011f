"""ImageNet's class names and the labels of ImageNet-ReaL, from the files that timm ships."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.rng import Indices
from rescue_cli.sections.data.splits import Files, Split

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


def imagenet_class_names() -> dict[str, str]:
    """Maps ImageNet's 1,000 WordNet ids to class names."""
    wnids = _timm_file("imagenet_synsets.txt").read_text().split()
    lines = _timm_file("imagenet_synset_to_lemma.txt").read_text().splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    return {wnid: words[wnid].split(",")[0].strip() for wnid in wnids}


def real_labels(split: Split) -> Indices:
    """ReaL's labels of validation images, (n, most labels), padded with -1 (Beyer et al. 2020).

    Images are identified by the ILSVRC2012_val_ number in the file name; one without ReaL labels is
    not scored. Raises `DataError` for a name without a number.
    """
    if not isinstance(split, Files):
        raise DataError(
            "eval.sets: real: needs file names, which images in memory lack. Use "
            "data.resident=false."
        )
    table = json.loads(_timm_file("imagenet_real_labels.json").read_text())
    label_lists = [table[_validation_number(split, i, len(table)) - 1] for i in range(len(split))]
    answers = np.full((len(label_lists), max(map(len, label_lists), default=0)), -1, dtype=np.int64)
    for row, labels in zip(answers, label_lists, strict=True):
        row[: len(labels)] = labels
    if not (answers >= 0).any():
        raise DataError(
            f"eval.sets: real: none of the {len(label_lists)} images has a label. Use more images."
        )
    return answers


def _validation_number(files: Files, index: int, count: int) -> int:
    """The image's number among the validation images, from 1."""
    name = files.names.name(index).rpartition("/")[2]
    match = _NUMBER.search(name)
    if match is None or not 1 <= int(match[1]) <= count:
        raise DataError(
            f"{files.names.place(index)}: the name has no number ILSVRC2012_val_00000001 to "
            f"_{count:08}, by which ReaL identifies images. Keep the original file names, or leave "
            "out the set real."
        )
    return int(match[1])


def _timm_file(name: str) -> Path:
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / "_info" / name
