"""Uneven classes: their weights, balanced accuracy and its interval, test sets that lack some."""

import json
import os
import shutil
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.classification import multiclass_recall

from rescue_cli import distributed
from rescue_cli import recipe as recipes
from rescue_cli.analysis.accuracy import add_intervals
from rescue_cli.analysis.stats import mean_of_proportions_interval
from rescue_cli.batch import Batch
from rescue_cli.build.check import check_recipe
from rescue_cli.build.feeds import Machine
from rescue_cli.build.step import build_step
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.report.table import class_tables, interval_notes, measurement_table
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.sections import data
from rescue_cli.sections.data import Dataset, Images
from rescue_cli.sections.loss import (
    LossContext,
    binary_cross_entropy,
    cross_entropy,
    pixel_cross_entropy,
    resolve_class_weights,
    weighted_micro_batch_loss,
)
from rescue_cli.sections.task.classification import ClassificationResult
from rescue_cli.sections.teacher import network
from tests.helpers.synthetic_runs import made_run

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat", "dog")
COUNTS = np.array([60, 25, 10, 5])
TRAINING = LossContext(CLASSES, COUNTS)
GIVEN = [0.5, 1.0, 4.0, 2.5]
LABELS = torch.tensor([0, 0, 3, 1, 0, 2, 1, 0])
LOGITS = torch.randn((8, 4), generator=torch.Generator().manual_seed(0)).double() * 2
SHARES = 0.7 * nn.functional.one_hot(LABELS, 4) + 0.3 * nn.functional.one_hot(LABELS.flip(0), 4)


def cross(**options: Any) -> Any:
    keys = {"label_smoothing": 0.0, "reduction": "mean", **options}
    return cross_entropy(8, TRAINING, **keys)


def binary(**options: Any) -> Any:
    return binary_cross_entropy(8, TRAINING, targets="soft", label_smoothing=0.0, **options)


# --- which weights ---


def compute_class_weight(y: NDArray[np.int64]) -> NDArray[np.float64]:
    """As scikit-learn's user guide writes down class_weight="balanced"."""
    present, counts = np.unique(y, return_counts=True)
    weights: NDArray[np.float64] = len(y) / (len(present) * counts)
    return weights


def test_balanced_weights_are_scikit_learns() -> None:
    theirs = compute_class_weight(np.repeat(np.arange(4), COUNTS))
    found = resolve_class_weights("balanced", TRAINING)
    assert found is not None
    np.testing.assert_allclose(found, theirs, rtol=1e-12)
    assert (found * COUNTS).sum() == pytest.approx(COUNTS.sum()), "the mean weight of an image is 1"


def test_a_class_without_images_takes_no_part_in_the_balance() -> None:
    found = resolve_class_weights("balanced", LossContext(CLASSES, np.array([60, 25, 0, 5])))
    theirs = compute_class_weight(np.repeat([0, 1, 3], [60, 25, 5]))
    assert found is not None
    np.testing.assert_allclose(found, [*theirs[:2], 0, theirs[2]], rtol=1e-12)


def test_weights_are_given_in_order_or_by_name() -> None:
    in_order, by_name = (
        resolve_class_weights(GIVEN, TRAINING),
        resolve_class_weights({"cat": 4.0, "ant": 0.5}, TRAINING),
    )
    assert in_order is not None
    assert by_name is not None
    assert in_order.tolist() == GIVEN
    assert by_name.tolist() == [0.5, 1.0, 4.0, 1.0]


def test_a_name_in_the_other_normal_form_is_the_same_class() -> None:
    training = LossContext(("allée", "rue"), np.array([3, 1]))
    found = resolve_class_weights({unicodedata.normalize("NFD", "allée"): 2.0}, training)
    assert found is not None
    assert found.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.class_weights=[1,2]"],
         "loss.class_weights: 2 weights for 10 classes. Give one per class, in order, or a "
         "mapping by name, or balanced."),
        (["loss.class_weights={Bag: 0}"],
         "loss (cross-entropy).class_weights.Bag: 0 must be above 0."),
        (["loss.class_weights=even"], "loss (cross-entropy).class_weights: 'even' is not one of "
         "balanced or a list (a number above 0 each) or a mapping or null."),
        (["loss.class_weights=balanced", "sampling.name=balanced"],
         "loss.class_weights: balanced, and sampling.name is balanced: rare classes would count "
         "twice. Remove one of them (~loss.class_weights, or ~sampling)."),
        (["loss.class_weights=balanced",
          "selection={name: proxy, share: 0.5, every: 2, model: {width: 4}}"],
         "loss.class_weights: selection (proxy) keeps images by their losses and takes a plain "
         "mean of those. Remove one of them (~loss.class_weights, or ~selection)."),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_meant_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_recipe(recipes.load("quickstart", overrides))
    assert str(error.value) == message


