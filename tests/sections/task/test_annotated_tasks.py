"""Detection and segmentation through the command, on drawn images; what their files may hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision.models import ResNet50_Weights
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from rescue_cli import recipe as recipes
from rescue_cli.build import transfer
from rescue_cli.build.check import check_recipe
from rescue_cli.build.evaluation import build_evaluator
from rescue_cli.build.feeds import Machine, build_test_sets, load_dataset
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.errors import DataError, UsageError
from rescue_cli.metrics.average_precision import pixel_counts
from rescue_cli.recipe import DataKeys
from rescue_cli.sections.annotations import IGNORED, Objects, Sample
from rescue_cli.sections.augment.annotated import flip, scale_crop
from rescue_cli.sections.data import load
from rescue_cli.sections.model.dense_prediction import faster_rcnn
from rescue_cli.sections.schedule import ScheduleContext, poly
from rescue_cli.sections.task.detection import Detection
from tests.conftest import Rescue
from tests.helpers import rectangles
from tests.helpers.processes import assert_same, group_of, last_step, start, trained

BACKBONE = "test_resnet"
DETECT = (
    "--recipe", "detection-voc", f"model.backbone={BACKBONE}", "model.min_size=48",
    "model.max_size=64", "model.strides=[8,16]", "model.anchors=[16,32,48]", "model.norms=trained",
    "eval.sizes=[48]",
    "train.batch_size=4", "train.device_batch_size=2", "train.epochs=3", "eval.every=1",
    "model.proposals=8", "optim.lr=0.01", "schedule.milestones=[2]", "train.log_every=1",
)  # fmt: skip
SEGMENT = (
    "--recipe", "segmentation-ade20k", f"model.backbone={BACKBONE}", "eval.sizes=[48]",
    "augment=[{name: scale-crop, short_side: 48, scale: [0.5, 2.0], size: 48},"
    " {name: flip, p: 0.5}]",
    "train.batch_size=4", "train.device_batch_size=2", "train.epochs=3", "eval.every=1",
    "train.precision=float32", "train.log_every=1",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rectangles.voc(tmp_path_factory.mktemp("drawn") / "voc")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rectangles.masks(tmp_path_factory.mktemp("drawn") / "masks")


def words(task: str, voc: Path, masks: Path) -> list[str]:
    if task == "detection":
        return [*DETECT, "data.name=voc-folder", f"data.root={voc}"]
    return [*SEGMENT, "data.name=mask-folder", f"data.root={masks}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metrics"),
    [("detection", {"ap50", "ap50_07", "map"}), ("segmentation", {"miou", "pixels", "ignored"})],
)
def test_a_run_killed_and_resumed_ends_as_the_one_never_killed(
    task: str, metrics: set[str], voc: Path, masks: Path, tmp_path: Path
) -> None:
    given = ["train", "--json", "--resume", "--workers", "1", *words(task, voc, masks)]
    whole = tmp_path / "whole"
    start([*given, "--out", whole], tmp_path / "whole-told").ends(0)
    found = json.loads((whole / "result.json").read_text())
    assert metrics <= found.keys()
    assert (found["loss"] is None) == (task == "detection")
    assert found["count"] == 4
    killed = tmp_path / "killed"
    again = [*given, "--out", killed]
    first = start(again, tmp_path / "killed-told")
    first.until(trained(killed, 3))
    first.kill()
    assert last_step(killed, "train") < 6
    start(again, tmp_path / "killed-again").ends(0)
    assert_same(killed, whole)
    for name in ("examples.png", "samples.png", "curves.png"):
        assert (whole / name).read_bytes()[:4] == b"\x89PNG"
    assert load_file(whole / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_two_processes_train_what_one_does(
    task: str, voc: Path, masks: Path, tmp_path: Path
) -> None:
    given = words(task, voc, masks)
    exact = ["train.epochs=1", "train.precision=float64"]  # no box is chosen by a rounding
    recipe = recipes.load(given[1], [*given[2:], *exact])
    results = []
    for procs in (1, 2):
        run = tmp_path / str(procs)
        for worker in group_of(procs, run, recipe, tmp_path / f"told{procs}"):
            worker.ends(0)
        results.append(load_file(run / "model.safetensors"))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-6, atol=1e-7, msg=name)


def test_under_autocast_boxes_are_found_in_float32() -> None:
    network = faster_rcnn(
        2, 3, backbone=BACKBONE, min_size=48, max_size=64, strides=[8, 16], anchors=[8, 16, 24],
        proposals=8, norms="frozen",
    ).eval()  # fmt: skip
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = network([torch.rand(3, 48, 64)])
        shown = Detection(len, 2).predict(network, torch.rand(3, 48, 64), 48)  # type: ignore[arg-type]
    assert {found["boxes"].dtype, found["scores"].dtype} == {torch.float32}
    assert shown.boxes.shape[1] == 4


@pytest.mark.slow
def test_the_first_losses_are_those_of_a_plain_loop_of_torchvisions_parts(
    voc: Path, masks: Path, tmp_path: Path
) -> None:
    for task in ("detection", "segmentation"):
        recipe = recipes.load(words(task, voc, masks)[1], words(task, voc, masks)[2:])
        steady = ["schedule={name: constant}"] if task == "detection" else []
        longer = ["train.device_batch_size=4", "train.epochs=5", "train.precision=float64"]
        recipe = recipe.with_overrides(*longer, *steady)
        machine = Machine(CPU, 0, tmp_path)
        data = load_dataset(recipe, tmp_path)
        networks = [build_network(recipe, len(data.classes), CPU) for _ in range(2)]
        step = build_step(recipe, networks[0], data, machine, print)
        plain = build_step(recipe, networks[1], data, machine, print)
        parts: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        for name, parameter in networks[1].named_parameters():
            parts["classifier" in name].append(parameter)
        # GluonCV's lr_mult 10 of both heads of its FCN; torchvision's detector has one rate
        lr, factor = (0.01, 1) if task == "detection" else (0.01, 10)
        rated: list[dict[str, Any]] = [
            {"params": parts[False]},
            {"params": parts[True], "lr": lr * factor},
        ]
        optimizer = torch.optim.SGD(
            rated,
            lr=lr,
            momentum=0.9,
            weight_decay=5e-4 if task == "detection" else 1e-4,
        )
        step.feed.start(0)
        plain.feed.start(0)
        for number in range(10):
            step.loss_sum.zero_()
            step(number)
            (batch,) = plain.feed.micro_batches(number)
            batch = plain.augment(batch)
            torch.manual_seed(((number) * 4_099 + batch.micro_batch) % 2**63)  # as the engine draws
            if task == "detection":
                loss = sum(networks[1](batch.images, batch.targets).values())
            else:
                out = networks[1](batch.images)
                losses = [
                    functional.cross_entropy(out[head], batch.targets, ignore_index=255)
                    for head in ("out", "aux")
                ]
                loss = losses[0] + 0.5 * losses[1]
                for group, first in zip(optimizer.param_groups, (lr, lr * factor), strict=True):
                    group["lr"] = first * (1 - number / 10) ** 0.9
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert float(step.loss_sum) == pytest.approx(float(loss.detach()), abs=1e-5), number


def test_what_stays_of_a_detectors_backbone_is_what_torchvisions_builder_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its `trainable_backbone_layers=3`, on a ResNet-50 whose tensors have timm's names as well."""
    drawn = torchvision.models.resnet50().state_dict()  # the builder keeps none without weights
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_, **__: drawn)
    theirs: Any = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=ResNet50_Weights.IMAGENET1K_V1,
        trainable_backbone_layers=3,
    )
    recipe = recipes.load("detection-voc", ["model.backbone=resnet50"])
    ours: Any = build_network(recipe, 20, CPU)
    learns, wanted = (
        {n: p.requires_grad for n, p in body.named_parameters()}
        for body in (ours.backbone.backbone.body, theirs.backbone.body)
    )
    assert learns == wanted
    assert sum(not does for does in learns.values()) == 1 + 10, "the stem's, the first stage's"
    shipped = build_network(recipes.load("detection-voc"), 20, CPU)
    still = {n for n, p in shipped.named_parameters() if not p.requires_grad}
    assert len(still) == 3 + 10, "the deep stem of ResNet-50-D has three convolutions"
    assert {n.split(".")[3] for n in still} == {"conv1", "layer1"}
    every = build_network(recipe.with_overrides("model.frozen_stages=0"), 20, CPU)
    assert all(p.requires_grad for p in every.parameters())


