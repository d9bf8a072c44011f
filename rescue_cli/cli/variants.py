"""The recipes that a search trains: held out, short, as large as memory allows."""

import contextlib
from pathlib import Path

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe

HELD_OUT = 0.1  # of the training images


def shortened(recipe: Recipe, epochs: float) -> Recipe:
    """A run of so many epochs; what is counted in epochs follows."""
    from rescue_cli.build import expand

    return recipe.with_overrides(*expand.epochs_overrides(recipe, epochs, []))


def held_out(recipe: Recipe) -> int:
    """How many training images choose, and as many judge: as the user said, or a tenth.

    Raises `UsageError`.
    """
    from rescue_cli.build.outline import count_training_images
    from rescue_cli.sections.data import FACTS

    whole = count_training_images(recipe.with_overrides("data.holdout=0", "data.fold=0"))
    classes = FACTS[recipe.data.name].classes or 1
    given = recipe.data.holdout
    held = given or max(classes, round(HELD_OUT * whole / classes) * classes)
    folds = recipe.data.fold + 2
    if folds * held >= whole:
        raise UsageError(
            f"data.holdout: {held} images to choose by and as many to judge by leave none of the "
            f"{whole} training images. Give data.holdout=N with a smaller N, or more images."
        )
    return held


def measured(recipe: Recipe, held: int, fold: int) -> Recipe:
    """Evaluated on held-out images, by the first measurement that the recipe names."""
    return recipe.with_overrides(
        f"data.holdout={held}",
        f"data.fold={fold}",
        "eval.sets=null",
        f"eval.sizes=[{recipe.eval.sizes[0]}]",
        f"eval.crops=[{recipe.eval.crops[0]}]",
        f"eval.tta=[{recipe.eval.ttas[0]}]",
    )


def free_memory_mb(device: str) -> float:
    import os

    import torch

    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0]) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # the page cache gives way
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1]) / 2**10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
