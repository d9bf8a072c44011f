"""A run's images, steps and learning rates, computed before it starts."""

from typing import Any

from rescue_cli.build.feeds import list_dataset
from rescue_cli.build.losses import describe_balance
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.recipe import Recipe, steps_per_epoch, total_steps
from rescue_cli.sections.data import FACTS, PACKAGED, Location, facts_of

SHOWN_RATES = 100_000  # the peak of a longer schedule is taken from as many of its steps


def training_images(recipe: Recipe) -> int | None:
    """How many images the run trains on: its files if they exist, else the set's published number.

    A class folder may hold less than the whole set. None where neither is known. Raises `DataError`
    for files that cannot be used.
    """
    published = facts_of(recipe.data.name, recipe.data).images
    if has_files(recipe):
        return len(list_dataset(recipe).train)
    if published is None:
        return None
    left = published - recipe.data.holdout - recipe.data.test_holdout
    return min(left, recipe.data.subset[0]) if recipe.data.subset else left


def has_files(recipe: Recipe) -> bool:
    """Whether `training_images` counts files, and does not go by the set's published number."""
    location = Location(recipe.data.name, recipe.data)
    facts = FACTS.get(location.name)
    if facts is None:  # the user's code says how many images it reads
        return False
    return location.has_train_folder or (facts.images is None and location.has_folder)


def count_training_images(recipe: Recipe) -> int:
    """As `training_images`; raises `DataError`, which says what is missing, where it is None."""
    images = training_images(recipe)
    return len(list_dataset(recipe).train) if images is None else images


def epoch_length(recipe: Recipe) -> int:
    """The steps of an epoch, counted from the files if they exist."""
    given = recipe.train.steps_per_epoch is not None
    return steps_per_epoch(recipe.train, 0 if given else count_training_images(recipe))


def outline_run(recipe: Recipe) -> dict[str, Any]:
    """The run's images, steps and learning rates; what only the files can say is left out without
    them. A head that is fitted takes no steps.
    """
    train, images = recipe.train, training_images(recipe)
    facts: dict[str, Any] = {"training_images": images}
    if images is not None:
        facts["images_known_by"] = "the files" if has_files(recipe) else "the data set's name"
    if balance := _balance(recipe):
        facts["balance"] = balance
    if recipe.fits_head:  # as a whole, to the features of all images
        return facts
    facts["slices"] = f"{train.micro_batches} of {train.device_batch_size} images"
    if images is None and train.steps_per_epoch is None:
        place = Location(recipe.data.name, recipe.data)
        missing = f"; there is no folder {place.root}" if place.has_root else ""
        return {**facts, "steps": f"unknown until data.root exists{missing}"}
    per_epoch = steps_per_epoch(train, images or 0)
    steps = total_steps(train, per_epoch)
    schedule, ratio = build_schedules(recipe, per_epoch)[0]
    shown = [*range(0, steps, max(1, steps // SHOWN_RATES)), steps - 1]
    rates = [schedule(step).lr * ratio for step in shown]
    return {
        **facts,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "learning_rate_at_start": rates[0],
        "learning_rate_at_peak": max(rates),
        "learning_rate_at_end": rates[-1],
    }


def _balance(recipe: Recipe) -> str:
    """How uneven classes are balanced, where there are files to count."""
    asked = recipe.loss.arguments.get("class_weights") or recipe.sampling.name == "balanced"
    counted = has_files(recipe) or recipe.data.name == PACKAGED
    return "; ".join(describe_balance(recipe, list_dataset(recipe))) if asked and counted else ""
