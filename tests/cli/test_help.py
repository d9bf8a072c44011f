"""`--help` fits one screen, has one form, and ends with an example and a next step."""

import re

import pytest

from rescue_cli.cli import VERBS
from tests.cli.verbs_page import PAGE, SUBCOMMANDS, page
from tests.conftest import Rescue

GROUPS = tuple(SUBCOMMANDS)
VERBS_OF_GROUPS = [f"{group} {verb}" for group, verbs in SUBCOMMANDS.items() for verb in verbs]


@pytest.mark.parametrize("group", GROUPS)
def test_the_subcommands_are_those_of_the_group(group: str, rescue: Rescue) -> None:
    listed = re.findall(r"^  ([a-z]+) {2,}", rescue(group, "--help").out, re.MULTILINE)
    assert tuple(listed) == SUBCOMMANDS[group]


def test_the_page_of_verbs_is_what_help_prints() -> None:
    assert PAGE.read_text() == page(), "python -m tests.cli.verbs_page"


@pytest.mark.parametrize("verb", ["", *VERBS, *VERBS_OF_GROUPS])
def test_help_fits_a_screen(verb: str, rescue: Rescue) -> None:
    ended = rescue(*verb.split(), "--help")
    lines = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    assert len(lines) < 32
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: {' '.join(['rescue', *verb.split()])} ")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in GROUPS])
def test_help_ends_with_an_example_and_a_next_step(verb: str, rescue: Rescue) -> None:
    *_, example, following = rescue(verb, "--help").out.splitlines()
    assert example.startswith(f"Example: rescue {verb} ")
    assert following.startswith("Next:    ")


def test_a_recipe_in_place_of_a_verb_is_answered_with_how_to_show_it(rescue: Rescue) -> None:
    ended = rescue("recipes", "a2")
    assert (ended.code, ended.out) == (2, "")
    assert "'a2' is a recipe. Show it with: rescue recipes show a2." in ended.err


def test_help_of_an_option_is_one_line_with_its_kind_and_default(rescue: Rescue) -> None:
    lines = rescue("lr-range-test", "--help").out.splitlines()
    assert "  -r, --recipe TEXT  Name or path of a recipe. [quickstart]" in lines
    assert "  --points N         Evaluations per run. [40]" in lines
    assert "  --steps N          Steps per run." in lines
    assert not any(re.search("<.*>|x>=", line) for line in lines)


def test_help_of_rescue_lists_every_verb(rescue: Rescue) -> None:
    listing = " ".join(rescue("--help").out.split())
    for verb, summary in VERBS.items():
        assert f" {verb} {summary} " in listing


@pytest.mark.parametrize("words", [(), ("bench",)])
def test_a_group_without_a_verb_prints_its_help_to_stderr(
    words: tuple[str, ...], rescue: Rescue
) -> None:
    ended = rescue(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == rescue(*words, "--help").out


@pytest.mark.parametrize(
    ("word", "question"),
    [("trian", " Did you mean 'train' or 'transfer'?"), ("nosuch", "")],
)
def test_an_unknown_verb_is_answered_with_its_nearest_names(
    word: str, question: str, rescue: Rescue
) -> None:
    ended = rescue(word)
    assert ended.code == 2
    assert ended.err == f"error: No such command '{word}'.{question} See rescue --help.\n"
