"""Which training images a micro-batch of a step holds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, Protocol

import numpy as np

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import PositiveInt
from rescue_cli.rng import Indices, permute, permute_each

DRAWN_AT_ONCE = 4_096  # indices of a micro-batch's steps: two blocks of each are kept


class Storage(Protocol):
    """Images in the order in which shards hold them, (samples,), and where each shard ends."""

    @property
    def order(self) -> Indices: ...
    @property
    def ends(self) -> Indices: ...


@dataclass(frozen=True)
class SamplingContext:
    """What a sampler depends on; all counts are over all processes."""

    samples: int
    batch_size: int
    micro_batch_size: int
    per_epoch: int
    seed: int
    labels: Indices | None = None  # (samples,), for a sampler that balances classes
    storage: Storage | None = None  # of images in shards


Sampler = Callable[[int, int], Indices]


def shuffled(context: SamplingContext) -> Sampler:
    """(step, micro-batch) -> indices (micro_batch_size,), reshuffled each epoch; drops the rest.

    Where an epoch needs more images than there are (`--smoke`), the order wraps around.
    """
    return _in_random_order(context, 1, _adjacent_entries)


def repeated(
    context: SamplingContext, *, views: PositiveInt, placement: Literal["spread", "together"]
) -> Sampler:
    """As `shuffled`, with each image `views` times (repeated augmentation, Hoffer et al. 2020).

    An epoch keeps its length and has `views` times fewer distinct images. `spread` distributes the
    copies over a step's micro-batches, as timm's sampler does over GPUs; `together` keeps the
    copies in one micro-batch.
    """
    deal = _spread_entries if placement == "spread" else _adjacent_entries
    return _in_random_order(context, views, deal)


def _in_random_order(
    context: SamplingContext, views: int, deal: Callable[[SamplingContext, int], Indices]
) -> Sampler:
    """A sampler of an epoch's random order with each image `views` times; `deal` gives the
    positions in a step's batch that a micro-batch takes.
    """
    # A call of numpy costs more than its work on one micro-batch, so many steps are drawn at once
    steps = max(1, DRAWN_AT_ONCE // context.micro_batch_size)

    @cache
    def drawn_of(micro_batch: int) -> Callable[[int, int], Indices]:
        within_step = deal(context, micro_batch)

        # Loader workers are a step or more ahead of the step that trains, perhaps in the next block
        @lru_cache(maxsize=2)
        def drawn(epoch: int, block: int) -> Indices:
            within = np.arange(block * steps, min((block + 1) * steps, context.per_epoch))
            positions = (within[:, None] * context.batch_size + within_step) // views
            return permute(positions % context.samples, context.samples, context.seed, epoch)

        return drawn

    def indices(step: int, micro_batch: int) -> Indices:
        epoch, within = divmod(step, context.per_epoch)
        block = drawn_of(micro_batch)(epoch, within // steps)
        chosen: Indices = block[within % steps].copy()
        return chosen

    return indices


def balanced(context: SamplingContext) -> Sampler:
    """(step, micro-batch) -> indices (micro_batch_size,), with all classes drawn equally often.

    An epoch has as many draws as `shuffled`'s, in random order. Each class's images are drawn
    without replacement in a random order, then in a new one (torch's WeightedRandomSampler draws
    with replacement). After each epoch the counts of classes differ by at most one, as do those of
    the images of a class. Classes without images are left out.
    """
    assert context.labels is not None, "a sampler by class needs the labels"
    labels, counts = context.labels, np.bincount(context.labels)
    # Class folders are listed by class: their images need no index, of 8 bytes each
    in_order = bool((labels[:-1] <= labels[1:]).all())
    by_class = None if in_order else np.argsort(labels, kind="stable")
    present, starts = np.flatnonzero(counts), np.cumsum(counts) - counts
    draws = context.per_epoch * context.batch_size

    def indices(step: int, micro_batch: int) -> Indices:
        epoch, within = divmod(step, context.per_epoch)
        first = within * context.batch_size + micro_batch * context.micro_batch_size
        positions = np.arange(first, first + context.micro_batch_size, dtype=np.int64)
        # Numbers the draws of the whole run; consecutive draws go to consecutive classes
        number = epoch * draws + permute(positions, draws, context.seed, epoch)
        turn, class_index = np.divmod(number, len(present))
        label = present[class_index]
        pass_, class_index = np.divmod(turn, counts[label])
        order = pass_ * len(counts) + label
        within_class = permute_each(class_index, counts[label], order, context.seed)
        places: Indices = starts[label] + within_class
        return places if by_class is None else by_class[places]

    return indices


def shard_shuffled(context: SamplingContext, *, buffer: PositiveInt) -> Sampler:
    """(step, micro-batch) -> indices (micro_batch_size,), shard by shard, for slow random reads.

    Each epoch has the shards in a new order, one after another as they are stored, and of this
    stream every `buffer` consecutive images in random order: so many are read from a few shards at
    a time. The order is less random than `shuffled`'s: images of one shard stay close to each
    other. Raises `UsageError` where images do not lie in shards.
    """
    if context.storage is None:
        raise UsageError(
            "sampling.name: shard-shuffled needs images in shards, which data.root does not have. "
            "Make some with rescue pack, or use shuffled."
        )
    order, ends = context.storage.order, context.storage.ends
    starts = np.concatenate([[0], ends[:-1]])
    blocks = -(-context.samples // buffer)

    @lru_cache(maxsize=2)
    def shards_of(epoch: int) -> tuple[Indices, Indices]:
        """The shards in the order of the epoch, and where they end in its stream."""
        shards = permute(np.arange(len(ends)), len(ends), context.seed, epoch)
        return shards, np.cumsum((ends - starts)[shards])

    def indices(step: int, micro_batch: int) -> Indices:
        epoch, within = divmod(step, context.per_epoch)
        first = within * context.batch_size + micro_batch * context.micro_batch_size
        drawn = (first + np.arange(context.micro_batch_size)) % context.samples
        block, place = np.divmod(drawn, buffer)
        sizes = np.minimum(buffer, context.samples - block * buffer)
        stream = block * buffer + permute_each(place, sizes, epoch * blocks + block, context.seed)
        shards, stream_ends = shards_of(epoch)
        number = np.searchsorted(stream_ends, stream, side="right")
        shard = shards[number]
        left = stream_ends[number] - stream  # from the image to the end of its shard
        chosen: Indices = order[ends[shard] - left]
        return chosen

    return indices


def _spread_entries(context: SamplingContext, micro_batch: int) -> Indices:
    """The positions in a step's batch that a micro-batch takes: every n-th of n micro-batches."""
    return np.arange(
        micro_batch, context.batch_size, context.batch_size // context.micro_batch_size
    )


def _adjacent_entries(context: SamplingContext, micro_batch: int) -> Indices:
    """The positions in a step's batch that a micro-batch takes: consecutive ones."""
    return micro_batch * context.micro_batch_size + np.arange(context.micro_batch_size)


SAMPLERS = {
    "shuffled": shuffled,
    "repeated": repeated,
    "balanced": balanced,
    "shard-shuffled": shard_shuffled,
}
