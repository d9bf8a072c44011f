"""`rescue transfer` without a recipe: what it chooses, on which images, and what it prints."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rescue_cli import recipe as recipes
from rescue_cli.analysis import transfer_search
from rescue_cli.analysis.image_tables import doubtful_labels, read_image_table, wrong_images
from rescue_cli.analysis.transfer_search import TransferSearch
from rescue_cli.errors import DataError
from rescue_cli.rundir import CROSS_VALIDATED, RunDirectory, read_result
from tests.conftest import Rescue

SEEN = ("data.train_size=32", "eval.sizes=[32]", "eval.interpolation=bilinear")
BATCH = ("train.batch_size=8", "train.device_batch_size=8")
MISLABELLED = "train/dark/7.png"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes that differ in brightness; one dark training image is bright."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for number, name in enumerate(("bright", "dark")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                wrong = f"{split}/{name}/{index}.png" == MISLABELLED
                low = 150 if (number == 0) != wrong else 20
                pixels = rng.integers(low, low + 60, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_a_head_is_fitted_at_the_size_that_suits_images_it_has_not_seen(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rescue_cli.analysis.image_tables", "rescue_cli.cli.transfer"):
        monkeypatch.setattr(f"{module}.SURE", 0.6)  # of the wrong label it is surer by far
    monkeypatch.setattr(TransferSearch, "_affordable_epochs", lambda *_: 0)  # on any machine
    monkeypatch.setattr(transfer_search, "can_pay", lambda _: True)
    call = ("transfer", "--from", weights, "--to", photos, "--out", "out", "--minutes", "1")
    ended = rescue(*call, *SEEN)
    assert ended.code == 0, ended.err
    assert "20 training images of 2 classes (the smallest has 10), 10 test images" in ended.err
    assert (
        "fine-tuning: not tried: 3 epochs, twice, take longer than is left. "
        "To try it: about --minutes "
    ) in ended.err
    (final,) = (tmp_path / "out").glob("*/seed-0")
    result = read_result(RunDirectory(final))
    assert result["top1"] == 100
    assert "10 of 10 right; 95 %: 72.2 to 100.0; one image is 10 points" in ended.out
    words = " ".join(ended.out.split())
    table = (final / f"predictions/{CROSS_VALIDATED}.csv").relative_to(tmp_path)
    assert "wrong: 0 labels that look wrong (another class has 60 % or more, from" in words
    assert f"fitted without the image): 1 ({table}) {MISLABELLED}: dark, predicted" in words
    assert "other training images that it classifies wrong: 0 Next:" in words
    assert f"  {MISLABELLED}: dark, predicted bright (" in ended.out
    run = final.relative_to(tmp_path)
    assert f"Next: rescue predict {run} IMAGE\n      rescue report {run}\n" in ended.out
    assert " s in all\n" in ended.out
    assert f"--from {weights}: test_resnet, a new classifier" in ended.notes
    assert f"{result['sets'][0]['size']} px chosen: " in ended.err
    assert "is the lowest of these losses" in ended.err
    assert re.search(r"32 px: computing the features of 20 images; \d+ s of 1 min used", ended.err)
    # The search saw the training folder alone, the final run all of it
    probes = (tmp_path / "out/search").glob("probe-*")
    searched = [read_result(RunDirectory(path)) for path in probes]
    assert searched
    assert {entry["set"] for each in searched for entry in each["sets"]} == {"holdout"}
    assert result["fit"]["cross_validation"]["count"] == 20
    before, after = load_file(weights), load_file(final / "model.safetensors")
    kept = [name for name in before if not name.startswith("fc.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    again = rescue(*call, *SEEN, "--json")
    assert again.code == 0, again.err
    assert "classifier fitted to" not in again.err, "all of it was there"
    assert f"{run}: finished before with --minutes 1; it is not trained again" in again.err
    assert "new --out" not in again.err
    longer = rescue(*call[:-1], "7", *SEEN)
    assert "for --minutes 7 give a new --out" in longer.notes
    assert " in all\n" not in longer.out
    assert json.loads(again.out)["transfer"]["chosen"] == "probe"


def test_a_folder_without_a_split_has_a_part_of_its_images_held_out_for_the_test(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path
) -> None:
    flat = (photos / "train").rename(tmp_path / "flat")
    call = ("transfer", "--from", weights, "--to", flat, "--out", "out", "--minutes", "0")
    ended = rescue(*call, *SEEN)
    assert ended.code == 0, ended.err
    line = (
        f"{flat}: has no test split such as val/; 4 of 20 images, 2 per class (a fifth of the "
        "smallest), drawn at random with a fixed seed, are held out as the test set: "
        "data.test_holdout=4; for a narrower interval give more, such as data.test_holdout=10"
    )
    assert ended.notes.count(line) == 1
    least = "0 min (--minutes): only what must be done; no larger images, no fine-tuning"
    assert least in ended.err
    assert "16 training images of 2 classes (the smallest has 8), 4 test images" in ended.err
    assert "test set: 4 images kept out of training\n" in ended.out
    (final,) = (tmp_path / "out").glob("*/seed-0")
    protocol = read_result(RunDirectory(final))["protocol"]
    assert protocol["held_out"] == "4 of the training images, equally many per class, fixed seed"
    tested = {row.file for row in read_image_table(final / "predictions/holdout-test.csv")}
    assert len(tested) == 4
    probe = tmp_path / "out/search/probe-32/predictions"
    seen = {row.file for name in ("holdout", CROSS_VALIDATED)
            for row in read_image_table(probe / f"{name}.csv")}  # fmt: skip
    assert len(seen) == 16
    assert not seen & tested, "nothing was chosen by a test image"
    assert "was trained on" not in rescue("eval", final, "--out", "again").err
    trained = rescue("eval", final, "data.test_holdout=0", f"data.test_root={flat}")
    told = "was trained on 16 of these 20 images, by their names and sizes"
    assert told in trained.err
    for file in sorted((flat / "dark").iterdir())[1:]:
        file.unlink()
    lonely = rescue(*call[:-3], "other", *SEEN)
    assert lonely.code == 3
    assert "the class 'dark' has one image, so none of it can be held out." in lonely.err


def test_runs_before_and_after_photographs_were_added_are_compared_on_common_ones(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path
) -> None:
    """Each class has 10 photographs and then 15: the test set grows from 4 to 6."""
    flat = (photos / "train").rename(tmp_path / "flat")
    call = ("transfer", "--from", weights, "--to", flat, *SEEN, "--minutes", "0", "--out")
    assert rescue(*call, "old").code == 0
    for number in range(5):
        for name in ("bright", "dark"):
            shutil.copy(flat / name / f"{number}.png", flat / name / f"new-{number}.png")
    assert "was trained on other data" in rescue(*call, "old").err
    assert rescue(*call, "new").code == 0
    old, new = "old/small/seed-0", "new/small/seed-0"
    right = {run: {row.file: row.label == row.predicted
                   for row in read_image_table(Path(run) / "predictions/holdout-test.csv")}
             for run in (old, new)}  # fmt: skip
    common = right[old].keys() & right[new].keys()
    assert 0 < len(common) < 6
    ended = rescue("compare", old, new, "--json")
    assert f"{len(common)} in common." in ended.err
    found = json.loads(ended.out)
    assert found["images"] == len(common)
    wanted = [100 * sum(right[run][file] for file in common) / len(common) for run in (old, new)]
    assert [side["mean"] for side in found["sides"]] == pytest.approx(wanted)
    assert rescue("report", old, new, "--out", "page.html").code == 0
    cure = f"in common. On those in common: rescue compare {old} {new}"
    assert cure in (tmp_path / "page.html").read_text().replace("<wbr>", "")
    larger = rescue("eval", old, "data.test_holdout=6")
    assert "was trained on some of these images. Remove data.test_holdout" in larger.err
    again = rescue("eval", new, "data.test_holdout=4")
    assert again.code == 0, again.err


def test_one_class_is_no_classification(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "train/bright", tmp_path / "only/bright")
    ended = rescue("transfer", "--from", weights, "--to", tmp_path / "only", *SEEN)
    assert ended.code == 3
    assert "has one class (bright), and a classifier needs at least two." in ended.err


def test_other_photographs_are_not_given_an_earlier_choice_or_result(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path
) -> None:
    shutil.copy(photos / "train/dark/2.png", photos / "train/bright/same.png")
    flat = (photos / "train").rename(tmp_path / "flat")
    call = ("transfer", "--from", weights, "--to", flat, *SEEN, "--minutes", "0", "--out")
    first = rescue(*call, "out")
    assert first.code == 0, first.err
    twice = f"warning: one image in two classes: {flat}/bright/same.png and {flat}/dark/2.png."
    assert twice in first.err
    (final,) = (tmp_path / "out").glob("*/seed-0")
    (flat / "bright/same.png").unlink()
    for changed in (final, tmp_path / "out/search/probe-32"):
        again = rescue(*call, "out")
        assert again.code == 3
        assert f"{changed.relative_to(tmp_path)}: was trained on other data" in again.err
        assert "start a new run with another --out" in again.err
        if final.exists():
            assert "train: 16 images, and was 17: 1 missing, the first bright/same.png" in again.err
            shutil.move(final, tmp_path / "first")
    assert "two classes" not in rescue(*call, "same-tests").err
    (same,) = (tmp_path / "same-tests").glob("*/seed-0")
    assert "McNemar's test on 4 images" in rescue("compare", tmp_path / "first", same).out
    tested = [row.file for row in read_image_table(same / "predictions/holdout-test.csv")]
    Path(tested[0]).unlink()
    assert rescue(*call, "other").code == 0
    (other,) = (tmp_path / "other").glob("*/seed-0")
    ended = rescue("compare", same, other)
    assert "McNemar's test on 2 images" in ended.out
    assert "was measured on folder holdout-test (4 images)" in ended.err
    assert "folder holdout-test (2 images), 2 in common." in ended.err


def test_a_folder_that_is_not_there_is_answered_with_one_beside_it(
    rescue: Rescue, photos: Path, weights: Path
) -> None:
    ended = rescue("transfer", "--from", weights, "--to", photos.with_name("photo"))
    assert ended.code == 2
    assert f"photo: no such folder. Did you mean {photos}?" in ended.err
    assert "no such folder.\n" in rescue("transfer", "--from", weights, "--to", "/no/where").err


def test_a_broken_test_image_is_named_before_anything_is_chosen(
    rescue: Rescue, photos: Path, weights: Path
) -> None:
    for name in ("dark/1", "bright/2"):
        (photos / f"val/{name}.png").write_bytes(b"no image")
    ended = rescue("transfer", "--from", weights, "--to", photos, *SEEN, "--minutes", "0")
    assert ended.code == 3
    assert "2 images cannot be decoded" in ended.err
    assert "computing the features" not in ended.err


def test_a_head_fitted_by_recipe_is_described_as_without_one(
    rescue: Rescue, photos: Path, weights: Path
) -> None:
    call = ("transfer", "--from", weights, "--to", photos, "--recipe", "transfer-probe", *SEEN)
    ended = rescue(*call, "--out", "out")
    assert ended.code == 0, ended.err
    assert "10 of 10 right; 95 %: 72.2 to 100.0; one image is 10 points" in ended.out
    assert "Next: rescue predict out/small/seed-0 IMAGE" in ended.out


def test_a_broken_training_image_is_called_one(rescue: Rescue, photos: Path, weights: Path) -> None:
    (photos / "train/dark/3.png").write_bytes(b"no image")
    (photos / "train/dark/notes.txt").write_bytes(b"a text")
    ended = rescue("transfer", "--from", weights, "--to", photos, "--out", "out", *SEEN)
    assert ended.code == 3
    assert (
        "train/dark/3.png: cannot be decoded: not a readable image. Training images whose features "
        "are computed are never replaced: repair or remove the file."
    ) in ended.err
    assert ended.err.count("skipped files: 1 without an image extension (1 .txt)") == 1


def test_weights_of_another_network_are_refused_before_anything_is_trained(
    rescue: Rescue, photos: Path, weights: Path
) -> None:
    call = ("transfer", "--from", weights, "--model", "test_vit", "--to", photos, *SEEN)
    for more in ((), ("--recipe", "transfer-linear")):
        ended = rescue(*call, *more, "--dry-run")
        assert ended.code == 2
        assert "does not fit test_vit: " in ended.err
        assert "give model.name=test_resnet, or --model test_resnet." in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.01, 0.5])
def test_the_network_is_trained_where_held_out_images_say_that_it_pays(
    p: float,
    rescue: Rescue,
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TransferSearch, "_affordable_epochs", lambda *_: 3)
    monkeypatch.setattr(transfer_search, "can_pay", lambda _: True)
    monkeypatch.setattr(transfer_search, "mcnemar_test", lambda *_: (0, 8, p))
    call = ("transfer", "--from", weights, "--to", photos, "--out", "out", "--minutes", "9")
    ended = rescue(*call, *SEEN, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["transfer"]
    assert found["chosen"] == ("fine-tuning" if p < 0.05 else "probe")
    (final,) = (tmp_path / "out").glob("*/seed-0")
    recipe = recipes.recipe_in(final)
    before, after = load_file(weights), load_file(final / "model.safetensors")
    first = next(name for name in before if name.endswith(".weight"))
    same = torch.equal(before[first], after[first])
    assert same == recipe.model.frozen == (p >= 0.05)
    judged = recipes.recipe_in(tmp_path / "out/search/fine-tuning")
    assert (judged.data.holdout, recipe.data.holdout) == (4, 0)
    assert Path(judged.model.weights or "").name == "probe-32", "it begins with the fitted head"
    if p < 0.05:
        assert (recipe.train.epochs, recipe.train.batch_size) == (3, 8)


def test_a_step_has_at_most_as_many_images_as_are_left_beside_those_held_out(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransferSearch, "_affordable_epochs", lambda *_: 3)
    monkeypatch.setattr(transfer_search, "can_pay", lambda _: True)
    for folder in (photos / "train").iterdir():
        for file in sorted(folder.iterdir())[4:]:
            file.unlink()
    ended = rescue("transfer", "--from", weights, "--to", photos, "--out", "out", *SEEN)
    assert ended.code == 0, ended.err
    assert recipes.recipe_in(tmp_path / "out/search/fine-tuning").train.batch_size == 6


@pytest.mark.parametrize(("wrong", "can"), [(0, False), (5, False), (6, True), (30, True)])
def test_fine_tuning_is_tried_where_all_images_right_would_be_a_gain(wrong: int, can: bool) -> None:
    """Six gained and none lost: p = 2 / 2^6 = 0.031."""
    assert transfer_search.can_pay(np.arange(30) >= wrong) == can


def test_fine_tuning_that_cannot_win_is_not_tried_and_no_minutes_are_advised(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransferSearch, "_affordable_epochs", lambda *_: 3)
    call = ("transfer", "--from", weights, "--to", photos, "--out", "out", "--minutes", "0")
    ended = rescue(*call, *SEEN, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["transfer"]["fine_tuning"]
    assert found["pays"] is False
    assert (
        f"fine-tuning: not tried: the probe has {found['probe_right']} of {found['count']} "
        "held-out images right, and even all of them right would be no gain beyond noise"
    ) in ended.notes
    assert "To try it" not in ended.err
    assert not (tmp_path / "out/search/fine-tuning").exists()


@pytest.mark.parametrize("minutes", [0, 1, 5])
@pytest.mark.parametrize("seconds", [3.0, 20.0, 60.0])
def test_the_minutes_that_are_advised_are_enough_and_not_many_more(
    seconds: float, minutes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls whose clock goes by what the probes of each size take."""
    monkeypatch.setattr(TransferSearch, "_hindrance", lambda *_: "")
    probe, fine = recipes.load("transfer-probe"), recipes.load("transfer-layerwise")

    def call(name: str, minutes: float) -> tuple[int, int]:
        """The epochs that it would train, and the minutes that it advises."""
        search = TransferSearch(probe, fine, tmp_path / name, "cpu", 0, minutes, 60 * minutes)
        search.images, search.tests = 300, 30
        clock = 0.0
        for size in (224, 256, 288):
            takes = seconds * (size / 224) ** 2
            if size == 224 or takes <= 0.25 * 60 * minutes:
                parts = {"seconds_prepare": takes, "seconds_train": 2.0, "seconds_eval": 0.1}
                file = tmp_path / name / f"search/probe-{size}/result.json"
                file.parent.mkdir(parents=True)
                file.write_text(json.dumps(parts))
                clock += sum(parts.values())
        monkeypatch.setattr(transfer_search, "time", SimpleNamespace(monotonic=lambda: clock))
        return search._affordable_epochs(224), search._minutes_needed(224)

    _, advised = call("first", minutes)
    assert call("second", advised)[0] >= 3
    assert call("third", advised / 1.2 - 1)[0] < 3


