"""Numbers as people read them."""


def format_count(number: int, noun: str, grouping: str = "") -> str:
    """`1 seed`, `3 seeds`, `4 micro-batches`, `2 processes`; `3,925 images` with `grouping` ","."""
    plural = "es" if noun.endswith(("ch", "ss")) else "s"
    return f"{number:{grouping}} {noun}" + ("" if number == 1 else plural)


def format_loss(value: float) -> str:
    """`0.3769`, and `1.832e+17` of a run that has lost what it learned."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def significant(value: float) -> str:
    """With three significant digits, and no power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def flop_count(petaflop: float) -> str:
    """`75.2 GFLOP`: in the largest unit of which there is at least one, at most PFLOP."""
    for unit, per_petaflop in (("PFLOP", 1.0), ("TFLOP", 1e3), ("GFLOP", 1e6)):
        if petaflop * per_petaflop >= 1:
            return f"{significant(petaflop * per_petaflop)} {unit}"
    return f"{significant(petaflop * 1e9)} MFLOP"


def format_seconds(seconds: float) -> str:
    """Whole seconds, or tenths below ten."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def format_duration(seconds: float) -> str:
    """`20 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, beyond = divmod(minutes, 60)
    if hours:
        return f"{hours} h {beyond} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
