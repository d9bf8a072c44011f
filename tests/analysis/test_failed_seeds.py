"""Every planned seed is done, diverged, failed or not run, and whoever averages the others says so.

The runs are written by the tests, but where it is the worker that fails.
"""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rescue_cli.analysis import sides
from rescue_cli.analysis.sweep import read_sweep
from rescue_cli.rundir import RunDirectory, read_json
from rescue_cli.rundir.planned import MissingRun, add_planned, count_missing
from rescue_cli.runs import pool
from tests.conftest import Rescue
from tests.helpers.synthetic_runs import made_run, made_sweep

TINY = (
    "model.width=4", "data.subset=[256,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=2",
)  # fmt: skip
TOPS = {0: 60.0, 1: 61.0, 2: 62.0, 5: 61.5, 6: 60.5, 7: 61.0}
DIVERGED = dict.fromkeys((3, 4, 8), "the loss is nan in step 7. Lower optim.lr.")


@pytest.fixture
def survivors(tmp_path: Path) -> str:
    """6 of 10 seeds: 3 diverged, and one was planned and never run."""
    made_sweep(tmp_path / "survivors", TOPS, diverged=DIVERGED)
    add_planned(tmp_path / "survivors", [f"seed-{seed}" for seed in range(10)])
    return "survivors"


def test_the_counts_add_up_in_every_form_of_report(
    rescue: Rescue, survivors: str, tmp_path: Path
) -> None:
    (row,) = json.loads(rescue("report", survivors, "--json").out)
    assert (row["planned"], row["n"], row["failed"], row["not_run"]) == (10, 6, {}, ["9"])
    assert row["diverged"] == {"3": DIVERGED[3], "4": DIVERGED[4], "8": DIVERGED[8]}
    (line,) = csv.DictReader(io.StringIO(rescue("report", survivors, "--csv").out))
    ends = [int(line[key]) for key in ("planned", "n", "diverged", "failed", "not_run")]
    assert ends == [10, 6, 3, 0, 1]
    message = "6 of 10 (3 diverged, 1 not run)"
    assert f"| {message} |" in rescue("report", survivors, "--markdown").out
    assert rescue("report", survivors).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "the mean of 6 of 10 seeds (3 diverged, 1 not run) (95 %: " in page
    assert "<h2>6 of 10 seeds (3 diverged, 1 not run)</h2>" in page
    assert f"Seed 8 diverged: {DIVERGED[8]}" in page


def test_a_side_has_its_seeds_without_result_and_all_its_measurements(
    survivors: str, tmp_path: Path
) -> None:
    side = sides.load_side(str(tmp_path / survivors))
    assert side.missing == {3: "diverged", 4: "diverged", 8: "diverged", 9: "not run"}
    assert count_missing(side.missing.values()) == "3 diverged, 1 not run"
    assert list(side.sets) == ["test"]
    assert side.sets["test"] == side.values == TOPS
    assert side.images_of == {"test": side.images}
    made_run(tmp_path / "run", {"test none": 50.0, "test flip": 52.0})
    run = sides.load_side(str(tmp_path / "run"))
    assert not run.missing
    assert {name: each[0] for name, each in run.sets.items()} == {
        "test none": 50.0, "test flip": 52.0,
    }  # fmt: skip
    flipped = sides.correct_predictions(sides.load_predictions(tmp_path / "run", "test flip"))
    assert 100 * flipped.mean() == 52.0


def test_a_sweep_without_a_plan_has_the_existing_seeds(tmp_path: Path) -> None:
    made_sweep(tmp_path / "old", {0: 60.0, 1: 61.0}, diverged={4: "the loss is nan."})
    found = read_sweep(tmp_path / "old")
    assert found.missing == {4: MissingRun("diverged", "the loss is nan.")}
    assert found.seeds_text == "2 of 3 seeds (1 diverged)"


def test_a_sweep_without_results_is_reported_as_such(rescue: Rescue, tmp_path: Path) -> None:
    made_sweep(tmp_path / "dead", {}, diverged=DIVERGED)
    for ended in (rescue("compare", "dead", "80"), rescue("report", "dead")):
        assert ended.code == 3
        assert "3 seeds (3 diverged)" in ended.err


