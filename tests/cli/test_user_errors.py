"""What people do by mistake: it is refused, says what is wrong, and leaves nothing half done."""

import errno
import fcntl
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from rescue_cli import __version__
from rescue_cli import recipe as recipes
from rescue_cli.__main__ import main as started
from rescue_cli.analysis.sides import Images
from rescue_cli.errors import DataError, InUseError, UsageError
from rescue_cli.metrics.names import finite_or_none
from rescue_cli.rundir import RunDirectory, read_json, read_metrics
from rescue_cli.runs import pool, worker
from rescue_cli.runs.directory import prepare, remove_unstarted, reserve
from rescue_cli.runs.environment import describe_environment
from rescue_cli.runs.failure import record_failure
from rescue_cli.runs.processes import run_directory
from rescue_cli.sections.data.decode import decode_with_pil, describe_error
from tests.conftest import Rescue
from tests.helpers.synthetic_runs import made_run

TINY = (
    "model.width=4", "data.subset=[256,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=2",
)  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of one's own, four images of each in `train/` and `val/`."""
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                grey = np.full((40, 40, 3), 60 + 90 * number + i, np.uint8)
                Image.fromarray(grey).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_the_version_is_said(rescue: Rescue) -> None:
    ended = rescue("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"rescue {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("predict run a.jpg --csv out.csv", "Write --csv > out.csv"),
        ("report run --markdown table.md", "Write --markdown > table.md"),
        ("train --json result.json", "Write --json > result.json"),
    ],
)
def test_a_file_after_a_flag_that_prints_is_told_how_to_be_written(
    words: str, cure: str, rescue: Rescue
) -> None:
    *_, option, _ = words.split()
    ended = rescue(*words.split())
    assert ended.code == 2
    assert f"{option} takes no file; it prints. {cure}\n" in ended.err


def test_a_run_directory_is_not_a_folder_with_other_files(rescue: Rescue, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    for options in ((), ("--recipe", "quickstart", "--resume")):
        ended = rescue("train", "--out", "thesis", *options, *TINY)
        assert ended.code == 2
        assert "thesis: is not a run directory; it holds chapter.tex. Use a new --out." in ended.err
    assert [each.name for each in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    (tmp_path / "logged").mkdir()
    (tmp_path / "logged" / "said.log").write_text("")
    assert rescue("train", "--out", "logged", *TINY).code == 0


def test_a_start_without_its_data_leaves_no_folder(
    rescue: Rescue, photos: Path, tmp_path: Path
) -> None:
    words = ("--recipe", "imagenette-5", "train.precision=float32")
    ended = rescue("train", *words, f"data.root={photos}")
    assert ended.code == 3
    assert (
        f"{photos}/train: no folder is a class of imagenette (cat is not). "
        "For classes of your own use data.name=folder." in ended.err
    )
    assert list((tmp_path / "runs" / "imagenette-5").iterdir()) == []
    again = rescue("seed-sweep", *words, f"data.root={photos}", "--seeds", "2", "--out", "sweep")
    assert again.code == 3
    assert again.err.count("no folder is a class") == 1
    assert not list((tmp_path / "sweep").glob("seed-*"))


@pytest.mark.slow
def test_a_start_through_torchrun_that_failed_can_be_repeated(rescue: Rescue, photos: Path) -> None:
    words = ("--recipe", "imagenette-5", "train.precision=float32", f"data.root={photos}")
    for _ in range(2):
        ended = rescue("train", *words, "--procs", "1", "--out", "run")
        assert ended.code == 3, ended.err
        assert "no folder is a class of imagenette" in ended.err


def test_a_run_that_others_wait_for_records_what_it_lacks(
    rescue: Rescue, photos: Path, tmp_path: Path
) -> None:
    """As a job of SLURM, whose folder the sweep has prepared and watches."""
    words = [
        "data={name: folder, root: later}", "data.train_size=32", "eval.sizes=[32]",
        "train.precision=float32", "train.batch_size=8", "train.device_batch_size=8",
        "train.epochs=1", "model={name: test_resnet}",
    ]  # fmt: skip
    run = RunDirectory(tmp_path / "run")
    reserve(run.path, recipes.load("pytorch", words), resume=True)
    ended = rescue("train", "--resume", "--out", "run")
    assert ended.code == 3
    word = read_json(run.failure)
    assert word["exit_code"] == 3
    assert ended.notes[-1] == f"error: {word['message']}"
    photos.rename(tmp_path / "later")
    again = rescue("train", "--resume", "--out", "run")
    assert again.code == 0, again.err
    assert "run: there is no checkpoint to resume; training starts at step 0" in again.notes
    assert not run.failure.exists()


@pytest.mark.slow
def test_a_worker_writes_no_failure_record_for_another_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    recipe = recipes.load("quickstart", TINY)
    facts = describe_environment(
        verb="train", seed=0, device="cpu", procs=1, workers=0, cache=tmp_path / "cache"
    )
    prepare(run.path, recipe, facts, resume=False)
    with run.lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert worker._attempt(run) == 2
        with pytest.raises(InUseError):
            list(pool.run_all([run.path], 1))
        with pytest.raises(InUseError):
            run_directory(run.path, 1)
    assert not run.failure.exists()


def test_a_failure_record_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    run = RunDirectory(tmp_path)
    with pytest.raises(DataError), record_failure(run):
        raise DataError("why")
    assert not run.failure.exists()


def test_ctrl_c_before_the_command_line_is_imported_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupts:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "rescue_cli.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "rescue_cli.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupts, *sys.meta_path])
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        started()
    assert isinstance(ended.value, SystemExit)
    assert (ended.value.code, *capsys.readouterr()) == (130, "", "interrupted\n")


