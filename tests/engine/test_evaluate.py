"""Every image of a test set is counted exactly once, whatever its task is."""

from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rescue_cli.batch import EvalBatch, View
from rescue_cli.engine.evaluate import EvalSet, Evaluator
from rescue_cli.recipe import DataKeys
from rescue_cli.rng import Indices
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.data import load
from rescue_cli.sections.data.stream_eval import EvalSamples, FileEvalFeed
from rescue_cli.sections.task import TASKS
from rescue_cli.sections.tta import TTAS
from tests.helpers import rectangles

CPU = torch.device("cpu")
VIEW = View(48, 1.0)
CLASSES = {"classification": 3, "detection": 2, "segmentation": 3}


class Blind(nn.Module):
    """Finds nothing, in the form that each task takes."""

    transform = SimpleNamespace(min_size=(48,))

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Any) -> Any:
        if self.task == "detection":
            nothing = torch.zeros(0)
            return [{"boxes": torch.zeros(0, 4), "labels": nothing, "scores": nothing}]
        if self.task == "segmentation":
            return torch.zeros(1, 3, 6, 8)
        return torch.zeros(len(images), 3)


class Faulty(FileEvalFeed):
    """Gives the batches that `change` makes of the right ones."""

    change = staticmethod(lambda batches: batches)

    def batches(
        self, rank: int, world_size: int, among: Indices | None = None
    ) -> Generator[EvalBatch, None, None]:
        yield from self.change(list(super().batches(rank, world_size, among)))


def feed_of(task: str, root: Path) -> Faulty:
    """Four test images, one per batch; those with boxes have no object in the last."""
    if task == "detection":
        folder = rectangles.voc(root / "voc", 2, 4)
        (folder / "Annotations" / "5.xml").write_text(rectangles.annotation([]))
        name = "voc-folder"
    elif task == "segmentation":
        folder, name = rectangles.masks(root / "masks", 2, 4), "mask-folder"
    else:
        folder, name = root / "classes", "folder"
        images = rectangles.masks(root / "masks", 4, 4)
        for split, source in (("train", "train"), ("val", "test")):
            for number, file in enumerate(sorted((images / source / "images").iterdir())):
                kind = folder / split / "abc"[number % 3]
                kind.mkdir(parents=True, exist_ok=True)
                file.rename(kind / file.name)
    (split_,) = load(name, DataKeys(root=str(folder)), root / "cache").tests.values()
    assert not hasattr(split_, "pixels")
    return Faulty(EvalSamples(split_, [VIEW], "bilinear", "pil"), 1, 0, CPU)


def evaluate(task: str, feed: FileEvalFeed) -> Any:
    def no_loss(*_: Any) -> Tensor:
        raise AssertionError("nothing is trained")

    evaluator = Evaluator(
        task=TASKS[task](no_loss, CLASSES[task]),
        ttas={"none": TTAS["none"]},
        while_training="none",
        normalise=Normalise([0.5] * 3, [0.5] * 3, CPU, torch.float32, False),
        autocast=nullcontext,
        device=CPU,
    )
    (results,) = evaluator(Blind(task), {"test": EvalSet(feed)}, lambda: None).values()
    return results


@pytest.mark.parametrize("task", list(TASKS))
def test_each_image_is_counted_once(task: str, tmp_path: Path) -> None:
    feed = feed_of(task, tmp_path)
    (result,) = evaluate(task, feed).values()
    assert result.count == 4


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize(
    "change",
    [lambda batches: batches[:-1], lambda batches: [*batches[:-1], batches[0]]],
    ids=["one is missing", "one is there twice"],
)
def test_an_image_that_is_not_counted_once_is_an_error(
    task: str, change: Any, tmp_path: Path
) -> None:
    feed = feed_of(task, tmp_path)
    feed.change = change
    with pytest.raises(AssertionError, match="every image exactly once"):
        evaluate(task, feed)
