"""`sources` and `unknown`: each constant of a paper's recipe is told once where it comes from."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_cli.recipe import faults, find, from_text, load, names, yaml
from rescue_cli.recipe.changes import differences
from rescue_cli.recipe.sources import NO_SOURCE
from rescue_cli.runs import directory
from tests.conftest import Rescue

TREE: dict[str, Any] = {
    "name": "mine",
    "unknown": ["averaging", "expect.std", "augment.colour-jitter"],
    "sources": {"Table 1": ["data", "augment", "optim", "train"]},
    "data": {"name": "cifar10", "root": None, "mean": [0.5, 0.5, 0.5]},
    "augment": [{"name": "flip", "p": 0.5}, {"name": "cutout", "size": 8}],
    "optim": [
        {"name": "sgd", "params": "filters", "lr": 0.1, "momentum": 0.9},
        {"name": "sgd", "params": "head.bias", "lr": 0.2, "momentum": 0.9},
    ],
    "train": {"epochs": 5, "seed": 0, "log_every": 50},
}


def found(*paths: str, unknown: tuple[str, ...] = ()) -> list[str]:
    """The faults of the tree with one source for these keys."""
    return faults({**TREE, "unknown": list(unknown), "sources": {"Table 1": list(paths)}})


@pytest.mark.parametrize("name", [name for name in names() if "paper" in load(name).tree])
def test_each_key_of_a_papers_recipe_has_one_source_or_is_unknown(name: str) -> None:
    assert faults(load(name).tree) == []


def test_recipes_of_no_paper_claim_no_source() -> None:
    ours = [load(name).tree for name in names() if "paper" not in load(name).tree]
    assert ours
    assert not any("sources" in tree for tree in ours)


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("train", "train.epochs"),
        ("optim", "optim.0.name, optim.0.params, optim.0.lr, optim.0.momentum, "
         "optim.1.name, optim.1.params, optim.1.lr, optim.1.momentum"),
        ("augment", "augment.flip.name, augment.flip.p, augment.cutout.name, augment.cutout.size"),
        ("data", "data.name, data.mean"),
    ],
)  # fmt: skip
def test_a_section_without_source_is_told_key_by_key(path: str, missing: str) -> None:
    rest = [section for section in ("data", "augment", "optim", "train") if section != path]
    assert found(*rest) == [f"without a source: {missing}"]
    assert found(*rest, unknown=(path,)) == []


@pytest.mark.parametrize(
    ("paths", "missing"),
    [
        (["optim.lr", "optim.momentum", "optim.params"], "optim.0.name, optim.1.name"),
        (["optim.0", "optim.1.lr"], "optim.1.name, optim.1.params, optim.1.momentum"),
        (["optim.filters", "optim.1.name", "optim.1.lr", "optim.1.momentum"], "optim.1.params"),
        (["optim.sgd.lr"], "optim.0.name, optim.0.params, optim.0.momentum, "
         "optim.1.name, optim.1.params, optim.1.momentum"),
    ],
)  # fmt: skip
def test_an_item_is_told_by_name_by_group_by_position_or_with_all_others(
    paths: list[str], missing: str
) -> None:
    assert found("data", "augment", "train", *paths) == [f"without a source: {missing}"]


def test_a_key_that_is_not_there_is_named_in_a_source_and_in_unknown() -> None:
    every = ("data", "augment", "optim", "train")
    assert found(*every, "train.epoch", "augment.flip.q") == [
        "not in the recipe: train.epoch, augment.flip.q"
    ]
    assert found(*every, unknown=("lr", "schedule.warmup_lr", "expect.top5")) == [
        "not in the recipe: lr, schedule.warmup_lr, expect.top5"
    ]
    assert found(*every, "averaging") == ["not in the recipe: averaging"]
    left_out = ("averaging", "augment.colour-jitter", "expect.top1", "model.weights")
    assert found(*every, unknown=left_out) == []


def test_a_key_that_is_listed_twice_is_named() -> None:
    every = ("data", "augment", "optim", "train")
    assert found(*every, "train.epochs") == ["listed twice: train.epochs"]
    assert found(*every, unknown=("augment.cutout",)) == [
        "listed twice: augment.cutout.name, augment.cutout.size"
    ]
    two = {"Table 1": list(every), "Table 2": ["optim.filters.lr"]}
    assert faults({**TREE, "sources": two}) == ["listed twice: optim.0.lr"]


A1 = load("a1").tree
LISTED = [(s, p) for s, paths in A1["sources"].items() for p in paths]


@given(st.sampled_from(LISTED), st.sampled_from(LISTED))
def test_without_any_of_its_entries_a_recipe_lacks_a_source_and_with_any_twice_it_is_told(
    taken: tuple[str, str], given_twice: tuple[str, str]
) -> None:
    path = taken[1]
    less = {s: [p for p in paths if (s, p) != taken] for s, paths in A1["sources"].items()}
    (fault,) = faults({**A1, "sources": less})
    assert fault.startswith("without a source: ")
    assert all(f"{key}.".startswith(f"{path}.") for key in fault.partition(": ")[2].split(", "))
    more = {**A1["sources"], "elsewhere": [given_twice[1]]}
    (fault,) = faults({**A1, "sources": more})
    assert fault.startswith(f"listed twice: {given_twice[1]}")


def test_what_needs_no_source_says_where_and_how_and_never_what_is_trained() -> None:
    assert {".".join(key) for key in NO_SOURCE} == {
        "data.root", "data.train_root", "data.test_root", "data.sets", "data.resident",
        "train.seed", "train.channels_last", "train.compile", "train.deterministic",
        "train.log_every", "train.checkpoint_epochs", "train.checkpoint_minutes",
        "eval.every", "eval.batch_size",
    }  # fmt: skip


def test_check_sources_names_each_fault_of_each_recipe_and_ends_with_2(
    rescue: Rescue, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    shutil.copy(find("a2"), good)
    text = find("a2").read_text()
    text = text.replace("loss.label_smoothing, ", "", 1).replace(
        "[loss.name]", "[loss.nam, mix.mixup]"
    )
    bad.write_text(text)
    ended = rescue("recipes", "check", "--sources", str(good), "quickstart")
    assert (ended.code, ended.out) == (
        0, f"{good}: each key has a source\nquickstart: not from a paper\n",
    )  # fmt: skip
    ended = rescue("recipes", "check", "--sources", str(bad), "deit")
    assert (ended.code, ended.out) == (2, "deit: each key has a source\n")
    assert (
        ended.err.split()
        == (
            f"error: {bad}: without a source: loss.name, loss.label_smoothing; "
            "listed twice: mix.mixup; not in the recipe: loss.nam. "
            "List each key once, under sources:, or under unknown: if no source is public."
        ).split()
    )
    assert rescue("recipes", "check", str(bad)).code == 0  # it trains as well as it did


def test_check_sources_takes_no_changes(rescue: Rescue) -> None:
    ended = rescue("recipes", "check", "--sources", "a2", "optim.lr=0.1")
    assert (ended.code, ended.out) == (2, "")
    assert "error: --sources: takes no changes ('optim.lr=0.1')" in ended.err


def test_show_prints_the_sources_in_yaml_that_can_be_trained(rescue: Rescue) -> None:
    shown = rescue("recipes", "show", "a2").out
    assert '"Table 2, A2": [data.train_size' in shown
    assert from_text(shown, "shown").tree == load("a2").tree


def test_a_changed_recipe_keeps_the_record_of_sources_and_trains() -> None:
    changed = load(
        "a2", ["optim={name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0}"]
    )
    assert changed.tree["sources"] == load("a2").tree["sources"]
    assert from_text(changed.to_yaml(), "recipe.yaml") == changed


def test_a_run_from_before_there_were_sources_is_of_the_same_recipe(tmp_path: Path) -> None:
    recipe = load("a2")
    tree = {key: value for key, value in recipe.tree.items() if key != "sources"}
    tree["unknown"] = ["warmup_lr", "min_lr"]  # words that are no keys, as they were once
    old = from_text(yaml.write(tree), "recipe.yaml")
    assert differences(old.tree, recipe.tree) == {}
    assert directory.reserve(tmp_path / "run", old, resume=False)
    assert not directory.reserve(tmp_path / "run", recipe, resume=True)
    longer = load("a2", ["train.epochs=301"])
    assert differences(old.tree, longer.tree) == {"train.epochs": (300, 301)}
