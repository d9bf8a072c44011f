"""`rescue seed-sweep` and `compare`, through the command on images that ship with the package."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy.stats import pearsonr

from rescue_cli import recipe as recipes
from rescue_cli.analysis.compare import choose_pairing
from rescue_cli.analysis.sides import correct_predictions, load_predictions, load_side
from rescue_cli.analysis.stats import Sample
from rescue_cli.analysis.sweep import published_sample, read_sweep
from rescue_cli.errors import DivergedError
from rescue_cli.rundir import RunDirectory, read_json, write_json
from rescue_cli.rundir.planned import (
    MissingRun,
    add_planned,
    missing_from_json,
    missing_to_json,
)
from rescue_cli.runs import pool
from tests.conftest import Rescue
from tests.helpers.processes import Command, descendants, start, until_gone
from tests.helpers.synthetic_runs import made_failure, made_run, made_sweep

TINY = (
    "model.width=4", "data.subset=[256,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=2",
)  # fmt: skip

LONGER = [*TINY, "train.epochs=6"]
APART = (30.0, 31.0, 30.5, 29.5), (60.5, 61.5, 61.0, 59.5)


def finished(folder: Path) -> dict[str, float]:
    return {f.parent.name: f.stat().st_mtime for f in folder.glob("*/result.json")}


def have_finished(folder: Path, count: int) -> Callable[[], bool]:
    """The moment when so many of a sweep's runs have their result."""
    return lambda: len(finished(folder)) >= count


def has_workers(command: Command, seen: list[int]) -> Callable[[], bool]:
    """The moment when it has workers, which are added to `seen`: they may end before one looks."""

    def happened() -> bool:
        seen.extend(descendants(command.pid))
        return bool(seen)

    return happened