def test_ctrl_c_in_a_verb_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "load", interrupted)
    monkeypatch.setattr(sys, "argv", ["rescue", "train", "--recipe", "quickstart", "--dry-run"])
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        started()
    assert isinstance(ended.value, SystemExit)
    assert (ended.value.code, *capsys.readouterr()) == (130, "", "interrupted\n")


def test_what_another_process_is_at_work_on_is_not_taken_back(tmp_path: Path) -> None:
    recipe = recipes.load("quickstart")
    run = RunDirectory(tmp_path / "run")
    assert reserve(run.path, recipe, resume=True)
    assert not reserve(run.path, recipe, resume=True), "it is the first call's"
    with run.lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_unstarted(run.path)
        assert run.recipe.exists()
    remove_unstarted(run.path)
    assert not run.path.exists()


def test_one_folder_by_two_names_is_one_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    near, far = (
        recipes.load("pytorch", [f"data.root={root}"]) for root in ("photos", tmp_path / "photos")
    )
    assert reserve(tmp_path / "run", near, resume=True)
    assert not reserve(tmp_path / "run", far, resume=True)
    other = recipes.load("pytorch", ["data.root=elsewhere", "train.seed=1"])
    with pytest.raises(UsageError, match=r"another recipe: train\.seed: 0 -> 1\. Undo"):
        reserve(tmp_path / "run", other, resume=True)
    assert recipes.recipe_in(tmp_path / "run") == near


def test_test_images_are_the_same_by_data_set_set_and_number() -> None:
    nette, own = Images("imagenette", "val", 3925), Images("folder", "val", 3925)
    claim = Images("imagenette")
    assert nette.may_equal(own)
    assert claim.may_equal(nette)
    assert claim.may_equal(own)
    assert not nette.may_equal(Images("imagenette", "val", 100))
    assert not nette.may_equal(Images("imagenet", "val", 3925))
    assert not claim.may_equal(Images("imagenette", "holdout", 500))
    assert not claim.may_equal(Images("imagenet"))


def test_class_folders_one_level_down_are_pointed_at(rescue: Rescue, photos: Path) -> None:
    ended = rescue("bench", "input", "--data", photos)
    assert ended.code == 3
    assert f"{photos}: holds splits (train, val) and no classes." in ended.err
    assert f"give {photos}/train as data.train_root=" in ended.err


