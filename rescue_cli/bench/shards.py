"""CPU time of reading images from a folder, from shards, and by WebDataset's own loader."""

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rescue_cli.bench.input import SHUFFLED, ours, workers_seconds
from rescue_cli.bench.timing import alternate, one_thread
from rescue_cli.build.feeds import train_size
from rescue_cli.recipe import Recipe
from rescue_cli.sections.data import Dataset, Files
from rescue_cli.sections.data.packed.write import Packing, read_splits, write_pack

SHARD_BYTES = 256_000_000


def compare_storage(
    recipe: Recipe, folder: Path, scratch: Path, *, max_side: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Views/s of one loader worker's core by where it reads from: `views_per_second` and `ratios`
    to the folder, medians over rounds.

    Packs the training images into `scratch` as tar and parquet, and once more as tar, resized to
    `max_side`. Each image is decoded for one view, by the recipe's crop and decoder. `webdataset`,
    where it is installed, reads the tar shards as its documentation shows: PIL, torchvision's
    random crop. Raises `UsageError` and `DataError`.
    """
    given = read_splits("folder", str(folder))
    train = Dataset(given.train, {}, given.classes)
    resized = f"tar, longer side at most {max_side}"
    packings = {
        "tar": Packing("tar", SHARD_BYTES),
        "parquet": Packing("parquet", SHARD_BYTES),
        resized: Packing("tar", SHARD_BYTES, max_side),
    }
    sources: dict[str, Dataset] = {"folder": train}
    for name, packing in packings.items():
        out = scratch / name
        write_pack(train, out, packing, lambda *_: None)
        sources[name] = read_splits("folder", str(out))
    workers: dict[str, Callable[[], float]] = {
        name: partial(_ours, recipe, data, steps) for name, data in sources.items()
    }
    if importlib.util.find_spec("webdataset") is not None:
        workers["webdataset"] = partial(_web_dataset, scratch / "tar", recipe)
    times: dict[str, list[float]] = {name: [] for name in workers}
    with one_thread():
        for name in alternate(workers, rounds):
            times[name].append(workers[name]())
    per_second = {name: 1e3 / median(each) for name, each in times.items()}
    return {
        "what": f"{recipe.name}'s crop at {train_size(recipe)} px, {len(given.train)} images",
        "views_per_second": per_second,
        "ratios": {name: value / per_second["folder"] for name, value in per_second.items()},
        "unit": "views/s a core",
    }


def _ours(recipe: Recipe, data: Dataset, steps: int) -> float:
    """CPU milliseconds per view of our loader's worker."""
    assert isinstance(data.train, Files)
    times = math.ceil(recipe.train.batch_size / len(data.train))  # no image twice in a step's order
    tiled = data.train.take(np.tile(np.arange(len(data.train)), times))
    return ours(recipe, tiled, data.classes, SHUFFLED, steps).worker


def _web_dataset(folder: Path, recipe: Recipe) -> float:
    """CPU milliseconds per view of the worker of WebDataset's loader, over one epoch."""
    import webdataset
    from torchvision.transforms import v2

    crop = next(item for item in recipe.augment if item.name == "random-resized-crop")
    keys, size = crop.arguments, train_size(recipe)
    mode = v2.InterpolationMode(recipe.data.train_interpolation)
    cut = v2.RandomResizedCrop(size, tuple(keys["scale"]), tuple(keys["ratio"]), mode)
    transform = v2.Compose([cut, v2.PILToTensor()])
    shards = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    images = (
        webdataset.WebDataset(
            shards, shardshuffle=len(shards), workersplitter=None, empty_check=False
        )
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg;png;jpeg;webp", "cls")
        .map_tuple(transform, lambda label: label)
    )
    batch = recipe.train.device_batch_size
    loader = webdataset.WebLoader(images, batch_size=batch, num_workers=1)
    before = workers_seconds()
    seen = sum(len(pixels) for pixels, _ in loader)
    return 1e3 * (workers_seconds() - before) / seen
