"""ImageNet-ReaL: the validation images by other labels, scored as timm scores them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.sections import data
from rescue_cli.sections.data import FileNames, Files, Images
from rescue_cli.sections.data.imagenet import real_labels
from rescue_cli.sections.task.classification import ClassificationResult, prediction_rows

IMAGES, SCORED, LABELS = 50_000, 46_837, 57_553  # Are we done with ImageNet?, as released


def files(numbers: list[int], pattern: str = "ILSVRC2012_val_{:08}.JPEG") -> Files:
    """Files of these numbers, labelled 0."""
    names = [f"n01440764/{pattern.format(number)}" for number in numbers]
    return Files(FileNames.of(Path("val"), names), np.zeros(len(numbers), dtype=np.int64))


@pytest.fixture(scope="module")
def every() -> list[int]:
    """The numbers of all validation images, in an order of their own."""
    order = np.random.Generator(np.random.Philox(3)).permutation(IMAGES)
    return [int(place) + 1 for place in order]


def test_all_50000_images_have_the_published_number_of_labels(every: list[int]) -> None:
    answers = real_labels(files(every))
    assert len(answers) == IMAGES
    assert int((answers >= 0).any(1).sum()) == SCORED
    assert int((answers >= 0).sum()) == LABELS
    assert int(answers.max()) == 999


def test_made_up_logits_are_scored_as_timm_scores_them(every: list[int]) -> None:
    import timm.data

    ours = files(every)
    answers = real_labels(ours)
    oracle: Any = timm.data  # which annotates nothing
    theirs = oracle.RealLabelsImagenet([ours.names.name(i) for i in range(IMAGES)])
    generator = torch.Generator().manual_seed(0)
    rows = []
    for indices in torch.arange(IMAGES).reshape(-1, 1000):
        logits = torch.randn((1000, 1000), generator=generator)
        right = torch.from_numpy(answers[indices.numpy()])
        right = right.gather(1, (right >= 0).sum(1, keepdim=True).clamp_min(1) - 1).clamp_min(0)
        logits.scatter_add_(1, right, torch.full((1000, 1), 3.0))  # right about half of the time
        theirs.add_result(logits)
        rows.append(prediction_rows(indices, torch.zeros(1000, dtype=torch.int64), logits))
    table = torch.cat(rows).numpy()
    message = ClassificationResult(
        np.zeros(IMAGES, dtype=np.int64),
        table[:, 2],
        table[:, 3],
        table[:, 4],
        table[:, 5:].astype(np.int64),
    )
    real = message.relabel(answers)
    assert (real.count, real.loss) == (SCORED, None)
    assert 20 < real.accuracy(1) < real.accuracy(5) < 90
    for k in (1, 5):
        assert real.accuracy(k) == pytest.approx(theirs.get_accuracy(k), abs=1e-9)


def test_any_of_several_labels_is_right_and_images_without_are_not_counted() -> None:
    message = ClassificationResult(
        labels=np.array([9, 9, 9, 9]),
        losses=np.zeros(4),
        probabilities=np.full(4, 0.5),
        gaps=np.zeros(4),
        top=np.array([[1, 2, 3], [2, 1, 3], [3, 1, 2], [1, 2, 3]]),
    )
    real = message.relabel(np.array([[2, 1], [3, -1], [-1, -1], [7, 3]]))
    assert real.count == 3
    assert real.accuracy(1) == pytest.approx(100 / 3)
    assert real.accuracy(3) == 100
    assert str(real) == "top-1 33.33 %"
    # Counted under the class that was predicted where that is right, else under the first label
    assert {(int(a), int(b)) for a, b in np.argwhere(real.confusion(10))} == {
        (1, 1),
        (3, 2),
        (7, 1),
    }


def test_the_number_may_stand_within_a_name() -> None:
    plain, longer = ([1, 293, 50_000], "ILSVRC2012_val_{:08}_n01440764.JPEG")
    np.testing.assert_array_equal(real_labels(files(plain, longer)), real_labels(files(plain)))


@pytest.mark.parametrize("pattern", ["{:08}.JPEG", "ILSVRC2012_val_{}.JPEG", "a.JPEG"])
def test_a_name_without_a_number_is_refused(pattern: str) -> None:
    with pytest.raises(DataError) as error:
        real_labels(files([7], pattern))
    assert str(error.value) == (
        f"val/n01440764/{pattern.format(7)}: the name has no number ILSVRC2012_val_00000001 to "
        "_00050000, by which ReaL identifies images. Keep the original file names, or leave out "
        "the set real."
    )


@pytest.mark.parametrize("number", [0, 50_001])
def test_a_number_that_no_validation_image_has_is_refused(number: int) -> None:
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000001 to _00050000"):
        real_labels(files([number]))


def test_images_in_memory_and_images_without_any_label_are_refused(every: list[int]) -> None:
    images = Images(np.zeros((1, 3, 2, 2), np.uint8), np.zeros(1, dtype=np.int64))
    with pytest.raises(DataError, match=r"Use data\.resident=false"):
        real_labels(images)
    answers = real_labels(files(every))
    without = [number for number, row in zip(every, answers, strict=True) if (row < 0).all()]
    with pytest.raises(DataError, match="real: none of the 3 images has a label"):
        real_labels(files(without[:3]))


def test_real_needs_no_folder(tmp_path: Path) -> None:
    keys = DataKeys(root=str(tmp_path), sets={"real": str(tmp_path)})
    with pytest.raises(
        UsageError, match=r"data.sets.real: .* no folder of its own. Remove the key."
    ):
        data.load("imagenet", keys, tmp_path)