def test_a_detector_from_scratch_learns_in_all_stages(tmp_path: Path) -> None:
    """As torchvision's builder has it, which keeps nothing of a backbone without weights."""
    file = tmp_path / "small.safetensors"
    weights = timm.create_model(BACKBONE, num_classes=10).state_dict()
    save_file(weights, file, metadata={"architecture": BACKBONE})
    base = recipes.load("detection-voc")
    begun, scratch = (
        transfer.plan_transfer(base, word, "pascal-voc", []).overrides
        for word in (str(file), f"scratch:{file}")
    )
    assert not [o for o in begun if "frozen" in o or "norms" in o]
    assert {'model.norms="trained"', "model.frozen_stages=0"} <= set(scratch)


def test_a_backbone_comes_from_a_classifier_and_is_compared_with_none(
    rescue: Rescue, masks: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    file = tmp_path / "small.safetensors"
    weights = timm.create_model(BACKBONE, num_classes=10).state_dict()
    save_file(weights, file, metadata={"architecture": BACKBONE})
    ended = rescue(
        "transfer", "--from", file, "--from", f"scratch:{file}", "--to", masks, *SEGMENT[:2],
        *SEGMENT[3:], "--seeds", "2", "train.epochs=1", "--out", "out", "--json",
    )  # fmt: skip
    assert ended.code == 0
    found = json.loads(ended.out)
    assert [side["n"] for side in found["sides"]] == [2, 2]
    assert not found["pairs"][0]["how"].startswith("paired")
    run = tmp_path / "out" / "small" / "seed-0"
    recipe = recipes.recipe_in(run)
    assert recipe.model.options["backbone"] == BACKBONE
    network = build_network(recipe, 3, CPU)
    ours = network.backbone.body.state_dict()  # type: ignore[union-attr]
    assert set(ours) < set(weights), "all but the head"
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, weights[name])
    compared = rescue(
        "compare", str(run), str(tmp_path / "out" / "scratch-small" / "seed-0"), "--json"
    )
    assert json.loads(compared.out)["how"].startswith("4 images are too few for a bootstrap")
    evaluated = rescue("eval", str(run), "--json", f"data.root={masks}")
    message = json.loads(evaluated.out)
    trained_to = json.loads((run / "result.json").read_text())["miou"]
    assert message["miou"] == pytest.approx(trained_to, abs=0.1), (
        "on other threads a pixel may flip"
    )


