"""Changes to a recipe from the command line: `section.key=value`, `section={...}`, `~key`."""

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rescue_cli.errors import UsageError
from rescue_cli.recipe import SECTIONS, apply, load

TREE = {
    "name": "example",
    "augment": [
        {"name": "pad-crop", "pad": 2},
        {"name": "flip", "p": 0.5},
        {"name": "cutout", "size": 8},
        {"name": "cutout", "size": 4},
    ],
    "optim": [
        {"name": "muon", "params": "filters", "lr": 0.24},
        {"name": "sgd", "params": "biases", "lr": 0.05},
        {"name": "sgd", "params": "rest", "lr": 0.1},
    ],
    "schedule": {"name": "step", "milestones": [30, 60], "factor": 0.1},
    "train": {"epochs": 90, "seed": 0},
}


def applied(*overrides: str) -> Any:
    return apply(TREE, overrides)


def refusal(override: str) -> str:
    with pytest.raises(UsageError) as refused:
        applied(override)
    return str(refused.value)


def test_a_key_gets_the_value_and_nothing_else_changes() -> None:
    changed = applied("train.epochs=18")
    assert changed == {**TREE, "train": {"epochs": 18, "seed": 0}}
    assert list(changed) == list(TREE)


def test_a_key_that_was_absent_is_added() -> None:
    assert applied("train.compile=true")["train"] == {"epochs": 90, "seed": 0, "compile": True}


def test_a_section_that_was_absent_is_begun() -> None:
    assert applied("mix.name=none")["mix"] == {"name": "none"}


def test_a_mapping_replaces_its_section() -> None:
    changed = applied("schedule={name: cosine, min_lr: 0}")
    assert changed["schedule"] == {"name": "cosine", "min_lr": 0}


def test_a_mapping_replaces_a_list_item() -> None:
    assert applied("augment.flip={name: flip}")["augment"][1] == {"name": "flip"}


def test_a_tilde_removes_a_key_a_section_or_an_item() -> None:
    assert applied("~schedule.factor")["schedule"] == {"name": "step", "milestones": [30, 60]}
    assert "augment" not in applied("~augment")
    assert [item["name"] for item in applied("~augment.flip")["augment"]] == [
        "pad-crop",
        "cutout",
        "cutout",
    ]
    assert applied("~schedule.milestones.0")["schedule"]["milestones"] == [60]


def test_list_items_are_found_by_name_group_and_position() -> None:
    assert applied("augment.flip.p=0.1")["augment"][1]["p"] == 0.1
    assert applied("augment.1.p=0.1")["augment"][1]["p"] == 0.1
    assert applied("augment.3.size=2")["augment"][3]["size"] == 2
    assert applied("optim.biases.lr=3")["optim"][1]["lr"] == 3
    assert applied("optim.muon.lr=3")["optim"][0]["lr"] == 3
    assert applied("schedule.milestones.1=50")["schedule"]["milestones"] == [30, 50]


def test_overrides_apply_in_order() -> None:
    assert applied("train.epochs=1", "train.epochs=2")["train"]["epochs"] == 2
    assert applied("mix={name: none}", "mix.p=1")["mix"] == {"name": "none", "p": 1}


def test_the_path_ends_at_the_first_equals_sign() -> None:
    assert applied("train.note=a=b=c")["train"]["note"] == "a=b=c"
    assert applied("train.note=")["train"]["note"] is None


