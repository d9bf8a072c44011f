"""`rescue plan`: what a training comes to, before a GPU is paid for."""

import json as json_module
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.build.expand import count_processes
from rescue_cli.cli import common
from rescue_cli.cli.common import Json, Overrides, RecipeName
from rescue_cli.cli.expand import Epochs, Model, expand
from rescue_cli.cli.help import then
from rescue_cli.errors import UsageError
from rescue_cli.formatting import counted, significant
from rescue_cli.recipe import Recipe

app = common.verb()
MEGABYTES = 1024  # in a GB of a GPU's memory


@app.command(
    epilog=then(
        "rescue plan --recipe a2 --gpus 4 --hours-per-epoch 0.18 --price 2.5",
        "rescue train --recipe a2 --gpus 4 data.root=DIR",
    )
)
def plan(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Model = None,
    epochs: Epochs = None,
    gpus: Annotated[int, typer.Option(help="GPUs that share a step.", min=1)] = 1,
    images_per_second: Annotated[
        float | None, typer.Option(help="Training speed of all GPUs together.")
    ] = None,
    hours_per_epoch: Annotated[float | None, typer.Option(help="Measured, or hoped for.")] = None,
    price: Annotated[float | None, typer.Option(help="Of one GPU for one hour.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="Of one GPU, in GB (2^30 B).")] = None,
    json: Json = False,
) -> None:
    """Say what a recipe costs in steps, FLOPs, memory, hours and money; needs no GPU."""
    options = {
        "--images-per-second": images_per_second,
        "--hours-per-epoch": hours_per_epoch,
        "--price": price,
        "--gpu-memory": gpu_memory,
    }
    for option, number in options.items():
        if number is not None and not 0 < number < 1e300:
            raise UsageError(f"{option}: {number} must be a finite number above 0.")
    if images_per_second is not None and hours_per_epoch is not None:
        raise UsageError(
            "--images-per-second and --hours-per-epoch say the same thing. Give one of them."
        )
    if price is not None and images_per_second is None and hours_per_epoch is None:
        raise UsageError(
            "--price: the hours are not known. Give --images-per-second or --hours-per-epoch."
        )
    base = recipes.load(common.named_or_default(recipe))
    found, notes = expand(base, overrides or [], model, epochs)
    for line in notes:
        common.note(line)
    resolved = base.with_overrides(*(overrides or []), *found)
    estimated = _estimate(resolved, gpus, gpu_memory)
    images = estimated["images"]
    hours = None
    if images_per_second is not None:
        hours = images / images_per_second / 3600
    elif hours_per_epoch is not None:
        hours = hours_per_epoch * resolved.train.epochs
    estimated["hours"] = hours
    estimated["cost"] = None if hours is None or price is None else hours * gpus * price
    if json:
        print(json_module.dumps(estimated))
    else:
        _print(estimated, resolved)


def _estimate(recipe: Recipe, gpus: int, gpu_memory: float | None) -> dict[str, Any]:
    """The plan's figures but for hours and cost; warns where memory does not suffice."""
    from rescue_cli import estimate
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.outline import outline_run

    check_recipe(recipe)
    recipe.demand_classification("plan")
    count_processes(recipe.train.micro_batches, gpus, 1, option="--gpus")
    outline = outline_run(recipe)
    if "steps_per_epoch" not in outline:
        raise UsageError(
            "data: how many images there are is not known before they are read. "
            "Say how long an epoch is with train.steps_per_epoch=N."
        )
    network = estimate.network_of(recipe)
    size, channels = recipe.eval.sizes[0], estimate.channels(recipe)
    counts = estimate.flops(network, size, channels)
    images = outline["steps"] * recipe.train.batch_size
    peak = estimate.peak_memory(recipe, gpus=gpus)
    if gpu_memory is not None and peak > gpu_memory * MEGABYTES:
        common.note(_too_much(recipe, peak, gpu_memory, gpus))
    return {
        "recipe": recipe.name,
        "parameters": estimate.parameters(network),
        "flops": counts.multiply_adds,
        "updates": outline["steps"],  # the key is a promise; everything printed says steps
        "images": images,
        "peak_memory_mb": peak,
        "petaflop": estimate.petaflop(recipe, outline["steps"], outline["steps_per_epoch"]),
        "gpus": gpus,
    }


def _too_much(recipe: Recipe, peak: float, gpu_memory: float, gpus: int) -> str:
    from rescue_cli import estimate

    size = recipe.train.device_batch_size
    fits = estimate.largest_micro_batch(recipe, peak, gpu_memory * MEGABYTES, gpus)
    cure = f"The largest micro-batch that fits is {fits}: train.device_batch_size={fits}."
    if fits is None:
        cure = "Not even a micro-batch of one image fits."
    return (
        f"warning: micro-batches of {size} images need {peak:.0f} MB, more than the "
        f"{gpu_memory * MEGABYTES:.0f} MB of a GPU. {cure}"
    )


def _print(found: dict[str, Any], recipe: Recipe) -> None:
    train, frozen = recipe.train, recipe.model.frozen
    lines = {
        "recipe": f"{found['recipe']}, {recipe.model.name}",
        "parameters": f"{found['parameters']:,}",
        "multiply-adds": f"{found['flops'] / 1e9:.2f} G an image, forward, "
        f"at {recipe.eval.sizes[0]} px",
        "training": f"{significant(found['petaflop'])} PFLOP, two for a multiply-add, "
        + ("features once" if frozen else "three forward passes"),
        "steps": f"{found['updates']:,} of {train.batch_size} images, "
        f"{counted(train.micro_batches, 'micro-batch')} of {train.device_batch_size}",
        "images": f"{found['images']:,} in {train.epochs:g} epochs",
        "peak memory": ("at most " if frozen else "") + f"{found['peak_memory_mb']:,.0f} MB (2^20 "
        "bytes) a GPU, without CUDA's context and workspaces",
    }
    if found["hours"] is not None:
        lines["hours"] = f"{found['hours']:,.1f} on {counted(found['gpus'], 'GPU')}"
    if found["cost"] is not None:
        lines["cost"] = f"{found['cost']:,.2f} in the currency of --price"
    width = max(map(len, lines)) + 2
    for key, text in lines.items():
        print(f"{key + ':':{width}}{text}")
