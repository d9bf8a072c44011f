"""Batches from files: what reaches (micro-batch, position) is what the sampler asked for."""

import contextlib
import io
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rescue_cli.batch import View
from rescue_cli.errors import DataError
from rescue_cli.recipe import DataKeys
from rescue_cli.recipe.sections import Decoder
from rescue_cli.rng import Indices, uniform
from rescue_cli.sections.annotations import Sample, mirror
from rescue_cli.sections.augment import Operation
from rescue_cli.sections.augment.annotated import flip
from rescue_cli.sections.augment.crops import random_resized_crop
from rescue_cli.sections.data import Dataset, Files, Images, load, make_resident
from rescue_cli.sections.data import resident as resident_module
from rescue_cli.sections.data.decode import Box, centre_crop, crop_resize, decode_with_pil
from rescue_cli.sections.data.formats.class_folders import class_folders, read_class_folders
from rescue_cli.sections.data.splits import Pixels
from rescue_cli.sections.data.stream import (
    SAMPLES_PER_IMAGE,
    Cropping,
    FileFeed,
    TrainSamples,
    WholeImages,
    make_chunks,
)
from rescue_cli.sections.data.stream_eval import EvalSamples, FileEvalFeed
from rescue_cli.sections.data.workers import CHUNK
from rescue_cli.sections.sampling import Sampler, SamplingContext, shuffled
from tests.helpers import rectangles
from tests.helpers.processes import PATIENCE

CPU = torch.device("cpu")
SEED, MICRO_BATCHES, MICRO_BATCH, SIZE, STEPS = 3, 4, 6, 24, 4
CROP = random_resized_crop(scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
Views = dict[tuple[int, int], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 noisy images of three classes and many shapes, some names beyond ASCII and UTF-8."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(8)
    for number in range(120):
        name = ("ant", "bee", "Käfer 虫")[number % 3]
        (root / name).mkdir(exist_ok=True)
        shape = (int(random.integers(20, 60)), int(random.integers(20, 60)), 3)
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(shape[1::-1])
        ending = ".png" if number % 5 == 0 else ".jpg"
        stem = {0: "é", 1: "图像", 2: "a b"}.get(number % 7, "plain")
        image.save(root / name / f"{number:03}-{stem}{ending}")
    plain = root / "ant" / "000-é.png"
    os.rename(plain, os.fsencode(root / "ant") + b"/latin-\xe9.png")
    return root


def split_of(root: Path) -> Files:
    names = class_folders(root)
    return read_class_folders(root, {n: i for i, n in enumerate(names)}, complete=True)


def feed(
    files: Files,
    *,
    mine: Sequence[int] = range(MICRO_BATCHES),
    workers: int = 0,
    sampler: Sampler | None = None,
    crop: Operation | None = CROP,
    decoder: Decoder = "fast",
    samples: Callable[..., TrainSamples] = TrainSamples,
    max_corrupt: int = 100,
    log: Callable[[str], None] = print,
    steps: int = STEPS,
) -> FileFeed:
    counted = SamplingContext(
        len(files),
        MICRO_BATCHES * MICRO_BATCH,
        MICRO_BATCH,
        len(files) // (MICRO_BATCHES * MICRO_BATCH),
        SEED,
    )
    return FileFeed(
        samples(files, Cropping(crop, SIZE, "bicubic"), MICRO_BATCH, SEED, decoder),
        sampler or shuffled(counted),
        mine,
        steps=steps,
        max_corrupt=max_corrupt,
        workers=workers,
        device=CPU,
        log=log,
    )


def run(of: FileFeed, first: int = 0, steps: int = STEPS) -> Views:
    """(step, micro-batch) -> (images, labels)."""
    found = {}
    with contextlib.closing(of):
        of.start(first)
        for step in range(first, steps):
            for batch in of.micro_batches(step):
                assert batch.step == step
                found[step, batch.micro_batch] = (batch.images.clone(), batch.targets.clone())
    return found


def same(a: Views, b: Views) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k][0], b[k][0]) and torch.equal(a[k][1], b[k][1]) for k in a
    )


