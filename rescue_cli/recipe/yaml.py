"""YAML as recipes use it: numbers are numbers, and nothing is dropped or made up.

Read by the C parser's events, so that what PyYAML and OmegaConf pass over in silence can be
refused: duplicate keys, tags, anchors, interpolation, non-finite numbers. Scalars follow
YAML 1.2's core schema: `1e-3` is a number, `yes` and `012` are strings.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from rescue_cli.errors import UsageError

MOST_BYTES = 1_000_000
MOST_DEPTH = 20
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read(text: str, where: str) -> Any:
    """The value that `text` holds: dicts, lists, str, int, float, bool and None.

    `where` (a file or an option) begins every message. Raises `UsageError`.
    """
    if len(text) > MOST_BYTES:
        raise UsageError(f"{where}: {len(text)} characters; a recipe has at most {MOST_BYTES}.")
    try:
        events = yaml.parse(text, Loader=yaml.CSafeLoader)
        value = _Reader(events, where).document()
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return value


def write(value: Any) -> str:
    """YAML that `read` turns back into `value`, with short mappings on one line."""
    dumped = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=None,
        sort_keys=False,
        width=100,
        allow_unicode=True,
    )
    return str(dumped)


class _Reader:
    def __init__(self, events: Iterator[Any], where: str) -> None:
        self.events = events
        self.where = where

    def document(self) -> Any:
        next(self.events)  # stream start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self.node(next(self.events), 0)
        next(self.events)  # document end
        if not isinstance(next(self.events), yaml.StreamEndEvent):
            raise UsageError(f"{self.where}: more than one YAML document. Keep the first.")
        return value

    def node(self, event: Any, depth: int) -> Any:
        line = f"{self.where}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise UsageError(f"{line}: anchors and aliases are not allowed. Write the value out.")
        if event.tag:
            raise UsageError(f"{line}: tag '{event.tag}' is not allowed. Remove it.")
        if depth > MOST_DEPTH:
            raise UsageError(f"{line}: nested deeper than {MOST_DEPTH} levels.")
        if isinstance(event, yaml.ScalarEvent):
            return scalar(event.value, line) if event.implicit[0] else _plain(event.value, line)
        if isinstance(event, yaml.SequenceStartEvent):
            return [self.node(e, depth + 1) for e in self.until(yaml.SequenceEndEvent)]
        return self.mapping(depth)

    def mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in self.until(yaml.MappingEndEvent):
            line = f"{self.where}, line {event.start_mark.line + 1}"
            key = self.node(event, depth + 1)
            if not isinstance(key, str):
                raise UsageError(f"{line}: key {key!r} is not a string. Quote it.")
            if key in found:
                raise UsageError(f"{line}: key '{key}' stands twice. Remove one.")
            found[key] = self.node(next(self.events), depth + 1)
        return found

    def until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event


def scalar(text: str, where: str) -> Any:
    """An unquoted scalar by YAML 1.2's core schema; raises `UsageError` if it is not finite."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _NOT_FINITE.fullmatch(text):
        raise UsageError(f"{where}: {text} is not finite. Give a finite number.")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise UsageError(f"{where}: {text} is not finite. Give a finite number.")
        return number
    return _plain(text, where)


def _plain(text: str, where: str) -> str:
    if "${" in text or text == "???":
        raise UsageError(f"{where}: '{text}': interpolation is not allowed. Write the value out.")
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `scalar` would read as something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    looks_plain = text not in _WORDS and not _FLOAT.fullmatch(text)
    style = None if looks_plain and not _NOT_FINITE.fullmatch(text) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_number(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    digits, exponent, power = repr(number).partition("e")
    text = digits if not exponent or "." in digits else f"{digits}.0"  # YAML 1.1 wants the point
    return dumper.represent_scalar("tag:yaml.org,2002:float", text + exponent + power)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_number)