def test_an_evaluation_at_another_size_leaves_that_of_training(voc: Path, tmp_path: Path) -> None:
    given = [f"data.root={voc}", "data.name=voc-folder", "eval.sizes=[32,64]"]
    recipe = recipes.load("detection-voc", [*DETECT[2:], *given])
    machine = Machine(CPU, 0, tmp_path)
    data = load_dataset(recipe, tmp_path)
    network = build_network(recipe, len(data.classes), CPU)
    tests = build_test_sets(recipe, data, machine)
    evaluator = build_evaluator(recipe, data, machine)
    (found,) = evaluator(network, tests, lambda: None).values()
    assert [measurement.size for measurement in found] == [32, 64]
    assert network.transform.min_size == (48,)  # type: ignore[union-attr]
    assert network.training


def test_a_picture_shows_the_mask_that_is_scored(masks: Path, tmp_path: Path) -> None:
    given = [f"data.root={masks}", "data.name=mask-folder", "eval.sizes=[32]"]
    recipe = recipes.load("segmentation-ade20k", [*SEGMENT[2:], *given])
    machine = Machine(CPU, 0, tmp_path)
    data = load_dataset(recipe, tmp_path)
    network = build_network(recipe, len(data.classes), CPU)
    evaluator = build_evaluator(recipe, data, machine)
    tests = build_test_sets(recipe, data, machine)
    (found,) = evaluator(network, tests, lambda: None)["test"].values()
    shown = evaluator.predict_examples(network, tests["test"].feed, 4)
    counts = [pixel_counts(message, sample.target, 3) for sample, message in shown]  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.stack(counts), found.arrays(data.classes)["counts"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.name=cifar10"], "task.name: detection, and the data set 'cifar10' is for class"),
        (["model={name: resnet18}"], "model.name: resnet18 is for classification, and task.name"),
        (["model={name: fcn, backbone: resnet18, norms: frozen}"], "fcn is for segmentation"),
        (["mix={name: mixup, alpha: 0.2}"], "mix.name: mixup is for classification."),
        (
            ["augment=[{name: scale-crop, short_side: 48, scale: [0.5, 2.0], size: 48}]"],
            "augment.name: 'scale-crop' is not known.",
        ),
        (["eval.crops=[0.9]"], "eval.crops, eval.tta: are for classification; here each image is"),
        (["data.train_size=224"], "data.train_size: is for classification; images with boxes"),
        (["model.anchors=[8,16]"], "anchors: 2 sides for 3 maps. Give one for each of the 2 maps"),
        (["model.backbone=resnet1"], "model.backbone: 'resnet1' is not a timm model."),
        (["model.backbone=vit_tiny_patch16_224"], "vit_tiny_patch16_224 has feature maps with the"),
        (["model.strides=[8,4]"], "model.strides: [8, 4], but test_resnet has feature maps with"),
        (["model.strides=[8]"], "anchors: 3 sides for 2 maps. Give one for each of the 1 maps"),
    ],
)
def test_a_recipe_that_does_not_hold_together_is_refused(changes: list[str], message: str) -> None:
    recipe = recipes.load("detection-voc", ["data.name=voc-folder", *DETECT[2:]])
    with pytest.raises(UsageError) as refused:
        check_recipe(recipe.with_overrides(*changes))
    assert message in str(refused.value)


