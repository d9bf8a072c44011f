"""The section `schedule`: learning rate and momentum as pure functions of the step."""

from collections.abc import Callable

from rescue_cli.sections.schedule.base import (
    Rates,
    Schedule,
    ScheduleContext,
    freeze_after,
)
from rescue_cli.sections.schedule.cycles import cyclical, one_cycle, ramp, torch_one_cycle
from rescue_cli.sections.schedule.decays import (
    constant,
    cosine,
    exponential,
    inv,
    piecewise,
    poly,
    step,
)
from rescue_cli.sections.schedule.own import own_schedule

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "step": step,
    "inv": inv,
    "piecewise": piecewise,
    "poly": poly,
    "one-cycle": one_cycle,
    "cyclical": cyclical,
    "torch-one-cycle": torch_one_cycle,
    "ramp": ramp,
}

__all__ = [
    "SCHEDULES",
    "Rates",
    "Schedule",
    "ScheduleContext",
    "constant",
    "cosine",
    "cyclical",
    "exponential",
    "freeze_after",
    "inv",
    "one_cycle",
    "own_schedule",
    "piecewise",
    "poly",
    "ramp",
    "step",
    "torch_one_cycle",
]
