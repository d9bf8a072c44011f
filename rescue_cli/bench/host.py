"""What the host does in a step beside the network and the optimizer, part by part.

On a GPU this is what a small network's step waits for: the host has to start a step's kernels in
less time than they take.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from rescue_cli.batch import Batch
from rescue_cli.bench.timing import one_thread, show_rounds
from rescue_cli.build.feeds import build_normalise, steps_ahead, train_size
from rescue_cli.build.networks import create_network
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.engine.batch_norm import RunningStatistics
from rescue_cli.engine.step import seed_device
from rescue_cli.recipe import Recipe, steps_per_epoch, total_steps
from rescue_cli.sections.augment import Augment
from rescue_cli.sections.averaging import RunLength
from rescue_cli.sections.data import channels_of, facts_of
from rescue_cli.sections.mix import MixContext
from rescue_cli.sections.sampling import DRAWN_AT_ONCE, SamplingContext

CPU = torch.device("cpu")
SAMPLES, CLASSES = 50_000, 1000  # of a folder, whose own are not counted
IN_THREAD = ("sampler", "draws")
SPAN = 64  # consecutive steps that are timed together
# Small enough that kernels take a few microseconds, and enough images for most of RandAugment's
# operations, each of which has kernels of its own
IMAGES, SIDE = 64, 16
FEW = 8  # images, where their number decides nothing


def host(recipe: Recipe, *, rounds: int) -> dict[str, Any]:
    """Microseconds of one processor core per step by part: the median over rounds.

    The code is what runs on a GPU, with the recipe's batch for all that is drawn, but on a CPU,
    with small images of noise and one number for each tensor that is averaged, so that hardly any
    time goes into the kernels themselves. Copies to the device, loss, network and optimizer are
    not in it. `beside` is what another thread does meanwhile, where several steps are augmented at
    once, and not in the total. No data set is read.
    """
    with one_thread():
        parts = _parts(recipe)
        times: dict[str, list[float]] = {name: [] for name in parts}
        for number in show_rounds(rounds + 1):
            for name, (run, steps) in parts.items():
                first = number * steps
                started = time.thread_time()
                run(range(first, first + steps))
                if number:  # the first round warms up
                    times[name].append(1e6 * (time.thread_time() - started) / steps)
    medians = {name: median(of_part) for name, of_part in times.items()}
    at_once = parts["augmentation"][1]
    beside = IN_THREAD if at_once > 1 else ()
    return {
        "what": f"host of {recipe.name}, batch {recipe.train.batch_size}",
        "unit": "microseconds/step",
        "steps_at_once": at_once,
        "total": sum(time for name, time in medians.items() if name not in beside),
        "parts": {name: time for name, time in medians.items() if name not in beside},
        "beside": {name: time for name, time in medians.items() if name in beside},
    }


Part = tuple[Callable[[range], None], int]  # runs these steps; how many it is to be given


def _parts(recipe: Recipe) -> dict[str, Part]:
    train, facts = recipe.train, facts_of(recipe.data.name, recipe.data)
    samples, classes = facts.images or SAMPLES, facts.classes or CLASSES
    per_epoch = steps_per_epoch(train, samples)
    labels = np.arange(samples) % classes
    local, size = range(train.micro_batches), train.device_batch_size
    sampler = recipe.sampling(
        SamplingContext(samples, train.batch_size, size, per_epoch, train.seed, labels)
    )
    network = create_network(recipe, classes)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = build_optimizers(recipe, network, per_epoch, scaler)
    statistics = RunningStatistics(network, train.micro_batches)
    run_length = RunLength(total_steps(train, per_epoch), per_epoch)
    average = recipe.averaging(_one_number_each(network), run_length)
    mix = recipe.mix(MixContext(classes, train.seed, per_epoch))

    operations = [item() for item in recipe.augment]
    augment = Augment(operations, build_normalise(recipe, CPU), train.seed, per_epoch)
    channels, side = channels_of(recipe.data.name, recipe.data), train_size(recipe)
    resident = facts.size is not None or recipe.data.resident
    of_step = train.batch_size * channels * side**2
    at_once = steps_ahead(augment, of_step, per_epoch) if resident else 1
    count = min(size, IMAGES if at_once == 1 else FEW)
    shape = (count, channels, min(side, SIDE), min(side, SIDE))
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)

    drawn = [Batch(None, None, s, m, sampler(s, m)) for s in range(at_once) for m in local]
    planned = augment.plan([Batch(None, None, 0, 0, np.arange(count))])
    rows = torch.arange(count)
    # A mix may begin in a late epoch
    last = Batch(
        augment.normalise(pixels[:FEW]),
        torch.arange(min(count, FEW)) % classes,
        total_steps(train, per_epoch) - 1,
        0,
        np.arange(min(count, FEW)),
    )
    loss, loss_sum = torch.ones(()), torch.zeros((), dtype=torch.float64)

    def set_rates(steps: range) -> None:
        for step in steps:
            optimizers.set_rates(step)

    def sample(steps: range) -> None:
        for step in steps:
            for micro_batch in local:
                sampler(step, micro_batch)

    def plan(_: range) -> None:
        augment.plan(drawn) if at_once > 1 else [augment.plan([batch]) for batch in drawn]

    def augment_images(_steps: range) -> None:
        for _ in range(len(local) if at_once == 1 else 1):
            augment.apply(pixels[rows], planned)

    def mix_images(steps: range) -> None:
        for step in steps:
            for micro_batch in local:
                mix(replace(last, step=last.step - step % per_epoch, micro_batch=micro_batch))

    def seed(steps: range) -> None:
        for step in steps:
            for micro_batch in local:
                seed_device(CPU, train.seed, step, micro_batch)

    def move_statistics(steps: range) -> None:
        for _ in steps:
            for _ in local:
                with statistics.micro_batch():
                    pass
            statistics.settle()

    def sum_loss(steps: range) -> None:
        for _ in steps:
            for _ in local:
                loss_sum.add_(loss.detach() / len(local))

    def update_average(steps: range) -> None:
        for step in steps:
            average.update(step)

    return {
        "rates": (set_rates, SPAN),
        "sampler": (sample, max(SPAN, DRAWN_AT_ONCE // size)),
        "draws": (plan, at_once),
        "augmentation": (augment_images, at_once),
        "mix": (mix_images, SPAN),
        "seeding": (seed, SPAN),
        "statistics": (move_statistics, SPAN),
        "loss sum": (sum_loss, SPAN),
        "averaging": (update_average, SPAN),
    }


def _one_number_each(network: nn.Module) -> nn.Module:
    """A module with as many parameters and buffers as the network, of one number each."""
    small = nn.Module()
    for number, parameter in enumerate(network.parameters()):
        small.register_parameter(f"p{number}", nn.Parameter(torch.zeros(1, dtype=parameter.dtype)))
    for number, buffer in enumerate(network.buffers()):
        small.register_buffer(f"b{number}", torch.zeros(1, dtype=buffer.dtype))
    return small
