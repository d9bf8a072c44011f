"""HTML pages from the templates in `report/templates/`: every value is escaped."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from rescue_cli.report.fonts import use_fallback_fonts

if TYPE_CHECKING:
    from jinja2 import Environment


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
    environment.filters.update(png_url=png_url, numeric_columns=numeric_columns)
    return environment


def png_url(figure: Any) -> str:
    """A matplotlib figure as a `data:` URL."""
    content = io.BytesIO()
    use_fallback_fonts(figure)
    figure.savefig(content, format="png", dpi=100)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def numeric_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers alone, or `-` where there is none."""
    return [all(map(_is_number, column)) for column in zip(*rows, strict=True)]


def _is_number(cell: str) -> bool:
    try:
        float(cell.split(" ")[0].replace(",", ""))
    except ValueError:
        return cell == "-"
    return True
