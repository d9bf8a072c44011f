"""AutoAugment's ImageNet policies against timm's."""

import importlib
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import stats

from rescue_cli.rng import uniform
from rescue_cli.sections.augment import Operation
from rescue_cli.sections.augment.auto_augment import SUB_POLICIES, auto_augment
from rescue_cli.sections.augment.named_operations import Group

timms: Any = importlib.import_module("timm.data.auto_augment")

FILL = (124, 116, 104)
POLICIES = ("original", "v0", "v0-pycls")  # the last is timm's v0 but for posterize
IMAGES = 20_000


def plan_draws(op: Operation) -> list[tuple[Group, NDArray[np.float64]]]:
    groups, arguments, _ = op.plan(uniform(0, "augment", 3, 1, (IMAGES, op.columns)))
    ends = list(itertools.accumulate(len(group.rows) for group in groups))
    return list(zip(groups, np.split(arguments, ends[:-1]), strict=True))


def timms_name(name: str) -> str:
    return name.removesuffix("AtLeastOne")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_sub_policies_are_timms(policy: str) -> None:
    theirs = timms.auto_augment_policy(policy.removesuffix("-pycls"))
    listed = [tuple((op.name, op.prob, op.magnitude) for op in sub_policy) for sub_policy in theirs]
    ours = [tuple((timms_name(n), p, m) for n, p, m in row) for row in SUB_POLICIES[policy]]
    assert ours == listed


def test_pycls_leaves_a_bit_where_v0_leaves_none() -> None:
    """Levels of PIL's posterize with max(1, int(4 m / 10)) bits: `v0` has m = 6, and m = 2."""
    ramp = torch.arange(256).byte().view(1, 1, 16, 16).expand(1, 3, -1, -1).contiguous()
    picture = Image.fromarray(ramp[0].permute(1, 2, 0).numpy())
    found = {}
    for policy in ("v0", "v0-pycls"):
        op = auto_augment(policy=policy, interpolation="bilinear", fill=(128,) * 3)
        for row, sub_policy in enumerate(SUB_POLICIES[policy]):
            (name, _, magnitude), _ = sub_policy
            if timms_name(name) != "Posterize":
                continue
            draws = np.full((1, op.columns), 0.5, dtype=np.float32)
            draws[:, 0], draws[:, 1], draws[:, 6] = (row + 0.5) / 25, 0.0, 0.99
            groups, arguments, fill = op.plan(draws)
            colour = torch.from_numpy(fill)
            found[policy, magnitude] = op.apply(ramp, groups, torch.from_numpy(arguments), colour)
    for (policy, magnitude), pixels in found.items():
        bits = max(1 if policy == "v0-pycls" else 0, int(4 * magnitude / 10))
        posterized = (
            np.asarray(ImageOps.posterize(picture, bits)) if bits else np.zeros((16, 16, 3))
        )
        np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), posterized)
    assert sorted({m for _, m in found}) == [2, 6]
    assert set(found["v0-pycls", 2].flatten().tolist()) == {0, 128}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_an_image_gets_is_distributed_as_with_timm(policy: Any) -> None:
    """Every sequence of operations and arguments, as often as timm's transform calls it."""
    ours: list[tuple[tuple[str, float], ...]] = [()] * IMAGES
    for group, arguments in plan_draws(
        auto_augment(policy=policy, interpolation="bicubic", fill=FILL)
    ):
        for row, argument in zip(group.rows, arguments.tolist(), strict=True):
            ours[row] = (*ours[row], (group.name, round(argument, 9)))

    theirs: list[tuple[tuple[str, float], ...]] = []
    transform = timms.auto_augment_transform(policy.removesuffix("-pycls"), {"img_mean": FILL})
    for op in itertools.chain.from_iterable(transform.policy):

        def note(image: Any, *given: float, name: str = op.name, **_: Any) -> Any:
            argument = float((*given, 0)[0])
            if policy == "v0-pycls" and name == "Posterize":
                name, argument = "PosterizeAtLeastOne", max(1.0, argument)
            theirs[-1] = (*theirs[-1], (name, round(argument, 9)))
            return image

        op.aug_fn = note
    random.seed(3)
    for _ in range(IMAGES):
        theirs.append(())
        transform(None)

    kinds = sorted(set(ours) | set(theirs))
    counts = np.array([[of.count(kind) for kind in kinds] for of in (ours, theirs)])
    often = counts.sum(0) >= 20
    rest = counts[:, ~often].sum(1, keepdims=True)
    table = np.hstack([counts[:, often], rest] if rest.sum() else [counts[:, often]])
    assert often.sum() > 40
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_magnitudes_vary_where_the_recipe_says_so() -> None:
    def degrees(std: float) -> NDArray[np.float64]:
        op = auto_augment(policy="original", std=std, interpolation="bicubic", fill=FILL)
        return np.concatenate([given for group, given in plan_draws(op) if group.name == "Rotate"])

    assert sorted({round(abs(d), 9) for d in degrees(0.0)}) == [9.0, 24.0, 27.0]
    assert len(np.unique(degrees(0.5))) > 1000


def test_an_image_goes_through_its_sub_policy() -> None:
    op = auto_augment(policy="original", interpolation="bicubic", fill=FILL)
    draws = np.full((2, op.columns), 0.3, dtype=np.float32)
    draws[:, 0] = (13 + 0.5) / 25  # Invert with probability 0.6, then Equalize with 1
    draws[1, 1] = 0.61
    draws[1, 6] = 0.99
    groups, _, _ = op.plan(draws)
    assert [(g.name, g.rows) for g in groups] == [("Invert", [0]), ("Equalize", [0, 1])]
    pixels = torch.arange(2 * 3 * 256, dtype=torch.int64).remainder(256).byte().view(2, 3, 16, 16)
    found = op.apply(pixels, groups, torch.zeros(3), torch.zeros(3, dtype=torch.uint8))
    assert torch.equal(found[0], 255 - pixels[0])  # already of equal counts
    assert torch.equal(found[1], pixels[1])
