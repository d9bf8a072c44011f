"""The only place where the names of a recipe become the objects that the engine runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rescue_cli import distributed, registry
from rescue_cli.augment import AUGMENTATIONS, Augment, FileCrop, Operation
from rescue_cli.augment.pipeline import Normalise
from rescue_cli.averaging import AVERAGES
from rescue_cli.batch import View
from rescue_cli.data import DATASETS, FACTS, Dataset, Files, Images, Keys, load, normalisation
from rescue_cli.data.memory import MemoryEvalFeed, MemoryFeed
from rescue_cli.data.stream import Cropping, EvalViews, StreamEvalFeed, StreamFeed, TrainViews
from rescue_cli.engine.evaluate import EvalFeed, Evaluator
from rescue_cli.engine.norms import RunningStatistics
from rescue_cli.engine.step import Feed, Step
from rescue_cli.engine.updates import Optimizers, RatedGroup
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.evaluation import TTAS
from rescue_cli.loss import LOSSES, Loss
from rescue_cli.mix import MIXES
from rescue_cli.model import MODELS, load_weights, zoo
from rescue_cli.model import common as model_keys
from rescue_cli.optim import OPTIMIZERS, claims
from rescue_cli.optim import common as optim_keys
from rescue_cli.recipe import Item, Recipe, steps_per_epoch, total_steps
from rescue_cli.sampling import SAMPLERS, Steps
from rescue_cli.schedule import SCHEDULES, Schedule, Span
from rescue_cli.schedule import common as schedule_keys
from rescue_cli.task import TASKS

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
Autocast = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Machine:
    """What the launcher decided: where this process computes, and with how many loader workers."""

    device: torch.device
    workers: int
    cache: Path


def check(recipe: Recipe) -> None:
    """Every name, key, type and range of the recipe, and its parameter groups on the meta device.

    Raises `UsageError` before a device or a data set is touched.
    """
    check_ingredients(recipe)
    try:
        with torch.device("meta"):
            model = _model(recipe, FACTS[recipe.data.name].classes or 10)
    except RescueError:
        raise
    except Exception as error:  # what an architecture raises has no common base
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(f"model ({recipe.model.name}): cannot be built ({reason}).") from None
    claims(model, [item.options for item in recipe.optim])


def check_ingredients(recipe: Recipe) -> None:
    """As `check`, without building the model."""
    _checked("task", recipe.task, TASKS)
    registry.lookup("data.name", recipe.data.name, DATASETS)
    _check_data(recipe)
    _checked("sampling", recipe.sampling, SAMPLERS)
    operations = [_checked("augment", item, AUGMENTATIONS)() for item in recipe.augment]
    for place, operation in enumerate(operations):
        if isinstance(operation, FileCrop) and place:
            raise UsageError(f"augment: {recipe.augment[place].name} must come first in the list.")
    _checked("mix", recipe.mix, MIXES)
    _check_model(recipe.model)
    _checked("loss", recipe.loss, LOSSES)
    for item in recipe.optim:
        _checked("optim", item, OPTIMIZERS, optim_keys)
        _schedule(_own_schedule(item) or recipe.schedule, Span(1.0, 1, recipe.train.epochs))
    _checked("averaging", recipe.averaging, AVERAGES)
    registry.lookup("eval.tta", recipe.eval.tta, TTAS)


def model(recipe: Recipe, classes: int, device: torch.device) -> nn.Module:
    """The recipe's network on the device, in its dtype and memory format, its weights loaded."""
    torch.manual_seed(recipe.train.seed)
    network = _model(recipe, classes)
    if weights := recipe.model.options.get("weights"):
        load_weights(network, weights, recipe.model.name)
    return placed(recipe, network, device)


