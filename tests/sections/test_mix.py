"""Mixing against timm's, image by image and target by target."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from rescue_cli.batch import Batch
from rescue_cli.errors import UsageError
from rescue_cli.sections.loss import cross_entropy
from rescue_cli.sections.mix import (
    MixContext,
    beta_quantile,
    blend_images,
    cutmix,
    cutmix_box,
    cutmix_patch,
    mixup,
    mixup_or_cutmix,
    none,
    paste_box,
)

CLASSES = 7
MIXING = MixContext(CLASSES, seed=3, steps_per_epoch=5)


def a_micro_batch(
    n: int = 8, height: int = 15, width: int = 12, step: int = 0, micro_batch: int = 0
) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((n, 3, height, width), generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return Batch(images, labels, step, micro_batch, np.arange(n))


def theirs(batch: Batch, seed: int, **options: float) -> tuple[Tensor, Tensor, float]:
    """timm's mixed images, smoothed targets, and its share, from numpy's draws of that seed."""
    from timm.data.mixup import Mixup

    np.random.seed(seed)
    mixer = Mixup(num_classes=CLASSES, **options)  # type: ignore[no-untyped-call]
    images, targets = mixer(batch.images.clone(), batch.targets)
    np.random.seed(seed)
    lam, _ = mixer._params_per_batch()  # type: ignore[no-untyped-call]
    return images, targets, float(lam)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_timms_for_the_same_share(seed: int) -> None:
    batch = a_micro_batch()
    images, targets, lam = theirs(batch, seed, mixup_alpha=0.2, label_smoothing=0.0)
    ours = blend_images(batch, lam, CLASSES)
    torch.testing.assert_close(ours.images, images, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.targets, targets.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_is_timms_for_the_same_box(seed: int) -> None:
    """timm since 1.0.29 rounds half of an odd side up on the far side; `odd` does as it does."""
    batch = a_micro_batch()
    images, targets, lam = theirs(
        batch, seed, mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0
    )
    np.random.seed(seed)
    np.random.rand()
    np.random.beta(1.0, 1.0)
    side = (1 - lam) ** 0.5
    row = np.random.randint(0, 15)
    column = np.random.randint(0, 12)
    assert int(15 * side) >= 0
    ours = paste_box(batch, cutmix_box(15, 12, lam, row, column, odd=1), CLASSES)
    torch.testing.assert_close(ours.images, images, rtol=0, atol=0)
    torch.testing.assert_close(ours.targets, targets.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.31, 0.5, 0.77, 0.999, 1.0])
def test_the_box_is_floored_on_both_sides_as_up_to_timm_1_0_28(lam: float) -> None:
    """The box of that release, written out with its own clipping."""
    for row, column in ((0, 0), (7, 5), (14, 11), (3, 10)):
        ratio = np.sqrt(1 - lam)
        tall, wide = int(15 * ratio), int(12 * ratio)
        expected = (
            int(np.clip(row - tall // 2, 0, 15)),
            int(np.clip(row + tall // 2, 0, 15)),
            int(np.clip(column - wide // 2, 0, 12)),
            int(np.clip(column + wide // 2, 0, 12)),
        )
        assert cutmix_box(15, 12, lam, row, column) == expected


def test_an_odd_side_loses_a_pixel() -> None:
    assert cutmix_box(32, 32, 1 - (5 / 32) ** 2, 16, 16) == (14, 18, 14, 18)
    assert cutmix_box(32, 32, 1 - (5 / 32) ** 2, 16, 16, odd=1) == (14, 19, 14, 19)


def test_labels_follow_the_true_area_of_a_box_that_the_border_cuts() -> None:
    batch = a_micro_batch()
    corners = cutmix_box(15, 12, 0.5, 0, 0)
    top, bottom, left, right = corners
    mixed = paste_box(batch, corners, CLASSES)
    share = 1 - (bottom - top) * (right - left) / (15 * 12)
    assert 0.8 < share < 1
    for target, own, other in zip(mixed.targets, batch.targets, batch.targets.flip(0), strict=True):
        expected = torch.zeros(CLASSES, dtype=torch.float64)
        expected[own] += share
        expected[other] += 1 - share
        torch.testing.assert_close(target, expected)


def test_smoothing_in_the_loss_is_timms_smoothing_in_the_targets() -> None:
    batch = a_micro_batch()
    _, smoothed, lam = theirs(batch, 4, mixup_alpha=0.8, label_smoothing=0.1)
    logits = torch.randn((8, CLASSES), generator=torch.Generator().manual_seed(2)).double()
    loss = cross_entropy(8, label_smoothing=0.1, reduction="mean").mean
    expected = -(smoothed.double() * functional.log_softmax(logits, 1)).sum(1).mean()
    found = loss(logits, blend_images(batch, lam, CLASSES).targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def torchvisions(mixer: Any, batch: Batch, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What torchvision's transform makes of the micro-batch, given what it would have drawn."""
    mixer.make_params = lambda _: params
    images, targets = mixer(batch.images, batch.targets)
    return images, targets


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.77, 1.0])
def test_mixup_with_the_previous_image_is_torchvisions(lam: float) -> None:
    batch = a_micro_batch()
    mixer = v2.MixUp(num_classes=CLASSES)
    images, targets = torchvisions(mixer, batch, {"lam": lam})
    ours = blend_images(batch, lam, CLASSES, "previous")
    torch.testing.assert_close(ours.images, images, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.targets, targets.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.31, 0.5, 0.77, 0.999, 1.0])
