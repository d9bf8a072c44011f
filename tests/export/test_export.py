"""`rescue export`: what other programs compute from the files, and what is refused."""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

import rescue_cli as rescue_interface
from rescue_cli.errors import RescueError
from rescue_cli.export import hub, timm_folder
from rescue_cli.export import run as export_run
from rescue_cli.export.comparison import Comparison, compare
from rescue_cli.export.formats import Exportable
from rescue_cli.export.images import load_test_images
from rescue_cli.export.own_process import FORMATS
from rescue_cli.export.preprocessing import Preprocessing
from rescue_cli.export.torch_program import METADATA
from rescue_cli.inference import load_classifier
from rescue_cli.rundir import read_json
from rescue_cli.sections.data.decode import centre_crop
from tests.conftest import Rescue
from tests.helpers import rectangles
from tests.sections.task.test_annotated_tasks import DETECT, SEGMENT

KINDS = ("cat", "dog", "owl")
SMALL = (
    "model.name=test_resnet", "data.name=folder", "data.train_size=64", "eval.sizes=[64]",
    "eval.crops=[0.875]", "train.batch_size=8", "train.device_batch_size=8", "train.epochs=1",
    "train.precision=float32", "optim.lr=0.01", "eval.interpolation=bicubic",
)  # fmt: skip


