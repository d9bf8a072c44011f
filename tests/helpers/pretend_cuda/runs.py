"""Small runs of recipes on the pretend device: steps, an evaluation, a checkpoint, a resume."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from rescue_cli import recipe as recipes
from rescue_cli.engine import loop
from rescue_cli.engine.loop import Loop
from rescue_cli.engine.step import Step
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory
from rescue_cli.runs import worker
from rescue_cli.runs.directory import prepare
from rescue_cli.runs.environment import describe_environment
from rescue_cli.sections.data.datasets import CIFAR10
from rescue_cli.sections.model import dense_prediction
from tests.helpers import rectangles
from tests.helpers.pretend_cuda.device import PretendGpu
from tests.helpers.pretend_cuda.record import Counts

# Kernels and copies of each step of each recipe, written by `python -m tests.helpers.pretend_cuda`
TABLE = Path(__file__).with_name("steps.json")
TRAIN, TEST = 2, 1  # images of each class

# 20 images in batches of 10: two steps in each of two epochs, and a checkpoint between them
LENGTH = (
    "train.batch_size=10", "train.epochs=2", "train.snapshots=[2]", "train.checkpoint_epochs=9",
)  # fmt: skip
WHOLE = (*LENGTH, "train.device_batch_size=10")
PARTS = (*LENGTH, "train.device_batch_size=5")
CIFAR = ("data.name=cifar10", "data.root={pixels}", "eval.batch_size=5")
AIRBENCH = (*WHOLE, *CIFAR, "model.widths=[4,8,8]", "model.whitening_images=20")
# three views of an image, and two micro-batches to a step
STREAMED = (
    "data.name=folder", "data.root={photos}", "data.train_size=32", "eval.sizes=[32]",
    "eval.batch_size=5", *PARTS,
)  # fmt: skip
ANNOTATED = (
    "model.backbone=test_resnet", "eval.sizes=[48]", "train.batch_size=4",
    "train.device_batch_size=2", "train.epochs=1", "train.snapshots=[1]",
    "train.checkpoint_epochs=9",
)  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "airbench94": AIRBENCH,
    "airbench94-muon": AIRBENCH,
    "hiverge94": AIRBENCH,
    "hlb": (*AIRBENCH, "mix.from_epoch=1"),
    "rescue94": AIRBENCH,
    "myrtle-ghost-norm": (*WHOLE, *CIFAR, "model.width=4", "model.ghost=5"),
    "1cycle-resnet56": (*PARTS, *CIFAR, "model.depth=20", "schedule.stepsize_epochs=1"),
    "a2": (*STREAMED, "model.name=test_resnet"),
    "deit": (*STREAMED, "model={{name: test_vit, img_size: 32, drop_path: 0.1}}"),
    "bot-distill": (*STREAMED, "model.name=test_resnet", "teacher.weights={weights}"),
    "transfer-linear": (
        *STREAMED, "train.batch_size=10", "train.device_batch_size=10",
        "model={{name: test_resnet, weights: '{weights}', frozen: true}}",
    ),
    "detection-voc": (
        *ANNOTATED, "data.name=voc-folder", "data.root={voc}", "model.min_size=48",
        "model.max_size=64", "model.strides=[8,16]", "model.anchors=[16,32,48]",
        "model.proposals=8", "schedule.milestones=[2]",
    ),
    "segmentation-ade20k": (
        *ANNOTATED, "data.name=mask-folder", "data.root={masks}",
        "augment=[{{name: scale-crop, short_side: 48, scale: [0.5, 2.0], size: 48}}, "
        "{{name: flip, p: 0.5}}]",
    ),
}  # fmt: skip


def make_data(root: Path) -> dict[str, Path]:
    """Draws what the recipes train on; the folders and files by their names in `RUNS`."""
    paths = {name: root / name for name in ("pixels", "photos", "voc", "masks", "weights")}
    _draw_classes(paths["pixels"], "png", (32, 32))
    _draw_classes(paths["photos"], "jpg", (40, 56))
    rectangles.voc(paths["voc"], train=8, test=4)
    rectangles.masks(paths["masks"], train=8, test=4)
    paths["weights"] = paths["weights"].with_suffix(".safetensors")
    torch.manual_seed(1)
    network = timm.create_model("test_resnet", num_classes=len(CIFAR10))
    save_file(network.state_dict(), paths["weights"], metadata={"architecture": "test_resnet"})
    return paths


def _draw_classes(root: Path, kind: str, size: tuple[int, int]) -> None:
    """A folder of class folders; images of a class are alike in their brightness."""
    draws = np.random.Generator(np.random.Philox(5))
    for split, count in (("train", TRAIN), ("test", TEST)):
        for label, name in enumerate(CIFAR10):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(20 * label, 20 * label + 70, (*size, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{kind}")


def recipe_of(name: str, data: dict[str, Path], *others: str) -> Recipe:
    """The recipe, shortened as `RUNS` says, on the drawn data."""
    return recipes.load(name, [*(word.format(**data) for word in RUNS[name]), *others])


@dataclass(frozen=True)
class Watched:
    """A finished run, what each of its steps did, and what the whole run did."""

    path: Path
    steps: Sequence[Counts]
    run: Counts


def train(gpu: PretendGpu, recipe: Recipe, path: Path, *, workers: int = 0) -> Watched:
    """Trains in this process on the pretend device, or goes on with the run at its checkpoint."""
    facts = describe_environment(
        verb="train", seed=recipe.train.seed, device="cuda", procs=1, workers=workers,
        cache=path.with_name("cache"),
    )  # fmt: skip
    prepare(path, recipe, {**facts, "threads": 1}, resume=True)
    # A detector's head has 14 million weights with 256 channels, which take seconds to save
    narrow = mock.patch.object(dense_prediction, "FPN_CHANNELS", 16)
    with narrow, gpu.counting() as run, counted_steps(gpu) as steps:
        worker.work(path, progress=False)
        gpu.finish_copies()
    return Watched(path, steps, run)


def train_from_middle(gpu: PretendGpu, recipe: Recipe, whole: Watched, path: Path) -> Watched:
    """Goes on from the snapshot in the middle of a finished run, in a copy of it."""
    shutil.copytree(whole.path, path)
    shutil.copy(RunDirectory(path).snapshot(len(whole.steps) // 2), RunDirectory(path).last)
    RunDirectory(path).result.unlink()
    return train(gpu, recipe, path)


@contextlib.contextmanager
def counted_steps(gpu: PretendGpu) -> Iterator[list[Counts]]:
    """What each step of a run does that is trained in the context, without its warm-up."""
    steps: list[Counts] = []
    call, warm_up = Step.__call__, Loop._warm_up

    def counted(step: Step, number: int) -> None:
        with gpu.counting() as counts:
            call(step, number)
        steps.append(counts)

    def uncounted(warmed: Loop) -> None:
        warm_up(warmed)
        steps.clear()

    with (
        mock.patch.object(Step, "__call__", counted),
        mock.patch.object(Loop, "_warm_up", uncounted),
        mock.patch.object(loop, "WARM_UP_STEPS", 1),  # of three, which take as long as the run
    ):
        yield steps
