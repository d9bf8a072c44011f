"""Classes and probabilities of single images, by the weights and the protocol of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rescue_cli import build
from rescue_cli.data import FACTS
from rescue_cli.data.decode import UNREADABLE, centre_crop, pil_image
from rescue_cli.errors import DataError, UsageError
from rescue_cli.evaluation import TTAS
from rescue_cli.model import weights
from rescue_cli.recipe import Recipe, from_text


@torch.inference_mode()
def predict_images(
    source: Path, images: Sequence[Path], top: int, device: str
) -> list[dict[str, Any]]:
    """For each image its `top` classes with probabilities; raises `DataError`, `UsageError`."""
    _, metadata = weights.read(source)
    if "recipe" not in metadata or "classes" not in metadata:
        raise UsageError(f"{source}: carries no recipe and class names. Give a run of this tool.")
    file = source / "model.safetensors" if source.is_dir() else source
    recipe = from_text(metadata["recipe"], str(source)).with_overrides(
        f"model.weights={file.resolve()}", "train.precision=float32"
    )
    classes = json.loads(metadata["classes"])
    model = build.model(recipe, len(classes), torch.device(device), whole=True).eval()
    normalise = build.normalise(recipe, torch.device(device))
    show = TTAS[recipe.eval.tta]
    found = []
    for path in images:
        pixels = _pixels(path, recipe).unsqueeze(0).to(device)
        probabilities = show(model, normalise(pixels)).double().softmax(1)[0]
        values, places = probabilities.topk(min(top, len(classes)))
        guesses = zip(places.tolist(), values.tolist(), strict=True)
        found.append(
            {
                "image": str(path),
                "classes": [{"class": classes[i], "probability": p} for i, p in guesses],
            }
        )
    return found


def _pixels(path: Path, recipe: Recipe) -> Tensor:
    try:
        image = pil_image(path.read_bytes())
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be decoded: {error}. Give an image file that can be read."
        ) from None
    evaluation = recipe.eval
    if FACTS[recipe.data.name].channels == 1:
        grey = Image.fromarray(np.array(image.convert("L"))).convert("RGB")
        return centre_crop(
            grey, evaluation.sizes[0], evaluation.crops[0], evaluation.interpolation
        )[:1]
    return centre_crop(image, evaluation.sizes[0], evaluation.crops[0], evaluation.interpolation)
