"""Repeated augmentation against timm's sampler, index by index."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rescue_cli.data import Images
from rescue_cli.data.memory import MemoryFeed
from rescue_cli.draws import permute
from rescue_cli.sampling import Steps, repeated

SAMPLES, SLICES, SLICE = 5000, 4, 64
BATCH = SLICES * SLICE
STEPS = Steps(SAMPLES, BATCH, SLICE, SAMPLES // BATCH, 3)


def theirs(epoch: int) -> list[list[int]]:
    """What timm's sampler gives each of four ranks."""
    from timm.data.distributed_sampler import RepeatAugSampler

    ranks = []
    for rank in range(SLICES):
        sampler: Any = RepeatAugSampler(  # type: ignore[no-untyped-call]
            range(SAMPLES), num_replicas=SLICES, rank=rank, num_repeats=3
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
    for slice_, wanted in enumerate(theirs(epoch)):
        steps = range(epoch * STEPS.per_epoch, (epoch + 1) * STEPS.per_epoch)
        found = np.concatenate([order[place[ours(step, slice_)]] for step in steps])
        assert found.tolist() == wanted[: len(found)]
        assert len(found) == STEPS.per_epoch * SLICE


def step_of(placement: str, step: int) -> list[NDArray[np.int64]]:
    sampler = repeated(STEPS, views=3, placement=placement)  # type: ignore[arg-type]
    return [sampler(step, slice_) for slice_ in range(SLICES)]


def test_spread_copies_lie_in_different_slices_and_together_in_one() -> None:
    spread, together = step_of("spread", 2), step_of("together", 2)
    assert all(len(set(s.tolist())) == SLICE for s in spread)
    assert all(len(set(s.tolist())) <= SLICE // 3 + 2 for s in together)
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
def test_the_images_of_a_slice_do_not_depend_on_how_many_processes_there_are(
    placement: str, processes: int
) -> None:
    """What the feeds of all processes give together is what one sampler says of each slice."""
    marks = np.arange(SAMPLES, dtype=np.int64)
    images = Images(np.zeros((SAMPLES, 1, 1, 1), np.uint8), marks)
    sampler = repeated(STEPS, views=3, placement=placement)  # type: ignore[arg-type]
    given: dict[int, list[int]] = {}
    for rank in range(processes):
        mine = range(rank, SLICES, processes)
        feed = MemoryFeed(
            images, sampler, mine, max_corrupt=0, device=torch.device("cpu"), log=print
        )
        given |= {batch.slice: batch.targets.tolist() for batch in feed.slices(7)}
    expected = step_of(placement, 7)
    assert [given[slice_] for slice_ in range(SLICES)] == [part.tolist() for part in expected]


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
