"""Test-time augmentation (`eval.tta`): weighted sums of the logits for several image variants.

Logits are summed in double precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.rng import Indices


class Variant(NamedTuple):
    """An image shifted down and right by `shift` pixels (reflected border), then mirrored."""

    shift: int
    mirrored: bool

    def apply(self, images: Tensor) -> Tensor:
        """Transforms images (n, channels, height, width) to this variant."""
        if self.shift:
            pad, (height, width) = abs(self.shift), images.shape[-2:]
            start = pad - self.shift
            padded = functional.pad(images, (pad, pad, pad, pad), mode="reflect")
            images = padded[..., start : start + height, start : start + width]
        return images.flip(-1) if self.mirrored else images


Weights = Mapping[Variant, float]


@dataclass(frozen=True)
class Tta:
    """Weights of variants, used for `share` of a test set: the images with the least confidence.

    The logits of the other images are those of the unchanged image.
    """

    weights: Weights
    share: float = 1.0

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits (n, classes) over the variants of every image."""
        (result,) = tta_logits(model, images, [self.weights])
        return result

    @property
    def first(self) -> Weights:
        """The weights used for every image."""
        return self.weights if self.share == 1 else PLAIN


def tta_logits(model: nn.Module, images: Tensor, wanted: Sequence[Weights]) -> list[Tensor]:
    """Logits (n, classes) for each of `wanted`; variants that they share are computed once."""
    variants = dict.fromkeys(variant for weights in wanted for variant in weights)
    logits_of = {variant: model(variant.apply(images)).double() for variant in variants}
    return [
        torch.stack([weight * logits_of[variant] for variant, weight in weights.items()]).sum(0)
        for weights in wanted
    ]


def least_confident(probabilities: NDArray[np.float64], share: float) -> Indices:
    """Sorted indices of the `share` (rounded down) with the lowest values; of equals the first."""
    order = np.argsort(probabilities, kind="stable")
    chosen: Indices = np.sort(order[: int(len(order) * share)])
    return chosen


PLAIN = {Variant(0, False): 1.0}
FLIP = dict.fromkeys((Variant(0, False), Variant(0, True)), 1 / 2)
TRANSLATED = [Variant(shift, mirrored) for shift in (-1, 1) for mirrored in (False, True)]
MEAN = dict.fromkeys((*FLIP, *TRANSLATED), 1 / 6)
TTAS = {
    "none": Tta(PLAIN),
    "flip": Tta(FLIP),
    # airbench's level 2 (Jordan 2024): the image unshifted, up and left, down and right
    "flip-translate": Tta({**dict.fromkeys(FLIP, 1 / 4), **dict.fromkeys(TRANSLATED, 1 / 8)}),
    "flip-translate-mean": Tta(MEAN),
    # hiverge (2025): the mean, for the quarter of images with the lowest top probability
    "flip-translate-uncertain": Tta(MEAN, share=1 / 4),
}
