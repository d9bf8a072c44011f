"""`rescue eval` and `rescue predict` on real photographs, through the command."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rescue_cli.cli.eval import _other_images
from rescue_cli.errors import UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.rundir import RunDirectory, read_json
from rescue_cli.sections import data
from rescue_cli.sections.data import Files
from tests.conftest import Rescue

NETWORK = "tf_efficientnet_lite0"
# What timm's own transform, model and cross-entropy say of the 256 photographs (timm 1.0.31)
TIMM = {"right": 223, "right_in_5": 250, "loss": 0.5628237}


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """One processor core, so that a process has one thread wherever it runs: equal to the bit."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.fixture
def network(real_data: Path) -> Path:
    return real_data / "tf_efficientnet_lite0-imagenet.safetensors"


def losses_of(run: Path, name: str) -> NDArray[np.float64]:
    with np.load(RunDirectory(run).predictions(name)) as file:
        found: NDArray[np.float64] = file["losses"]
    return found


# --- 256 photographs, a network trained on ImageNet ---


@pytest.mark.slow
def test_the_network_is_as_right_as_timm_has_it_and_the_fast_decoder_barely_differs(
    rescue: Rescue, network: Path, imagenet_sample: Path, tmp_path: Path
) -> None:
    results = {}
    for decoder in ("pil", "fast"):
        ended = rescue(
            *("eval", network, "--model", NETWORK, "--json", "--out", tmp_path / decoder),
            *("data.name=imagenet", f"data.test_root={imagenet_sample}", "eval.batch_size=32"),
            *([] if decoder == "pil" else [f"data.eval_decoder={decoder}"]),
        )
        assert ended.code == 0, ended.err
        results[decoder] = result = json.loads(ended.out)
        assert ended.err.splitlines()[0] == (
            f"preprocessing of {NETWORK}: mean 0.5 0.5 0.5, std 0.5 0.5 0.5, size 224, "
            "crop 0.875, interpolation bicubic (by the file's metadata)"
        )
        assert result["count"] == 256
        assert result["top1"] == 100 * TIMM["right"] / 256
        assert result["top5"] == 100 * TIMM["right_in_5"] / 256
        assert result["protocol"] == {
            "data": "imagenet",
            "set": "val",
            "size": 224,
            "crop": 0.875,
            "interpolation": "bicubic",
            "decoder": decoder,
            "tta": "none",
            "weights": str(network),
            "model": NETWORK,
            "precision": "float32",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "preprocessing": dict.fromkeys(
                ("mean", "std", "size", "crop", "interpolation"), "metadata"
            ),
        }
    assert results["pil"]["loss"] == pytest.approx(TIMM["loss"], abs=2e-6)
    # The fast decoder: not one answer differs, the mean loss by 3e-5, an image's by 0.015
    assert results["fast"]["loss"] - results["pil"]["loss"] == pytest.approx(-2.8e-5, abs=1e-5)
    apart = losses_of(tmp_path / "fast", "val") - losses_of(tmp_path / "pil", "val")
    assert 0 < np.abs(apart).max() < 0.02


def test_predict_names_imagenets_classes_in_words(
    rescue: Rescue, network: Path, imagenet_sample: Path
) -> None:
    names = ("goldfish", "ostrich", "bald_eagle")
    images = [next(imagenet_sample.glob(f"*/*_{name}.JPEG")) for name in names]
    ended = rescue("predict", network, "--model", NETWORK, "--json", *images)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [entry["image"] for entry in found] == [str(image) for image in images]
    best = [entry["classes"][0] for entry in found]
    assert [guess["class"] for guess in best] == ["goldfish", "ostrich", "bald eagle"]
    assert all(guess["probability"] > 0.9 for guess in best)
    assert "by the file's metadata" in ended.err


# --- several sets, sizes and crops ---


@pytest.fixture
def validation(imagenet_sample: Path, tmp_path: Path) -> Path:
    """A folder `val` of twelve photographs named as in ILSVRC, and ten of them as `v2/0..999`.

    The numbers are of validation images with ReaL labels, but for two that have none.
    """
    table = json.loads(Path(_timm_info(), "imagenet_real_labels.json").read_text())
    empty = [number for number, labels in enumerate(table, 1) if not labels][:2]
    labelled = [number for number, labels in enumerate(table, 1) if len(labels) > 1][:10]
    words = sorted(data.imagenet_class_names())
    photographs = sorted(imagenet_sample.glob("*/*.JPEG"))[::20][:12]
    for number, image in zip(empty + labelled, photographs, strict=True):
        folder = tmp_path / "imagenet/val" / image.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / f"ILSVRC2012_val_{number:08}.JPEG")
    for image in photographs[:10]:
        folder = tmp_path / "v2" / str(words.index(image.parent.name))
        folder.mkdir(parents=True)
        shutil.copy(image, folder / "a.jpeg")
    return tmp_path / "imagenet"


def _timm_info() -> Path:
    import timm

    return Path(timm.__file__).parent / "data" / "_info"


def lists(validation: Path) -> Sequence[object]:
    return (
        *(f"data.root={validation}", f"data.sets.v2={validation.parent / 'v2'}"),
        *("--sets", "val,real,v2", "--sizes", "64,96", "--crops", "0.875,1.0"),
        *("eval.batch_size=5", "--workers", "0"),
    )


