"""Images in memory that are augmented many steps at once, as on a GPU: the same images."""

import threading
from pathlib import Path

import pytest
import torch

from rescue_cli import recipe as recipes
from rescue_cli.batch import Batch
from rescue_cli.build import feeds
from rescue_cli.build.feeds import Machine, augment_ahead, steps_ahead
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.engine.step import Step
from rescue_cli.sections.augment import Augment
from rescue_cli.sections.data.memory import MemoryFeed
from tests.helpers.processes import random_dataset

CPU, NOT_CPU = torch.device("cpu"), torch.device("meta")  # the latter only asked for its type
PER_EPOCH, STEPS_AHEAD = 4, 3
STEP_BYTES = 16 * 3 * 32 * 32
SMALL = ["train.batch_size=16", "train.device_batch_size=8", "train.precision=float32"]
AIRBENCH = [*SMALL, "model.widths=[8,8,8]"]
LISTS = {
    "airbench94": AIRBENCH,
    "rescue94": [*AIRBENCH, "augment.progressive-resize.until=[1]"],
    "rand-augment": [
        *AIRBENCH,
        "augment=[{name: flip, p: 0.5}, {name: rand-augment, layers: 2, magnitude: 7, std: 0.5, "
        "p: 0.5, increasing: true, interpolation: random, fill: [124, 116, 104]}, "
        "{name: pca-lighting, std: 0.1}, {name: cutout, size: 8}, "
        "{name: random-erasing, p: 0.5, mode: rand, area: [0.02, 0.4], ratio: [0.3, 3.3]}]",
    ],
}


def step_of(name: str) -> Step:
    overrides = LISTS[name]
    recipe = recipes.load(name if name in recipes.names() else "airbench94", overrides)
    machine = Machine(CPU, 0, Path("unused"))
    network = build_network(recipe, 10, CPU)
    return build_step(recipe, network, random_dataset(3, 32, 64), machine, print)


def look_ahead(step: Step, monkeypatch: pytest.MonkeyPatch) -> MemoryFeed:
    """The step as if its device were not a CPU; its feed."""
    assert isinstance(step.feed, MemoryFeed)
    assert isinstance(step.augment, Augment)
    monkeypatch.setattr(feeds, "AHEAD_BYTES", STEPS_AHEAD * STEP_BYTES + 1)
    step.augment = augment_ahead(step.feed, step.augment, NOT_CPU, PER_EPOCH)
    assert step.feed.ahead is not None
    assert step.feed.ahead.steps == STEPS_AHEAD
    return step.feed


def micro_batches(step: Step, numbers: range) -> list[Batch]:
    return [step.augment(b) for number in numbers for b in step.feed.micro_batches(number)]


@pytest.mark.parametrize("name", LISTS)
def test_images_augmented_several_steps_at_once_are_those_of_one_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over three epochs, each of which ends within a group of steps."""
    alone, ahead = step_of(name), step_of(name)
    feed = look_ahead(ahead, monkeypatch)
    numbers = range(3 * PER_EPOCH)
    for one, other in zip(
        micro_batches(alone, numbers), micro_batches(ahead, numbers), strict=True
    ):
        assert (one.step, one.micro_batch) == (other.step, other.micro_batch)
        assert one.indices.tolist() == other.indices.tolist()
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.images, other.images)
        assert one.images.stride() == other.images.stride()
    # as after a resume, amid what were a group's steps
    resumed, plain = (micro_batches(step, range(5, 6))[1] for step in (ahead, alone))
    assert torch.equal(resumed.images, plain.images)
    feed.close()
    assert feed.thread is None


def test_the_next_steps_are_drawn_while_these_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn in the training thread but the first steps."""
    step = step_of("airbench94")
    feed = look_ahead(step, monkeypatch)
    sampler, drawn = feed.sampler, []

    def watched(number: int, micro_batch: int) -> object:
        drawn.append((number, threading.current_thread() is threading.main_thread()))
        return sampler(number, micro_batch)

    monkeypatch.setattr(feed, "sampler", watched)
    micro_batches(step, range(3 * PER_EPOCH))
    feed.close()
    here = {number for number, in_main in drawn if in_main}
    assert here == set(range(STEPS_AHEAD))
    assert len(drawn) == 2 * len({number for number, _ in drawn}), "each micro-batch once"


def test_a_start_forgets_what_was_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no image that a warm-up augmented is missing in the time of the training."""
    step = step_of("airbench94")
    feed = look_ahead(step, monkeypatch)
    assert feed.ahead is not None
    augmented: list[int] = []

    def counted(images: torch.Tensor, _plan: object) -> torch.Tensor:
        augmented.append(len(images))
        return images

    feed.ahead = feed.ahead._replace(apply=counted)
    feed.start(0)
    micro_batches(step, range(2))
    feed.start(0)
    micro_batches(step, range(2))
    feed.close()
    assert augmented == [STEPS_AHEAD * 16] * 2


def test_noise_of_the_devices_generator_is_drawn_for_each_micro_batch() -> None:
    """That generator is seeded before each, so no two of them may be augmented together."""
    erase = (
        "augment=[{name: random-erasing, p: 1.0, mode: %s, area: [0.1, 0.2], ratio: [1.0, 2.0]}]"
    )
    for mode, steps in (("const", 4), ("pixel", 1)):
        recipe = recipes.load("airbench94", [erase % mode])
        augment = Augment([item() for item in recipe.augment], None, 0, 48)  # type: ignore[arg-type]
        assert steps_ahead(augment, feeds.AHEAD_BYTES // 4, 48) == steps
    assert steps_ahead(augment, 1, 48) == 1


def test_a_cpu_augments_each_micro_batch_as_it_comes() -> None:
    step = step_of("airbench94")
    assert isinstance(step.feed, MemoryFeed)
    assert step.feed.ahead is None
    assert isinstance(step.augment, Augment)
