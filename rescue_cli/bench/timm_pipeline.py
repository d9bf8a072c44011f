"""A recipe's input pipeline as options of timm's training script."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Item, Recipe
from rescue_cli.sections.data import normalisation

Options = dict[str, Any]
# timm always crops; this box is the whole image
NO_CROP: Options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def _rand_augment(o: Mapping[str, Any]) -> Options:
    numbers = f"m{o['magnitude']:g}-n{o['layers']}-p{o['p']:g}-mstd{o['std']:g}"
    return {"auto_augment": f"rand-{numbers}-inc{int(o['increasing'])}"}


OPTIONS: Mapping[str, Callable[[Mapping[str, Any]], Options]] = {
    "random-resized-crop": lambda o: {"scale": tuple(o["scale"]), "ratio": tuple(o["ratio"])},
    "pad-crop": lambda _: {},  # timm has none, and so saves this work
    "flip": lambda o: {"hflip": o["p"]},
    "rand-augment": _rand_augment,
    "auto-augment": lambda o: {"auto_augment": f"{o['policy']}-mstd{o['std']:g}"},
    "random-erasing": lambda o: {"re_prob": o["p"], "re_mode": o["mode"]},
    "colour-jitter": lambda o: {"color_jitter": (o["brightness"], o["contrast"], o["saturation"])},
}


def options(recipe: Recipe) -> Options:
    """`create_loader`'s options for the recipe's data and augmentation.

    Raises `UsageError` for an augmentation that timm's loader does not have.
    """
    keys = recipe.data
    mean, std = normalisation(recipe.data.name, keys)
    result: Options = {
        "hflip": 0.0,
        "color_jitter": None,
        "interpolation": keys.train_interpolation,
        "mean": tuple(mean),
        "std": tuple(std),
        **NO_CROP,
    }
    for item in recipe.augment:
        result |= _as_options(item)
    return result


def _as_options(item: Item) -> Options:
    if item.name not in OPTIONS:
        raise UsageError(
            f"augment ({item.name}): timm's loader has no such augmentation. "
            f"Leave it out of the comparison with ~augment.{item.name}."
        )
    return OPTIONS[item.name](item.arguments)


def loader(
    folder: Path, size: int, batch_size: int, times: int, given: Options, collate: Any = None
) -> Any:
    """timm's training loader with one worker over class folders, each file listed `times` times.

    As timm's script creates it, with the prefetcher, whose work the CPU does here. The worker ends
    with the epoch.
    """
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    dataset = create_dataset("", root=str(folder))
    dataset.reader.samples = list(dataset.reader.samples) * times
    return create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=batch_size,
        is_training=True,
        num_workers=1,
        persistent_workers=False,
        collate_fn=collate,
        device=torch.device("cpu"),
        **given,
    )