TINY = (
    "model.width=4", "data.subset=[64,32]", "train.epochs=1", "train.batch_size=32",
    "train.device_batch_size=32",
)  # fmt: skip


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one's own: three classes, told apart by their brightness; 12 test images."""
    root = tmp_path_factory.mktemp("data") / "pets"
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(KINDS):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(80 * number, 80 * number + 90, (70 + i, 90 - i, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    recipe = rescue_interface.load("pytorch", [*SMALL, f"data.root={pets}"])
    return rescue_interface.train(recipe, tmp_path_factory.mktemp("made") / "run").path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, for what is written into it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def predicted(run: Path, image: Path) -> NDArray[np.float64]:
    """The probability of each class, as `rescue predict` has it."""
    (best,) = rescue_interface.predict(run, image, top=len(KINDS), device="cpu")
    by_name = {each["class"]: each["probability"] for each in best["classes"]}
    return np.array([by_name[name] for name in KINDS])


def hand_cropped(image: Path) -> Image.Image:
    """As an engineer would read `input 64, crop 0.875, bicubic`: 73 px, then the centre."""
    with Image.open(image) as opened:
        whole = opened.convert("RGB")
    scale = 73 / min(whole.size)
    resized = whole.resize(
        [73 if side == min(whole.size) else int(side * scale) for side in whole.size],
        Image.Resampling.BICUBIC,
    )
    left, top = (round((side - 64) / 2) for side in resized.size)
    return resized.crop((left, top, left + 64, top + 64))


# --- what other programs compute ---


@pytest.mark.slow
def test_timm_loads_the_folder_and_a_change_to_it_is_noticed_later(
    rescue: Rescue, run: Path, pets: Path
) -> None:
    ended = rescue("export", run, "--to", "timm")
    assert ended.code == 0, ended.err
    folder = run / "export" / "timm"
    assert ended.notes == ["timm: writing", "timm: comparing 12 images of val", str(folder)]
    first, second, third = ended.out.splitlines()
    assert first.startswith("timm: 12 of 12 same class, largest difference in probability ")
    result = read_json(run / "result.json")
    assert second == (
        "  preprocessed by what the file says: 12 of 12 images get the same pixels; "
        f"top-1 {result['top1']:.2f} %"
    )
    assert third == "  takes images (N, 3, 64, 64) float32, normalised; gives logits"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "check.json", "config.json", "model.safetensors",
    ]  # fmt: skip
    network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert network.pretrained_cfg["label_names"] == list(KINDS)
    settings = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform: Any = create_transform(**settings, is_training=False)
    image = pets / "val" / "dog" / "2.png"
    with Image.open(image) as opened, torch.inference_mode():
        output = network(transform(opened.convert("RGB"))[None]).double().softmax(1)[0].numpy()
    np.testing.assert_allclose(output, predicted(run, image), atol=1e-6)
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.bias"][0] += 1e-7  # too little for a probability to show
    save_file(tensors, folder / "model.safetensors")
    ended = rescue("export", run, "--to", "timm", "--subset", "4", "--check-only")
    assert ended.code == 1
    assert "timm: 4 of 4 same class" in ended.out
    fault = "model.safetensors is not the file that was compared when it was written (SHA-256)"
    assert ended.out.splitlines()[-1] == f"  failed: {fault}"
    assert ended.notes[-1] == f"error: timm: {fault}. It is in {folder}; do not use it."


@pytest.mark.slow
def test_torch_loads_the_program_which_takes_pixels_in_any_number(
    rescue: Rescue, run: Path, pets: Path
) -> None:
    call = ("export", run, "--to", "torch-export", "--from-pixels", "--subset", "5")
    ended = rescue(*call, "--json")
    assert ended.code == 0, ended.err
    (record,) = json.loads(ended.out)
    assert record["passed"]
    assert (record["images"], record["same"], record["same_pixels"]) == (5, 5, 5)
    assert record["takes"] == "pixels (N, 64, 64, 3) uint8, RGB"
    metadata = {METADATA: ""}
    file = run / "export" / "torch-export" / "model.pt2"
    program = torch.export.load(file, extra_files=metadata).module()
    assert json.loads(json.loads(metadata[METADATA])["classes"]) == list(KINDS)
    images = [pets / "val" / name / "1.png" for name in KINDS]
    pixels = torch.from_numpy(np.stack([np.array(hand_cropped(image)) for image in images]))
    expected = np.stack([predicted(run, image) for image in images])
    for count in (1, 3):
        np.testing.assert_allclose(program(pixels[:count]), expected[:count], atol=1e-6)


@pytest.mark.slow
def test_onnxruntime_runs_the_graph(rescue: Rescue, run: Path, pets: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ended = rescue("export", run, "--to", "onnx")
    assert ended.code == 0, ended.err
    session = runtime.InferenceSession(run / "export" / "onnx" / "model.onnx")
    keys = session.get_modelmeta().custom_metadata_map
    assert keys["preprocessing"] == (
        "RGB; the shorter side resized to 73 px (bicubic, antialiased, 8 bits); the centre 64 x "
        "64 px; (value / 255 - mean) / std"
    )
    mean, std = (np.float32(keys[key].split(",")) for key in ("mean", "std"))
    images = [pets / "val" / name / "1.png" for name in KINDS]
    pixels = np.stack([np.array(hand_cropped(image)) for image in images])
    inputs = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    expected = np.stack([predicted(run, image) for image in images])
    for count in (1, 3):
        (logits,) = session.run(["logits"], {"images": inputs[:count]})
        output = torch.from_numpy(logits).softmax(1)
        np.testing.assert_allclose(output, expected[:count], atol=1e-6)


def test_a_graph_holds_the_test_time_augmentation(
    trained: Path, pets: Path, tmp_path: Path
) -> None:
    classifier = load_classifier(trained, "cpu", changes=["eval.tta=flip"])
    FORMATS["torch-export"].write(export_run.exportable(classifier, from_pixels=False), tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    image = classifier.preprocess(pets / "val" / "owl" / "0.png")[None]
    plain, flipped = (classifier.network(each) for each in (image, image.flip(-1)))
    torch.testing.assert_close(program(image), (plain + flipped) / 2, atol=1e-5, rtol=0)
    assert (program(image) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("shape", [(70, 80), (81, 64), (64, 64), (333, 200)])
def test_the_metadata_say_how_the_evaluation_crops(
    shape: tuple[int, int], squash: bool, interpolation: Any
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels)
    own = centre_crop(image, 48, 0.88, interpolation, "squash" if squash else "shorter")
    by_metadata = Preprocessing((0,) * 3, (1,) * 3, 48, 0.88, interpolation, squash)
    np.testing.assert_array_equal(by_metadata.crop_image(image), own.permute(1, 2, 0))


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("test_resnet", {}, ["eval.sizes=[64]", "eval.resize=squash", "eval.crops=[0.8]"]),
        (
            "test_resnet",
            {"in_chans": 1},
            [
                "data.name=fashion-mini",
                "data.mean=[0.5]",
                "data.std=[0.25]",
                "eval.sizes=[28]",
                "eval.crops=[1]",
            ],
        ),
        ("test_vit", {"img_size": 64}, ["model.img_size=64", "eval.sizes=[64]"]),
    ],
)
def test_timm_builds_the_network_and_crops_as_the_configuration_says(
    name: str, options: dict[str, Any], changes: list[str], pets: Path, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    weights = tmp_path / "weights.safetensors"
    classes = [str(number) for number in range(10)] if "in_chans" in options else list(KINDS)
    network = timm.create_model(name, num_classes=len(classes), **options)
    save_file(network.state_dict(), weights, {"classes": json.dumps(classes)})
    places = ["data.name=folder", f"data.root={pets}"] if len(classes) == len(KINDS) else []
    classifier = load_classifier(weights, "cpu", model=name, changes=[*places, *changes])
    tests = load_test_images(classifier.recipe, tmp_path, 0, 6)
    timm_folder.write(export_run.exportable(classifier, from_pixels=False), tmp_path)
    assert read_json(tmp_path / "config.json").get("model_args", {}) == options
    result = compare(classifier, FORMATS["timm"].open(tmp_path), tests)
    assert result.fault is None
    assert (result.same, result.same_pixels) == (6, 6)


# --- networks with a class for each pixel ---


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, on images of two sizes and shapes."""
    root = rectangles.masks(tmp_path_factory.mktemp("drawn") / "masks")
    for folder in ("images", "masks"):
        for file in sorted((root / "test" / folder).iterdir())[:2]:
            with Image.open(file) as opened:
                image = opened.resize((91, 102), Image.Resampling.NEAREST)
            image.save(file)
    words = [*SEGMENT[2:], "data.name=mask-folder", f"data.root={root}", "train.epochs=1"]
    recipe = rescue_interface.load(SEGMENT[1], words)
    return rescue_interface.train(recipe, tmp_path_factory.mktemp("made") / "segmenter").path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "torch-export"])
def test_a_segmentation_network_gives_each_pixel_what_its_run_does(
    name: str, rescue: Rescue, segmenter: Path, tmp_path: Path
) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    elif torch.__version__ < "2.12":
        pytest.skip("torch 2.11 fixes whether a side is even; the command refuses such a file")
    for options, takes, gives in (
        ([], "images (N, 3, H, W) float32, normalised", "logits of each pixel"),
        (["--from-pixels"], "pixels (N, H, W, 3) uint8, RGB", "probabilities of each pixel"),
    ):
        out = tmp_path / f"out{len(options)}"
        ended = rescue("export", segmenter, "--to", name, "--out", out, *options, "--json")
        assert ended.code == 0, ended.err
        (record,) = json.loads(ended.out)
        assert (record["takes"], record["gives"]) == (takes, gives)
        assert record["passed"]
        assert record["images"] == 4
        assert record["outputs"] == record["same"] == 2 * 48 * 64 + 2 * 48 * 54
        assert record["difference"] < 1e-5
        assert record["same_pixels"] >= 2  # the two that are not resized
        own = read_json(segmenter / "result.json")["miou"]
        assert record["own_miou"] == pytest.approx(own, abs=0.5)  # its pixels are rounded
        assert record["miou"] == pytest.approx(own, abs=0.5)
    ended = rescue("export", segmenter, "--to", name, "--out", out, "--check-only")
    first, second = ended.out.splitlines()
    assert first.startswith(f"{name}: 11,328 of 11,328 pixels of 4 images same class, largest ")
    assert re.search(r"; mIoU \d+\.\d\d %, the run's own \d+\.\d\d %$", second)
    CHANGES[name](out / name)
    ended = rescue("export", segmenter, "--to", name, "--out", out, "--check-only")
    assert ended.code == 1
    assert "of 11,328 pixels have another class, and probabilities differ" in ended.err


def test_timm_has_no_segmentation_networks(rescue: Rescue, segmenter: Path) -> None:
    ended = rescue("export", segmenter, "--to", "timm")
    assert ended.code == 2
    assert ended.err == (
        "error: --to timm: timm has no network called fcn. Use --to onnx or --to torch-export.\n"
    )


def test_a_detector_is_not_exported(rescue: Rescue, tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc")
    words = [*DETECT[2:], "data.name=voc-folder", f"data.root={root}", "train.epochs=1"]
    recipe = rescue_interface.load(DETECT[1], words)
    run = rescue_interface.train(recipe, tmp_path / "run").path
    ended = rescue("export", run, "--to", "onnx")
    assert ended.code == 2
    assert ended.err == (
        "error: export: works for classification and segmentation, and detection-voc is for "
        "detection. Use train, eval, transfer, lr-range-test, seed-sweep, compare or report.\n"
    )


# --- what the comparison notices ---


def first_weight(names: Iterable[str]) -> str:
    """Of the first convolution, alone or as a backbone's."""
    (name,) = (name for name in names if name.endswith(".conv1.0.weight") and "layer" not in name)
    return name


def change_timm(folder: Path) -> None:
    """Adds 1 to one weight of the first convolution."""
    tensors = load_file(folder / "model.safetensors")
    tensors["conv1.0.weight"].view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors")


def change_torch_program(folder: Path) -> None:
    file, metadata = folder / "model.pt2", {METADATA: ""}
    program = torch.export.load(file, extra_files=metadata)
    with torch.no_grad():
        program.state_dict[first_weight(program.state_dict)].view(-1)[0] += 1
    torch.export.save(program, file, extra_files=metadata)


def change_onnx(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(folder / "model.onnx")
    name = first_weight([w.name for w in graph.graph.initializer])
    (weight,) = (w for w in graph.graph.initializer if w.name == name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, folder / "model.onnx")


CHANGES: dict[str, Callable[[Path], None]] = {
    "onnx": change_onnx,
    "torch-export": change_torch_program,
    "timm": change_timm,
}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_written_files_are_readable_as_the_umask_says(
    umask: int, trained: Path, tmp_path: Path
) -> None:
    network = export_run.exportable(load_classifier(trained, "cpu"), from_pixels=False)
    before = os.umask(umask)
    try:
        timm_folder.write(network, tmp_path)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors"), 0o666 & ~umask)


@pytest.mark.parametrize("name", CHANGES)
def test_one_changed_weight_is_noticed(name: str, trained: Path, tmp_path: Path) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    classifier = load_classifier(trained, "cpu")
    tests = load_test_images(classifier.recipe, tmp_path, 0, None)
    network = export_run.exportable(classifier, from_pixels=False)
    FORMATS[name].write(network, tmp_path)

    def fault() -> str | None:
        return compare(classifier, FORMATS[name].open(tmp_path), tests).fault

    assert fault() is None
    (file,) = (path for path in tmp_path.iterdir() if path.name.startswith("model."))
    names_folders = [
        str(Path(module.__file__ or "").parent) for module in (rescue_interface, timm, torch)
    ]
    with zipfile.ZipFile(file) if zipfile.is_zipfile(file) else nullcontext() as archive:
        parts = [archive.read(part) for part in archive.namelist()] if archive else []
    for content in (file.read_bytes(), *parts):
        assert not [folder for folder in names_folders if folder.encode() in content]
    CHANGES[name](tmp_path)
    assert "probabilities differ by up to " in str(fault())


def test_a_configuration_that_crops_otherwise_is_noticed(trained: Path, tmp_path: Path) -> None:
    classifier = load_classifier(trained, "cpu")
    tests = load_test_images(classifier.recipe, tmp_path, 0, 6)
    timm_folder.write(export_run.exportable(classifier, from_pixels=False), tmp_path)
    config = read_json(tmp_path / "config.json")
    config["pretrained_cfg"]["crop_pct"] = 1.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = compare(classifier, FORMATS["timm"].open(tmp_path), tests)
    assert str(result.fault).startswith("its preprocessing gives other pixels in 6 of 6 images")
    assert result.difference < 1e-5 < result.prepared_difference


def test_what_does_not_pass_is_kept_under_another_name(
    rescue: Rescue, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FORMATS["timm"]

    def write(network: Exportable, folder: Path) -> None:
        """As a damaged disk would have it."""
        own.write(network, folder)
        change_timm(folder)

    damaged = {**FORMATS, "timm": replace(own, write=write)}
    monkeypatch.setattr(export_run, "FORMATS", damaged)
    ended = rescue("export", run, "--to", "timm", "--push", "me/pets", "eval.tta=flip")
    folder = run / "export" / "timm-failed"
    assert ended.notes[0] == "timm has no test-time augmentation: compared without flip"
    assert ended.code == 1
    assert ended.notes[-1].endswith(f"(allowed: 0.0001). It is in {folder}; do not use it.")
    assert [path.name for path in (run / "export").iterdir()] == ["timm-failed"]
    assert read_json(folder / "check.json")["passed"] is False


def test_wrong_preprocessing_is_a_fault_even_where_every_class_is_the_same() -> None:
    result = Comparison(2, 2, 2, 0, 1, 0.4, 2, 0, 100, 100)
    for levels, fault in ((0.4, None), (0.6, "its preprocessing gives other pixels in 1 of 2 ")):
        result = replace(result, levels=levels)
        assert str(result.fault).startswith(str(fault))
        assert "1 of 2 images get the same pixels" in result.sentences()[1]
    assert replace(result, levels=0, difference=np.nan).fault is not None


# --- the folder for the hub ---


class Hub:
    """What `huggingface_hub.HfApi` is called for."""

    def __init__(self, error: Exception | None = None, **_: str) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, repository: str, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.calls.append((repository, options))
        return type("Address", (str,), {"repo_id": repository})(f"https://hub/{repository}")

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


def test_the_folder_is_pushed_to_a_private_repository(tmp_path: Path) -> None:
    api = Hub()
    assert hub.push(tmp_path, "me/pets", api) == "https://hub/me/pets"
    (_, created), (_, uploaded) = api.calls
    assert created == {"private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/pets", str(tmp_path))
    with pytest.raises(RescueError, match=r"could not be uploaded \(401: log in first\)\. .* is "):
        hub.push(tmp_path, "me/pets", Hub(OSError("401: log in first.")))


def test_push_follows_the_comparison_and_the_card_names_what_is_known(
    rescue: Rescue,
    run: Path,
    pets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: api)
    ended = rescue("export", run, "--to", "timm", "--subset", "3", "--push", "me/pets")
    assert ended.code == 0, ended.err
    assert ended.notes[-2] == "uploaded: https://hub/me/pets"
    assert api.calls[-1][1]["folder_path"] == str(run / "export" / "timm")
    card = (run / "export" / "timm" / "README.md").read_text()
    result, data = read_json(run / "result.json"), read_json(run / "data.json")
    for fact in (
        f"Top-1 {result['top1']:.2f} % on the 12 images of `val` (folder); 95 % interval ",
        "Seed 0.",
        "how much accuracy varies with the seed was not measured here",
        f"Fingerprint of file names, labels and sizes: `{data['digest']}`",
        "## What it was not tested on",
        "3 of 3 same class",
        "FILL IN",
        f"torch: {version('torch')}",
    ):
        assert fact in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    image = pets / "val" / "cat" / "0.png"
    places = {"local-dir:.": f"local-dir:{run / 'export' / 'timm'}", "IMAGE": str(image)}
    for written, place in places.items():
        assert written in code
        code = code.replace(f'"{written}"', f'"{place}"')
    exec(compile(code, "README.md", "exec"), {})
    name, probability = capsys.readouterr().out.splitlines()[0].split()
    (own,) = rescue_interface.predict(run, image, top=1, device="cpu")
    assert own["classes"][0]["class"] == name
    assert own["classes"][0]["probability"] == pytest.approx(float(probability), abs=1e-6)
    for file in (run / "export" / "timm").iterdir():  # names no path of this machine
        assert str(run.parent).encode() not in file.read_bytes()
        assert b"pets/val" not in file.read_bytes()


# --- the weights file alone ---


def test_the_weights_file_says_its_preprocessing_in_keys_to_read(run: Path, pets: Path) -> None:
    with safe_open(run / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    keys = ("mean", "std", "input", "crop", "interpolation", "resize", "colour", "tta", "exif")
    assert [metadata[key] for key in keys] == [
        "0.485, 0.456, 0.406", "0.229, 0.224, 0.225", "64", "0.875", "bicubic", "shorter", "RGB",
        "none", "ignored",
    ]  # fmt: skip
    image = pets / "val" / "cat" / "3.png"
    by_hand = Preprocessing.of(metadata).normalise(np.array(hand_cropped(image))[None])
    own = load_classifier(run, "cpu").preprocess(image)
    np.testing.assert_allclose(by_hand[0], own, atol=1e-6)


def test_the_file_is_evaluated_alike_by_its_keys_alone_and_without_them(
    rescue: Rescue, run: Path, pets: Path
) -> None:
    """Without its recipe; and as an earlier version wrote it, with the recipe alone."""
    file = run / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata, tensors = opened.metadata(), load_file(file)
    kept = {"architecture", "classes", "recipe"}
    old = {key: value for key, value in metadata.items() if key in kept}
    new = {key: value for key, value in metadata.items() if key != "recipe"}
    results = []
    for name, values in (("old", old), ("new", new)):
        save_file(tensors, f"{name}.safetensors", values)
        data = ("data.name=folder", f"data.root={pets}")
        ended = rescue("eval", f"{name}.safetensors", "--json", *data)
        assert ended.code == 0, ended.err
        results.append(json.loads(ended.out))
    assert results[0]["loss"] == results[1]["loss"]


def test_the_file_names_no_folder_and_the_run_around_it_does(
    rescue: Rescue, run: Path, pets: Path
) -> None:
    file = run / "model.safetensors"
    assert str(pets.parent).encode() not in file.read_bytes()
    assert rescue("eval", file).code == 0
    shutil.copy(file, "alone.safetensors")
    ended = rescue("eval", "alone.safetensors")
    assert ended.code == 3
    assert "data.root: missing" in ended.err
    assert rescue("eval", "alone.safetensors", f"data.root={pets}").code == 0


# --- what is refused ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--to: no format. Give --to onnx, --to torch-export or --to timm."),
        (["--to", "tim"], "--to: 'tim' is not known. Did you mean 'timm'?"),
        (["--to", "timm", "--from-pixels"], "a timm folder has no graph to hold the preprocess"),
        (["--to", "torch-export", "--push", "me/pets"], "--push: uploads a timm folder."),
        (["--to", "timm", "--check-only"], "there is no such folder. Leave --check-only out."),
        (["--to", "timm", "--subset", "13"], "--subset: 13 of 12 test images. Give a smaller"),
        (["--to", "timm", "model.stride_in=1x1"], "model.stride_in is 1x1, and timm's test_res"),
    ],
)
def test_what_cannot_be_exported_is_a_usage_error(
    rescue: Rescue, run: Path, words: list[str], message: str
) -> None:
    ended = rescue("export", run, *words)
    assert ended.code == 2
    assert message in ended.err
    assert not (run / "export").exists()


def test_an_own_network_is_no_network_of_timm(rescue: Rescue, tmp_path: Path) -> None:
    recipe = rescue_interface.load("quickstart", TINY)
    run = rescue_interface.train(recipe, tmp_path / "own").path
    ended = rescue("export", run, "--to", "timm")
    assert ended.code == 2
    assert ended.err == (
        "error: --to timm: timm has no network called resnet9. Use --to onnx or --to "
        "torch-export.\n"
    )
    network = export_run.exportable(load_classifier(run, "cpu"), from_pixels=True)
    assert network.interface.describe()[0] == "pixels (N, 28, 28, 1) uint8, grey"


def test_a_folder_that_is_there_is_not_overwritten(rescue: Rescue, run: Path) -> None:
    (run / "export" / "timm").mkdir(parents=True)
    ended = rescue("export", run, "--to", "timm")
    assert ended.code == 2
    assert "exists already. Remove it, use another --out, or compare it again with" in ended.err


def test_data_that_are_gone_are_a_data_error(rescue: Rescue, run: Path) -> None:
    ended = rescue("export", run, "--to", "timm", "data.root=nowhere")
    assert ended.code == 3
    assert not (run / "export").exists()