def test_a_weight_for_a_class_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UsageError) as error:
        resolve_class_weights({"cow": 2.0}, TRAINING)
    assert str(error.value).startswith("loss.class_weights: 'cow' is not one of the classes.")
    assert "ant, bee, cat, dog" in str(error.value)


# --- what the loss makes of them ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SHARES.double()], ids=["labels", "shares"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weighted_cross_entropy_is_torchs(
    smoothing: float, targets: Tensor, reduction: str
) -> None:
    found = cross(class_weights=GIVEN, label_smoothing=smoothing, reduction=reduction)
    theirs = nn.CrossEntropyLoss(
        torch.tensor(GIVEN).double(), label_smoothing=smoothing, reduction=reduction
    )
    ours = float(found.mean(LOGITS, targets)) * found.factor
    assert ours == pytest.approx(float(theirs(LOGITS, targets)), rel=1e-12)
    assert ours != pytest.approx(float(cross(reduction=reduction).mean(LOGITS, targets)), rel=1e-3)


def test_smoothing_over_the_others_is_weighted_by_the_formula_written_out() -> None:
    eps, w = 0.1, torch.tensor(GIVEN).double()
    q = torch.full((8, 4), eps / 3, dtype=torch.float64)
    q[torch.arange(8), LABELS] = 1 - eps
    wanted = -(q * LOGITS.log_softmax(1) * w).sum() / w[LABELS].sum()
    found = cross(class_weights=GIVEN, label_smoothing=eps, smoothing_over="others")
    assert float(found.mean(LOGITS, LABELS)) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_binary_cross_entropy_weighs_images(mixed: bool) -> None:
    """As the code of Cui et al. 2019: every question of an image by the weight of its class."""
    w, shares = torch.tensor(GIVEN).double(), nn.functional.one_hot(LABELS, 4).double()
    shares = SHARES.double() if mixed else shares
    of_images = (shares * w).sum(1, keepdim=True)
    summed = nn.functional.binary_cross_entropy_with_logits(
        LOGITS, shares, weight=of_images.expand(8, 4), reduction="sum"
    )
    wanted = summed / 4 / (8 if mixed else of_images.sum())
    found = binary(class_weights=GIVEN).mean(LOGITS, shares if mixed else LABELS)
    assert float(found) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("make", [cross, binary])
@pytest.mark.parametrize("targets", [LABELS, SHARES.double()], ids=["labels", "shares"])
def test_equal_weights_change_nothing(make: Any, targets: Tensor) -> None:
    plain, weighted = make(), make(class_weights=[3.0] * 4)
    scale = 1 if targets.ndim == 1 else 3  # of shares the mean is over the number of images
    assert float(weighted.mean(LOGITS, targets)) == pytest.approx(
        scale * float(plain.mean(LOGITS, targets)), rel=1e-12
    )


def test_under_autocast_the_weighted_loss_is_that_of_float32() -> None:
    loss = cross(class_weights=GIVEN)
    half = LOGITS.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.mean(half, LABELS)
    torch.testing.assert_close(found, loss.mean(half.float(), LABELS))


def test_pixels_are_weighed_as_torch_does_and_cannot_be_balanced() -> None:
    masks = torch.tensor([[[0, 1], [3, 255]], [[2, 2], [0, 255]]])
    heads = {head: LOGITS.reshape(2, 4, 2, 2) for head in ("out", "aux")}
    found = pixel_cross_entropy(2, LossContext(CLASSES, None), auxiliary=0.5, class_weights=GIVEN)
    theirs = nn.CrossEntropyLoss(torch.tensor(GIVEN).double(), ignore_index=255)(
        heads["out"], masks
    )
    assert float(found.mean(heads, masks)) == pytest.approx(1.5 * float(theirs), rel=1e-12)
    with pytest.raises(UsageError, match=r"here each pixel has one\. Give a list, or a mapping"):
        pixel_cross_entropy(2, LossContext(CLASSES, None), auxiliary=0.5, class_weights="balanced")


