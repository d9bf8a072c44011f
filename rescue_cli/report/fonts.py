"""Words in pictures, in whatever script: a font that is here, else the character's number."""

from functools import lru_cache
from typing import Any


def use_fallback_fonts(figure: Any) -> None:
    """Gives words that the usual font lacks another; what none has is escaped (`\\u732b`).

    A `$` in a name begins no formula.
    """
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _legible_ticks(axis)
    for text in figure.findobj(Text):
        words = text.get_text()
        if not words.isascii():
            family, said = _set_in(words)
            text.set_text(said)
            text.set_fontfamily(family)
        if "$" in words and "\\math" not in words:  # matplotlib's own formulas, at log axes
            text.set_parse_math(False)


def _legible_ticks(axis: Any) -> None:
    """Of an axis whose ticks have names; numbers are left to the axis."""
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
        return
    names = [label.get_text() for label in axis.get_ticklabels()]
    if all(name.isascii() and "$" not in name for name in names):
        return
    family, _ = _set_in("".join(names))
    labels = axis.set_ticklabels([_set_in(name)[1] for name in names])
    for label in labels:
        label.set_fontfamily(family)
        label.set_parse_math(False)


def _set_in(words: str) -> tuple[list[str], str]:
    """The fonts for the words, the usual one first, and the words without what none of them has."""
    usual = "DejaVu Sans"  # matplotlib brings it along
    lacking = frozenset(c for c in words if c.isprintable() and ord(c) not in _letters(usual))
    families, nowhere = _fonts_for(lacking)
    said = "".join(
        c.encode("ascii", "backslashreplace").decode() if c in nowhere else c for c in words
    )
    return [usual, *families], said


@lru_cache
def _letters(family: str) -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(family)).get_charmap())


@lru_cache
def _fonts_for(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Families here that have some of the letters, and the letters that none has."""
    from matplotlib.font_manager import fontManager, get_font

    families: list[str] = []
    for entry in fontManager.ttflist if letters else []:
        if entry.style != "normal" or entry.name.startswith("Last Resort"):  # boxes for anything
            continue
        try:
            font = get_font(entry.fname)
            has = {c for c in letters if ord(c) in font.get_charmap()} if font.scalable else set()
        except (OSError, RuntimeError):
            continue
        if has:
            families.append(entry.name)
            letters = letters - has
        if not letters:
            break
    return families, letters
