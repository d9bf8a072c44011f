"""A recipe: a complete, frozen description of one training procedure, and its claim."""

from rescue_cli.recipe.library import find, names, recipes_folder
from rescue_cli.recipe.model import (
    Recipe,
    from_text,
    from_tree,
    load,
    recipe_in,
    steps_per_epoch,
    total_steps,
)
from rescue_cli.recipe.overrides import apply
from rescue_cli.recipe.sections import (
    SECTIONS,
    DataItem,
    DataKeys,
    Item,
    OptimItem,
    ScheduleItem,
    Train,
)
from rescue_cli.recipe.sources import faults
from rescue_cli.recipe.yaml import read_text

__all__ = [
    "SECTIONS",
    "DataItem",
    "DataKeys",
    "Item",
    "OptimItem",
    "Recipe",
    "ScheduleItem",
    "Train",
    "apply",
    "faults",
    "find",
    "from_text",
    "from_tree",
    "load",
    "names",
    "read_text",
    "recipe_in",
    "recipes_folder",
    "steps_per_epoch",
    "total_steps",
]
