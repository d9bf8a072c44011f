"""The pieces of HTML that a report is put together from."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide; columns of numbers are set to the right."""
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(headings))]
    mark = [" class=n" if n else "" for n in numeric]
    head = "".join(f"<th{m}>{text(h)}</th>" for m, h in zip(mark, headings, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{text(c)}</td>" for m, c in zip(mark, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.split(" ")[0].replace(".", "").replace(",", "").isdecimal()


def folded(title: str, content: str) -> str:
    """Content that a click on its title opens."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def text(value: object) -> str:
    """The value, harmless within HTML."""
    return html.escape(str(value))


def image(figure: Any) -> str:
    """A figure within the page itself."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return (
        '<p><img alt="" src="data:image/png;base64,'
        f'{base64.b64encode(content.getvalue()).decode()}"></p>'
    )


def shown_seconds(seconds: float) -> str:
    """Whole seconds, and tenths of few."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
