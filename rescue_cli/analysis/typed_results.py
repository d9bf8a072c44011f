"""Results that are typed in: `79.72`, `79.72±0.10/100`."""

import math
import re

from rescue_cli.analysis.stats import PERCENT, Sample
from rescue_cli.errors import UsageError

NUMBER = r"[0-9]+(\.[0-9]+)?"
TYPED = re.compile(rf"(?P<mean>{NUMBER})((±|\+-|\+/-)(?P<std>{NUMBER}))?(/(?P<n>[0-9]+))?")
MOST_RUNS = 1_000_000  # of a number that is typed


def typed(text: str) -> Sample | None:
    """What `MEAN±STD/N` says, None of other words.

    Raises `UsageError` for what no runs can have.
    """
    match = TYPED.fullmatch(text)
    if match is None:
        return None
    mean, text, alone = float(match["mean"]), short(text), short(match["mean"])
    if not mean <= PERCENT[1]:
        raise UsageError(f"compare: '{text}' is no accuracy in percent. Give 0 to 100.")
    if match["std"] is not None and match["n"] is None:
        raise UsageError(
            f"compare: '{text}' does not say of how many runs. Write {text}/N, or {alone}."
        )
    digits = (match["n"] or "1").lstrip("0")
    n = int(digits or 0) if len(digits) <= len(str(MOST_RUNS)) else MOST_RUNS + 1
    if not 1 <= n <= MOST_RUNS:
        raise UsageError(
            f"compare: '{text}' is not of 1 to {MOST_RUNS:,} runs. Write MEAN±STD/N, N the runs."
        )
    if match["std"] is None:
        return Sample(mean, None, n)
    if n == 1:
        raise UsageError(
            f"compare: '{text}' has a std, and one run has none. "
            f"Write how many runs it is of, or {alone}."
        )
    std = float(match["std"])
    largest = PERCENT[1] / 2 * math.sqrt(n / (n - 1))  # half of the runs at each end
    if not std <= largest:
        raise UsageError(
            f"compare: '{text}' has a std that no {n} accuracies in percent have. "
            f"Give 0 to {largest:.1f}."
        )
    return Sample(mean, std, n)


def short(text: str) -> str:
    """A word as an error has room for it, what cannot be printed written out."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
