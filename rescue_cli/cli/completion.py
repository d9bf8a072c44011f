"""What the shell completes: keys of recipes, ingredients and data sets, without importing torch."""

import ast
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path

from rescue_cli import recipe as recipes
from rescue_cli.recipe import SECTIONS

INTERNAL = {"section", "name", "options", "task", "code"}  # fields of an item that are no keys


def complete_override(incomplete: str) -> list[str]:
    """`optim.` as its keys, `schedule.name=` as the names of schedules."""
    before = _before_equals(incomplete)
    key, equals, _ = incomplete.partition("=") if before is None else (before, "=", "")
    section, dot, last = key.partition(".")
    if not dot:
        found = [f"{name}." for name in SECTIONS]
    elif section not in SECTIONS:
        found = []
    elif not equals:
        found = [f"{section}.{each}=" for each in _keys(section)]
    else:
        found = _names(section) if last == "name" else []
        found = found if before is not None else [f"{key}={name}" for name in found]
    typed = incomplete.removeprefix("=") if before is not None else incomplete
    return [each for each in found if each.startswith(typed)]


def complete_data_set(incomplete: str) -> list[str]:
    """The data sets; a shell adds files and folders itself."""
    return [name for name in _names("data") if name.startswith(incomplete)]


def _before_equals(incomplete: str) -> str | None:
    """The key before `=` where the shell is bash, which takes `=` for a word of its own."""
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
    if not at.isdecimal() or not 0 < int(at) < len(words) or "=" in incomplete.strip("="):
        return None
    position = int(at) if words[int(at)] == "=" else int(at) - 1
    return words[position - 1] if words[position] == "=" else None


def _keys(section: str) -> list[str]:
    """The keys that all of the section's ingredients have, and those that shipped recipes use."""
    keys = ["name", *(f.name for f in fields(SECTIONS[section].keys) if f.name not in INTERNAL)]
    for name in recipes.names():
        items = recipes.load(name).tree.get(section, [])
        for item in items if isinstance(items, list) else [items]:
            keys += item if isinstance(item, Mapping) else []
    return sorted(set(keys))


def _names(section: str) -> list[str]:
    entry = SECTIONS[section].ingredients
    if entry is None:
        return []
    # Augmentations stand by task; those of classification are all of them
    return _dictionary_keys(entry.replace("AUGMENTATIONS_OF", "AUGMENTATIONS"))


@cache
def _dictionary_keys(entry: str) -> list[str]:
    """The keys of `package:DICTIONARY`, read from the source: importing it takes seconds."""
    package, _, wanted = entry.partition(":")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin)
    files = sorted(origin.parent.glob("*.py")) if origin.stem == "__init__" else [origin]
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(
                node.value, ast.Dict
            ):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(each, ast.Name) and each.id == wanted for each in targets):
                keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
                return sorted(str(key) for key in keys)
    return []
