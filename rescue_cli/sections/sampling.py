"""Which training images a micro-batch of a step holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rescue_cli.recipe.schema import PositiveInt
from rescue_cli.rng import Indices, permute, permute_each


@dataclass(frozen=True)
class SamplingContext:
    """What a sampler needs to know of the run: all counts, all global."""

    samples: int
    batch_size: int
    micro_batch_size: int
    per_epoch: int
    seed: int
    labels: Indices | None = None  # of the images, for a sampler that goes by class


Sampler = Callable[[int, int], Indices]


def shuffled(steps: SamplingContext) -> Sampler:
    """(step, micro-batch) -> `micro_batch_size` indices: a new order each epoch, the remainder
    dropped.

    Where an epoch asks for more images than there are, the order wraps (`--smoke`).
    """

    def indices(step: int, micro_batch: int) -> Indices:
        epoch, within = divmod(step, steps.per_epoch)
        first = within * steps.batch_size + micro_batch * steps.micro_batch_size
        positions = np.arange(first, first + steps.micro_batch_size, dtype=np.int64)
        return permute(positions % steps.samples, steps.samples, steps.seed, epoch)

    return indices


def repeated(
    steps: SamplingContext, *, views: PositiveInt, placement: Literal["spread", "together"]
) -> Sampler:
    """As `shuffled`, each image `views` times in a row (repeated augmentation, Hoffer et al. 2020).

    An epoch stays as long as before and sees so many times fewer distinct images. `spread` deals
    the row to a step's micro-batches in turn, as timm's sampler does to GPUs, so that copies lie in
    different micro-batches; `together` cuts it into micro-batches, so that they lie in one.
    """
    deal = _spread_entries if placement == "spread" else _adjacent_entries

    def indices(step: int, micro_batch: int) -> Indices:
        epoch, within = divmod(step, steps.per_epoch)
        entries = within * steps.batch_size + deal(steps, micro_batch)
        return permute(entries // views % steps.samples, steps.samples, steps.seed, epoch)

    return indices


def balanced(steps: SamplingContext) -> Sampler:
    """(step, micro-batch) -> indices, each class drawn as often as any other, its images in turn.

    An epoch is as long as `shuffled`'s: so many draws as the training set has images, an equal
    part of them from each class, in random order. A class's images are gone through in a random
    order, and in a new one from then on: none comes again before all of its class have (where
    torch's WeightedRandomSampler draws with replacement). After each epoch classes differ by a draw
    at most, and so do the images of a class. Classes without an image are passed over.
    """
    assert steps.labels is not None, "a sampler by class needs the labels"
    by_class, counts = np.argsort(steps.labels, kind="stable"), np.bincount(steps.labels)
    there, starts = np.flatnonzero(counts), np.cumsum(counts) - counts
    draws = steps.per_epoch * steps.batch_size

    def indices(step: int, micro_batch: int) -> Indices:
        epoch, within = divmod(step, steps.per_epoch)
        first = within * steps.batch_size + micro_batch * steps.micro_batch_size
        positions = np.arange(first, first + steps.micro_batch_size, dtype=np.int64)
        # the draws of the whole run, dealt to the classes one after another
        number = epoch * draws + permute(positions, draws, steps.seed, epoch)
        turn, place = np.divmod(number, len(there))
        label = there[place]
        round_, place = np.divmod(turn, counts[label])
        order = round_ * len(counts) + label
        within_class = permute_each(place, counts[label], order, steps.seed)
        found: Indices = by_class[starts[label] + within_class]
        return found

    return indices


def _spread_entries(steps: SamplingContext, micro_batch: int) -> Indices:
    """Which entries of a step's row a micro-batch takes: every n-th of n micro-batches."""
    return np.arange(micro_batch, steps.batch_size, steps.batch_size // steps.micro_batch_size)


def _adjacent_entries(steps: SamplingContext, micro_batch: int) -> Indices:
    """Which entries of a step's row the positions of a micro-batch take: one after another."""
    return micro_batch * steps.micro_batch_size + np.arange(steps.micro_batch_size)


SAMPLERS = {"shuffled": shuffled, "repeated": repeated, "balanced": balanced}
