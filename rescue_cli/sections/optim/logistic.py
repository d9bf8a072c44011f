"""Multinomial logistic regression by L-BFGS: the head of a frozen network, fitted in one go."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from rescue_cli.errors import DataError
from rescue_cli.recipe.schema import Positive, PositiveInt
from rescue_cli.rng import Indices, permute

LBFGS = "lbfgs"  # its name in a recipe
STRONGER = 10**0.5  # a decay by the next one
MOST_STEPS = 2000
TOLERANCE = 1e-5  # of the gradient's largest element

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A linear classifier, weights (classes, d) and biases (classes,), and how it was chosen.

    `log_probabilities` (n, classes) are those of each training image by a classifier fitted to the
    other parts; None where only one weight decay was asked for. `losses` are by weight decay.
    """

    weights: Doubles
    biases: Doubles
    decay: float
    losses: dict[float, float]
    log_probabilities: Doubles | None


@dataclass(frozen=True)
class LogisticRegression:
    """See `lbfgs`."""

    weight_decay: float
    candidates: int
    folds: int

    def fit(
        self,
        features: Doubles,
        labels: Indices,
        classes: int,
        *,
        seed: int,
        intercept: bool = True,
    ) -> Fit:
        """The classifier of features (n, d); without `intercept` its biases are 0.

        Raises `DataError` where a class has too few images for the folds.
        """
        rows, basis = _reduce(features)
        minimise = partial(_minimise, classes=classes, intercept=intercept)
        decays = [self.weight_decay / STRONGER**index for index in range(self.candidates)]
        losses, chosen = {}, None
        if len(decays) > 1:
            tried = _cross_validate(minimise, rows, labels, decays, self.folds, seed)
            means = -tried[:, np.arange(len(labels)), labels].mean(1)
            losses = dict(zip(decays, means.tolist(), strict=True))
            decays, chosen = decays[: means.argmin() + 1], tried[means.argmin()]
        start = None
        for decay in decays:  # each begins where the one before ended
            start = minimise(rows, labels, decay=decay, start=start)
        assert start is not None
        weights, biases = start
        return Fit(weights @ basis, biases, decays[-1], losses, chosen)


def lbfgs(
    *, weight_decay: Positive, candidates: PositiveInt = 1, folds: Annotated[int, Ge(2)] = 5
) -> LogisticRegression:
    """Fits the head of a frozen network to all images at once: multinomial logistic regression.

    Minimises the mean cross-entropy + weight_decay / 2 times the squared weights, biases excluded,
    to convergence. Of several `candidates`, `weight_decay` and smaller ones in steps of half a
    power of ten, the one with the lowest loss in cross-validation over `folds` parts of the
    training images is used.
    """
    return LogisticRegression(weight_decay, candidates, folds)


def _reduce(features: Doubles) -> tuple[Doubles, Doubles]:
    """Features (n, min(n, d)) in an orthonormal basis (min(n, d), d) of what they span.

    The weights of the optimum lie in it, and have the same length there.
    """
    if len(features) >= features.shape[1]:
        return features, np.eye(features.shape[1])
    basis, triangle = np.linalg.qr(features.T)
    return triangle.T, basis.T


def _cross_validate(
    minimise: Callable[..., tuple[Doubles, Doubles]],
    rows: Doubles,
    labels: Indices,
    decays: list[float],
    folds: int,
    seed: int,
) -> Doubles:
    """Log-probabilities (decays, n, classes) of each image by a fit to the other folds."""
    from scipy.special import log_softmax

    part = _assign_folds(labels, folds, seed)
    by_decay: list[list[Doubles]] = [[] for _ in decays]
    order: list[Indices] = []
    for number in range(folds):
        apart = part == number
        order.append(np.flatnonzero(apart))
        start = None
        for decay, parts in zip(decays, by_decay, strict=True):
            start = minimise(rows[~apart], labels[~apart], decay=decay, start=start)
            parts.append(log_softmax(rows[apart] @ start[0].T + start[1], axis=1))
    back = np.argsort(np.concatenate(order))
    return np.stack([np.concatenate(parts)[back] for parts in by_decay])


def _assign_folds(labels: Indices, folds: int, seed: int) -> Indices:
    """The fold of each image, drawn at random with each class spread evenly."""
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 2:
        raise DataError(
            f"{(counts == 1).sum()} of {len(counts)} classes have a single training image, and "
            "cross-validation needs two. Add images, or set optim.candidates=1."
        )
    order = permute(np.arange(len(labels)), len(labels), seed, 0)
    by_class = np.lexsort((order, labels))
    part = np.empty(len(labels), dtype=np.int64)
    part[by_class] = np.arange(len(labels)) % folds
    return part


def _minimise(
    rows: Doubles,
    labels: Indices,
    *,
    classes: int,
    intercept: bool,
    decay: float,
    start: tuple[Doubles, Doubles] | None = None,
) -> tuple[Doubles, Doubles]:
    """Weights (classes, d) and biases (classes,) at the minimum."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    n, d = rows.shape
    wanted = np.zeros((n, classes))
    wanted[np.arange(n), labels] = 1

    def objective(values: Doubles) -> tuple[float, Doubles]:
        weights, biases = values[: classes * d].reshape(classes, d), values[classes * d :]
        log_probabilities = log_softmax(rows @ weights.T + biases, axis=1)
        loss = -(wanted * log_probabilities).sum() / n + decay / 2 * (weights**2).sum()
        errors = (np.exp(log_probabilities) - wanted) / n
        of_biases = errors.sum(0) * intercept
        gradient = np.concatenate([(errors.T @ rows + decay * weights).ravel(), of_biases])
        return float(loss), gradient

    initial = np.zeros(classes * (d + 1)) if start is None else np.concatenate(start, axis=None)
    options = {"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "gtol": TOLERANCE, "ftol": 0.0}
    values = minimize(objective, initial, jac=True, method="L-BFGS-B", options=options).x
    return values[: classes * d].reshape(classes, d), values[classes * d :]
