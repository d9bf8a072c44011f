"""`rescue study` at work: what is missing is run, once, and stands beside the paper's figures."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rescue_cli.analysis.stats import Sample, sample, t_interval, welch_test
from rescue_cli.analysis.study import cell_runs, load_study, parse_snapshot, resolve_cells
from rescue_cli.errors import UsageError
from tests.conftest import Rescue
from tests.helpers.processes import descendants, start, until_gone
from tests.helpers.synthetic_runs import made_sweep

SMALL = (
    "model.width=4", "data.subset=[256,100]", "train.batch_size=32", "train.device_batch_size=32",
)  # fmt: skip
STUDY = """
name: mine
paper: {title: A paper, url: https://example.org, table: Table 9}
columns: {rate: optim.lr, decay: optim.weight_decay}
set: [model.width=4, "data.subset=[256, 100]", train.batch_size=32, train.device_batch_size=32]
cells:
  - recipe: quickstart
    set: [train.epochs=2, "train.snapshots=[8]"]
    paper: {val: 50.0}
    std: 0.5
    n: 4
  - {recipe: quickstart, set: [train.epochs=2, optim.lr=0.2], paper: {val: 99.0}, std: 0.5, n: 4}
  - recipe: quickstart
    set: [train.epochs=2, optim.weight_decay=0.1]
    paper: {}
    from_snapshot: {cell: 1, step: 8}
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(STUDY)
    return "mine.yaml"


@pytest.fixture(scope="module")
def first_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study's first row, two seeds of it."""
    folder = tmp_path_factory.mktemp("first-row")
    (folder / "mine.yaml").write_text(STUDY)
    words = ["study", "mine.yaml", "--only", "1", "--seeds", "2"]
    start(words, folder / "told", folder=folder).ends(0)
    return folder / "runs" / "study" / "mine"


@pytest.fixture
def begun(first_row: Path, tmp_path: Path) -> Path:
    """The study with its first row, of the test's own."""
    return shutil.copytree(first_row, tmp_path / "runs" / "study" / "mine")


def finished(folder: Path) -> dict[str, float]:
    """When each result was written."""
    return {
        str(f.parent.relative_to(folder)): f.stat().st_mtime for f in folder.rglob("result.json")
    }


def test_rows_are_run_once_and_a_later_call_adds_what_is_missing(
    rescue: Rescue, mine: str, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "study" / "mine"
    first = rescue("study", mine, "--only", "1,2", "--jobs", "2")
    assert first.code == 0, first.err
    assert "0 of 2 runs finished" in first.err
    before = finished(folder)
    assert sorted(before) == ["01/seed-0", "02/seed-0"]
    again = rescue("study", mine, "--seeds", "2", "--json")
    assert again.code == 0, again.err
    assert "2 of 6 runs finished" in again.err
    after = finished(folder)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    rows = json.loads(again.out)["rows"]
    assert [row["measured"]["n"] for row in rows] == [2, 2, 2]
    assert [row["measured"]["p"] is None for row in rows] == [False, False, True]
    printed = rescue("study", mine, "--table")
    assert max(map(len, printed.out.splitlines())) <= 80
    assert " ± " in printed.out


def test_a_row_is_judged_by_the_papers_figure(rescue: Rescue, mine: str, tmp_path: Path) -> None:
    """50.0 and 99.0 with a std of 0.5, of four runs."""
    words = [*SMALL, "train.epochs=2"]
    folder = tmp_path / "runs" / "study" / "mine"
    rows = (("01", "train.snapshots=[8]"), ("02", "optim.lr=0.2"))
    for row, own in rows:
        made_sweep(folder / row, {0: 49.0, 1: 51.0}, overrides=[*words, own])
    ended = rescue("study", mine, "--table", "--json")
    assert ended.code == 0, ended.err
    measured = [row["measured"] for row in json.loads(ended.out)["rows"]]
    assert [found["mean"] for found in measured[:2]] == [50.0, 50.0]
    assert measured[0]["p"] == pytest.approx(1.0)
    assert measured[1]["p"] < 0.05
    assert measured[2] is None


def test_a_row_goes_on_from_another_rows_state_with_its_own_decay(
    rescue: Rescue, mine: str, begun: Path
) -> None:
    assert rescue("study", mine, "--only", "3").code == 0
    lines = [
        json.loads(line) for line in (begun / "03/seed-0/metrics.jsonl").read_text().splitlines()
    ]
    assert min(line["step"] for line in lines) > 8
    states = [
        torch.load(begun / row / "seed-0/checkpoints/last.pt", weights_only=True)
        for row in ("01", "03")
    ]
    decays = [
        max(g["weight_decay"] for g in s["updates"]["optimizers"][0]["param_groups"])
        for s in states
    ]
    assert decays == [5e-4, 0.1]
    weights = [next(iter(s["model"].values())) for s in states]
    assert not torch.equal(*weights)


def test_a_run_whose_beginning_is_lost_is_told_and_the_others_go_on(
    rescue: Rescue, mine: str, begun: Path
) -> None:
    (begun / "01/seed-1/snapshots/8.pt").unlink()
    ended = rescue("study", mine, "--only", "3", "--seeds", "2")
    assert ended.code == 1, ended.err
    assert (
        "seed-1/snapshots/8.pt: the checkpoint that row 3 starts from does not exist." in ended.err
    )
    assert [p.parent.name for p in begun.glob("03/*/result.json")] == ["seed-0"]


def test_a_row_that_would_train_on_from_a_last_state_is_refused(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text(STUDY.replace("step: 8}", "step: last}"))
    ended = rescue("study", "wrong.yaml", "--plan")
    assert ended.code == 2
    assert (
        "study mine, row 3.from_snapshot: starts from the last state of a row that differs in "
        "optim.weight_decay. Change only eval, or name a step." in ended.err
    )


def test_a_row_that_only_evaluates_otherwise_trains_nothing(
    rescue: Rescue, first_row: Path, tmp_path: Path
) -> None:
    """As the paper's study of the test crop, whose rows are a net at several crops."""
    text = STUDY.replace("optim.weight_decay=0.1", "'eval.tta=[flip]'")
    (tmp_path / "crops.yaml").write_text(text.replace("step: 8}", "step: last}"))
    early = rescue("study", "crops.yaml", "--only", "3")
    assert early.code == 1
    assert (
        "the checkpoint that row 3 starts from does not exist. Run its row first, to its end."
        in (early.err)
    )
    plan = json.loads(rescue("study", "crops.yaml", "--plan", "--json").out)
    assert [row["updates"] for row in plan] == [16, 16, 0]
    folder = tmp_path / "runs" / "study" / "mine"
    shutil.copytree(first_row, folder, dirs_exist_ok=True)
    assert rescue("study", "crops.yaml", "--only", "3").code == 0
    first, third = (json.loads((folder / f"0{r}/seed-0/result.json").read_text()) for r in (1, 3))
    measured = json.loads(rescue("eval", folder / "01/seed-0", "--tta", "flip", "--json").out)
    assert (third["top1"], third["protocol"]["tta"]) == (measured["top1"], "flip")
    assert third["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    assert third["loss"] != first["loss"]
    assert (folder / "03/seed-0/metrics.jsonl").read_text() == ""
    assert rescue("report", folder / "03").code == 0


def test_rows_of_a_recipe_of_ones_own_are_not_looked_for_on_record(
    rescue: Rescue, tmp_path: Path
) -> None:
    assert rescue("recipes", "copy", "quickstart", "own.yaml").code == 0
    study = "name: own\ncolumns: {rate: optim.lr}\ncells: [{recipe: own.yaml}]\n"
    (tmp_path / "own-study.yaml").write_text(study)
    ended = rescue("study", "own-study.yaml", "--table")
    assert ended.code == 0, ended.err
    assert "not run" in ended.out


def test_a_state_that_is_not_there_is_asked_for(rescue: Rescue, mine: str) -> None:
    ended = rescue("study", mine, "--only", "3")
    assert ended.code == 1
    assert "the checkpoint that row 3 starts from does not exist. Run its row first" in ended.err


def test_the_plan_counts_what_is_left(rescue: Rescue, mine: str) -> None:
    ended = rescue("study", mine, "--plan", "--json")
    rows = json.loads(ended.out)
    assert [(row["row"], row["runs"], row["left"], row["updates"]) for row in rows] == [
        (1, 1, 1, 16), (2, 1, 1, 16), (3, 1, 1, 8),
    ]  # fmt: skip
    assert all(row["petaflop"] > 0 for row in rows)
    assert rescue("study", mine, "--plan").out.splitlines()[-1].split()[:4] == [
        "total", "3", "3", "40",
    ]  # fmt: skip
    timed = rescue("study", mine, "--plan", "--images-per-second", "0.1", "--json")
    assert [row["hours"] for row in json.loads(timed.out)] == pytest.approx(
        [512 / 360, 512 / 360, 256 / 360]
    )


def test_data_that_is_not_there_ends_it_at_once(rescue: Rescue) -> None:
    ended = rescue("study", "rsb-a2-against-t2", "data.root=/nowhere", "train.precision=float32")
    assert ended.code == 3
    assert "/nowhere" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mine.yaml", "--only", "4"), "--only: '4' must be numbers of rows from 1 to 3."),
        (("smith-momentun",), "Did you mean 'smith-momentum'?"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_bad_words_are_refused(rescue: Rescue, words: tuple[str, ...], message: str) -> None:
    ended = rescue("study", *words)
    assert ended.code == 2
    assert message in ended.err


def test_a_study_killed_and_begun_again_repeats_no_finished_run(mine: str, tmp_path: Path) -> None:
    words = ["study", mine, "--only", "1,2", "--seeds", "3"]
    folder = tmp_path / "runs" / "study" / "mine"
    killed = start(words, tmp_path / "killed", folder=tmp_path)
    killed.until(lambda: len(finished(folder)) >= 2)
    workers = descendants(killed.pid)
    killed.kill()
    assert workers
    until_gone(workers)
    done = finished(folder)
    assert 2 <= len(done) < 6
    start(words, tmp_path / "again", folder=tmp_path).ends(0)
    after = finished(folder)
    assert len(after) == 6
    assert {name: after[name] for name in done} == done


def test_smiths_points_are_four_batches_begun_in_two_ways() -> None:
    study = load_study("smith-momentum")
    found = resolve_cells(study)
    three, deep = found[0][1], found[10][1]
    assert three is not None
    assert deep is not None
    assert list(cell_runs(study, three, None)) == [
        "batch-128", "batch-132", "batch-136", "batch-140",
    ]  # fmt: skip
    made = cell_runs(study, deep, None)
    assert list(made) == [
        "batch-512-msra", "batch-516-xavier", "batch-520-msra", "batch-524-xavier",
    ]  # fmt: skip
    assert [r.train.device_batch_size for r in made.values()] == [128, 129, 130, 131]
    with pytest.raises(UsageError, match="--seeds: a row of smith-momentum is 4 runs"):
        cell_runs(study, deep, 3)


def test_samples_and_welchs_test_are_scipys() -> None:
    from scipy import stats

    a, b = [90.1, 90.4, 89.8, 90.2], [91.0, 90.6, 90.9]
    assert welch_test(sample(a), sample(b)).p == pytest.approx(
        float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    )
    low, high = stats.t.interval(0.95, 3, 90.125, stats.sem(a))
    assert t_interval(sample(a)) == pytest.approx((float(low), float(high)))
    assert sample([1.0]) == Sample(1.0, None, 1)
    assert welch_test(sample([1.0]), sample([2.0])).p is None
    # one run against a paper's four: t with the paper's three degrees of freedom
    error = 0.5 * (1 / 4 + 1) ** 0.5
    expected = 2 * float(stats.t.sf(2.0 / error, 3))
    assert welch_test(Sample(92.0, None, 1), Sample(90.0, 0.5, 4)).p == pytest.approx(expected)


def test_a_snapshot_of_a_row_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(STUDY.replace("cell: 1", "cell: 7"))
    study = load_study(str(tmp_path / "wrong.yaml"))
    cell, _ = resolve_cells(study)[2]
    with pytest.raises(UsageError, match=r"from_snapshot\.cell: 7 is not one of its 3 rows"):
        parse_snapshot(study, cell)


OWN = f"""
name: own
columns: {{procedure: name, rate: optim.lr}}
epochs: 2
seeds: 3
pairs: true
set: {list(SMALL)}
cells:
  - {{recipe: quickstart}}
  - {{recipe: quickstart, set: [optim.lr=1.0e-6]}}
"""


def test_a_study_of_our_own_compares_its_rows_at_equal_length(
    rescue: Rescue, tmp_path: Path
) -> None:
    """Its runs are there, and so far apart that no rule calls the rows alike."""
    (tmp_path / "own.yaml").write_text(OWN)
    words = [*SMALL, "train.epochs=2", "schedule.epochs=[0,0.5,2]"]
    made_sweep(tmp_path / "out" / "01", {0: 61.0, 1: 60.0, 2: 62.0}, overrides=words)
    slow = [*words, "optim.lr=1.0e-6"]
    made_sweep(tmp_path / "out" / "02", {0: 11.0, 1: 9.0, 2: 12.0}, overrides=slow)
    ended = rescue("study", "own.yaml", "--json", "--out", "out")
    assert ended.code == 0, ended.err
    assert "6 of 6 runs finished" in ended.err
    assert "row 1 (quickstart) sets: train.epochs=2 schedule.epochs=[0,0.5,2]" in ended.err
    output = json.loads(ended.out)
    assert [row["measured"]["n"] for row in output["rows"]] == [3, 3]
    (pair,) = output["pairs"]
    assert (pair["a"], pair["b"]) == ("row 1", "row 2 (rate 1e-06)"), "both are quickstart"
    assert pair["how"].startswith("Welch's t-test (equal seeds share")
    assert pair["claim"].startswith("row 1 is better than row 2 (rate 1e-06) by ")
    assert pair["equal"]["epoch"]["at"] == 2
    assert pair["equal"]["seconds"] is None, "a rate costs nothing"
    text = rescue("study", "own.yaml", "--table", "--out", "out").out
    assert text.splitlines()[0].split() == [
        "row",
        "procedure",
        "rate",
        "measured",
        "%",
        "time",
        "(s)",
    ]
    assert pair["claim"] in " ".join(text.split())
    assert rescue("report", "out", "--out", "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "Source: our own. 2 of 2 rows are measured." in page
    assert pair["claim"] in page
    assert '<th class="n">p</th>' not in page
    assert "rate 0.4</" in page
    assert "procedure quickstart" not in page, "both rows are"
    made_sweep(tmp_path / "out" / "01", {3: 60.5}, overrides=words)
    assert (
        "were compared before, with 6 runs in total."
        in rescue("study", "own.yaml", "--table", "--out", "out").err
    )


def test_a_misspelt_key_of_a_study_is_found_before_its_table(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace("[optim.lr=", "[optim.lrr="))
    ended = rescue("study", "own.yaml", "--table")
    assert (ended.code, ended.out) == (2, "")
    assert "study own, row 2: optim (sgd): unknown key 'lrr'. Did you mean 'lr'?" in ended.err
    (tmp_path / "own.yaml").write_text(OWN.replace("rate: optim.lr}", "rate: optim.lrx}"))
    ended = rescue("study", "own.yaml", "--only", "1")
    assert ended.code == 2
    assert "study own.columns.rate: no row's recipe sets optim.lrx." in ended.err
    ended = rescue("study", "own")
    assert "study: 'own' is not known. Give own.yaml" in ended.err


def test_rows_of_one_name_are_called_by_their_numbers(rescue: Rescue, tmp_path: Path) -> None:
    """Also where only one of them has run."""
    text = OWN + "  - {recipe: myrtle, set: [model.width=2]}\n"
    (tmp_path / "own.yaml").write_text(text.replace(str(list(SMALL)), "[]"))
    for row, changes in ((2, [*SMALL, "optim.lr=1.0e-6"]), (3, [*SMALL])):
        made_sweep(tmp_path / "out" / f"0{row}", {0: 61.0, 1: 60.0 - row}, overrides=changes)
    ended = rescue("study", "own.yaml", "--table", "--out", "out", "--json", "--only", "2,3")
    assert ended.code == 0, ended.err
    (pair,) = json.loads(ended.out)["pairs"]
    assert (pair["a"], pair["b"]) == ("row 2", "row 3 (rate 0.4)")


def test_a_table_shows_what_was_run_and_not_what_its_file_says_now(
    rescue: Rescue, tmp_path: Path
) -> None:
    words = [*SMALL, "train.epochs=2", "schedule.epochs=[0,0.5,2]"]
    for row, more in ((1, []), (2, ["optim.lr=1.0e-6"])):
        values = {seed: 60.0 + row + seed for seed in range(3)}
        made_sweep(tmp_path / "out" / f"0{row}", values, overrides=[*words, *more])
    (tmp_path / "own.yaml").write_text(OWN.replace("1.0e-6", "0.1"))
    ended = rescue("study", "own.yaml", "--table", "--out", "out")
    assert ended.code == 0
    assert (
        "warning: row 2 shows runs from before the study was changed: optim.lr: 1e-06 -> 0.1"
        in (ended.err)
    )
    assert "row 1 shows" not in ended.err
    assert "  2  quickstart  1e-06" in ended.out
    ended = rescue("study", "own.yaml", "--out", "out")
    assert ended.code == 2
    assert "another recipe: optim.lr: 1e-06 -> 0.1. Undo these changes, or use a new --out." in (
        ended.err
    )


def test_two_rows_of_one_recipe_are_not_compared(rescue: Rescue, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace("1.0e-6", "0.4"))
    ended = rescue("study", "own.yaml", "--plan")
    assert (ended.code, ended.notes[-1]) == (
        2,
        "error: study own, rows 1 and 2: are the same recipe. Change one of them, or remove it.",
    )


def test_a_study_can_be_run_for_another_length(rescue: Rescue, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    ended = rescue("study", "own.yaml", "--epochs", "4", "--plan", "--json", "--only", "1")
    assert json.loads(ended.out)[0]["updates"] == 3 * 4 * 8
    assert "sets: train.epochs=4 schedule.epochs=[0,1,4]" in ended.err


def test_points_of_smiths_are_run_and_shown(rescue: Rescue, tmp_path: Path) -> None:
    lines = ["points: smith" if line.startswith("seeds") else line for line in OWN.splitlines()]
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    ended = rescue("study", "own.yaml", "--out", "out")
    assert (ended.code, ended.notes[-1]) == (
        2, "error: study own.pairs: needs points: seeds. Remove pairs or points.",
    )  # fmt: skip
    (tmp_path / "own.yaml").write_text("\n".join(x for x in lines if not x.startswith("pairs")))
    ended = rescue("study", "own.yaml", "--only", "1", "--json", "--out", "out", "--epochs", "1")
    assert ended.code == 0, ended.err
    output = json.loads(ended.out)
    assert (output["rows"][0]["measured"]["n"], output["pairs"]) == (4, [])
