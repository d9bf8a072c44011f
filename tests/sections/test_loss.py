"""Binary cross-entropy against timm's, and against its formula where the two differ on purpose."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rescue_cli.batch import Batch
from rescue_cli.sections.loss import binary_cross_entropy
from rescue_cli.sections.mix import blend_images

CLASSES = 6
LOGITS = torch.randn((4, CLASSES), generator=torch.Generator().manual_seed(0)).double() * 3
LABELS = torch.tensor([2, 0, 5, 2])


def shares(lam: float = 0.7) -> Tensor:
    batch = Batch(torch.zeros(4, 1, 1, 1).double(), LABELS, 0, 0, np.arange(4))
    targets: Tensor = blend_images(batch, lam, CLASSES).targets
    return targets


def loss(targets: Any, smoothing: float, wanted: Tensor) -> float:
    made = binary_cross_entropy(4, targets=targets, label_smoothing=smoothing)
    assert made.factor == 1
    return float(made.mean(LOGITS, wanted))


def written_out(wanted: Tensor) -> float:
    p = 1 / (1 + torch.exp(-LOGITS))
    return float(-(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_timms(smoothing: float) -> None:
    from timm.data.mixup import mixup_target
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy

    dense = mixup_target(LABELS, CLASSES, 0.7, smoothing).double()  # type: ignore[no-untyped-call]
    theirs = BinaryCrossEntropy(smoothing=smoothing)(LOGITS, dense)
    assert loss("soft", smoothing, shares()) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("lam", [0.9, 0.7, 0.5])
def test_a_threshold_is_timms_without_smoothing(lam: float) -> None:
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy

    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2)(LOGITS, shares(lam))
    assert loss(0.2, 0.0, shares(lam)) == pytest.approx(float(theirs), rel=1e-6)


def test_labels_are_timms() -> None:
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy

    theirs = BinaryCrossEntropy(smoothing=0.1)(LOGITS, LABELS)
    for targets in ("soft", "present", 0.5):
        assert loss(targets, 0.1, LABELS) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lam", [0.999, 0.5, 0.01])
def test_every_class_that_is_present_is_wholly_there(lam: float, smoothing: float) -> None:
    """Smoothing acts on the binary targets: 1 - s + s/K and s/K."""
    wanted = torch.zeros(4, CLASSES, dtype=torch.float64)
    for row, (own, other) in enumerate(zip(LABELS, LABELS.flip(0), strict=True)):
        wanted[row, own] = wanted[row, other] = 1
    wanted = wanted * (1 - smoothing) + smoothing / CLASSES
    assert loss("present", smoothing, shares(lam)) == pytest.approx(written_out(wanted), rel=1e-9)


def test_a_share_of_nothing_is_not_present() -> None:
    assert loss("present", 0.0, shares(1.0)) == pytest.approx(loss("soft", 0.0, LABELS), rel=1e-9)


def test_under_autocast_the_loss_is_that_of_float32() -> None:
    weight = torch.randn((CLASSES, 5), generator=torch.Generator().manual_seed(1))
    features = torch.randn((4, 5), generator=torch.Generator().manual_seed(2))
    mean = binary_cross_entropy(4, targets="present", label_smoothing=0.0).mean
    with torch.autocast("cpu", torch.bfloat16):
        logits = features @ weight.T
        found = mean(logits, shares().float())
    assert logits.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mean(logits.float(), shares().float()))
