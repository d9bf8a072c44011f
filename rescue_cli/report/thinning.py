"""Thins the metrics of a long run to what a picture can show, without losing a spike."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rescue_cli.metrics.names import metric_names

MOST_COLUMNS = 8192  # of a curve: several for each pixel of a picture's width
Line = Mapping[str, Any]
Numbered = tuple[int, Line]


def thin_lines(lines: Iterable[Line]) -> list[Line]:
    """The lines of `metrics.jsonl` that a picture needs; all of a run that has few.

    Lines are gathered in columns of neighbours, and each column keeps its first and its last line
    and those with the lowest and the highest value of everything that is drawn, so that curves
    drawn through them cover the same pixels. Twice as many lines make columns twice as wide: the
    memory does not grow with the run.
    """
    curves: dict[Any, _Curve] = {}
    for number, line in enumerate(lines):
        of = "" if line["kind"] == "train" else tuple(map(line.get, ("set", "size", "crop", "tta")))
        if of not in curves:
            curves[of] = _Curve(["loss", "lr", "momentum", *metric_names(line)])
        curves[of].add(number, line)
    kept = {
        number: line
        for curve in curves.values()
        for column in curve.columns
        for number, line in column.lines()
    }
    return [kept[number] for number in sorted(kept)]


class _Curve:
    """The columns of one curve, and how many lines each has.

    Args:
        keys: Of the values that are drawn; a line may lack some.
    """

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.columns: list[_Column] = []
        self.width = 1
        self.in_last = 0

    def add(self, number: int, line: Line) -> None:
        if self.columns and self.in_last < self.width:
            self.columns[-1].add((number, line), self.keys)
            self.in_last += 1
            return
        if len(self.columns) == MOST_COLUMNS:
            for left, right in zip(self.columns[::2], self.columns[1::2], strict=True):
                for each in right.lines():
                    left.add(each, self.keys)
            self.columns, self.width = self.columns[::2], 2 * self.width
        self.columns.append(_Column((number, line), self.keys))
        self.in_last = 1


class _Column:
    """Neighbouring lines with their numbers, of which those that are drawn are kept."""

    def __init__(self, first: Numbered, keys: list[str]) -> None:
        self.first = self.last = first
        self.lowest: dict[str, tuple[float, Numbered]] = {}
        self.highest: dict[str, tuple[float, Numbered]] = {}
        self.add(first, keys)

    def add(self, each: Numbered, keys: list[str]) -> None:
        self.last = each
        for key in keys:
            if (value := each[1].get(key)) is None:
                continue
            if math.isnan(value):
                value = math.inf  # NaN interrupts a curve, and must not be lost either
            if key not in self.lowest or value < self.lowest[key][0]:
                self.lowest[key] = value, each
            if key not in self.highest or value > self.highest[key][0]:
                self.highest[key] = value, each

    def lines(self) -> list[Numbered]:
        """In their order, none twice."""
        extremes = [each for _, each in (*self.lowest.values(), *self.highest.values())]
        kept = dict([self.first, *extremes, self.last])
        return [(number, kept[number]) for number in sorted(kept)]