@pytest.mark.parametrize("script", ["input(); exit(9)", "exit(9)"])
def test_a_worker_that_dies_without_a_failure_record_is_a_failed_seed(
    rescue: Rescue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    def dies(_environment: object) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        call = [sys.executable, "-c", script]
        return subprocess.Popen(call, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    monkeypatch.setattr(pool, "_start_process", dies)
    ended = rescue("seed-sweep", "--seeds", "2", "--out", "sweep", "--json", *TINY)
    assert ended.code == 1
    assert "2 of 2 planned runs have no result (2 failed)." in ended.err
    found = json.loads(ended.out)
    assert (found["planned"], found["n"], found["diverged"], found["not_run"]) == (2, 0, {}, [])
    assert found["failed"]["1"].startswith(
        "its process ended with exit code 9 and without a failure record."
    )
    assert read_sweep(tmp_path / "sweep").missing[0].how == "failed", "it is kept for `report`"


@pytest.mark.slow
def test_a_users_file_does_not_shadow_python_modules(tmp_path: Path) -> None:
    """Workers, the processes of torchrun and `python -m rescue_cli`, begun beside such files."""
    for name in ("timeit", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(77)\n")
    words = ["train", "--smoke", "--out", "run", "--device", "cpu", *TINY]
    words += ["train.device_batch_size=16"]
    for start, more in (
        (["-m", "rescue_cli"], [*words, "--procs", "2"]),
        (["-m", "rescue_cli"], ["seed-sweep", "--seeds", "1", "--out", "sweep", *TINY]),
    ):
        call = [sys.executable, *start, *more]
        ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("recipe", "odd/seed-2/recipe.yaml: optim.lr: 0.1, but seed-0 has 0.4."),
        ("images", "odd/seed-2/result.json: test.count: 500, but seed-0 has 1000."),
        ("set", "odd/seed-2/result.json: sets: [val], but seed-0 has [test]."),
        ("protocol", "test.protocol.interpolation: bicubic, but seed-0 has bilinear."),
        ("copied", "odd/seed-2/recipe.yaml: train.seed: 1, but the folder is seed 2's."),
        ("backup", "odd/seed-0.bak: holds a run, but is not named seed-0, seed-1, ..."),
        ("zero", "odd/seed-01: holds a run, but is not named seed-0, seed-1, ..."),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_refused(
    rescue: Rescue, tmp_path: Path, make: str, message: str
) -> None:
    folder = made_sweep(tmp_path / "odd", {0: 60.0, 1: 61.0, 3: 62.0})
    odd = folder / "seed-2"
    if make == "recipe":
        made_run(odd, 63.0, seed=2, overrides=["optim.lr=0.1"])
    elif make == "images":
        made_run(odd, 63.0, seed=2, images=500)
    elif make == "set":
        made_run(odd, {"val": 63.0}, seed=2)
    elif make == "protocol":
        made_run(odd, 63.0, seed=2)
        file = RunDirectory(odd).result
        file.write_text(file.read_text().replace('"bilinear"', '"bicubic"'))
    else:
        other = {"copied": odd, "backup": folder / "seed-0.bak", "zero": folder / "seed-01"}
        shutil.copytree(folder / "seed-1", other[make])
    for verb in (("compare", "odd", "80"), ("report", "odd"), ("report", "odd", "--json")):
        ended = rescue(*verb)
        assert ended.code == 3
        assert message in ended.err
        assert "Move seed-2 out of odd." in ended.err or "Move it out of odd." in ended.err


def test_data_folders_and_recipe_names_do_not_split_a_sweep(tmp_path: Path) -> None:
    folder = made_sweep(tmp_path / "sweep", {0: 60.0, 1: 61.0})
    file = RunDirectory(folder / "seed-1").recipe
    text = file.read_text().replace("name: quickstart", "name: copied", 1)
    file.write_text(text.replace("data: {", "data: {root: /elsewhere, ", 1))
    assert "root: /elsewhere" in file.read_text()
    assert len(read_sweep(folder).results) == 2


@pytest.mark.parametrize("way", ["path", "link", "same", "linked seed"])
def test_a_run_never_counts_twice(rescue: Rescue, tmp_path: Path, way: str) -> None:
    made_sweep(tmp_path / "sweep", {0: 60.0, 1: 61.0})
    made_sweep(tmp_path / "other", {0: 70.0})
    (tmp_path / "link").symlink_to("sweep/seed-1")
    (tmp_path / "other" / "seed-1").symlink_to("../sweep/seed-1")
    second = {"path": "sweep/seed-1", "link": "link", "same": "./sweep", "linked seed": "other"}
    ended = rescue("compare", "sweep", second[way])
    assert ended.code == 2
    assert f"is a run of both sweep and {second[way]}" in ended.err
    assert "would count twice. Give one of them." in ended.err


def test_a_run_that_cannot_be_compared_does_not_prevent_other_comparisons(
    rescue: Rescue, tmp_path: Path
) -> None:
    for name, top in (("a", 60.0), ("b", 70.0)):
        made_sweep(tmp_path / name, {seed: top + seed**2 * (top - 55) / 50 for seed in range(4)})
    made_run(tmp_path / "c", 65.0, images=500)
    assert rescue("report", "a", "c", "b", "a/seed-0").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Comparison</h2>" in page
    assert page.count("b is better than a by") == 2, "as the answer, and among the comparisons"
    assert "a was measured on fashion-mini test (1,000 images), c on fashion-mini test" in page
    assert "a/seed-0 is a run of both a and a/seed-0, and would count twice." in page


def test_a_sweep_that_cannot_start_leaves_no_plan(rescue: Rescue, tmp_path: Path) -> None:
    words = ("seed-sweep", "--recipe", "a3", "--seeds", "2", "--out", "s", "data.root=nowhere")
    assert rescue(*words, "train.precision=float32").code in (2, 3)
    assert not (tmp_path / "s" / "planned.json").exists()


def test_requested_seeds_stay_planned(rescue: Rescue, tmp_path: Path) -> None:
    made_sweep(tmp_path / "sweep", {0: 60.0, 1: 61.0}, diverged={2: "the loss is nan."})
    add_planned(tmp_path / "sweep", ["seed-0", "seed-1", "seed-2"])
    ended = rescue("seed-sweep", "--seeds", "2", "--out", "sweep", "--json")
    assert ended.code == 4
    assert json.loads(ended.out)["diverged"] == {"2": "the loss is nan."}
    assert read_json(tmp_path / "sweep" / "planned.json")["runs"] == ["seed-0", "seed-1", "seed-2"]
