"""Logistic regression by L-BFGS beside torch's own loss, and its choice of weight decay."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from rescue_cli.build.linear_probe import describe_fit
from rescue_cli.errors import DataError
from rescue_cli.rng import Indices
from rescue_cli.sections.optim.logistic import Doubles, Fit, lbfgs

CLASSES, FEATURES = 3, 40


def draw(images: int, distance: float) -> tuple[Doubles, Indices]:
    rng = np.random.default_rng(1)
    labels = np.arange(images) % CLASSES
    centres = distance * rng.normal(size=(CLASSES, FEATURES))
    return centres[labels] + rng.normal(size=(images, FEATURES)), labels


@pytest.mark.parametrize("images", [24, 90], ids=["fewer images than features", "more"])
@pytest.mark.parametrize("intercept", [True, False])
def test_the_gradient_of_torchs_loss_is_zero_at_the_fit(images: int, intercept: bool) -> None:
    features, labels = draw(images, 0.3)
    fit = lbfgs(weight_decay=0.02).fit(features, labels, CLASSES, seed=0, intercept=intercept)
    weights = torch.tensor(fit.weights, requires_grad=True)
    biases = torch.tensor(fit.biases, requires_grad=True)
    logits = functional.linear(torch.tensor(features), weights, biases)
    loss = functional.cross_entropy(logits, torch.tensor(labels)) + 0.01 * weights.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    assert biases.grad is not None
    assert float(weights.grad.abs().max()) < 1e-4
    assert (float(biases.grad.abs().max()) < 1e-4) == intercept
    assert bool(fit.biases.any()) == intercept
    assert (fit.losses, fit.log_probabilities) == ({}, None)


def cross_validated(features: Doubles, labels: Indices, **options: int) -> Fit:
    fit = lbfgs(weight_decay=1.0, candidates=7, **options)
    return fit.fit(features, labels, CLASSES, seed=0)


def test_the_decay_with_the_lowest_loss_on_images_that_were_left_out_is_used() -> None:
    features, labels = draw(60, 0.25)
    fit = cross_validated(features, labels)
    assert list(fit.losses) == pytest.approx([10 ** (-i / 2) for i in range(7)])
    assert fit.decay == min(fit.losses, key=lambda decay: fit.losses[decay])
    assert 1e-3 < fit.decay < 1, "noisy features: neither end"
    assert fit.log_probabilities is not None
    left_out = -fit.log_probabilities[np.arange(60), labels].mean()
    assert left_out == pytest.approx(fit.losses[fit.decay])
    logits = features @ fit.weights.T + fit.biases
    seen = functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert seen < 0.7 * left_out, "what was left out was not seen"
    alone = lbfgs(weight_decay=fit.decay).fit(features, labels, CLASSES, seed=0)
    np.testing.assert_allclose(fit.weights, alone.weights, atol=1e-3)


def test_labels_without_a_relation_to_the_features_are_not_learned() -> None:
    features, labels = draw(120, 0.0)
    fit = cross_validated(features, labels)
    assert fit.decay == 1.0
    assert fit.log_probabilities is not None
    right = (fit.log_probabilities.argmax(1) == labels).mean()
    assert right < 0.5, "a third by chance; 5 standard deviations are 0.22"


def test_folds_hold_each_class_evenly_and_a_class_with_one_image_is_refused() -> None:
    features, labels = draw(30, 1.0)
    assert cross_validated(features, labels, folds=10).losses
    labels[labels == 2] = 1
    labels[0] = 2
    with pytest.raises(DataError, match=r"1 of 3 classes have a single training image"):
        cross_validated(features, labels)


@pytest.mark.parametrize(
    ("decay", "words"),
    [
        (1.0, "the largest of 3 and the best in"),
        (0.1, "the best of 3 in"),
        (0.01, "the smallest of 3 and the best in"),
    ],
)
def test_a_decay_at_an_end_of_those_tried_is_called_so(decay: float, words: str) -> None:
    losses = {1.0: 0.5, 0.1: 0.5, 0.01: 0.5}
    fit = Fit(np.zeros((2, 1)), np.zeros(2), decay, losses, np.log([[0.9, 0.1], [0.8, 0.2]]))
    line, _ = describe_fit(fit, np.array([0, 1]))
    assert f"weight decay {decay:g}, {words} cross-validation: 1 of 2 right (50.00 %)" in line
