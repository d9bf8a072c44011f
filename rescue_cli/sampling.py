"""Which training images a slice of a step holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rescue_cli.draws import Indices, permute
from rescue_cli.registry import PositiveInt


@dataclass(frozen=True)
class Steps:
    """What a sampler needs to know of the run: all counts, all global."""

    samples: int
    batch_size: int
    slice_size: int
    per_epoch: int
    seed: int


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


def _spread(steps: Steps, slice_: int) -> Indices:
    """Which entries of a step's row the positions of a slice take: every n-th of n slices."""
    return np.arange(slice_, steps.batch_size, steps.batch_size // steps.slice_size)


def _together(steps: Steps, slice_: int) -> Indices:
    """Which entries of a step's row the positions of a slice take: one after another."""
    return slice_ * steps.slice_size + np.arange(steps.slice_size)


SAMPLERS = {"shuffled": shuffled, "repeated": repeated}