def test_too_few_images_are_not_compared(
    rescue: Rescue, photos: Path, weights: Path, tmp_path: Path
) -> None:
    for file in sorted((photos / "train/dark").iterdir())[1:]:
        file.unlink()
    call = ("transfer", "--from", weights, "--to", photos, "--out", "out", *SEEN)
    ended = rescue(*call)
    assert ended.code == 0, ended.err
    assert "fewer than 3 images to learn from: no sizes are compared" in ended.err
    assert not (tmp_path / "out/search").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--minutes", "3", "--recipe", "transfer-linear"), "--minutes: is for one trained --from"),
        (("--lr-from", "x"), "--lr-from: is for a --recipe that takes steps."),
        (("--jobs", "2"), "--jobs: a transfer without --recipe trains one by one."),
        (("data.holdout=4",), "data.holdout: a transfer without --recipe decides this by itself."),
        (("train.epochs=3",), "train.epochs: a transfer without --recipe decides this"),
        (("optim.weight_decay=0.1",), "optim: a transfer without --recipe decides this"),
    ],
)
def test_options_of_another_way_to_transfer_are_refused(
    words: tuple[str, ...], message: str, rescue: Rescue, photos: Path, weights: Path
) -> None:
    ended = rescue("transfer", "--from", weights, "--to", photos, *words)
    assert ended.code == 2
    assert message in ended.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ((), "transfer-probe"),
        (("--recipe", "transfer-layerwise", "~optim.layer_decay", *BATCH), "transfer-layerwise"),
    ],
)
def test_a_dry_run_trains_nothing(
    more: tuple[str, ...], name: str, rescue: Rescue, photos: Path, weights: Path, tmp_path: Path
) -> None:
    ended = rescue("transfer", "--from", weights, "--to", photos, *more, "--dry-run", *SEEN)
    assert ended.code == 0, ended.err
    assert f"name: {name}" in ended.out
    assert not (tmp_path / "runs").exists()


def test_a_table_of_images_names_the_wrong_ones_the_surest_first(tmp_path: Path) -> None:
    table = tmp_path / f"{CROSS_VALIDATED}.csv"
    rows: list[Any] = [
        ("file", "label", "predicted", "probability"),
        ("a.jpg", "cat", "cat", 0.99), ("b, c.jpg", "cat", "dog", 0.6),
        ("d.jpg", "dog", "cat", 0.95), ("e.jpg", "cat|dog", "dog", 0.9),
    ]  # fmt: skip
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert [row.file for row in wrong_images(table)] == ["d.jpg", "b, c.jpg"]
    assert [row.file for row in doubtful_labels(table)] == ["d.jpg"]
    assert str(wrong_images(table)[0]) == "d.jpg: dog, predicted cat (95.0 %)"
    table.write_text(table.read_text() + "f.jpg,cat\n")
    with pytest.raises(DataError, match=r"line 6: is not a prediction\. Remove the file\."):
        wrong_images(table)
