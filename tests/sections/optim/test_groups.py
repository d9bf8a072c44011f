"""Which parameters `norms`, `whitening`, `biases`, `filters`, `head` and `rest` stand for."""

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn

from rescue_cli.build.check import check_recipe
from rescue_cli.errors import UsageError
from rescue_cli.recipe import OptimItem, load
from rescue_cli.sections.model import MODELS, timm_model
from rescue_cli.sections.optim import assign_parameters, parameter_groups


def network(name: str) -> nn.Module:
    with torch.device("meta"):
        if name in MODELS:
            return MODELS[name](10, 3, width=8, logit_scale=0.125)
        return timm_model(name, 10, 3)


def items_of(*given: Mapping[str, Any]) -> list[OptimItem]:
    """Optimizer items with these keys."""
    return [OptimItem("optim", "sgd", {}, lr=0.1, weight_decay=0.1, **keys) for keys in given]


def undecayed_by_timm(model: nn.Module) -> set[str]:
    """timm's own split, which spares vectors, biases and what the model asks to spare."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    split = timm.optim.param_groups_weight_decay  # type: ignore[attr-defined]
    groups = split(model, 0.1, no_weight_decay_list=spared)
    (without,) = (group for group in groups if group["weight_decay"] == 0)
    return {names[id(parameter)] for parameter in without["params"]}


def undecayed_here(model: nn.Module, *no_decay: str) -> set[str]:
    (claim,) = assign_parameters(model, items_of({"no_decay": list(no_decay)}))
    assert not set(claim.decayed) & set(claim.undecayed)
    assert {*claim.decayed, *claim.undecayed} == {name for name, _ in model.named_parameters()}
    return set(claim.undecayed)


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "resnet50", "convnext_atto"])
def test_sparing_norms_and_biases_is_timms_own_split(name: str) -> None:
    model = network(name)
    assert undecayed_here(model, "norms", "biases") == undecayed_by_timm(model)


def test_resnet50_has_54_decayed_tensors_and_107_that_are_spared() -> None:
    (claim,) = assign_parameters(network("resnet50"), items_of({"no_decay": ["norms", "biases"]}))
    assert (len(claim.decayed), len(claim.undecayed)) == (54, 107)


def test_a_vision_transformers_position_and_class_tokens_decay_unlike_in_timm() -> None:
    model = network("vit_tiny_patch16_224")
    difference = undecayed_by_timm(model) ^ undecayed_here(model, "norms", "biases")
    assert difference == {"pos_embed", "cls_token"}
    assert {parameter_groups(model)[name] for name in difference} == {"rest"}


def test_every_parameter_of_a_network_is_in_one_group() -> None:
    owner = parameter_groups(network("resnet18"))
    assert owner["conv1.weight"] == "filters"
    assert owner["bn1.weight"] == owner["bn1.bias"] == "norms"
    assert owner["fc.weight"] == "head"
    assert owner["fc.bias"] == "biases"
    assert set(owner.values()) == {"filters", "norms", "head", "biases"}


class Whitening(nn.Conv2d):
    """A layer as the airbench nets have it: its filters are fixed, its bias learns."""

    whitens = True

    def __init__(self) -> None:
        super().__init__(3, 24, 2)
        self.weight.requires_grad_(False)


def test_the_bias_of_a_whitening_layer_is_a_group_of_its_own() -> None:
    plain = nn.Conv2d(24, 64, 3)
    model = nn.Sequential(Whitening(), plain, nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 10))
    assert parameter_groups(model) == {
        "0.bias": "whitening",
        "1.weight": "filters",
        "1.bias": "biases",
        "2.weight": "norms",
        "2.bias": "norms",
        "4.weight": "head",
        "4.bias": "biases",
    }
    plain.whitens = False  # type: ignore[assignment]
    whitening, others = assign_parameters(
        model, items_of({"params": "whitening"}, {"params": "filters+norms+head+biases+rest"})
    )
    assert whitening.decayed == ("0.bias",)
    assert len(others.decayed) == 6
    with pytest.raises(UsageError, match=r"'whitening' \(0.bias, ...\) are in no item"):
        assign_parameters(model, items_of({"params": "filters+norms+head+biases+rest"}))
    model[0].weight.requires_grad_(True)
    assert parameter_groups(model)["0.weight"] == "filters"


def test_a_list_of_optimizers_shares_the_parameters_out() -> None:
    model = network("resnet18")
    items: list[dict[str, Any]] = [
        {"params": "filters"},
        {"params": "head+biases", "no_decay": ["biases"]},
        {"params": "norms+rest"},
    ]
    filters, head, norms = assign_parameters(model, items_of(*items))
    assert head.decayed == ("fc.weight",)
    assert head.undecayed == ("fc.bias",)
    assert len(filters.decayed) == 20
    assert len(norms.decayed) == 40


def test_a_module_is_named_for_all_its_parameters_which_keep_their_kinds() -> None:
    model = network("resnet18")
    items: list[dict[str, Any]] = [
        {"params": "all", "no_decay": ["norms"]},
        {"params": "layer4+fc", "no_decay": ["norms", "biases"]},
        {"params": "layer4.1.conv2.weight"},
    ]
    rest, named, one = assign_parameters(model, items_of(*items))
    below = {n for n, _ in model.named_parameters() if n.startswith(("layer4.", "fc."))}
    assert one.decayed == ("layer4.1.conv2.weight",)
    assert {*named.decayed, *named.undecayed} == below - set(one.decayed)
    norms = {n for n in below if "bn" in n or "downsample.1" in n}
    assert set(named.undecayed) == norms | {"fc.bias"}
    assert not below & {*rest.decayed, *rest.undecayed}
    assert len(rest.decayed) + len(rest.undecayed) + len(below) == 62


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [{"params": "filters"}, {"params": "norms"}],
            "optim: the parameters 'biases+head' (fc.weight, ...) are in no item. Add an item with "
            "params: biases+head, or give one item params: all.",
        ),
        (
            [{"params": "all"}, {"params": "norms"}],
            "optim: the parameters 'norms' are in two items, 0 and 1. Remove them from one.",
        ),
        (
            [{"params": "all"}, {}],
            "optim[1]: missing key 'params' "
            "(one of norms, whitening, biases, filters, head, rest). Add it.",
        ),
        (
            [{"params": "bias"}],
            "optim[0].params: 'bias' is not a group or parameter. Did you mean 'biases'?",
        ),
        (
            [{"no_decay": ["norm"]}],
            "optim[0].no_decay: 'norm' is not a group. Did you mean 'norms'?",
        ),
    ],
)
def test_parameters_claimed_by_none_or_twice_are_refused(
    items: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        assign_parameters(network("resnet18"), items_of(*items))
    assert str(refused.value) == message


def test_the_recipe_check_finds_unclaimed_parameters_without_data_or_device() -> None:
    sgd = "name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0"
    halves = load("quickstart", [f"optim=[{{params: filters, {sgd}}}, {{params: norms, {sgd}}}]"])
    with pytest.raises(UsageError, match=r"^optim: the parameters 'head' \(head.weight, ...\)"):
        check_recipe(halves)
    check_recipe(halves.with_overrides("optim.norms.params=norms+head"))
