"""RandAugment: what it draws against timm's own draws, and what it does to real photographs."""

import importlib
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from rescue_cli.errors import UsageError
from rescue_cli.rng import uniform
from rescue_cli.sections.augment import Operation
from rescue_cli.sections.augment.named_operations import NAMED_OPERATIONS, Group, draw_magnitudes
from rescue_cli.sections.augment.rand_augment import INCREASING, PLAIN, rand_augment
from tests.engine.test_step import on_fake_tensors
from tests.helpers.photos import as_batch, crops, differences

timms: Any = importlib.import_module("timm.data.auto_augment")

FILL = (124, 116, 104)
IMAGES = 10_000


def operation(**changed: Any) -> Operation:
    """A2's."""
    keys: dict[str, Any] = {"layers": 2, "magnitude": 7.0, "std": 0.5, "p": 0.5}
    keys |= {"increasing": True, "interpolation": "bicubic", "fill": FILL}
    return rand_augment(**{**keys, **changed})


def plan_draws(
    op: Operation, n: int = IMAGES, seed: int = 0
) -> list[tuple[Group, NDArray[np.float64]]]:
    """The groups of one micro-batch of `n` images, each with its images' arguments."""
    groups, arguments, _ = op.plan(uniform(seed, "augment", 3, 1, (n, op.columns)))
    ends = list(itertools.accumulate(len(group.rows) for group in groups))
    return list(zip(groups, np.split(arguments, ends[:-1]), strict=True))


def timms_draws(config: str, n: int = IMAGES) -> list[list[tuple[str, tuple[Any, ...]]]]:
    """For each of `n` images what timm's transform calls: name and arguments."""
    called: list[list[tuple[str, tuple[Any, ...]]]] = []
    transform = timms.rand_augment_transform(config, {"img_mean": FILL})

    def noting(name: str) -> Callable[..., Any]:
        def note(image: Any, *arguments: Any, **_: Any) -> Any:
            called[-1].append((name, arguments))
            return image

        return note

    for op in transform.ops:
        op.aug_fn = noting(op.name)
    random.seed(5)
    np.random.seed(5)
    for _ in range(n):
        called.append([])
        transform(None)
    return called


