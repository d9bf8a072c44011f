"""The engine's step against the same arithmetic written out by hand."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.bench.interleave import in_turn, seconds
from rescue_cli.bench.peak_flops import matrix_peak
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
# Operations of a training step for each multiply-add of its forward pass: the product and the sum,
# once forward, and backward once for the inputs' gradients and once for the weights'
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
    """Images/s of both, and the median over rounds of our time by the bare loop's.

    The bare loop trains a copy of the same network on batches that lie ready on the device, with
    torch's SGD: what is left between the two is everything that the engine adds, decoding by
    `workers` and augmentation included. `multiply_adds` are those of an image's forward pass; from
    them follows the share of the matrix peak, measured before and after. `input_share` is the part
    of a step's time that its images take: gathering them or waiting for the workers (which is
    `waiting`), augmenting and mixing. Raises `UsageError` where the recipe has too few steps.
    """
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
            found = in_turn(
                ours, bare, calls=steps, rounds=rounds, images=images, device=machine.device
            )
            peaks.append(matrix_peak(dtype, machine.device))
            a_step, waited = images / found["ours"], ours.waited()
            spent = waited + ours.prepared(steps)
        computed = found["ours"] * multiply_adds * OPERATIONS
        return {
            "what": f"step of {recipe.name} on {device}, {recipe.train.precision}, batch {images}",
            **found,
            "unit": "images/s",
            "gigaflops": computed / 1e9,
            "peak_gigaflops": max(peaks) / 1e9,
            "peak_share": computed / max(peaks),
            "input_share": spent / a_step,
            "waiting": waited / a_step,
        }


class _Ours:
    """The engine's next step at each call, and the seconds that a step's images take."""

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
                f"bench step: the recipe ends after {self.last + 1} steps, and its files are read "
                "in their order. Give fewer --steps or --rounds, or more train.epochs."
            )
        self.engine(self.number % self.per_epoch if self.resident else self.number)

    def waited(self) -> float:
        """For the workers."""
        return (self.engine.feed.waited - self.before) / self.number

    def prepared(self, steps: int) -> float:
        """Augmenting and mixing, and where they lie in memory gathering them."""

        def prepare() -> None:
            for batch in self.engine.feed.micro_batches(0) if self.resident else self.micro_batches:
                self.engine.mix(self.engine.augment(batch))

        seconds(prepare, 1, self.engine.device)
        return seconds(prepare, steps, self.engine.device) / steps


def _bare(
    recipe: Recipe, model: nn.Module, images: Tensor, labels: Tensor, device: torch.device
) -> Callable[[], None]:
    """The plainest loop that trains the same network in the same precision."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "float16")
    cast = autocast(recipe.train.precision, device)
    forward: Any = torch.compile(model, dynamic=False) if recipe.train.compile else model

    def run() -> None:
        for _ in range(recipe.train.micro_batches):
            with cast():
                loss = functional.cross_entropy(forward(images), labels)
            scaler.scale(loss / recipe.train.micro_batches).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return run
