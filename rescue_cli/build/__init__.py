"""The only place where the names of a recipe become the objects that the engine runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rescue_cli import distributed
from rescue_cli.batch import Measurement
from rescue_cli.build.balance import said as balance
from rescue_cli.build.check import PACKAGED, check, check_ingredients
from rescue_cli.build.feeds import (
    Machine,
    are_counted,
    counted_images,
    dataset,
    listed,
    look,
    normalise,
    test_sets,
    train_feed,
    training_images,
)
from rescue_cli.build.ingredients import (
    Autocast,
    data_keys,
    dtype_of,
    filled,
    loss_of,
    operations_of,
    proxy_recipe,
)
from rescue_cli.build.linear_probe import Trainee, trainee_of
from rescue_cli.build.networks import by_name, head_kept, model, teacher, weights_classes
from rescue_cli.build.optimizers import optimizers, rates_of
from rescue_cli.build.weights import PREPROCESSING
from rescue_cli.engine.batch_norm import RunningStatistics
from rescue_cli.engine.evaluate import Evaluator
from rescue_cli.engine.step import Step
from rescue_cli.recipe import Recipe, steps_per_epoch, total_steps
from rescue_cli.sections.augment import Augment
from rescue_cli.sections.augment.pipeline import Normalise, Unchanged
from rescue_cli.sections.averaging import AVERAGES, RunLength
from rescue_cli.sections.data import Dataset, Features, normalisation
from rescue_cli.sections.loss import micro_batch_loss, weighted_micro_batch_loss
from rescue_cli.sections.mix import MIXES, MixContext
from rescue_cli.sections.sampling import SAMPLERS, SamplingContext
from rescue_cli.sections.selection import SELECTIONS, Learner
from rescue_cli.sections.task import TASKS
from rescue_cli.sections.teacher import TEACHERS
from rescue_cli.sections.tta import TTAS

__all__ = [
    "Autocast",
    "Machine",
    "Trainee",
    "autocast",
    "balance",
    "by_name",
    "check",
    "check_ingredients",
    "counted_images",
    "dataset",
    "epoch_length",
    "evaluator",
    "head_kept",
    "listed",
    "model",
    "normalise",
    "outline",
    "protocol",
    "step",
    "teacher",
    "test_sets",
    "trainee",
    "training_images",
    "weights_classes",
]
SHOWN_RATES = 100_000  # the peak of a longer schedule is looked for at as many of its steps
MIXED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def trainee(
    recipe: Recipe,
    data: Dataset,
    machine: Machine,
    note: Callable[[str], None] = lambda _: None,
) -> Trainee:
    """The recipe's network, or its head alone on features where it is frozen; see `features`.

    `note` is told how its weights were read.
    """
    network = model(recipe, len(data.classes), machine.device, note=note)
    return trainee_of(recipe, network, data, machine, autocast(recipe, machine.device))


def step(recipe: Recipe, network: nn.Module, data: Dataset, machine: Machine, log: Any) -> Step:
    """Everything that one update needs, for this process's share of the micro-batches."""
    train = recipe.train
    per_epoch = steps_per_epoch(train, len(data.train))
    mine = range(distributed.rank(), train.micro_batches, distributed.world_size())
    span_steps = SamplingContext(
        len(data.train),
        train.batch_size,
        train.device_batch_size,
        per_epoch,
        train.seed,
        data.train.labels,
    )
    sampler = filled("sampling", recipe.sampling, SAMPLERS)(span_steps)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=train.precision == "float16")
    select = filled("selection", recipe.selection, SELECTIONS)(
        lambda changes, share: _learner(proxy_recipe(recipe, changes), share, data, machine)
    )
    loss = loss_of(recipe, select.share, data)
    criterion = weighted_micro_batch_loss(loss, data.train.labels, sampler, train.micro_batches)
    teach = filled("teacher", recipe.teacher, TEACHERS)(
        lambda weights: teacher(recipe, weights, data.classes, machine.device, log)
    )
    look(recipe, network, data, machine.device)
    operations = operations_of(recipe)
    forward = torch.compile(network, dynamic=False) if train.compile else network
    return Step(
        feed=train_feed(recipe, data, sampler, mine, operations, machine, log, per_epoch),
        augment=Augment(operations, _floats(recipe, data, machine.device), train.seed, per_epoch),
        select=select,
        mix=filled("mix", recipe.mix, MIXES)(MixContext(len(data.classes), train.seed, per_epoch)),
        task=TASKS[recipe.task.name](teach(criterion), len(data.classes)),
        model=distributed.wrap_ddp(forward, machine.device),  # type: ignore[arg-type]
        optimizers=optimizers(recipe, network, per_epoch, scaler),
        statistics=RunningStatistics(network, train.micro_batches),
        average=filled("averaging", recipe.averaging, AVERAGES)(
            network, RunLength(total_steps(train, per_epoch), per_epoch)
        ),
        autocast=autocast(recipe, machine.device),
        device=machine.device,
        seed=train.seed,
        local_micro_batches=len(mine),
        loss_factor=loss.factor,
    )


