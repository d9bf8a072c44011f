"""Classes and probabilities of single images, by the weights and the protocol of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rescue_cli import build
from rescue_cli.data import FACTS, channels_of, imagenet_words
from rescue_cli.data.decode import UNREADABLE, centre_crop, pil_image, reason_of
from rescue_cli.data.listing import HIDDEN, PassedOver, endings, images_in, is_nobodys
from rescue_cli.errors import DataError, UsageError
from rescue_cli.evaluation import TTAS
from rescue_cli.parts.ingredients import data_keys
from rescue_cli.parts.source import Source, find_weights, known_classes
from rescue_cli.recipe import Recipe


@torch.inference_mode()
def predict_images(
    given: Path | str,
    images: Sequence[Path],
    top: int,
    device: str,
    *,
    model: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """For each image its `top` classes with probabilities; of a folder for each image in it.

    `model` names the architecture of weights without a recipe, and `note` is told what they are
    shown and what is passed over. Raises `DataError`, `UsageError`.
    """
    source = find_weights(str(given), ["train.precision=float32"], model=model)
    recipe, classes = source.recipe, _classes(source)
    for line in source.notes:
        note(line)
    build.check(recipe)
    recipe.demand_classification("predict")
    network = build.model(recipe, len(classes), torch.device(device), whole=True).eval()
    normalise = build.normalise(recipe, torch.device(device))
    show = TTAS[recipe.eval.ttas[0]]
    found = []
    for path in _files(images, note):
        pixels = _pixels(path, recipe).unsqueeze(0).to(device)
        probabilities = show(network, normalise(pixels)).double().softmax(1)[0]
        values, places = probabilities.topk(min(top, len(classes)))
        guesses = zip(places.tolist(), values.tolist(), strict=True)
        found.append(
            {
                "image": str(path),
                "classes": [{"class": classes[i], "probability": p} for i, p in guesses],
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


def _pixels(path: Path, recipe: Recipe) -> Tensor:
    try:
        image = pil_image(path.read_bytes())
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be decoded: {reason_of(error)}. Give an image file that can be read."
        ) from None
    evaluation = recipe.eval
    if FACTS[recipe.data.name].channels == 1:
        image = Image.fromarray(np.array(image.convert("L"))).convert("RGB")
    view = evaluation.sizes[0], evaluation.crops[0], evaluation.interpolation, evaluation.resize
    return centre_crop(image, *view)[: channels_of(recipe.data.name, data_keys(recipe))]
