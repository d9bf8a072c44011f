"""What a run predicted for each image: those that are wrong, and labels that look wrong."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rescue_cli.errors import DataError
from rescue_cli.rundir import CROSS_VALIDATED, RunDirectory, read_text

SURE = 0.9  # probability from which another class than the label's is taken for a mislabelled image
COLUMNS = ["file", "label", "predicted", "probability"]


@dataclass(frozen=True)
class ImageRow:
    """A line of a table: an image, its label, and the most probable class."""

    file: str
    label: str
    predicted: str
    probability: float

    def __str__(self) -> str:
        percent = f"{100 * self.probability:.1f} %"
        return f"{self.file}: {self.label}, predicted {self.predicted} ({percent})"


def read_image_table(path: Path) -> Iterator[ImageRow]:
    """The lines of `predictions/SET.csv`; raises `DataError`."""
    rows = csv.reader(io.StringIO(read_text(path)))
    if next(rows, None) != COLUMNS:
        raise DataError(f"{path}: its first line is not {','.join(COLUMNS)}. Remove the file.")
    for number, row in enumerate(rows, 2):
        try:
            file, label, predicted, probability = row
            yield ImageRow(file, label, predicted, float(probability))
        except ValueError:
            raise DataError(
                f"{path}, line {number}: is not a prediction. Remove the file."
            ) from None


def wrong_images(path: Path) -> list[ImageRow]:
    """The images whose prediction is not among their labels, the surest first."""
    rows = [row for row in read_image_table(path) if row.predicted not in row.label.split("|")]
    return sorted(rows, key=lambda row: -row.probability)


def label_table(run: Path, size: int) -> Path | None:
    """The table of training images for `doubtful_labels`, at that image size; None without one.

    That of the fitted head, which in a transfer's folder a run of fine-tuning has from the search.
    """
    search = run.absolute().parent.parent / "search" / f"probe-{size}"
    tables = [RunDirectory(each).image_table(CROSS_VALIDATED) for each in (run, search)]
    return next((table for table in tables if table.exists()), None)


def doubtful_labels(path: Path) -> list[ImageRow]:
    """Of a table of images that the classifier was not fitted to: those that it is sure about, and
    of another opinion than the label.
    """
    return [row for row in wrong_images(path) if row.probability >= SURE]
