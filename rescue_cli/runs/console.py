"""Lines for the person at the terminal."""

import sys


def note(message: str) -> None:
    """Prints a line to stderr; stdout carries the result alone."""
    print(message, file=sys.stderr, flush=True)
