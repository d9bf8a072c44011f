"""A written network in a process of its own: `python -m rescue_cli.export.own_process FOLDER`.

The process has nothing of the one that wrote the file. It reads `job.json` in the folder, lets the
format's own program run the file on the test images, and writes `outputs.npz` there.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rescue_cli import lifetime
from rescue_cli.export.formats import Probabilities, Runtime
from rescue_cli.export.images import TestSet, load_test_images
from rescue_cli.export.onnx_graph import OnnxRuntime
from rescue_cli.export.timm_folder import open_folder
from rescue_cli.export.torch_program import TorchProgram
from rescue_cli.recipe import from_text
from rescue_cli.rundir import read_json, write_atomically, write_json

RUNTIMES: dict[str, Callable[[Path], Runtime]] = {
    "onnx": OnnxRuntime,
    "torch-export": TorchProgram,
    "timm": open_folder,
}
SAME = 1e-3  # grey levels: what float32 leaves of the same pixels


@dataclass(frozen=True)
class Job:
    """What the process is to run, and on which images."""

    format: str
    folder: str  # with the written file
    recipe: str
    cache: str
    workers: int
    subset: int | None


@dataclass(frozen=True)
class Outputs:
    """Of each test image: probabilities (n, classes) from the pixels of the run's own evaluation
    and from the image as the file's preprocessing has it, and the mean difference of the two views
    in grey levels (n,).
    """

    given: Probabilities
    prepared: Probabilities
    pixel_difference: NDArray[np.float64]


def write_job(folder: Path, job: Job) -> None:
    write_json(folder / "job.json", asdict(job))


def read_outputs(folder: Path) -> Outputs:
    with np.load(folder / "outputs.npz") as arrays:
        return Outputs(**arrays)


def run_file(runtime: Runtime, tests: TestSet) -> Outputs:
    """The outputs for all images; the first image makes a batch of its own too."""
    given: list[Probabilities] = []
    prepared: list[Probabilities] = []
    differences: list[NDArray[np.float64]] = []
    for indices, pixels in tests.batches():
        inputs = runtime.from_pixels(pixels)
        own = runtime.prepare([tests.decode(int(index)) for index in indices])
        difference = np.abs((own.astype(np.float64) - inputs) * runtime.levels)
        difference = difference.reshape(len(indices), -1)
        if given:
            probabilities = runtime(inputs)
        else:  # a batch of one, and of another number of images
            probabilities = np.concatenate(
                [runtime(part) for part in (inputs[:1], inputs[1:]) if len(part)]
            )
        of_own = probabilities.copy()
        if (other := difference.max(1) > SAME).any():
            of_own[other] = runtime(own[other])
        given.append(probabilities)
        prepared.append(of_own)
        differences.append(np.where(other, difference.mean(1), 0))
    return Outputs(*map(np.concatenate, (given, prepared, differences)))


def main() -> None:
    lifetime.end_with_parent()
    folder = Path(sys.argv[1])
    job = Job(**read_json(folder / "job.json"))
    tests = load_test_images(
        from_text(job.recipe, "recipe"), Path(job.cache), job.workers, job.subset
    )
    outputs = run_file(RUNTIMES[job.format](Path(job.folder)), tests)
    write_atomically(folder / "outputs.npz", lambda file: np.savez(file, **vars(outputs)))


if __name__ == "__main__":
    main()
