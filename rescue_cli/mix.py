"""The section `mix`: how the images of a slice are mixed with each other."""

from collections.abc import Callable

from rescue_cli.batch import Batch

Mix = Callable[[Batch], Batch]


def none() -> Mix:
    """Every image stays as it is."""
    return lambda batch: batch


MIXES = {"none": none}