def test_a_deterministic_run_takes_pixels_as_a_list_for_which_cuda_has_a_kernel() -> None:
    heads = {head: LOGITS.reshape(2, 4, 2, 2) for head in ("out", "aux")}
    masks = torch.tensor([[[0, 1], [3, 255]], [[2, 2], [0, 255]]])
    loss = pixel_cross_entropy(2, LossContext(CLASSES, None), auxiliary=0.5, class_weights=GIVEN)
    expected, operations = loss.mean(heads, masks), Operations()
    torch.use_deterministic_algorithms(True)
    try:
        with operations:
            deterministic = loss.mean(heads, masks)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(deterministic, expected)
    assert "nll_loss_forward" in operations.names
    assert "nll_loss2d_forward" not in operations.names


class Operations(TorchDispatchMode):
    """The names of the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def of_a_micro_batch(start: int, end: int, micro_batch: int, targets: Tensor) -> Batch:
    images = torch.zeros(end - start, 1, 1, 1)
    return Batch(images, targets[start:end], 0, micro_batch, np.arange(start, end))


@pytest.mark.parametrize("make", [cross, binary])
@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("targets", [LABELS, SHARES.double()], ids=["labels", "shares"])
def test_the_mean_over_micro_batches_is_the_loss_of_the_whole_step(
    make: Any, micro_batches: int, targets: Tensor
) -> None:
    loss, size = make(class_weights=GIVEN), 8 // micro_batches

    def sampler(_step: int, micro_batch: int) -> NDArray[np.int64]:
        return np.arange(micro_batch * size, (micro_batch + 1) * size)

    criterion = weighted_micro_batch_loss(loss, LABELS.numpy(), sampler, micro_batches)
    parts = [
        criterion(
            LOGITS[i * size : (i + 1) * size],
            of_a_micro_batch(i * size, (i + 1) * size, i, targets),
        )
        for i in range(micro_batches)
    ]
    whole = float(loss.mean(LOGITS, targets))
    assert float(torch.stack(parts).mean()) == pytest.approx(whole, rel=1e-12)


def test_a_teacher_is_heard_on_each_image_alike() -> None:
    """The weights are those of the labels' part, in micro-batches as in the whole."""
    loss, answers = cross(class_weights=GIVEN), torch.randn(8, 4).double()
    spoken = iter([answers[:4], answers[4:], answers])
    wise = nn.Module()
    wise.forward = lambda _images: next(spoken)
    teach = network(lambda _: wise, weights="", temperature=2.0, hard=0.5, soft=0.5)
    sizes = [(0, 4, 0), (4, 8, 1)]

    def sampler(_step: int, micro_batch: int) -> NDArray[np.int64]:
        return np.arange(*sizes[micro_batch][:2])

    lesson = teach(weighted_micro_batch_loss(loss, LABELS.numpy(), sampler, 2))
    parts = [lesson(LOGITS[a:b], of_a_micro_batch(a, b, s, LABELS)) for a, b, s in sizes]
    soft = 4 * nn.functional.cross_entropy(LOGITS / 2, (answers / 2).softmax(1))
    wanted = 0.5 * loss.mean(LOGITS, LABELS) + 0.5 * soft
    assert float(torch.stack(parts).mean()) == pytest.approx(float(wanted), rel=1e-12)


def uneven() -> Dataset:
    """64 images of ten classes, most of the first."""
    labels = np.minimum(np.arange(64) % 16, 9).astype(np.int64)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 1, 28, 28), dtype=np.uint8)
    return Dataset(Images(pixels, labels), {}, tuple("abcdefghij"))


def gradients(
    monkeypatch: pytest.MonkeyPatch, micro_batches: int, processes: int = 1
) -> tuple[Tensor, float]:
    """Of a step of a network without batch statistics, the processes' mean; and the loss."""
    found, losses = [], []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: processes)
        recipe = recipes.load(
            "quickstart",
            ["loss.class_weights=balanced", "train.precision=float64", "augment=[]",
             "train.batch_size=32", f"train.device_batch_size={32 // micro_batches}"],
        )  # fmt: skip
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()
        step = build_step(recipe, net, uneven(), Machine(CPU, 0, Path()), print)
        step.optimizers.step = lambda: None  # type: ignore[method-assign]
        step(0)
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        losses.append(float(step.loss_sum))
    return torch.stack(found).mean(0), float(np.mean(losses))


def test_a_step_of_micro_batches_and_processes_has_the_gradient_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, loss = gradients(monkeypatch, 1)
    for micro_batches, processes in ((2, 1), (4, 2), (8, 4)):
        parts, mean = gradients(monkeypatch, micro_batches, processes)
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
        assert mean == pytest.approx(loss, rel=1e-12)


