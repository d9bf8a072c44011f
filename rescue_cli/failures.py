"""What torch says when a run cannot go on, in the words of its recipe."""

import traceback

import torch

from rescue_cli.engine import evaluate, scenes
from rescue_cli.errors import MemoryExhausted, UsageError
from rescue_cli.recipe import Recipe

# How torch says of a layer that its input has no pixels left
TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")


def explained(error: BaseException, recipe: Recipe) -> BaseException:
    """Out of memory as an error that says which slice to try, and images that vanish in the net."""
    text = str(error)
    if any(sign in text for sign in TOO_SMALL):
        sizes = ", ".join(map(str, recipe.eval.sizes))
        return UsageError(
            f"eval.sizes: {sizes} (or data.train_size): nothing is left of images so small in "
            f"{recipe.model.name} ({text.splitlines()[0]}). Use larger ones."
        )
    exhausted = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not exhausted and "can't allocate memory" not in text and "out of memory" not in text:
        return error
    why = f"the memory of the device ({text.splitlines()[0][:120]})"
    if _evaluating(error):
        shown = recipe.eval.batch_size
        if recipe.of_scenes or shown == 1:
            sizes = ", ".join(map(str, recipe.eval.sizes))
            return MemoryExhausted(
                f"eval.sizes: {sizes}: a test image does not fit into {why}. Use a smaller size."
            )
        return MemoryExhausted(
            f"eval.batch_size: {shown} images, or as many as there are, do not fit into {why}. "
            "Set a smaller one."
        )
    train = recipe.train
    smaller = [d for d in range(1, train.device_batch_size) if train.batch_size % d == 0]
    fits = [d for d in smaller if d <= train.device_batch_size // 2] or smaller
    cure = "Use a smaller model or size."
    if fits:
        cure = f"Try train.device_batch_size={fits[-1]} (batch norm then sees smaller slices)."
    return MemoryExhausted(
        f"train.device_batch_size: {train.device_batch_size} images do not fit into {why}. {cure}"
    )


def _evaluating(error: BaseException) -> bool:
    """Whether it was raised while test images were seen."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename in (evaluate.__file__, scenes.__file__) for frame in frames)