def test_a_dry_run_counts_the_files_of_a_folder(rescue: Rescue, voc: Path) -> None:
    call = ["train", "--dry-run", *DETECT, "data.name=voc-folder"]
    there = rescue(*call, f"data.root={voc}", "--json")
    assert json.loads(there.out)["training_images"] == 8
    assert json.loads(there.out)["steps"] == 6
    away = rescue(*call, f"data.root={voc / 'away'}", "--json")
    missing = f"unknown until data.root exists; there is no folder {voc / 'away'}"
    assert json.loads(away.out)["steps"] == missing
    shown = rescue(*call, f"data.root={voc / 'away'}").out.splitlines()
    assert {"training images: unknown", f"steps: {missing}"} <= set(shown)


def test_masks_of_a_micro_batch_need_one_size() -> None:
    recipe = recipes.load("segmentation-ade20k", ["augment=[{name: flip, p: 0.5}]"])
    with pytest.raises(UsageError, match="masks of a micro-batch must have one size"):
        check_recipe(recipe)


@pytest.mark.parametrize("words", ["tune", "plan", "bench step"])
def test_verbs_that_read_labels_say_so(rescue: Rescue, voc: Path, words: str) -> None:
    verb = words.split()[0]
    ended = rescue(
        *words.split(), "--recipe", "detection-voc", "data.name=voc-folder", f"data.root={voc}"
    )
    assert ended.code == 2
    assert f"{verb}: works for classification, and detection-voc is for detection." in ended.err


def test_weights_of_another_network_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file(timm.create_model("resnet18", num_classes=10).state_dict(), file)
    recipe = recipes.load("detection-voc", [*DETECT[2:], f"model.weights={file}"])
    with pytest.raises(UsageError, match=f"does not fit {BACKBONE}: .* of the backbone's"):
        build_network(recipe, 2, CPU)


