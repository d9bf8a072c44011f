"""Changes files and trees at random; the same `draw` makes the same changes."""

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

Path = tuple[Any, ...]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """The bytes cut off, with a part replaced or repeated, or with bytes changed at either end."""
    changed, place = bytearray(data), draw.randrange(len(data))
    match draw.randrange(4):
        case 0:
            del changed[place:]
        case 1:
            changed[place : place + draw.randrange(200)] = draw.randbytes(draw.randrange(200))
        case 2:
            changed[place:place] = changed[draw.randrange(len(data)) :][: draw.randrange(2000)]
        case _:
            for _ in range(draw.randrange(1, 20)):
                at = draw.randrange(min(900, len(data)))
                changed[draw.choice([at, len(data) - 1 - at])] = draw.randrange(256)
    return bytes(changed)


def places(node: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every key and every list item in a tree."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def inside(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutate_tree(tree: Any, draw: random.Random, values: Sequence[Any]) -> Any:
    """A copy: one to three entries removed, renamed, exchanged or replaced by one of `values`."""
    changed = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 2, 3))):
        where = list(places(changed))
        if not where:
            return changed
        *above, key = draw.choice(where)
        node = inside(changed, tuple(above))
        match draw.randrange(5):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[draw.choice(where)[-1]] = node.pop(key)
            case 2:
                *other, last = draw.choice(where)
                second = inside(changed, tuple(other))
                node[key], second[last] = copy.deepcopy((second[last], node[key]))
            case _:
                node[key] = copy.deepcopy(draw.choice(values))
    return changed
