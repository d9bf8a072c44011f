"""The architectures of ResNet strikes back's Tables 3 and 4, the paper's figures beside ours."""

import json
from functools import cache
from typing import Any

from rescue_cli.recipe.library import recipes_folder

COLUMNS = ("a1-a2", "a3")
BATCH = 2048  # of every training in the table


@cache
def table() -> dict[str, Any]:
    """The file: `paper`, `units`, `notes`, and `architectures`, one entry for each of 25 nets."""
    file = recipes_folder() / "resnet-strikes-back" / "architectures.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def row_of(name: str) -> dict[str, Any] | None:
    """The entry of a network by its timm name, with or without a tag, or by the paper's name."""
    wanted = name.partition(".")[0].lower()
    rows: list[dict[str, Any]] = table()["architectures"]
    for row in rows:
        if wanted in (row["name"], row["paper"].lower(), *row.get("aliases", ())):
            return row
    return None


def column_of(name: str, train_size: int | None, sizes: list[int]) -> str | None:
    """The column of the table whose sizes these are for this network: `a1-a2`, `a3` or None."""
    row = row_of(name)
    for column in COLUMNS if row else ():
        if row and row["sizes"][column] == [train_size, *sizes]:
            return column
    return None
