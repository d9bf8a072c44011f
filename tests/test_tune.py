"""`rescue tune`: its decisions on made curves, and the whole through the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from rescue_cli import recipe as recipes
from rescue_cli import tuning
from rescue_cli.range_test import Curves, Ramp
from rescue_cli.recipe import Recipe
from rescue_cli.tuning import Outcome
from tests.conftest import Rescue


@pytest.mark.parametrize(
    ("images", "fitting", "size"),
    [(50_000, 10**9, 512), (5_400, 10**9, 64), (50_000, 200, 128), (60, 10**9, 1)],
)
def test_the_batch_is_the_largest_power_of_two_that_fits_and_leaves_50_updates(
    images: int, fitting: int, size: int
) -> None:
    found, why = tuning.batch_size(images, lambda batch: batch <= fitting)
    assert found == size
    assert ("fits into memory" in why) == (fitting == 200)


def outcome(name: str, loss: float) -> Outcome:
    losses = [2.3, 2.0, 1.5, 1.2, 1.0, 0.99, 0.99, loss]
    return Outcome(name, losses, [10.0] * 8, diverged=loss == math.inf)


def made(loss_of: Callable[[Recipe], float]) -> tuple[Callable[[str, Recipe], Outcome], list[str]]:
    """A run whose last loss is a function of the recipe, and the names of those asked for."""
    asked: list[str] = []

    def run(name: str, recipe: Recipe) -> Outcome:
        asked.append(name)
        return outcome(name, loss_of(recipe))

    return run, asked


def ramped(turn: float) -> Callable[[str, Recipe, Ramp], Curves]:
    """A range test whose loss turns up at that rate."""

    def run(_name: str, _recipe: Recipe, ramp: Ramp) -> Curves:
        rates = [ramp.rate((i + 1) / 40) for i in range(40)]
        losses = [0.8 + 1.5 * math.exp(-r / (turn / 8)) for r in rates]
        losses = [x + 3 * max(0.0, r / turn - 1) for x, r in zip(losses, rates, strict=True)]
        return Curves(0, 200, rates, losses, losses, [90 - 20 * x for x in losses])

    return run


@pytest.mark.parametrize("best", [0.4, 0.1])
def test_the_rate_is_halved_from_the_largest_stable_one_while_the_loss_falls(best: float) -> None:
    def loss(recipe: Recipe) -> float:
        return 0.5 + abs(math.log(float(recipe.optim[0].options["lr"]) / best))

    run, asked = made(loss)
    base = recipes.load("quickstart", ["optim.lr=0.04"])
    found, decision = tuning.learning_rate(base, 2.0, ramped(0.4), run)
    lr = float(found.optim[0].options["lr"])
    assert best / 1.6 < lr < best * 1.6
    assert found.schedule.name == "one-cycle"
    assert asked[0] != asked[-1]
    assert decision.chosen.startswith(f"{lr:g}, base")
    assert len(decision.ranges) == 2


def test_momenta_are_tried_as_the_paper_lists_them_and_then_cycled() -> None:
    def loss(recipe: Recipe) -> float:
        cycle = recipe.schedule.options.get("momentum")
        if cycle is not None:
            assert list(cycle) == [0.95, 0.85]
            return 0.3
        return abs(float(recipe.optim[0].options["momentum"]) - 0.95) + 0.4

    run, asked = made(loss)
    base = recipes.load("1cycle-resnet56")
    found, decision = tuning.momentum(base, run)
    assert asked == [
        "momentum-0.99", "momentum-0.97", "momentum-0.95", "momentum-0.9", "momentum-0.95-0.85",
    ]  # fmt: skip
    assert found.schedule.options["momentum"] == [0.95, 0.85]
    assert [item.options["momentum"] for item in found.optim] == [0.95, 0.95]
    assert decision.chosen == "0.95 to 0.85"


def test_an_optimizer_without_momentum_keeps_what_it_has() -> None:
    run, asked = made(lambda _: 1.0)
    base = recipes.load("a2")
    found, decision = tuning.momentum(base, run)
    assert (found, asked, decision.chosen) == (base, [], "as it is")


@pytest.mark.parametrize(("best", "chosen"), [(3e-4, 3e-4), (1e-3, 1e-3), (3e-3, 3e-3), (0.0, 0.0)])
def test_decay_is_a_grid_of_exponents_then_half_ways(best: float, chosen: float) -> None:
    def loss(recipe: Recipe) -> float:
        value = float(recipe.optim[0].options["weight_decay"])
        return 1 + abs(math.log10(value + 1e-7) - math.log10(best + 1e-7))

    run, asked = made(loss)
    found, decision = tuning.weight_decay(recipes.load("1cycle-resnet56"), run)
    decays = [float(item.options["weight_decay"]) for item in found.optim]
    assert decays == [pytest.approx(chosen), 0.0]  # the head's bias stays undecayed
    assert asked[:4] == ["decay-0.001", "decay-0.0001", "decay-1e-05", "decay-0"]
    assert decision.chosen == f"{chosen:g}"


def test_a_run_that_diverged_is_never_chosen() -> None:
    run, _ = made(lambda r: math.inf if float(r.optim[0].options["momentum"]) > 0.96 else 1.0)
    _, decision = tuning.momentum(recipes.load("quickstart"), run)
    assert dict(decision.tried)["0.99"] == "diverged"
    assert not decision.chosen.startswith(("0.99", "0.97"))


QUICK = (
    "tune", "--out", "found", "model.width=4", "data.subset=[800,200]", "data.holdout=100",
    "train.epochs=2", "--budget",
)  # fmt: skip


def test_a_search_ends_with_a_recipe_and_a_page_and_a_second_call_trains_nothing(
    rescue: Rescue, tmp_path: Path
) -> None:
    ended = rescue(*QUICK, "0.5", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["finished"]
    assert [d["step"] for d in found["decisions"]] == [
        "batch size", "learning rate", "momentum", "weight decay",
    ]  # fmt: skip
    tuned = recipes.load(str(tmp_path / "found" / "tuned.yaml"))
    given = recipes.load("quickstart", ["model.width=4", "data.subset=[800,200]",
                                        "data.holdout=100", "train.epochs=2"])  # fmt: skip
    assert tuned.data == given.data
    assert tuned.eval == given.eval
    assert tuned.schedule.name == "one-cycle"
    assert tuned.train.batch_size == 16
    page = (tmp_path / "found" / "tune.html").read_text()
    assert page.count("<h2>") == 5
    assert page.count("data:image/png;base64") == 5
    times = {f: f.stat().st_mtime for f in (tmp_path / "found").rglob("result.json")}
    again = rescue(*QUICK, "0.5", "--json")
    assert json.loads(again.out) == found
    assert {f: f.stat().st_mtime for f in (tmp_path / "found").rglob("result.json")} == times


def test_a_later_call_takes_what_the_first_decided_by_its_machine(
    rescue: Rescue, tmp_path: Path
) -> None:
    """Another batch, for other memory, would make every run there one of another recipe."""
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "decided.json").write_text('{"batch_size": [8, "as it was decided"]}')
    found = json.loads(rescue(*QUICK, "0.001", "--json").out)
    assert (found["decisions"][0]["chosen"], found["decisions"][0]["why"]) == (
        "8", "as it was decided",
    )  # fmt: skip


def test_a_budget_that_is_over_leaves_what_was_decided(rescue: Rescue, tmp_path: Path) -> None:
    ended = rescue(*QUICK, "0.001", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert not found["finished"]
    assert "the time is over; the same command with more goes on" in ended.err
    assert recipes.load(str(tmp_path / "found" / "tuned.yaml")).train.batch_size == 16
