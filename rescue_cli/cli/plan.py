"""`rescue plan`: what a training will cost, before a GPU is paid for."""

from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis.cost import Prices, estimate_cost, memory_warning
from rescue_cli.cli import common
from rescue_cli.cli.command import example_and_next
from rescue_cli.cli.common import (
    Epochs,
    GpuMemory,
    HoursPerEpoch,
    ImagesPerSecond,
    Json,
    Model,
    Overrides,
    Price,
    RecipeName,
    With,
)
from rescue_cli.errors import UsageError
from rescue_cli.formatting import flop_count, format_count, significant
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.own import describe_code
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    epilog=example_and_next(
        "rescue plan --recipe a2 --gpus 4 --hours-per-epoch 0.18 --price 2.5",
        "rescue train --recipe a2 --gpus 4 data.root=DIR",
    )
)
def plan(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    _code: With = None,
    model: Model = None,
    epochs: Epochs = None,
    gpus: Annotated[int, typer.Option(help="Number of GPUs that share a step.", min=1)] = 1,
    images_per_second: ImagesPerSecond = None,
    hours_per_epoch: HoursPerEpoch = None,
    price: Price = None,
    gpu_memory: GpuMemory = None,
    as_json: Json = False,
) -> None:
    """Estimate the steps, FLOPs, memory, hours and money of a recipe; needs no GPU."""
    prices = Prices(images_per_second, hours_per_epoch, price, gpu_memory)
    base = recipes.load(common.named_or_default(recipe))
    changed = common.change(base, common.Changes(overrides or [], model, epochs))
    resolved = changed.recipe
    for line in [*changed.notes, *resolved.notes]:
        note(line)
    resolved.demand_classification("plan")
    if resolved.fits_head:
        raise UsageError(
            f"plan: {resolved.name} has no steps to plan: each image passes the frozen network "
            "once, and a classifier is fitted to its features. Run it, or plan transfer-linear."
        )
    estimated = estimate_cost(resolved, gpus, prices)
    if gpu_memory is not None:
        warning = memory_warning(resolved, estimated["peak_memory_mb"], gpu_memory, gpus)
        if warning:
            note(f"warning: {warning}")
    if as_json:
        common.print_json(estimated)
    else:
        _print(estimated, resolved)


def _print(estimated: dict[str, Any], recipe: Recipe) -> None:
    train, frozen = recipe.train, recipe.model.frozen
    lines = {
        "recipe": f"{estimated['recipe']}, {recipe.model.name}",
        **({"code of your own": describe_code(recipe.code)} if recipe.code else {}),
        "parameters": f"{estimated['parameters']:,}",
        "multiply-adds": f"{_multiply_adds(estimated['flops'])} per image, forward pass, "
        f"at {recipe.eval.sizes[0]} px",
        **(
            {}
            if frozen
            else {
                "training image": f"{1e6 * estimated['petaflop'] / estimated['images']:.3g} GFLOP: "
                f"2 per multiply-add, a step as {_passes(recipe)}"
            }
        ),
        "training": flop_count(estimated["petaflop"])
        + (": 2 per multiply-add, features computed once" if frozen else ""),
        "steps": f"{estimated['updates']:,} of {train.batch_size} images, "
        f"{format_count(train.micro_batches, 'micro-batch')} of {train.device_batch_size}",
        "images": f"{estimated['images']:,} in {train.epochs:g} epochs",
        "peak memory": ("at most " if frozen else "")
        + f"{estimated['peak_memory_mb']:,.0f} MB (2^20 "
        "bytes) per GPU, beside what CUDA itself takes",
    }
    if estimated["hours"] is not None:
        hours = estimated["hours"]
        shown = f"{hours:,.1f}" if hours >= 1 else significant(hours)
        lines["hours"] = f"{shown} on {format_count(estimated['gpus'], 'GPU')}"
    if estimated["cost"] is not None:
        lines["cost"] = f"{estimated['cost']:,.2f} in the currency of --price"
    width = max(map(len, lines)) + 2
    for key, text in lines.items():
        first, *below = text.splitlines()
        print(f"{key + ':':{width}}{first}")
        for line in below:
            print(" " * width + line)


def _passes(recipe: Recipe) -> str:
    """What the operations of a training image are counted as."""
    passes = "3 forward passes"
    if recipe.selection.name == "proxy":
        passes += "\nof the chosen images, and the proxy's passes"
    return passes + ("\nand the teacher's forward pass" if recipe.teacher.name != "none" else "")


def _multiply_adds(count: float) -> str:
    """`4.09 G`, and `6.23 M` of small networks."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{significant(count / 1e6)} M"
