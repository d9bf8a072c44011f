"""Augmentations against implementations that have nothing in common with ours."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import hflip, normalize

from rescue_cli.batch import Batch
from rescue_cli.engine.step import Feed
from rescue_cli.errors import UsageError
from rescue_cli.recipe import load
from rescue_cli.rng import random_bits
from rescue_cli.sections.augment import Augment, Operation
from rescue_cli.sections.augment.operations import alternating_flip, cutout, flip, pad_crop
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.data import FileNames, Files, Images
from rescue_cli.sections.data.memory import MemoryFeed
from rescue_cli.sections.data.stream import Cropping, FileFeed, TrainSamples
from rescue_cli.sections.sampling import SamplingContext, repeated, shuffled

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images(n: int, height: int = 9, width: int = 11, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = (n, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def every_offset(pad: int) -> tuple[list[tuple[int, int]], Tensor]:
    """All (top, left) in the padded image, and for each the draws in the middle of its interval."""
    offsets = list(itertools.product(range(2 * pad + 1), range(2 * pad + 1)))
    return offsets, (torch.tensor(offsets) + 0.5) / (2 * pad + 1)


@pytest.mark.parametrize("pad", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("mode", "theirs"), [("reflect", "reflect"), ("zeros", "constant")])
def test_pad_crop_is_numpys_pad_and_a_micro_batch_at_every_offset(
    mode: str, theirs: str, pad: int, channels_last: bool
) -> None:
    offsets, draws = every_offset(pad)
    whole = images(len(offsets))
    if channels_last:
        whole = whole.to(memory_format=torch.channels_last)
    padded = np.pad(
        whole.numpy(),
        [(0, 0), (0, 0), (pad, pad), (pad, pad)],
        mode=theirs,  # type: ignore[call-overload]
    )
    expected = np.stack(
        [padded[i, :, top : top + 9, left : left + 11] for i, (top, left) in enumerate(offsets)]
    )
    operation = pad_crop(pad=pad, mode=mode)  # type: ignore[arg-type]
    found = operation.apply(whole, draws)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), expected)


def test_every_offset_of_pad_crop_is_equally_likely() -> None:
    draws = torch.from_numpy(np.random.default_rng(2).random((20_000, 2), dtype=np.float32))
    numbers = torch.arange(81, dtype=torch.uint8).reshape(1, 1, 9, 9).expand(20_000, -1, -1, -1)
    corner = pad_crop(pad=2, mode="reflect").apply(numbers, draws)[:, 0, 4, 4]  # shifted centre
    seen = torch.bincount(corner.long())
    assert int((seen > 0).sum()) == 25
    assert seen[seen > 0].min() > 680  # 800 expected, deviation 28
    assert seen.max() < 920


def test_hlbs_crop_draws_the_first_four_of_five_offsets() -> None:
    """Where its code puts a window of 32 in 36: its centre from 15 to 18, 15 pixels before it."""
    (item,) = (item for item in load("hlb").augment if item.name == "pad-crop")
    draws = torch.from_numpy(np.random.default_rng(5).random((20_000, 2), dtype=np.float32))
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    where = torch.stack([rows, columns]).byte().expand(20_000, -1, -1, -1)
    found = pad_crop(**item.options).apply(where, draws)[:, :, 16, 16].long() - 16 + 2
    seen = torch.bincount(found[:, 0] * 5 + found[:, 1], minlength=25).view(5, 5)
    centres = range(32 // 2 - 1, 36 - 32 // 2 - 1)  # of an even window
    assert [centre - (32 // 2 - 1) for centre in centres] == [0, 1, 2, 3]
    assert seen[4].sum() == seen[:, 4].sum() == 0
    assert 1100 < int(seen[:4, :4].min()) <= int(seen.max()) < 1400  # 1,250, deviation 34


def test_more_offsets_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match=r"offsets: 6, and a pad of 2 has 5\. Give at most that"):
        pad_crop(pad=2, mode="reflect", offsets=6)


def test_the_greatest_draw_stays_inside() -> None:
    last = float(np.nextafter(np.float32(1), np.float32(0)))
    for pad in range(9):
        draws = torch.full((1, 2), last)
        padded = np.pad(images(1).numpy(), [(0, 0), (0, 0), (pad, pad), (pad, pad)])
        found = pad_crop(pad=pad, mode="zeros").apply(images(1), draws)
        np.testing.assert_array_equal(found, padded[:, :, 2 * pad :, 2 * pad :])


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_padding_as_wide_as_the_image_is_refused(mode: str) -> None:
    operation = pad_crop(pad=9, mode=mode)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"pad-crop\).pad: 9 must be below the image's side, 9"):
        operation.apply(images(1), torch.zeros(1, 2))


def test_flip_mirrors_as_torchvision_does_where_the_draw_is_below_p() -> None:
    whole = images(4)
    draws = torch.tensor([[0.0], [0.2999], [0.3], [0.9999]])
    found = flip(p=0.3).apply(whole, draws)
    assert torch.equal(found, torch.stack([*hflip(whole[:2]), *whole[2:]]))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_flip_with_certainty(p: float) -> None:
    whole = images(64)
    draws = torch.from_numpy(np.random.default_rng(0).random((64, 1), dtype=np.float32))
    assert torch.equal(flip(p=p).apply(whole, draws), hflip(whole) if p else whole)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_cutout_sets_one_square_inside_the_image_to_the_mean(size: int) -> None:
    tops, lefts = 9 - size + 1, 11 - size + 1
    places = list(itertools.product(range(tops), range(lefts)))
    draws = (torch.tensor(places) + 0.5) / torch.tensor([tops, lefts])
    floats = images(len(places)).double()
    expected = floats.numpy().copy()
    for i, (top, left) in enumerate(places):
        expected[i, :, top : top + size, left : left + size] = 0
    found = cutout(size=size).apply(floats, draws)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_what_cutout_leaves_is_the_mean_colour_of_the_data_set() -> None:
    normalise = Normalise(MEAN, STD, CPU, torch.float64, False)
    cut = cutout(size=9).apply(normalise(images(1, 9, 9)), torch.zeros(1, 2))
    found = normalise.undo(cut)
    assert (
        found.amin((0, 2, 3)).tolist() == found.amax((0, 2, 3)).tolist() == [125, 123, 114]
    )  # MEAN x 255


def test_a_square_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cutout\).size: 10 must be at most the image's side, 9"):
        cutout(size=10).apply(images(1).float(), torch.zeros(1, 2))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_normalise_is_torchvisions(
    dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = normalize(ramp.double() / 255, list(MEAN), list(STD))
    found = Normalise(MEAN, STD, CPU, dtype, channels_last)(ramp)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max().item() <= tolerance
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undo_gives_every_pixel_back(dtype: torch.dtype) -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    normalise = Normalise(MEAN, STD, CPU, dtype, False)
    assert torch.equal(normalise.undo(normalise(ramp)), ramp)


# --- the list of operations ---


def pipeline(seed: int = 0, *operations: Operation) -> Augment:
    listed = operations or (pad_crop(pad=2, mode="reflect"), flip(p=0.5), cutout(size=3))
    return Augment(listed, Normalise(MEAN, STD, CPU, torch.float64, False), seed, 4)


def batch(pixels: Tensor, step: int = 5, micro_batch: int = 2) -> Batch:
    count = len(pixels)
    return Batch(pixels, torch.zeros(count).long(), step, micro_batch, np.arange(count))


def test_each_image_has_its_own_draws() -> None:
    same = images(1).expand(64, -1, -1, -1)
    found = pipeline()(batch(same)).images
    distinct = {image.tobytes() for image in found.numpy()}
    assert len(distinct) > 55, "64 copies of one image, of thousands of possible views"


def test_the_draws_of_a_micro_batch_are_its_own() -> None:
    pixels = images(16)
    first = pipeline()(batch(pixels, 5, 2)).images
    pipeline()(batch(images(99), 5, 1))  # what happens to other micro-batches changes nothing
    torch.rand(3)  # nor does torch's generator
    np.random.rand(3)
    assert torch.equal(pipeline()(batch(pixels, 5, 2)).images, first)
    for other in (batch(pixels, 5, 3), batch(pixels, 6, 2), batch(pixels, 2, 5)):
        assert not torch.equal(pipeline()(other).images, first)
    assert not torch.equal(pipeline(1)(batch(pixels, 5, 2)).images, first)


def test_operations_run_in_order_each_on_its_own_columns() -> None:
    """The block of draws goes to the operations on pixels first, then to those after."""
    seen: dict[str, NDArray[np.float32]] = {}

    def note(name: str, columns: int, stage: str) -> Operation:
        def apply(images: Tensor, draws: Tensor) -> Tensor:
            seen[name] = draws.numpy()
            assert images.is_floating_point() == (stage == "normalised")
            return images

        return Operation(columns, stage, apply)  # type: ignore[arg-type]

    operations = [note("a", 2, "pixels"), note("b", 3, "normalised"), note("c", 1, "pixels")]
    pipeline(0, *operations)(batch(images(8)))
    assert list(seen) == ["a", "c", "b"]
    assert [seen[name].shape for name in "abc"] == [(8, 2), (8, 3), (8, 1)]
    together = np.concatenate([seen[name] for name in "abc"], axis=1)
    assert len(np.unique(together)) == together.size, "no draw is used twice"
    assert together.min() >= 0
    assert together.max() < 1


def test_without_operations_images_are_only_normalised() -> None:
    normalise = Normalise(MEAN, STD, CPU, torch.float64, False)
    found = Augment([], normalise, 0, 4)(batch(images(3)))
    assert torch.equal(found.images, normalise(images(3)))
    assert (found.step, found.micro_batch) == (5, 2)


# --- the flip that alternates ---

PER_EPOCH, MICRO_BATCHES, MICRO_BATCH = 3, 2, 8
SAMPLES = PER_EPOCH * MICRO_BATCHES * MICRO_BATCH
LOPSIDED = np.zeros((SAMPLES, 3, 8, 8), np.uint8)
LOPSIDED[..., :4] = 200
STEPS = SamplingContext(SAMPLES, MICRO_BATCHES * MICRO_BATCH, MICRO_BATCH, PER_EPOCH, seed=6)
SAMPLER = shuffled(STEPS)
Feeds = Callable[[range], Feed]


def resident(mine: range) -> Feed:
    marks = Images(LOPSIDED, np.arange(SAMPLES))
    return MemoryFeed(marks, SAMPLER, mine, max_corrupt=0, device=CPU, log=print)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Feeds:
    folder = tmp_path_factory.mktemp("lopsided")
    names = [f"{number}.png" for number in range(SAMPLES)]
    for name, pixels in zip(names, LOPSIDED, strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / name)
    files = Files(FileNames.of(folder, names), np.arange(SAMPLES))

    def feed(mine: range) -> Feed:
        samples = TrainSamples(files, Cropping(None, 8, "bilinear"), MICRO_BATCH, 6, "pil")
        return FileFeed(
            samples, SAMPLER, mine, steps=100, max_corrupt=0, workers=0, device=CPU, log=print
        )

    return feed


def mirrored(feeds: Feeds, epoch: int, *, seed: int = 0, processes: int = 1) -> NDArray[np.bool_]:
    """Of each image of the training set whether it is mirrored in this epoch."""
    normalise = Normalise(MEAN, STD, CPU, torch.float64, False)
    augment = Augment([alternating_flip()], normalise, seed, PER_EPOCH)
    found = np.full(SAMPLES, -1)
    for rank in range(processes):
        feed = feeds(range(rank, MICRO_BATCHES, processes))
        feed.start(epoch * PER_EPOCH)
        for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
            for part in feed.micro_batches(step):
                images = augment(part).images
                right = images[:, 0, 0, 7] > images[:, 0, 0, 0]
                assert (found[part.targets] == -1).all(), "each image once an epoch"
                found[part.targets] = right.long()
                original = Normalise.undo(normalise, images)
                expected = torch.from_numpy(LOPSIDED)[part.targets]
                assert torch.equal(
                    torch.where(right[:, None, None, None], hflip(original), original), expected
                )
        feed.close()
    assert (found >= 0).all()
    return found.astype(np.bool_)


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_each_image_is_mirrored_exactly_every_other_epoch(kind: str, streamed: Feeds) -> None:
    feeds = resident if kind == "resident" else streamed
    epochs = [mirrored(feeds, epoch) for epoch in range(4)]
    for before, after in itertools.pairwise(epochs):
        np.testing.assert_array_equal(after, ~before)
    assert 0.25 < epochs[0].mean() < 0.75
    np.testing.assert_array_equal(mirrored(feeds, 2, processes=2), epochs[2])
    np.testing.assert_array_equal(mirrored(resident, 3), epochs[3])
    assert (mirrored(feeds, 0, seed=1) != epochs[0]).any()


def test_copies_of_an_image_in_an_epoch_are_mirrored_alike() -> None:
    sampler = repeated(STEPS, views=3, placement="spread")
    marks = Images(LOPSIDED, np.arange(SAMPLES))
    feed = MemoryFeed(marks, sampler, range(MICRO_BATCHES), max_corrupt=0, device=CPU, log=print)
    augment = pipeline(0, alternating_flip())
    seen: dict[int, set[bool]] = {}
    for part in feed.micro_batches(0):
        right = augment(part).images[:, 0, 0, 7] > 0
        for index, side in zip(part.indices.tolist(), right.tolist(), strict=True):
            seen.setdefault(index, set()).add(side)
    assert len(seen) < MICRO_BATCHES * MICRO_BATCH
    assert all(len(sides) == 1 for sides in seen.values())


def test_bits_are_those_of_splitmix64() -> None:
    """The generator written out, state by state (Steele et al. 2014)."""
    from rescue_cli.rng import random_words

    (state,) = (int(word) for word in random_words(7, "coins", 0, 0, 1))
    expected = []
    for _ in range(1000):
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        expected.append(bool((z ^ (z >> 31)) >> 63))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert random_bits(7, "coins", np.arange(1000)).tolist() == expected
    assert random_bits(7, "coins", np.array([999, 3])).tolist() == [expected[999], expected[3]]


@pytest.mark.parametrize("seed", range(4))
def test_a_first_epochs_flips_are_fair_and_independent_of_neighbours(seed: int) -> None:
    n = 50_000
    coins = random_bits(seed, "alternating-flip", np.arange(n))
    five_deviations = 5 * np.sqrt(n) / 2
    assert abs(int(coins.sum()) - n / 2) < five_deviations
    for apart in (1, 2, 16, 1000):
        equal = (coins == np.roll(coins, apart)).sum()
        assert abs(int(equal) - n / 2) < five_deviations
    assert (
        abs(int((coins == random_bits(seed + 1, "alternating-flip", np.arange(n))).sum()) - n / 2)
        < five_deviations
    )
