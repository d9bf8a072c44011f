"""Training speed of our engine, a loop of timm's parts and a bare loop, measured alternately."""

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
from rescue_cli.bench.timing import alternate
from rescue_cli.build.backends import computes_bfloat16, configure_backends
from rescue_cli.build.feeds import Machine, load_dataset
from rescue_cli.build.networks import autocast, build_network
from rescue_cli.build.step import build_step
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch
from rescue_cli.sections.data import Images, Location

WARM_UP = 3  # untimed steps, after which timm's worker has prefetched its two batches
# What `rescue bench train` times by default: A2's ingredients on CIFAR-10
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

TimedLoop = Callable[[int], float]  # number of steps -> seconds


def measured_recipe(name: str | None, overrides: Sequence[str]) -> Recipe:
    """The recipe `name`; without a name, `BASE` with `OVERRIDES`, in the precision that is fastest
    on this processor.
    """
    if name is not None:
        return recipes.load(name, overrides)
    precision = f"train.precision={'bfloat16' if computes_bfloat16() else 'float32'}"
    return recipes.load(BASE, [*OVERRIDES, precision, *overrides])


def against_timm(recipe: Recipe, *, steps: int, rounds: int) -> dict[str, Any]:
    """Images/s of our engine (`ours`), of timm's parts (`theirs`) and of a `bare` loop on ready
    tensors with torch's fused SGD; the seconds per image that each of the two adds to the bare
    loop, and `ratio`, ours divided by theirs. Medians over rounds, of `ours_adds` and `speed_ratio`
    also the lowest and the highest; the order alternates.

    Raises `UsageError` for data that are not class folders read into memory, or an ingredient that
    timm's script does not have.
    """
    given = timm_pipeline.options(recipe)
    folder = _train_folder(recipe)
    batch_size = recipe.train.batch_size
    if recipe.train.micro_batches != 1:
        raise UsageError("bench train: set train.device_batch_size to train.batch_size.")
    configure_backends(recipe)
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

        loops: dict[str, TimedLoop] = {
            "ours": _ours(engine, per_epoch),
            "theirs": _theirs(recipe, classes, make_loader),
            "bare": _bare(recipe, classes, images, targets),
        }
        with closing(engine.feed):
            seconds = _time_alternately(loops, steps, rounds)
    return {
        "what": f"{recipe.model.name} at {size} px, batch {batch_size}, "
        f"{recipe.train.precision}: a loop of timm's parts with {given.get('auto_augment')}",
        **_figures(seconds, steps * batch_size),
        "unit": "images/s",
    }


def _figures(seconds: dict[str, list[float]], images: int) -> dict[str, float]:
    rates = {name: images / median(times) for name, times in seconds.items()}
    rounds = list(zip(seconds["ours"], seconds["theirs"], seconds["bare"], strict=True))
    ours = sorted((own - bare) / images for own, _, bare in rounds)
    theirs = median((other - bare) / images for _, other, bare in rounds)
    speeds = sorted(other / own for own, other, _ in rounds)
    return {
        "ours": rates["ours"],
        "theirs": rates["theirs"],
        "bare": rates["bare"],
        "ratio": median(ours) / theirs,
        "ours_adds": median(ours),
        "ours_adds_low": ours[0],
        "ours_adds_high": ours[-1],
        "theirs_adds": theirs,
        "speed_ratio": median(speeds),
        "speed_ratio_low": speeds[0],
        "speed_ratio_high": speeds[-1],
    }


def _time_alternately(
    loops: dict[str, TimedLoop], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each loop, one entry per round."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for name in alternate(loops, rounds):
        seconds[name].append(loops[name](steps))
    return seconds


def _train_folder(recipe: Recipe) -> Path:
    """The folder of the training set's class folders; raises `UsageError` if it is missing."""
    place = Location(recipe.data.name, recipe.data)
    folder = place.train_root
    if not folder.is_dir():
        raise UsageError(
            f"bench train: timm's loader reads class folders, and {folder} does not exist. "
            "Give --data DIR with folders train/ and test/."
        )
    return folder


def _ready(engine: Any) -> tuple[Tensor, Tensor]:
    """A batch as the network's input."""
    engine.feed.start(0)
    batch = engine.mix(engine.augment(next(iter(engine.feed.micro_batches(0)))))
    return batch.images, batch.targets


def _ours(engine: Any, per_epoch: int) -> TimedLoop:
    numbers = itertools.cycle(range(per_epoch))

    def run(steps: int) -> float:
        return _time_steps(lambda: engine(next(numbers)), steps)

    return run


def _bare(recipe: Recipe, classes: int, images: Tensor, targets: Tensor) -> TimedLoop:
    model = build_network(recipe, classes, images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    cast = autocast(recipe.train.precision, images.device)

    def step() -> None:
        with cast():
            loss = functional.binary_cross_entropy_with_logits(model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return lambda steps: _time_steps(step, steps)


def _theirs(recipe: Recipe, classes: int, make_loader: Callable[[], Any]) -> TimedLoop:
    """The inner loop of timm's train.py, without meters and logging."""
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

        return _time_steps(step, steps)

    return run


def _collate(recipe: Recipe, classes: int) -> Any:
    """timm's mixing, which its worker does when it collates a batch."""
    from timm.data.mixup import FastCollateMixup

    collate: Any = FastCollateMixup
    if recipe.mix.name != "mixup-or-cutmix":
        raise UsageError(f"mix ({recipe.mix.name}): bench train compares mixup-or-cutmix only.")
    o = recipe.mix.arguments
    return collate(
        o["mixup"], o["cutmix"], switch_prob=o["switch"], label_smoothing=0.0, num_classes=classes
    )


def _time_steps(step: Callable[[], None], steps: int) -> float:
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - started
