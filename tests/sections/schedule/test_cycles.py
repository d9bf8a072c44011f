"""Cycles of rate and momentum against Smith's Caffe formula and torch's own schedulers."""

from typing import Any, Literal

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from rescue_cli import recipe as recipes
from rescue_cli.build.check import check_recipe
from rescue_cli.engine.optimizers import Optimizers, RatedGroup
from rescue_cli.errors import UsageError
from rescue_cli.sections.optim import OPTIMIZERS
from rescue_cli.sections.schedule import (
    Rates,
    ScheduleContext,
    cyclical,
    inv,
    one_cycle,
    ramp,
    step,
    torch_one_cycle,
)

PER_EPOCH, EPOCHS = 100, 100  # 10,000 updates


def caffe_rate(iteration: int, stepsize: int, base: float, highest: float) -> float:
    """What the logs of Smith's runs show: up, down to 0, never below a thousandth of the base."""
    if iteration < stepsize:
        return base + (highest - base) * iteration / stepsize
    return max(highest * (1 - (iteration - stepsize) / stepsize), base / 1000)


def caffe_momentum(iteration: int, stepsize: int, momentum: float, other: float) -> float:
    """Appendix A.2, line by line."""
    cycle = iteration // (2 * stepsize)
    x = float(iteration - (2 * cycle + 1) * stepsize)
    x = x / stepsize
    return momentum + (other - momentum) * min(1.0, max(0.0, (1.0 - abs(x)) / 2.0**cycle))


@pytest.mark.parametrize("stepsize", [1000, 4100, 5000])  # the cycle is 20, 82 and 100 % of the run
def test_one_cycle_is_caffes_at_every_update(stepsize: int) -> None:
    ours = one_cycle(
        ScheduleContext(3.0, PER_EPOCH, EPOCHS),
        stepsize_epochs=stepsize / PER_EPOCH,
        base_factor=0.1,
        momentum=(0.95, 0.85),
        tail_momentum="paper",
    )
    for update in range(PER_EPOCH * EPOCHS):
        found = ours(update)
        assert abs(found.lr - caffe_rate(update, stepsize, 0.3, 3.0)) <= 1e-12
        expected = caffe_momentum(update, stepsize, 0.95, 0.85)
        assert found.momentum is not None
        assert abs(found.momentum - expected) <= 1e-12


def test_one_cycle_ends_as_the_logs_of_resnet_50_do() -> None:
    """200,000 iterations, a cycle of 190,000, momentum 0.95 to 0.85: the last stands near 0.945."""
    keys: dict[str, Any] = {"stepsize_epochs": 9.5, "base_factor": 0.05, "momentum": (0.95, 0.85)}
    span = ScheduleContext(1.0, 10_000, 20)
    ends = {
        tail: one_cycle(span, **keys, tail_momentum=tail)(199_999) for tail in ("paper", "hold")
    }
    assert ends["paper"].momentum == pytest.approx(0.9447, abs=1e-4)
    assert ends["hold"].momentum == 0.95
    assert {found.lr for found in ends.values()} == {5e-5}


def test_one_cycle_without_momentum_leaves_it() -> None:
    ours = one_cycle(
        ScheduleContext(1.0, 10, 10),
        stepsize_epochs=4,
        base_factor=0.1,
        momentum=None,
        tail_momentum="paper",
    )
    assert {ours(update).momentum for update in range(100)} == {None}
    assert ours(40) == Rates(1.0)
    assert max(ours(update).lr for update in range(100)) == 1.0


