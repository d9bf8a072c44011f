"""A process that times variants of a training step on request; `plain.py` starts it.

It reads one JSON object, then lines VARIANT<tab>STEPS, and answers each with seconds.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from rescue_cli import recipe as recipes
from rescue_cli.batch import Batch
from rescue_cli.bench.plain_layers import replace_layers
from rescue_cli.bench.plain_optim import LR, plain_optimizers
from rescue_cli.bench.timing import time_calls
from rescue_cli.build.backends import configure_backends
from rescue_cli.build.feeds import Machine, load_dataset
from rescue_cli.build.networks import build_network
from rescue_cli.build.optimizers import shared_max_norm
from rescue_cli.build.step import build_step
from rescue_cli.engine.optimizers import Optimizers
from rescue_cli.engine.step import Step
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch
from rescue_cli.sections.data import Dataset, Images

RunStep = Callable[[], None]


def main() -> None:
    """Answers requests until stdin ends."""
    request = json.loads(sys.stdin.readline())
    recipe = recipes.from_text(request["recipe"], "bench step")
    device = torch.device(request["device"])
    configure_backends(recipe)
    with TemporaryDirectory() as cache:
        machine = Machine(device, 0, Path(cache))
        try:
            data = _in_memory(recipe, machine)
            steps = {name: VARIANTS[name](recipe, data, machine) for name in request["variants"]}
        except RescueError as error:
            print(json.dumps({"message": str(error), "exit_code": error.exit_code}), flush=True)
            return
        print(json.dumps({}), flush=True)
        for line in sys.stdin:
            name, count = line.split("\t")
            print(time_calls(steps[name], int(count), device), flush=True)


def engine(recipe: Recipe, data: Dataset, machine: Machine, *, compile: bool) -> RunStep:
    """Our training step, including augmentation."""
    chosen = recipe.with_overrides(f"train.compile={str(compile).lower()}")
    network = build_network(chosen, len(data.classes), machine.device)
    step = build_step(chosen, network, data, machine, _print_note)
    step.feed.start(0)
    return _repeat_epoch(step, steps_per_epoch(chosen.train, len(data.train)))


def _in_memory(recipe: Recipe, machine: Machine) -> Dataset:
    """The recipe's data set; raises `UsageError` if its images are not in memory."""
    data = load_dataset(recipe, machine.cache)
    if not isinstance(data.train, Images):
        raise UsageError("bench step: needs data in memory. Set data.resident=true.")
    return data


def _repeat_epoch(step: Step, per_epoch: int) -> RunStep:
    """Each call is the next step of the first epoch; after its last comes its first again."""
    numbers = itertools.cycle(range(per_epoch))
    return lambda: step(next(numbers))


def plain(
    recipe: Recipe,
    data: Dataset,
    machine: Machine,
    *,
    channels_last: bool,
    plain_layers: bool,
    plain_update: bool,
) -> RunStep:
    """A plain PyTorch loop on ready float32 batches in NCHW.

    The network is the recipe's; `plain_layers` replaces its own layers by torch's modules.
    """
    eager = recipe.with_overrides(
        "train.compile=false", f"train.channels_last={str(channels_last).lower()}"
    )
    network = build_network(eager, len(data.classes), machine.device)
    if plain_layers:
        replace_layers(network)
    # Only its batches, loss and averaging are used
    step = build_step(eager, network, data, machine, _print_note)
    step.feed.start(0)
    batches = [_ready(step, batch) for batch in step.feed.micro_batches(0)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    update = _plain_update(eager, network, step.optimizers.scaler)
    if not plain_update:
        update = _set_small_lr(step.optimizers)

    def run() -> None:
        for batch in batches:
            images = batch.images.contiguous(memory_format=layout)
            with step.autocast():
                loss = step.task.loss(network, replace(batch, images=images))
            scaled = loss * (step.loss_factor / len(batches))
            step.optimizers.scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]
        update()
        step.average.update(0)

    return run


def _set_small_lr(optimizers: Optimizers) -> RunStep:
    """The recipe's optimizers, at a learning rate at which a repeated batch does not diverge."""
    for rated in optimizers.rated:
        rated.group["lr"] = LR
    return optimizers.step


def _plain_update(recipe: Recipe, network: nn.Module, scaler: torch.amp.GradScaler) -> RunStep:
    optimizers = plain_optimizers(recipe, network)
    largest_norm = shared_max_norm(recipe.optim)

    def update() -> None:
        if largest_norm is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            clip_grad_norm_(network.parameters(), largest_norm)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()

    return update


def _ready(step: Step, batch: Batch) -> Batch:
    """The micro-batch as the network's input, but in NCHW."""
    batch = step.select(step.mix(step.augment(batch)))
    return replace(batch, images=batch.images.contiguous())


def _print_note(message: str) -> None:
    print(message, file=sys.stderr)


VARIANTS: dict[str, Callable[[Recipe, Dataset, Machine], RunStep]] = {
    "plain, NCHW": partial(plain, channels_last=False, plain_layers=True, plain_update=True),
    "plain": partial(plain, channels_last=True, plain_layers=True, plain_update=True),
    "our layers": partial(plain, channels_last=True, plain_layers=False, plain_update=True),
    "our optimizer": partial(plain, channels_last=True, plain_layers=False, plain_update=False),
    "engine": partial(engine, compile=False),
    "compiled": partial(engine, compile=True),
}

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # the command prints "interrupted"
        main()
