"""Mutations of valid recipes: each validates or is refused, and no key is ever lost on the way."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rescue_cli.build.check import check_ingredients, check_recipe
from rescue_cli.errors import RescueError
from rescue_cli.recipe import SECTIONS, Recipe, apply, from_text, from_tree, load, names, yaml
from rescue_cli.recipe.changes import flat
from rescue_cli.sections.model import MODELS
from tests.helpers.mutations import Path, inside, places

TREES = [load(name).tree for name in names()]
KEYS = sorted({key for tree in TREES for section in [tree, *tree.values()] for key in section
               if isinstance(key, str) and isinstance(section, dict)})  # fmt: skip
WORDS = st.sampled_from(
    ["yes", "012", "1e-3", "nan", "none", "name", "all", "norms", "resnet18", "sgd", "cosine",
     "flip", "cifar10", "imagenet", "folder", "${x}", "???", "é", "\x00", "a: b"]
) | st.text(max_size=6)  # fmt: skip
NUMBERS = (
    st.integers(-3, 600)
    | st.integers(-(10**400), 10**400)
    | st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63)])
    | st.floats()
    | st.sampled_from([1e-300, 1e308, -0.0, 0.5, 1.0])
)
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def renamed(mapping: dict[str, Any], old: str, new: str) -> None:
    """Gives a key another name in its old place; one of that name is lost."""
    items = [(new if key == old else key, value) for key, value in mapping.items()]
    mapping.clear()
    mapping.update(items)


@st.composite
def mutated_trees(draw: st.DrawFn) -> Any:
    tree = copy.deepcopy(dict(draw(st.sampled_from(TREES))))
    for _ in range(draw(st.integers(1, 3))):
        where = list(places(tree))
        if not where:
            return tree
        *above, key = draw(st.sampled_from(where))
        node = inside(tree, tuple(above))
        match draw(st.sampled_from(["delete", "rename", "add", "replace", "swap", "repeat"])):
            case "delete":
                del node[key]
            case "rename" if isinstance(node, dict):
                renamed(node, str(key), draw(st.sampled_from(KEYS) | st.text(max_size=5)))
            case "add" if isinstance(node, dict):
                node[draw(st.sampled_from(KEYS) | st.text(max_size=5))] = draw(VALUES)
            case "swap" if above:
                *other, last = draw(st.sampled_from(where))
                second = inside(tree, tuple(other))
                node[key], second[last] = copy.deepcopy((second[last], node[key]))
            case "repeat" if isinstance(node, list):
                node.insert(0, copy.deepcopy(node[int(key)]))
            case _:
                node[key] = draw(VALUES)
    return tree


def leaves(node: Any, path: Path = ()) -> set[tuple[Path, str]]:
    """Every leaf with its path, its type and its value; empty lists and mappings are leaves."""
    if isinstance(node, dict | list) and node:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {leaf for key, inner in items for leaf in leaves(inner, (*path, key))}
    return {(path, f"{type(node).__name__} {node!r}")}


def received(recipe: Recipe) -> set[str]:
    """`section.key` of every option that an ingredient or a section receives."""
    found = set()
    for section in SECTIONS:
        value = getattr(recipe, section)
        for item in value if isinstance(value, tuple) else (value,):
            options = getattr(item, "options", None)
            found |= {f"{section}.{key}" for key in (vars(item) if options is None else options)}
    return found


def holds(tree: Any, recipe: Recipe) -> bool:
    """Whether the recipe still has every leaf of the tree, and hands every key on."""
    sections = {section: tree[section] for section in SECTIONS if section in tree}
    items = [
        (section, item)
        for section, value in sections.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    keys = {f"{section}.{key}" for section, item in items for key in item} - {
        f"{section}.name" for section in SECTIONS
    }
    return leaves(tree) <= leaves(recipe.tree) and keys <= received(recipe)


def outcome(attempt: Callable[[], Any]) -> tuple[Any, str]:
    """What comes back, and the message where it is refused instead; nothing else may be raised."""
    try:
        return attempt(), ""
    except RescueError as refused:
        return None, str(refused)


def validated(tree: Any) -> Recipe:
    recipe = from_tree(tree)
    check_ingredients(recipe)
    return recipe


def check_tree(tree: Any) -> None:
    before = copy.deepcopy(tree)
    recipe, refusal = outcome(lambda: validated(tree))
    assert repr(tree) == repr(before)
    event("refused" if refusal else "valid")
    if not refusal:
        assert holds(tree, recipe)
        again = from_text(recipe.to_yaml(), "again")
        assert leaves(again.tree) == leaves(tree)
        assert again == recipe


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    """A recipe's text with lines repeated, dropped or exchanged, and characters put in."""
    lines = yaml.write(dict(draw(st.sampled_from(TREES)))).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        a = draw(st.integers(0, len(lines) - 1))
        b = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["repeat", "drop", "exchange", "insert"])):
            case "repeat":
                lines.insert(b, lines[a])
            case "drop" if len(lines) > 1:
                del lines[a]
            case "exchange":
                lines[a], lines[b] = lines[b], lines[a]
            case _:
                place = draw(st.integers(0, len(lines[a])))
                odd = draw(st.text("{}[],:&*!?|>'\"%@`#- \t\n019.e~$", max_size=3))
                lines[a] = lines[a][:place] + odd + lines[a][place:]
    return "\n".join(lines)


