"""Lines for the person at the terminal."""

import shutil
import sys
import textwrap


def format_idle_gpus(used: int, visible: int, why: str, cure: str) -> str:
    """`3 of 8 GPUs are used: WHY. CURE.`"""
    return f"{used} of {visible} GPUs {'is' if used == 1 else 'are'} used: {why}. {cure}."


def note(message: str) -> None:
    """Prints a line to stderr; stdout carries the result alone.

    On a terminal it breaks between words: a terminal breaks anywhere, also within a path.
    """
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = [_fill(line, width) for line in message.split("\n")]
        message = "\n".join(lines)
    print(message, file=sys.stderr, flush=True)


def _fill(line: str, width: int) -> str:
    """The line broken between words alone, so that a path can be copied."""
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) or line
