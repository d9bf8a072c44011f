"""The pieces of HTML that a report is put together from."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rescue_cli.report.fonts import use_fallback_fonts

STYLE = """
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--line:#ddd;--dim:#666}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#16181c;--line:#3a3d44;--dim:#9aa}
img{filter:invert(.88) hue-rotate(180deg)}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:62rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;border-top:1px solid var(--line);padding-top:1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .9rem .2rem 0;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}td.n,th.n{text-align:right}img{max-width:100%;height:auto}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--line);
padding-left:.8rem}.dim{color:var(--dim)}details{margin:.5rem 0}
"""


def head(title: str) -> str:
    """How a page begins, in both schemes and at any width."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width,initial-scale=1">\n'
        f"<title>{text(title)}</title><style>{STYLE}</style>"
    )


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
    try:
        float(cell.split(" ")[0].replace(",", ""))
    except ValueError:
        return cell == "-"
    return True


def listed(items: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Points of a list, each with dim lines below it."""
    points = (
        f"<li>{text(point)}" + "".join(f"<br><span class=dim>{text(x)}</span>" for x in below)
        for point, below in items
    )
    return f"<ul>{'</li>'.join(points)}</li></ul>"


def folded(title: str, content: str) -> str:
    """Content that a click on its title opens."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def text(value: object) -> str:
    """The value, harmless within HTML."""
    return html.escape(str(value))


def image(figure: Any) -> str:
    """A figure within the page itself."""
    content = io.BytesIO()
    use_fallback_fonts(figure)
    figure.savefig(content, format="png", dpi=100)
    return (
        '<p><img alt="" src="data:image/png;base64,'
        f'{base64.b64encode(content.getvalue()).decode()}"></p>'
    )
