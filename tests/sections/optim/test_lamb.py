"""LAMB and AdamW against timm's and against formulas written out."""

import copy
import json
import sys
from typing import Any

import pytest
import torch
from torch import nn

from rescue_cli.sections.optim.adaptive import adamw
from rescue_cli.sections.optim.lamb import Lamb, lamb
from rescue_cli.sections.optim.sgd import SgdVelocity


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=10)
    return model.to(dtype)


def split(model: nn.Module) -> list[dict[str, Any]]:
    """Tensors of more than one dimension decay by 0.02, the others not."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_gradients(model: nn.Module, step: int, size: float) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * size


def test_lamb_is_timms_over_50_steps() -> None:
    """With gradients above and below the norm at which they are clipped; the rate changes."""
    from timm.optim.lamb import Lamb as Theirs

    mine, other = network(), network()
    start = copy.deepcopy(mine)
    ours = lamb(split(mine), lr=5e-3, weight_decay=0.02, max_grad_norm=1.0)
    theirs = Theirs(split(other), lr=5e-3, weight_decay=0.02)
    set_gradients(mine, 0, 1.0)
    first = [p.grad for p in mine.parameters()]
    for step in range(50):
        for a, b, g in zip(mine.parameters(), other.parameters(), first, strict=True):
            assert g is not None
            a.grad = (g + a.detach()) * (1e-2, 1e-5, 1e-7)[step % 3]
            b.grad = (g + b.detach()) * (1e-2, 1e-5, 1e-7)[step % 3]
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * (1 - step / 50)
            optimizer.step()
    for (name, a), b in zip(mine.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)
    pairs = zip(mine.parameters(), start.parameters(), strict=True)
    assert all(bool((a != b).any()) for a, b in pairs)


def test_gradients_in_another_memory_format_than_the_weights_are_read_right() -> None:
    found = []
    for weights_last in (False, True):
        for gradients_last in (False, True):
            generator = torch.Generator().manual_seed(5)
            weight = nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator))
            gradient = torch.randn(6, 4, 3, 3, generator=generator)
            if weights_last:
                weight.data = weight.data.to(memory_format=torch.channels_last)
            if gradients_last:
                gradient = gradient.to(memory_format=torch.channels_last)
            weight.grad = gradient
            lamb([{"params": [weight]}], lr=0.1, weight_decay=0.02, max_grad_norm=1.0).step()
            found.append(weight.detach().contiguous())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-7)


def test_gradients_are_divided_where_their_norm_is_above_the_limit_and_only_there() -> None:
    """Adam's direction hardly depends on the gradients' size; eps tells the difference."""
    steps = {}
    for limit in (1.0, None, 1e9):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        weight.grad = torch.full((3,), 4.0, dtype=torch.float64)
        optimizer = lamb([{"params": [weight]}], lr=1.0, weight_decay=0.0, max_grad_norm=limit)
        optimizer.step()
        steps[limit] = float(1 - weight[0].detach())
    clipped = 1 / 3**0.5
    assert steps[1.0] == pytest.approx(clipped / (clipped + 1e-6), rel=1e-9)
    assert steps[None] == steps[1e9] == pytest.approx(4 / (4 + 1e-6), rel=1e-12)


def test_a_tensor_of_zeros_takes_adams_step() -> None:
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    weight.grad = torch.ones(2, 2, dtype=torch.float64)
    lamb([{"params": [weight]}], lr=0.5, weight_decay=0.1, max_grad_norm=None).step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, -0.5), rtol=2e-6, atol=0)


@pytest.mark.parametrize("make", ["lamb", "adamw"])
def test_the_scaler_divides_and_skips_without_leaving_a_trace(make: str) -> None:
    """A scaled run equals an unscaled one, and an infinity in between changes nothing."""
    makers = {
        "lamb": lambda g: lamb(g, lr=1e-2, weight_decay=0.02, max_grad_norm=1.0),
        "adamw": lambda g: adamw(g, lr=1e-2, weight_decay=0.02),
    }
    plain, scaled = network(torch.float32), network(torch.float32)
    ours, amp = makers[make](split(plain)), makers[make](split(scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        set_gradients(plain, step, 1e-2)
        ours.step()
    for step in (0, 1, -1, 2, 3):
        set_gradients(scaled, max(step, 0), 1e-2)
        factor = scaler.get_scale() if scaler._scale is not None else 1024.0
        for p in scaled.parameters():
            assert p.grad is not None
            p.grad *= factor
        if step < 0:
            next(iter(scaled.parameters())).grad[0] = torch.inf  # type: ignore[index]
        scaler.scale(torch.zeros(()))
        scaler.step(amp)
        scaler.update()
    assert scaler.get_scale() == 512.0
    for (name, a), b in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
    assert {float(s["step"]) for s in amp.state.values()} == {4.0}


def test_a_skipped_first_step_leaves_weights_and_moments_alone() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = lamb([{"params": [weight]}], lr=0.5, weight_decay=0.1, max_grad_norm=1.0)
    scaler = torch.amp.GradScaler("cpu")
    weight.grad = torch.full((2, 2), torch.nan)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight.detach(), torch.ones(2, 2))
    (state,) = optimizer.state.values()
    assert float(state["step"]) == 0
    assert torch.equal(state["exp_avg"], torch.zeros(2, 2))


def test_a_loaded_state_goes_on_bitwise() -> None:
    model = network(torch.float32)
    optimizer = lamb(split(model), lr=1e-2, weight_decay=0.02, max_grad_norm=1.0)
    for step in range(3):
        set_gradients(model, step, 1e-2)
        optimizer.step()
    twin = copy.deepcopy(model)
    other = lamb(split(twin), lr=1e-2, weight_decay=0.02, max_grad_norm=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((optimizer, model), (other, twin)):
        set_gradients(its, 7, 1e-2)
        each.step()
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_adamw_is_its_formula() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = adamw([{"params": [weight]}], lr=0.1, weight_decay=0.05)
    w, m, v = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    for t in range(1, 6):
        g = torch.tensor([0.3 * t, -0.1], dtype=torch.float64)
        weight.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * 0.05 * w
        w = w - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), w, rtol=1e-12, atol=0)


def test_optimizers_of_our_own_say_that_they_take_the_scalers_word() -> None:
    kinds: list[type] = [Lamb, SgdVelocity]
    assert all(kind._step_supports_amp_scaling for kind in kinds)  # type: ignore[attr-defined]


def test_the_bench_counts_fewer_operations_than_timms_lamb_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """timm runs a dozen operations for each of 161 tensors: 2,215 for ResNet-50."""
    from rescue_cli.cli import main

    words = "rescue bench optimizer --model resnet50 --against timm --steps 1 --rounds 1 --json"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert {"what", "ours", "theirs", "ratio", "unit"} <= set(found)
    assert (found["unit"], found["operations_theirs"]) == ("ms", 2215)
    assert found["operations"] < 500
    assert found["ratio"] > 0
