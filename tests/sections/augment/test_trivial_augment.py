"""TrivialAugment Wide against torchvision's: what it draws, and what that does to photographs."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms import InterpolationMode, autoaugment

from rescue_cli.rng import uniform
from rescue_cli.sections.augment.named_operations import GEOMETRIC, Group
from rescue_cli.sections.augment.trivial_augment import LEVELS, SPACE, trivial_augment
from tests.helpers.photos import as_batch, crops, differences

IMAGES = 30_000
SIZE = 96
OPERATION = trivial_augment(interpolation="bilinear", fill=(0, 0, 0))


def theirs(name: str) -> str:
    return name.removesuffix("Given").removesuffix("Factor")


def plan_draws(n: int, seed: int = 0) -> list[tuple[Group, NDArray[np.float64]]]:
    """The groups of one micro-batch of `n` images, each with its images' arguments."""
    draws = uniform(seed, "augment", 3, 1, (n, OPERATION.columns))
    groups, arguments, _ = OPERATION.plan(draws)
    ends = list(itertools.accumulate(len(group.rows) for group in groups))
    return list(zip(groups, np.split(arguments, ends[:-1]), strict=True))


@pytest.mark.parametrize("name", SPACE)
def test_a_level_means_what_it_means_to_torchvision(name: str) -> None:
    """But for what float32 loses there: of level 15, 16 pixels, its linspace makes 15.999999."""
    space = autoaugment.TrivialAugmentWide()._augmentation_space(LEVELS)
    found, signed = SPACE[name]
    levels, with_sign = space[theirs(name)]
    expected = np.broadcast_to(levels.double().numpy(), LEVELS)
    if "Translate" in name:
        expected = np.floor(expected + 1e-5)  # F.affine moves by whole pixels
    if "Solarize" in name:
        expected = np.ceil(expected)  # the first whole level that is not below
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert signed == with_sign
    assert [theirs(name) for name in SPACE] == list(space)


def test_operations_levels_and_signs_are_distributed_as_torchvisions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[tuple[str, float]] = []

    def note(image: Any, name: str, magnitude: float, **_: Any) -> Any:
        called.append((name, round(magnitude, 4)))
        return image

    monkeypatch.setattr(autoaugment, "_apply_op", note)
    transform = autoaugment.TrivialAugmentWide()
    torch.manual_seed(7)
    nothing = torch.zeros((3, 1, 1), dtype=torch.uint8)
    for _ in range(IMAGES):
        transform(nothing)

    ours: list[tuple[str, float]] = []
    for group, arguments in plan_draws(IMAGES, seed=1):
        if group.name.endswith("Factor"):
            arguments = arguments - 1
        if "Solarize" in group.name:
            arguments = 255 - 8.5 * ((255 - arguments) / 8.5).round()
        if "Translate" in group.name:
            arguments = np.sign(arguments) * np.ceil(np.abs(arguments) / 32 * 30) / 30 * 32
        ours += [(theirs(group.name), round(a, 4)) for a in arguments.tolist()]
    ours += [("Identity", 0.0)] * (IMAGES - len(ours))

    def counted(of: list[tuple[str, float]], kinds: list[Any], level: bool) -> list[int]:
        keys = [(name, a + 0.0) if level else name for name, a in of]  # -0.0 + 0.0 is 0.0
        return [keys.count(kind) for kind in kinds]

    names = sorted({name for name, _ in called})
    counts = np.array([counted(of, names, level=False) for of in (ours, called)])
    assert len(names) == 14
    assert stats.chisquare(counts[0]).pvalue > 1e-3
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    some = ("Rotate", "Posterize", "Solarize", "ShearX", "TranslateY", "Contrast")
    of_levels = [[(n, abs(a)) for n, a in of if n in some] for of in (ours, called)]
    kinds = sorted(set(of_levels[0]) | set(of_levels[1]))
    assert len(kinds) == 5 * LEVELS + 7, "posterize has seven"
    counts = np.array([counted(of, kinds, level=True) for of in of_levels])
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    for name in ("Rotate", "Brightness", "TranslateX", "ShearY"):
        for of in (ours, called):
            signs = np.array([np.sign(a) for n, a in of if n == name and a])
            assert abs(signs.mean()) < 4 / np.sqrt(len(signs)), name


@pytest.mark.parametrize("name", [name for name in SPACE if name != "Identity"])
def test_photographs_become_what_torchvision_makes_of_them(
    name: str, imagenet_sample: Path
) -> None:
    """Every level of either sign."""
    levels, signed = SPACE[name]
    arguments = np.concatenate([levels, -levels]) if signed else levels
    around = 1.0 if name.endswith("Factor") else 0.0
    some = crops(imagenet_sample, 16, SIZE)
    images = [some[i % len(some)] for i in range(len(arguments))]
    groups = [Group(name, "bilinear", list(range(len(images))))]
    given = torch.from_numpy(around + arguments)
    found = OPERATION.apply(as_batch(images), groups, given, torch.zeros(3, dtype=torch.uint8))
    for i, argument in enumerate(arguments.tolist()):
        turned = -argument if "Translate" in name else argument  # there to the right and down
        expected = autoaugment._apply_op(
            images[i], theirs(name), turned, interpolation=InterpolationMode.BILINEAR, fill=None
        )
        off = differences(found[i : i + 1], [expected])
        if name not in GEOMETRIC:
            assert off.max() == 0, argument
            continue
        # PIL truncates sums in double precision, which may fall just below a whole number: measured
        # at most 0.0027 of the values of an image, one level each; and a shear, through degrees and
        # back, finds one pixel of these on the other side of the border
        assert (off > 1).sum() <= 3, argument
        assert (off > 0).float().mean() < 5e-3, argument


def test_an_image_gets_one_operation_or_stays_as_it_is() -> None:
    n = 2000
    rows = [row for group, _ in plan_draws(n) for row in group.rows]
    assert len(rows) == len(set(rows))
    assert abs(len(rows) / n - 13 / 14) < 4 * np.sqrt(13 / 14**2 / n)


def test_a_draw_is_an_operation_a_level_and_a_sign() -> None:
    names = list(SPACE)
    draws = np.full((4, 3), 0.9, dtype=np.float32)
    draws[0] = (names.index("RotateGiven") + 0.5) / 14, 20.5 / 31, 0.4
    draws[1] = (names.index("ColorFactor") + 0.5) / 14, 30.5 / 31, 0.6
    draws[2] = (names.index("PosterizeGiven") + 0.5) / 14, 30.5 / 31, 0.4
    draws[3] = 0.0
    groups, arguments, fill = OPERATION.plan(draws)
    output = {group.name: (group.rows, a) for group, a in zip(groups, arguments, strict=True)}
    assert output == {
        "RotateGiven": ([0], pytest.approx(-90.0)),
        "ColorFactor": ([1], pytest.approx(1.99)),
        "PosterizeGiven": ([2], 2.0),
    }
    assert fill.tolist() == [0, 0, 0]
    assert {group.kernel for group in groups if group.name == "RotateGiven"} == {"bilinear"}
