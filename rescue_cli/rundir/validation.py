"""Rules for the values in a run's files, and the error where a value breaks one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli.errors import DataError

LARGEST = 1e300  # so that no sum of a few numbers overflows
MOST = 2**53  # integers up to here are exact as floats


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> "Rule":
        return Rule(f"{self.words}, or null", lambda value: value is None or self.holds(value))


def _between(value: Any, low: float, high: float) -> bool:
    """Whether it is a number in the range; not a bool, and not NaN."""
    return isinstance(value, int | float) and value is not True and value is not False and (
        low <= value <= high
    )  # fmt: skip


def _is_whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and _between(value, low, MOST)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and (
        "/" not in value
    )  # fmt: skip


PERCENT = Rule("a number from 0 to 100", lambda v: _between(v, 0, 100))
NUMBER = Rule("a finite number", lambda v: _between(v, -LARGEST, LARGEST))
POSITIVE = Rule("a non-negative number", lambda v: _between(v, 0, LARGEST))
EPOCH = Rule("a number from 0 to 1,000,000", lambda v: _between(v, 0, 1e6))
LOSS = Rule(  # also of a step that diverged
    "a number", lambda v: NUMBER.holds(v) or (isinstance(v, float) and not math.isfinite(v))
)
STEP = Rule("a non-negative integer", lambda v: _is_whole(v, 0))
COUNT = Rule("a positive integer", lambda v: _is_whole(v, 1))
NAME = Rule("a name without '/'", _is_name)
TEXT = Rule("a string", lambda v: isinstance(v, str))
MAPPING = Rule("an object", lambda v: isinstance(v, dict))
LIST = Rule("a list", lambda v: isinstance(v, list))
OBJECTS = Rule(
    "a non-empty list of objects",
    lambda v: isinstance(v, list) and bool(v) and all(isinstance(item, dict) for item in v),
)
NUMBERS = Rule(
    "a list of numbers", lambda v: isinstance(v, list) and all(NUMBER.holds(item) for item in v)
)


def check_keys(
    file: Path | str, values: Mapping[str, Any], rules: Mapping[str, Rule], cure: str, at: str = ""
) -> None:
    """Raises `DataError` for the first key that is missing, or whose value breaks its rule.

    `at`: the object's place in the file, as `sets[1].`.
    """
    for key, rule in rules.items():
        if key not in values:
            raise DataError(f"{file}: has no key {at}{key}. {cure}")
        if not rule.holds(values[key]):
            raise DataError(
                f"{file}: {at}{key}: {format_for_error(values[key])} is not {rule.words}. {cure}"
            )


def format_for_error(value: Any) -> str:
    """A value for an error message: at most 60 characters."""
    if isinstance(value, int) and not -MOST < value < MOST:
        return "an integer of many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
