"""What is planned on a machine without a GPU for one that has some: nothing asks for the device."""

import json

import pytest
import torch

from rescue_cli.build import check
from rescue_cli.recipe import load, names
from tests.conftest import Rescue

GPUS_ALONE = [name for name in names() if load(name).train.precision == "float16"]


def test_a_plan_does_not_ask_for_the_device(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a GPU, whose processor computes no bfloat16 either."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    # Each recipe's check has its own test: no device there
    monkeypatch.setattr(check, "check_recipe", lambda _: None)
    assert len(GPUS_ALONE) > 30
    for name in GPUS_ALONE:
        words = ("train", "--recipe", name, "--dry-run", "--json", "data.root=nowhere")
        ended = rescue(*words)
        assert ended.code == 0, name
        assert ended.notes == ["planned for a GPU, which float16 needs; this machine has none"]
        plan = json.loads(ended.out)
        assert (plan["device"], plan["processes"]) == ("cuda", 1)
        assert plan["recipe"]["train"]["precision"] == "float16"
    line = ("train", "--recipe", "a2", "--gpus", "4", "--dry-run", "--json", "data.root=nowhere")
    ended = rescue(*line, "train.precision=bfloat16")
    assert (ended.code, ended.err) == (0, "")
    plan = json.loads(ended.out)
    assert (plan["device"], plan["processes"]) == ("cuda", 4)


def test_what_a_gpus_recipe_costs_is_known_without_one(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    call = ("--recipe", "a2", "train.compile=true", "train.precision=bfloat16")
    assert rescue("train", *call, "data.root=nowhere", "--device", "cuda", "--dry-run").err == ""
    ended = rescue("plan", *call, "--model", "resnet18", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["peak_memory_mb"] > 1000
    assert rescue("recipes", "check", "a2", *call[2:]).out == "a2: valid\n"


def test_a_plan_for_a_cpu_refuses_what_no_cpu_has(rescue: Rescue) -> None:
    ended = rescue("train", "--recipe", "a2", "--dry-run", "--device", "cpu", "data.root=nowhere")
    assert ended.code == 2
    assert "train.precision: float16 needs CUDA" in ended.err
