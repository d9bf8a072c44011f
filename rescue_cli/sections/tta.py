"""The section `eval`: test-time augmentation, which weighs what the network says of several images.

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
    """An image moved down and right by so many pixels, its border reflected, then mirrored."""

    shift: int
    mirrored: bool

    def apply(self, images: Tensor) -> Tensor:
        """The variant of images (n, channels, height, width)."""
        if self.shift:
            pad, (height, width) = abs(self.shift), images.shape[-2:]
            start = pad - self.shift
            padded = functional.pad(images, (pad, pad, pad, pad), mode="reflect")
            images = padded[..., start : start + height, start : start + width]
        return images.flip(-1) if self.mirrored else images


Weights = Mapping[Variant, float]


@dataclass(frozen=True)
class Tta:
    """Weights of variants, which are shown of this share of a test set: its least confident images.

    The others' logits are those of the image as it is.
    """

    weights: Weights
    share: float = 1.0

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits (n, classes) with the variants shown of every image."""
        (found,) = tta_logits(model, images, [self.weights])
        return found

    @property
    def first(self) -> Weights:
        """What is shown of every image."""
        return self.weights if self.share == 1 else PLAIN


def tta_logits(model: nn.Module, images: Tensor, wanted: Sequence[Weights]) -> list[Tensor]:
    """Logits (n, classes) by each of the weights; a variant that several ask for is shown once."""
    variants = dict.fromkeys(variant for weights in wanted for variant in weights)
    said = {variant: model(variant.apply(images)).double() for variant in variants}
    return [
        torch.stack([weight * said[variant] for variant, weight in weights.items()]).sum(0)
        for weights in wanted
    ]


def least_confident(probabilities: NDArray[np.float64], share: float) -> Indices:
    """The places, in order, of the share (rounded down) of lowest numbers; of equals the first."""
    order = np.argsort(probabilities, kind="stable")
    found: Indices = np.sort(order[: int(len(order) * share)])
    return found


PLAIN = {Variant(0, False): 1.0}
FLIP = dict.fromkeys((Variant(0, False), Variant(0, True)), 1 / 2)
TRANSLATED = [Variant(shift, mirrored) for shift in (-1, 1) for mirrored in (False, True)]
MEAN = dict.fromkeys((*FLIP, *TRANSLATED), 1 / 6)
TTAS = {
    "none": Tta(PLAIN),
    "flip": Tta(FLIP),
    # airbench's level 2 (Jordan 2024): the image in its place, up and left, down and right
    "flip-translate": Tta({**dict.fromkeys(FLIP, 1 / 4), **dict.fromkeys(TRANSLATED, 1 / 8)}),
    "flip-translate-mean": Tta(MEAN),
    # hiverge's (2025): the plain mean in place of the logits of the quarter whose highest
    # probability is lowest
    "flip-translate-uncertain": Tta(MEAN, share=1 / 4),
}
