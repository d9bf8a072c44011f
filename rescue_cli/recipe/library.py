"""Where recipes live, and how a name or a path becomes a file."""

from functools import cache
from pathlib import Path

from rescue_cli.errors import UsageError, did_you_mean

NOT_RECIPES = ("studies", "records")


@cache
def recipes_folder() -> Path:
    """The folder of shipped recipes: inside the wheel, or at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


@cache
def names() -> dict[str, Path]:
    """Every shipped recipe's file by name, over all folders, in order of folder and name."""
    files = sorted(recipes_folder().glob("*/*.yaml"))
    return {f.stem: f for f in files if f.parent.name not in NOT_RECIPES}


def find(name: str) -> Path:
    """The file of a recipe given by name or by path; raises `UsageError`."""
    if name in names():
        return names()[name]
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~nobody/
        path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if path.is_file():
            return path
        raise UsageError(f"recipe: no file '{name}'. Give a path that exists or a name.")
    raise UsageError(
        f"recipe: '{name}' is not known. {did_you_mean(name, names())} See: rescue recipes"
    )
