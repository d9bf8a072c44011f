"""Clipping of gradients: one norm over all parameters, whatever the optimizers are."""

from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from rescue_cli.build.check import check_ingredients
from rescue_cli.build.networks import build_network
from rescue_cli.build.optimizers import build_optimizers, shared_max_norm
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, load, recipe_in, yaml
from rescue_cli.recipe.changes import differences

CPU = torch.device("cpu")
SGD = "name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.01"
LAMB = "name: lamb, lr: 0.01, weight_decay: 0.02"
REST = "biases+norms+head+rest"


def two(first: str, second: str) -> Recipe:
    """Two optimizers, one of the filters and one of all else, with these norms."""
    items = f"[{{{first}, params: filters}}, {{{second}, params: {REST}}}]"
    return load("quickstart", ["model.width=4", f"optim={items}"])


def updated(recipe: Recipe, *, by_hand: float | None = None) -> list[torch.Tensor]:
    """The weights after an update by gradients of 1, clipped by the recipe, or before it."""
    network = build_network(recipe, 10, CPU)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = build_optimizers(recipe, network, 10, scaler)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    if by_hand is not None:
        clip_grad_norm_([p for p in network.parameters() if p.requires_grad], by_hand)
    optimizers.set_rates(3)
    optimizers.step()
    return list(network.parameters())


def are_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_gradients_of_several_optimizers_are_clipped_together() -> None:
    clipped = updated(two(f"{SGD}, max_grad_norm: 0.5", f"{SGD}, max_grad_norm: 0.5"))
    plain = two(SGD, SGD)
    assert are_equal(clipped, updated(plain, by_hand=0.5))
    assert not are_equal(clipped, updated(plain))


def test_a_loaded_momentum_lies_in_memory_as_its_parameter_does() -> None:
    """A fused kernel would write beyond one number that stands for all."""
    recipe = two(SGD, SGD)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = build_optimizers(recipe, build_network(recipe, 10, CPU), 10, scaler)
    state = optimizers.state_dict()
    for saved in state["optimizers"][0]["state"].values():
        saved["momentum_buffer"] = torch.ones(1).expand(saved["momentum_buffer"].shape)
    optimizers.load_state_dict(state)
    for parameter, loaded in optimizers.optimizers[0].state.items():
        assert loaded["momentum_buffer"].stride() == parameter.stride()
        assert torch.equal(loaded["momentum_buffer"], torch.ones_like(parameter))


@pytest.mark.parametrize(
    ("first", "second", "norm"),
    [
        (SGD, SGD, None),
        (f"{LAMB}, max_grad_norm: 1.0", SGD, None),  # LAMB clips its own
        (f"{LAMB}, max_grad_norm: 1.0", f"{SGD}, max_grad_norm: 1.0", 1.0),
        (f"{SGD}, max_grad_norm: 2", f"{SGD}, max_grad_norm: 2", 2.0),
    ],
)
def test_there_is_one_norm_to_clip_to(first: str, second: str, norm: float | None) -> None:
    recipe = two(first, second)
    check_ingredients(recipe)
    assert shared_max_norm(recipe.optim) == norm


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (f"{SGD}, max_grad_norm: 1", SGD),
        (f"{SGD}, max_grad_norm: 1", f"{SGD}, max_grad_norm: 2"),
        (f"{LAMB}, max_grad_norm: null", f"{SGD}, max_grad_norm: 1"),
        (f"{LAMB}, max_grad_norm: 1", f"{LAMB}, max_grad_norm: 2"),
    ],
)
def test_items_that_disagree_on_the_norm_are_refused(first: str, second: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_ingredients(two(first, second))
    assert str(refused.value) == (
        "optim.max_grad_norm: gradients are clipped over all parameters together. "
        "Give each item the same."
    )


# --- the key of earlier versions ---


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([], "optim.max_grad_norm=0.5"),
        (["optim.max_grad_norm=0.5"], "optim.max_grad_norm=0.5"),
        ([f"optim={{{LAMB}, max_grad_norm: 1.0}}"], "optim.max_grad_norm=0.5"),
        ([f"optim={{{LAMB}, max_grad_norm: 0.25}}"], "optim.max_grad_norm=0.25"),
        ([f"optim={{{LAMB}, max_grad_norm: null}}"], "optim.max_grad_norm=0.5"),
    ],
)  # fmt: skip
def test_the_old_key_is_read_as_the_new_one(old: list[str], new: str, tmp_path: Path) -> None:
    now = load("quickstart", [*old, new])
    then = load("quickstart", [*old, "train.clip_grad_norm=0.5"])
    assert then == now
    assert now.notes == ()
    assert then.notes == (
        "train.clip_grad_norm is deprecated; it is read as optim.max_grad_norm=0.5",
    )
    written = load("quickstart", old).tree
    written = {**written, "train": {**written["train"], "clip_grad_norm": 0.5}}
    (tmp_path / "recipe.yaml").write_text(yaml.write(written))
    assert differences(recipe_in(tmp_path).tree, now.tree) == {}


def test_the_old_key_goes_to_each_optimizer_and_null_to_none() -> None:
    recipe = two(SGD, SGD).with_overrides("train.clip_grad_norm=2")
    assert [item.max_grad_norm for item in recipe.optim] == [2.0, 2.0]
    assert two(SGD, SGD).with_overrides("train.clip_grad_norm=null") == two(SGD, SGD)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.clip_grad_norm=-1"], "train.clip_grad_norm: -1 must be above 0."),
        (
            ["train.clip_grad_norm=1", "optim.max_grad_norm=2"],
            "train.clip_grad_norm: 1, and optim.max_grad_norm is 2. They are one key: remove the "
            "first with ~train.clip_grad_norm.",
        ),
    ],
)
def test_an_old_key_that_says_nothing_clear_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        load("quickstart", overrides)
    assert str(refused.value) == message
