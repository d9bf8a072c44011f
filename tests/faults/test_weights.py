"""Mutated checkpoints and weights: a run goes on, a network predicts, or it is our error."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rescue_cli.inference import predict_images
from rescue_cli.rundir import RunDirectory
from rescue_cli.runs.worker import work
from tests.faults.tally import Tally
from tests.helpers.mutations import mutate, mutate_tree
from tests.helpers.processes import start

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
COUNT = 250  # of each format of weights
CHECKPOINTS = 100  # of each optimizer
SGD = "momentum: 0.9, nesterov: true"
OPTIMIZERS = {  # their options beside lr and weight_decay
    "sgd": SGD,
    "sgd-velocity": SGD,
    "muon": f"{SGD}, params: filters, steps: 3, coefficients: [3.4, -4.8, 2.0], "
    "iterate: float32, renormalise_every: 2",
    "lamb": "max_grad_norm: 1",
    **dict.fromkeys(("adamw", "adam", "adagrad", "adadelta"), "eps: 1e-6"),
}
REST = f", {{name: sgd, params: head+norms+biases, lr: 0.01, weight_decay: 0, {SGD}}}"
AVERAGES = ("ema, decay: 0.9, every: 1", "lookahead, decay: 0.95, every: 2, power: 3")
STEP = 3  # of four
SMALL = [
    "--recipe", "quickstart", "data.subset=[128, 20]", "model.width=4", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=1", f"train.snapshots=[{STEP}]",
    f"averaging={{name: {AVERAGES[0]}}}",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1, 2.5, 10**30, float("nan"), "", "../x", [], {}, [None], {"a": {}},
    torch.zeros(()), torch.zeros(3), torch.zeros(2, 0), torch.full((4, 1, 3, 3), float("nan")),
    torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.complex64),
]  # fmt: skip


def finish(folder: Path, *overrides: str) -> Path:
    """A run of four steps that kept its checkpoint of the third; to be copied."""
    run = folder / "finished"
    start(["train", "--out", run, *SMALL, *overrides], folder / "told").ends(0)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("run"))


@pytest.fixture
def trap(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a pickle makes if its code is run."""
    monkeypatch.setenv("TRAP", str(tally.folder / "sprung"))
    return tally.folder / "sprung"


class Code:
    """What is called when a pickle of it is read."""

    def __init__(self, function: Callable[[str], Any], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.call

    def __deepcopy__(self, _: dict[int, Any]) -> "Code":
        return self


def pickled(tree: dict[str, Any], draw: random.Random, file: Path) -> None:
    """Writes a mutated tree as torch.save does, or a mutated file, at times with code in it."""
    codes = [Code(os.mkdir, os.environ["TRAP"]), Code(os.system, f"mkdir {os.environ['TRAP']}")]
    kind = draw.randrange(20)
    if kind < 14:
        tree = mutate_tree(tree, draw, codes if kind < 2 else VALUES)
    torch.save(tree, file, _use_new_zipfile_serialization=draw.random() < 0.8)
    if kind == 14:
        file.write_bytes(pickle.dumps({"model": draw.choice(codes)}))
    elif kind > 14:
        file.write_bytes(mutate(file.read_bytes(), draw))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_checkpoints(optimizer: str, tally: Tally, trap: Path) -> None:
    average = AVERAGES[len(optimizer) % len(AVERAGES)]
    item = f"{{name: {optimizer}, lr: 0.001, weight_decay: 0.01, {OPTIMIZERS[optimizer]}}}"
    rest = REST if optimizer == "muon" else ""
    finished = finish(tally.folder, f"optim=[{item}{rest}]", f"averaging={{name: {average}}}")
    run = RunDirectory(tally.folder / "run")
    state = torch.load(RunDirectory(finished).snapshot(STEP), weights_only=True)
    for case in range(CHECKPOINTS):
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(finished, run.path)
        run.result.unlink()
        pickled(state, random.Random(case), run.last)
        tally.attempt(case, lambda: work(run.path, progress=False))
    assert not trap.exists()


def as_safetensors(file: Path, run: Path, draw: random.Random) -> None:
    """The weights of a run with tensors, metadata or bytes changed."""
    source = RunDirectory(run).weights
    with safe_open(source, "pt") as opened:
        metadata = opened.metadata()
    if draw.random() < 0.5:
        file.write_bytes(mutate(source.read_bytes(), draw))
        return
    tensors = mutate_tree(load_file(source), draw, VALUES)
    texts = ["", "{", "[]", json.dumps(["a"] * 12), "name: x", "9" * 5000, "../x"]
    metadata = mutate_tree(metadata, draw, [*texts, *metadata.values()])
    kept = {str(k): v.contiguous() for k, v in tensors.items() if isinstance(v, torch.Tensor)}
    save_file(kept, file, metadata)


def as_pickle(file: Path, _: Path, draw: random.Random) -> None:
    """A small network's weights as a training script of timm's keeps them."""
    tensors = timm.create_model("test_resnet").state_dict()
    pickled({"state_dict": tensors, "epoch": 3, "arch": "test_resnet"}, draw, file)


@pytest.mark.parametrize(
    ("write", "name"),
    [(as_safetensors, "w.safetensors"), (as_pickle, "w.pth")],
    ids=["safetensors", "torch.save"],
)
def test_weights(
    write: Callable[[Path, Path, random.Random], None],
    name: str,
    finished: Path,
    tally: Tally,
    trap: Path,
) -> None:
    file = tally.folder / name
    image = tally.folder / "i.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(image)
    predict_images(RunDirectory(finished).weights, [image], 3, "cpu")
    for case in range(COUNT):
        write(file, finished, random.Random(case))
        tally.attempt(case, lambda: predict_images(file, [image], 3, "cpu"))
    assert not trap.exists()
