"""Classes and probabilities of single images, by the weights and the protocol of a run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rescue_cli.build.check import check_recipe
from rescue_cli.build.feeds import build_normalise
from rescue_cli.build.networks import build_network

# data_keys
from rescue_cli.build.weights import Source, check_changes, find_weights, known_classes
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.sections.data import FACTS, channels_of, imagenet_words
from rescue_cli.sections.data.decode import UNREADABLE, centre_crop, read_image, reason_of
from rescue_cli.sections.data.listing import HIDDEN, PassedOver, endings, images_in, is_nobodys
from rescue_cli.sections.data.notes import remarks
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
    """For each image its `top` classes with probabilities; of a folder for each image in it.

    `model` names the architecture of weights without a recipe, `changes` are overrides, and `note`
    is told what they are shown and what is passed over. Raises `DataError`, `UsageError`.
    """
    source = find_weights(str(given), ["train.precision=float32", *changes], model=model)
    check_changes(changes, source)
    recipe, classes = source.recipe, _classes(source)
    for line in source.notes:
        note(line)
    check_recipe(recipe)
    recipe.demand_classification("predict")
    network = build_network(
        recipe, len(classes), torch.device(device), whole=True, note=note
    ).eval()
    reading = _reading(source, changes)
    shown = "ignored" if reading.background == "ignored" else f"shown on {reading.background}"
    note(
        f"images: EXIF orientation {reading.exif} (data.exif), "
        f"transparency {shown} (data.background)"
    )
    files = _files(images, note)
    for line in remarks(files, reading):
        note(line)
    normalise = build_normalise(recipe, torch.device(device))
    show = TTAS[recipe.eval.ttas[0]]
    protocol = _protocol(recipe, reading)
    found = []
    for path in files:
        pixels = _pixels(path, recipe, reading).unsqueeze(0).to(device)
        probabilities = show(network, normalise(pixels)).double().softmax(1)[0]
        values, places = probabilities.topk(min(top, len(classes)))
        guesses = zip(places.tolist(), values.tolist(), strict=True)
        found.append(
            {
                "image": str(path),
                "classes": [{"class": classes[i], "probability": p} for i, p in guesses],
                "protocol": protocol,
            }
        )
    return found


def _files(given: Sequence[Path], note: Callable[[str], None]) -> list[Path]:
    """The files that are given and those in the folders that are; raises `DataError`."""
    found: list[Path] = []
    passed = PassedOver(sizes=True)
    endings()  # has PIL know the formats of its plugins
    for path in given:
        if path.is_dir():
            found += [path / name for name in images_in(path, passed)]
        elif is_nobodys(path.name):
            passed.add(HIDDEN, str(path))
        else:
            found.append(path)
    if not found:
        there = passed.listed() or "nothing"
        raise DataError(f"{given[0]}: no image that can be read ({there}). Name another.")
    for line in passed.notes():
        note(line)
    return found


def _classes(source: Source) -> list[str]:
    """The classes' names: the file's own, else ImageNet's in words."""
    if (names := known_classes(source.metadata)) is not None:
        return names
    if "recipe" not in source.metadata:
        words = imagenet_words()
        return [words[wnid] for wnid in sorted(words)]
    raise UsageError(f"{source.given}: its metadata names no classes. Give a run of this tool.")


def _reading(source: Source, changes: Sequence[str]) -> Reading:
    """How pictures are read: as the run read its files, and upright where it read none.

    A run of files whose recipe has no `data.exif` was made without.
    """
    facts = FACTS.get(source.trained.data.name) if source.trained is not None else None
    of_files = facts is not None and facts.size is None
    reading = Reading.of(source.recipe.data)
    if of_files or is_given("data.exif", given_keys(changes)):
        return reading
    return replace(reading, exif="applied")


def _protocol(recipe: Recipe, reading: Reading) -> dict[str, Any]:
    """What was done to each image."""
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
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be decoded: {reason_of(error)}. Give an image file that can be read."
        ) from None
    evaluation = recipe.eval
    if FACTS[recipe.data.name].channels == 1:
        image = Image.fromarray(np.array(image.convert("L"))).convert("RGB")
    view = evaluation.sizes[0], evaluation.crops[0], evaluation.interpolation, evaluation.resize
    return centre_crop(image, *view)[: channels_of(recipe.data.name, recipe.data)]
