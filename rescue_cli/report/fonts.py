"""Text in pictures in any script: by an installed font, else as escape sequences."""

from functools import lru_cache
from typing import Any


def use_fallback_fonts(figure: Any) -> None:
    """Sets text that the default font lacks in another; what no font has is escaped (`\\u732b`).

    A `$` in a name does not start a formula.
    """
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _legible_ticks(axis)
    for text in figure.findobj(Text):
        words = text.get_text()
        if not words.isascii():
            family, escaped = _set_in(words)
            text.set_text(escaped)
            text.set_fontfamily(family)
        if "$" in words and "\\math" not in words:  # matplotlib's own formulas, at log axes
            text.set_parse_math(False)


def _legible_ticks(axis: Any) -> None:
    """Does the same for an axis whose ticks have names; numbers are left alone."""
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
    """The fonts for a text, the default first, and the text with missing characters escaped."""
    usual = "DejaVu Sans"  # matplotlib's default
    lacking = frozenset(c for c in words if c.isprintable() and ord(c) not in _letters(usual))
    families, nowhere = _fonts_for(lacking)
    escaped = "".join(
        c.encode("ascii", "backslashreplace").decode() if c in nowhere else c for c in words
    )
    return [usual, *families], escaped


@lru_cache
def _letters(family: str) -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(family)).get_charmap())


@lru_cache
def _fonts_for(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Installed families that have some of the letters, and the letters that none has."""
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
