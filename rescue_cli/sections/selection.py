"""The section `selection`: which images of a micro-batch are trained on."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Interval
from torch import Tensor, nn

from rescue_cli.batch import Batch
from rescue_cli.recipe.schema import PositiveInt


class Selection(Protocol):
    """Keeps a share of a micro-batch's images."""

    @property
    def share(self) -> float: ...

    def __call__(self, batch: Batch, /) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Updates(Protocol):
    """The optimizers of a network with its gradient scaler."""

    scaler: torch.amp.GradScaler

    def set_rates(self, step: int) -> Any: ...
    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Learner:
    """A network with all that is needed to train it."""

    network: nn.Module
    updates: Updates
    each: Callable[[Tensor, Tensor], Tensor]  # logits, targets -> (n,) losses
    autocast: Callable[[], AbstractContextManager[None]]
    factor: float  # multiplies a mean over images: their number where the recipe sums losses


class KeepAll:
    """Trains on every image."""

    share = 1.0

    def __call__(self, batch: Batch) -> Batch:
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class KeepHardest:
    """Keeps the images with the largest losses of a proxy network.

    On every `every`th step the proxy is trained on the images that it keeps.
    """

    learner: Learner
    share: float
    every: int

    def __call__(self, batch: Batch) -> Batch:
        learner, learns = self.learner, batch.step % self.every == 0
        with torch.set_grad_enabled(learns), learner.autocast():
            losses = learner.each(learner.network(batch.images), batch.targets)
        count = round(len(losses) * self.share)
        kept = losses.detach().topk(count, sorted=False).indices.sort().values
        if learns:
            learner.updates.set_rates(batch.step)
            loss = losses[kept].mean() * learner.factor
            learner.updates.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            learner.updates.step()
        return replace(batch, images=batch.images[kept], targets=batch.targets[kept])

    def state_dict(self) -> dict[str, Any]:
        learner = self.learner
        return {"network": learner.network.state_dict(), "updates": learner.updates.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.network.load_state_dict(state["network"])
        self.learner.updates.load_state_dict(state["updates"])


MakeLearner = Callable[[Mapping[str, Any], float], Learner]  # changes to `model`, share of images


def none(_: MakeLearner) -> Selection:
    """No selection: all images."""
    return KeepAll()


def proxy(
    learner: MakeLearner,
    *,
    share: Annotated[float, Interval(gt=0, le=1)],
    every: PositiveInt,
    model: dict[str, Any],
) -> Selection:
    """Keeps the `share` of images with the largest losses of a smaller network (airbench96_faster).

    This proxy is the recipe's network with the keys of `model` changed. It is trained on the kept
    images of every `every`th step by the recipe's optimizers, schedules and loss. The source trains
    it beforehand on the same batches, which is equivalent.
    """
    return KeepHardest(learner(model, share), share, every)


SELECTIONS = {"none": none, "proxy": proxy}