def placed(recipe: Recipe, network: nn.Module, device: torch.device) -> nn.Module:
    """The network where and how the recipe's precision and memory format want it."""
    dtype = torch.float64 if recipe.train.precision == "float64" else torch.float32
    network = network.to(device=device, dtype=dtype)
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def dataset(recipe: Recipe, cache: Path) -> Dataset:
    """The recipe's images, found and cut."""
    return load(recipe.data.name, _data_keys(recipe), cache)


def step(recipe: Recipe, network: nn.Module, data: Dataset, machine: Machine, log: Any) -> Step:
    """Everything that one update needs, for this process's share of the slices."""
    train = recipe.train
    per_epoch = steps_per_epoch(train, len(data.train))
    mine = range(distributed.rank(), train.slices, distributed.world_size())
    operations = _operations(recipe)
    span_steps = Steps(
        len(data.train), train.batch_size, train.device_batch_size, per_epoch, train.seed
    )
    sampler = _checked("sampling", recipe.sampling, SAMPLERS)(span_steps)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=train.precision == "float16")
    loss = _loss(recipe)
    forward = torch.compile(network, dynamic=False) if train.compile else network
    return Step(
        feed=_feed(recipe, data, sampler, mine, operations, machine, log, per_epoch),
        augment=Augment(
            [op for op in operations if isinstance(op, Operation)],
            normalise(recipe, machine.device),
            train.seed,
        ),
        mix=_checked("mix", recipe.mix, MIXES)(),
        task=TASKS[recipe.task.name](loss.mean),
        model=distributed.wrap(forward, machine.device),  # type: ignore[arg-type]
        optimizers=_optimizers(recipe, network, per_epoch, scaler),
        statistics=RunningStatistics(network, train.slices),
        average=_checked("averaging", recipe.averaging, AVERAGES)(network),
        autocast=autocast(recipe, machine.device),
        device=machine.device,
        seed=train.seed,
        local_slices=len(mine),
        loss_factor=loss.factor,
    )


def test_feeds(recipe: Recipe, data: Dataset, machine: Machine) -> dict[str, EvalFeed]:
    """The test sets that `eval.sets` names (the main one by default), with every size and crop."""
    wanted = recipe.eval.sets or [next(iter(data.tests))]
    views = [View(s, c) for s in recipe.eval.sizes for c in recipe.eval.crops]
    feeds: dict[str, EvalFeed] = {}
    for name in wanted:
        split = registry.lookup("eval.sets", name, data.tests)
        if isinstance(split, Images):
            feeds[name] = MemoryEvalFeed(
                split, views, recipe.eval.batch_size, recipe.eval.interpolation, machine.device
            )
        else:
            keys = _data_keys(recipe)
            decoding = EvalViews(split, views, recipe.eval.interpolation, keys.eval_decoder)
            feeds[name] = StreamEvalFeed(
                decoding, recipe.eval.batch_size, machine.workers, machine.device
            )
    return feeds


def evaluator(recipe: Recipe, machine: Machine) -> Evaluator:
    """The evaluation that training and `rescue eval` share."""
    return Evaluator(
        rows=TASKS[recipe.task.name](_loss(recipe).mean).rows,
        show=TTAS[recipe.eval.tta],
        normalise=normalise(recipe, machine.device),
        autocast=autocast(recipe, machine.device),
        device=machine.device,
    )


def autocast(recipe: Recipe, device: torch.device) -> Autocast:
    """Mixed precision as the recipe says; in float32 and float64 nothing is cast."""
    mixed = recipe.train.precision in ("float16", "bfloat16")
    dtype = DTYPES[recipe.train.precision] if mixed else torch.bfloat16
    return lambda: torch.autocast(device.type, dtype=dtype, enabled=mixed)


def protocol(recipe: Recipe, data_name: str, view: View, resident: bool) -> dict[str, Any]:
    """How a result was measured, from the recipe's keys."""
    return {
        "data": recipe.data.name,
        "set": data_name,
        "size": view.size,
        "crop": view.crop,
        "interpolation": recipe.eval.interpolation,
        "decoder": "resident" if resident else _data_keys(recipe).eval_decoder,
        "tta": recipe.eval.tta,
        "weights": "last epoch" if recipe.averaging.name == "none" else recipe.averaging.name,
        "precision": recipe.train.precision,
    }


