"""Whether a written network gives what the run's own evaluation gives."""

import hashlib
import importlib.metadata
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rescue_cli import lifetime
from rescue_cli.build.feeds import build_normalise
from rescue_cli.engine.recorder import batch_bar
from rescue_cli.errors import RescueError
from rescue_cli.export.formats import Probabilities
from rescue_cli.export.images import TestSet
from rescue_cli.export.own_process import Job, Outputs, read_outputs, write_job
from rescue_cli.inference import Classifier
from rescue_cli.rundir import read_json, write_json

RECORD = "check.json"
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow")
# The largest difference in probability that the order of float32 sums explains
ALLOWED = 1e-4
# Grey levels that two decoders or resizers may differ by, on average over an image
ALLOWED_LEVELS = 0.5


@dataclass(frozen=True)
class Comparison:
    """The test images of a written network against the run's own evaluation in float32.

    `same`, `difference`: images of the same class and the largest difference in probability, from
    the pixels of the run's evaluation; `prepared_same`, `prepared_difference`: from the images as
    the file's own preprocessing has them, of which `same_pixels` are the same to the last level.
    `levels`: the largest mean difference of an image in grey levels. `top1`: percent right, of the
    file and of the run.
    """

    images: int
    same: int
    difference: float
    same_pixels: int
    levels: float
    prepared_same: int
    prepared_difference: float
    top1: float
    own_top1: float

    @property
    def fault(self) -> str | None:
        """What is wrong; None where nothing is."""
        if not self.difference <= ALLOWED:  # nor NaN
            return (
                f"{self.images - self.same:,} of {self.images:,} images have another class, and "
                f"probabilities differ by up to {self.difference:.2g} (allowed: {ALLOWED:g})"
            )
        if not self.levels <= ALLOWED_LEVELS:
            return (
                f"its preprocessing gives other pixels in {self.images - self.same_pixels:,} of "
                f"{self.images:,} images, by up to {self.levels:.2g} grey levels on average "
                f"(allowed: {ALLOWED_LEVELS:g})"
            )
        return None

    def sentences(self) -> list[str]:
        """The result in two lines, the second on the file's own preprocessing."""
        same_pixels = f"{self.same_pixels:,} of {self.images:,} with the same pixels"
        if self.same_pixels < self.images:
            same_pixels += (
                f" (the others differ by up to {self.levels:.2g} grey levels on average), "
                f"{self.prepared_same:,} same class, largest difference in probability "
                f"{self.prepared_difference:.1g}"
            )
        return [
            f"{self.same:,} of {self.images:,} same class, largest difference in probability "
            f"{self.difference:.1g}",
            f"preprocessed by what the file says: {same_pixels}; top-1 {self.top1:.2f} %",
        ]


def compare(own: Probabilities, outputs: Outputs, labels: Any) -> Comparison:
    """`own`: the run's probabilities (n, classes); `labels` (n,)."""
    classes = own.argmax(1)

    def agree(probabilities: Probabilities) -> tuple[int, float]:
        return int((probabilities.argmax(1) == classes).sum()), float(
            np.abs(probabilities - own).max()
        )

    same, difference = agree(outputs.given)
    prepared_same, prepared_difference = agree(outputs.prepared)
    return Comparison(
        images=len(own),
        same=same,
        difference=difference,
        same_pixels=int((outputs.pixel_difference == 0).sum()),
        levels=float(outputs.pixel_difference.max()),
        prepared_same=prepared_same,
        prepared_difference=prepared_difference,
        top1=100 * float((outputs.prepared.argmax(1) == labels).mean()),
        own_top1=100 * float((classes == labels).mean()),
    )


def evaluate(classifier: Classifier, tests: TestSet, *, progress: bool) -> Probabilities:
    """The run's own probabilities of the test images, (n, classes)."""
    normalise = build_normalise(classifier.recipe, classifier.device)
    parts = []
    with batch_bar(tests.feed.rounds(1, tests.order), progress=progress) as count:
        for _, pixels in tests.batches():
            planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            parts.append(classifier(normalise(planes)).numpy())
            count()
    return np.concatenate(parts)


def run_in_fresh_process(job: Job) -> Outputs:
    """The outputs of the job's file; raises `RescueError` where its program cannot run it."""
    with tempfile.TemporaryDirectory(prefix="rescue-export-") as scratch, lifetime.export_parent():
        write_job(Path(scratch), job)
        call = [sys.executable, "-P", "-m", "rescue_cli.export.own_process", scratch]
        ended = subprocess.run(call, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"]
            raise RescueError(f"the file does not run: {lines[-1][:500]}")
        return read_outputs(Path(scratch))


# --- the record beside the file ---


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in the folder but the record and the text for people."""
    files = [f for f in sorted(folder.iterdir()) if f.name not in (RECORD, "README.md")]
    return {file.name: _digest(file) for file in files if file.is_file()}


def write_record(folder: Path, name: str, comparison: Comparison, set_name: str) -> None:
    """Writes what was compared, and with which versions."""
    versions = {name: _version(name) for name in PACKAGES}
    record = {
        "format": name,
        "set": set_name,
        **asdict(comparison),
        "allowed": ALLOWED,
        "passed": comparison.fault is None,
        "sha256": digests(folder),
        "versions": {name: version for name, version in versions.items() if version},
    }
    write_json(folder / RECORD, record)


def changed_files(folder: Path) -> list[str]:
    """The files that are no longer those of the record; none without a record."""
    if not (folder / RECORD).is_file():
        return []
    before, now = read_json(folder / RECORD).get("sha256", {}), digests(folder)
    return sorted(name for name in before | now if before.get(name) != now.get(name))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
