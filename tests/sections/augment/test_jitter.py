"""Colour jitter against torchvision's, and AlexNet's lighting against its formula."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as theirs

from rescue_cli.batch import Batch
from rescue_cli.rng import uniform
from rescue_cli.sections.augment import Augment
from rescue_cli.sections.augment.jitter import (
    VALUES,
    VECTORS,
    brightness_contrast,
    colour_jitter,
    pca_lighting,
)
from rescue_cli.sections.augment.pipeline import Normalise
from tests.helpers.photos import as_batch, crops, differences

ADJUST = {
    "BrightnessFactor": theirs.adjust_brightness,
    "ContrastFactor": theirs.adjust_contrast,
    "ColorFactor": theirs.adjust_saturation,
}


def test_photographs_are_torchvisions_to_the_level(imagenet_sample: Path) -> None:
    images: list[Image.Image] = crops(imagenet_sample, 24, 96)
    op = colour_jitter(brightness=0.4, contrast=0.4, saturation=1.5)
    groups, arguments, fill = op.plan(uniform(0, "augment", 0, 0, (24, op.columns)))
    found = op.apply(as_batch(images), groups, torch.from_numpy(arguments), torch.from_numpy(fill))
    given = iter(arguments.tolist())
    for name, _, rows in groups:
        for row in rows:
            images[row] = ADJUST[name](images[row], next(given))
    assert differences(found, images).max() == 0


def test_factors_are_uniform_and_orders_equally_frequent_as_with_torchvision() -> None:
    op = colour_jitter(brightness=0.4, contrast=0.3, saturation=1.5)
    n = 6000
    groups, arguments, _ = op.plan(uniform(0, "augment", 0, 0, (n, op.columns)))
    orders: list[str] = [""] * n
    factors: dict[str, list[float]] = {name: [] for name in ADJUST}
    given = iter(arguments.tolist())
    for name, _, rows in groups:
        for row in rows:
            orders[row] += name[:3]
            factors[name].append(next(given))
    assert stats.chisquare([orders.count(order) for order in sorted(set(orders))]).pvalue > 1e-3
    assert len(set(orders)) == 6
    jitter = ColorJitter(0.4, 0.3, 1.5)  # its bounds: (0.6, 1.4), (0.7, 1.3), (0, 2.5)
    bounds = (jitter.brightness, jitter.contrast, jitter.saturation)
    for name, bound in zip(ADJUST, bounds, strict=True):
        assert bound is not None
        low, high = map(float, bound)
        assert len(factors[name]) == n
        assert stats.kstest(factors[name], stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_what_is_not_jittered_stays_untouched() -> None:
    op = colour_jitter(brightness=0.0, contrast=0.0, saturation=0.4)
    groups, _, _ = op.plan(uniform(0, "augment", 0, 0, (10, op.columns)))
    assert {group.name for group in groups} == {"ColorFactor"}


def test_lighting_adds_one_colour_along_the_principal_axes_before_normalisation() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    n = 4000
    op = pca_lighting(std=0.1)
    normalise = Normalise(mean, std, torch.device("cpu"), torch.float64, False)
    pixels = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(n), 4, 1, np.arange(n))
    found = Augment([op], normalise, 0, 100)(batch).images
    values = found * torch.tensor(std)[:, None, None].double()
    values += torch.tensor(mean)[:, None, None].double()
    added = (values - pixels.double() / 255).numpy()
    assert np.ptp(added, axis=(2, 3)).max() < 1e-6, "one colour for all of an image's pixels"
    alphas = np.linalg.solve(VECTORS, added[:, :, 0, 0].T) / VALUES[:, None]
    for alpha in alphas:
        assert stats.kstest(alpha, stats.norm(0, 0.1).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(alphas) - np.eye(3)).max() < 0.06


def test_brightness_is_added_and_contrast_multiplied_once_an_image() -> None:
    n, brightness, contrast = 4000, 0.14, 0.13
    op = brightness_contrast(brightness=brightness, contrast=contrast)
    identity = Normalise((0.0,) * 3, (1 / 255,) * 3, torch.device("cpu"), torch.float64, False)
    pixels = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = 0, 100
    batch = Batch(pixels, torch.zeros(n), 4, 1, np.arange(n))
    found = Augment([op], identity, 0, 100)(batch).images
    low, high = found[:, 0, 0, 0], found[:, 0, 0, 1]
    factors, shifts = (high - low) / 100, 100 * low / (high - low)
    each = (slice(None), None, None, None)
    expected = (pixels.double() + shifts[each]) * factors[each]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for drawn, middle, reach in ((shifts, 0, brightness), (factors, 1, contrast)):
        spread = stats.uniform(middle - reach, 2 * reach)
        assert stats.kstest(drawn.numpy(), spread.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(shifts, factors)[0, 1]) < 0.06


def test_the_axes_are_those_of_imagenets_colours() -> None:
    """Orthonormal to the digits that are published; the first is brightness."""
    np.testing.assert_allclose(VECTORS.T @ VECTORS, np.eye(3), atol=2e-4)
    assert (np.sign(VECTORS[:, 0]) == -1).all()
