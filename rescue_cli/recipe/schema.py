"""The signature is the schema: a function's keyword-only parameters are its YAML keys.

`check` compares the options that a recipe gives with the annotations of the function that will
receive them, so that a misspelt key or a value out of range is refused before anything starts.
"""

import inspect
import operator
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le

from rescue_cli.errors import UsageError, did_you_mean

LONGEST = 100  # characters of a value that a message repeats


@dataclass(frozen=True)
class InEpochs:
    """Marks a key that is counted in epochs, so that `--epochs` can scale it."""


Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
PositiveInt = Annotated[int, Ge(1)]
NotNegativeInt = Annotated[int, Ge(0)]
Epochs = Annotated[float, Ge(0), InEpochs()]


@dataclass(frozen=True)
class Key:
    """One YAML key: its type with bounds, and its default (or `inspect.Parameter.empty`)."""

    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@cache
def keys(function: Callable[..., Any]) -> dict[str, Key]:
    """The keyword-only parameters of `function`, in order."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {p.name: Key(p.annotation, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def check(where: str, options: Mapping[str, Any], *functions: Callable[..., Any]) -> dict[str, Any]:
    """The options, converted to the types that `functions` annotate.

    `where` names the section and the ingredient in messages. Several functions share one mapping
    where a section has keys of its own beside the ingredient's; the first that has a key says what
    it may be. Raises `UsageError`.
    """
    known: dict[str, Key] = {}
    for function in functions:
        for name, key in keys(function).items():
            known.setdefault(name, key)
    for name in options:
        if name not in known:
            raise UsageError(
                f"{where}: unknown key '{name}'. {did_you_mean(str(name), known)}".strip()
            )
    for name, key in known.items():
        if key.required and name not in options:
            rule = describe(key.annotation)
            raise UsageError(f"{where}: missing key '{name}' ({rule}). Add {name}: to the section.")
    return {
        name: convert(f"{where}.{name}", v, known[name].annotation) for name, v in options.items()
    }


def lookup(key: str, name: Any, registry: Mapping[str, Any]) -> Any:
    """The entry that the recipe's `key` names; raises `UsageError` with the nearest known name."""
    if not isinstance(name, str) or name not in registry:
        hint = did_you_mean(str(name), registry)
        raise UsageError(f"{key}: '{name}' is not known. {hint}".strip())
    return registry[name]


def convert(where: str, value: Any, annotation: Any) -> Any:
    """`value` as the annotated type; raises `UsageError` naming key, value and rule."""
    bare, bounds = _split(annotation)
    for choice in _choices(bare):
        converted = _as_type(where, value, choice)
        if converted is not _NO:
            for bound in bounds if converted is not None else ():
                if not _holds(bound, converted):
                    raise UsageError(f"{where}: {show(value)} must be {_name_bound(bound)}.")
            return converted
    raise UsageError(f"{where}: {show(value)} is not {describe(annotation)}.")


def describe(annotation: Any) -> str:
    """The rule behind an annotation, in words: `a number above 0`."""
    bare, bounds = _split(annotation)
    words = " or ".join(_name(choice) for choice in _choices(bare))
    return " ".join([words, *(_name_bound(b) for b in bounds)]).strip()


def show(value: Any) -> str:
    """A value as a message repeats it: as YAML writes it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"an integer of {value.bit_length()} bits"
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


_NO = object()
_NAMES: dict[Any, str] = {
    float: "a number",
    int: "an integer",
    bool: "true or false",
    str: "a string",
}
_NAMES |= {types.NoneType: "null", Any: "any value"}


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        bare, *bounds = get_args(annotation)
        return bare, tuple(bounds)
    return annotation, ()


def _limits(bound: Any) -> dict[str, Any]:
    """What a bound of `annotated_types` limits: any of `gt`, `ge` and `le`; nothing of a mark."""
    parts = bound if isinstance(bound, Interval) else (bound,)
    return {
        name: getattr(part, name)
        for part in parts
        for kind, name in ((Gt, "gt"), (Ge, "ge"), (Le, "le"))
        if isinstance(part, kind)
    }


def _holds(bound: Any, value: float) -> bool:
    compare = {"gt": operator.gt, "ge": operator.ge, "le": operator.le}
    return all(compare[name](value, limit) for name, limit in _limits(bound).items())


def _name_bound(bound: Any) -> str:
    match _limits(bound):
        case {"ge": low, "le": high}:
            return f"between {low} and {high}"
        case {"gt": low, "le": high}:
            return f"above {low} and at most {high}"
        case {"gt": low}:
            return f"above {low}"
        case {"ge": low}:
            return f"at least {low}"
        case {"le": high}:
            return f"at most {high}"
    return ""


def _choices(bare: Any) -> tuple[Any, ...]:
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (bare,)


def _name(choice: Any) -> str:
    bare, bounds = _split(choice)
    if bounds:
        return describe(choice)
    origin = get_origin(bare)
    if origin is Literal:
        return "one of " + ", ".join(str(v) for v in get_args(bare))
    if origin in (list, tuple):
        items = get_args(bare)
        count = f" of {len(items)} items" if origin is tuple else ""
        return f"a list{count} ({describe(items[0])} each)"
    if origin is dict:
        return "a mapping"
    return _NAMES.get(bare, str(bare))


def _as_type(where: str, value: Any, choice: Any) -> Any:
    """The converted value, or `_NO` where the type does not fit."""
    bare, bounds = _split(choice)
    if bounds:
        return convert(where, value, choice) if _as_type(where, value, bare) is not _NO else _NO
    origin = get_origin(bare)
    if origin is Literal:
        fits = any(type(value) is type(v) and value == v for v in get_args(bare))
        return value if fits else _NO
    if origin is list:
        if not isinstance(value, list | tuple):
            return _NO
        (item,) = get_args(bare)
        return [convert(f"{where}[{i}]", v, item) for i, v in enumerate(value)]
    if origin is tuple:
        items = get_args(bare)
        if not isinstance(value, list | tuple) or len(value) != len(items):
            return _NO
        return tuple(
            convert(f"{where}[{i}]", v, t)
            for i, (v, t) in enumerate(zip(value, items, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            return _NO
        item = get_args(bare)[1]
        return {k: convert(f"{where}.{k}", v, item) for k, v in value.items()}
    if bare is types.NoneType:
        return None if value is None else _NO
    if bare is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= 1e300:  # an integer may exceed every float
            raise UsageError(f"{where}: {show(value)} is not finite. Give a finite number.")
        return float(value)
    if type(value) is int and bare is int and abs(value) >= 2**63:
        raise UsageError(f"{where}: {show(value)} does not fit into 64 bits. Give a smaller one.")
    return value if bare is Any or type(value) is bare else _NO