def test_weights_of_a_resnet_that_strides_elsewhere_are_refused(tmp_path: Path) -> None:
    """They fit by name and shape, and their features are others."""
    file = tmp_path / "older.safetensors"
    weights = timm.create_model("resnet26", num_classes=10).state_dict()
    older = recipes.load("bot-baseline", ["model.name=resnet26"])
    words = [*DETECT[2:], "model.backbone=resnet26", f"model.weights={file}"]
    save_file(weights, file, metadata={"recipe": older.to_yaml()})
    with pytest.raises(UsageError, match=r"was trained with model\.stride_in=1x1"):
        check_recipe(recipes.load("detection-voc", words))
    save_file(
        weights, file, metadata={"recipe": older.with_overrides("~model.stride_in").to_yaml()}
    )
    check_recipe(recipes.load("detection-voc", words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "heading", "evidence"),
    [
        ("detection", "ap50", "AP50 %", ("training loss: ", "AP50: ")),
        ("segmentation", "miou", "mIoU %", ("test loss: ", "mIoU: ")),
    ],
)
def test_the_range_test_reads_the_score_of_the_task(
    rescue: Rescue,
    voc: Path,
    masks: Path,
    tmp_path: Path,
    task: str,
    metric: str,
    heading: str,
    evidence: tuple[str, str],
) -> None:
    given = ["lr-range-test", "--steps", "10", "--points", "10", "--workers", "0", "--out", "out"]
    small = ["train.batch_size=2", "train.device_batch_size=2", "data.subset=[4, 1]"]
    ended = rescue(*given, *words(task, voc, masks), *small)
    assert ended.code == 0, ended.err
    assert (
        "2 runs: 10 steps, and half as many (5) to confirm; 15 evaluations of 1 test images"
        in ended.err
    )
    first = ended.out.splitlines()[0]
    assert heading in first
    assert ("test loss" in first) == (task == "segmentation")
    found = json.loads((tmp_path / "out" / "lr-range.json").read_text())
    assert found["metric"] == metric
    seen = found["seeds"][0]["evidence"]
    assert [line.startswith(words) for line, words in zip(seen, evidence, strict=True)] == [
        True
    ] * 2
    lines = [
        json.loads(x) for x in (tmp_path / "out/seed-0/metrics.jsonl").read_text().splitlines()
    ]
    scores = [line[metric] for line in lines if line["kind"] == "eval"]
    assert found["runs"][0]["accuracies"][: len(scores)] == scores
    assert (tmp_path / "out" / "lr-range.png").read_bytes()[:4] == b"\x89PNG"


# --- files ---


def read(name: str, root: Path) -> Any:
    return load(name, DataKeys(root=str(root)), root / "cache")


def test_boxes_are_counted_from_nought_with_their_ends_outside(voc: Path) -> None:
    data = read("voc-folder", voc)
    assert data.classes == ("green", "red")
    _, boxes = rectangles.image(0)
    objects = data.train.target(0)
    assert objects.boxes.tolist() == [list(map(float, box)) for _, box in boxes]
    assert objects.labels.tolist() == [2, 1]
    assert data.notes == ()


