"""YAML as recipes use it: numbers are numbers, and nothing is dropped or made up.

Read by the C parser's events, so that what PyYAML and OmegaConf pass over in silence can be
refused: duplicate keys, tags, anchors, interpolation, non-finite numbers. Scalars follow
YAML 1.2's core schema: `1e-3` is a number, `yes` and `012` are strings.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rescue_cli.errors import UsageError

MOST_BYTES = 1_000_000
MOST_DEPTH = 20
MOST_DIGITS = 300
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_FIRST = frozenset("+-.0123456789")  # how a number begins
_WORDS: dict[str, Any] = {"~": None, "": None}
_WORDS |= dict.fromkeys(("null", "Null", "NULL"), None)
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
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
        raise UsageError(f"{where}, {_explain(error, text)}") from None
    except UnicodeEncodeError as error:
        line = f"{where}, line {_line(text, error.start)}"
        raise UsageError(f"{line}: not text in UTF-8. Save it as UTF-8.") from None
    return value


def read_text(file: Path) -> str:
    """What a file holds; raises `UsageError` with the line where it is not UTF-8."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}, line {line}: not text in UTF-8. Save it as UTF-8.") from None


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


def _explain(error: yaml.YAMLError, text: str) -> str:
    """The line, and what the parser says of it, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        context = f"{error.context}: " if error.context else ""
        return f"line {mark.line + 1}: not valid YAML: {context}{error.problem}."
    if isinstance(error, yaml.reader.ReaderError):
        character = f"#x{error.character:04x}"
        return f"line {_line(text, error.position)}: not valid YAML: character {character}."
    return f"not valid YAML: {' '.join(str(error).split())}"


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


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
        if not isinstance(event := next(self.events), yaml.StreamEndEvent):
            raise UsageError(f"{self.line(event)}: more than one YAML document. Keep the first.")
        return value

    def node(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise UsageError(
                f"{self.line(event)}: anchors and aliases are not allowed. Write the value out."
            )
        if event.tag:
            raise UsageError(f"{self.line(event)}: tag '{event.tag}' is not allowed. Remove it.")
        if depth > MOST_DEPTH:
            raise UsageError(f"{self.line(event)}: nested deeper than {MOST_DEPTH} levels.")
        if isinstance(event, yaml.ScalarEvent):
            read = scalar if event.implicit[0] else _plain
            return read(event.value, self.line(event))
        if isinstance(event, yaml.SequenceStartEvent):
            return [self.node(e, depth + 1) for e in self.until(yaml.SequenceEndEvent)]
        return self.mapping(depth)

    def mapping(self, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for event in self.until(yaml.MappingEndEvent):
            key = self.node(event, depth + 1)
            if not isinstance(key, str):
                raise UsageError(f"{self.line(event)}: key {key!r} is not a string. Quote it.")
            if key in mapping:
                raise UsageError(f"{self.line(event)}: key '{key}' occurs twice. Remove one.")
            mapping[key] = self.node(next(self.events), depth + 1)
        return mapping

    def line(self, event: Any) -> str:
        return f"{self.where}, line {event.start_mark.line + 1}"

    def until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event


def scalar(text: str, where: str) -> Any:
    """An unquoted scalar by YAML 1.2's core schema; raises `UsageError` if it is not finite."""
    if text in _WORDS:
        return _WORDS[text]
    if text[:1] not in _FIRST:  # most scalars are words
        return _plain(text, where)
    if _INT.fullmatch(text):
        if len(text) > MOST_DIGITS:
            raise UsageError(f"{where}: a number of {len(text)} digits. Give a smaller one.")
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
    if any(character in text for character in "\x85\u2028\u2029\ufeff"):
        style = '"'  # line breaks that the other styles would fold into spaces
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_number(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    digits, exponent, power = repr(number).partition("e")
    text = digits if not exponent or "." in digits else f"{digits}.0"  # YAML 1.1 wants the point
    return dumper.represent_scalar("tag:yaml.org,2002:float", text + exponent + power)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_number)