# --- recall and balanced accuracy ---


def result_of(labels: Sequence[int], guesses: Sequence[int]) -> ClassificationResult:
    count = len(labels)
    top = (np.array(guesses)[:, None] + np.arange(4)) % 4
    return ClassificationResult(
        np.array(labels), np.ones(count), np.full(count, 0.5), np.zeros(count), top
    )


def random_result(seed: int = 0) -> ClassificationResult:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), [40, 20, 7, 3])
    return result_of(labels.tolist(), np.where(rng.random(70) < 0.6, labels, 0).tolist())


def entry_of(found: ClassificationResult) -> dict[str, Any]:
    return {
        "set": "val", "size": 28, "crop": 1.0, **found.metrics, "loss": found.loss,
        "count": found.count, **found.by_class(CLASSES), "protocol": {"tta": "none"},
    }  # fmt: skip


def test_recall_and_balanced_accuracy_are_torchmetrics() -> None:
    found = random_result()
    rows = found.by_class(CLASSES)
    pair = torch.from_numpy(found.top[:, 0]), torch.from_numpy(found.labels)
    theirs = multiclass_recall(*pair, num_classes=4, average="none").numpy()
    np.testing.assert_allclose(
        [row["recall"] for row in rows["per_class"]], 100 * theirs, rtol=1e-6
    )
    assert [row["images"] for row in rows["per_class"]] == [40, 20, 7, 3]
    wanted = 100 * float(theirs.mean())
    assert rows["balanced_accuracy"] == pytest.approx(wanted, rel=1e-6)
    assert f"balanced {wanted:.2f} %" in str(found)


def test_the_recall_of_a_class_without_images_is_unknown_and_not_0() -> None:
    found = result_of([0, 0, 1, 3], [0, 1, 1, 3])
    rows = found.by_class(CLASSES)
    assert rows["per_class"][2] == {"class": "cat", "images": 0, "recall": None}
    assert rows["balanced_accuracy"] == pytest.approx((50 + 100 + 100) / 3)
    assert np.isnan(found.arrays(CLASSES)["per_class"]).tolist() == [False, False, True, False]


def test_accuracy_is_the_percentage_without_an_error_of_rounding() -> None:
    labels = [0] * 834 + [1] * 166
    assert result_of(labels, [0] * 1000).metrics["top1"] == 83.4, "not 83.39999999999999"


def test_classes_of_one_size_have_top_1_for_balanced_accuracy_and_no_column() -> None:
    found = result_of([0, 0, 1, 1], [0, 1, 1, 1])
    assert found.balanced_accuracy == found.accuracy(1)
    assert "balanced" not in str(found)
    headings, _ = measurement_table({"sets": [entry_of(found)]})
    assert "bal. %" not in headings


def test_labels_of_several_classes_have_no_balanced_accuracy() -> None:
    found = result_of([0, 1, 2], [0, 1, 2]).relabel(np.array([[0, 1], [1, -1], [-1, -1]]))
    assert found.by_class(CLASSES) == {"balanced_accuracy": None}


def test_uneven_classes_have_it_beside_top_1_with_its_interval() -> None:
    entry = entry_of(random_result())
    result = {**entry, "sets": [entry]}
    headings, (row,) = measurement_table(result, narrow=True)
    assert headings[4:6] == ["top-1 %", "bal. %"]
    assert row[5] == f"{entry['balanced_accuracy']:.2f}"
    low, high = add_intervals(result)["balanced_interval"]
    assert add_intervals(result)["sets"][0]["balanced_interval"] == (low, high)
    assert interval_notes(result)[1:] == [
        "bal.: balanced accuracy, the mean recall of 4 classes of 3 to 40 images; "
        f"95 %: {low:.1f} to {high:.1f}",
        "Quote top-1 if new images come from the classes as often as these, bal. if every class "
        "counts the same.",
    ]
    file = "runs/a/predictions/val-classes.csv"
    assert class_tables({**result, "run": "runs/a"}) == file
    twice = [entry, {**entry, "size": 32}]
    several = class_tables({**result, "run": "runs/a", "sets": twice})
    assert several == "runs/a/predictions/*-classes.csv"


@pytest.mark.parametrize(("counts", "shown"), [([76, 77, 0], False), ([40, 50], False),
                                               ([40, 51], True)])  # fmt: skip
