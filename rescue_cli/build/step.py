"""Everything that one update needs, made from the recipe."""

from typing import Any

import torch
from torch import nn

from rescue_cli import distributed
from rescue_cli.build.feeds import (
    Machine,
    augment_ahead,
    build_input_normalise,
    build_train_feed,
    initialise_from_images,
)
from rescue_cli.build.losses import build_loss
from rescue_cli.build.networks import autocast, build_network, build_teacher, proxy_recipe
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.engine.batch_norm import RunningStatistics
from rescue_cli.engine.step import Step
from rescue_cli.recipe import Recipe, steps_per_epoch, total_steps
from rescue_cli.sections.augment import Augment
from rescue_cli.sections.averaging import RunLength
from rescue_cli.sections.data import Dataset, Files
from rescue_cli.sections.loss import weighted_micro_batch_loss
from rescue_cli.sections.mix import MixContext
from rescue_cli.sections.sampling import SamplingContext
from rescue_cli.sections.selection import Learner


def build_step(
    recipe: Recipe, network: nn.Module, data: Dataset, machine: Machine, log: Any
) -> Step:
    """The engine's step, for this process's share of the micro-batches; `log` receives lines."""
    train, device, classes = recipe.train, machine.device, len(data.classes)
    per_epoch = steps_per_epoch(train, len(data.train))
    local = range(distributed.rank(), train.micro_batches, distributed.world_size())
    sampler = recipe.sampling(
        SamplingContext(
            len(data.train),
            train.batch_size,
            train.device_batch_size,
            per_epoch,
            train.seed,
            data.train.labels,
            data.train.names.storage() if isinstance(data.train, Files) else None,
        )
    )
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
    select = recipe.selection(
        lambda changes, share: _build_learner(proxy_recipe(recipe, changes), share, data, machine)
    )
    # A summed loss sums over the images that selection keeps, so it has to know their share
    loss = build_loss(recipe, select.share, data)
    criterion = weighted_micro_batch_loss(loss, data.train.labels, sampler, train.micro_batches)
    teach = recipe.teacher(
        lambda weights: build_teacher(recipe, weights, data.classes, device, log)
    )
    # Before the average, which begins as a copy of the network
    initialise_from_images(recipe, network, data, device)
    operations = [item() for item in recipe.augment]
    normalise = build_input_normalise(recipe, data, device)
    augment = Augment(operations, normalise, train.seed, per_epoch)
    feed = build_train_feed(recipe, data, sampler, local, operations, machine, log, per_epoch)
    # The optimizers keep the network itself: compiling and DDP share its parameters. Within DDP
    # torch cuts what it compiles where a bucket of gradients is full, so that processes exchange
    # one bucket while the gradients of the next are computed.
    mode = train.compile_mode
    forward = torch.compile(network, dynamic=False, mode=mode) if mode else network
    return Step(
        feed=feed,
        augment=augment_ahead(feed, augment, device, per_epoch),
        select=select,
        mix=recipe.mix(MixContext(classes, train.seed, per_epoch)),
        task=recipe.task(teach(criterion), classes),
        model=distributed.wrap_ddp(forward, device),  # type: ignore[arg-type]
        optimizers=build_optimizers(recipe, network, per_epoch, scaler),
        statistics=RunningStatistics(network, train.micro_batches),
        average=recipe.averaging(network, RunLength(total_steps(train, per_epoch), per_epoch)),
        autocast=autocast(train.precision, device),
        device=device,
        seed=train.seed,
        local_micro_batches=len(local),
        loss_factor=loss.factor,
    )


def _build_learner(recipe: Recipe, share: float, data: Dataset, machine: Machine) -> Learner:
    """A network that follows the recipe beside the trained one, on a share of the images."""
    train, device = recipe.train, machine.device
    network = build_network(recipe, len(data.classes), device)
    initialise_from_images(recipe, network, data, device)
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
    loss = build_loss(recipe, share)
    assert loss.each is not None, "a proxy selects images by their label"
    return Learner(
        network=network.train(),
        updates=build_optimizers(recipe, network, steps_per_epoch(train, len(data.train)), scaler),
        each=loss.each,
        autocast=autocast(train.precision, device),
        factor=loss.factor,
    )
