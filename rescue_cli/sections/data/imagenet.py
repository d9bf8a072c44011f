"""What timm carries of ImageNet: what its classes are called, and the labels of ImageNet-ReaL."""

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
    """ImageNet's 1,000 WordNet ids and what they are called."""
    wnids = _timm_file("imagenet_synsets.txt").read_text().split()
    lines = _timm_file("imagenet_synset_to_lemma.txt").read_text().splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    return {wnid: words[wnid].split(",")[0].strip() for wnid in wnids}


def real_labels(split: Split) -> Indices:
    """ReaL's labels of validation images, (n, most) filled up with -1 (Are we done with ImageNet?).

    They are found by the ILSVRC2012_val_ number in the file's name; an image that none was kept
    for has none, and is not scored. Raises `DataError` where a name has no number.
    """
    if not isinstance(split, Files):
        raise DataError(
            "eval.sets: real: images in memory have no file names. Use data.resident=false."
        )
    table = json.loads(_timm_file("imagenet_real_labels.json").read_text())
    found = [table[_validation_number(split, i, len(table)) - 1] for i in range(len(split))]
    answers = np.full((len(found), max(map(len, found), default=0)), -1, dtype=np.int64)
    for row, labels in zip(answers, found, strict=True):
        row[: len(labels)] = labels
    if not (answers >= 0).any():
        raise DataError(
            f"eval.sets: real: none of the {len(found)} images has a label. Use more images."
        )
    return answers


def _validation_number(files: Files, index: int, most: int) -> int:
    """The image's number among the validation images, from 1."""
    name = files.names.name(index).rpartition("/")[2]
    match = _NUMBER.search(name)
    if match is None or not 1 <= int(match[1]) <= most:
        raise DataError(
            f"{files.names.path(index)}: no number of ILSVRC2012_val_00000001 to _{most:08} in its "
            "name, by which ReaL labels an image. Keep the validation images' own names, or leave "
            "out the set real."
        )
    return int(match[1])


def _timm_file(name: str) -> Path:
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / "_info" / name