def normalise(recipe: Recipe, device: torch.device) -> Normalise:
    """uint8 pixels to what the network sees."""
    mean, std = normalisation(recipe.data.name, _data_keys(recipe))
    dtype = torch.float64 if recipe.train.precision == "float64" else torch.float32
    return Normalise(mean, std, device, dtype, recipe.train.channels_last)


def outline(recipe: Recipe) -> dict[str, Any]:
    """What a run comes to, without data where the data set's size is known: for `--dry-run`."""
    train, images = recipe.train, _training_images(recipe)
    found: dict[str, Any] = {
        "training_images": images,
        "slices": f"{train.slices} of {train.device_batch_size} images",
    }
    if images is None and train.steps_per_epoch is None:
        return {**found, "steps": "unknown until data.root is there"}
    per_epoch = steps_per_epoch(train, images or 0)
    steps = total_steps(train, per_epoch)
    schedule, ratio = _rates(recipe, per_epoch)[0]
    rates = [schedule(step).lr * ratio for step in range(steps)]
    return {
        **found,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "learning_rate_at_start": rates[0],
        "learning_rate_at_peak": max(rates),
        "learning_rate_at_end": rates[-1],
    }


# --- one section each ---


def _checked(
    section: str, item: Item, ingredients: dict[str, Any], *others: Callable[..., Any]
) -> Callable[..., Any]:
    """The ingredient with the recipe's options filled in; what is missing are runtime objects."""
    function = registry.lookup(f"{section}.name", item.name, ingredients)
    options = registry.check(f"{section} ({item.name})", item.options, function, *others)
    mine = registry.pick(options, function)
    return lambda *runtime: function(*runtime, **mine)


def _data_keys(recipe: Recipe) -> Keys:
    return Keys(**registry.check(f"data ({recipe.data.name})", recipe.data.options, Keys))


def _check_data(recipe: Recipe) -> None:
    """The section's keys, and as many means and deviations as the images have channels."""
    keys, channels = _data_keys(recipe), FACTS[recipe.data.name].channels
    for key, values in (("mean", keys.mean), ("std", keys.std)):
        if values is not None and len(values) != channels:
            raise UsageError(f"data.{key}: {len(values)} values for {channels} channels.")
    if keys.std is not None and min(keys.std) <= 0:
        raise UsageError(f"data.std: {keys.std} must be above 0.")


def _loss(recipe: Recipe) -> Loss:
    loss: Loss = _checked("loss", recipe.loss, LOSSES)(recipe.train.batch_size)
    return loss


def _check_model(item: Item) -> None:
    registry.check(f"model ({item.name})", item.options, MODELS.get(item.name, zoo), model_keys)


def _model(recipe: Recipe, classes: int) -> nn.Module:
    item, channels = recipe.model, FACTS[recipe.data.name].channels
    function = MODELS.get(item.name, zoo)
    options = registry.check(f"model ({item.name})", item.options, function, model_keys)
    mine = registry.pick(options, function)
    if item.name in MODELS:
        return MODELS[item.name](classes, channels, **mine)
    return zoo(item.name, classes, channels, **mine)


def _operations(recipe: Recipe) -> list[FileCrop | Operation]:
    return [_checked("augment", item, AUGMENTATIONS)() for item in recipe.augment]