def test_cutmix_with_the_previous_image_is_torchvisions(lam: float) -> None:
    """Its box reaches int(side / 2 sqrt(1 - lam)) from the centre to both sides."""
    batch = a_micro_batch()
    for row, column in ((0, 0), (7, 5), (14, 11), (3, 10)):
        reach = 0.5 * np.sqrt(1 - lam)
        tall, wide = int(reach * 15), int(reach * 12)
        left, top = max(column - wide, 0), max(row - tall, 0)
        right, bottom = min(column + wide, 12), min(row + tall, 15)
        share = 1 - (right - left) * (bottom - top) / (15 * 12)
        mixer = v2.CutMix(num_classes=CLASSES)
        drawn = {"box": (left, top, right, bottom), "lam_adjusted": share}
        images, targets = torchvisions(mixer, batch, drawn)
        ours = paste_box(batch, cutmix_box(15, 12, lam, row, column), CLASSES, "previous")
        torch.testing.assert_close(ours.images, images, rtol=0, atol=0)
        torch.testing.assert_close(ours.targets, targets.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_the_partner_is_that_of_the_recipe(switch: float) -> None:
    batch = a_micro_batch(step=2)
    either = mixup_or_cutmix(MIXING, mixup=0.2, cutmix=1.0, switch=switch, partner="previous")
    alone = (
        cutmix(MIXING, alpha=1.0, partner="previous")
        if switch
        else mixup(MIXING, alpha=0.2, partner="previous")
    )
    moved = replace(batch, images=batch.images.roll(1, 0), targets=batch.targets.roll(1, 0))
    mixed, mirror = either(batch), either(moved)
    torch.testing.assert_close(mixed.images, alone(batch).images, rtol=0, atol=0)
    torch.testing.assert_close(mirror.images, mixed.images.roll(1, 0), rtol=0, atol=0)
    torch.testing.assert_close(mirror.targets, mixed.targets.roll(1, 0), rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0])
def test_shares_are_distributed_as_beta(alpha: float) -> None:
    draws = [MIXING.draws(a_micro_batch(2, 2, 2, step=step))[1] for step in range(2000)]
    shares = [beta_quantile(draw, alpha) for draw in draws]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_the_switch_chooses_cutmix_so_often() -> None:
    mix = mixup_or_cutmix(MIXING, mixup=0.2, cutmix=1.0, switch=0.3)
    pasted = 0
    for step in range(400):
        batch = a_micro_batch(2, 4, 4, step=step)
        mixed = mix(batch).images
        kept = (mixed == batch.images) | (mixed == batch.images.flip(0))
        pasted += bool(kept.all())
    assert 95 < pasted < 150  # 120 expected, deviation 9; a tiny share may round to a whole image


