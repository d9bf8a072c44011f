"""The table of sections, and what an item of one is after it has been read."""

import pytest

from rescue_cli.errors import UsageError
from rescue_cli.recipe import SECTIONS, Item, OptimItem, load
from rescue_cli.recipe.schema import keys
from rescue_cli.recipe.sections import find_ingredient, read_item
from rescue_cli.sections.augment import AUGMENTATIONS_OF
from rescue_cli.sections.model import MODELS
from rescue_cli.sections.optim import OPTIMIZERS
from rescue_cli.sections.schedule import SCHEDULES

WITH_INGREDIENTS = [name for name, section in SECTIONS.items() if section.ingredients is not None]


@pytest.mark.parametrize("name", WITH_INGREDIENTS)
def test_each_section_finds_its_ingredients_and_refuses_other_names(name: str) -> None:
    if SECTIONS[name].otherwise is not None:
        return
    with pytest.raises(UsageError, match=rf"^{name}\.name: 'nosuch' is not known\."):
        find_ingredient(name, "nosuch", "classification")


def test_a_network_that_is_not_ours_is_of_the_zoo() -> None:
    assert find_ingredient("model", "resnet9", "classification") is MODELS["resnet9"]
    assert "drop_path" in keys(find_ingredient("model", "resnet18", "classification"))


def test_an_augmentation_is_that_of_the_recipes_task() -> None:
    for task, known in AUGMENTATIONS_OF.items():
        assert find_ingredient("augment", "flip", task) is known["flip"]
    (flip,) = load("quickstart", ["augment=[{name: flip, p: 0.5}]"]).augment
    assert flip.function is AUGMENTATIONS_OF["classification"]["flip"]


def test_only_the_keys_that_torch_needs_too_are_an_ingredients_and_shared() -> None:
    shared = set(keys(OptimItem))
    for function in OPTIMIZERS.values():
        assert set(keys(function)) & shared <= {"lr", "weight_decay", "max_grad_norm"}
    others = {"schedule": SCHEDULES.values(), "model": MODELS.values()}
    for section, functions in others.items():
        for each in functions:
            assert not set(keys(each)) & set(keys(SECTIONS[section].keys))


@pytest.mark.parametrize("name", [name for name in SECTIONS if SECTIONS[name].neutral is not None])
def test_a_recipe_without_an_optional_section_has_its_neutral_value(name: str) -> None:
    recipe = load("quickstart")
    recipe = recipe.with_overrides(f"~{name}") if name in recipe.tree else recipe
    neutral = SECTIONS[name].neutral
    assert [item.name for item in recipe.items(name)] == [
        item["name"] for item in (neutral if isinstance(neutral, list) else [neutral])
    ]
    for item in recipe.items(name):
        assert item.arguments == {}


def test_a_misspelt_key_is_named_before_the_key_that_it_leaves_missing() -> None:
    with pytest.raises(UsageError) as refused:
        read_item("optim", {"name": "sgd", "lr": 0.1, "weightdecay": 0.0})
    assert str(refused.value) == (
        "optim (sgd): unknown key 'weightdecay'. Did you mean 'weight_decay'?"
    )


def test_an_item_makes_its_ingredient_with_its_arguments() -> None:
    item = Item("averaging", "none", {"decay": 0.5})
    with pytest.raises(UsageError, match=r"^averaging \(none\): unknown key 'decay'\."):
        item.check()
    smooth = load("quickstart", ["loss.label_smoothing=0.1"]).loss
    assert smooth.arguments == {"label_smoothing": 0.1, "reduction": "mean"}
    assert smooth(8, None).factor == 1
