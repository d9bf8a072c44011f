"""The command line: what it prints where, its exit codes, and what it writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rescue_cli.analysis.study import study_files
from rescue_cli.cli import main
from rescue_cli.recipe import SECTIONS, find, load, names
from tests.conftest import Ended, Rescue

STABLE = {
    "run", "recipe", "seed", "top1", "top5", "loss", "count", "epochs", "steps", "seconds_train",
    "seconds_prepare", "seconds_eval", "images_per_second", "peak_memory_mb", "parameters",
    "protocol",
}  # fmt: skip
# Beside the stable keys: a list with an entry for each set, size and crop, and a run's accidents
OTHER = {"sets", "best", "replaced_images", "corrupt_files", "skipped_steps"}
SMALL = ("model.width=4",)


def written(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# --- recipes ---


def test_recipes_are_listed_one_a_row_in_80_columns(rescue: Rescue) -> None:
    ended = rescue("recipes")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["recipe", "data", "epochs", "expected", "%", "measured", "%"]
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("measured: mean (seeds), unchanged but for precision; partly: ")
    first_words = [line.split()[0] for line in lines[1:-3] if not line.startswith(" ")]
    folders = dict.fromkeys(file.parent.name for file in names().values())
    assert [word for word in first_words if word.endswith("/")] == [f"{f}/" for f in folders]
    assert [word for word in first_words if not word.endswith("/")] == list(names())
    assert first_words[:2] == ["bag-of-tricks/", "bag-of-tricks"]
    (myrtle,) = (line for line in lines if line.startswith("myrtle-baseline "))
    assert myrtle.split()[:4] == ["myrtle-baseline", "cifar10", "24", "94.10"]


def test_recipes_are_listed_as_json_with_claim_and_measurement_apart(rescue: Rescue) -> None:
    rows = {row["recipe"]: row for row in json.loads(rescue("recipes", "--json").out)}
    assert list(rows) == list(names())
    for row in rows.values():
        assert set(row) == {"recipe", "paper", "data", "epochs", "expected", "measured"}
    assert rows["pytorch"]["paper"]["title"] == "ResNet strikes back"
    assert rows["pytorch"]["expected"] == 76.1
    assert rows["pytorch"]["epochs"] == 90


def test_show_prints_a_recipe_as_it_is_written(rescue: Rescue) -> None:
    ended = rescue("recipes", "show", "pytorch")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == find("pytorch").read_text()


def test_diff_prints_the_keys_that_differ_side_by_side(rescue: Rescue) -> None:
    ended = rescue("recipes", "diff", "quickstart", "myrtle-baseline")
    assert (ended.code, ended.err) == (0, "")
    heading, *rows = (line.split() for line in ended.out.splitlines())
    assert heading == ["key", "quickstart", "myrtle-baseline"]
    shown = {row[0]: row[1:] for row in rows}
    assert shown["augment.cutout.size"] == ["-", "8"]
    assert shown["loss.reduction"] == ["mean", "sum"]
    assert shown["augment.pad-crop.pad"] == ["2", "4"]
    assert not {"model.name", "augment.flip.p", "data.root", "name", "paper.title"} & set(shown)
    sections = [key.partition(".")[0] for key in shown]
    assert sections == sorted(sections, key=list(SECTIONS).index), "keys of one section together"


def test_diff_with_itself_says_so(rescue: Rescue) -> None:
    assert rescue("recipes", "diff", "pytorch", "pytorch").out == (
        "pytorch and pytorch train the same thing.\n"
    )


def test_copy_writes_a_recipe_that_loads_and_never_overwrites(
    rescue: Rescue, tmp_path: Path
) -> None:
    assert rescue("recipes", "copy", "quickstart", "mine.yaml").out == "mine.yaml\n"
    copied = tmp_path / "mine.yaml"
    given = find("quickstart").read_text()
    origin = "--recipe mine.yaml\n#\n# Copied from quickstart, whose description was:"
    mine = given.replace("--recipe quickstart", origin)
    mine = mine.replace("name: quickstart", "name: mine")
    assert copied.read_text() == mine != given
    assert rescue("recipes", "check", "mine.yaml").out == "mine.yaml: valid\n"
    ended = rescue("recipes", "copy", "pytorch", "mine.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: mine.yaml: already exists. Give another name, or remove it.\n"
    assert copied.read_text() == mine


def test_a_copy_that_fails_leaves_no_file(rescue: Rescue, tmp_path: Path) -> None:
    assert rescue("recipes", "copy", "quickstrat", "mine.yaml").code == 2
    assert rescue("recipes", "copy", "quickstart", "nowhere/mine.yaml").err == (
        "error: nowhere/mine.yaml: cannot be written: No such file or directory.\n"
    )
    assert written(tmp_path) == []


def test_check_validates_all_that_is_shipped(rescue: Rescue) -> None:
    ended = rescue("recipes", "check")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [f"{name}: valid" for name in names()]


def test_study_without_a_name_lists_all(rescue: Rescue) -> None:
    ended = rescue("study")
    lines = ended.out.splitlines()
    assert (ended.code, [line.split()[0] for line in lines[1:] if line[0] != " "]) == (
        0,
        list(study_files()),
    )
    assert max(map(len, lines)) <= 80
    listed = json.loads(rescue("study", "--json").out)
    assert [each["study"] for each in listed] == list(study_files())
    (momentum,) = (each for each in listed if each["study"] == "smith-momentum")
    assert momentum["rows"] == 20
    assert momentum["source"].endswith("Part 1, Table 1")


# --- usage errors ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nosuch", "error: No such command 'nosuch'. See rescue --help."),
        ("train --nosuch", "error: No such option: --nosuch"),
        (
            "train --seed 1",
            "error: No such option: --seed. It is a key of the recipe: train.seed=VALUE. "
            "See rescue train --help.",
        ),
        (
            "study bot-efficient --batch-size 32",
            "error: No such option: --batch-size. It is a key of the recipe: "
            "eval.batch_size=VALUE or train.batch_size=VALUE. See rescue study --help.",
        ),
        ("models --seed 1", "error: No such option: --seed"),
        ("train --procs none", "error: Invalid value for '--procs':"),
        ("train --procs 0", "error: Invalid value for '--procs':"),
        (
            "recipes diff quickstart",
            "error: Missing argument 'NAME'. See rescue recipes diff --help.",
        ),
        ("train quickstart", "must read section.key=value. For that recipe: --recipe quickstart."),
        ("train --resume --out nothere", "error: --resume: nothere holds no run. Give --out RUN"),
        ("train data.root=photos", "error: data.root: fashion-mini is part of this package"),
        ("train --recipe quickstrat", "error: recipe: 'quickstrat' is not known. Did you mean"),
        ("train --recipe no/r.yaml", "error: recipe: no file 'no/r.yaml'."),
        ("train train.epoch=3", "error: train: unknown key 'epoch'. Did you mean 'epochs'?"),
        ("train train.epochs", "error: override 'train.epochs': must read section.key=value."),
        ("train --subset 0", "error: --subset: '0' must be N or TRAIN:TEST"),
        ("train --subset 1:2:3", "error: --subset: '1:2:3' must be N or TRAIN:TEST"),
        ("train --subset 9 data.subset=[9,9]", "error: --subset and data.subset set the same"),
        (
            "train --procs 2",
            "error: --procs: 2 processes do not divide the 1 micro-batches of a step.",
        ),
        ("train --gpus 1", "error: --device: cuda is not available on this machine."),
        ("train --device tpu", "error: --device: 'tpu' is not known. Use cpu or cuda."),
        ("train --device mps", "error: --device: mps has no float64, in which losses are summed."),
        ("train --device rocm", "error: --device: 'rocm': torch calls AMD's GPUs cuda too. Use"),
        ("train --nodes 2", "error: --nodes: several machines need --rendezvous HOST:PORT"),
        ("train --recipe myrtle-baseline", "error: train.precision: float16 needs CUDA"),
        ("train --dry-run optim.lr=0", "error: optim (sgd).lr: 0 must be above 0."),
        (
            "train train.batch_size=256 optim.lr=x",
            "error: optim (sgd).lr: 'x' is not a number above 0.",
        ),
        ("train optim.lr=x", "error: optim (sgd).lr: 'x' is not a number above 0."),
        ("recipes show nosuch", "error: recipe: 'nosuch' is not known."),
        ("recipes check quickstart mix.name=mixupp", "error: mix.name: 'mixupp' is not known."),
        ("bench step train.epoch=3", "error: train: unknown key 'epoch'."),
    ],
)
def test_a_usage_error_is_exit_2_on_stderr_alone(
    rescue: Rescue, tmp_path: Path, line: str, message: str
) -> None:
    arguments = line.split()
    if "train.batch_size=256" in arguments:
        arguments.append("train.device_batch_size=100")
    ended = rescue(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert written(tmp_path) == []


def test_a_run_directory_that_is_a_file_is_refused(rescue: Rescue, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    ended = rescue("train", "--smoke", "--out", "notes")
    assert (ended.code, ended.err) == (2, "error: --out: notes is a file. Give a folder.\n")
    assert (tmp_path / "notes").read_text() == "mine"


def test_data_that_nobody_gave_are_exit_3_with_both_cures(rescue: Rescue) -> None:
    ended = rescue("train", "--recipe", "pytorch", "--smoke")
    assert (ended.code, ended.out) == (3, "")
    assert "Give data.root=DIR, or set RESCUE_DATA" in ended.err


@pytest.mark.parametrize("verb", ["train", "plan", "seed-sweep", "tune"])
def test_every_verb_says_that_a_key_is_deprecated(rescue: Rescue, verb: str) -> None:
    ended = rescue(verb, "--recipe", "pytorch", "train.precision=float32", "train.clip_grad_norm=1")
    assert "train.clip_grad_norm is deprecated; it is read as optim.max_grad_norm=1" in ended.err
    assert ended.err.count("is deprecated") == 1


def test_without_arguments_the_help_says_how_to_begin(rescue: Rescue) -> None:
    ended = rescue("--help")
    assert ended.code == 0
    assert "Start with: rescue train --recipe quickstart" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


# --- dry runs ---


def test_a_dry_run_prints_the_plan_and_writes_nothing(rescue: Rescue, tmp_path: Path) -> None:
    ended = rescue("train", "--recipe", "pytorch", "--dry-run", "train.epochs=60")
    assert (ended.code, ended.err) == (0, "")
    assert written(tmp_path) == []
    text, plan = ended.out.split("training images: ")
    assert yaml.safe_load(text) == load("pytorch", ["train.epochs=60"]).tree
    assert plan.splitlines() == [
        "1281167",
        "images known by: the data set's name",
        "micro-batches: 8 of 32 images",
        "steps per epoch: 5004",
        "steps: 300240",
        "learning rate at start: 0.1",
        "learning rate at peak: 0.1",
        "learning rate at end: 0.01",
        "processes: 1",
        "device: cpu",
    ]


def test_a_dry_run_as_json_is_one_object(rescue: Rescue) -> None:
    line = ("train", "--recipe", "myrtle-baseline", "--dry-run", "--json")
    plan = json.loads(rescue(*line, "train.precision=float32").out)
    assert plan["recipe"]["name"] == "myrtle-baseline"
    assert plan["steps_per_epoch"] == 97
    assert plan["steps"] == 24 * 97
    assert plan["learning_rate_at_peak"] == pytest.approx(0.4 / 512)


def test_what_the_usual_rules_say_of_a_changed_batch_is_a_warning(rescue: Rescue) -> None:
    line = ("train", "--recipe", "pytorch", "--dry-run", "train.device_batch_size=16")
    noted = rescue(*line, "train.batch_size=512").notes
    assert noted == [
        "warning: train.batch_size is 512 in place of 256, and optim.lr is unchanged. "
        "Its linear rule gives optim.lr=0.2.",
        "warning: micro-batches of 16 in place of 32: batch norm normalises over fewer images.",
    ]
    assert rescue(*line[:-1], "train.batch_size=512", "optim.lr=0.2").notes == []


def recorded(ended: Ended) -> Any:
    """The recipe of a dry run, which is what a run would record."""
    assert ended.code == 0
    return json.loads(ended.out)["recipe"]


@pytest.mark.parametrize(
    ("given", "kept"), [("600", [600, 600]), ("300:50", [300, 50]), ("0300", [300, 300])]
)
def test_a_subset_is_recorded_in_the_recipe(rescue: Rescue, given: str, kept: list[int]) -> None:
    plan = rescue("train", "--recipe", "quickstart", "--dry-run", "--json", "--subset", given)
    assert recorded(plan)["data"]["subset"] == kept


def test_smoke_keeps_the_micro_batches_and_says_what_it_set(rescue: Rescue) -> None:
    ended = rescue("train", "--recipe", "pytorch", "--smoke", "--dry-run", "--json")
    assert ended.notes == [
        "--smoke sets: train.batch_size=64 train.device_batch_size=8 train.epochs=1 "
        "train.steps_per_epoch=2 data.subset=[16, 16] data.holdout=0 train.precision=float32"
    ]
    plan = json.loads(ended.out)
    assert plan["slices"] == "8 of 8 images"
    assert (plan["steps_per_epoch"], plan["steps"]) == (2, 2)
    assert plan["recipe"]["data"]["train_size"] == 224


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["train.epochs=2"], ("train", "epochs"), 2),
        (["--subset", "30:20"], ("data", "subset"), [30, 20]),
        (["data.subset=[40, 8]"], ("data", "subset"), [40, 8]),
        (["train.precision=float64"], ("train", "precision"), "float64"),
        (["train.device_batch_size=32"], ("train", "batch_size"), 128),
        (["data={name: fashion-mini, holdout: 100}"], ("data", "holdout"), 100),
    ],
)
def test_what_the_user_gives_beside_smoke_wins(
    rescue: Rescue, overrides: list[str], key: tuple[str, str], value: object
) -> None:
    line = ("train", "--recipe", "quickstart", "--smoke", "--dry-run", "--json")
    section, name = key
    assert recorded(rescue(*line, *overrides))[section][name] == value


# --- runs ---


def test_a_smoke_run_gives_one_object_with_the_stable_keys(rescue: Rescue, tmp_path: Path) -> None:
    ended = rescue("train", "--smoke", "--json", "--subset", "12:10", "train.epochs=2", *SMALL)
    assert ended.code == 0
    result = json.loads(ended.out)
    assert set(result) == STABLE | OTHER | {"interval", "balanced_accuracy", "balanced_interval"}
    low, high = result["interval"]
    assert low <= result["top1"] <= high
    assert result["sets"][0]["interval"] == [low, high]
    assert (result["epochs"], result["steps"], result["count"]) == (2, 4, 10)
    assert result["recipe"] == "quickstart"
    assert result["protocol"]["precision"] == "float32"
    assert 0 <= result["top1"] <= result["top5"] <= 100
    run = tmp_path / "runs" / "quickstart" / "0"
    assert ended.notes[0] == ended.notes[-1] == result["run"] == str(run.relative_to(tmp_path))
    assert "no --recipe given: using quickstart" in ended.notes
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert kept["data"]["subset"] == [12, 10]
    assert kept["train"]["epochs"] == 2
    written = json.loads((run / "result.json").read_text())
    balanced = result["balanced_interval"]
    assert balanced[0] <= result["balanced_accuracy"] <= balanced[1]
    intervals = {"interval": [low, high], "balanced_interval": balanced}
    assert result == {**written, **intervals, "sets": result["sets"]}
    assert (run / "command.txt").read_text() == (
        "rescue train --smoke --json --subset 12:10 train.epochs=2 model.width=4\n"
    )


def test_runs_are_numbered_from_0_and_a_table_shows_the_result(
    rescue: Rescue, tmp_path: Path
) -> None:
    taken = tmp_path / "runs" / "quickstart" / "4"
    taken.mkdir(parents=True)
    line = ("train", "--recipe", "quickstart", "--smoke", *SMALL)
    ended = rescue(*line)
    assert ended.notes[0] == ended.notes[-1] == "runs/quickstart/5"
    heading, row, *_ = ended.out.splitlines()
    assert heading.split() == [
        "set", "size", "crop", "TTA", "top-1", "%", "bal.", "%", "95", "%", "loss", "images",
    ]  # fmt: skip  # 8 test images of 10 classes: balanced accuracy in place of top-5
    assert row.split()[:4] == ["test", "28", "1", "none"]
    assert max(len(text) for text in ended.out.splitlines()) <= 80
    refused = rescue(*line, "--out", "runs/quickstart/5")
    assert (refused.code, refused.out) == (2, "")
    assert refused.notes[-1] == (
        "error: runs/quickstart/5: holds a run already. Use another --out, or --resume."
    )


def test_resuming_without_a_run_starts_one_only_where_out_says_so(
    rescue: Rescue, tmp_path: Path
) -> None:
    line = ("train", "--recipe", "quickstart", "--smoke", "--resume", *SMALL)
    refused = rescue(*line)
    assert (refused.code, refused.notes[-1]) == (
        2,
        "error: --resume: runs/quickstart has no run to resume. Give --out RUN, or remove --resume "
        "to start one.",
    )
    assert written(tmp_path) == []
    started = rescue(*line, "--out", "job")  # the first of a job script's starts
    assert started.code == 0, started.err
    about = [line for line in started.notes if "step 0" in line]
    assert about == ["job: there is no run to resume; training starts at step 0"]


def test_resuming_a_finished_run_prints_its_result_and_another_recipe_is_refused(
    rescue: Rescue,
) -> None:
    line = ("train", "--recipe", "quickstart", "--smoke", "--json", "--out", "here", *SMALL)
    first = rescue(*line, "--resume")
    assert "here: there is no run to resume; training starts at step 0" in first.notes
    again = rescue(*line, "--resume")
    assert again.code == 0
    assert "starts at step 0" not in again.err
    assert json.loads(again.out) == json.loads(first.out)
    other = rescue(*line, "--resume", "optim.lr=0.5")
    assert (other.code, other.out) == (2, "")
    assert other.notes[-1].startswith("error: here: holds a run of another recipe: optim.lr: ")
    assert other.notes[-1].endswith("-> 0.5. Undo these changes, or use a new --out.")


def test_a_run_needs_no_home_folder_no_colour_and_no_terminal(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "COLUMNS", "TERM")}
    call = [sys.executable, "-m", "rescue_cli", "train", "--smoke", *SMALL]
    done = subprocess.run(
        call, capture_output=True, text=True, cwd=tmp_path, env={**kept, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[0] == done.stderr.splitlines()[-1] == "runs/quickstart/0"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_an_evaluation_counts_its_batches_on_a_terminal_and_nowhere_else(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rescue("train", "--smoke", "--out", "run", "model.width=4").code == 0
    assert "batches evaluated" not in rescue("eval", "run", "eval.batch_size=4").err
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    noted = rescue("eval", "run", "eval.batch_size=4").err
    last = [line for line in noted.splitlines() if "batches evaluated" in line][-1]
    assert re.search(r"(\d+) of \1 batches evaluated", last)


def test_a_torchvision_of_another_torch_is_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys.modules["rescue_cli.cli"], "app", broken)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "error: torchvision is not built for this torch" in capsys.readouterr().err


def test_other_faults_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("of another kind")

    monkeypatch.setattr(sys.modules["rescue_cli.cli"], "app", broken)
    with pytest.raises(RuntimeError, match="of another kind"):
        main()
