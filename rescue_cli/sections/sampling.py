"""Which training images a slice of a step holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rescue_cli.recipe.schema import PositiveInt
from rescue_cli.rng import Indices, permute, permute_each


@dataclass(frozen=True)
class Steps:
    """What a sampler needs to know of the run: all counts, all global."""

    samples: int
    batch_size: int
    slice_size: int
    per_epoch: int
    seed: int
    labels: Indices | None = None  # of the images, for a sampler that goes by class


Sampler = Callable[[int, int], Indices]


def shuffled(steps: Steps) -> Sampler:
    """(step, slice) -> `slice_size` indices: each epoch a new order, what is left over dropped.

    Where an epoch asks for more images than there are, the order wraps (`--smoke`).
    """

    def indices(step: int, slice_: int) -> Indices:
        epoch, within = divmod(step, steps.per_epoch)
        first = within * steps.batch_size + slice_ * steps.slice_size
        positions = np.arange(first, first + steps.slice_size, dtype=np.int64)
        return permute(positions % steps.samples, steps.samples, steps.seed, epoch)

    return indices


def repeated(
    steps: Steps, *, views: PositiveInt, placement: Literal["spread", "together"]
) -> Sampler:
    """As `shuffled`, each image `views` times in a row (repeated augmentation, Hoffer et al. 2020).

    An epoch stays as long as before and sees so many times fewer distinct images. `spread` deals
    the row to a step's slices in turn, as timm's sampler does to GPUs, so that copies lie in
    different slices; `together` cuts it into slices, so that they lie in one.
    """
    deal = _spread if placement == "spread" else _together

    def indices(step: int, slice_: int) -> Indices:
        epoch, within = divmod(step, steps.per_epoch)
        entries = within * steps.batch_size + deal(steps, slice_)
        return permute(entries // views % steps.samples, steps.samples, steps.seed, epoch)

    return indices


def balanced(steps: Steps) -> Sampler:
    """(step, slice) -> indices, each class drawn as often as any other, its images in turn.

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

    def indices(step: int, slice_: int) -> Indices:
        epoch, within = divmod(step, steps.per_epoch)
        first = within * steps.batch_size + slice_ * steps.slice_size
        positions = np.arange(first, first + steps.slice_size, dtype=np.int64)
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


def _spread(steps: Steps, slice_: int) -> Indices:
    """Which entries of a step's row the positions of a slice take: every n-th of n slices."""
    return np.arange(slice_, steps.batch_size, steps.batch_size // steps.slice_size)


def _together(steps: Steps, slice_: int) -> Indices:
    """Which entries of a step's row the positions of a slice take: one after another."""
    return slice_ * steps.slice_size + np.arange(steps.slice_size)


SAMPLERS = {"shuffled": shuffled, "repeated": repeated, "balanced": balanced}
