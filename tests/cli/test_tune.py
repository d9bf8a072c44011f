"""`rescue tune`: its decisions on made curves, how often they are right, and the whole command."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.analysis import tuning, tuning_search
from rescue_cli.analysis.lr_range import Curves, Ramp
from rescue_cli.analysis.tuning import KEEP, KEPT, Outcome, Search, judge_sweeps
from rescue_cli.analysis.tuning_cost import SLACK, Cost, format_hours
from rescue_cli.analysis.tuning_search import Tuner
from rescue_cli.build.outline import epoch_length
from rescue_cli.errors import DivergedError, StoppedError, UsageError
from rescue_cli.formatting import format_duration
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import read_json, write_json, write_text
from rescue_cli.runs.single import time_limit, train_part
from tests.analysis import simulated_searches
from tests.analysis.simulated_searches import World, rates, worlds
from tests.conftest import Rescue


@pytest.mark.parametrize(
    ("images", "fitting", "size"),
    [(50_000, 10**9, 512), (5_400, 10**9, 64), (50_000, 200, 128), (60, 10**9, 1)],
)
def test_the_batch_is_the_largest_power_of_two_that_fits_and_leaves_50_updates(
    images: int, fitting: int, size: int
) -> None:
    found, why = tuning.largest_batch_size(images, lambda batch: batch <= fitting)
    assert found == size
    assert ("fits into memory" in why) == (fitting == 200)


# --- decisions ---


def made(
    loss_of: Callable[[Recipe], float],
) -> tuple[Callable[[str, Recipe], Outcome], dict[str, int]]:
    """A run whose last loss is a function of the recipe, and the seeds of those asked for."""
    asked: dict[str, int] = {}

    def run(name: str, recipe: Recipe) -> Outcome:
        asked[name] = recipe.train.seed
        loss = loss_of(recipe)
        losses = [2.3, 2.0, 1.5, 1.2, 1.0, 0.99, 0.99, loss]
        return Outcome(name, losses, [10.0] * 8, diverged=loss == math.inf)

    return run, asked


def option(recipe: Recipe, key: str) -> float:
    return float(recipe.optim[0].options[key])


@pytest.mark.parametrize("best", [0.4, 0.1])
def test_the_rate_is_the_best_of_the_largest_stable_one_and_its_halves(best: float) -> None:
    run, asked = made(lambda r: 0.5 + abs(math.log(option(r, "lr") / best)))
    search = Search(recipes.load("quickstart", ["optim.lr=0.04"]), run)
    decision = search.rate(64, "", 2.0, World(rate=0.2).ramp)
    lr = option(search.recipe, "lr")
    assert best / 1.6 < lr < best * 1.6
    assert (search.recipe.schedule.name, search.recipe.train.batch_size) == ("one-cycle", 64)
    assert decision.chosen == f"batch 64, 1cycle to {lr:g}"
    rates_tried = [float(name.removeprefix("lr-")) for name, seed in asked.items() if seed == 0]
    assert [rate / rates_tried[0] for rate in rates_tried] == pytest.approx(
        [1, 0.5, 0.25, 0.125], rel=0.05
    )


def test_a_batch_size_is_not_changed_where_no_rate_was_found_for_it() -> None:
    def flat(_name: str, _recipe: Recipe, ramp: Ramp) -> Curves:
        points = [ramp.rate((i + 1) / 40) for i in range(40)]
        return Curves(0, 200, points, [2.3] * 40, [2.3] * 40, [10.0] * 40)

    run, asked = made(lambda _: 1.0)
    base = recipes.load("quickstart")
    search = Search(base, run)
    decision = search.rate(64, "", 2.0, flat)
    assert (search.recipe, decision.chosen) == (base, KEPT)
    assert decision.why == "no largest stable rate found, so no rate to try"
    assert len(asked) == 3


def test_momenta_are_tried_as_the_paper_lists_them_and_then_cycled() -> None:
    def loss(recipe: Recipe) -> float:
        cycle = recipe.schedule.options.get("momentum")
        return 0.3 if cycle == [0.95, 0.85] else abs(option(recipe, "momentum") - 0.95) + 0.4

    run, asked = made(loss)
    search = Search(recipes.load("1cycle-resnet56"), run)
    decision = search.momentum()
    assert [name for name, seed in asked.items() if seed == 0] == [
        "momentum-0.99", "momentum-0.97", "momentum-0.95", "momentum-0.9", "momentum-0.95-0.85",
    ]  # fmt: skip
    assert search.recipe.schedule.options["momentum"] == [0.95, 0.85]
    assert [item.options["momentum"] for item in search.recipe.optim] == [0.95, 0.95]
    assert decision.chosen == "0.95 to 0.85"


def test_momentum_is_cycled_only_where_the_schedule_can_and_the_own_one_is_not_tried_again() -> (
    None
):
    run, asked = made(lambda r: abs(option(r, "momentum") - 0.95) + 0.4)
    search = Search(recipes.load("quickstart"), run)
    assert search.momentum().chosen == "0.95"
    tried = [name for name, seed in asked.items() if seed == 0]
    assert tried == ["momentum-0.99", "momentum-0.97", "momentum-0.95"]


def test_an_optimizer_without_momentum_keeps_what_it_has() -> None:
    run, _ = made(lambda _: 1.0)
    base = recipes.load("a2")
    search = Search(base, run)
    assert (search.momentum().chosen, search.recipe) == (KEPT, base)


@pytest.mark.parametrize(("best", "chosen"), [(3e-4, 3e-4), (1e-3, 1e-3), (3e-3, 3e-3), (0.0, 0.0)])
def test_decay_is_a_grid_of_exponents_then_midpoints(best: float, chosen: float) -> None:
    run, asked = made(
        lambda r: 1 + abs(math.log10(option(r, "weight_decay") + 1e-7) - math.log10(best + 1e-7))
    )
    search = Search(recipes.load("1cycle-resnet56", ["optim.0.weight_decay=0.03"]), run)
    decision = search.weight_decay()
    decays = [float(item.options["weight_decay"]) for item in search.recipe.optim]
    assert decays == [pytest.approx(chosen), 0.0]  # the head's bias stays undecayed
    tried = [name for name, seed in asked.items() if seed == 0]
    assert tried[:4] == ["decay-0.001", "decay-0.0001", "decay-1e-05", "decay-0"]
    assert decision.chosen == f"{chosen:g}"


def test_a_run_that_diverged_is_never_chosen() -> None:
    run, _ = made(lambda r: math.inf if option(r, "momentum") > 0.96 else option(r, "momentum"))
    search = Search(recipes.load("quickstart", ["optim.momentum=0.96"]), run)
    decision = search.momentum()
    assert dict(decision.tried)["0.99"] == "diverged"
    assert decision.chosen == "0.9"


def test_a_setting_that_diverges_with_another_seed_does_not_stand() -> None:
    run, _ = made(
        lambda r: math.inf if r.train.seed == 2 and option(r, "momentum") != 0.9 else r.train.seed
    )
    search = Search(recipes.load("quickstart"), run)
    decision = search.momentum()
    assert decision.chosen == KEPT
    assert "1 of 3 runs diverged" in decision.why


def test_what_chose_a_setting_does_not_count_for_it() -> None:
    """Its first run is 10 % below the rest; with other seeds it is like the others."""
    run, asked = made(lambda r: 0.9 if r.train.seed == 0 else 1.0 + r.train.seed / 100)
    search = Search(recipes.load("quickstart"), run)
    decision = search.momentum()
    assert decision.chosen == KEPT
    assert [seed for name, seed in asked.items() if "momentum-0.99-seed" in name] == [1, 2, 3]
    assert decision.why == (
        "0.99 was best by its first run; again, loss 1.0200 against 1.0200 (3 runs each), "
        "0.0 % higher; beyond noise from 1.2 %"
    )


# --- how often it is right ---


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "with_overrides", simulated_searches.remembering())


NOTHING = ("all alike", "base is best, barely", "base is best, flat", "1cycle 3 % worse")


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", NOTHING)
def test_where_there_is_nothing_to_gain_hardly_any_search_writes_a_recipe(name: str) -> None:
    """In 200 searches; a share of 2.5 % has a standard error of 1.1 points."""
    found = rates(dict(worlds())[name], 0.02, 5, 200)
    assert found.worse <= 0.05
    assert found.written <= 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("what", ["rate", "rate too low", "momentum", "decay"])
def test_where_there_is_something_to_gain_most_searches_find_it(what: str) -> None:
    """In 100 searches; a share of a half has a standard error of 5 points."""
    found = rates(dict(worlds())[f"{what}, 10%"], 0.02, 5, 100)
    assert found.better > 0.8
    assert found.worse == 0
    assert found.gained > 0.07


@pytest.mark.long
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", [name for name, _ in worlds()])
@pytest.mark.parametrize(("noise", "seeds"), [(0.02, 3), (0.02, 5), (0.05, 5)])
def test_no_world_has_many_recipes_that_are_worse(name: str, noise: float, seeds: int) -> None:
    """In 1,000 searches; a share of 5 % has a standard error of 0.7 points."""
    found = rates(dict(worlds())[name], noise, seeds, 1000)
    assert found.worse <= 0.05
    if name in NOTHING:
        assert found.written <= 0.05


# --- the verdict ---


def sweep(folder: Path, accuracies: Mapping[int, float | None]) -> Path:
    """Made runs by seed; None diverged."""
    for seed, top1 in accuracies.items():
        run = folder / f"seed-{seed}"
        recipe = recipes.load("quickstart", [f"train.seed={seed}"])
        write_text(run / "recipe.yaml", recipe.to_yaml())
        if top1 is None:
            word = {"rank": 0, "exit_code": DivergedError.exit_code, "message": "the loss is nan"}
            write_json(run / "failure.json", word)
            continue
        protocol = {"data": "fashion-mini", "set": "holdout-1", "tta": "none"}
        entry = {"set": "holdout-1", "size": 28, "crop": 1.0, "top1": top1, "loss": 0.5,
                 "count": 600, "protocol": protocol}  # fmt: skip
        write_json(run / "result.json", {"recipe": "quickstart", "seed": seed, **entry,
                                         "sets": [entry], "seconds_train": 1.0})  # fmt: skip
        line = {"kind": "eval", "step": 10, "epoch": 1.0, "seconds": 0.1, **entry}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


SEEDS = range(4, 9)
BASE = dict(zip(SEEDS, (80.0, 81.0, 80.5, 80.2, 80.8), strict=True))


@pytest.mark.parametrize(
    ("gain", "lost", "better"),
    [(8.0, 0, True), (0.1, 0, False), (-8.0, 0, False), (8.0, 1, False), (8.0, 5, False)],
)
def test_the_tuned_recipe_is_better_where_compare_says_so_and_none_of_its_runs_diverged(
    tmp_path: Path, gain: float, lost: int, better: bool
) -> None:
    tuned = {seed: None if seed < 4 + lost else 161 + gain - x for seed, x in BASE.items()}
    found = judge_sweeps(sweep(tmp_path / "base", BASE), sweep(tmp_path / "tuned", tuned), SEEDS)
    assert found.better == better
    assert (KEEP in found.sentences) != better
    if lost:
        assert found.sentences[0] == f"{tmp_path / 'tuned'}: {lost} of 5 runs diverged"
    if lost < 5:
        claim = f"{tmp_path / 'tuned'} is better than {tmp_path / 'base'} by"
        assert found.to_json()["claim"].startswith(claim) == (gain == 8.0)
    assert json.loads(json.dumps(found.to_json()))["better"] == better


def test_one_base_run_that_is_left_makes_nothing_better(tmp_path: Path) -> None:
    """Its spread would be assumed, and `compare` then claims nothing of the recipes."""
    base = {seed: x if seed == 4 else None for seed, x in BASE.items()}
    tuned = {seed: x + 15 for seed, x in BASE.items()}
    found = judge_sweeps(sweep(tmp_path / "base", base), sweep(tmp_path / "tuned", tuned), SEEDS)
    assert found.pairs[0]["p"] < 0.05
    assert found.pairs[0]["about"] == "assumed"
    assert (found.better, KEEP in found.sentences) == (False, True)


@pytest.mark.parametrize(("lost", "better"), [(0, True), (1, False)])
def test_a_base_that_never_trains_gives_way_to_what_always_does(
    tmp_path: Path, lost: int, better: bool
) -> None:
    tuned = {seed: None if seed < 4 + lost else x for seed, x in BASE.items()}
    nothing = dict.fromkeys(BASE, None)
    found = judge_sweeps(sweep(tmp_path / "base", nothing), sweep(tmp_path / "tuned", tuned), SEEDS)
    assert found.better == better
    assert found.sentences[0] == f"{tmp_path / 'base'}: 5 of 5 runs diverged"


# --- the command ---

QUICK = (
    "tune", "--out", "found", "--seeds", "3", "model.width=4", "data.subset=[320,100]",
    "data.holdout=100", "train.epochs=1", "schedule.epochs=[0,0.5,1]",
)  # fmt: skip


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of a few runs."""
    monkeypatch.setattr(tuning, "SEEDS", 2)
    monkeypatch.setattr(tuning, "FACTORS", (0.5,))
    monkeypatch.setattr(tuning, "MOMENTA", (0.95,))
    monkeypatch.setattr(tuning, "EXPONENTS", (-4.0,))
    monkeypatch.setattr(tuning, "POINTS", 10)
    monkeypatch.setattr(tuning_search, "RANGE_STEPS", 20)
    monkeypatch.setattr(tuning_search, "EVALUATIONS", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("_few")
def test_a_search_is_judged_and_a_second_call_trains_nothing(
    rescue: Rescue, tmp_path: Path
) -> None:
    """By the batch size that an earlier call decided: other memory would make other runs of all."""
    (tmp_path / "found").mkdir()
    decided = {"batch_size": [32, "as it was decided"]}
    write_json(tmp_path / "found" / "decided.json", decided)
    ended = rescue(*QUICK, "--budget", "2", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["finished"]
    assert [d["step"] for d in found["decisions"]] == [
        "recipe", "batch size, learning rate", "momentum", "weight decay",
    ]  # fmt: skip
    assert found["decisions"][1]["tried"][0][0].startswith("batch 32, ramp")
    assert found["decisions"][1]["tried"][0][1].endswith(("as it was decided", "rate found"))
    folder = tmp_path / "found"
    better = found["verdict"]["better"]
    assert (folder / "tuned.yaml").exists() == better
    assert found["tuned"] == ("found/tuned.yaml" if better else None)
    assert (KEEP in " ".join(found["verdict"]["said"])) != better
    runs = {str(file.parent.relative_to(folder)) for file in folder.rglob("result.json")}
    judged = {name for name in runs if not name.startswith("search/")}
    changed = any(d["chosen"] != KEPT for d in found["decisions"])
    both = {f"{side}/seed-{seed}" for side in ("base", "tuned") for seed in (3, 4, 5)}
    assert judged == (both if changed else set())
    for name in runs:
        data = recipes.recipe_in(folder / name).data.options
        assert (data["holdout"], data["fold"]) == (100, 0 if name.startswith("search/") else 1)
    html = (folder / "tune.html").read_text()
    assert "lower than it would be" in html
    assert ("Compared by full-length runs, evaluated on 100" in html) == changed
    times = {file: file.stat().st_mtime for file in folder.rglob("result.json")}
    again = rescue(*QUICK, "--budget", "2", "--json")
    assert json.loads(again.out) == found
    assert {file: file.stat().st_mtime for file in folder.rglob("result.json")} == times
    more = rescue(*QUICK, "--budget", "2", "--seeds", "4")
    assert more.code == 2
    assert "--seeds: found was started with 3 full runs of each recipe" in more.err


LONG = (*QUICK[:-2], "train.epochs=2000", "schedule.epochs=[0,0.5,2000]", "--json")


def test_a_budget_that_cannot_hold_it_is_refused_at_once_with_what_it_takes(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "tuned.yaml").write_text("of an earlier version")
    ended = rescue(*LONG, "--budget", "0.01")
    assert ended.code == 2, ended.err
    assert "--budget: the search of at most 27 short runs and the 6 full runs that" in ended.err
    timed = {p.parent.name for p in tmp_path.rglob("recipe.yaml")}
    assert timed == {"timing", "timing-batch-4"}, "by the recipe's batch size and the search's"
    assert not (tmp_path / "found" / "tuned.yaml").exists()


def test_a_search_that_runs_out_of_time_is_unfinished_and_writes_no_recipe(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "found").mkdir()
    decided = {"batch_size": [8, "as it was decided"], "short_epochs": 1.0, "seeds": 3}
    write_json(tmp_path / "found" / "decided.json", decided)
    ended = rescue(*LONG, "--budget", "0.01")
    assert ended.code == 1, ended.err
    assert "error: --budget: the search is unfinished, there is no tuned.yaml: " in ended.err
    said = ended.err.partition("tuned.yaml: ")[2]
    assert re.match(
        r"\d+ s are left, and about .+ are needed for the next run and the 6 full "
        r"runs that judge\. All that is left takes about .+: the same command with "
        r"--budget [\d.]+ resumes it\.",
        said,
    ), said
    found = json.loads(ended.out)
    assert (found["finished"], found["verdict"], found["tuned"]) == (False, None, None)
    assert read_json(tmp_path / "found" / "tune.json") == found
    assert "an unfinished search" in (tmp_path / "found" / "tune.html").read_text()
    assert not (tmp_path / "found" / "tuned.yaml").exists()


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Tuner]:
    """A tuner with so many seconds left; an epoch takes 1 s, and 2 s by the search's batches."""
    folder = tmp_path / "found"
    write_json(folder / "decided.json", {"batch_size": [8, "as it was decided"]})
    base = recipes.load("quickstart", ["data.subset=[320,100]", "train.batch_size=32",
                                       "train.device_batch_size=32"])  # fmt: skip
    monkeypatch.setattr(Tuner, "_finished", lambda tuner: list(tuner._costs))

    def left(seconds: float) -> Tuner:
        tuner = Tuner(base, folder, "cpu", None, 3, time.monotonic() + seconds)
        tuner._costs = {
            Path("timing"): (32, Cost(0.0, 1.0, 0.0)),
            Path("timing-batch-8"): (8, Cost(0.0, 2.0, 0.0)),
        }
        return tuner

    return left


def test_what_is_planned_is_of_all_runs_by_the_batch_sizes_that_they_have(
    paced: Callable[[float], Tuner],
) -> None:
    # 3 short runs of the base, 24 others, a range test of 200 updates, 2 x 3 full runs
    tuner = paced(1000)
    per_epoch = epoch_length(tuning.with_batch_size(tuner._for_search(tuner.base), 8))
    seconds = 3 + 24 * 2 + 2 * 200 / per_epoch + 3 * 6 + 3 * 6 * 2
    assert tuner._total_seconds(1.0) == pytest.approx(SLACK * seconds)
    with pytest.raises(UsageError, match="at most 27 short runs") as refused:
        paced(0.9 * SLACK * seconds)._short_epochs()
    advised = float(str(refused.value).split()[-1].rstrip("."))
    granted = paced(3600 * advised)
    assert granted._total_seconds(granted._short_epochs()) < 3600 * advised / 1.2


def test_a_run_of_its_batch_size_counts_for_more_than_the_timed_one(
    paced: Callable[[float], Tuner],
) -> None:
    tuner = paced(1000)
    tuner._costs[Path("base-seed-1")] = 32, Cost(0.0, 3.0, 0.0)
    assert tuner._seconds(tuner.base) == pytest.approx(SLACK * 6 * 3)
    assert tuner._slower(tuner.base) == pytest.approx(SLACK * 6 * 3)


def test_a_dry_run_says_how_many_runs_are_planned_and_by_earlier_ones_how_long(
    rescue: Rescue, tmp_path: Path, paced: Callable[[float], Tuner]
) -> None:
    ended = rescue(*QUICK, "--out", "new", "--dry-run")
    assert (
        "plan: at most 27 short runs (epochs: 0.5 to 0.5), a range test, 6 full runs (epochs: 1); "
        "--budget 0.01 times a few updates here and says how long all take"
    ) in ended.out
    assert not (tmp_path / "new").exists()
    tuner = paced(1000)
    times = " to ".join(format_duration(tuner._total_seconds(epochs)) for epochs in (1.0, 3.0))
    assert tuner.describe_plan() == (
        "at most 27 short runs (epochs: 1 to 3), a range test, 6 full runs (epochs: 6); "
        f"by the runs in {tuner.folder}, all take about {times}"
    )


def test_what_outlives_the_budget_is_stopped_and_saved(tmp_path: Path) -> None:
    recipe = recipes.load("quickstart", [*QUICK[5:8], "train.epochs=100000"])
    with pytest.raises(StoppedError, match="its checkpoint is saved"), time_limit(4.0):
        train_part(tmp_path / "run", recipe, "cpu", None, 0, tmp_path, set())
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_images_that_judge_must_be_there_beside_those_that_choose(rescue: Rescue) -> None:
    ended = rescue("tune", "--out", "found", "data.holdout=3000")
    assert ended.code == 2
    assert (
        "data.holdout: 3000 images for the search and as many for the verdict leave none"
        in ended.err
    )


def test_hours_are_rounded_up() -> None:
    assert [format_hours(seconds) for seconds in (3600, 3601, 1800.1, 0, 360_000)] == [
        "1", "1.1", "0.51", "0.001", "100",
    ]  # fmt: skip
