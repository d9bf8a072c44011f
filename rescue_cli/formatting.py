"""Numbers as people read them."""


def counted(number: int, what: str) -> str:
    """`1 seed`, `3 seeds`, `4 micro-batches`, `2 processes`."""
    plural = "es" if what.endswith(("ch", "ss")) else "s"
    return f"{number} {what}" + ("" if number == 1 else plural)


def significant(value: float) -> str:
    """With three digits that count, and no power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shown_seconds(seconds: float) -> str:
    """Whole seconds, and tenths of few."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
