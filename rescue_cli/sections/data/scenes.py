"""Images with their boxes or masks from files: training micro-batches and test sets."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rescue_cli.batch import View, to_device
from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Decoder
from rescue_cli.rng import Indices, uniform
from rescue_cli.sections.annotations import (
    Mask,
    Objects,
    Scene,
    SceneBatch,
    SceneOperation,
    ShownScenes,
)
from rescue_cli.sections.data.corrupt import all_corrupt, never_replaced, readable
from rescue_cli.sections.data.decode import (
    DEFAULT_READING,
    OTHERWISE,
    UNREADABLE,
    image_size,
    read_image,
    reason_of,
)
from rescue_cli.sections.data.feed import FileFeed
from rescue_cli.sections.data.paired import Paired
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.splits import rounds_of
from rescue_cli.sections.data.workers import end_workers, next_of, start_workers

AT_A_TIME = 4  # images that one worker reads at a time


class Wanted(NamedTuple):
    """An image of the training set, and its place in a step."""

    image: int
    step: int
    micro_batch: int
    position: int


class Read(NamedTuple):
    """One image's scene, or none where it and all drawn in its place are corrupt.

    `fault`: what is wrong with it for good; a worker's exceptions would come with tracebacks.
    """

    scene: Scene | None
    broken: list[tuple[str, str]]  # file, reason
    replaced: int
    fault: str | None = None


class TrainScenes(Dataset[list[Read]]):
    """Reads and augments scenes; runs inside loader workers."""

    def __init__(
        self,
        pairs: Paired,
        operations: Sequence[SceneOperation],
        micro_batch_size: int,
        decoder: Decoder,
        seed: int,
        reading: Reading = DEFAULT_READING,
    ) -> None:
        self.pairs = pairs
        self.operations = operations
        self.columns = sum(op.columns for op in operations)
        self.micro_batch_size = micro_batch_size
        self.decoder = decoder
        self.seed = seed
        self.reading = reading

    def __getitem__(self, wanted: Any) -> list[Read]:
        return [self._read(each) for each in wanted]

    def _read(self, wanted: Wanted) -> Read:
        broken: list[tuple[str, str]] = []

        def scene_of(place: int) -> Scene:
            return read(self.pairs, place, self.decoder, self.reading)

        path = self.pairs.names.path
        try:
            found, scene = readable(
                wanted.image, len(self.pairs), self.seed, scene_of, path, broken
            )
        except DataError as error:
            return Read(None, [], 0, str(error))
        if scene is None:
            return Read(None, broken, 0)
        return Read(self._augmented(scene, wanted), broken, int(found != wanted.image))

    def _augmented(self, scene: Scene, wanted: Wanted) -> Scene:
        shape = (self.micro_batch_size, self.columns)
        block = uniform(self.seed, "augment", wanted.step, wanted.micro_batch, shape)
        draws = np.split(block[wanted.position], np.cumsum([op.columns for op in self.operations]))
        for operation, mine in zip(self.operations, draws, strict=False):
            scene = operation.apply(scene, mine)
        return scene


def read(pairs: Paired, index: int, decoder: Decoder, reading: Reading) -> Scene:
    """The scene; raises what PIL raises, and `DataError` where target and image do not fit."""
    path = pairs.names.path(index)
    image = torch.from_numpy(np.array(read_image(path, decoder, reading))).permute(2, 0, 1)
    try:
        target = pairs.target(index)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{reason_of(error)}. Repair the mask of {path}.") from None
    if not isinstance(target, Objects) and target.shape != image.shape[1:]:
        sizes = " x ".join(map(str, target.shape)), " x ".join(map(str, image.shape[1:]))
        turned = target.shape == image_size(path, OTHERWISE[reading.exif])
        cure = f"set data.exif={OTHERWISE[reading.exif]}" if turned else "Bring them to one size"
        raise DataError(
            f"{path}: its mask is {sizes[0]} pixels, the image {sizes[1]}"
            f"{f' with data.exif={reading.exif}: ' if turned else '. '}{cure}."
        )
    return Scene(image, target)


class SceneFeed(FileFeed):
    """Training micro-batches of scenes, `workers` ahead of the step that wants them."""

    def __init__(
        self,
        scenes: TrainScenes,
        sampler: Callable[[int, int], Indices],
        micro_batches: Sequence[int],
        **run: Any,
    ) -> None:
        super().__init__(sampler, micro_batches, **run)
        self.scenes = scenes

    def start(self, step: int) -> None:
        """Sets the workers to work from `step` on."""
        self.close()
        order = itertools.chain.from_iterable(self._parts(s) for s in range(step, self.steps))
        self.begin(self.scenes, order)

    def micro_batches(self, step: int) -> Iterator[SceneBatch]:
        found: list[Scene] = []
        for _ in self._parts(step):
            found += self._next()
        rows = self.scenes.micro_batch_size
        for place, micro_batch in enumerate(self.mine):
            images, targets = batched(found[place * rows : (place + 1) * rows], self.device)
            yield SceneBatch(images, targets, step, micro_batch, self.sampler(step, micro_batch))

    def _parts(self, step: int) -> list[list[Wanted]]:
        """This process's share of a step, a few images at a time."""
        wanted = [
            Wanted(index, step, micro_batch, position)
            for micro_batch in self.mine
            for position, index in enumerate(self.sampler(step, micro_batch).tolist())
        ]
        return [wanted[i : i + AT_A_TIME] for i in range(0, len(wanted), AT_A_TIME)]

    def _next(self) -> list[Scene]:
        scenes = []
        for part in self.next():
            _raise_fault(part)
            self.count(part.broken, part.replaced)
            if part.scene is None:
                raise all_corrupt(part.broken)
            scenes.append(part.scene)
        return scenes