def test_every_place_holds_the_view_that_its_sampler_and_draws_ask_for(folder: Path) -> None:
    """Against a plain loop over places: open the file with PIL, cut the box, resize."""
    files = split_of(folder)
    of = feed(files, decoder="pil")
    found = run(of)
    assert list(found) == [(t, s) for t in range(STEPS) for s in range(MICRO_BATCHES)]
    for (step, micro_batch), (images, labels) in found.items():
        indices = of.sampler(step, micro_batch)
        assert labels.tolist() == files.labels[indices].tolist()
        draws = uniform(SEED, "crop", step, micro_batch, (MICRO_BATCH, CROP.columns))
        for position, index in enumerate(indices.tolist()):
            image = decode_with_pil(files.names.path(index).read_bytes())
            box = Box(*CROP.apply(image.height, image.width, draws[position]))
            expected = crop_resize(image, box, SIZE, SIZE, "bicubic")
            assert torch.equal(images[position], expected)


def test_without_a_crop_every_place_holds_the_centre(folder: Path) -> None:
    files = split_of(folder)
    of = feed(files, crop=None, decoder="pil")
    for (step, micro_batch), (images, _) in run(of, steps=1).items():
        for position, index in enumerate(of.sampler(step, micro_batch).tolist()):
            image = decode_with_pil(files.names.path(index).read_bytes())
            assert torch.equal(images[position], centre_crop(image, SIZE, 1.0, "bicubic"))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(folder: Path, workers: int) -> None:
    files = split_of(folder)
    assert same(run(feed(files, workers=workers)), run(feed(files, workers=0)))


