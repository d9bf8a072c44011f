"""What a training will cost, by the recipe and a speed: steps, FLOPs, memory, hours and money."""

from dataclasses import dataclass
from typing import Any

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe

MEGABYTES = 1024  # per GB of GPU memory


@dataclass(frozen=True)
class Prices:
    """What the recipe does not say: the options of a command by their names, None if not given."""

    images_per_second: float | None
    hours_per_epoch: float | None
    price: float | None  # of one GPU for one hour
    gpu_memory: float | None  # of one GPU in GB of 2^30 bytes

    def __post_init__(self) -> None:
        options = {
            "--images-per-second": self.images_per_second,
            "--hours-per-epoch": self.hours_per_epoch,
            "--price": self.price,
            "--gpu-memory": self.gpu_memory,
        }
        for option, number in options.items():
            if number is not None and not 0 < number < 1e300:
                raise UsageError(f"{option}: {number} must be a finite number above 0.")
        without_speed = self.images_per_second is None and self.hours_per_epoch is None
        if self.images_per_second is not None and self.hours_per_epoch is not None:
            raise UsageError(
                "--images-per-second and --hours-per-epoch give the same figure. Give only one."
            )
        if self.price is not None and without_speed:
            raise UsageError(
                "--price: needs the hours. Give --images-per-second or --hours-per-epoch."
            )

    def hours(self, images: int, epochs: float) -> float | None:
        """For so many images in so many epochs; None without a speed."""
        if self.images_per_second is not None:
            return images / self.images_per_second / 3600
        return None if self.hours_per_epoch is None else self.hours_per_epoch * epochs


def estimate_cost(recipe: Recipe, gpus: int, prices: Prices) -> dict[str, Any]:
    """The figures of `rescue plan --json`; raises `UsageError`."""
    from rescue_cli import estimate
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.expand import count_processes
    from rescue_cli.build.outline import outline_run

    check_recipe(recipe)
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
    hours = prices.hours(images, recipe.train.epochs)
    return {
        "recipe": recipe.name,
        "parameters": estimate.parameters(network),
        "flops": counts.multiply_adds,
        "updates": outline["steps"],  # the stable key; printed as steps
        "images": images,
        "peak_memory_mb": estimate.peak_memory(recipe, gpus=gpus),
        "petaflop": estimate.petaflop(recipe, outline["steps"], outline["steps_per_epoch"]),
        "gpus": gpus,
        "hours": hours,
        "cost": None if hours is None or prices.price is None else hours * gpus * prices.price,
    }


def memory_warning(recipe: Recipe, peak: float, gpu_memory: float, gpus: int) -> str | None:
    """What does not fit, and the largest micro-batch that does; None where `peak` MB fit into a
    GPU of `gpu_memory` GB.
    """
    from rescue_cli import estimate

    if peak <= gpu_memory * MEGABYTES:
        return None
    size = recipe.train.device_batch_size
    fits = estimate.largest_micro_batch(recipe, peak, gpu_memory * MEGABYTES, gpus)
    cure = f"The largest micro-batch that fits is {fits}: train.device_batch_size={fits}."
    if fits is None:
        cure = "Even a micro-batch of one image does not fit."
    return (
        f"micro-batches of {size} images need {peak:.0f} MB, more than the "
        f"{gpu_memory * MEGABYTES:.0f} MB of a GPU. {cure}"
    )
