"""AutoAugment's ImageNet policies against timm's."""

import importlib
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from rescue_cli.augment import Operation
from rescue_cli.augment.auto_augment import SUB_POLICIES, auto_augment
from rescue_cli.augment.policy import Group
from rescue_cli.draws import uniform

timms: Any = importlib.import_module("timm.data.auto_augment")

FILL = (124, 116, 104)
IMAGES = 20_000


def drawn(op: Operation) -> list[tuple[Group, NDArray[np.float64]]]:
    groups, arguments, _ = op.plan(uniform(0, "augment", 3, 1, (IMAGES, op.columns)))
    ends = list(itertools.accumulate(len(group.rows) for group in groups))
    return list(zip(groups, np.split(arguments, ends[:-1]), strict=True))


@pytest.mark.parametrize("policy", ["original", "v0"])
def test_the_sub_policies_are_timms(policy: str) -> None:
    theirs = timms.auto_augment_policy(policy)
    listed = [tuple((op.name, op.prob, op.magnitude) for op in sub_policy) for sub_policy in theirs]
    assert list(SUB_POLICIES[policy]) == listed


@pytest.mark.parametrize("policy", ["original", "v0"])
def test_what_an_image_gets_is_distributed_as_with_timm(policy: Any) -> None:
    """Every sequence of operations and arguments, as often as timm's transform calls it."""
    ours: list[tuple[tuple[str, float], ...]] = [()] * IMAGES
    for group, arguments in drawn(auto_augment(policy=policy, interpolation="bicubic", fill=FILL)):
        for row, argument in zip(group.rows, arguments.tolist(), strict=True):
            ours[row] = (*ours[row], (group.name, round(argument, 9)))

    theirs: list[tuple[tuple[str, float], ...]] = []
    transform = timms.auto_augment_transform(policy, {"img_mean": FILL})
    for op in itertools.chain.from_iterable(transform.policy):

        def note(image: Any, *given: float, name: str = op.name, **_: Any) -> Any:
            theirs[-1] = (*theirs[-1], (name, round(float((*given, 0)[0]), 9)))
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
        return np.concatenate([given for group, given in drawn(op) if group.name == "Rotate"])

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
