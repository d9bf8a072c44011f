"""Learning rates against timm's, torch's and numpy's own, and samplers, as functions of a step."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from rescue_cli import recipe as recipes
from rescue_cli.engine.optimizers import Optimizers, RatedGroup
from rescue_cli.errors import UsageError
from rescue_cli.sections.optim import LBFGS, OPTIMIZERS
from rescue_cli.sections.sampling import SamplingContext, shuffled
from rescue_cli.sections.schedule import (
    Rates,
    ScheduleContext,
    constant,
    cosine,
    exponential,
    freeze_after,
    piecewise,
    step,
)


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rate(of: torch.optim.Optimizer) -> float:
    return float(of.param_groups[0]["lr"])


def test_cosine_per_epoch_is_timms_over_the_300_epochs_of_a2() -> None:
    per_epoch = 7
    ours = cosine(
        ScheduleContext(5e-3, per_epoch, 300),
        warmup_epochs=5,
        warmup_lr=1e-4,
        min_lr=1e-6,
        per="epoch",
    )
    theirs_on = optimizer(5e-3)
    theirs = CosineLRScheduler(
        theirs_on, t_initial=300, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4
    )
    for epoch in range(300):
        for within in range(per_epoch):  # held within the epoch
            assert abs(ours(epoch * per_epoch + within).lr - rate(theirs_on)) <= 1e-12
        theirs.step(epoch + 1)
    assert ours(300 * per_epoch).lr == 1e-6
    assert ours(0).lr == 1e-4


def test_cosine_per_step_is_timms_counted_in_updates() -> None:
    per_epoch, epochs, warmup = 11, 9, 2
    ours = cosine(
        ScheduleContext(0.5, per_epoch, epochs),
        warmup_epochs=warmup,
        warmup_lr=0.01,
        min_lr=0.0,
        per="step",
    )
    theirs_on = optimizer(0.5)
    theirs = CosineLRScheduler(
        theirs_on,
        t_initial=per_epoch * epochs,
        warmup_t=per_epoch * warmup,
        warmup_lr_init=0.01,
        t_in_epochs=False,
    )
    for update in range(per_epoch * epochs):
        assert abs(ours(update).lr - rate(theirs_on)) <= 1e-12
        theirs.step_update(update + 1)


def test_cosine_over_a_fraction_of_epochs_ends_at_the_lowest_rate() -> None:
    ours = cosine(
        ScheduleContext(1.0, 10, 9.9), warmup_epochs=0, warmup_lr=0, min_lr=0.1, per="step"
    )
    assert ours(0).lr == 1.0
    assert abs(ours(98).lr - (0.1 + 0.9 * (1 + math.cos(math.pi * 98 / 99)) / 2)) <= 1e-12
    assert ours(99).lr == 0.1
    assert ours(1000).lr == 0.1


@pytest.mark.parametrize("per_epoch", [1, 3, 195, 5004])
def test_step_is_torchs_multisteplr(per_epoch: int) -> None:
    ours = step(ScheduleContext(0.1, per_epoch, 90), milestones=[30, 60, 80], factor=0.1)
    theirs_on = optimizer(0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(theirs_on, [30, 60, 80], gamma=0.1)
    for epoch in range(90):
        for update in (epoch * per_epoch, epoch * per_epoch + per_epoch - 1):
            assert ours(update).lr == pytest.approx(rate(theirs_on), rel=1e-12)
        theirs_on.step()
        theirs.step()


def test_a_milestone_within_an_epoch_is_reached_in_mid_epoch() -> None:
    ours = step(ScheduleContext(1.0, 10, 4), milestones=[1.5], factor=0.5)
    assert [ours(update).lr for update in (14, 15)] == [1.0, 0.5]


def test_piecewise_is_numpys_interp_read_one_step_ahead_as_myrtle_reads_it() -> None:
    # dawn.py: lr_schedule = PiecewiseLinear([0, 5, 24], [0, 0.4, 0]), read at (step + 1) / steps
    from rescue_cli.build.optimizers import build_schedule

    per_epoch = 97
    recipe = recipes.load("myrtle-baseline")
    assert recipe.schedule.options["first_step"] == 1
    lr = float(recipe.optim[0].options["lr"])
    ours = build_schedule(recipe.schedule, ScheduleContext(lr, per_epoch, 24))
    updates = np.arange(24 * per_epoch)
    expected = np.interp((updates + 1) / per_epoch, [0, 5, 24], [0, 0.4 / 512, 0])
    found = np.array([ours(int(update)).lr for update in updates])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert found[0] > 0
    assert int(found.argmax()) == 5 * per_epoch - 1
    assert found[-1] == pytest.approx(0, abs=1e-18)


def test_piecewise_holds_its_first_and_last_factor_outside_the_knots() -> None:
    ours = piecewise(ScheduleContext(2.0, 4, 10), epochs=[1, 2.5, 6], factors=[0.25, 1, 0.5])
    expected = np.interp(np.arange(40) / 4, [1, 2.5, 6], [0.5, 2, 1])
    np.testing.assert_allclose([ours(u).lr for u in range(40)], expected, rtol=1e-14)


def test_constant_is_constant() -> None:
    ours = constant(ScheduleContext(0.3, 10, 5))
    assert {ours(update).lr for update in range(60)} == {0.3}


@pytest.mark.parametrize(
    ("epochs", "factors", "message"),
    [
        ([0, 5], [0, 1, 0], "2 epochs and 3 factors"),
        ([0], [1], "at least two knots"),
        ([], [], "at least two knots"),
        ([0, 5, 5], [0, 1, 0], "must increase"),
        ([0, 6, 5], [0, 1, 0], "must increase"),
    ],
)
def test_wrong_knots_are_refused(epochs: list[float], factors: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        piecewise(ScheduleContext(1.0, 10, 5), epochs=epochs, factors=factors)
    assert error.value.exit_code == 2
    assert "schedule (piecewise)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("schedule.epochs=[0,5]", "2 epochs and 3 factors"),
        ("schedule.epochs=[-1,5,24]", "at least 0"),
        ("schedule.factors=[0,-1,0]", "at least 0"),
        ("schedule.first_step=0.5", "an integer"),
    ],
)
def test_wrong_knots_are_refused_before_anything_starts(change: str, message: str) -> None:
    from rescue_cli.build.check import check_ingredients

    with pytest.raises(UsageError, match=message):
        check_ingredients(recipes.load("myrtle-baseline", [change]))


# --- which images a micro-batch holds ---


def steps(samples: int, batch_size: int, micro_batch_size: int, seed: int = 0) -> SamplingContext:
    return SamplingContext(samples, batch_size, micro_batch_size, samples // batch_size, seed)


@pytest.mark.parametrize("samples", [12, 13, 64, 1000])
def test_an_epoch_shows_no_image_twice_and_drops_less_than_a_batch(samples: int) -> None:
    settings = steps(samples, 12, 4)
    sampler = shuffled(settings)
    for epoch in range(3):
        updates = range(epoch * settings.per_epoch, (epoch + 1) * settings.per_epoch)
        seen = np.concatenate([sampler(u, s) for u in updates for s in range(3)])
        assert len(seen) == len(set(seen.tolist())) == samples // 12 * 12
        assert set(seen.tolist()) <= set(range(samples))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(number: int, seed: int) -> list[int]:
        settings = steps(1200, 12, 4, seed)
        updates = range(number * 100, number * 100 + 100)
        return [int(i) for u in updates for s in range(3) for i in shuffled(settings)(u, s)]

    orders = [epoch(0, 0), epoch(1, 0), epoch(0, 1)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # Two random orders of 1,200 agree in one place on average
        assert sum(x == y for x, y in zip(orders[a], orders[b], strict=True)) < 10
    assert abs(float(np.corrcoef(orders[0], np.arange(1200))[0, 1])) < 0.1


def test_micro_batches_of_a_batch_are_the_batch_cut() -> None:
    whole = shuffled(steps(100, 24, 24))
    for size in (4, 8, 12):
        parts = shuffled(steps(100, 24, size))
        for update in range(6):
            joined = np.concatenate([parts(update, s) for s in range(24 // size)])
            np.testing.assert_array_equal(joined, whole(update, 0))


def test_a_small_subset_wraps_where_an_epoch_asks_for_more() -> None:
    sampler = shuffled(
        SamplingContext(samples=10, batch_size=8, micro_batch_size=4, per_epoch=2, seed=0)
    )
    seen = np.concatenate([sampler(u, s) for u in range(2) for s in range(2)])
    assert sorted(np.bincount(seen, minlength=10).tolist()) == [1] * 4 + [2] * 6


def test_the_shipped_recipes_name_schedules_that_reach_their_end() -> None:
    from rescue_cli.build.optimizers import build_schedule

    for name in recipes.names():
        recipe = recipes.load(name)
        if recipe.schedule.name in ("constant", "inv"):  # of Smith's baselines
            continue
        ours = build_schedule(recipe.schedule, ScheduleContext(1.0, 10, recipe.train.epochs))
        rates = [ours(u).lr for u in range(round(recipe.train.epochs * 10))]
        assert max(rates) <= 1.0
        assert min(rates) >= 0
        assert rates[-1] <= 0.1 * max(rates) + 1e-12


# --- ResNet strikes back ---


@pytest.mark.parametrize(
    ("name", "epochs", "lr"), [("a1", 600, 5e-3), ("a2", 300, 5e-3), ("a3", 100, 8e-3)]
)
def test_the_rate_of_every_epoch_is_that_of_timms_scheduler(
    name: str, epochs: int, lr: float
) -> None:
    recipe = recipes.load(name)
    keys = dict(recipe.schedule.options)
    ours = cosine(ScheduleContext(lr, 625, epochs), **keys)
    theirs_on = optimizer(lr)
    theirs = CosineLRScheduler(
        theirs_on, t_initial=epochs, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4
    )
    assert (recipe.train.epochs, recipe.optim[0].options["lr"]) == (epochs, lr)
    for epoch in range(epochs):
        for within in (0, 624):
            assert abs(ours(epoch * 625 + within).lr - rate(theirs_on)) <= 1e-12
        theirs.step(epoch + 1)


def test_exponential_is_the_formula_of_its_authors_code() -> None:
    """FAMS: 2.0 x 0.02^(t/400), its first five epochs times a factor that rises from 0.1 to 1."""
    recipe = recipes.load("fams")
    ours = exponential(ScheduleContext(2.0, 10, 400), **recipe.schedule.options)
    for epoch in range(400):
        factor = 0.1 * (1 - epoch / 5) + epoch / 5 if epoch < 5 else 1
        expected = 2.0 * 0.02 ** (epoch / 400) * factor
        assert ours(epoch * 10 + 9).lr == pytest.approx(expected, rel=1e-12)
    assert ours(4000).lr == pytest.approx(0.04)


def test_exponential_per_step_moves_within_an_epoch() -> None:
    ours = exponential(
        ScheduleContext(1.0, 10, 4), end_factor=0.1, warmup_epochs=0, warmup_factor=0.0, per="step"
    )
    assert [ours(s).lr for s in (0, 5, 40)] == pytest.approx([1.0, 0.1 ** (0.5 / 4), 0.1])


# --- an end of its own ---


def test_until_freezes_from_the_update_on_that_begins_its_epoch() -> None:
    from rescue_cli.build.optimizers import build_schedule

    cut = "{name: piecewise, epochs: [0, 8], factors: [1, 0], first_step: 1, until: 3}"
    item = recipes.load("quickstart", [f"schedule={cut}"]).schedule
    plain = piecewise(ScheduleContext(0.5, 25, 8), epochs=[0, 8], factors=[1, 0])
    ours = build_schedule(item, ScheduleContext(0.5, 25, 8))
    assert [ours(u) for u in range(75)] == [plain(u + 1) for u in range(75)]
    assert {ours(u) for u in range(75, 201)} == {Rates(0.0, 0.0)}


@pytest.mark.parametrize(
    ("until", "per_epoch", "updates"), [(0.19, 32, 7), (0.0, 48, 0), (0.07, 100, 7), (2, 1, 2)]
)
def test_until_may_be_a_fraction_of_an_epoch(until: float, per_epoch: int, updates: int) -> None:
    # airbench and hiverge: ceil(epochs x steps of an epoch) updates
    ours = freeze_after(lambda _: Rates(1.0), until, per_epoch)
    assert [ours(u).lr for u in range(60)] == [1.0] * updates + [0.0] * (60 - updates)


SGD = "name: sgd, momentum: 0.85, nesterov: true, weight_decay: 0"
TWO = (
    f"optim=[{{params: filters+head+rest, lr: 0.5, {SGD}}}, {{params: norms+biases, lr: 2.0, {SGD},"
    " schedule: {name: piecewise, epochs: [0, 4], factors: [1, 0], until: 3}}]"
)
FALLING = "schedule={name: piecewise, epochs: [0, 8], factors: [1, 0]}"


def test_an_items_own_schedule_ends_where_it_says_and_the_others_go_on() -> None:
    from rescue_cli.build.optimizers import build_schedules

    recipe = recipes.load("quickstart", [TWO, FALLING, "train.epochs=8"])
    (first, ratio), (second, own_ratio) = build_schedules(recipe, 10)
    assert [first(u).lr * ratio for u in (0, 30, 79)] == pytest.approx([0.5, 0.3125, 0.00625])
    found = [second(u).lr * own_ratio for u in (0, 29, 30, 79)]
    assert found == pytest.approx([2.0, 0.55, 0.0, 0.0])


def test_another_length_moves_the_end_in_proportion() -> None:
    from rescue_cli.build import expand

    recipe = recipes.load("quickstart", [TWO, FALLING, "train.epochs=8"])
    assert "optim.norms+biases.schedule.until=6" in expand.epochs_overrides(recipe, 16, [])


@pytest.mark.parametrize(("until", "rule"), [("-1", "at least 0"), ("three", "a number")])
def test_an_end_that_is_no_epoch_is_refused(until: str, rule: str) -> None:
    from rescue_cli.build.check import check_ingredients

    with pytest.raises(UsageError, match=rule):
        check_ingredients(recipes.load("quickstart", [f"schedule.until={until}"]))


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {LBFGS}))  # which takes no steps
def test_what_is_frozen_does_not_move_by_velocity_decay_or_norm(name: str) -> None:
    defaults: dict[str, Any] = {
        "sgd": {"momentum": 0.9, "nesterov": True},
        "sgd-velocity": {"momentum": 0.9, "nesterov": True},
        "lamb": {"max_grad_norm": 1.0},
        "muon": {
            "momentum": 0.6,
            "nesterov": True,
            "steps": 3,
            "coefficients": (3.4445, -4.775, 2.0315),
            "iterate": "float32",
            "renormalise_every": 1,
        },
    }
    torch.manual_seed(0)
    ends, goes_on = (torch.nn.Parameter(torch.randn(4, 6)) for _ in range(2))
    made = OPTIMIZERS[name](
        [{"params": [ends]}, {"params": [goes_on]}],
        lr=0.1,
        weight_decay=0.01,
        **defaults.get(name, {}),
    )
    steady = constant(ScheduleContext(0.1, 1, 9))
    rated = [RatedGroup(made, 0, freeze_after(steady, 3, 1), 2.0), RatedGroup(made, 1, steady, 1.0)]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = Optimizers([made], rated, None, scaler)
    for update in range(9):
        before = [p.detach().clone() for p in (ends, goes_on)]
        optimizers.set_rates(update)
        ends.grad, goes_on.grad = torch.randn(4, 6), torch.randn(4, 6)
        optimizers.step()
        stood = [torch.equal(p, b) for p, b in zip((ends, goes_on), before, strict=True)]
        assert stood == [update >= 3, False]
