"""YAML as recipes use it: numbers are numbers, and nothing is dropped or made up."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescue_cli.errors import UsageError
from rescue_cli.recipe import load, yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("+5", 5),
        ("-0", 0),
        (".5", 0.5),
        ("1.", 1.0),
        ("5.0e-3", 0.005),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("012", "012"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("nan", "nan"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("[1, [2, {a: b}]]", [1, [2, {"a": "b"}]]),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    found = yaml.read(f"key: {text}", "r.yaml")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["yes", "012", "1_000", "'0.1'", "0x10", "nan"])
def test_what_is_no_number_is_refused_as_a_learning_rate(word: str) -> None:
    with pytest.raises(UsageError, match=r"^train\.epochs: .* is not a number above 0"):
        load("quickstart", [f"train.epochs={word}"])


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml, line 3: key 'a' occurs twice. Remove one."),
        ("a: {b: 1, 'b': 2}", "r.yaml, line 1: key 'b' occurs twice. Remove one."),
        (
            "x: 1\na: !!python/object/apply:os.system [ls]",
            "r.yaml, line 2: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed. "
            "Remove it.",
        ),
        (
            "a: !!str 1",
            "r.yaml, line 1: tag 'tag:yaml.org,2002:str' is not allowed. Remove it.",
        ),
        ("a: !own 1", "r.yaml, line 1: tag '!own' is not allowed. Remove it."),
        (BOMB, "r.yaml, line 1: anchors and aliases are not allowed. Write the value out."),
        (
            "a: 1\nb: *a",
            "r.yaml, line 2: anchors and aliases are not allowed. Write the value out.",
        ),
        (
            "\na: ${oc.env:HOME}",
            "r.yaml, line 2: '${oc.env:HOME}': interpolation is not allowed. Write the value out.",
        ),
        (
            "a: '${b}'",
            "r.yaml, line 1: '${b}': interpolation is not allowed. Write the value out.",
        ),
        ("a: ???", "r.yaml, line 1: '???': interpolation is not allowed. Write the value out."),
        (
            "'${a}': 1",
            "r.yaml, line 1: '${a}': interpolation is not allowed. Write the value out.",
        ),
        ("a: .inf", "r.yaml, line 1: .inf is not finite. Give a finite number."),
        ("a: -.INF", "r.yaml, line 1: -.INF is not finite. Give a finite number."),
        ("a: .nan", "r.yaml, line 1: .nan is not finite. Give a finite number."),
        ("a: 1e999", "r.yaml, line 1: 1e999 is not finite. Give a finite number."),
        (
            f"a: {'9' * 5000}",
            "r.yaml, line 1: a number of 5000 digits. Give a smaller one.",
        ),
        ("a: 1\n---\nb: 2", "r.yaml, line 2: more than one YAML document. Keep the first."),
        ("1: a", "r.yaml, line 1: key 1 is not a string. Quote it."),
        ("a: 1\n[b]: 2", "r.yaml, line 2: key ['b'] is not a string. Quote it."),
        ("null: 2", "r.yaml, line 1: key None is not a string. Quote it."),
        ("a: " + "[" * 40 + "]" * 40, "r.yaml, line 1: nested deeper than 20 levels."),
        ("a: " + "x" * 2_000_000, "r.yaml: 2000003 characters; a recipe has at most 1000000."),
        ("a: 1\nb: \x00", "r.yaml, line 2: not valid YAML: character #x0000."),
        ("a: 1\nb: \ud800", "r.yaml, line 2: not text in UTF-8. Save it as UTF-8."),
        (
            "a: 1\nb: [1",
            "r.yaml, line 3: not valid YAML: while parsing a flow sequence: did not find expected "
            "',' or ']'.",
        ),
        (
            "a: b: c",
            "r.yaml, line 1: not valid YAML: mapping values are not allowed in this context.",
        ),
    ],
)
def test_what_could_mean_two_things_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        yaml.read(text, "r.yaml")
    assert str(refused.value) == message


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"name: mine\ntask: caf\xe9\n")
    with pytest.raises(UsageError) as refused:
        load(str(file))
    assert str(refused.value) == f"{file}, line 2: not text in UTF-8. Save it as UTF-8."


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(load("quickstart").to_yaml(), encoding="utf-8-sig")
    assert load(str(file)).name == "quickstart"


def test_depth_beyond_the_parsers_own_limit_is_refused_too() -> None:
    with pytest.raises(UsageError):
        yaml.read("[" * 100_000, "r.yaml")


LOOKALIKES = st.sampled_from(
    ["1e-3", "1", "-1.5", "012", "1_000", "0x1F", "0b1", "0o7", "1:30", ".5", "+.5e3", "1.", "=",
     "true", "True", "yes", "No", "on", "OFF", "y", "n", "null", "~", "", "Null", ".inf", "-.INF",
     ".NaN", "2020-01-01", "<<", "- a", "a: b", "# x", "a #b", "&a", "*a", "!t", "%x", "@x", "`x",
     "{", "[1]", "'", '"', "|", ">", " lead", "trail ", "two\nlines", "\ttab", "\x85", "\u2028",
     "é", "日本", "😀", "\\", "? a", "...", "---", "\ufeff", "\x7f"]
)  # fmt: skip
TEXTS = LOOKALIKES | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).filter(
    lambda text: "${" not in text and text != "???"
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def exactly(value: Any) -> Any:
    """A value with its types, so that 1, 1.0 and true differ, and 0.0 and -0.0."""
    if isinstance(value, dict):
        return [(key, exactly(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [exactly(inner) for inner in value]
    return (type(value).__name__, repr(value))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TREES)
def test_what_is_written_reads_back_as_it_was(value: Any) -> None:
    assert exactly(yaml.read(yaml.write(value), "r.yaml")) == exactly(value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.text("{}[]:,-?&*!|>'\"%@`# \nab1.", max_size=60))
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        value = yaml.read(text, "r.yaml")
        assert exactly(yaml.read(yaml.write(value), "r.yaml")) == exactly(value)
