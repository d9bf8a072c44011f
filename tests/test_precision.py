"""Mixed precision and the gradient scaler, shown on a processor beneath the recipe's check."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rescue_cli import build
from rescue_cli import recipe as recipes
from rescue_cli.engine import checkpoint
from rescue_cli.engine.step import Step
from rescue_cli.engine.updates import Optimizers, RatedGroup
from rescue_cli.optim import OPTIMIZERS
from rescue_cli.schedule import Rates
from tests.engine_runs import drawn

RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def optimizers_of(
    name: str, parameter: nn.Parameter, clip: float | None, growth_interval: int = 2
) -> Optimizers:
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    optimizer = OPTIMIZERS[name]([{"params": [parameter]}], **options)
    scaler = torch.amp.GradScaler("cpu", enabled=True, growth_interval=growth_interval)
    rated = RatedGroup(optimizer, 0, lambda step: Rates(RATES[min(step, len(RATES) - 1)]), 1.0)
    return Optimizers([optimizer], [rated], clip, scaler)


def update(optimizers: Optimizers, parameter: nn.Parameter, number: int, *, spoilt: bool) -> None:
    """One update of a small loss; spoilt, one of its gradients is infinite."""
    factors = torch.linspace(1, 2, len(parameter))
    factors[1] = torch.inf if spoilt else factors[1]
    optimizers.set_rates(number)
    loss = (parameter * factors).sum()
    optimizers.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    optimizers.step()


@pytest.mark.parametrize("clip", [None, 0.5], ids=["not clipped", "clipped"])
@pytest.mark.parametrize("first", [0, 2], ids=["the first step", "a later step"])
@pytest.mark.parametrize("name", ["sgd", "sgd-velocity"])
def test_an_infinite_gradient_skips_the_step_and_nothing_else(
    name: str, first: int, clip: float | None
) -> None:
    parameter, unspoilt = (nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizers = optimizers_of(name, parameter, clip, growth_interval=1000)
    others = optimizers_of(name, unspoilt, clip, growth_interval=1000)
    for number in range(first):
        update(optimizers, parameter, number, spoilt=False)
        update(others, unspoilt, number, spoilt=False)
    before, scale = parameter.detach().clone(), optimizers.scaler.get_scale()

    update(optimizers, parameter, first, spoilt=True)
    assert torch.equal(parameter, before), "no weight moved"
    assert optimizers.scaler.get_scale() == scale / 2
    assert float(optimizers.skipped) == 1
    assert optimizers.optimizers[0].param_groups[0]["lr"] == RATES[first]

    # The velocity is what it was, and the schedule went on: the next step is as if the one skipped
    # had been left out, at its own rate. Scales are powers of two, so unscaling is exact.
    update(optimizers, parameter, first + 1, spoilt=False)
    update(others, unspoilt, first + 1, spoilt=False)
    torch.testing.assert_close(parameter, unspoilt, rtol=1e-6, atol=1e-7)
    assert float(optimizers.skipped) == 1


@pytest.mark.parametrize("name", ["sgd", "sgd-velocity"])
def test_updates_through_the_scaler_equal_those_without(name: str) -> None:
    scaled, plain = (nn.Parameter(torch.ones(5)) for _ in range(2))
    with_scaler, without = optimizers_of(name, scaled, None), optimizers_of(name, plain, None)
    without.scaler = torch.amp.GradScaler("cpu", enabled=False)
    for number in range(5):
        update(with_scaler, scaled, number, spoilt=False)
        update(without, plain, number, spoilt=False)
    assert with_scaler.scaler.get_scale() == 4 * 65536, "grown after the second and fourth update"
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "sgd-velocity"])
def test_scaler_state_goes_through_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    spoilt = [False, True, False, False, True, False]

    def updates(optimizers: Optimizers, parameter: nn.Parameter, numbers: Sequence[int]) -> None:
        for number in numbers:
            update(optimizers, parameter, number, spoilt=spoilt[number])

    straight = nn.Parameter(torch.ones(5))
    never_stopped = optimizers_of(name, straight, None)
    updates(never_stopped, straight, range(6))

    first = nn.Parameter(torch.ones(5))
    stopped = optimizers_of(name, first, None)
    updates(stopped, first, range(3))
    file = tmp_path / "last.pt"
    checkpoint.save(file, {"updates": stopped.state_dict(), "weights": first.detach()})
    state = checkpoint.load(file, torch.device("cpu"))
    second = nn.Parameter(state["weights"])
    resumed = optimizers_of(name, second, None)
    resumed.load_state_dict(state["updates"])
    updates(resumed, second, range(3, 6))

    assert torch.equal(second, straight)
    assert resumed.scaler.state_dict() == never_stopped.scaler.state_dict()
    assert float(resumed.skipped) == float(never_stopped.skipped) == 2


# --- several optimizers ---


def two_optimizers() -> tuple[Optimizers, nn.Parameter, nn.Parameter]:
    """Filters under Muon, a bias under SGD."""
    torch.manual_seed(0)
    filters, bias = nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.ones(4))
    shared: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    muon = OPTIMIZERS["muon"](
        [{"params": [filters]}],
        **shared,
        steps=3,
        coefficients=(3.4445, -4.775, 2.0315),
        iterate="float32",
        renormalise_every=1,
    )
    sgd = OPTIMIZERS["sgd"]([{"params": [bias]}], **shared)
    rated = [
        RatedGroup(o, 0, lambda step: Rates(RATES[min(step, len(RATES) - 1)]), 1.0)
        for o in (muon, sgd)
    ]
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    return Optimizers([muon, sgd], rated, None, scaler), filters, bias


def update_both(
    optimizers: Optimizers, filters: nn.Parameter, bias: nn.Parameter, number: int, spoilt: str
) -> None:
    optimizers.set_rates(number)
    factors = torch.linspace(1, 2, 48).reshape(4, 3, 2, 2) * torch.cos(filters.detach())
    one = torch.inf if spoilt == "filters" else 1.0
    other = torch.inf if spoilt == "bias" else 1.0
    loss = (filters * factors).sum() * one + (bias * torch.arange(4.0)).sum() * other
    optimizers.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    optimizers.step()


@pytest.mark.parametrize("spoilt", ["filters", "bias"])
@pytest.mark.parametrize("first", [0, 2], ids=["the first step", "a later step"])
def test_an_infinity_in_one_optimizers_gradients_skips_the_step_of_all(
    spoilt: str, first: int
) -> None:
    optimizers, filters, bias = two_optimizers()
    others, unspoilt_filters, unspoilt_bias = two_optimizers()
    for number in range(first):
        update_both(optimizers, filters, bias, number, "")
        update_both(others, unspoilt_filters, unspoilt_bias, number, "")
    before = filters.detach().clone(), bias.detach().clone()
    scale = 65536.0

    update_both(optimizers, filters, bias, first, spoilt)
    assert torch.equal(filters, before[0])
    assert torch.equal(bias, before[1])
    assert optimizers.scaler.get_scale() == scale / 2, "it fell once"
    assert float(optimizers.skipped) == 1

    update_both(optimizers, filters, bias, first + 1, "")
    update_both(others, unspoilt_filters, unspoilt_bias, first + 1, "")
    torch.testing.assert_close(filters, unspoilt_filters, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, unspoilt_bias, rtol=1e-6, atol=1e-7)
    assert not torch.equal(filters, before[0])
    assert float(optimizers.skipped) == 1
    assert optimizers.scaler.get_scale() == scale / 2


# --- the whole step ---


class Spoilt:
    """A task whose loss is infinite at chosen updates."""

    def __init__(self, step: Step, at: Sequence[int]) -> None:
        self.task = step.task
        self.rows = step.task.rows
        self.at = at

    def loss(self, model: nn.Module, batch: object) -> Tensor:
        loss: Tensor = self.task.loss(model, batch)  # type: ignore[arg-type]
        return loss * torch.inf if batch.step in self.at else loss  # type: ignore[attr-defined]


def mixed(recipe_name: str, *, spoilt_at: Sequence[int]) -> tuple[Step, nn.Module]:
    """A float16 step with its scaler, which the recipe's check keeps from processors."""
    sizes = ["model.width=4", "train.batch_size=16", "train.device_batch_size=8"]
    recipe = recipes.load(recipe_name, [*sizes, "train.precision=float16"])
    cpu = torch.device("cpu")
    network = build.model(recipe, 10, cpu)
    channels, pixels = (1, 28) if recipe_name == "quickstart" else (3, 32)
    machine = build.Machine(cpu, 0, Path("unused"))
    step = build.step(recipe, network, drawn(channels, pixels, 64), machine, print)
    step.task = Spoilt(step, spoilt_at)
    return step, network


