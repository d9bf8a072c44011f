"""A written network in a process of its own: `python -m rescue_cli.export.own_process FOLDER`.

The process has nothing of the one that wrote the file. It reads `job.json` in the folder, lets the
format's own program run the file on the test images, evaluates the run's own network on them, and
writes `comparison.json` there, and a line to stdout after each batch.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rescue_cli import lifetime
from rescue_cli.export import onnx_graph, timm_folder, torch_program
from rescue_cli.export.comparison import Comparison, compare
from rescue_cli.export.formats import Exportable, Runtime
from rescue_cli.export.images import load_test_images
from rescue_cli.inference import Classifier, load_classifier
from rescue_cli.rundir import read_json, write_json


@dataclass(frozen=True)
class Format:
    """How a network is written and opened, and which packages that takes beside this tool's own.

    `is_graph`: the file computes what the run's evaluation does, test-time augmentation included;
    else it holds weights for another program's network.
    """

    write: Callable[[Exportable, Path], None]
    open: Callable[[Path], Runtime]
    packages: tuple[str, ...] = ()
    is_graph: bool = True


FORMATS: Mapping[str, Format] = {
    "onnx": Format(onnx_graph.write, onnx_graph.OnnxRuntime, ("onnx", "onnxruntime", "onnxscript")),
    "torch-export": Format(torch_program.write, torch_program.TorchProgram),
    "timm": Format(timm_folder.write, timm_folder.open_folder, is_graph=False),
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
    runtime = FORMATS[job.format].open(Path(job.folder))
    comparison = compare(classifier, runtime, tests, lambda: print(flush=True))
    write_json(folder / "comparison.json", asdict(comparison))


if __name__ == "__main__":
    main()
