"""What the shell completes, asked as bash and zsh ask, without importing torch."""

import os
import subprocess
import sys

import pytest

from rescue_cli.cli.completion import complete_data_set, complete_override
from rescue_cli.recipe import SECTIONS
from rescue_cli.sections.augment import AUGMENTATIONS
from rescue_cli.sections.data import DATASETS
from rescue_cli.sections.optim import LBFGS, OPTIMIZERS
from rescue_cli.sections.schedule import SCHEDULES


def test_sections_keys_and_names_are_completed() -> None:
    assert complete_override("sched") == ["schedule."]
    assert {"optim.lr=", "optim.momentum=", "optim.no_decay="} <= set(complete_override("optim."))
    assert complete_override("train.ep") == ["train.epochs="]
    assert "optim.section=" not in complete_override("optim.")
    assert complete_override("schedule.name=c") == [
        "schedule.name=constant", "schedule.name=cosine", "schedule.name=cyclical",
    ]  # fmt: skip
    assert complete_override("nothing.") == []
    assert complete_override("optim.lr=") == []


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("schedule", set(SCHEDULES)), ("data", set(DATASETS)), ("augment", set(AUGMENTATIONS)),
        ("optim", set(OPTIMIZERS) - {LBFGS}),
    ],
)  # fmt: skip
def test_every_ingredient_is_offered(section: str, names: set[str]) -> None:
    assert set(complete_override(f"{section}.name=")) == {f"{section}.name={n}" for n in names}


def test_each_section_with_ingredients_has_names() -> None:
    for section, entry in SECTIONS.items():
        if entry.ingredients is not None:
            assert complete_override(f"{section}.name="), section


def test_data_sets_are_completed_for_a_transfer() -> None:
    assert complete_data_set("cifar1") == ["cifar10", "cifar100"]


@pytest.mark.parametrize(
    ("shell", "words", "position", "expected"),
    [
        ("bash", ["rescue", "train", "schedule.name", "=", "cos"], 4, ["cosine"]),
        ("bash", ["rescue", "train", "schedule.na"], 2, ["schedule.name="]),
        ("bash", ["rescue", "transfer", "--to", "flow"], 3, ["flowers102"]),
    ],
)
def test_a_shell_is_answered_without_torch(
    shell: str, words: list[str], position: int, expected: list[str]
) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{'torch', 'timm'} & set(sys.modules), file=sys.stderr))\n"
        "from rescue_cli.__main__ import main\n"
        "sys.argv = ['rescue']\n"
        "main()"
    )
    asked = {
        "_RESCUE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(position),
    }
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.split() == expected, ended.stderr
    assert ended.stderr.strip() == ""
