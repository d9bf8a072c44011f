"""Prints what a step of each recipe does on the pretend device, and records it for the tests.

`python -m tests.helpers.pretend_cuda [--write] [RECIPE ...]`
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.helpers.pretend_cuda.device import pretend_cuda
from tests.helpers.pretend_cuda.runs import RUNS, TABLE, make_data, recipe_of, train

HEADER = f"{'recipe':<20} {'mismatches':>10} {'waits a step':>12} {'hazards':>7} {'copies':>6}"


def main(names: list[str], *, write: bool) -> None:
    """One line for each recipe: its last step, except for mismatches and hazards of the run."""
    torch.set_num_threads(1)
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    print(f"{HEADER} {'kernels':>7} {'views':>6} {'MB moved':>8}  kernels by step")
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data")
        for name in names or RUNS:
            with pretend_cuda() as gpu:
                watched = train(gpu, recipe_of(name, data), Path(folder) / name)
            run, last = watched.run, watched.steps[-1]
            kernels = [step.kernels.total() for step in watched.steps]
            print(
                f"{name:<20} {run.mismatches.total():>10} {last.synchronisations.total():>12}"
                f" {run.hazards.total():>7} {last.copies:>6} {kernels[-1]:>7} {last.views:>6}"
                f" {last.moved / 2**20:>8.1f}  {' '.join(map(str, kernels))}",
                flush=True,
            )
            for event in (*last.synchronisations, *run.not_deterministic, *run.without_kernel):
                print(f"{'':<20} {event}")
            table[name] = {"kernels": kernels, "copies": [step.copies for step in watched.steps]}
    if write:
        lines = (f'  "{name}": {json.dumps(table[name])}' for name in RUNS if name in table)
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    main([word for word in words if word != "--write"], write="--write" in words)