def test_the_value_is_yaml_as_in_a_recipe() -> None:
    found = applied("train.a=1e-3", "train.b=yes", "train.c=[1, 2]", "train.d='7'", "train.e=~/x")
    assert found["train"] == {
        "epochs": 90,
        "seed": 0,
        "a": 0.001,
        "b": "yes",
        "c": [1, 2],
        "d": "7",
        "e": "~/x",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "override 'train.epochs': must read section.key=value."),
        ("~train.epochs=3", "override '~train.epochs=3': must read ~section.key."),
        ("", "override '': must read section.key=value."),
        (
            "trian.epochs=3",
            "override 'trian.epochs=3': unknown section 'trian'. Did you mean 'train'?",
        ),
        (
            "a=b=c",
            "override 'a=b=c': unknown section 'a'. Known: augment, averaging, data, eval, loss, "
            "mix, model, optim, sampling, schedule, selection, task, teacher, train.",
        ),
        (
            "augment.flipp.p=1",
            "override 'augment.flipp.p=1': 'flipp' is not in the list. Did you mean 'flip'?",
        ),
        (
            "augment.cutout.size=1",
            "override 'augment.cutout.size=1': 'cutout' matches several items. "
            "Use the position 2 or 3.",
        ),
        (
            "augment.9.p=1",
            "override 'augment.9.p=1': '9' is not in the list. Known: cutout, flip, pad-crop.",
        ),
        (
            "train.epochs.x=1",
            "override 'train.epochs.x=1': train.epochs is a value and has no keys.",
        ),
        ("~train.a.b", "override '~train.a.b': train.a does not exist."),
        ("train..b=1", "override 'train..b=1': an empty key in the path."),
        ("~train.nope", "override '~train.nope': there is no such key to remove."),
        ("~mix", "override '~mix': there is no such key to remove."),
        ("~mix.name", "override '~mix.name': there is no such key to remove."),
        (
            "train.epochs=${x}",
            "override 'train.epochs=${x}', line 1: '${x}': interpolation is not allowed. "
            "Write the value out.",
        ),
        (
            "train.epochs=.inf",
            "override 'train.epochs=.inf', line 1: .inf is not finite. Give a finite number.",
        ),
        (
            "train={epochs: 1, epochs: 2}",
            "override 'train={epochs: 1, epochs: 2}', line 1: key 'epochs' occurs twice. "
            "Remove one.",
        ),
    ],
)
def test_an_override_that_fits_nothing_says_why(override: str, message: str) -> None:
    assert refusal(override) == message


def test_a_mapping_that_the_recipe_leaves_out_is_made() -> None:
    assert applied("data.sets.v2=DIR", "data.sets.x=E")["data"]["sets"] == {"v2": "DIR", "x": "E"}
    from rescue_cli.build.check import check_ingredients

    with pytest.raises(UsageError, match=r"unknown key 'stes'\. Did you mean 'sets'\?"):
        check_ingredients(load("quickstart", ["data.stes.v2=DIR"]))


@pytest.mark.parametrize("word", ["[", "]", "a[0]", "a]", "'", '"', "${x}", "???", "\\", " ", "é"])
def test_a_key_with_odd_characters_is_an_unknown_key_of_that_name(word: str) -> None:
    assert applied(f"train.{word}=1")["train"][word] == 1
    with pytest.raises(UsageError, match=r"train: unknown key '"):
        load("quickstart", [f"train.{word}=1"])


ODD = st.text("[]{}'\"\\.=~$?*&! ,:#-_0aflip\x00\u00e9\ud800", max_size=10)
OVERRIDES = st.builds(
    lambda tilde, section, path, equals, value: f"{tilde}{section}.{path}{equals}{value}",
    st.sampled_from(["", "", "~"]),
    st.sampled_from([*SECTIONS, "trian"]),
    st.sampled_from(["flip.p", "0", "name", "lr", "epochs"]) | ODD,
    st.sampled_from(["", "=", "="]),
    ODD | st.sampled_from(["1", "{}", "[]", "null", "{name: flip}"]),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(OVERRIDES | ODD, max_size=3))
@example(["optim=[{name: [1]}]", "optim.x.lr=1"])
@example(["train=null", "train.epochs=1"])
def test_any_override_gives_a_tree_or_a_usage_error(overrides: list[str]) -> None:
    before = copy.deepcopy(TREE)
    with contextlib.suppress(UsageError):
        applied(*overrides)
    assert before == TREE


def test_the_recipe_that_was_given_stays_as_it_is() -> None:
    recipe = load("quickstart")
    before = copy.deepcopy(recipe.tree)
    changed = recipe.with_overrides("augment.flip.p=0.1", "~optim.no_decay", "train.seed=3")
    assert recipe.tree == before
    assert changed.train.seed == 3
    assert recipe.train.seed == 0
