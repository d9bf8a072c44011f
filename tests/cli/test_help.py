"""`--help`: on one screen, in one form, with what to do next."""

import re

import pytest

from rescue_cli.cli import VERBS
from tests.conftest import Rescue

WITHIN = ("bench", "recipes")  # groups; theirs are listed instead
BELOW = (
    "bench step", "bench optimizer", "bench input", "bench train", "bench inference",
    "recipes show", "recipes diff", "recipes copy", "recipes check", "recipes record",
)  # fmt: skip


@pytest.mark.parametrize("verb", ["", *VERBS, *BELOW])
def test_help_fits_a_screen(verb: str, rescue: Rescue) -> None:
    ended = rescue(*verb.split(), "--help")
    lines = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    assert len(lines) < 24  # and the prompt
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: {' '.join(['rescue', *verb.split()])} ")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in WITHIN])
def test_help_names_an_example_and_what_comes_next(verb: str, rescue: Rescue) -> None:
    *_, example, following = rescue(verb, "--help").out.splitlines()
    assert example.startswith(f"Example: rescue {verb} ")
    assert following.startswith("Next:    ")


def test_help_of_an_option_is_one_line_with_its_kind_and_default(rescue: Rescue) -> None:
    lines = rescue("lr-range-test", "--help").out.splitlines()
    assert "  -r, --recipe TEXT  Name or path of a recipe." in lines
    assert "  --points N         Evaluations of a run. [40]" in lines
    assert "  --steps N          Steps of a run." in lines
    assert not any(re.search("<.*>|x>=", line) for line in lines)


def test_help_of_rescue_lists_every_verb_in_a_line(rescue: Rescue) -> None:
    lines = rescue("--help").out.splitlines()
    for verb, said in VERBS.items():
        assert f"  {verb:<13}  {said}" in lines