def test_a_loss_that_is_not_finite_at_the_end_is_a_run_that_diverged(
    rescue: Rescue, tmp_path: Path
) -> None:
    """The rate is 0 until the last update, after which no training loss is read."""
    schedule = "schedule={name: piecewise, epochs: [0, 1.8, 2], factors: [0, 0, 1]}"
    ended = rescue("train", "--out", "run", *TINY, "optim.lr=1.0e+25", schedule, "eval.every=1")
    assert ended.code == 4, ended.err
    assert re.search(r"the loss on test is (nan|inf) after the last step, 16\. Lower", ended.err)
    assert not (tmp_path / "run" / "result.json").exists()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [x["step"] for x in lines if x["kind"] == "eval"] == [8]
    assert [finite_or_none(value) for value in (math.nan, math.inf, None, 2.5)] == [
        None,
        None,
        None,
        2.5,
    ]


def test_an_evaluation_refuses_what_it_would_not_read_and_what_would_mislead_it(
    rescue: Rescue, photos: Path
) -> None:
    assert rescue("train", "--out", "run", *TINY).code == 0
    for change, message in (
        ("optim.lr=3", "optim.lr: has no effect on an evaluation. Remove it."),
        (
            "averaging={name: ema, decay: 0.9, every: 1}",
            "averaging: has no effect on an evaluation",
        ),
        ("data.holdout=100", "data.holdout: 100: run was trained on these images."),
        ("eval.sizes=[1]", "eval.sizes: 1 (or data.train_size): images are too small"),
    ):
        ended = rescue("eval", "run", change)
        assert ended.code == 2, ended.err
        assert message in ended.err
    assert rescue("train", "--out", "held", *TINY, "data.holdout=100").code == 0
    other = rescue("eval", "held", "data.fold=1")
    assert other.code == 2
    assert "data.holdout: 100, data.fold: 1: held was trained on these images." in other.err
    grey = rescue("eval", "run", "data.name=folder", f"data.root={photos}")
    assert grey.code == 2
    assert "run takes images with 1 channel(s), and those of folder have 3." in grey.err


def test_classes_that_a_network_does_not_know_are_refused_or_told(
    rescue: Rescue, photos: Path, tmp_path: Path
) -> None:
    words = (
        "data.name=folder", f"data.root={photos}", "data.train_size=32", "eval.sizes=[32]",
        "train.precision=float32", "train.batch_size=8", "train.device_batch_size=8",
        "train.epochs=1", "model={name: test_resnet}",
    )  # fmt: skip
    made = rescue("train", "--recipe", "pytorch", "--out", "run", *words)
    assert made.code == 0, made.err
    for split in ("train", "val"):
        (photos / split / "dog").rename(photos / split / "wolf")
    refused = rescue("eval", "run")
    assert refused.code == 3
    assert f"{photos}/val/wolf: not one of the classes. Known: cat, dog. Rename" in refused.err
    assert "data.unknown_classes=skip" in refused.err
    for split in ("train", "val"):
        (photos / split / "cat").rename(photos / split / "lynx")
    output = rescue("eval", "run", "--json")  # not one name is known: other names, in their order?
    assert output.code == 0
    assert (
        "the first that differs is 'cat' in place of 'lynx'. Classes are matched by" in output.err
    )
    assert json.loads(output.out)["top1"] == read_json(tmp_path / "run" / "result.json")["top1"]
    for split in ("train", "val"):
        (photos / split / "owl").mkdir()
        (photos / split / "lynx" / "0.png").rename(photos / split / "owl" / "0.png")
    refused = rescue("eval", "run")
    assert refused.code == 2
    assert "has 2 classes and the data has 3;" in refused.err
    assert "To train it on these: rescue transfer." in refused.err


def test_why_a_file_cannot_be_read_is_said_without_pythons_own_words(tmp_path: Path) -> None:
    with pytest.raises(UnidentifiedImageError) as unknown:
        decode_with_pil(b"no image")
    assert describe_error(unknown.value) == "not a readable image"
    with pytest.raises(IsADirectoryError) as folder:
        tmp_path.read_bytes()
    assert describe_error(folder.value) == "Is a directory"


def test_one_run_is_compared_with_a_number_of_percent_alone(rescue: Rescue, tmp_path: Path) -> None:
    made_run(tmp_path / "run", 40.0, overrides=TINY)
    when = rescue("compare", "run", "--to", "5")
    assert when.code == 0, when.err
    assert "run: 1 of 1 run reached 5 %" in when.out
    alone = rescue("compare", "run", "--check-expected")
    assert alone.code == 2
    assert "quickstart: this recipe has no published accuracy." in alone.err