def test_boxes_without_area_are_left_out_and_counted(tmp_path: Path) -> None:
    root = rectangles.voc(tmp_path / "voc", 3, 1)
    whole = rectangles.Box(5, 5, 20, 20)
    odd = [
        ("red", rectangles.Box(8, 8, 9, 9)),  # VOC: xmin = xmax
        ("red", rectangles.Box(50, 30, 70, 50)),  # over the corner
        ("green", rectangles.Box(80, 10, 90, 20)),  # outside
        ("green", whole),
    ]
    (root / "Annotations" / "0.xml").write_text(rectangles.annotation(odd))
    (root / "Annotations" / "1.xml").write_text(rectangles.annotation([]))
    data = read("voc-folder", root)
    assert data.train.target(0).boxes.tolist() == [[50, 30, 64, 48], list(map(float, whole))]
    assert len(data.train.target(1).boxes) == 0, "an image without objects stays"
    file = root / "Annotations" / "0.xml"
    assert data.notes == (
        f"1 box without area is left out; first in {file}",
        f"1 box extends beyond its image and is clipped; first in {file}",
        f"1 box lies outside its image and is left out; first in {file}",
    )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Annotations/0.xml", "<annotation>", "0.xml: cannot be read: "),
        ("Annotations/0.xml", "<annotation><object><name>red</name></object></annotation>",
         "an object has no name or no bndbox"),
        ("Annotations/8.xml", rectangles.annotation([("blue", rectangles.Box(1, 1, 9, 9))]),
         "'blue' is not one of the classes."),
        ("ImageSets/Main/train.txt", "0\n99\n", "99.xml: cannot be read"),
        ("ImageSets/Main/train.txt", "", "train.txt: lists no images."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_voc_folder_names_the_file(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    root = rectangles.voc(tmp_path / "voc")
    (root / file).write_text(text)
    with pytest.raises(DataError) as refused:
        read("voc-folder", root)
    assert message in str(refused.value)


def test_masks_that_do_not_fit_name_their_file(tmp_path: Path) -> None:
    root = rectangles.masks(tmp_path / "masks", 2, 1)
    mask = root / "train" / "masks" / "0.png"
    Image.fromarray(np.full((48, 64), 3, np.uint8)).save(mask)
    data = read("mask-folder", root)
    with pytest.raises(ValueError, match=r"0.png: a label 3, where the 3 classes end at 2 and 255"):
        data.train.target(0)
    mask.unlink()
    with pytest.raises(DataError, match=r"masks/0.png: no such file; it is the mask of 0.png."):
        read("mask-folder", root)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes.txt: no such file."):
        read("mask-folder", root)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_with_an_unknown_label_ends_a_run_with_exit_3(
    rescue: Rescue, tmp_path: Path, workers: int
) -> None:
    root = rectangles.masks(tmp_path / "masks", 4, 1)
    mask = root / "train" / "masks" / "1.png"
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(mask)
    ended = rescue(
        "train", *SEGMENT, "data.name=mask-folder", f"data.root={root}", "--workers", workers
    )
    assert ended.code == 3
    assert "1.png: a label 7, where the 3 classes end at 2" in ended.err
    assert "Traceback" not in ended.err


def test_ade20k_starts_at_one(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "images" / part / "a.jpg")
        mask = np.array([[0, 1, 2, 150]] * 4, dtype=np.uint8)
        Image.fromarray(mask).save(root / "annotations" / part / "a.png")
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{i}\t0.1\t1\t1\t0\tname{i}, other" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    data = read("ade20k", tmp_path)
    assert data.classes[:2] == ("name1", "name2")
    assert data.train.target(0)[0].tolist() == [IGNORED, 0, 1, 149]


# --- augmentations ---


def test_a_mirrored_box_holds_the_same_pixels() -> None:
    pixels, boxes = rectangles.image(0)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    target = Objects.of([(tuple(map(float, box)), 1, False) for _, box in boxes])
    mirrored = flip(p=1.0).apply(Sample(image, target), np.zeros(1, np.float32))
    assert isinstance(mirrored.target, Objects)
    for before, after in zip(target.boxes, mirrored.target.boxes, strict=True):
        a, b = ((slice(int(t), int(v)), slice(int(x), int(u))) for x, t, u, v in (before, after))
        assert torch.equal(image[:, a[0], a[1]].flip(-1), mirrored.image[:, b[0], b[1]])
    kept = flip(p=0.4).apply(Sample(image, target), np.array([0.5], np.float32))
    assert torch.equal(kept.image, image)


@pytest.mark.parametrize("side", [0.0, 0.5, 0.99])
def test_a_scaled_crop_moves_image_and_mask_alike(side: float) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:30, 20:45] = 1
    image = torch.from_numpy(mask * np.uint8(200)).expand(3, 40, 60)
    crop = scale_crop(short_side=40, scale=(0.5, 2.0), size=48)
    found = crop.apply(Sample(image, mask), np.array([side, 0.3, 0.7], np.float32))
    assert found.image.shape == (3, 48, 48)
    assert isinstance(found.target, np.ndarray)
    assert found.target.shape == (48, 48)
    bright = found.image[0].numpy() > 100
    agree = (bright == (found.target == 1)) | (found.target == IGNORED)
    assert agree.mean() > 0.97, "all but the edges, which are interpolated"
    assert (found.target == IGNORED).any() == (side == 0.0), "black and ignored beyond the image"


def test_poly_is_the_formula() -> None:
    rates = poly(ScheduleContext(0.01, 10, 3), power=0.9)
    assert [rates(step).lr for step in (0, 15, 29)] == pytest.approx(
        [0.01, 0.01 * 0.5**0.9, 0.01 * (1 / 30) ** 0.9]
    )
    assert rates(30).lr == 0.0