@pytest.mark.parametrize(("increasing", "config"), [(True, "-inc1"), (False, "")])
@pytest.mark.parametrize("magnitude", [7.0, 9.0])
def test_operations_arguments_and_signs_are_distributed_as_timms(
    increasing: bool, config: str, magnitude: float
) -> None:
    ours = plan_draws(operation(increasing=increasing, magnitude=magnitude))
    theirs = timms_draws(f"rand-m{magnitude:.0f}-mstd0.5{config}")
    names = INCREASING if increasing else PLAIN
    assert sorted(names) == sorted(timms.rand_augment_choices("", increasing))
    our_arguments = {
        name: np.concatenate([given for group, given in ours if group.name == name])
        for name in names
    }
    their_arguments = {
        name: np.array([(*given, 0)[0] for c in theirs for called, given in c if called == name])
        for name in names
    }
    counts = [[len(of[name]) for name in names] for of in (our_arguments, their_arguments)]
    assert abs(sum(counts[0]) - IMAGES) < 4 * np.sqrt(IMAGES / 2), "a layer in two is applied"
    assert stats.chisquare(counts[0]).pvalue > 1e-3
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    for name in names:
        both = (our_arguments[name], their_arguments[name])
        assert stats.ks_2samp(*both).pvalue > 1e-3, name
        if min(both[1]) < 0:
            assert abs((both[0] < 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(both[0])), name


def test_an_image_gets_none_one_or_two_operations_as_often_as_with_timm() -> None:
    ours = np.zeros(IMAGES, dtype=np.int64)
    for group, _ in plan_draws(operation()):
        ours[group.rows] += 1
    theirs = np.array([len(called) for called in timms_draws("rand-m7-mstd0.5-inc1")])
    counts = [np.bincount(of, minlength=3) for of in (ours, theirs)]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    assert stats.chisquare(counts[0], [IMAGES / 4, IMAGES / 2, IMAGES / 4]).pvalue > 1e-3


@pytest.mark.parametrize(("mean", "std"), [(7.0, 0.5), (9.0, 0.5), (0.5, 1.0), (6.0, 0.0)])
def test_magnitudes_are_normal_and_cut_to_0_and_10(mean: float, std: float) -> None:
    found, signs, _ = draw_magnitudes(
        uniform(1, "augment", 0, 0, (IMAGES, 4)), mean, std, "bicubic"
    )
    if std == 0:
        assert set(found) == {mean}
        return
    for cut, mass in ((0, stats.norm.cdf(-mean / std)), (10, stats.norm.sf((10 - mean) / std))):
        off = abs((found == cut).mean() - mass)
        assert off <= 4 * np.sqrt(mass / IMAGES) + 1e-4
    inside = found[(found > 0) & (found < 10)]
    normal = stats.truncnorm(-mean / std, (10 - mean) / std, mean, std)
    assert stats.kstest(inside, normal.cdf).pvalue > 1e-3
    assert abs(inside.mean() - normal.mean()) < 4 * normal.std() / np.sqrt(len(inside))
    assert inside.std() == pytest.approx(normal.std(), rel=0.03)
    assert set(signs) == {-1.0, 1.0}


NOT_TIMMS = ("Factor", "Shift", "Given", "AtLeastOne")


@pytest.mark.parametrize(
    "name", [name for name in NAMED_OPERATIONS if not name.endswith(NOT_TIMMS)]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_magnitude_means_what_it_means_to_timm(
    name: str, sign: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.25 if sign > 0 else 0.75)
    magnitudes = np.concatenate([np.linspace(0, 10, 41), [2.5, 7.4999, 7.5, 9.9999]])
    level = timms.LEVEL_TO_ARG[name]
    expected = [level(float(m), {})[0] if level else 0.0 for m in magnitudes]
    found = NAMED_OPERATIONS[name].argument(magnitudes, np.full_like(magnitudes, sign))
    np.testing.assert_allclose(found, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("interpolation", "share"), [("bilinear", 0.0), ("bicubic", 1.0), ("random", 0.5)]
)
def test_interpolation_is_drawn_for_each_image(interpolation: str, share: float) -> None:
    groups = [
        g for g, _ in plan_draws(operation(interpolation=interpolation)) if g.name == "Rotate"
    ]
    bicubic = sum(len(g.rows) for g in groups if g.kernel == "bicubic")
    assert bicubic / sum(len(g.rows) for g in groups) == pytest.approx(share, abs=0.08)


def test_layers_are_applied_in_order_each_to_the_images_that_drew_it() -> None:
    op = operation(std=0.0, magnitude=5.0)
    where = {name: (i + 0.5) / 15 for i, name in enumerate(INCREASING)}
    draws = np.full((3, 12), 0.9, dtype=np.float32)  # sign +, no layer applied
    draws[0, :2] = where["Invert"], 0.1
    draws[2, :2] = where["PosterizeIncreasing"], 0.1
    draws[2, 6:8] = where["Invert"], 0.49
    groups, arguments, _ = op.plan(draws)
    assert groups == [
        Group("Invert", "bicubic", [0]),
        Group("PosterizeIncreasing", "bicubic", [2]),
        Group("Invert", "bicubic", [2]),
    ]
    pixels = torch.arange(3 * 3 * 16, dtype=torch.uint8).view(3, 3, 4, 4)
    found = op.apply(pixels, groups, torch.from_numpy(arguments), torch.zeros(3).byte())
    assert torch.equal(found[0], 255 - pixels[0])
    assert torch.equal(found[1], pixels[1])
    assert torch.equal(found[2], 255 - (pixels[2] & 0b11000000))  # 4 - int(5 x 4 / 10) bits
    assert int(pixels[0, 0, 0, 1]) == 1, "the batch that came in is untouched"


def test_photographs_become_what_timms_operations_make_of_them_one_after_another(
    imagenet_sample: Path,
) -> None:
    images = crops(imagenet_sample, 48, 96)
    op = operation(interpolation="random", p=1.0)
    groups, arguments, fill = op.plan(uniform(2, "augment", 0, 0, (48, op.columns)))
    found = op.apply(as_batch(images), groups, torch.from_numpy(arguments), torch.from_numpy(fill))
    given = iter(arguments.tolist())
    for name, kernel, rows in groups:
        for row in rows:
            argument = next(given)
            used = [int(argument) if "Poster" in name or "Solar" in name else argument]
            images[row] = timms.NAME_TO_OP[name](
                images[row],
                *(used if timms.LEVEL_TO_ARG[name] else []),
                resample=Image.Resampling[kernel.upper()],
                fillcolor=FILL,
            )
    off = differences(found, images).float()
    assert off.mean() < 0.01
    # a second operation may stretch the first one's difference of a level
    assert (off.amax((1, 2, 3)) <= 1).float().mean() > 0.8


def test_grey_images_are_refused() -> None:
    op = operation()
    rule = r"augment \(rand-augment\): needs images with 3 channels; these have 1\."
    with pytest.raises(UsageError, match=rule):
        op.apply(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [], torch.zeros(0), torch.zeros(3))


EVERYTHING = [
    "augment=[{name: pad-crop, pad: 4, mode: reflect}, {name: flip, p: 0.5}, "
    "{name: rand-augment, layers: 2, magnitude: 7, std: 0.5, p: 1.0, increasing: true, "
    "interpolation: random, fill: [124, 116, 104]}, "
    "{name: auto-augment, policy: original, interpolation: bicubic, fill: [124, 116, 104]}, "
    "{name: trivial-augment, interpolation: bilinear, fill: [0, 0, 0]}, "
    "{name: colour-jitter, brightness: 0.4, contrast: 0.4, saturation: 0.4}, "
    "{name: pca-lighting, std: 0.1}, "
    "{name: random-erasing, p: 1.0, mode: MODE, area: [0.02, 0.3333], ratio: [0.3, 3.3333]}]"
]


@pytest.mark.parametrize("mode", ["pixel", "rand"])
def test_a_step_with_every_augmentation_never_asks_and_sends_one_block_of_draws(mode: str) -> None:
    changes = [change.replace("MODE", mode) for change in EVERYTHING]
    changes += ["train.batch_size=64", "train.device_batch_size=32"]
    to_device, to_host = on_fake_tensors("myrtle-baseline", changes)
    assert to_device == 2 * 2 * 2, "for each micro-batch of each step its indices and its draws"
    assert to_host == 0
