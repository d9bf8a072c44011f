"""Schedules of the user's own."""

import math
from collections.abc import Callable
from typing import Any

from rescue_cli.recipe.own import Own, require
from rescue_cli.sections.schedule.base import Rates, Schedule, ScheduleContext

CONTEXT = ("lr", "steps", "epochs", "steps_per_epoch")


def own_schedule(own: Own) -> Callable[..., Schedule]:
    """A schedule: a function of `step` that returns the learning rate, or `Rates`.

    What it takes of `lr` (the recipe's), `steps`, `epochs` and `steps_per_epoch` are the run's.
    """

    def build(context: ScheduleContext, **options: Any) -> Schedule:
        objects = {name: getattr(context, name) for name in CONTEXT}

        def rates(step: int) -> Rates:
            value = own.call(options, step=step, **objects)
            rates = value if isinstance(value, Rates) else _as_rates(own, value)
            if not (math.isfinite(rates.lr) and rates.lr >= 0):
                raise own.error(f"gives the learning rate {rates.lr:g} at step {step}.")
            return rates

        for step in (0, context.steps - 1):  # before anything starts
            rates(step)
        return rates

    require(own, ["step"], "schedule")
    return own.with_keys(build, "step", *CONTEXT)


def _as_rates(own: Own, value: Any) -> Rates:
    try:
        return Rates(float(value))
    except (TypeError, ValueError):
        raise own.error(
            f"returns a {type(value).__name__}, and must return a number or Rates."
        ) from None
