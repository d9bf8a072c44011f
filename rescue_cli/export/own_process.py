"""A written network in a process of its own: `python -m rescue_cli.export.own_process FOLDER`.

The process has nothing of the one that wrote the file. It reads `job.json` in the folder, lets the
format's own program run the file on the test images, evaluates the run's own network on them, and
writes `comparison.json` there, and a line to stdout after each batch.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rescue_cli import lifetime
from rescue_cli.export.comparison import Comparison, compare
from rescue_cli.export.formats import Runtime
from rescue_cli.export.images import load_test_images
from rescue_cli.export.onnx_graph import OnnxRuntime
from rescue_cli.export.timm_folder import open_folder
from rescue_cli.export.torch_program import TorchProgram
from rescue_cli.inference import Classifier, load_classifier
from rescue_cli.rundir import read_json, write_json

RUNTIMES: dict[str, Callable[[Path], Runtime]] = {
    "onnx": OnnxRuntime,
    "torch-export": TorchProgram,
    "timm": open_folder,
}


@dataclass(frozen=True)
class Job:
    """What the process is to run, the run's network as `load_network` has it, and which images."""

    format: str
    folder: str  # with the written file
    given: str
    changes: Sequence[str]
    model: str | None
    cache: str
    workers: int
    subset: int | None


def load_network(given: str, changes: Sequence[str], model: str | None) -> Classifier:
    """The run's own network, on the CPU; raises `DataError`, `UsageError`."""
    tasks = ("segmentation",)
    return load_classifier(
        given, "cpu", model=model, changes=changes, verb="export", other_tasks=tasks
    )


def write_job(folder: Path, job: Job) -> None:
    write_json(folder / "job.json", asdict(job))


def read_comparison(folder: Path) -> Comparison:
    return Comparison(**read_json(folder / "comparison.json"))


def main() -> None:
    lifetime.end_with_parent()
    folder = Path(sys.argv[1])
    job = Job(**read_json(folder / "job.json"))
    classifier = load_network(job.given, job.changes, job.model)
    tests = load_test_images(classifier.recipe, Path(job.cache), job.workers, job.subset)
    runtime = RUNTIMES[job.format](Path(job.folder))
    comparison = compare(classifier, runtime, tests, lambda: print(flush=True))
    write_json(folder / "comparison.json", asdict(comparison))


if __name__ == "__main__":
    main()
