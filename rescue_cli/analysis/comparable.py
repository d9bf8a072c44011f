"""Which runs and sweeps may be compared with which, and why others may not."""

from collections.abc import Sequence

from rescue_cli.analysis.sides import Operand, shared, unlike


def comparable(sides: Sequence[Operand]) -> tuple[list[list[Operand]], list[str]]:
    """The sides in groups that may be compared within, and why they are not one, in sentences.

    A group of one is compared with none.
    """
    groups: list[list[Operand]] = []
    why = []
    for side in sides:
        reasons = [[_apart(other, side) for other in group] for group in groups]
        fits = [group for group, said in zip(groups, reasons, strict=True) if not any(said)]
        if fits:
            fits[0].append(side)
            continue
        why += [next(reason for reason in said if reason) for said in reasons]
        groups.append([side])
    return groups, why


def _apart(a: Operand, b: Operand) -> str | None:
    """Why two sides are not compared with each other, as a sentence; None where they may be."""
    return shared(a, b) or unlike([a, b])