@pytest.mark.parametrize("shares", [[[0, 2], [1, 3]], [[0], [1], [2], [3]], [[3, 1], [2, 0]]])
def test_batches_do_not_depend_on_how_micro_batches_are_dealt(
    folder: Path, shares: list[list[int]]
) -> None:
    files = split_of(folder)
    dealt: Views = {}
    for mine in shares:
        dealt |= run(feed(files, mine=mine))
    whole = run(feed(files))
    assert same({k: dealt[k] for k in sorted(dealt)}, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_taken_up_in_the_middle_gets_the_same_batches(folder: Path, workers: int) -> None:
    files = split_of(folder)
    whole = run(feed(files))
    of = feed(files, workers=workers)
    run(of, steps=1)  # as a run does that draws its samples first
    later = run(of, first=2)
    assert same(later, {k: v for k, v in whole.items() if k[0] >= 2})


class CountedSamples(TrainSamples):
    """Notes in a file how often each image is read, in whichever process."""

    def __init__(self, *arguments: Any, log: Path) -> None:
        super().__init__(*arguments)
        self.log = log

    def read(self, index: int, *arguments: Any) -> tuple[int, Any, Any]:
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return super().read(index, *arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_several_places_want_is_decoded_once(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    files = split_of(folder)

    def thrice(step: int, micro_batch: int) -> Indices:
        """Eight images a step: each three times, in one micro-batch and in others."""
        return np.array(
            [(step * 8 + (micro_batch * MICRO_BATCH + i) % 8) for i in range(MICRO_BATCH)]
        )

    log = tmp_path / "reads"

    def counted(*arguments: Any) -> CountedSamples:
        return CountedSamples(*arguments, log=log)

    of = feed(files, sampler=thrice, samples=counted, workers=workers)
    found = run(of)
    reads = Counter(int(line) for line in log.read_text().split())
    assert reads == dict.fromkeys(range(8 * STEPS), 1)
    for (step, micro_batch), (_, labels) in found.items():
        assert labels.tolist() == files.labels[thrice(step, micro_batch)].tolist()
    views = {image.numpy().tobytes() for images, _ in found.values() for image in images}
    assert len(views) > 0.95 * STEPS * MICRO_BATCHES * MICRO_BATCH, (
        "each copy has a crop of its own"
    )


def test_a_share_larger_than_a_chunk_is_dealt_in_chunks(folder: Path) -> None:
    chunks = feed(split_of(folder)).chunks(1)
    assert [len(chunk.images) for chunk in chunks] == [CHUNK, MICRO_BATCHES * MICRO_BATCH - CHUNK]
    places = [place for chunk in chunks for _, wanted in chunk.images for place in wanted]
    assert sorted(places) == [(s, p) for s in range(MICRO_BATCHES) for p in range(MICRO_BATCH)]


def test_slots_that_are_written_again_hold_what_is_read_then(folder: Path) -> None:
    """More chunks than slots, and a reader so slow that the workers are always ahead of it."""
    files, steps = split_of(folder), 14
    of = feed(files, workers=2, steps=steps)
    found = {}
    with contextlib.closing(of):
        of.start(0)
        assert len(of.samples.slots) < steps * len(of.chunks(0))
        for step in range(steps):
            time.sleep(0.05)
            for batch in of.micro_batches(step):
                found[step, batch.micro_batch] = (batch.images.clone(), batch.targets.clone())
    assert same(found, run(feed(files, steps=steps), steps=steps))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["voc", "masks"])
def test_boxes_and_masks_follow_their_image_through_the_draws_of_their_position(
    kind: str, workers: int, tmp_path: Path
) -> None:
    """Against a plain loop over positions; an image that two of them want is read once."""
    root = getattr(rectangles, kind)(tmp_path / kind, 6, 1)
    name = {"voc": "voc-folder", "masks": "mask-folder"}[kind]
    files = load(name, DataKeys(root=str(root)), tmp_path).train
    assert isinstance(files, Files)
    operations = [flip(p=0.5), flip(p=0.5)]

    def sampler(step: int, micro_batch: int) -> Indices:
        return np.array([(3 * step + micro_batch + i) % 6 for i in range(4)])

    of = FileFeed(
        TrainSamples(files, WholeImages(operations), 4, SEED, "pil"),
        sampler, range(2), steps=3, max_corrupt=0, workers=workers, device=CPU, log=print,
    )  # fmt: skip
    with contextlib.closing(of):
        of.start(0)
        batches = [batch for step in range(3) for batch in of.micro_batches(step)]
    mirrored = 0
    for batch in batches:
        draws = uniform(SEED, "augment", batch.step, batch.micro_batch, (4, 2))
        for position, index in enumerate(sampler(batch.step, batch.micro_batch).tolist()):
            with Image.open(files.names.path(index)) as image:
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            sample = Sample(pixels, files.target(index))
            if (draws[position] < 0.5).sum() % 2:
                sample, mirrored = mirror(sample), mirrored + 1
            assert torch.equal(batch.images[position], sample.image)
            target = batch.targets[position]
            if kind == "voc":
                assert np.array_equal(target["boxes"], sample.target.boxes)
                assert np.array_equal(target["labels"], sample.target.labels)
            else:
                assert np.array_equal(target, sample.target)
    assert 0 < mirrored < 24


def test_an_image_that_more_places_want_than_a_chunk_holds_is_dealt_to_several() -> None:
    most = SAMPLES_PER_IMAGE * CHUNK
    places = [(0, i) for i in range(most + 5)]
    chunks = make_chunks(7, {3: places, 4: places[:2], 5: places[:most]})
    assert [[(i, len(p)) for i, p in chunk.images] for chunk in chunks] == [
        [(3, most)],
        [(3, 5), (4, 2)],
        [(5, most)],
    ]
    assert [chunk.step for chunk in chunks] == [7, 7, 7]


def test_names_beyond_ascii_reach_the_workers_whole(folder: Path) -> None:
    files = split_of(folder)
    on_disk = {os.fsencode(p) for p in folder.glob("*/*")}
    assert {os.fsencode(files.names.path(i)) for i in range(len(files))} == on_disk
    assert any("Käfer 虫" in files.names.name(i) for i in range(len(files)))
    assert any(b"\xe9" in os.fsencode(files.names.path(i)) for i in range(len(files)))
    taken = files.take(np.array([5, 0]))
    assert [taken.names.name(i) for i in (0, 1)] == [files.names.name(i) for i in (5, 0)]


# --- evaluation ---


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shows_each_image_once_in_every_view(
    folder: Path, world_size: int, workers: int
) -> None:
    files = split_of(folder).take(np.arange(0, 120, 2)[:47])
    views = [View(24, 0.875), View(32, 1.0)]
    seen: dict[int, dict[View, Tensor]] = {}
    for rank in range(world_size):
        of = FileEvalFeed(EvalSamples(files, views, "bicubic", "pil"), 20, workers, CPU)
        shown = list(of.batches(rank, world_size))
        assert len(shown) <= of.rounds(world_size)
        for batch in shown:
            assert torch.equal(batch.targets, torch.from_numpy(files.labels)[batch.indices])
            for row, index in enumerate(batch.indices.tolist()):
                assert index not in seen
                seen[index] = {view: batch.views[view][row] for view in views}
    assert sorted(seen) == list(range(47))
    for index in (0, 13, 46):
        image = decode_with_pil(files.names.path(index).read_bytes())
        for view in views:
            expected = centre_crop(image, view.size, view.crop, "bicubic")
            assert torch.equal(seen[index][view], expected)


# --- folders made resident ---


def dataset(root: Path) -> Dataset:
    files = split_of(root)
    return Dataset(files, {"test": files.take(np.arange(9))}, ("a", "b", "c"))


def resident(root: Path, cache: Path) -> Pixels:
    found = make_resident(dataset(root), 16, "bicubic", cache).train
    assert isinstance(found, Images)
    return found.pixels


@pytest.fixture
def small(folder: Path, tmp_path: Path) -> Path:
    """Twelve of the images in a folder that a test may change."""
    for path in sorted(folder.glob("*/*.jpg"))[::8]:
        (tmp_path / "small" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "small" / path.parent.name / path.name).write_bytes(path.read_bytes())
    return tmp_path / "small"


def test_a_resident_folder_is_the_centre_of_every_image(small: Path, tmp_path: Path) -> None:
    pixels = resident(small, tmp_path / "cache")
    files = split_of(small)
    assert pixels.shape == (len(files), 3, 16, 16)
    for index in range(len(files)):
        image = decode_with_pil(files.names.path(index).read_bytes())
        expected = centre_crop(image, 16, 1.0, "bicubic")
        np.testing.assert_array_equal(pixels[index], expected.numpy())


def test_a_resident_folder_is_decoded_once(small: Path, tmp_path: Path) -> None:
    first = resident(small, tmp_path / "cache")
    # The file's length and time are those that were decoded, its content no longer an image
    path = split_of(small).names.path(0)
    stat = path.stat()
    path.write_bytes(b"\0" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    np.testing.assert_array_equal(resident(small, tmp_path / "cache"), first)
    with pytest.raises(DataError, match="cannot be decoded") as error:
        resident(small, tmp_path / "another cache")
    assert str(path) in str(error.value)


def decode_beside_another(
    root: Path, cache: Path, folder: Path, number: int, start: BarrierType, *, fails: bool
) -> None:
    """Makes the folder resident at the same time as another process, and writes what was decoded.

    With `fails` the process that begins to decode first is killed.
    """

    def read_slowly(files: Files, index: int, *_: object) -> Any:
        with (folder / f"decoded-{number}").open("ab") as file:
            file.write(b".")
        time.sleep(0.02)
        if fails and _is_first(folder / "first"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_with_pil(files.names.read(index))

    setattr(resident_module, "read_file", read_slowly)  # noqa: B010
    start.wait(PATIENCE)
    np.save(folder / f"{number}.npy", resident(root, cache))


def _is_first(file: Path) -> bool:
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("outcome", ["decodes", "is killed", "cannot write"])
def test_of_the_processes_that_need_a_folder_one_decodes_it(
    outcome: str, small: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    expected = resident(small, tmp_path / "other")
    if outcome == "cannot write":
        cache.touch()  # where a folder belongs
    context = multiprocessing.get_context("forkserver")
    start = context.Barrier(2)
    processes = [
        context.Process(
            target=decode_beside_another,
            args=(small, cache, tmp_path, number, start),
            kwargs={"fails": outcome == "is killed"},
        )
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    killed = [-signal.SIGKILL] if outcome == "is killed" else []
    assert sorted(p.exitcode or 0 for p in processes) == [*killed, *[0] * (2 - len(killed))]
    ended = [n for n, process in enumerate(processes) if process.exitcode == 0]
    for number in ended:
        np.testing.assert_array_equal(np.load(tmp_path / f"{number}.npy"), expected)
    images = len(split_of(small)) + 9  # of the two sets
    counts = [len(f.read_bytes()) for f in tmp_path.glob("decoded-*")]
    if outcome == "decodes":
        assert sum(counts) == images
        assert sorted(file.suffix for file in cache.iterdir()) == [".npy"] * 2
    elif outcome == "cannot write":
        assert counts == [images, images]


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_changed_folder_is_noticed(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = resident(small, cache)
    first = small / class_folders(small)[0] / "!first.png"
    first.write_bytes(encoded(10))
    added = resident(small, cache)
    assert len(added) == len(before) + 1
    assert added[0].max() == 10
    np.testing.assert_array_equal(added[1:], before)
    first.write_bytes(encoded(20))
    assert resident(small, cache)[0].max() == 20
    last = first.rename(small / class_folders(small)[-1] / "zzz-last.png")
    renamed = resident(small, cache)
    assert renamed[0].max() != 20
    last.unlink()
    np.testing.assert_array_equal(resident(small, cache), before)


def test_another_size_or_interpolation_has_a_cache_of_its_own(small: Path, tmp_path: Path) -> None:
    for size in (16, 20):
        for interpolation in ("bicubic", "bilinear"):
            made = make_resident(dataset(small), size, interpolation, tmp_path / "cache")
            assert isinstance(made.train, Images)
            assert made.train.pixels.shape[2:] == (size, size)
    assert len(list((tmp_path / "cache").iterdir())) == 8  # training and test set of each


def test_a_cache_that_cannot_be_written_is_only_slower(small: Path, tmp_path: Path) -> None:
    expected = resident(small, tmp_path / "cache")
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")  # no folder can be made below it, whoever asks
    np.testing.assert_array_equal(resident(small, blocked / "cache"), expected)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_cache_that_cannot_be_read_is_made_anew(
    small: Path, tmp_path: Path, damage: bytes
) -> None:
    cache = tmp_path / "cache"
    expected = resident(small, cache)
    for file in cache.iterdir():
        file.write_bytes(damage)
    np.testing.assert_array_equal(resident(small, cache), expected)
    assert all(file.stat().st_size > 100 for file in cache.iterdir())


def _make(root: Path, cache: Path, results: Any) -> None:
    torch.set_num_threads(1)  # OpenMP's other threads are not forked
    results.put(resident(root, cache).tobytes())


def test_processes_that_make_the_cache_at_once_agree(small: Path, tmp_path: Path) -> None:
    expected = resident(small, tmp_path / "alone").tobytes()
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    processes = [
        fork.Process(target=_make, args=(small, tmp_path / "cache", results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [results.get() for _ in processes] == [expected] * 4
    for process in processes:
        process.join()
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".npy", ".npy"]