def test_balanced_accuracy_is_left_out_where_classes_are_nearly_equal(
    counts: list[int], shown: bool
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = result_of(labels.tolist(), np.minimum(labels, 1)[::-1].tolist())
    entry = entry_of(found)
    assert entry["balanced_accuracy"] != entry["top1"], "a key of the JSON, whatever the sizes"
    result = {**entry, "sets": [entry], "run": "a"}
    assert ("bal. %" in measurement_table(result)[0]) is shown
    assert ("balanced" in str(found)) is shown
    assert (len(interval_notes(result)) == 3) is shown
    assert (class_tables(result) is not None) is shown


def test_top_5_of_five_classes_is_left_out_of_the_table_alone() -> None:
    few = entry_of(random_result())
    assert "top5" in few
    assert "top-5 %" not in measurement_table({"sets": [few]})[0]
    many = {**few, "per_class": few["per_class"] * 2}
    assert "top-5 %" in measurement_table({"sets": [many]})[0]


def test_a_result_from_before_has_no_balanced_accuracy() -> None:
    entry = entry_of(random_result())
    del entry["balanced_accuracy"], entry["per_class"]
    result = {**entry, "sets": [entry]}
    assert measurement_table(result, narrow=True)[0][4:6] == ["top-1 %", "top-5 %"]
    assert "balanced_interval" not in add_intervals(result)
    assert len(interval_notes(result)) == 1


def test_the_interval_of_balanced_accuracy_holds_it_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    truths, counts = np.array([0.95, 0.7, 0.4, 0.6]), np.array([200, 60, 15, 8])
    drawn = rng.binomial(counts, truths, (4000, 4)).astype(np.float64)
    held = [
        low <= 100 * truths.mean() <= high
        for low, high in (
            mean_of_proportions_interval(right, counts.astype(np.float64)) for right in drawn
        )
    ]
    assert 0.935 < np.mean(held) < 0.975  # binomial error of 4,000 draws: 0.0034


@pytest.mark.parametrize(
    ("per_class", "message"),
    [
        ([{"class": "ant", "images": 3, "recall": 101}],
         r"sets\[0\]\.per_class\[0\]\.recall: 101 is not a number from 0 to 100, or null"),
        ([{"class": "ant", "images": -1, "recall": 1}], r"per_class\[0\]\.images: -1 is not"),
        ([{"class": "ant", "images": 3}], r"has no key sets\[0\]\.per_class\[0\]\.recall"),
        ("ant", r"sets\[0\]\.per_class: 'ant' is not a non-empty list of objects"),
    ],
)  # fmt: skip
def test_what_stands_in_a_result_of_the_classes_is_not_taken_on_trust(
    tmp_path: Path, per_class: Any, message: str
) -> None:
    run = RunDirectory(made_run(tmp_path / "run", 80.0))
    result = read_result(run)
    result["sets"][0] |= {"balanced_accuracy": 50.0, "per_class": per_class}
    run.result.write_text(json.dumps(result))
    with pytest.raises(DataError, match=message):
        read_result(run)


# --- test sets that lack classes, or have others ---


def folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw(root / name / f"{number}.png")
    return root


def draw(file: Path) -> None:
    """An image of a colour that no other path has."""
    red, green, blue, _ = zlib.crc32(os.fsencode(file)).to_bytes(4, "big")
    Image.new("RGB", (8, 8), (red, green, blue)).save(file)


def load(
    root: Path, *, test_only: bool = False, known: tuple[str, ...] = (), **keys: Any
) -> Dataset:
    places: dict[str, Any] = {} if "test_root" in keys else {"root": str(root)}
    return data.load("folder", DataKeys(**places, **keys), root, test_only=test_only, classes=known)


@pytest.mark.parametrize("empty", [False, True])
def test_a_test_set_without_a_class_is_read_by_the_names_of_the_others(
    tmp_path: Path, empty: bool
) -> None:
    folder(tmp_path / "train", {"ant": 3, "bee": 3, "cat": 3})
    folder(tmp_path / "val", {"ant": 2, "cat": 1, **({"bee": 0} if empty else {})})
    found = load(tmp_path)
    assert found.tests["val"].labels.tolist() == [0, 0, 2]
    assert found.notes == (
        "val: no image of 1 of 3 classes (bee): recall unknown; balanced accuracy averages the "
        "other 2.",
    )


def test_many_classes_without_an_image_are_counted_and_five_named(tmp_path: Path) -> None:
    folder(tmp_path / "train", {f"c{i}": 1 for i in range(9)})
    folder(tmp_path / "val", {"c0": 1})
    (note,) = load(tmp_path).notes
    assert "no image of 8 of 9 classes (c1, c2, c3, c4, c5 and 3 more)" in note


def test_classes_that_training_does_not_know_are_refused_by_name_or_left_out(
    tmp_path: Path,
) -> None:
    folder(tmp_path / "train", {"ant": 3, "bee": 3})
    folder(tmp_path / "val", {"ant": 2, "bee": 1, "dog": 2, "eel": 1})
    (tmp_path / "val" / "below").mkdir()
    (tmp_path / "val" / "eel").rename(tmp_path / "val" / "below" / "monday")
    (tmp_path / "val" / "below").rename(tmp_path / "val" / "eel")
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/val/dog: not one of the classes. Known: ant, bee. Nor is eel. Rename or "
        "remove the folders, or skip such images with data.unknown_classes=skip."
    )
    found = load(tmp_path, unknown_classes="skip")
    assert found.tests["val"].labels.tolist() == [0, 0, 1]
    assert found.notes == (
        f"{tmp_path}/val: 1 of 6 images are in subfolders of their class folder and belong to "
        "that class; the first is eel/monday/0.png",
        "val: left out 3 of 6 images: their classes (dog, eel) are not in the training set.",
    )


