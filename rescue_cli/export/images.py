"""The test images of a run, for the process that exports and for the one that runs the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rescue_cli.batch import View
from rescue_cli.build import identity
from rescue_cli.build.feeds import Machine, build_test_feed, load_dataset
from rescue_cli.build.networks import match_labels, weights_classes
from rescue_cli.engine.evaluate import EvalFeed
from rescue_cli.errors import UsageError
from rescue_cli.export.preprocessing import Pixels
from rescue_cli.recipe import Recipe
from rescue_cli.rng import Indices
from rescue_cli.sections.data import Images, Split
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.samples import read_file
from rescue_cli.sections.task.segmentation import resized

AT_ONCE = 32  # images whose features stay in a processor's caches


@dataclass(frozen=True)
class TestSet:
    """The main test set, or a part of it, at the size and crop that the recipe claims."""

    name: str
    classes: tuple[str, ...]
    recipe: Recipe
    split: Split
    feed: EvalFeed
    order: Indices  # of the set's images
    notes: tuple[str, ...]

    @property
    def rounds(self) -> int:
        """How many batches there are."""
        return self.feed.rounds(1, self.order)

    def batches(self) -> Iterator[tuple[Indices, Pixels, NDArray[Any]]]:
        """Batches as the run's evaluation has them: indices (n,), pixels (n, height, width, c),
        labels (n,). In segmentation each of one image, resized and rounded, and its mask.
        """
        view = View(self.recipe.eval.sizes[0], self.recipe.eval.crops[0])
        for batch in self.feed.batches(0, 1, self.order):
            images, targets = batch.views[view], batch.targets
            if self.recipe.is_annotated:
                ((image,), (targets,)) = images, targets
                images = resized(image.float(), view.size).round().to(torch.uint8)
            pixels = images.permute(0, 2, 3, 1).contiguous()
            yield batch.indices.numpy(), pixels.numpy(), np.asarray(targets)

    def decode(self, index: int) -> Image.Image:
        """An image of the set whole, read as the recipe reads files."""
        if isinstance(self.split, Images):
            planes = self.split.pixels[index]
            return Image.fromarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))
        keys = self.recipe.data
        image = read_file(self.split, index, keys.eval_decoder, Reading.of(keys))
        return image if isinstance(image, Image.Image) else Image.fromarray(image)


def load_test_images(recipe: Recipe, cache: Path, workers: int, subset: int | None) -> TestSet:
    """The images, or `subset` of them, evenly spaced; raises `DataError`, `UsageError`."""
    evaluation = recipe.eval
    recipe = recipe.with_overrides(
        f"eval.sizes=[{evaluation.sizes[0]}]",
        f"eval.crops=[{evaluation.crops[0]}]",
        f"eval.batch_size={1 if recipe.is_annotated else min(evaluation.batch_size, AT_ONCE)}",
    )
    known = weights_classes(recipe)
    data, note = match_labels(recipe, load_dataset(recipe, cache, test_only=True, classes=known))
    notes = [*data.notes, *identity.compare_test_sets(recipe, data), *([note] if note else [])]
    main = next(iter(data.tests))
    asked = (recipe.eval.sets or [main])[0]
    name = asked if asked in data.tests else main  # or the main one's images by other labels
    split = data.tests[name]
    if subset is not None and subset > len(split):
        raise UsageError(f"--subset: {subset} of {len(split)} test images. Give a smaller number.")
    count = subset or len(split)
    return TestSet(
        name=name,
        classes=data.classes,
        recipe=recipe,
        split=split,
        feed=build_test_feed(recipe, split, Machine(torch.device("cpu"), workers, cache)),
        order=np.arange(count) * len(split) // count,
        notes=tuple(notes),
    )
