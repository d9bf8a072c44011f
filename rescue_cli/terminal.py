"""What a terminal shows: text broken between names, a progress bar, and the time left."""

import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rescue_cli.formatting import format_duration

SMOOTHING = 10.0  # seconds over which an estimate of the end moves to a new one
SLOWEST = 0.2  # seconds that the time left falls in a second, where the pace turns out slower
MOST_WRONG = 60.0  # seconds above twice the time shown, from which a new estimate replaces it


class TimeLeft:
    """How long the rest of some work takes at the pace so far; it falls while the work goes on.

    Args:
        total: All of the work, in any unit.
        done: What was done of it before.
    """

    def __init__(self, total: float, done: float = 0.0) -> None:
        self.total = total
        self.begun = self.latest = (time.monotonic(), done)
        self.seen = False  # whether `begun` is the start of the work, not of the waiting for it
        self.end: float | None = None  # by the clock, as it is shown
        self.updated = 0.0

    def watch(self, done: float) -> None:
        """As `update`, for a caller that looks every second: leaves out the time to the start."""
        if not self.seen and done > self.begun[1]:
            self.seen, self.begun = True, (time.monotonic(), done)
            self.latest = self.begun
        self.update(done)

    def update(self, done: float) -> None:
        """Takes in how much is done now."""
        now = time.monotonic()
        if done > self.latest[1]:
            self.latest = (now, done)
        spent, worked = self.latest[0] - self.begun[0], self.latest[1] - self.begun[1]
        if done >= self.total:
            self.end = now
        elif worked > 0:
            self._move(self.latest[0] + spent * (self.total - self.latest[1]) / worked, now)
        self.updated = now

    def _move(self, end: float, now: float) -> None:
        """Moves the end that is shown towards a new estimate of it."""
        if self.end is None or end - now > 2 * max(self.end - now, 0.0) + MOST_WRONG:
            self.end = end
            return
        passed = now - self.updated
        moved = (end - self.end) * (1 - math.exp(-passed / SMOOTHING))
        self.end += min(moved, (1 - SLOWEST) * passed)

    def __str__(self) -> str:
        """`3 min 20 s left`, or `time unknown`."""
        if self.end is None:
            return "time unknown"
        return f"{format_duration(max(0.0, self.end - time.monotonic()))} left"


def fit_parts(parts: Sequence[str], width: int) -> str:
    """The parts, separated by commas, without the last ones that do not fit; at least the first."""
    shown = parts[0]
    for part in parts[1:]:
        if len(shown) + len(part) + 2 > width:
            break
        shown += f", {part}"
    return shown


class Words:
    """Text for rich that breaks after spaces; a path that is longer than a line, after slashes.

    A name that is longer than a line breaks after `_`, `-`, `.`, `=` or `,`, or else anywhere.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_measure__(self, _console: object, options: Any) -> Any:
        from rich.cells import cell_len
        from rich.measure import Measurement

        whole = max(map(cell_len, self.text.split("\n")))
        return Measurement(least_width(self.text), whole).with_maximum(options.max_width)

    def __rich_console__(self, _console: object, options: Any) -> Any:
        from rich.text import Text

        lines = [
            line
            for paragraph in self.text.split("\n")
            for line in _break_lines(paragraph, options.max_width)
        ]
        yield Text("\n".join(lines), overflow="fold")


def least_width(text: str) -> int:
    """The width of the longest name in a text, which `Words` then keeps whole."""
    from rich.cells import cell_len

    return max((cell_len(part.rstrip()) for part in _parts(text, r"\s/")), default=0)


def _parts(text: str, after: str) -> list[str]:
    """The text cut after each run of the characters in a class of regular expressions."""
    return re.findall(rf"[^{after}]+[{after}]*|[{after}]+", text)


def _break_lines(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, without the spaces at their ends."""
    from rich.cells import cell_len

    def fits(piece: str) -> bool:
        return cell_len(piece.rstrip()) <= width

    lines = [""]
    for word in _parts(text, r"\s"):
        for part in [word] if fits(word) else _parts(word, r"\s/"):
            if not fits(part) and lines[-1]:
                lines.append("")
            for piece in [part] if fits(part) else _parts(part, r"\s/_\-.=,"):
                if lines[-1] and not fits(lines[-1] + piece):
                    lines.append("")
                lines[-1] += piece
    return [line.rstrip() for line in lines]


def make_bar(
    total: float, console: Any, read: Callable[[], tuple[float, str, str, list[list[str]]]]
) -> Any:
    """A bar of rich's, which is asked for what it shows as often as it is drawn.

    Args:
        total: Of what the bar counts.
        read: How much is done, that as a text, the time left, and the parts of each line below.
    """
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text

    class LinesBar(Progress):
        def get_renderables(self) -> Any:
            done, count, left, lines = read()
            for task in self.tasks:  # none while rich makes the bar
                self.update(task.id, completed=done, count=count, left=left)
            yield from super().get_renderables()
            for parts in lines:
                yield Text(fit_parts(parts, console.width), no_wrap=True)

    bar = LinesBar(
        TextColumn("{task.fields[count]}"), BarColumn(bar_width=24),
        TextColumn("{task.fields[left]}"), console=console, disable=not sys.stderr.isatty(),
        refresh_per_second=1, transient=True,
    )  # fmt: skip
    bar.add_task("", total=total, count="", left="")
    return bar
