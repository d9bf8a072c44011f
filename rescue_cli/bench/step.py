"""The engine's step against the same arithmetic written out by hand."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import build
from rescue_cli.bench.peak import matrix_peak
from rescue_cli.bench.turns import in_turn, seconds
from rescue_cli.data import Dataset, Images
from rescue_cli.engine.step import Step
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
# Operations of a training step for each multiply-add of its forward pass: the product and the sum,
# once forward, and backward once for the inputs' gradients and once for the weights'
OPERATIONS = 2 * 3


def step(
    recipe: Recipe, device: str, multiply_adds: int, *, steps: int, rounds: int
) -> dict[str, Any]:
    """Images/s of both, and the median over rounds of our time by the bare loop's.

    The bare loop trains a copy of the same network on batches that lie ready on the device, with
    torch's SGD: what is left between the two is everything that the engine adds, augmentation
    included. `multiply_adds` are those of an image's forward pass; from them follows the share of
    the matrix peak, measured before and after. `input_share` is the part of a step's time that
    gathering, augmenting and mixing its images take. Raises `UsageError` for data that are not in
    memory.
    """
    with TemporaryDirectory() as cache:
        machine = build.Machine(torch.device(device), 0, Path(cache))
        data = in_memory(recipe, machine)
        network = build.model(recipe, len(data.classes), machine.device)
        twin = build.model(recipe, len(data.classes), machine.device)
        engine = build.step(recipe, network, data, machine, print)
        engine.feed.start(0)
        batch = engine.augment(next(iter(engine.feed.slices(0))))
        bare = _bare(recipe, twin, batch.images, batch.targets, machine.device)
        images, dtype = recipe.train.batch_size, DTYPES[recipe.train.precision]
        peaks = [matrix_peak(dtype, machine.device)]
        found = in_turn(
            numbered(engine, steps_per_epoch(recipe.train, len(data.train))),
            bare,
            calls=steps,
            rounds=rounds,
            images=images,
            device=machine.device,
        )
        peaks.append(matrix_peak(dtype, machine.device))
        computed = found["ours"] * multiply_adds * OPERATIONS
        return {
            "what": f"step of {recipe.name} on {device}, {recipe.train.precision}, batch {images}",
            **found,
            "unit": "images/s",
            "gigaflops": computed / 1e9,
            "peak_gigaflops": max(peaks) / 1e9,
            "peak_share": computed / max(peaks),
            "input_share": _input_seconds(engine, steps, machine.device) * found["ours"] / images,
        }


def in_memory(recipe: Recipe, machine: build.Machine) -> Dataset:
    """The recipe's images; raises `UsageError` where they stay in files."""
    data = build.dataset(recipe, machine.cache)
    if not isinstance(data.train, Images):
        raise UsageError("bench step: needs data in memory. Set data.resident=true.")
    return data


def numbered(engine: Step, per_epoch: int) -> Callable[[], None]:
    """The engine's next step at each call; after an epoch's last comes its first again."""
    place = iter(range(10**9))
    return lambda: engine(next(place) % per_epoch)


def _input_seconds(engine: Step, steps: int, device: torch.device) -> float:
    """What a step spends on its images before the network sees them."""

    def prepare() -> None:
        for batch in engine.feed.slices(0):
            engine.mix(engine.augment(batch))

    seconds(prepare, 1, device)
    return seconds(prepare, steps, device) / steps


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