def driven(make: Any, updates: int, momentum: float = 0.9) -> list[tuple[float, float]]:
    """Rate and momentum at every update of torch's scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=momentum)
    scheduler = make(optimizer)
    found = []
    for _ in range(updates):
        group = optimizer.param_groups[0]
        found.append((float(group["lr"]), float(group["momentum"])))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("mode", ["triangular", "triangular2"])
def test_cyclical_is_torchs_cycliclr(mode: Literal["triangular", "triangular2"]) -> None:
    theirs = driven(
        lambda o: CyclicLR(
            o, 0.05, 0.4, step_size_up=1500, mode=mode, base_momentum=0.8, max_momentum=0.95
        ),
        10_000,
    )
    ours = cyclical(
        ScheduleContext(0.4, PER_EPOCH, EPOCHS),
        stepsize_epochs=15,
        base_factor=0.125,
        momentum=(0.95, 0.8),
        mode=mode,
    )
    for update, (lr, momentum) in enumerate(theirs):
        found = ours(update)
        assert found.momentum is not None
        assert abs(found.lr - lr) <= 1e-12
        assert abs(found.momentum - momentum) <= 1e-12


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(
    ("three_phase", "pct_start"), [(False, 0.3), (True, 0.3), (True, 0.41), (False, 0.123456)]
)
def test_torch_one_cycle_is_torchs_onecyclelr(
    anneal: Literal["cos", "linear"], three_phase: bool, pct_start: float
) -> None:
    theirs = driven(
        lambda o: OneCycleLR(
            o,
            2.0,
            total_steps=10_000,
            pct_start=pct_start,
            anneal_strategy=anneal,
            div_factor=25.0,
            final_div_factor=1e4,
            three_phase=three_phase,
        ),
        10_000,
    )
    ours = torch_one_cycle(
        ScheduleContext(2.0, PER_EPOCH, EPOCHS),
        pct_start=pct_start,
        anneal=anneal,
        div_factor=25.0,
        final_div_factor=1e4,
        three_phase=three_phase,
        momentum=(0.95, 0.85),
    )
    for update, (lr, momentum) in enumerate(theirs):
        found = ours(update)
        assert found.momentum is not None
        assert abs(found.lr - lr) <= 1e-12
        assert abs(found.momentum - momentum) <= 1e-12


@pytest.mark.parametrize("pct_start", [0.0, 0.001, 1.0])
def test_a_phase_without_an_update_is_refused(pct_start: float) -> None:
    with pytest.raises(UsageError, match="leaves a phase without a step"):
        torch_one_cycle(
            ScheduleContext(1.0, 10, 10),
            pct_start=pct_start,
            anneal="cos",
            div_factor=25.0,
            final_div_factor=1e4,
            three_phase=False,
            momentum=None,
        )


def test_a_short_recipe_is_checked_by_its_steps_and_not_by_its_epochs() -> None:
    """A tenth of 3 epochs is less than an epoch, and 13 steps of quickstart's 46 an epoch."""
    schedule = (
        "schedule={name: torch-one-cycle, pct_start: 0.1, anneal: cos, div_factor: 25.0, "
        "final_div_factor: 10000.0, three_phase: false, momentum: null}"
    )
    check_recipe(recipes.load("quickstart", [schedule, "train.epochs=3"]))


def test_inv_is_caffes_formula() -> None:
    ours = inv(ScheduleContext(0.01, 938, 12), gamma=1e-4, power=0.75)
    for update in range(10_000):
        assert abs(ours(update).lr - 0.01 * (1 + 1e-4 * update) ** -0.75) <= 1e-15


def test_step_takes_a_factor_for_each_milestone_as_smiths_solver_ended() -> None:
    """x 0.316 at 50, 75 and 87.5 %, and twice at once at 93.75 %."""
    ours = step(
        ScheduleContext(0.1, 100, 16),
        milestones=[8, 12, 14, 15],
        factor=[0.316, 0.316, 0.316, 0.316**2],
    )
    found = [ours(update).lr for update in (799, 800, 1200, 1400, 1500)]
    assert found == pytest.approx([0.1, 0.0316, 0.0099856, 0.00315545, 0.00031509], rel=1e-4)
    with pytest.raises(UsageError, match="4 milestones and 3 factors"):
        step(
            ScheduleContext(0.1, 100, 16), milestones=[8, 12, 14, 15], factor=[0.316, 0.316, 0.316]
        )


def test_a_ramp_is_straight_or_exponential_and_ends_at_its_end() -> None:
    span = ScheduleContext(0.1, 50, 4)
    linear = ramp(span, start_lr=0.0, end_lr=3.0, shape="linear", momentum=(0.95, 0.85))
    assert [linear(u).lr for u in (0, 50, 100, 199)] == pytest.approx([0, 0.75, 1.5, 2.985])
    assert [linear(u).momentum for u in (0, 100)] == pytest.approx([0.95, 0.9])
    powers = ramp(span, start_lr=1e-4, end_lr=1.0, shape="exponential", momentum=None)
    assert [powers(u).lr for u in (0, 50, 100, 150)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert powers(100).momentum is None


@pytest.mark.parametrize(("start", "shape"), [(0.0, "exponential"), (1.0, "linear")])
def test_a_ramp_that_does_not_rise_is_refused(
    start: float, shape: Literal["linear", "exponential"]
) -> None:
    with pytest.raises(UsageError, match="Give a start_lr below end_lr"):
        ramp(ScheduleContext(0.1, 50, 4), start_lr=start, end_lr=1.0, shape=shape, momentum=None)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_momentum_moves_whatever_an_optimizer_calls_it(name: str) -> None:
    own: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": 0.9, "nesterov": True},
        "adamw": {},
        "lamb": {"max_grad_norm": None},
    }
    weight = torch.nn.Parameter(torch.ones(2, 2))
    made = OPTIMIZERS[name]([{"params": [weight]}], lr=0.1, weight_decay=0.0, **own[name])
    schedule = ramp(
        ScheduleContext(0.1, 10, 1), start_lr=0, end_lr=1, shape="linear", momentum=(0.9, 0.8)
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = Optimizers([made], [RatedGroup(made, 0, schedule, 2.0)], None, scaler)
    optimizers.set_rates(5)
    group = made.param_groups[0]
    moved = group["momentum"] if name == "sgd" else group["betas"][0]
    assert (group["lr"], moved) == pytest.approx((1.0, 0.85))
    if name != "sgd":
        assert group["betas"][1] == 0.999
