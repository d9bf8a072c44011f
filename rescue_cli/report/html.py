"""HTML pages from the templates in `report/templates/`: every value is escaped."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from rescue_cli.report.fonts import use_fallback_fonts

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from PIL.Image import Image


def render(template: str, **values: Any) -> str:
    """The page that a template makes of the values; figures are embedded, nothing is fetched."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rescue_cli", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        svg_url=svg_url, numeric_columns=numeric_columns, breakable=breakable
    )
    return environment


def svg_url(figure: Any) -> str:
    """A matplotlib figure as a `data:` URL: vectors, with its text as text, on no background."""
    from matplotlib import rc_context

    content = io.BytesIO()
    use_fallback_fonts(figure)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rescue"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return _data_url("svg+xml", content.getvalue())


def image_url(image: "Image") -> str:
    """A PIL image as a `data:` URL: JPEG, or PNG for a few pixels, which JPEG would blur."""
    content = io.BytesIO()
    small = max(image.size) <= 64
    image.save(content, "PNG" if small else "JPEG", quality=82)
    return _data_url("png" if small else "jpeg", content.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def breakable(text: object) -> "Markup":
    """The text, escaped, which may break after a slash: not in the middle of a file's name."""
    from markupsafe import Markup, escape

    return Markup(str(escape(text)).replace("/", "/<wbr>"))


def numeric_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers alone, or `-` where there is none."""
    return [all(map(_is_number, column)) for column in zip(*rows, strict=True)]


def _is_number(cell: str) -> bool:
    try:
        float(cell.split(" ")[0].replace(",", ""))
    except ValueError:
        return cell == "-"
    return True
