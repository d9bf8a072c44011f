"""Classes and probabilities of single images, by a run's weights and evaluation protocol."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rescue_cli import build
from rescue_cli.build.ingredients import data_keys
from rescue_cli.build.weights import Source, check_changes, find_weights, known_classes
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.sections.data import FACTS, channels_of, imagenet_class_names
from rescue_cli.sections.data.decode import UNREADABLE, centre_crop, describe_error, read_image
from rescue_cli.sections.data.decoding_notes import describe_files
from rescue_cli.sections.data.listing import (
    HIDDEN_FILES,
    SkippedFiles,
    image_extensions,
    is_hidden,
    list_images,
)
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.tta import TTAS


@torch.inference_mode()
def predict_images(
    given: Path | str,
    images: Sequence[Path],
    top: int,
    device: str,
    *,
    model: str | None = None,
    changes: Sequence[str] = (),
    note: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """The `top` classes of each image with their probabilities; a folder stands for its images.

    `model` names the architecture of weights without a recipe, `changes` are overrides, and `note`
    is called with how the images are read and which files are skipped. Raises `DataError` and
    `UsageError`.
    """
    source = find_weights(str(given), ["train.precision=float32", *changes], model=model)
    check_changes(changes, source)
    recipe, classes = source.recipe, _classes(source)
    for line in source.notes:
        note(line)
    build.check(recipe)
    recipe.demand_classification("predict")
    network = build.model(recipe, len(classes), torch.device(device), whole=True, note=note).eval()
    reading = _reading(source, changes)
    background = "ignored" if reading.background == "ignored" else f"on {reading.background}"
    note(
        f"images: EXIF orientation {reading.exif} (data.exif), "
        f"transparency {background} (data.background)"
    )
    files = _files(images, note)
    for line in describe_files(files, reading):
        note(line)
    normalise = build.normalise(recipe, torch.device(device))
    show = TTAS[recipe.eval.ttas[0]]
    protocol = _protocol(recipe, reading)
    predictions = []
    for path in files:
        pixels = _pixels(path, recipe, reading).unsqueeze(0).to(device)
        probabilities = show(network, normalise(pixels)).double().softmax(1)[0]
        values, indices = probabilities.topk(min(top, len(classes)))
        best = zip(indices.tolist(), values.tolist(), strict=True)
        predictions.append(
            {
                "image": str(path),
                "classes": [{"class": classes[i], "probability": p} for i, p in best],
                "protocol": protocol,
            }
        )
    return predictions


def _files(given: Sequence[Path], note: Callable[[str], None]) -> list[Path]:
    """The given files and the images in the given folders; raises `DataError` without any."""
    files: list[Path] = []
    passed = SkippedFiles(check_sizes=True)
    image_extensions()  # registers the formats of PIL's plugins
    for path in given:
        if path.is_dir():
            files += [path / name for name in list_images(path, passed)]
        elif is_hidden(path.name):
            passed.add(HIDDEN_FILES, str(path))
        else:
            files.append(path)
    if not files:
        skipped = passed.summary() or "nothing"
        raise DataError(f"{given[0]}: no readable image ({skipped}). Give another file or folder.")
    for line in passed.notes():
        note(line)
    return files


def _classes(source: Source) -> list[str]:
    """The class names in the file's metadata; without metadata of a recipe, ImageNet's."""
    if (names := known_classes(source.metadata)) is not None:
        return names
    if "recipe" not in source.metadata:
        words = imagenet_class_names()
        return [words[wnid] for wnid in sorted(words)]
    raise UsageError(f"{source.given}: has no class names. Give a run of this tool.")


def _reading(source: Source, changes: Sequence[str]) -> Reading:
    """How image files are read: as the run read its files; with EXIF applied if it read none.

    A run that read files and whose recipe has no `data.exif` ignored it.
    """
    facts = FACTS.get(source.trained.data.name) if source.trained is not None else None
    of_files = facts is not None and facts.size is None
    reading = data_keys(source.recipe).reading
    if of_files or is_given("data.exif", given_keys(changes)):
        return reading
    return replace(reading, exif="applied")


def _protocol(recipe: Recipe, reading: Reading) -> dict[str, Any]:
    """The evaluation protocol of each image."""
    evaluation = recipe.eval
    return {
        "size": evaluation.sizes[0],
        "crop": evaluation.crops[0],
        "interpolation": evaluation.interpolation,
        "decoder": "pil",
        "tta": evaluation.ttas[0],
        **asdict(reading),
    }


def _pixels(path: Path, recipe: Recipe, reading: Reading) -> Tensor:
    try:
        image = read_image(path, "pil", reading)
    except FileNotFoundError:
        raise DataError(f"{path}: file not found. Give the path of an image.") from None
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be decoded: {describe_error(error)}. Give a readable image file."
        ) from None
    evaluation = recipe.eval
    if FACTS[recipe.data.name].channels == 1:
        image = Image.fromarray(np.array(image.convert("L"))).convert("RGB")
    view = evaluation.sizes[0], evaluation.crops[0], evaluation.interpolation, evaluation.resize
    return centre_crop(image, *view)[: channels_of(recipe.data.name, data_keys(recipe))]
