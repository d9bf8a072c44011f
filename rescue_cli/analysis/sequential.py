"""Looking several times at seeds that come in one after another, at a level of 5 % over all looks.

Each of the planned looks has its equal share of the level (Bonferroni). That holds for any test and
any dependence between the looks; Pocock's bounds (1977) for as many looks are a little wider, and
hold for normal runs of known spread.
"""

from rescue_cli.analysis.stats import LEVEL

PLANNED = (3, 5, 10, 20, 50, 100, 200, 500)  # seeds


def looks(most: int) -> list[int]:
    """After how many seeds a sweep of at most so many is looked at; the last look is at its end."""
    return [n for n in PLANNED if n < most] + [most]


def level(planned: list[int]) -> float:
    """The level of each look."""
    return LEVEL / len(planned)
