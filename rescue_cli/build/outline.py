"""A run's images, steps and learning rates, computed before it starts."""

from collections.abc import Mapping, Sequence
from typing import Any

from rescue_cli.build.feeds import list_dataset
from rescue_cli.build.losses import describe_balance
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.recipe import Recipe, ScheduleItem, steps_per_epoch, total_steps
from rescue_cli.recipe.changes import given_keys, is_given, optim_path
from rescue_cli.sections.data import FACTS, PACKAGED, Location, facts_of

# By each key of a schedule that is counted in epochs: the part that it describes, how many times
# the key that part takes, and what a run lacks that ends before
PARTS: Mapping[str, tuple[str, int, str]] = {
    "warmup_epochs": ("a warm-up of {} epochs", 1, "the rate never reaches its peak"),
    "stepsize_epochs": ("a cycle of {} epochs", 2, "the run ends before it does"),
    "epochs": ("a last knot at epoch {}", 1, "the rate never gets there"),
    "milestones": ("a last milestone at epoch {}", 1, "it never comes"),
    "until": ("parameters frozen at epoch {}", 1, "they never are"),
}
MAY_END_WITH_RUN = ("stepsize_epochs", "epochs", "milestones")
ROUNDING = 1.01  # how much longer a part may be that ends with the run: airbench94's by 0.2 %
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


def warn_of_length(recipe: Recipe, overrides: Sequence[str] = ()) -> list[str]:
    """A sentence on each part of a schedule that begins or ends beyond the run's last epoch.

    Such a run is possible, and seldom meant. `overrides`: the user's. Raises `UsageError`.
    """
    epochs, cure = recipe.train.epochs, ""
    if is_given("train.epochs", given_keys(overrides)):
        scaling = f"--epochs {epochs:g} in place of train.epochs={epochs:g}"
        cure = f", or give {scaling}, which scales the schedule"
    schedules = [("schedule", recipe.schedule)]
    for position, item in enumerate(recipe.optim):
        if item.own_schedule is not None:
            schedules.append((f"{optim_path(recipe, position)}.schedule", item.own_schedule))
    return [
        f"{path} ({item.name}): {part.format(f'{end:g}')} in a run of {epochs:g}: {lack}. "
        f"Set {path}.{key}{cure}."
        for path, item in ([] if recipe.fits_head else schedules)
        for key, end, part, lack in _parts(item)
        if (end > ROUNDING * epochs if key in MAY_END_WITH_RUN else end >= epochs)
    ]


def _parts(schedule: ScheduleItem) -> list[tuple[str, float, str, str]]:
    """The parts of `PARTS` that a schedule has: the key, the epoch of its end, and the words."""
    values = {**schedule.arguments, "until": schedule.until}
    parts = []
    for key, (part, times, lack) in PARTS.items():
        if value := values.get(key):
            end = max(value) if isinstance(value, list) else value
            parts.append((key, times * end, part, lack))
    return parts


def _balance(recipe: Recipe) -> str:
    """How uneven classes are balanced, where there are files to count."""
    asked = recipe.loss.arguments.get("class_weights") or recipe.sampling.name == "balanced"
    counted = has_files(recipe) or recipe.data.name == PACKAGED
    return "; ".join(describe_balance(recipe, list_dataset(recipe))) if asked and counted else ""
