"""The engine's step against the same arithmetic written out by hand."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import build
from rescue_cli.bench.turns import in_turn
from rescue_cli.data import Images
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch


def step(recipe: Recipe, device: str, steps: int, rounds: int) -> dict[str, Any]:
    """Images/s of both, and the median over rounds of our time by the bare loop's.

    The bare loop trains a copy of the same network on batches that lie ready on the device, with
    torch's SGD: what is left between the two is everything that the engine adds, augmentation
    included. Raises `UsageError` for data that are not in memory.
    """
    with TemporaryDirectory() as cache:
        machine = build.Machine(torch.device(device), 0, Path(cache))
        data = build.dataset(recipe, machine.cache)
        if not isinstance(data.train, Images):
            raise UsageError("bench step: needs data in memory. Set data.resident=true.")
        network = build.model(recipe, len(data.classes), machine.device)
        twin = build.model(recipe, len(data.classes), machine.device)
        ours = build.step(recipe, network, data, machine, print)
        ours.feed.start(0)
        batch = ours.augment(next(iter(ours.feed.slices(0))))
        bare = _bare(recipe, twin, batch.images, batch.targets, machine.device)
        per_epoch = steps_per_epoch(recipe.train, len(data.train))
        place = iter(range(10**9))

        def engine_step() -> None:
            ours(next(place) % per_epoch)

        return {
            "what": f"step of {recipe.name} on {device}, {recipe.train.precision}, "
            f"batch {recipe.train.batch_size}",
            **in_turn(
                engine_step,
                bare,
                calls=steps,
                rounds=rounds,
                images=recipe.train.batch_size,
                device=machine.device,
            ),
            "unit": "images/s",
        }


def _bare(
    recipe: Recipe, model: nn.Module, images: Tensor, labels: Tensor, device: torch.device
) -> Callable[[], None]:
    """The plainest loop that trains the same network in the same precision."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "float16")
    cast = build.autocast(recipe, device)
    forward: Any = torch.compile(model, dynamic=False) if recipe.train.compile else model

    def run() -> None:
        for _ in range(recipe.train.slices):
            with cast():
                loss = functional.cross_entropy(forward(images), labels)
            scaler.scale(loss / recipe.train.slices).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return run
