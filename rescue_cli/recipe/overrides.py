"""`section.key=value`, `section={...}` and `~section.key` on a recipe's tree."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import yaml
from rescue_cli.recipe.library import names
from rescue_cli.recipe.sections import SECTIONS


def apply(tree: Mapping[str, Any], overrides: Sequence[str]) -> Any:
    """A new tree with the overrides applied in order; raises `UsageError`.

    A list's items are addressed by their name (`augment.flip.p=0.3`), optimizer items also by the
    parameters that they have (`optim.biases.lr=0.1`), and any list by position.
    """
    if not overrides:
        return copy.deepcopy(dict(tree))
    from omegaconf import OmegaConf  # a tenth of a second, for those who change something

    config = OmegaConf.create(dict(tree))
    for override in overrides:
        remove = override.startswith("~")
        path, equals, text = override.removeprefix("~").partition("=")
        if bool(equals) == remove:
            rule = "~section.key" if remove else "section.key=value"
            meant = f" For that recipe: --recipe {override}." if override in names() else ""
            raise UsageError(f"override '{override}': must read {rule}.{meant}")
        *parents, key = _resolve(OmegaConf.to_container(config), path.split("."), override)
        node: Any = config
        for parent in parents:
            if OmegaConf.is_dict(node) and node.get(parent) is None:
                node[parent] = {}  # a section at its neutral value, a mapping not there yet
            node = node[parent]
        if not remove:
            node[key] = yaml.read(text, f"override '{override}'")
        elif OmegaConf.is_dict(node) and key not in node:
            raise UsageError(f"override '{override}': there is no such key to remove.")
        else:
            del node[key]
    return OmegaConf.to_container(config)


def _resolve(tree: Any, path: list[str], override: str) -> list[str | int]:
    """The keys that lead to the value, list items by their position: `["augment", 1, "p"]`."""
    if path[0] not in SECTIONS:
        raise UsageError(
            f"override '{override}': unknown section '{path[0]}'. {did_you_mean(path[0], SECTIONS)}"
        )
    keys: list[str | int] = [path[0]]
    node = tree.get(path[0], {})
    for i, word in enumerate(path[1:], 1):
        if isinstance(node, list):
            index = _index(node, word, override)
            keys, node = [*keys, index], node[index]
        elif isinstance(node, dict):
            if not word:
                raise UsageError(f"override '{override}': an empty key in the path.")
            keys, node = [*keys, word], node.get(word)
        else:
            parent = ".".join(path[:i])
            raise UsageError(f"override '{override}': {parent} is a value and has no keys.")
        if node is None and i < len(path) - 1:
            if override.startswith("~"):
                parent = ".".join(path[: i + 1])
                raise UsageError(f"override '{override}': {parent} does not exist.")
            node = {}  # a mapping that is not there yet, as in data.sets.v2=DIR
    return keys


def _index(items: list[Any], word: str, override: str) -> int:
    names = [
        [item.get("name"), item.get("params")] if isinstance(item, dict) else [str(i)]
        for i, item in enumerate(items)
    ]
    matches = [i for i, known in enumerate(names) if word in known]
    if len(matches) == 1:
        return matches[0]
    if word.isdecimal() and int(word) < len(items):
        return int(word)
    if matches:
        positions = " or ".join(map(str, matches))
        raise UsageError(
            f"override '{override}': '{word}' matches several items. Use the position {positions}."
        )
    known = [str(name) for item in names for name in item if name]
    raise UsageError(
        f"override '{override}': '{word}' is not in the list. {did_you_mean(word, known)}"
    )
