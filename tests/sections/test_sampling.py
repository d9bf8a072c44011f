"""Repeated augmentation against timm's sampler; classes drawn equally often; order by shards."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rescue_cli.errors import UsageError
from rescue_cli.rng import permute, permute_each
from rescue_cli.sections.data import Images
from rescue_cli.sections.data.memory import MemoryFeed
from rescue_cli.sections.data.splits import Storage
from rescue_cli.sections.sampling import (
    DRAWN_AT_ONCE,
    SamplingContext,
    balanced,
    repeated,
    shard_shuffled,
    shuffled,
)

SAMPLES, MICRO_BATCHES, MICRO_BATCH = 5000, 4, 64
BATCH = MICRO_BATCHES * MICRO_BATCH
STEPS = SamplingContext(SAMPLES, BATCH, MICRO_BATCH, SAMPLES // BATCH, 3)


def theirs(epoch: int) -> list[list[int]]:
    """What timm's sampler gives each of four ranks."""
    from timm.data.distributed_sampler import RepeatAugSampler

    ranks = []
    for rank in range(MICRO_BATCHES):
        sampler: Any = RepeatAugSampler(  # type: ignore[no-untyped-call]
            range(SAMPLES), num_replicas=MICRO_BATCHES, rank=rank, num_repeats=3
        )
        sampler.set_epoch(epoch)
        ranks.append([int(i) for i in sampler])
    return ranks


@pytest.mark.parametrize("epoch", [0, 3])
def test_spread_is_timms_sampler_given_its_order(epoch: int) -> None:
    """Ours names places in our own order, which are then looked up in timm's."""
    generator = torch.Generator()
    generator.manual_seed(epoch)
    order = torch.randperm(SAMPLES, generator=generator).numpy()
    our_order = permute(np.arange(SAMPLES), SAMPLES, STEPS.seed, epoch)
    place = np.empty_like(our_order)
    place[our_order] = np.arange(SAMPLES)
    ours = repeated(STEPS, views=3, placement="spread")
    for micro_batch, wanted in enumerate(theirs(epoch)):
        steps = range(epoch * STEPS.per_epoch, (epoch + 1) * STEPS.per_epoch)
        found = np.concatenate([order[place[ours(step, micro_batch)]] for step in steps])
        assert found.tolist() == wanted[: len(found)]
        assert len(found) == STEPS.per_epoch * MICRO_BATCH


def step_of(placement: str, step: int) -> list[NDArray[np.int64]]:
    sampler = repeated(STEPS, views=3, placement=placement)  # type: ignore[arg-type]
    return [sampler(step, micro_batch) for micro_batch in range(MICRO_BATCHES)]


