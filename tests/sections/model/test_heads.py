"""A classifier of 1,000 classes becomes one of 10, in every family that timm has."""

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from timm.models import _registry
from torch import Tensor, nn

from rescue_cli.build.linear_probe import Head
from rescue_cli.sections.heads import find_heads
from rescue_cli.sections.model import MODELS
from rescue_cli.sections.model.state_dict import match_weights
from rescue_cli.sections.optim.groups import layer_depths, parameter_groups

# A small network for each kind of head that is not the last linear layer, and three plain ones
KINDS = {
    "resnetv2_18": {"head.fc"},  # a convolution
    "dla34": {"fc"},
    "dpn48b": {"classifier"},
    "deit_tiny_distilled_patch16_224": {"head", "head_dist"},
    "levit_128s": {"head.linear", "head_dist.linear"},
    "levit_384_s8": {"head.linear", "head_dist.linear"},  # of which its configuration names one
    "efficientformerv2_s0": {"head", "head_dist"},
    "repvit_m0_9": {"head.head.l", "head.head_dist.l"},
    "efficientvim_m1": {f"heads.{i}" for i in range(4)},
    "crossvit_9_240": {"head.0", "head.1"},
    "volo_d1_224": {"head", "aux_head"},
    "caformer_s18": {"head.fc.fc2"},
    "test_vit": {"head"},
    "test_resnet": {"fc"},
    "test_efficientnet": {"classifier"},
}
GROUPS = 314  # in timm 1.0.31: its modules' names up to the first underscore


def no_draws(patch: pytest.MonkeyPatch) -> None:
    """On the meta device nothing is drawn, and what draws takes most of the time."""
    for name in dir(nn.init):
        if re.fullmatch(r"[a-z]\w*_", name):
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


@contextmanager
def on_meta() -> Iterator[None]:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def transfer(name: str) -> set[str]:
    """The layers that begin anew where weights of 1,000 classes come into a network of 10.

    Held against the tensors whose shapes depend on the number of classes, which asks nobody what a
    head is.
    """
    with on_meta():
        source = timm.create_model(name, num_classes=1000).state_dict()
        network: Any = timm.create_model(name, num_classes=10)
    own = network.state_dict()
    assert own.keys() == source.keys()
    differ = {k.rpartition(".")[0] for k in own if own[k].shape != source[k].shape}
    fitted = match_weights(network, source, "weights", name, strict=False, new_head=False)
    assert (set(fitted.new), fitted.notes) == (differ, ())
    assert fitted.tensors.keys() == {k for k in own if k.rpartition(".")[0] not in differ}
    network.load_state_dict(fitted.tensors, strict=False)
    same = match_weights(network, own, "weights", name, strict=True, new_head=False)
    assert (same.new, same.tensors.keys()) == ((), own.keys())
    again = match_weights(network, own, "weights", name, strict=False, new_head=True)
    assert set(again.new) == differ, "of equal size as well, where that is asked for"
    of_head = {f"{layer}.weight" for layer in differ}
    assert {k for k, group in parameter_groups(network).items() if group == "head"} == of_head
    if hasattr(network, "group_matcher"):
        places = layer_depths(network, name)
        assert {places[k] for k in of_head} == {0}, "the recipe's own rate"
    assert Head(find_heads(network), 1.0).widths
    return differ


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_head_is_found_and_made_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_draws(monkeypatch)
    assert transfer(name) == KINDS[name]


@pytest.mark.long
def test_every_group_of_timms_names_loads_and_transfers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One network of each group of names; says how many of how many load and transfer."""
    no_draws(monkeypatch)
    groups: dict[tuple[str, str], list[str]] = {}
    for name in timm.list_models():
        module = _registry._model_to_module[name]
        groups.setdefault((module, name.partition("_")[0]), []).append(name)
    assert {module for module, _ in groups} == set(timm.list_modules())
    failed = {}
    for names in groups.values():
        name = min(names, key=lambda name: (len(name), name))
        try:
            assert transfer(name)
        except Exception as error:  # each is counted
            failed[name] = error
    with capsys.disabled():
        print(f"{len(groups) - len(failed)} of {len(groups)} groups of timm's names transfer")
    assert not failed
    assert len(groups) >= GROUPS


@pytest.mark.parametrize("name", ["resnetv2_18", "repvit_m0_9", "test_vit"])
def test_features_of_every_head_give_the_networks_logits(name: str) -> None:
    """A convolution, two heads whose logits are averaged, one head."""
    network: Any = timm.create_model(name, num_classes=7).eval()
    layers = find_heads(network)
    seen: dict[nn.Module, Tensor] = {}
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda own, given: seen.update({own: given[0]}))
    size = network.default_cfg["input_size"][-1] if "vit" in name else 64
    logits = network(torch.randn(3, 3, size, size))
    features = torch.cat([seen[layer].flatten(1) for layer in layers.values()], 1)
    torch.testing.assert_close(Head(layers, 1.0)(features[:, :, None, None]), logits)


def test_networks_that_timm_does_not_know_have_the_last_linear_layer() -> None:
    assert set(find_heads(MODELS["lenet"](10, 1))) == {"7"}
    assert set(find_heads(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))) == {"2"}
    assert find_heads(nn.Sequential(nn.Conv2d(3, 4, 1))) == {}


@pytest.mark.parametrize(("name", "channels"), [("test_resnet", 1), ("test_vit", 5)])
def test_weights_of_other_images_than_rgb_transfer_to_such_images(name: str, channels: int) -> None:
    shape: dict[str, Any] = {"in_chans": channels} | (
        {"img_size": 64} if name == "test_vit" else {}
    )
    source = timm.create_model(name, num_classes=1000, **shape).state_dict()
    network: Any = timm.create_model(name, num_classes=10, **shape)
    fitted = match_weights(network, source, "weights", name, strict=False, new_head=False)
    assert (set(fitted.new), fitted.notes) == (KINDS[name], ())
    network.load_state_dict(fitted.tensors, strict=False)
    images = torch.zeros(2, channels, 64, 64)
    assert network(images).shape == (2, 10)


def test_a_linear_probe_of_before_goes_on() -> None:
    """Its checkpoint called the one head `head`."""
    layer = nn.Linear(3, 2)
    before = {f"head.{name}": 2 * value for name, value in layer.state_dict().items()}
    head = copy.deepcopy(Head({"0": layer}, 1.0))  # as an average copies it
    head.load_state_dict(before)
    assert torch.equal(head.state_dict()["heads.0.weight"], 2 * layer.weight)