def _raise_fault(part: Read) -> None:
    if part.fault is not None:
        raise DataError(part.fault)


def batched(scenes: Sequence[Scene], device: torch.device) -> tuple[Any, Any]:
    """Images and targets of a micro-batch on the device: stacked with masks, lists with boxes."""
    if isinstance(scenes[0].target, Objects):
        images = [to_device(scene.image, device) for scene in scenes]
        return images, [_to_learn(scene.target, device) for scene in scenes]
    masks = np.stack([scene.target for scene in scenes])
    stacked = torch.stack([scene.image for scene in scenes])
    return to_device(stacked, device), to_device(masks, device).long()


def _to_learn(target: Objects | Mask, device: torch.device) -> dict[str, Tensor]:
    """Boxes and labels of what is not difficult, as Fast R-CNN learns from (Girshick 2015)."""
    assert isinstance(target, Objects)
    easy = ~target.difficult
    return {
        "boxes": to_device(target.boxes[easy], device),
        "labels": to_device(target.labels[easy], device),
    }


class TestScenes(Dataset[Read]):
    """Reads test scenes as they are; runs inside loader workers."""

    __test__ = False  # no test of pytest's

    def __init__(self, pairs: Paired, decoder: Decoder, reading: Reading = DEFAULT_READING) -> None:
        self.pairs = pairs
        self.decoder = decoder
        self.reading = reading

    def __getitem__(self, index: Any) -> Read:
        try:
            return Read(read(self.pairs, index, self.decoder, self.reading), [], 0)
        except DataError as error:
            return Read(None, [], 0, str(error))
        except UNREADABLE as error:
            return Read(None, [(str(self.pairs.names.path(index)), reason_of(error))], 0)


class SceneEvalFeed:
    """A test set on disk, in order, in batches dealt to the processes in turn."""

    def __init__(
        self,
        scenes: TestScenes,
        views: Sequence[View],
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.scenes = scenes
        self.views = views
        self.batch_size = batch_size
        self.workers = workers
        self.device = device

    def __len__(self) -> int:
        return len(self.scenes.pairs)

    def rounds(self, world_size: int) -> int:
        return rounds_of(len(self), self.batch_size, world_size)

    def batches(self, rank: int, world_size: int) -> Generator[ShownScenes, None, None]:
        starts = range(0, len(self), self.batch_size)[rank::world_size]
        parts = [list(range(s, min(s + self.batch_size, len(self)))) for s in starts]
        decoded = start_workers(self.scenes, itertools.chain.from_iterable(parts), self.workers)
        try:
            for part in parts:
                yield ShownScenes(part, [self._checked(next_of(decoded)) for _ in part])
        finally:
            end_workers(decoded)

    def first(self, count: int) -> list[Scene]:
        """So many of the set, read here."""
        return [self._checked(self.scenes[place]) for place in range(min(count, len(self)))]

    def _checked(self, part: Read) -> Scene:
        _raise_fault(part)
        if part.scene is None:
            raise never_replaced(*part.broken[0])
        return part.scene._replace(image=to_device(part.scene.image, self.device))
