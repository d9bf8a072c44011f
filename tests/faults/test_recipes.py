"""Mutated recipes are valid or refused, and run nothing."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.cli.recipes import check
from rescue_cli.recipe import yaml
from tests.faults.tally import Tally
from tests.helpers.mutations import inside, mutate, mutate_tree, places

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
COUNT = 5_000
FILES = [recipes.find(name) for name in recipes.names()]
TREES = [recipes.load(name).tree for name in recipes.names()]
RUNS = "!!python/object/apply:os.system ['touch ran']"
WORDS: list[Any] = [
    "yes", "012", "nan", "1e400", "none", "all", "norms", "sgd", "cosine", "resnet18", "flip",
    "folder", "imagenet", "${x}", "???", "é", "", "../../x", "/dev/zero", "own.py:Net", "s3://a/b",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 7, 12, 64, 1000, 10**6, 2**31, 2**53, 2**63, 2**64, 10**200,
    0.5, 0.99, 1.5, 1e-3, 1e-300, 1e308, True,
]  # fmt: skip
VALUES = [*WORDS, *NUMBERS, None, [], {}, [[[]]], {"name": "none"}, [{"name": "flip"}]]
ODD = [
    RUNS, "!!python/name:os.system", "!!binary aGk=", "&a [*a]", "*a", "<<: *a", ".inf", "0x10",
    "[" * 5000, "{a: " * 3000, "9" * 5000, "1e9999", "? [a]", "- ", "%YAML 1.1", "---", "\t", "'",
]  # fmt: skip


def mutated_text(text: str, draw: random.Random) -> bytes:
    """A recipe with lines or bytes changed."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
        key, colon, _ = lines[a].partition(": ")
        match draw.randrange(6):
            case 0:
                lines.insert(b, lines[a])
            case 1 if len(lines) > 1:
                del lines[a]
            case 2:
                lines[a], lines[b] = lines[b], lines[a]
            case 3:
                lines[a] = f"{key}{colon}{draw.choice(ODD)}"
            case 4:
                lines[a] = f"{key}{colon}{draw.choice([*WORDS, *NUMBERS])}"
            case _:
                return mutate("\n".join(lines).encode(), draw)
    return "\n".join(lines).encode()


def mutated_tree(draw: random.Random) -> Any:
    """A recipe with entries changed, or with a number in place of a number."""
    tree = copy.deepcopy(dict(draw.choice(TREES)))
    if draw.random() < 0.5:
        return mutate_tree(tree, draw, VALUES)
    *above, key = draw.choice([p for p in places(tree) if type(inside(tree, p)) in (int, float)])
    inside(tree, tuple(above))[key] = draw.choice(NUMBERS)
    return tree


def attempt_all(tally: Tally, made: Callable[[random.Random], bytes]) -> None:
    file = tally.folder / "mutated.yaml"
    (tally.folder / "own.py").write_text("open('ran', 'w')")
    for case in range(COUNT):
        file.write_bytes(made(random.Random(case)))
        tally.attempt(case, lambda: check([str(file)]))
    assert not (tally.folder / "ran").exists()


def test_recipes_of_mutated_text(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tally.folder)
    texts = [file.read_text() for file in FILES]
    attempt_all(tally, lambda draw: mutated_text(draw.choice(texts), draw))


def test_recipes_of_mutated_trees(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tally.folder)
    attempt_all(tally, lambda draw: yaml.write(mutated_tree(draw)).encode())
