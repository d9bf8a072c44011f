"""Classifies single images with the weights and the preprocessing of a run."""

import glob
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rescue_cli.build.check import check_recipe
from rescue_cli.build.feeds import build_normalise
from rescue_cli.build.networks import build_network
from rescue_cli.build.weights import Source, check_changes, find_weights, known_classes
from rescue_cli.engine.recorder import batch_bar
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.sections.data import FACTS, channels_of, facts_of, imagenet_class_names
from rescue_cli.sections.data.decode import (
    UNREADABLE,
    centre_crop,
    decode_image,
    describe_error,
    read_image,
)
from rescue_cli.sections.data.decoding_notes import describe_files
from rescue_cli.sections.data.listing import (
    HEIC_CURE,
    HIDDEN_FILES,
    SkippedFiles,
    image_extensions,
    is_hidden,
    lacks_decoder,
    list_images,
)
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.tta import TTAS

BATCH = 32  # images that the network sees at once


class ClassProbability(TypedDict("_Class", {"class": str})):
    """One class of a prediction."""

    probability: float


class Prediction(TypedDict):
    """The most probable classes of one image, and how the image was read and resized.

    None of a file that cannot be decoded, and then `error` says why.
    """

    image: str
    classes: list[ClassProbability]
    protocol: dict[str, Any]
    error: NotRequired[str]