def test_a_micro_batch_is_mixed_alike_each_time_and_otherwise_than_the_next() -> None:
    mix = mixup(MIXING, alpha=1.0)
    first, again = (
        mix(a_micro_batch(step=5, micro_batch=1)),
        mix(a_micro_batch(step=5, micro_batch=1)),
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, mix(a_micro_batch(step=5, micro_batch=2)).images)
    assert not torch.equal(first.images, mix(a_micro_batch(step=6, micro_batch=1)).images)


def test_the_middle_image_of_an_odd_number_stays_itself() -> None:
    batch = a_micro_batch(5)
    for mix in (mixup(MIXING, alpha=1.0), cutmix(MIXING, alpha=1.0)):
        torch.testing.assert_close(mix(batch).images[2], batch.images[2])
        assert float(mix(batch).targets[2].max()) == pytest.approx(1.0)


def test_none_keeps_labels() -> None:
    batch = a_micro_batch()
    assert none(MIXING)(batch) is batch


@pytest.mark.parametrize("size", [1, 3, 4, 12])
def test_a_patch_is_a_square_of_the_partner_at_a_place_of_each_images_own(size: int) -> None:
    """Written out image by image; every place inside is taken about equally often."""
    n, height, width = 2000, 15, 12
    batch = a_micro_batch(n, height, width, step=10)
    mixed = cutmix_patch(MIXING, size=size, from_epoch=2.0)(batch)
    rows, columns = height - size + 1, width - size + 1
    seen = np.zeros((rows, columns), dtype=int)
    for i in range(n):
        partner = n - 1 - i
        changed = np.argwhere((mixed.images[i, 0] != batch.images[i, 0]).numpy())
        assert len(changed) == size**2
        top, left = changed.min(0)
        expected = batch.images[i].clone()
        patch = (slice(None), slice(top, top + size), slice(left, left + size))
        expected[patch] = batch.images[partner][patch]
        assert torch.equal(mixed.images[i], expected)
        seen[top, left] += 1
        if i < 20:
            shares = torch.zeros(CLASSES, dtype=torch.float64)
            shares[batch.targets[i]] += 1 - size**2 / (height * width)
            shares[batch.targets[partner]] += size**2 / (height * width)
            torch.testing.assert_close(mixed.targets[i], shares, rtol=0, atol=1e-12)
    assert stats.chisquare(seen.sum(1)).pvalue > 1e-3
    assert stats.chisquare(seen.sum(0)).pvalue > 1e-3 or columns == 1


@pytest.mark.parametrize(("from_epoch", "first"), [(0, 0), (2, 10), (2.1, 11), (2.2, 11)])
def test_patches_come_from_an_epoch_on(from_epoch: float, first: int) -> None:
    mix = cutmix_patch(MIXING, size=3, from_epoch=from_epoch)
    for step in range(15):
        batch = a_micro_batch(step=step)
        assert (mix(batch) is batch) == (step < first)


def test_patches_are_the_same_again_and_others_in_another_micro_batch() -> None:
    mix = cutmix_patch(MIXING, size=3, from_epoch=0)
    first = mix(a_micro_batch(step=5, micro_batch=1)).images
    assert torch.equal(first, mix(a_micro_batch(step=5, micro_batch=1)).images)
    assert not torch.equal(first, mix(a_micro_batch(step=5, micro_batch=2)).images)
    assert not torch.equal(first, mix(a_micro_batch(step=6, micro_batch=1)).images)


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"cutmix-patch\).size: 13 must be at most the image's side"
    ):
        cutmix_patch(MIXING, size=13, from_epoch=0)(a_micro_batch())
