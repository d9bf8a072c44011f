"""Where each constant of a paper's recipe comes from: `sources`, and `unknown` for the rest.

Keys are written as in overrides: `train.epochs`, `schedule` with everything below it,
`augment.rand-augment.magnitude`. In a list a name that is no item's stands for that key of every
item that has it: `optim.momentum`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe.schema import convert, show
from rescue_cli.recipe.sections import SECTIONS

Position = tuple[str | int, ...]  # ("optim", 1, "lr")

# Where images lie and how a run is made: these values change what is trained or measured by chance
# (the seed) or by rounding (the layout in memory) alone.
NO_SOURCE = frozenset(
    [("data", key) for key in ("root", "train_root", "test_root", "sets", "resident")]
    + [("train", key) for key in ("seed", "channels_last", "compile", "deterministic")]
    + [("train", key) for key in ("log_every", "checkpoint_epochs", "checkpoint_minutes")]
    + [("eval", "every"), ("eval", "batch_size")]
)
OF_THE_CLAIM = ("expect.top1", "expect.std", "expect.n")


def check_form(sources: Any) -> None:
    """Raises `UsageError` unless `sources` is lists of keys of known sections, by source."""
    if not isinstance(sources, Mapping):
        raise UsageError(
            f"sources: {show(sources)} is not a mapping. Write sources: {{SOURCE: [KEY, ...]}}."
        )
    for source, paths in sources.items():
        where = f"sources ({source})"
        if not source.strip():
            raise UsageError("sources: a source without a name. Name where the values come from.")
        if not convert(where, paths, list[str]):
            raise UsageError(f"{where}: an empty list. Give its keys, or remove it.")
        for path in paths:
            section = path.partition(".")[0]
            if section not in SECTIONS:
                hint = did_you_mean(section, SECTIONS)
                raise UsageError(f"{where}: unknown section '{section}'. {hint}")


def faults(tree: Mapping[str, Any]) -> list[str]:
    """What is wrong with the sources of a recipe's tree; nothing where each key is listed once.

    These are the keys that have no source and are not in `unknown`, the listed ones that the recipe
    does not have, and those that are listed twice.
    """
    parts = {section: tree[section] for section in SECTIONS if section in tree}
    answered = [path for paths in tree.get("sources", {}).values() for path in paths]
    unanswered = tree.get("unknown", [])
    listed = [(path, list(_positions(parts, path))) for path in (*answered, *unanswered)]
    absent = [path for path, places in listed if not places]
    absent = [p for p in absent if p in answered or not _may_be_absent(p, parts)]
    times = Counter(place for _, places in listed for place in places)
    leaves = list(_leaves(parts))
    positions = {
        "without a source": [p for p in leaves if not times[p] and p[:2] not in NO_SOURCE],
        "listed twice": [place for place in leaves if times[place] > 1],
    }
    faulty = {f: [_key(parts, place) for place in places] for f, places in positions.items()}
    faulty["not in the recipe"] = absent
    return [f"{fault}: {', '.join(keys)}" for fault, keys in faulty.items() if keys]


def _leaves(node: Any, place: Position = ()) -> Iterator[Position]:
    """The places of all values below a node; a list of anything but ingredients is a value."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, (*place, key))
    elif items := _items(node):
        for i, item in enumerate(items):
            yield from _leaves(item, (*place, i))
    else:
        yield place


def _positions(node: Any, path: str, place: Position = ()) -> Iterator[Position]:
    """The places of all values that a key stands for; none where there is no such key."""
    word, dot, rest = path.partition(".")
    steps = _steps(node, word)
    for key in steps:
        below, there = node[key], (*place, key)
        yield from _positions(below, rest, there) if dot else _leaves(below, there)
    for i, item in enumerate([] if steps else _items(node)):
        yield from _positions(item, path, (*place, i))


def _steps(node: Any, word: str) -> Sequence[str | int]:
    """The keys of a mapping, or the positions in a list of ingredients, that a word stands for."""
    if isinstance(node, Mapping):
        return [word] if word in node else []
    items = _items(node)
    named = [i for i, item in enumerate(items) if word in (item.get("name"), item.get("params"))]
    if not named and word.isdecimal() and int(word) < len(items):
        return [int(word)]
    return named


def _items(node: Any) -> list[Mapping[str, Any]]:
    """The ingredients that a list holds; nothing of anything else."""
    return node if isinstance(node, list) and all(isinstance(i, Mapping) for i in node) else []


def _may_be_absent(path: str, parts: Mapping[str, Any]) -> bool:
    """Whether `unknown` may name what the recipe leaves out: of the claim, a section, an
    augmentation, a network's weights."""
    section, _, rest = path.partition(".")
    if section == "augment" and rest:
        return "." not in rest
    left_out = path in SECTIONS and path not in parts
    return left_out or path in (*OF_THE_CLAIM, "model.weights")


def _key(parts: Mapping[str, Any], place: Position) -> str:
    """A position as overrides write it: `augment.flip.p`, by number where a name is not unique."""
    words: list[str] = []
    node: Any = parts
    for step in place:
        if isinstance(step, int):
            names = [item.get("name") for item in node]
            words.append(names[step] if names.count(names[step]) == 1 else str(step))
        else:
            words.append(step)
        node = node[step]
    return ".".join(map(str, words))