def _feed(
    recipe: Recipe,
    data: Dataset,
    sampler: Any,
    mine: range,
    operations: list[FileCrop | Operation],
    machine: Machine,
    log: Any,
    per_epoch: int,
) -> Feed:
    train, keys = recipe.train, _data_keys(recipe)
    crop = next((op for op in operations if isinstance(op, FileCrop)), None)
    if isinstance(data.train, Images):
        if crop is not None:
            raise UsageError(
                f"augment: {recipe.augment[0].name} needs files; {recipe.data.name} is in memory. "
                "Use pad-crop, or set data.resident=false where the data set is a folder."
            )
        return MemoryFeed(data.train, sampler, mine, machine.device)
    assert isinstance(data.train, Files)
    cropping = Cropping(
        box=crop.box if crop else None,
        columns=crop.columns if crop else 0,
        size=keys.train_size or 224,
        interpolation=keys.train_interpolation,
        decoder=keys.decoder,
    )
    return StreamFeed(
        TrainViews(data.train, cropping, train.device_batch_size, train.seed),
        sampler,
        mine,
        steps=total_steps(train, per_epoch),
        max_corrupt=keys.max_corrupt,
        workers=machine.workers,
        device=machine.device,
        log=log,
    )


def _schedule(item: Item, span: Span) -> Schedule:
    first = item.options.get("first_step", 0)
    rates: Schedule = _checked("schedule", item, SCHEDULES, schedule_keys)(span)
    return (lambda step: rates(step + first)) if first else rates


def _own_schedule(item: Item) -> Item | None:
    """The schedule that an optimizer item carries itself."""
    own = item.options.get("schedule")
    if own is None:
        return None
    if not isinstance(own, dict) or not isinstance(own.get("name"), str):
        raise UsageError(f"optim ({item.name}).schedule: must be a mapping with a name.")
    return Item(own["name"], {k: v for k, v in own.items() if k != "name"})


def _rates(recipe: Recipe, per_epoch: int) -> list[tuple[Schedule, float]]:
    """Each optimizer item's schedule and its ratio to it.

    The schedule's `lr` is the first item's; other items keep their ratio to that, unless they
    carry a schedule of their own.
    """
    lrs = [float(item.options["lr"]) for item in recipe.optim]
    found = []
    for item, lr in zip(recipe.optim, lrs, strict=True):
        own = _own_schedule(item)
        span = Span(lr if own else lrs[0], per_epoch, recipe.train.epochs)
        found.append((_schedule(own or recipe.schedule, span), 1.0 if own else lr / lrs[0]))
    return found


def _optimizers(
    recipe: Recipe, network: nn.Module, per_epoch: int, scaler: torch.amp.GradScaler
) -> Optimizers:
    """One optimizer for each name, a parameter group for each item and decay, rates for each."""
    parameters = dict(network.named_parameters())
    groups: dict[str, list[dict[str, Any]]] = {}
    makers: dict[str, Any] = {}
    rates: dict[str, list[tuple[Schedule, float]]] = {}
    found = claims(network, [item.options for item in recipe.optim])
    for item, claim, rate in zip(recipe.optim, found, _rates(recipe, per_epoch), strict=True):
        function = OPTIMIZERS[item.name]
        options = registry.check(f"optim ({item.name})", item.options, function, optim_keys)
        mine = registry.pick(options, function)
        makers.setdefault(item.name, partial(function, **mine))
        for names, decay in ((claim.decayed, mine["weight_decay"]), (claim.undecayed, 0.0)):
            if names:
                group = {**mine, "params": [parameters[n] for n in names], "weight_decay": decay}
                groups.setdefault(item.name, []).append(group)
                rates.setdefault(item.name, []).append(rate)
    optimizers = {name: make(groups[name]) for name, make in makers.items() if name in groups}
    rated = [
        RatedGroup(optimizers[name], index, schedule, ratio)
        for name in optimizers
        for index, (schedule, ratio) in enumerate(rates[name])
    ]
    return Optimizers(list(optimizers.values()), rated, recipe.train.clip_grad_norm, scaler)


def _training_images(recipe: Recipe) -> int | None:
    """How many images the run trains on, as far as is known without the data."""
    keys = _data_keys(recipe)
    known = FACTS[recipe.data.name].images
    if known is None:
        return None
    left = known - keys.holdout
    return min(left, keys.subset[0]) if keys.subset else left
