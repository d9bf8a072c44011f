"""`rescue plan`: what a training will cost, before a GPU is paid for."""

from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.build.expand import count_processes, expand_options
from rescue_cli.cli import common
from rescue_cli.cli.command import example_and_next
from rescue_cli.cli.common import Epochs, Json, Model, Overrides, RecipeName, With
from rescue_cli.errors import UsageError
from rescue_cli.formatting import flop_count, format_count
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.own import describe_code
from rescue_cli.runs.console import note

app = common.verb()
MEGABYTES = 1024  # per GB of GPU memory


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
    images_per_second: Annotated[
        float | None, typer.Option(help="Training speed of all GPUs together.")
    ] = None,
    hours_per_epoch: Annotated[
        float | None, typer.Option(help="Hours per epoch, in place of the speed.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of one GPU for one hour.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="Memory of one GPU in GB (2^30 bytes).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate the steps, FLOPs, memory, hours and money of a recipe; needs no GPU."""
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
            "--images-per-second and --hours-per-epoch give the same figure. Give only one."
        )
    if price is not None and images_per_second is None and hours_per_epoch is None:
        raise UsageError("--price: needs the hours. Give --images-per-second or --hours-per-epoch.")
    base = recipes.load(common.named_or_default(recipe))
    expanded, notes = expand_options(base, overrides or [], model, epochs)
    resolved = base.with_overrides(*(overrides or []), *expanded)
    for line in [*notes, *resolved.notes]:
        note(line)
    estimated = _estimate(resolved, gpus, gpu_memory)
    images = estimated["images"]
    hours = None
    if images_per_second is not None:
        hours = images / images_per_second / 3600
    elif hours_per_epoch is not None:
        hours = hours_per_epoch * resolved.train.epochs
    estimated["hours"] = hours
    estimated["cost"] = None if hours is None or price is None else hours * gpus * price
    if as_json:
        common.print_json(estimated)
    else:
        _print(estimated, resolved)


def _estimate(recipe: Recipe, gpus: int, gpu_memory: float | None) -> dict[str, Any]:
    """All figures except hours and cost; warns if the GPU's memory is too small."""
    from rescue_cli import estimate
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.outline import outline_run

    check_recipe(recipe)
    recipe.demand_classification("plan")
    count_processes(recipe.train.micro_batches, gpus, 1, option="--gpus")
    outline = outline_run(recipe)
    if "steps_per_epoch" not in outline:
        raise UsageError(
            "data: the number of images is not known before they are read. "
            "Give the length of an epoch as train.steps_per_epoch=N."
        )
    network = estimate.network_of(recipe)
    size, channels = recipe.eval.sizes[0], estimate.channels(recipe)
    counts = estimate.flops(network, size, channels)
    images = outline["steps"] * recipe.train.batch_size
    peak = estimate.peak_memory(recipe, gpus=gpus)
    if gpu_memory is not None and peak > gpu_memory * MEGABYTES:
        note(_memory_warning(recipe, peak, gpu_memory, gpus))
    return {
        "recipe": recipe.name,
        "parameters": estimate.parameters(network),
        "flops": counts.multiply_adds,
        "updates": outline["steps"],  # the stable key; printed as steps
        "images": images,
        "peak_memory_mb": peak,
        "petaflop": estimate.petaflop(recipe, outline["steps"], outline["steps_per_epoch"]),
        "gpus": gpus,
    }


def _memory_warning(recipe: Recipe, peak: float, gpu_memory: float, gpus: int) -> str:
    from rescue_cli import estimate

    size = recipe.train.device_batch_size
    fits = estimate.largest_micro_batch(recipe, peak, gpu_memory * MEGABYTES, gpus)
    cure = f"The largest micro-batch that fits is {fits}: train.device_batch_size={fits}."
    if fits is None:
        cure = "Even a micro-batch of one image does not fit."
    return (
        f"warning: micro-batches of {size} images need {peak:.0f} MB, more than the "
        f"{gpu_memory * MEGABYTES:.0f} MB of a GPU. {cure}"
    )


def _print(estimated: dict[str, Any], recipe: Recipe) -> None:
    train, frozen = recipe.train, recipe.model.frozen
    lines = {
        "recipe": f"{estimated['recipe']}, {recipe.model.name}",
        **({"code of your own": describe_code(recipe.code)} if recipe.code else {}),
        "parameters": f"{estimated['parameters']:,}",
        "multiply-adds": f"{estimated['flops'] / 1e9:.2f} G per image, forward pass, "
        f"at {recipe.eval.sizes[0]} px",
        "training": f"{flop_count(estimated['petaflop'])}: 2 per multiply-add, "
        + ("features computed once" if frozen else "forward and backward as 3 forward passes"),
        "steps": f"{estimated['updates']:,} of {train.batch_size} images, "
        f"{format_count(train.micro_batches, 'micro-batch')} of {train.device_batch_size}",
        "images": f"{estimated['images']:,} in {train.epochs:g} epochs",
        "peak memory": ("at most " if frozen else "")
        + f"{estimated['peak_memory_mb']:,.0f} MB (2^20 "
        "bytes) per GPU, without CUDA's context and workspaces",
    }
    if estimated["hours"] is not None:
        lines["hours"] = f"{estimated['hours']:,.1f} on {format_count(estimated['gpus'], 'GPU')}"
    if estimated["cost"] is not None:
        lines["cost"] = f"{estimated['cost']:,.2f} in the currency of --price"
    width = max(map(len, lines)) + 2
    for key, text in lines.items():
        print(f"{key + ':':{width}}{text}")