def test_a_label_file_may_name_other_classes_too(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"ant": 3, "bee": 3})
    (tmp_path / "val").mkdir()
    for name in "xyz":
        draw(tmp_path / "val" / f"{name}.png")
    (tmp_path / "val_labels.txt").write_text("x bee\ny dog\nz ant\n")
    with pytest.raises(DataError, match=r"'dog' of y.png is not one of the 2 classes. .*=skip"):
        load(tmp_path)
    found = load(tmp_path, unknown_classes="skip")
    assert found.tests["val"].labels.tolist() == [1, 0]
    assert found.notes == (
        "val: left out 1 of 3 images: their classes are not in the training set.",
    )


def test_training_folders_of_no_class_are_not_left_out(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"airplane": 1, "ghost": 1})
    with pytest.raises(DataError, match=r"train/ghost: not one of the classes. .* the folder\.$"):
        data.load("cifar10", DataKeys(root=str(tmp_path), unknown_classes="skip"), tmp_path)


def test_an_evaluation_goes_by_the_names_that_the_weights_carry(tmp_path: Path) -> None:
    known = ("ant", "bee", "cat")
    val = folder(tmp_path / "val", {"bee": 1, "cat": 2})
    places: list[dict[str, Any]] = [{"test_root": str(val)}, {}]
    for keys in places:
        found = load(tmp_path, test_only=True, known=known, **keys)
        assert found.classes == known
        assert found.tests["val"].labels.tolist() == [1, 2, 2]
    # a class more in the training folder since, which comes first
    folder(tmp_path / "train", {"ant": 1, "aardvark": 1, "bee": 1, "cat": 1})
    assert load(tmp_path, test_only=True, known=known).tests["val"].labels.tolist() == [1, 2, 2]
    # its training folder is read where images of it were held out, and may lack a class by now
    shutil.rmtree(tmp_path / "train/aardvark")
    folder(tmp_path / "train/bee", {".": 3})
    shutil.rmtree(tmp_path / "train/cat")
    held = load(tmp_path, test_only=True, known=known, holdout=2)
    assert sorted(held.tests["holdout"].labels.tolist()) == [0, 1]
    # none of the names: the folders' own order, which the evaluation holds against the weights
    other = load(tmp_path, test_only=True, known=("x", "y"), test_root=str(val))
    assert other.classes == ("bee", "cat")


def test_a_class_that_a_holdout_or_a_subset_takes_is_named(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"ant": 9, "bee": 9, "cat": 2})
    held = load(tmp_path, holdout=9)
    assert held.notes == ("training: no image of 1 of 3 classes (cat): not learned.",)
    assert build_weights(held)[2] == 0
    cut = load(tmp_path, holdout=6, subset=(10, 2))
    assert [note.partition(" (")[0] for note in cut.notes] == [
        "training: no image of 1 of 3 classes", "holdout: no image of 1 of 3 classes",
    ]  # fmt: skip


def build_weights(dataset: Dataset) -> list[float]:
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    found = resolve_class_weights("balanced", LossContext(dataset.classes, counts))
    assert found is not None
    return [float(weight) for weight in found]
