"""Which training images a slice of a step holds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rescue_cli.draws import Indices, permute


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


SAMPLERS = {"shuffled": shuffled}
