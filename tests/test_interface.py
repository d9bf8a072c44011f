"""`import rescue_cli as rescue`: what it exports, and that it does what the command does."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import rescue_cli
import rescue_cli as rescue
from rescue_cli import errors, inference
from tests.conftest import Rescue

CHECKOUT = Path(__file__).parents[1]
SMALL = ["data.subset=[256,64]", "train.epochs=1", "train.log_every=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rescue.Run:
    """Two steps of quickstart."""
    return rescue.train(rescue.load("quickstart", SMALL), tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.Generator(np.random.Philox(3)).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


# --- what is there ---


def test_eleven_names_are_exported_and_each_is_there() -> None:
    assert len(rescue_cli.__all__) == 11
    assert all(getattr(rescue_cli, name) is not None for name in rescue_cli.__all__)
    assert set(rescue_cli.__all__) <= set(dir(rescue_cli))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = rescue_cli.trian  # type: ignore[attr-defined]


def test_a_recipe_is_loaded_without_torch() -> None:
    code = (
        "import sys, rescue_cli as rescue\n"
        "assert 'rescue_cli.api' not in sys.modules\n"
        "assert rescue.load('quickstart', ['train.seed=3']).train.seed == 3\n"
        "assert not {'torch', 'numpy', 'timm', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert citation["version"] == rescue.__version__


# --- load ---


def test_load_expands_network_and_length_as_the_command_does(rescue_command: Rescue) -> None:
    options = ("--model", "resnet18", "--epochs", "10", "optim.lr=0.3")
    shown = rescue_command("train", "--recipe", "pytorch", *options, "--dry-run", "--json")
    loaded = rescue.load("pytorch", ["optim.lr=0.3"], model="resnet18", epochs=10)
    assert json.loads(shown.out)["recipe"] == loaded.tree


@pytest.fixture
def rescue_command(rescue: Rescue) -> Rescue:
    return rescue


# --- train ---


def test_train_does_what_the_command_does_and_prints_nothing(
    rescue_command: Rescue, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ended = rescue_command("train", "--recipe", "quickstart", *SMALL, "--out", "a/run", "--json")
    run = rescue.train(rescue.load("quickstart", SMALL), "b/run")
    assert capsys.readouterr() == ("", "")
    assert run.result["loss"] == json.loads(ended.out)["loss"]
    command, function = (load_file(tmp_path / f / "run" / "model.safetensors") for f in "ab")
    assert all(torch.equal(command[name], function[name]) for name in command)
    folders = [{p.name for p in (tmp_path / f / "run").iterdir()} for f in "ab"]
    assert folders[0] == folders[1]


def test_progress_is_what_the_command_shows(
    rescue_command: Rescue, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*SMALL, "schedule.epochs=[0,0.25,1]"]
    ended = rescue_command("train", "--recipe", "quickstart", *short, "--out", "run")
    rescue.train(rescue.load("quickstart", short), "other", progress=True)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "other"
    assert shown[1:] == ended.notes[1:-1]


def test_the_command_on_record_trains_the_same_recipe(run: rescue.Run) -> None:
    recorded = (run.path / "command.txt").read_text()
    assert recorded == f"rescue train --recipe {run.path}/recipe.yaml\n"
    assert rescue.load(f"{run.path}/recipe.yaml").tree == run.recipe.tree


def test_a_finished_run_is_resumed_at_once_and_refused_otherwise(run: rescue.Run) -> None:
    before = (run.path / "result.json").read_bytes()
    again = rescue.train(run.recipe, run.path, resume=True)
    assert again == run
    assert (run.path / "result.json").read_bytes() == before
    with pytest.raises(errors.UsageError, match="holds a run already"):
        rescue.train(run.recipe, run.path)


@pytest.mark.slow
# torch's elastic agent leaves the log files of its processes to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_processes_train_and_print_nothing(
    run: rescue.Run, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    halves = run.recipe.with_overrides("train.device_batch_size=64")
    shared = rescue.train(halves, tmp_path / "shared", procs=2)
    assert capfd.readouterr() == ("", "")
    assert shared.result["steps"] == 2


def test_wrong_arguments_are_errors_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rescue.RescueError, match="unknown key 'lrr'") as raised:
        rescue.train(rescue.load("quickstart", ["optim.lrr=1"]))
    assert isinstance(raised.value, errors.UsageError)
    with pytest.raises(errors.UsageError, match="Use cpu or cuda"):
        rescue.train("quickstart", device="tpu")
    with pytest.raises(errors.DataError):
        rescue.train(rescue.load("pytorch", ["data.root=none", "train.precision=float32"]))
    (tmp_path / "file").touch()
    with pytest.raises(errors.UsageError, match="is a file"):
        rescue.train("quickstart", "file")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(errors.UsageError, match="once, with procs=2"):
        rescue.train("quickstart")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


# --- a run ---


def test_metrics_are_arrays_with_an_element_for_each_line(run: rescue.Run) -> None:
    steps, tests = run.metrics(), run.metrics("eval")
    assert steps["step"].tolist() == [1, 2]
    assert steps["loss"].dtype == np.float64
    assert tests["set"].tolist() == ["test"]
    assert tests["top1"].tolist() == [run.result["top1"]]


def test_predictions_make_the_accuracy(run: rescue.Run) -> None:
    found = run.predictions()
    right = found["top"][:, 0] == found["labels"]
    assert 100 * right.sum() / len(right) == run.result["top1"]


def test_open_run_wants_a_run(run: rescue.Run, tmp_path: Path) -> None:
    assert rescue.open_run(str(run.path)) == run
    assert run.finished
    with pytest.raises(errors.UsageError, match="holds no run"):
        rescue.open_run(tmp_path)


# --- evaluate and predict ---


def test_evaluate_gives_a_run_as_the_command_does(
    run: rescue.Run, rescue_command: Rescue, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = rescue_command("eval", run.path, "eval.tta=[none,flip]", "--out", "a", "--json")
    found = rescue.evaluate(run, ["eval.tta=[none,flip]"], out="b")
    assert capsys.readouterr() == ("", "")
    assert found.result["sets"] == rescue.open_run("a").result["sets"]
    assert found.result["loss"] == json.loads(ended.out)["loss"]
    assert found.result["top1"] == run.result["top1"]


def test_an_evaluation_that_cannot_be_leaves_nothing(run: rescue.Run, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError):
        rescue.evaluate(run, ["optim.lr=1"], out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_predict_is_the_model_on_preprocessed_images(run: rescue.Run, image: Path) -> None:
    (prediction,) = rescue.predict(run, image, top=10)
    model = run.model()
    pixels = model.preprocess(image)
    assert pixels.shape == (1, 28, 28)
    torch.testing.assert_close(pixels, model.preprocess(Image.open(image)), rtol=0, atol=0)
    probabilities = model(pixels.unsqueeze(0))[0]
    assert probabilities.sum().item() == pytest.approx(1)
    assert {guess["class"]: guess["probability"] for guess in prediction["classes"]} == dict(
        zip(model.classes, probabilities.tolist(), strict=True)
    )


def test_predict_takes_folders_and_patterns_in_batches(
    run: rescue.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "BATCH", 3)
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    for index in range(7):
        pixels = rng.integers(0, 256, (30, 28 + index), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    alone = [rescue.predict(run, folder / f"{index}.png", top=1)[0] for index in range(7)]
    for images in (folder, folder / "[0-9].png"):
        together = rescue.predict(run, images, top=1)
        assert [each["image"] for each in together] == [each["image"] for each in alone]
        for one, other in zip(together, alone, strict=True):
            (mine,), (theirs,) = one["classes"], other["classes"]
            assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    with pytest.raises(errors.DataError, match=r"\*\.gif: no file matches\. Give another pattern"):
        rescue.predict(run, folder / "*.gif")


def test_resuming_wants_to_know_the_run() -> None:
    with pytest.raises(errors.UsageError, match=r"resume: needs to know which run\. Give out, its"):
        rescue.train("quickstart", resume=True)


def test_predict_prints_csv(run: rescue.Run, image: Path, rescue_command: Rescue) -> None:
    ended = rescue_command("predict", run.path, image, "--csv", "--top", "2")
    assert ended.code == 0, ended.err
    head, line = csv.reader(ended.out.splitlines())
    assert head == ["image", "class", "probability", "class_2", "probability_2", "error"]
    (expected,) = rescue.predict(run, image, top=2)
    assert line[:2] == [str(image), expected["classes"][0]["class"]]
    assert float(line[4]) == pytest.approx(expected["classes"][1]["probability"], abs=1e-6)


def test_a_broken_image_has_an_error_and_the_others_their_classes(
    run: rescue.Run, image: Path, rescue_command: Rescue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "BATCH", 2)
    folder = image.parent / "photos"
    folder.mkdir()
    names = [str(folder / name) for name in ("a.png", "b.png", "c.png", "d.png")]
    for name in (names[0], names[3]):
        shutil.copy(image, name)
    for name in names[1:3]:
        Path(name).write_bytes(image.read_bytes()[:-400])
    says = "cannot be decoded: image file is truncated"
    endings = []
    for option in ("--json", "--csv", "--top=2"):
        ended = rescue_command("predict", run.path, folder, option)
        assert ended.code == 3
        endings.append(ended.out)
        assert (
            f"error: 2 of 4 images cannot be decoded; the first is {names[1]}: {says}" in ended.err
        )
    as_json, as_csv, as_table = endings
    found = json.loads(as_json)
    assert [each["image"] for each in found] == names
    assert [bool(each["classes"]) for each in found] == [True, False, False, True]
    assert [says in each.get("error", "") for each in found] == [False, True, True, False]
    rows = list(csv.DictReader(as_csv.splitlines()))
    assert [says in row["error"] for row in rows] == [False, True, True, False]
    assert [row["class"] for row in rows] == [
        each["classes"][0]["class"] if each["classes"] else "" for each in found
    ]
    assert as_table.count("cannot be decoded") == 2
    with pytest.raises(errors.DataError, match="cannot be decoded"):
        rescue.predict(run, folder)
    assert "error" in rescue.predict(run, folder, keep_broken=True)[1]
    alone = rescue_command("predict", run.path, names[1])
    assert (alone.code, f"error: {names[1]}: {says}" in alone.err) == (3, True)
    assert (
        f"{folder}/e.png: file not found"
        in rescue_command("predict", run.path, names[0], f"{folder}/e.png").err
    )


# --- compare ---


def test_compare_gives_what_the_command_prints(rescue_command: Rescue) -> None:
    sides = ("79.72±0.10/100", "79.60±0.12/10")
    printed = json.loads(rescue_command("compare", *sides, "--want", "0.1", "--json").out)
    found = rescue.compare(*sides, want=0.1)
    assert printed == {k: json.loads(json.dumps(found[k])) for k in printed if k != "expected"} | {
        "expected": []
    }


def test_compare_takes_runs_and_refuses_one_twice(run: rescue.Run) -> None:
    with pytest.raises(errors.UsageError, match="would count twice"):
        rescue.compare(run, run)
