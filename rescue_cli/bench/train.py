"""End to end: our engine, a loop made of timm's parts, and a bare loop, in turn in one run."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.bench import timm_pipeline
from rescue_cli.bench.interleave import each_round
from rescue_cli.build.feeds import Machine, load_dataset
from rescue_cli.build.networks import autocast, build_network
from rescue_cli.build.step import build_step

# data_keys
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch
from rescue_cli.sections.data import Images, Place

WARM_UP = 3  # steps before the clock starts: timm's worker has its two batches ahead by then
# What `rescue bench train` times unless told otherwise: A2's ingredients on CIFAR-10
BASE = "a2"
OVERRIDES = (
    "data={name: cifar10}",
    "sampling={name: shuffled}",
    "augment=[{name: pad-crop, pad: 4, mode: zeros}, {name: flip, p: 0.5}, {name: rand-augment, "
    "layers: 2, magnitude: 7, std: 0.5, p: 0.5, increasing: true, interpolation: bicubic, "
    "fill: [125, 123, 114]}]",
    "model={name: resnet18}",
    "eval={sizes: [32], crops: [1.0], interpolation: bicubic}",
    "train.batch_size=256",
    "train.device_batch_size=256",
    "optim.lr=1.0e-3",
)

Timed = Callable[[int], float]  # so many steps -> seconds


def measured_recipe(name: str | None, overrides: Sequence[str]) -> Recipe:
    """The recipe that was asked for, else `BASE` as `OVERRIDES` make it, in the precision that
    this processor computes fastest.
    """
    if name is not None:
        return recipes.load(name, overrides)
    computed = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    precision = f"train.precision={'bfloat16' if computed else 'float32'}"
    return recipes.load(BASE, [*OVERRIDES, precision, *overrides])


def against_timm(recipe: Recipe, *, steps: int, rounds: int) -> dict[str, Any]:
    """Images/s of our engine (`ours`), of timm's parts (`theirs`) and of a `bare` loop on ready
    tensors with torch's fused SGD; the seconds an image that each of the two adds to the bare loop,
    and `ratio`, ours by theirs. Medians over rounds; who goes first alternates.

    Raises `UsageError` for data that are not class folders in memory, or an ingredient that timm's
    script has not.
    """
    given = timm_pipeline.options(recipe)
    folder = _train_folder(recipe)
    batch_size = recipe.train.batch_size
    if recipe.train.micro_batches != 1:
        raise UsageError("bench train: set train.device_batch_size to train.batch_size.")
    with TemporaryDirectory() as cache:
        machine = Machine(torch.device("cpu"), 1, Path(cache))
        data = load_dataset(recipe, machine.cache)
        if not isinstance(data.train, Images):
            raise UsageError("bench train: needs data in memory. Set data.resident=true.")
        classes, size = len(data.classes), data.train.pixels.shape[-1]
        model = build_network(recipe, classes, machine.device)
        engine = build_step(recipe, model, data, machine, print)
        per_epoch = steps_per_epoch(recipe.train, len(data.train))
        collate = _collate(recipe, classes)
        images, targets = _ready(engine)

        def make_loader() -> Any:
            return timm_pipeline.loader(folder, size, batch_size, 1, given, collate)

        ways: dict[str, Timed] = {
            "ours": _ours(engine, per_epoch),
            "theirs": _theirs(recipe, classes, make_loader),
            "bare": _bare(recipe, classes, images, targets),
        }
        with closing(engine.feed):
            seconds = _in_turn(ways, steps, rounds)
    return {
        "what": f"{recipe.model.name} at {size} px, batch {batch_size}, "
        f"{recipe.train.precision}: a loop of timm's parts with {given.get('auto_augment')}",
        **_figures(seconds, steps * batch_size),
        "unit": "images/s",
    }


def _figures(seconds: dict[str, list[float]], images: int) -> dict[str, float]:
    rates = {name: images / median(found) for name, found in seconds.items()}
    rounds = list(zip(seconds["ours"], seconds["theirs"], seconds["bare"], strict=True))
    ours, theirs = (median((r[way] - r[2]) / images for r in rounds) for way in (0, 1))
    return {
        "ours": rates["ours"],
        "theirs": rates["theirs"],
        "bare": rates["bare"],
        "ratio": ours / theirs,
        "ours_adds": ours,
        "theirs_adds": theirs,
        "speed_ratio": rates["ours"] / rates["theirs"],
    }


def _in_turn(ways: dict[str, Timed], steps: int, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in each_round(rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            seconds[name].append(ways[name](steps))
    return seconds


def _train_folder(recipe: Recipe) -> Path:
    """Where the training set's class folders are; raises `UsageError` where it has none."""
    place = Place(recipe.data.name, recipe.data)
    folder = place.train_root
    if not folder.is_dir():
        raise UsageError(
            f"bench train: timm's loader reads class folders, and {folder} is not there. "
            "Give --data DIR with folders train/ and test/."
        )
    return folder


def _ready(engine: Any) -> tuple[Tensor, Tensor]:
    """A batch as the network sees it."""
    engine.feed.start(0)
    batch = engine.mix(engine.augment(next(iter(engine.feed.micro_batches(0)))))
    return batch.images, batch.targets


def _ours(engine: Any, per_epoch: int) -> Timed:
    numbers = itertools.cycle(range(per_epoch))

    def run(steps: int) -> float:
        return _clock(lambda: engine(next(numbers)), steps)

    return run


def _bare(recipe: Recipe, classes: int, images: Tensor, targets: Tensor) -> Timed:
    model = build_network(recipe, classes, images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    cast = autocast(recipe.train.precision, images.device)

    def step() -> None:
        with cast():
            loss = functional.binary_cross_entropy_with_logits(model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return lambda steps: _clock(step, steps)


def _theirs(recipe: Recipe, classes: int, make_loader: Callable[[], Any]) -> Timed:
    """The inner loop of timm's train.py, without its meters and its logging."""
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    model: nn.Module = build_network(recipe, classes, torch.device("cpu"))
    item = recipe.optim[0]
    optimizer = create_optimizer_v2(model, item.name, lr=item.lr, weight_decay=item.weight_decay)
    loss_of = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)
    cast = autocast(recipe.train.precision, torch.device("cpu"))

    def run(steps: int) -> float:
        batches: Iterator[tuple[Tensor, Tensor]] = iter(make_loader())

        def step() -> None:
            images, targets = next(batches)
            with cast():
                loss = loss_of(model(images.contiguous(memory_format=torch.channels_last)), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return _clock(step, steps)

    return run


def _collate(recipe: Recipe, classes: int) -> Any:
    """timm's mixing, done by its worker as it puts the batch together."""
    from timm.data.mixup import FastCollateMixup

    collate: Any = FastCollateMixup
    if recipe.mix.name != "mixup-or-cutmix":
        raise UsageError(f"mix ({recipe.mix.name}): bench train compares mixup-or-cutmix only.")
    o = recipe.mix.arguments
    return collate(
        o["mixup"], o["cutmix"], switch_prob=o["switch"], label_smoothing=0.0, num_classes=classes
    )


def _clock(step: Callable[[], None], steps: int) -> float:
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - started