def test_every_set_size_and_crop_is_a_row_and_each_image_is_decoded_once(
    rescue: Rescue, network: Path, validation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    pil_open = Image.open

    def counted(file: Any) -> Any:
        opened.append(file)
        return pil_open(file)

    monkeypatch.setattr(Image, "open", counted)
    ended = rescue("eval", network, "--out", tmp_path / "run", *lists(validation))
    assert ended.code == 0, ended.err
    assert len(opened) == 12 + 10, "val and real are one pass, and views share the decoded image"
    heading, *lines = ended.out.splitlines()
    rows = [line.split() for line in lines[:12]]
    assert max(map(len, [heading, *lines[:12]])) <= 80
    views = [("64", "0.875"), ("64", "1"), ("96", "0.875"), ("96", "1")]
    counts = {"val": "12", "real": "10", "v2": "10"}
    assert [(r[0], r[1], r[2], r[-1]) for r in rows] == [
        (name, size, crop, counts[name]) for name in counts for size, crop in views
    ]
    assert {row[-2] for row in rows if row[0] == "real"} == {"-"}, "ReaL has no loss"
    message = " ".join(" ".join(lines[12:]).split())
    assert message.startswith(
        "95 %: interval for this network over new images; one image is 8.3 points"
    )
    assert message[message.index(NETWORK) :].startswith(
        f"{NETWORK}: 4,652,008 parameters, float32, weights {network} "
        "decoder pil, bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5; "
        "mean, std, interpolation by metadata; size, crop as given"
    )
    result = read_json(RunDirectory(tmp_path / "run").result)
    for entry in result["sets"]:
        protocol = entry["protocol"]
        assert (protocol["set"], protocol["size"]) == (entry["set"], entry["size"])
        assert protocol["preprocessing"]["crop"] == "given"
    _assert_real_is_val_by_other_labels(tmp_path / "run", validation)


def _assert_real_is_val_by_other_labels(run: Path, validation: Path) -> None:
    split = data.load("imagenet", DataKeys(root=str(validation)), run, test_only=True).tests["val"]
    assert isinstance(split, Files)
    table = json.loads(Path(_timm_info(), "imagenet_real_labels.json").read_text())
    numbers = [int(split.names.name(i)[-13:-5]) for i in range(len(split))]
    for name in ("64px@0.875", "96px@1"):
        with np.load(RunDirectory(run).predictions(f"val-{name}")) as file:
            top = file["top"]
        with np.load(RunDirectory(run).predictions(f"real-{name}")) as file:
            real_top, answers = file["top"], file["labels"]
        kept = [i for i, number in enumerate(numbers) if table[number - 1]]
        np.testing.assert_array_equal(real_top, top[kept])
        for row, index in zip(answers, kept, strict=True):
            assert [label for label in row if label >= 0] == table[numbers[index] - 1]


@pytest.mark.slow
# torch's elastic agent leaves the log files of its processes to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_processes_find_the_very_same_rows(
    rescue: Rescue, network: Path, validation: Path, tmp_path: Path
) -> None:
    found = []
    for procs in ([], ["--procs", "2"]):
        out = tmp_path / f"run{len(procs)}"
        line = ("eval", network, "--json", "--out", out, *procs, *lists(validation))
        ended = rescue(*line, "--sizes", "64", "--crops", "0.875")
        assert ended.code == 0, ended.err
        found.append(json.loads(ended.out)["sets"])
    assert found[0] == found[1]
    assert [entry["count"] for entry in found[0]] == [12, 10, 10]


def test_further_sets_need_no_root(
    rescue: Rescue, network: Path, validation: Path, tmp_path: Path
) -> None:
    line = ("eval", network, "--json", "eval.sizes=[64]", "--workers", "0")
    ended = rescue(*line, f"data.sets.v2={validation.parent / 'v2'}", "--sets", "v2")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert (result["protocol"]["set"], result["count"]) == ("v2", 10)
    ended = rescue(*line)
    assert ended.code == 3
    assert "data.root: missing" in ended.err
    assert list((tmp_path / "runs/eval-tf_efficientnet_lite0-imagenet").iterdir()) == [
        tmp_path / "runs/eval-tf_efficientnet_lite0-imagenet/0"
    ], "an evaluation leaves a result or nothing"


def test_real_without_the_images_numbers_is_refused(
    rescue: Rescue, network: Path, imagenet_sample: Path
) -> None:
    ended = rescue("eval", network, f"data.test_root={imagenet_sample}", "--sets", "val,real")
    assert ended.code == 3
    assert ended.err.splitlines()[-1] == (
        f"error: {imagenet_sample}/n01443537/n01443537_goldfish.JPEG: the name has no number "
        "ILSVRC2012_val_00000001 to _00050000, by which ReaL identifies images. Keep the original "
        "file names, or leave out the set real."
    )


# --- ImageNet-V2 ---


def test_folders_0_to_999_are_in_timms_natural_order(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    for number in range(1000):
        folder = tmp_path / "v2" / str(number)
        folder.mkdir(parents=True)
        (folder / f"{number}.jpeg").touch()
    found: Any = find_images_and_targets(str(tmp_path / "v2"))
    images, folders = found
    assert [folders[str(number)] for number in range(1000)] == list(range(1000))
    keys = DataKeys(sets={"v2": str(tmp_path / "v2")})
    split = data.load("imagenet", keys, tmp_path, test_only=True).tests["v2"]
    assert isinstance(split, Files)
    ours = {str(split.names.path(i)): int(label) for i, label in enumerate(split.labels)}
    assert ours == dict(images)


def test_a_folder_too_small_to_hold_out_of_is_tested_as_a_whole() -> None:
    cure = r"leaves none\. .* replace data\.root=X by data\.test_holdout=0 data\.test_root=X\."
    with pytest.raises(UsageError, match=cure), _other_images(["eval.tta=flip", "data.root=X"]):
        raise UsageError("data.test_holdout: 24 of 12 training images leaves none.")
    for overrides in ([], ["data.root=X"]):
        with pytest.raises(UsageError, match=r"^no such folder\.$"), _other_images(overrides):
            raise UsageError("no such folder.")