@pytest.mark.slow
def test_a_sweep_does_what_is_missing_and_says_what_its_seeds_say(
    rescue: Rescue, tmp_path: Path
) -> None:
    call = ("seed-sweep", "--out", "sweep", "eval.tta=[none,flip]", *TINY)
    assert rescue(*call, "--seeds", "2").code == 0
    folder = tmp_path / "sweep"
    before = finished(folder)
    ended = rescue(*call, "--seeds", "0-4", "--jobs", "2", "--json")
    assert ended.code == 0, ended.err
    assert "2 of 5 runs finished" in ended.err
    found = json.loads(ended.out)
    assert (found["recipe"], found["n"], found["failed"]) == ("quickstart", 5, {})
    assert list(found["sets"]) == ["test none", "test flip"]
    values = read_sweep(folder).values("test none")
    row = found["sets"]["test none"]
    assert row["max"] == max(values.values())
    assert row["seed0"] == values[0]
    assert row["interval"][0] <= row["mean"] <= row["interval"][1]
    assert {k: v for k, v in finished(folder).items() if k in before} == before
    for name in ("histogram.png", "band.png", "cloud.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    lines = (folder / "sweep.csv").read_text().splitlines()
    assert lines[0] == "seed,test none,test flip,seconds_train,failed"
    assert len(lines) == 6
    mixed = rescue(*call, "--seeds", "6", "optim.lr=0.1")
    assert mixed.code == 2
    assert "of another recipe: optim.lr: 0.4 -> 0.1" in mixed.err
    printed = rescue(*call, "--seeds", "5")
    assert max(map(len, printed.out.splitlines())) <= 80


def test_a_sweep_of_another_length_keeps_what_is_counted_in_epochs(rescue: Rescue) -> None:
    words = [word for word in TINY if not word.startswith("train.epochs")]
    ended = rescue("seed-sweep", "--out", "s", "--seeds", "1", "--epochs", "0.5", *words)
    assert ended.code == 0, ended.err
    assert "--epochs sets: train.epochs=0.5 schedule.epochs=[0,0.125,0.5]" in ended.err


def test_a_seed_that_diverges_is_kept_shown_and_counted(rescue: Rescue, tmp_path: Path) -> None:
    ended = rescue(
        "seed-sweep", "--out", "sweep", "--seeds", "2", "--json", *TINY, "optim.lr=1e9",
        "train.log_every=2",
    )  # fmt: skip
    assert ended.code == 4, ended.err
    assert "2 of 2 planned runs have no result (2 diverged)." in ended.err
    found = json.loads(ended.out)
    assert found["n"] == 0
    assert (found["planned"], found["failed"], found["not_run"]) == (2, {}, [])
    assert sorted(found["diverged"]) == ["0", "1"]
    assert "the loss is" in found["diverged"]["0"]
    assert "1,,diverged: the loss is" in (tmp_path / "sweep" / "sweep.csv").read_text().replace(
        '"', ""
    )
    words = {f: f.stat().st_mtime_ns for f in (tmp_path / "sweep").glob("*/failure.json")}
    again = rescue(
        "seed-sweep", "--out", "sweep", "--seeds", "2", "--json", *TINY, "optim.lr=1e9",
        "train.log_every=2",
    )  # fmt: skip
    assert again.err.count("diverged before") == 2
    assert json.loads(again.out) == found
    assert {f: f.stat().st_mtime_ns for f in words} == words, "it would diverge again"


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_bitwise_as_one_that_was_not(tmp_path: Path) -> None:
    def begin(name: str) -> Command:
        words = ["seed-sweep", "--seeds", "4", *TINY, "--out", name]
        return start(words, tmp_path / "told", folder=tmp_path)

    for goal, number in ((1, signal.SIGTERM), (2, signal.SIGKILL)):
        sweep = begin("killed")
        sweep.until(have_finished(tmp_path / "killed", goal))
        workers: list[int] = []
        sweep.until(has_workers(sweep, workers))  # the goal may be reached before they are started
        sweep.send(number)
        message = sweep.ends(143 if number == signal.SIGTERM else -signal.SIGKILL)
        until_gone(workers)
        assert ("The same command resumes them." in message) == (number == signal.SIGTERM)
        assert len(finished(tmp_path / "killed")) < 4
    for name in ("killed", "whole"):
        begin(name).ends(0)
    for seed in range(4):
        a, b = (
            load_file(tmp_path / name / f"seed-{seed}" / "model.safetensors")
            for name in ("killed", "whole")
        )
        assert all(bool((a[key] == b[key]).all()) for key in a)
        one, other = (
            read_json(tmp_path / name / f"seed-{seed}" / "result.json")
            for name in ("killed", "whole")
        )
        assert one["sets"] == other["sets"]


def test_a_seed_that_neither_ended_nor_failed_is_told(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("seed-sweep", "--out", "sweep", *TINY, "--json")
    assert rescue(*call, "--seeds", "1").code == 0
    monkeypatch.setattr(pool, "run_all", lambda *_, **__: iter(()))
    ended = rescue(*call, "--seeds", "3")
    assert ended.code == 1
    assert "2 of 3 planned runs have no result (2 not run)." in ended.err
    found = json.loads(ended.out)
    assert (found["planned"], found["n"], found["not_run"]) == (3, 1, ["1", "2"])
    fewer = rescue(*call, "--seeds", "1")
    assert fewer.code == 0, "what was asked for is there"
    assert "2 seeds of an earlier command did not run; --seeds 1,2 trains" in fewer.err


def test_a_seed_that_was_stopped_is_told_from_one_that_never_began(
    rescue: Rescue, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    add_planned(sweep, [f"seed-{seed}" for seed in range(3)])
    write_json(RunDirectory(sweep / "seed-0").last, {})
    found = read_sweep(sweep)
    assert found.missing_text == "1 unfinished, 2 not run"
    assert missing_from_json(missing_to_json(0, found.missing)) == {
        str(seed): run for seed, run in found.missing.items()
    }
    ended = rescue("compare", "sweep", "80")
    assert ended.code == 3
    assert "none of its 3 seeds (1 unfinished, 2 not run) has a result. Run the sweep" in ended.err


def test_a_seed_that_was_stopped_has_not_failed(tmp_path: Path) -> None:
    for seed, code in enumerate((143, 3)):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        word = {"rank": 0, "exit_code": code, "message": "why"}
        write_json(RunDirectory(folder).failure, word)
    assert read_sweep(tmp_path).missing == {
        0: MissingRun("not run"),
        1: MissingRun("failed", "why"),
    }


@pytest.fixture
def apart(tmp_path: Path) -> tuple[str, str]:
    """Two sweeps that no rule can call alike: their ranges are 30 times their spread apart."""
    low, high = (dict(enumerate(values)) for values in APART)
    made_sweep(tmp_path / "a", low, overrides=[*LONGER, "optim.lr=0.01"])
    made_sweep(tmp_path / "b", high, overrides=LONGER)
    return "a", "b"


def test_compare_tests_sweeps_and_says_what_may_be_claimed(
    rescue: Rescue, apart: tuple[str, str]
) -> None:
    found = json.loads(rescue("compare", *apart, "--json").out)
    assert found["how"] == (
        "Welch's t-test (equal seeds share initial weights, order and augmentation, but 4 common "
        "seeds are fewer than 8)"
    )
    assert found["n"] == [4, 4]
    assert found["low"] < found["difference"] < found["high"]
    assert found["difference"] == pytest.approx(30.375)
    assert found["claim"].startswith("b is better than a by ")
    first, second = found["sides"]
    assert second["mean"] - first["mean"] == pytest.approx(found["difference"])
    assert (second["name"], second["n"]) == ("b", 4)
    assert second["low"] < second["mean"] < second["high"]
    assert found["equal"]["epoch"]["at"] == 6
    assert found["equal"]["epoch"]["difference"] == pytest.approx(found["difference"])
    r = pearsonr(*APART)
    bounds = r.confidence_interval()
    assert found["correlation"] == pytest.approx([r.statistic, bounds.low, bounds.high])
    lines = " ".join(rescue("compare", *apart).out.split())
    assert f"correlation between equal seeds: {r.statistic:.2f} (95 % interval " in lines
    assert "a run of b beats one of a in 100 % of 16 pairs (95 % interval " in lines


@pytest.mark.parametrize(
    ("change", "counts"),
    [("optim.lr=0.1", False), ("loss.label_smoothing=0", False), ("~augment.flip", True)],
)
def test_seconds_count_where_the_recipes_differ_in_what_a_step_costs(
    rescue: Rescue, tmp_path: Path, change: str, counts: bool
) -> None:
    """Else they say what else the machine did."""
    made_run(tmp_path / "a", 60.0, overrides=TINY)
    made_run(tmp_path / "b", 60.0, seed=1, overrides=[*TINY, change], seconds=2.5)
    text = " ".join(rescue("compare", "a", "b").out.split())
    assert (" seconds of training, a leads by " in text) == counts
    assert ("points, by a clock that counts other work on the machine too" in text) == counts


def test_of_several_every_pair_is_compared_and_who_reaches_what(
    rescue: Rescue, apart: tuple[str, str]
) -> None:
    three = rescue("compare", *apart, "50.0±1.0/10", "--to", "40")
    assert three.code == 0, three.err
    assert "p corrected for all tests" in " ".join(three.out.split())
    assert "b: 4 of 4 runs reached 40 %" in three.out
    assert "a: 0 of 4 runs reached 40 %" in three.out
    assert max(map(len, three.out.splitlines())) <= 80


def test_two_runs_are_compared_image_by_image(rescue: Rescue, apart: tuple[str, str]) -> None:
    runs = json.loads(rescue("compare", *(f"{name}/seed-0" for name in apart), "--json").out)
    assert runs["how"].startswith("McNemar's test on 200 images")
    assert "correct only in a/seed-0" in runs["how"]
    assert runs["claim"].startswith("On these images the network b/seed-0 is better than a/seed-0")
    assert "One run each says nothing about the recipes" in runs["claim"]
    assert runs["seed_noise"] == pytest.approx(30.5 / (1.959964 * 2**0.5))
    assert (runs["about"], runs["images"]) == ("networks", 200)


def test_runs_on_a_part_of_the_images_are_named(rescue: Rescue, tmp_path: Path) -> None:
    """A run of --smoke must not pass for one on all images."""
    made_run(tmp_path / "part", 60.0, overrides=["data.subset=[512, 1000]"])
    made_run(tmp_path / "whole", 70.0, seed=1)
    ended = rescue("compare", "part", "whole")
    assert "on a part of the images: part (data.subset=[512, 1000])" in " ".join(ended.out.split())
    found = json.loads(rescue("compare", "part", "whole", "--json").out)
    assert found["subsets"] == [[512, 1000], None]


def test_the_rows_of_evaluations_are_named_and_chosen(rescue: Rescue, tmp_path: Path) -> None:
    """Two evaluations of one network, of which the first is at two sizes with two rows each."""
    made_run(tmp_path / "run", 60.0, overrides=LONGER)
    (tmp_path / "run" / "model.safetensors").touch()
    rows = {"test none": 60.0, "test flip": 70.0}
    words = [*LONGER, "eval.tta=[none,flip]"]
    for number in ("0", "1"):
        made_run(tmp_path / "run" / "evals" / number, rows, overrides=words)
        file = tmp_path / "run" / "evals" / number / "result.json"
        write_json(file, {**read_json(file), "epochs": None})
    found = json.loads(rescue("compare", "run", "run/evals/0#flip", "--json").out)
    assert found["claim"].endswith(
        "points (p = 1.9e-06, 95 % interval 5.72 to 14.26): one network, evaluated in two ways."
    )
    assert found["about"] == "evaluations"
    assert "seed" not in found["claim"]
    assert found["sides"][1]["mean"] == pytest.approx(70.0)
    assert found["sides"][1]["low"] < 70 < found["sides"][1]["high"]
    assert found["epochs"] == [6, 6]

    ended = " ".join(rescue("compare", "run/evals/0", "run/evals/1#flip").out.split())
    assert "run/evals/1#flip is better than run/evals/0 (test none) by 10.00 points" in ended
    assert "first rows are compared: test none of run/evals/0; RUN#ROW takes another" in ended
    same = rescue("compare", "run/evals/0#none", "run/evals/0#flip")
    assert same.code == 0, "two rows of one run are two measurements"
    assert "would count twice" in rescue("compare", "run/evals/0#flip", "run/evals/0#flip").err
    for itself in ("run/evals/0", "run/evals/1#none"):
        refused = rescue("compare", "run", itself)
        assert refused.code == 2
        assert "are the same network, measured in the same way" in refused.err
    made_run(tmp_path / "run/evals/2", 60.0, overrides=[*LONGER, "data.root=elsewhere"])
    assert rescue("compare", "run", "run/evals/2").code == 0, "other images may be in that folder"
    for row, problem in (("24px", "names no row"), ("test", "names several rows")):
        assert (
            f"#{row} {problem} of run/evals/0. Rows: test,none, test,flip. Give what only one has, "
            "as run/evals/0#flip." in rescue("compare", f"run/evals/0#{row}", "80").err
        )


def test_the_networks_of_a_sweep_are_paired_with_their_own_evaluations(
    rescue: Rescue, tmp_path: Path
) -> None:
    tops = {seed: {"test none": 40.0 + seed, "test flip": 41.0 + 1.5 * seed} for seed in range(3)}
    made_sweep(tmp_path / "sweep", tops, overrides=[*TINY, "eval.tta=[none,flip]"])
    found = json.loads(rescue("compare", "sweep#none", "sweep#flip", "--json").out)
    assert found["how"] == ("paired t-test over seeds (the same networks, evaluated in two ways)")
    assert found["difference"] == pytest.approx(1.5)
    assert found["equal"]["epoch"] is None, "while training, flip was not measured"


def test_a_sweep_is_evaluated_as_one_and_paired_with_its_evaluation(
    rescue: Rescue, tmp_path: Path
) -> None:
    assert rescue("seed-sweep", "--out", "sweep", "--seeds", "2", "--smoke").code == 0
    made_failure(tmp_path / "sweep" / "seed-2", DivergedError("nan"), seed=2)
    shutil.copy(tmp_path / "sweep/seed-0/recipe.yaml", tmp_path / "sweep/seed-2/recipe.yaml")
    recipe = (tmp_path / "sweep/seed-2/recipe.yaml").read_text()
    (tmp_path / "sweep/seed-2/recipe.yaml").write_text(recipe.replace("seed: 0", "seed: 2"))
    ended = rescue("eval", "sweep", "--tta", "none,flip", "--json")
    assert ended.code == 0, ended.err
    assert ended.notes[0] == ended.notes[-1] == "sweep/evals/0"
    assert "seed 2: has no result, and is left out" in ended.notes
    found = json.loads(ended.out)
    assert (found["n"], list(found["sets"])) == (2, ["test none", "test flip"])
    again = read_sweep(tmp_path / "sweep")
    assert found["sets"]["test none"]["mean"] == np.mean([*again.values("test").values()])
    side, evaluated = load_side("sweep"), load_side("sweep/evals/0#flip")
    assert choose_pairing(side, evaluated).why == "the same networks, evaluated in two ways"
    shutil.rmtree(tmp_path / "sweep" / "seed-0")
    shutil.rmtree(tmp_path / "sweep" / "seed-1")
    assert "sweep: none of its 3 seeds has a result." in rescue("eval", "sweep").err


def test_numbers_alone_are_compared_and_too_few_of_them_claim_nothing(rescue: Rescue) -> None:
    found = json.loads(rescue("compare", "79.72±0.10/100", "79.85", "--json").out)
    assert found["difference"] == pytest.approx(0.13)
    assert found["claim"].startswith(
        "No significant difference between 79.72±0.10/100 and 79.85: 79.85 is higher by 0.13 "
        "points (p = 0.2"
    )
    assert "80 and 81 differ by 1.00 points; one run each:" in rescue("compare", "80", "81").out
    named = json.loads(rescue("compare", "a2", "79.60±0.10/100", "--json").out)
    assert named["a"] == "a2 (expected)"
    assert named["p"] < 1e-10


def test_a_result_outside_the_band_is_exit_6_only_where_it_is_asked(
    rescue: Rescue, tmp_path: Path
) -> None:
    call = ("train", "--out", "run", *TINY)
    assert rescue(*call, "--check-expected").code == 2  # quickstart has no published accuracy
    made_run(tmp_path / "run", 50.0, overrides=TINY)
    own = recipes.load("quickstart").to_yaml() + "expect: {top1: 96.0, std: 0.1, n: 100}\n"
    (tmp_path / "own.yaml").write_text(own)
    ended = rescue("compare", "run", "own.yaml")
    assert ended.code == 0, ended.err
    assert "is outside the expected range of quickstart, 93.28 to 98.72 %" in " ".join(
        ended.out.split()
    )
    assert rescue("compare", "run", "own.yaml", "--check-expected").code == 6
    (tmp_path / "own.yaml").write_text(own.replace(", std: 0.1, n: 100", ""))
    ended = rescue("compare", "90.8±0.2/6", "own.yaml")
    assert (ended.code, ended.notes[-1]) == (
        2,
        "error: own.yaml: this recipe has no published accuracy; 96 % is an aim. Give a run or a "
        "sweep of it.",
    )
    other = rescue("compare", "run", "a2")
    assert other.code == 2
    message = "run was measured on fashion-mini test (200 images), a2 (expected) on imagenet."
    assert message in other.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seed-sweep", "--seeds", "1,1"), "--seeds: '1,1' names no seed, or one seed twice."),
        (("seed-sweep", "--seeds", "a"), "--seeds: 'a' is not of the form 100, 0-9 or 3,7,11."),
        (("seed-sweep", "train.seed=3"), "--seeds and train.seed set the same thing."),
        (("compare", "79.72"), "compare: give two or more"),
        (("compare", "79.72", "nothing"), "'nothing' is not a run, a sweep, a recipe"),
        (("compare", "quickstart", "80"), "quickstart: this recipe has no published accuracy."),
        (("compare", "179.72±0.1/100", "80"), "is not an accuracy in percent. Give 0 to 100."),
    ],
)
def test_bad_words_are_refused(rescue: Rescue, words: tuple[str, ...], message: str) -> None:
    ended = rescue(*words)
    assert ended.code == 2
    assert message in ended.err


def test_the_images_compared_are_those_of_the_measurement_compared(
    tmp_path: Path,
) -> None:
    """`none` comes first here, and `flip` by the alphabet."""
    words = [*TINY, "eval.tta=[none,flip]"]
    made_run(tmp_path / "run", {"test none": 40.0, "test flip": 50.0}, overrides=words)
    entries = read_json(tmp_path / "run" / "result.json")["sets"]
    assert [entry["top1"] for entry in entries] == [40.0, 50.0]
    right = correct_predictions(load_predictions(tmp_path / "run"))
    assert 100 * right.mean() == pytest.approx(entries[0]["top1"])
    several = {
        "top": np.array([[3, 1], [2, 0], [1, 4]]),
        "labels": np.array([[1, 3], [4, -1], [1, -1]]),
    }
    assert correct_predictions(several).tolist() == [True, False, True]


def test_a_spread_of_an_unknown_number_of_runs_is_refused_or_left_out(rescue: Rescue) -> None:
    ended = rescue("compare", "79.72±0.10", "79.9")
    assert ended.code == 2
    assert "lacks the number of runs. Write 79.72±0.10/N, or 79.72." in ended.err
    assert published_sample({"top1": 94.1, "std": 0.15}) == Sample(94.1, None, 1)
    assert published_sample({"top1": 79.72, "std": 0.1, "n": 100}) == Sample(79.72, 0.1, 100)


@pytest.mark.parametrize(("changes", "count", "why"), [
    (["optim.lr=0.01"], 8, "equal seeds share initial weights, order and augmentation"),
    (["eval.tta=[flip]"], 2, "same recipe and seeds, evaluated in two ways"),
    (["optim.lr=0.01", "model.width=6"], 8,
     "equal seeds do not share their random draws: model.width differs"),
    (["model={name: myrtle-baseline, logit_scale: 0.1}"], 8,
     "equal seeds do not share their random draws: model differs (resnet9, myrtle-baseline)"),
])  # fmt: skip
def test_pairs_are_decided_by_recipes_and_outlive_a_seed_that_failed(
    rescue: Rescue, tmp_path: Path, changes: list[str], count: int, why: str
) -> None:
    tops = {seed: 40 + 2.5 * (seed % 4) for seed in range(count)}
    made_sweep(tmp_path / "a", tops, overrides=TINY)
    made_sweep(
        tmp_path / "b", {s: v + 1 + 0.5 * (s % 2) for s, v in tops.items()},
        overrides=[*TINY, *changes],
    )  # fmt: skip
    found = json.loads(rescue("compare", "a", "b", "--json").out)
    paired = "differs" not in why
    assert found["how"] == (
        f"paired t-test over seeds ({why})" if paired else f"Welch's t-test ({why})"
    )
    assert ("cohens_dz" in found) == paired
    if count == 8 and paired:
        shutil.rmtree(tmp_path / "b" / "seed-7")
        made_failure(
            tmp_path / "b" / "seed-7", DivergedError("nan"), seed=7, overrides=[*TINY, *changes]
        )
        again = json.loads(rescue("compare", "a", "b", "--json").out)
        assert again["how"] == f"paired t-test over the 7 common seeds ({why})"
        assert again["n"] == [7, 7]
        assert again["p"] < 0.05
        assert "7 of 8 (1 diverged) of b" in again["claim"]


def test_every_test_set_that_both_have_is_judged(rescue: Rescue, tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 10.0)):
        tops = {s: {"test none": 40 + s, "test flip": 41 + shift + s} for s in range(3)}
        made_sweep(tmp_path / name, tops, overrides=[*TINY, "eval.tta=[none,flip]"])
    found = json.loads(rescue("compare", "a", "b", "--json").out)
    assert "pairs" not in found, "one set in two ways is one set"
