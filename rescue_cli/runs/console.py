"""Lines for the person at the terminal."""

import sys


def format_idle_gpus(used: int, visible: int, why: str, cure: str) -> str:
    """`3 of 8 GPUs are used: WHY. CURE.`"""
    return f"{used} of {visible} GPUs {'is' if used == 1 else 'are'} used: {why}. {cure}."


def note(message: str) -> None:
    """Prints a line to stderr; stdout carries the result alone."""
    print(message, file=sys.stderr, flush=True)