def test_spread_copies_lie_in_different_micro_batches_and_together_in_one() -> None:
    spread, together = step_of("spread", 2), step_of("together", 2)
    assert all(len(set(s.tolist())) == MICRO_BATCH for s in spread)
    assert all(len(set(s.tolist())) <= MICRO_BATCH // 3 + 2 for s in together)
    assert sorted(np.concatenate(spread)) == sorted(np.concatenate(together))


@pytest.mark.parametrize("placement", ["spread", "together"])
def test_an_epoch_is_as_long_as_before_and_sees_a_third_of_the_images(placement: str) -> None:
    seen = np.concatenate([np.concatenate(step_of(placement, s)) for s in range(STEPS.per_epoch)])
    assert len(seen) == STEPS.per_epoch * BATCH
    values, counts = np.unique(seen, return_counts=True)
    assert len(values) == -(-len(seen) // 3)
    assert (counts == 3).sum() >= len(values) - 1


@pytest.mark.parametrize("placement", ["spread", "together"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_images_of_a_micro_batch_do_not_depend_on_how_many_processes_there_are(
    placement: str, processes: int
) -> None:
    """The feeds of all processes together give what one sampler says of each micro-batch."""
    marks = np.arange(SAMPLES, dtype=np.int64)
    images = Images(np.zeros((SAMPLES, 1, 1, 1), np.uint8), marks)
    sampler = repeated(STEPS, views=3, placement=placement)  # type: ignore[arg-type]
    given: dict[int, list[int]] = {}
    for rank in range(processes):
        mine = range(rank, MICRO_BATCHES, processes)
        feed = MemoryFeed(
            images, sampler, mine, max_corrupt=0, device=torch.device("cpu"), log=print
        )
        given |= {batch.micro_batch: batch.targets.tolist() for batch in feed.micro_batches(7)}
    expected = step_of(placement, 7)
    assert [given[micro_batch] for micro_batch in range(MICRO_BATCHES)] == [
        part.tolist() for part in expected
    ]


@pytest.mark.parametrize("placement", [None, "spread", "together"])
def test_drawn_many_steps_at_once_a_micro_batch_is_what_the_permutation_says(
    placement: str | None,
) -> None:
    """In any order of calls, with more steps than are drawn at once, and round the end of a set."""
    many = SamplingContext(500, 8, 4, 5000, seed=2)
    assert many.per_epoch * many.micro_batch_size > DRAWN_AT_ONCE
    ours = shuffled(many) if placement is None else repeated(many, views=3, placement=placement)  # type: ignore[arg-type]
    for step in (0, 4999, 4095, 4096, 5000, 9999, 3, 4097):
        epoch, within = divmod(step, many.per_epoch)
        for micro_batch in (1, 0):
            of_step = np.arange(4) * 2 + micro_batch
            if placement != "spread":
                of_step = micro_batch * 4 + np.arange(4)
            entries = (within * 8 + of_step) // (1 if placement is None else 3)
            wanted = permute(entries % 500, 500, many.seed, epoch)
            assert ours(step, micro_batch).tolist() == wanted.tolist()
    ours(7, 0)[:] = -1  # a caller's own copy
    assert (ours(7, 0) >= 0).all()


def test_another_epoch_sees_other_images() -> None:
    first, second = (
        {
            int(i)
            for s in range(e, e + STEPS.per_epoch)
            for part in step_of("spread", s)
            for i in part
        }
        for e in (0, STEPS.per_epoch)
    )
    assert len(first & second) < 0.5 * len(first)


# --- balanced ---

THERE = [0, 2, 3, 5, 6]  # no image of classes 1 and 4
UNEVEN = np.random.default_rng(5).permutation(np.repeat(THERE, [150, 30, 12, 5, 3]))
EVEN_DRAWS = SamplingContext(200, 32, 8, 200 // 32, 3, UNEVEN)  # 192 draws, which 5 does not divide


def epoch_of(number: int) -> NDArray[np.int64]:
    sampler, per_epoch = balanced(EVEN_DRAWS), EVEN_DRAWS.per_epoch
    steps = range(number * per_epoch, (number + 1) * per_epoch)
    return np.concatenate([sampler(step, s) for step in steps for s in range(MICRO_BATCHES)])


def test_balanced_draws_each_class_as_often_in_an_epoch_as_long_as_before() -> None:
    drawn = np.concatenate([epoch_of(number) for number in range(5)])
    assert len(epoch_of(0)) == 192
    for end in range(1, 6):
        seen = np.bincount(UNEVEN[drawn[: end * len(epoch_of(0))]])[THERE]
        assert seen.max() - seen.min() <= 1


def test_balanced_goes_through_a_class_before_any_image_of_it_comes_again() -> None:
    drawn = np.concatenate([epoch_of(number) for number in range(7)])
    times = np.bincount(drawn, minlength=len(UNEVEN))
    for label in THERE:
        of_class = times[label == UNEVEN]
        assert of_class.max() - of_class.min() <= 1
        assert of_class.min() >= 1


def test_balanced_orders_differ_by_epoch_round_class_and_seed() -> None:
    first, second = epoch_of(0), epoch_of(1)
    assert not np.array_equal(first, second)
    other = balanced(replace(EVEN_DRAWS, seed=4))
    assert not np.array_equal(other(0, 0), balanced(EVEN_DRAWS)(0, 0))
    in_order = [[int(i) for i in first if UNEVEN[i] == label] for label in (2, 3)]
    assert all(order != sorted(order) for order in in_order)
    rounds = UNEVEN[first[:190]].reshape(38, 5)
    assert len({tuple(labels) for labels in rounds.tolist()}) > 30, "classes in random order"


def test_balanced_is_a_function_of_step_and_micro_batch_and_deals_to_processes_alike() -> None:
    sampler = balanced(EVEN_DRAWS)
    later = sampler(8, 1)
    sampler(3, 0)
    np.testing.assert_array_equal(sampler(8, 1), later)
    whole = balanced(replace(EVEN_DRAWS, micro_batch_size=32))(8, 0)
    np.testing.assert_array_equal(
        whole, np.concatenate([sampler(8, s) for s in range(MICRO_BATCHES)])
    )


def test_balanced_needs_no_index_where_images_are_listed_by_class() -> None:
    """As class folders are; the same places within the classes as in any other order."""
    by_class, listed = np.argsort(UNEVEN, kind="stable"), np.sort(UNEVEN)
    assert not np.array_equal(UNEVEN, listed)
    any_order, in_order = balanced(EVEN_DRAWS), balanced(replace(EVEN_DRAWS, labels=listed))
    for step in range(9):
        np.testing.assert_array_equal(any_order(step, 1), by_class[in_order(step, 1)])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_each_order_is_a_permutation_of_its_own(size: int) -> None:
    places, orders = np.tile(np.arange(size), 3), np.repeat([0, 1, 2**40], size)
    found = permute_each(places, np.full(3 * size, size), orders, 7).reshape(3, size)
    for order in found:
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
    if size >= 64:
        assert len({tuple(order.tolist()) for order in found}) == 3
    one = permute_each(places[:size], np.full(size, size), orders[size : 2 * size], 7)
    np.testing.assert_array_equal(one, found[1])


def test_every_order_of_three_comes_as_often() -> None:
    orders = np.repeat(np.arange(6000), 3)
    found = permute_each(np.tile(np.arange(3), 6000), np.full(18000, 3), orders, 1).reshape(-1, 3)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


# --- by shards ---

BUFFER = 96


def stored(sizes: Sequence[int]) -> SamplingContext:
    """Images in shards of these sizes, in another order than they are stored in."""
    order = np.random.default_rng(5).permutation(sum(sizes))
    storage = Storage(order, np.cumsum(sizes))
    return SamplingContext(sum(sizes), 64, 16, sum(sizes) // 64, 3, storage=storage)


def epoch_by_shards(
    context: SamplingContext, epoch: int, buffer: int = BUFFER
) -> NDArray[np.int64]:
    sampler = shard_shuffled(context, buffer=buffer)
    steps = range(epoch * context.per_epoch, (epoch + 1) * context.per_epoch)
    return np.concatenate([sampler(step, part) for step in steps for part in range(4)])


def test_by_shards_an_epoch_sees_each_image_once_and_few_shards_at_a_time() -> None:
    sizes = (100, 7, 250, 31, 180, 72)
    context = stored(sizes)
    assert context.storage is not None
    shard_of = np.empty(context.samples, dtype=np.int64)
    shard_of[context.storage.order] = np.repeat(np.arange(6), sizes)
    for epoch in range(3):
        drawn = epoch_by_shards(context, epoch)
        assert sorted(drawn) == list(range(640)), "640 of 640 images"
        for start in range(0, 640, BUFFER):
            block = drawn[start : start + BUFFER]
            in_order = list(dict.fromkeys(shard_of[epoch_by_shards(context, epoch, buffer=1)]))
            open_shards = {in_order.index(shard) for shard in shard_of[block]}
            assert len(open_shards) == max(open_shards) - min(open_shards) + 1, "neighbours"
            assert len(open_shards) <= 4
    assert sorted(in_order) == list(range(6)), "one shard after another"


def test_by_shards_orders_differ_by_epoch_and_a_buffer_is_shuffled() -> None:
    context = stored((320, 320))
    assert context.storage is not None
    rank = np.empty(640, dtype=np.int64)
    rank[context.storage.order] = np.arange(640)
    ranks = [rank[epoch_by_shards(context, epoch)] for epoch in range(40)]
    assert len({tuple(each) for each in ranks}) == 40
    first = [each[0] // 320 for each in ranks]
    assert 8 <= sum(first) <= 32, "either shard comes first"
    unshuffled = rank[epoch_by_shards(context, 0, buffer=1)]
    assert (np.diff(unshuffled) == 1).sum() >= 638, "as they are stored, shard after shard"
    blocks = np.concatenate(ranks).reshape(-1, 640)[:, :BUFFER]
    moved = [abs(int(np.argsort(np.argsort(b))[0])) for b in blocks]
    assert 25 < np.mean(moved) < 70, "the first of a block of 96 may be any of them"


def test_by_shards_a_micro_batch_is_a_function_of_its_number() -> None:
    context = stored((200, 56, 384))
    forwards, backwards = (shard_shuffled(context, buffer=BUFFER) for _ in range(2))
    places = [(step, part) for step in range(25) for part in range(4)]
    one = {place: forwards(*place).tolist() for place in places}
    other = {place: backwards(*place).tolist() for place in reversed(places)}
    assert one == other


def test_images_that_lie_in_no_shards_cannot_be_drawn_by_them() -> None:
    with pytest.raises(UsageError, match="shard-shuffled needs images in shards"):
        shard_shuffled(STEPS, buffer=100)