class Classifier:
    """A trained network with its own preprocessing and the names of its classes.

    `network` maps float images (N, C, H, W) to logits (N, classes) and is in evaluation mode;
    `protocol` says how an image is read, resized and cropped; `recipe` is in float32.
    """

    def __init__(self, source: Source, reading: Reading, classes: list[str], device: str) -> None:
        self.classes = classes
        self.device = torch.device(device)
        self.protocol = _protocol(source.recipe, reading)
        self.notes = list(source.notes)  # how the weights and the preprocessing were found
        self.recipe, self._reading = source.recipe, reading
        self._normalise = build_normalise(source.recipe, self.device)
        self._view = TTAS[source.recipe.eval.ttas[0]]
        self.network = build_network(
            source.recipe, len(classes), self.device, whole=True, note=self.notes.append
        ).eval()

    def preprocess(self, image: Path | str | Image.Image) -> Tensor:
        """A file or an RGB image as the network sees it: (C, size, size), normalised, on `device`.

        Raises `DataError` for a file that is not a readable image.
        """
        return self.normalise(self.read(image).unsqueeze(0))[0]

    def read(self, image: Path | str | bytes | Image.Image) -> Tensor:
        """The centre crop that the network sees: (C, size, size) uint8.

        Of a file, the bytes of one, or an RGB image. Raises `DataError`; for bytes what PIL raises.
        """
        if isinstance(image, Image.Image):
            return _crop(image.convert("RGB"), self.recipe)
        if isinstance(image, bytes):
            return _crop(decode_image(image, "pil", self._reading), self.recipe)
        pixels = self._try_read(Path(image))
        if isinstance(pixels, str):
            raise DataError(f"{image}: {pixels}. Give a readable image file.")
        return pixels

    def _try_read(self, path: Path) -> Tensor | str:
        """As `read`; of a file that cannot be decoded, why. Raises `DataError` for no file."""
        try:
            return _crop(read_image(path, "pil", self._reading), self.recipe)
        except FileNotFoundError:
            raise _not_found(path) from None
        except UNREADABLE as error:
            missing = (
                f"; no decoder for its format ({HEIC_CURE})" if lacks_decoder(str(path)) else ""
            )
            return f"cannot be decoded: {describe_error(error)}{missing}"

    def normalise(self, images: Tensor) -> Tensor:
        """Images (N, C, size, size) uint8 as the network takes them, on `device`."""
        normalised: Tensor = self._normalise(images.to(self.device))
        return normalised

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities (N, classes), float64, of preprocessed images (N, C, H, W).

        With the test-time augmentation of the protocol. Of a segmentation network those of each
        pixel, (N, classes, H, W).
        """
        return self._view(self.network, images).double().softmax(1)

    def prediction(self, image: str, probabilities: Tensor, top: int) -> "Prediction":
        """The `top` classes by the probabilities (classes,) of an image of that name."""
        values, indices = probabilities.topk(min(top, len(self.classes)))
        best = zip(indices.tolist(), values.tolist(), strict=True)
        return {
            "image": image,
            "classes": [{"class": self.classes[i], "probability": p} for i, p in best],
            "protocol": self.protocol,
        }

    def unread(self, image: str, error: str) -> "Prediction":
        """That of a file which cannot be decoded, and why."""
        return {"image": image, "classes": [], "protocol": self.protocol, "error": error}


def load_classifier(
    given: Path | str,
    device: str,
    *,
    model: str | None = None,
    changes: Sequence[str] = (),
    verb: str = "predict",
    other_tasks: Sequence[str] = (),
) -> Classifier:
    """The classifier in a run directory, a weights file or `timm:NAME`.

    `model` names the architecture of weights without a recipe, `changes` are overrides, `verb` is
    what the message calls the caller, which takes networks of `other_tasks` as well. Raises
    `DataError`, `UsageError`.
    """
    source = find_weights(str(given), ["train.precision=float32", *changes], model=model)
    check_changes(changes, source)
    classes = _classes(source)
    check_recipe(source.recipe)
    source.recipe.demand_classification(verb, *other_tasks)
    return Classifier(source, _reading(source, changes), classes, device)


def predict_images(
    given: Path | str,
    images: Sequence[Path],
    top: int,
    device: str,
    *,
    model: str | None = None,
    changes: Sequence[str] = (),
    note: Callable[[str], None] = lambda _: None,
    progress: bool = False,
    keep_broken: bool = False,
) -> list[Prediction]:
    """For each image its `top` classes with probabilities; of a folder for each image in it.

    An image may be a pattern, as `photos/*.jpg`. `note` gets a line for each thing worth knowing:
    how images are read, which files are skipped. With `keep_broken` a file that cannot be decoded
    has no classes and an `error`.
    Raises `DataError`, `UsageError`.
    """
    classifier = load_classifier(given, device, model=model, changes=changes)
    reading = classifier._reading
    for line in classifier.notes:
        note(line)
    background = "ignored" if reading.background == "ignored" else f"on {reading.background}"
    note(
        f"images: EXIF orientation {reading.exif} (data.exif), "
        f"transparency {background} (data.background)"
    )
    files = _files(images, note)
    for line in describe_files(files, reading):
        note(line)
    predictions: list[Prediction] = []
    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as decoders,
        batch_bar(len(batches), progress=progress) as after_batch,
    ):
        for batch in batches:
            read = [*decoders.map(classifier._try_read if keep_broken else classifier.read, batch)]
            pixels = [each for each in read if isinstance(each, Tensor)]
            rows = iter(classifier(classifier.normalise(torch.stack(pixels))) if pixels else ())
            for path, each in zip(batch, read, strict=True):
                if isinstance(each, str):
                    predictions.append(classifier.unread(str(path), each))
                else:
                    predictions.append(classifier.prediction(str(path), next(rows), top))
            after_batch()
    return predictions


def _files(given: Sequence[Path], note: Callable[[str], None]) -> list[Path]:
    """The given files and the images in the given folders; raises `DataError` without any."""
    files: list[Path] = []
    passed = SkippedFiles(check_sizes=True)
    image_extensions()  # registers the formats of PIL's plugins
    for path in itertools.chain.from_iterable(map(_matches, given)):
        if path.is_dir():
            files += [path / name for name in list_images(path, passed)]
        elif is_hidden(path.name):
            passed.add(HIDDEN_FILES, str(path))
        elif not path.exists():
            raise _not_found(path)
        else:
            files.append(path)
    if not files:
        skipped = f" ({passed.summary()})" if passed.summary() else ""
        raise DataError(f"{given[0]}: no readable image{skipped}. Give another file or folder.")
    for line in passed.notes():
        note(line)
    return files


def _matches(path: Path) -> list[Path]:
    """The files that a pattern stands for, in order; a path without wildcards stands for itself."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    if not (matches := sorted(glob.glob(str(path), recursive=True))):
        raise DataError(f"{path}: no file matches. Give another pattern, file or folder.")
    return [Path(match) for match in matches]


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
    trained, asked = source.trained, source.recipe.data
    facts = FACTS.get(trained.data.name) if trained is not None else None
    if facts is None and trained is not None and trained.data.name == asked.name:
        facts = facts_of(asked.name, asked)  # of the user's code
    of_files = facts is not None and facts.size is None
    reading = Reading.of(source.recipe.data)
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


def _not_found(path: Path) -> DataError:
    return DataError(f"{path}: file not found. Give the path of an image.")


def _crop(image: Image.Image, recipe: Recipe) -> Tensor:
    """The centre crop that the network sees, (C, size, size) uint8."""
    evaluation = recipe.eval
    if facts_of(recipe.data.name, recipe.data).channels == 1:
        image = Image.fromarray(np.array(image.convert("L"))).convert("RGB")
    view = evaluation.sizes[0], evaluation.crops[0], evaluation.interpolation, evaluation.resize
    return centre_crop(image, *view)[: channels_of(recipe.data.name, recipe.data)]