def _learner(recipe: Recipe, share: float, data: Dataset, machine: Machine) -> Learner:
    """A network that follows the recipe beside the trained one, on a share of the images."""
    network = model(recipe, len(data.classes), machine.device)
    look(recipe, network, data, machine.device)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=recipe.train.precision == "float16")
    per_epoch = steps_per_epoch(recipe.train, len(data.train))
    loss = loss_of(recipe, share)
    assert loss.each is not None, "a proxy selects images by their label"
    return Learner(
        network=network.train(),
        updates=optimizers(recipe, network, per_epoch, scaler),
        each=loss.each,
        autocast=autocast(recipe, machine.device),
        factor=loss.factor,
    )


def _floats(recipe: Recipe, data: Dataset, device: torch.device) -> Normalise:
    """From what a feed gives to what the network sees: features come as floats already."""
    if isinstance(data.train, Features):
        return Unchanged(device, dtype_of(recipe))
    return normalise(recipe, device)


def evaluator(recipe: Recipe, data: Dataset, machine: Machine) -> Evaluator:
    """The evaluation that training and `rescue eval` share."""
    return Evaluator(
        task=TASKS[recipe.task.name](micro_batch_loss(loss_of(recipe)), len(data.classes)),
        ttas={name: TTAS[name] for name in recipe.eval.ttas},
        normalise=_floats(recipe, data, machine.device),
        autocast=autocast(recipe, machine.device),
        device=machine.device,
    )


def autocast(recipe: Recipe, device: torch.device) -> Autocast:
    """Mixed precision as the recipe says; in float32 and float64 nothing is cast."""
    dtype = MIXED.get(recipe.train.precision)
    return lambda: torch.autocast(
        device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    )


def protocol(
    recipe: Recipe, data_name: str, measurement: Measurement, resident: bool
) -> dict[str, Any]:
    """How a result was measured, from the recipe's keys."""
    keys = data_keys(recipe)
    mean, std = normalisation(recipe.data.name, keys)
    return {
        "data": recipe.data.name,
        "set": data_name,
        "size": measurement.size,
        "crop": measurement.crop,
        "interpolation": recipe.eval.interpolation,
        "decoder": "resident" if resident else keys.eval_decoder,
        "tta": measurement.tta,
        "weights": "last epoch" if recipe.averaging.name == "none" else recipe.averaging.name,
        "precision": recipe.train.precision,
        "mean": mean,
        "std": std,
        "preprocessing": dict.fromkeys(PREPROCESSING, "recipe"),
        **keys.reading.unusual,
        **({"resize": "squash"} if recipe.eval.resize == "squash" else {}),
    }


def epoch_length(recipe: Recipe) -> int:
    """The steps of an epoch, by the files where they are there."""
    given = recipe.train.steps_per_epoch is not None
    return steps_per_epoch(recipe.train, 0 if given else counted_images(recipe))


def _balance(recipe: Recipe) -> str:
    """How uneven classes are balanced, where there are files to count."""
    asked = recipe.loss.options.get("class_weights") or recipe.sampling.name == "balanced"
    counted = are_counted(recipe) or recipe.data.name == PACKAGED
    return "; ".join(balance(recipe, listed(recipe))) if asked and counted else ""


def outline(recipe: Recipe) -> dict[str, Any]:
    """What a run comes to, by the files, or without them where the set's size is known."""
    train, images = recipe.train, training_images(recipe)
    by = "the files" if are_counted(recipe) else "the data set's name"
    found: dict[str, Any] = {
        "training_images": images,
        **({} if images is None else {"images_known_by": by}),
        **({"balance": lines} if (lines := _balance(recipe)) else {}),
        "slices": f"{train.micro_batches} of {train.device_batch_size} images",
    }
    if images is None and train.steps_per_epoch is None:
        return {**found, "steps": "unknown until data.root is there"}
    per_epoch = steps_per_epoch(train, images or 0)
    steps = total_steps(train, per_epoch)
    schedule, ratio = rates_of(recipe, per_epoch)[0]
    shown = [*range(0, steps, max(1, steps // SHOWN_RATES)), steps - 1]
    rates = [schedule(step).lr * ratio for step in shown]
    return {
        **found,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "learning_rate_at_start": rates[0],
        "learning_rate_at_peak": max(rates),
        "learning_rate_at_end": rates[-1],
    }