@pytest.mark.parametrize("name", ["quickstart", "myrtle-baseline"])
def test_a_float16_run_killed_after_a_skipped_step_goes_on_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    straight, network = mixed(name, spoilt_at=[1])
    for number in range(4):
        before = {k: p.detach().clone() for k, p in network.named_parameters()}
        skipped = float(straight.optimizers.skipped)
        straight(number)
        stood_still = all(torch.equal(p, before[k]) for k, p in network.named_parameters())
        assert stood_still == (float(straight.optimizers.skipped) == skipped + 1)
        assert stood_still or number != 1, "the update that was spoilt"
    scale = 65536 / 2 ** float(straight.optimizers.skipped)
    assert straight.optimizers.scaler.get_scale() == scale

    killed, its_network = mixed(name, spoilt_at=[1])
    killed(0)
    killed(1)
    state = {"model": its_network.state_dict(), "updates": killed.optimizers.state_dict()}
    checkpoint.save(tmp_path / "last.pt", state)
    resumed, its_network = mixed(name, spoilt_at=[1])
    state = checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))
    its_network.load_state_dict(state["model"])
    resumed.optimizers.load_state_dict(state["updates"])
    resumed(2)
    resumed(3)
    for (key, mine), other in zip(
        its_network.state_dict().items(), network.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other), key


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("float64", torch.float64),
    ],
)
def test_a_precision_is_what_convolutions_compute_in(precision: str, dtype: torch.dtype) -> None:
    recipe = recipes.load("quickstart", ["model.width=4", f"train.precision={precision}"])
    network = build.model(recipe, 10, torch.device("cpu"))
    seen: list[torch.dtype] = []
    convolution = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    normalise = build.normalise(recipe, torch.device("cpu"))
    images = normalise(torch.zeros((2, 1, 28, 28), dtype=torch.uint8))
    with build.autocast(recipe, torch.device("cpu"))():
        network(images)
    assert seen == [dtype]
    kept = torch.float64 if precision == "float64" else torch.float32
    assert {p.dtype for p in network.parameters()} == {kept}, (
        "the weights themselves are kept whole"
    )
