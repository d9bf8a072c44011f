"""The engine's training step against a bare PyTorch loop that trains the same network."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.bench.peak_flops import matrix_peak
from rescue_cli.bench.timing import time_alternately, time_calls
from rescue_cli.build.backends import configure_backends
from rescue_cli.build.feeds import Machine, load_dataset
from rescue_cli.build.networks import autocast, build_network
from rescue_cli.build.step import build_step
from rescue_cli.engine.step import Step
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch, total_steps
from rescue_cli.sections.data import Dataset, Images

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
# FLOP of a training step per multiply-add of its forward pass: a product and a sum, computed once
# forward, and backward once for the inputs' gradients and once for the weights'
OPERATIONS = 2 * 3


def step(
    recipe: Recipe,
    device: str,
    multiply_adds: int,
    *,
    steps: int,
    rounds: int,
    workers: int,
) -> dict[str, Any]:
    """Images/s of both and the ratio of our time to the bare loop's, all by the medians of the
    rounds; and the lowest and the highest ratio of a round.

    The bare loop trains a copy of the network with torch's SGD on batches that are already on the
    device. The difference is everything that the engine adds, including decoding by `workers` and
    augmentation. `multiply_adds` counts one image's forward pass; from it follows the share of the
    matrix peak, which is measured before and after. `input_share` is the share of a step's time
    spent on its images: gathering them or waiting for the workers (which is `waiting`), augmenting
    and mixing. Raises `UsageError` if the recipe has too few steps.
    """
    configure_backends(recipe)
    with TemporaryDirectory() as cache:
        machine = Machine(torch.device(device), workers, Path(cache))
        data = load_dataset(recipe, machine.cache)
        network = build_network(recipe, len(data.classes), machine.device)
        twin = build_network(recipe, len(data.classes), machine.device)
        engine = build_step(recipe, network, data, machine, print)
        with closing(engine.feed):
            ours = _Ours(engine, recipe, data)
            ready = engine.augment(ours.micro_batches[0])
            bare = _bare(recipe, twin, ready.images, ready.targets, machine.device)
            images, dtype = recipe.train.batch_size, DTYPES[recipe.train.precision]
            peaks = [matrix_peak(dtype, machine.device)]
            times = time_alternately(
                ours, bare, calls=steps, rounds=rounds, images=images, device=machine.device
            )
            times["ratio"] = times["theirs"] / times["ours"]
            peaks.append(matrix_peak(dtype, machine.device))
            step_seconds, waited = images / times["ours"], ours.wait_per_step()
            input_seconds = waited + ours.time_preparation(steps)
        flops = times["ours"] * multiply_adds * OPERATIONS
        return {
            "what": f"step of {recipe.name} on {device}, {recipe.train.precision}, batch {images}",
            **times,
            "unit": "images/s",
            "gigaflops": flops / 1e9,
            "peak_gigaflops": max(peaks) / 1e9,
            "peak_share": flops / max(peaks),
            "input_share": input_seconds / step_seconds,
            "waiting": waited / step_seconds,
        }


class _Ours:
    """Each call is the engine's next step; also the seconds that a step spends on its images."""

    def __init__(self, engine: Step, recipe: Recipe, data: Dataset) -> None:
        self.engine = engine
        self.resident = isinstance(data.train, Images)
        self.per_epoch = steps_per_epoch(recipe.train, len(data.train))
        self.last = total_steps(recipe.train, self.per_epoch) - 1
        engine.feed.start(0)
        self.micro_batches = list(engine.feed.micro_batches(0))
        self.number, self.before = 0, engine.feed.waited

    def __call__(self) -> None:
        self.number += 1
        if self.number > self.last and not self.resident:
            raise UsageError(
                f"bench step: the recipe ends after {self.last + 1} steps, and its files can be "
                "read only once. Give fewer --steps or --rounds, or more train.epochs."
            )
        self.engine(self.number % self.per_epoch if self.resident else self.number)

    def wait_per_step(self) -> float:
        """Seconds per step spent waiting for the data loader workers."""
        return (self.engine.feed.waited - self.before) / self.number

    def time_preparation(self, steps: int) -> float:
        """Seconds per step to augment and mix the images, and to gather those in memory."""

        def prepare() -> None:
            for batch in self.engine.feed.micro_batches(0) if self.resident else self.micro_batches:
                self.engine.mix(self.engine.augment(batch))

        time_calls(prepare, 1, self.engine.device)
        return time_calls(prepare, steps, self.engine.device) / steps


def _bare(
    recipe: Recipe, model: nn.Module, images: Tensor, labels: Tensor, device: torch.device
) -> Callable[[], None]:
    """The simplest loop that trains the same network in the same precision."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "float16")
    cast = autocast(recipe.train.precision, device)
    mode = recipe.train.compile_mode
    forward: Any = torch.compile(model, dynamic=False, mode=mode) if mode else model

    def run() -> None:
        for _ in range(recipe.train.micro_batches):
            with cast():
                loss = functional.cross_entropy(forward(images), labels)
            scaler.scale(loss / recipe.train.micro_batches).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return run