def check_text(text: str) -> None:
    tree, refusal = outcome(lambda: yaml.read(text, "mutated.yaml"))
    if refusal:
        assert refusal.startswith("mutated.yaml")
    elif isinstance(tree, dict):
        check_tree(tree)
    else:
        assert outcome(lambda: validated(tree))[1].startswith("recipe: must be a mapping")


def rendered(value: Any) -> str:
    return "" if value is None else yaml.write(value).strip().removesuffix("\n...")


REAL = st.sampled_from(sorted({key for tree in TREES for key in flat(tree) if "." in key})).map(
    lambda key: tuple(key.split("."))
)
PATHS = (
    REAL
    | REAL
    | st.tuples(st.sampled_from([*SECTIONS]))
    | st.tuples(
        st.sampled_from([*SECTIONS, "name", "trian"]),
        st.sampled_from([*KEYS, "flip", "0", "-1", "[0]"]) | st.text(max_size=4),
    )
    | st.tuples(
        st.just("augment"),
        st.sampled_from(["flip", "pad-crop", "cutout", "0", "7"]),
        st.sampled_from(["p", "pad", "size", "name", "nope"]),
    )
).map(".".join)
PLAIN = st.sampled_from(["1", "2", "0.5", "true", "[1, 2]", "sgd"])
OVERRIDES = (
    st.builds("{}={}".format, PATHS, PLAIN)
    | st.builds("{}={}".format, PATHS, VALUES.map(rendered) | st.text(max_size=6))
    | PATHS.map("~{}".format)
    | st.builds(
        "{}{}{}".format, st.sampled_from(["", "~"]), PATHS, st.sampled_from(["", "=", "=="])
    )
)


def check_overrides(tree: Any, overrides: list[str]) -> None:
    before = copy.deepcopy(tree)
    changed, refusal = outcome(lambda: apply(tree, overrides))
    if refusal:
        assert refusal.startswith("override '")
    else:
        check_tree(changed)
    assert tree == before


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@examples(200)
@given(mutated_trees())
def test_a_mutated_recipe_validates_with_every_key_or_is_refused(tree: Any) -> None:
    check_tree(tree)


@examples(200)
@given(mutated_texts())
def test_a_mutated_text_validates_with_every_key_or_is_refused(text: str) -> None:
    check_text(text)


@examples(200)
@given(st.sampled_from(TREES), st.lists(OVERRIDES, min_size=1, max_size=2))
def test_any_overrides_validate_with_every_key_or_are_refused(
    tree: Any, overrides: list[str]
) -> None:
    check_overrides(tree, overrides)


@pytest.mark.long
@examples(2000)
@given(mutated_trees())
def test_2000_mutated_recipes_validate_with_every_key_or_are_refused(tree: Any) -> None:
    check_tree(tree)


@pytest.mark.long
@examples(2000)
@given(mutated_texts())
def test_2000_mutated_texts_validate_with_every_key_or_are_refused(text: str) -> None:
    check_text(text)


@pytest.mark.long
@examples(2000)
@given(st.sampled_from(TREES), st.lists(OVERRIDES, min_size=1, max_size=2))
def test_2000_overrides_validate_with_every_key_or_are_refused(
    tree: Any, overrides: list[str]
) -> None:
    check_overrides(tree, overrides)


@examples(60)
@given(st.sampled_from(TREES), NUMBERS, st.sampled_from(["width", "img_size", "drop_path"]))
def test_any_number_in_a_network_is_a_net_or_a_usage_error(
    tree: Any, number: float, key: str
) -> None:
    """Beyond the keys: the whole check, which builds the net on the meta device."""
    model = tree["model"]
    if model["name"] == "resnet9":
        model = {**model, "width": 8}
    elif model["name"] not in MODELS:
        model = {"name": "vit_tiny_patch16_224"}
    changed = {**tree, "model": {**model, key: number}}
    _, refusal = outcome(lambda: check_recipe(from_tree(changed)))
    assert refusal == "" or refusal.startswith("model (")
