"""Ten minutes on one GPU: all that a CPU cannot show, into one JSON file.

    python -m tests.gpu_check OUT [--data CIFAR] [--minutes 10]
    python -m tests.gpu_check --add OUT/gpu-check.json

CIFAR is CIFAR-10 as class folders (train/, test/), or a tar of them; without it the runs that need
it are left out. Each check is a process of its own, so that a crash or a hang costs one of them,
and begins only while there is time. Without a GPU the file says that nothing was checked. `--add`
puts the runs of such a file on record. No network is needed.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from rescue_cli.__main__ import main as run_command
from rescue_cli.analysis import records
from rescue_cli.rundir import RunDirectory, read_metrics, write_json
from tests.helpers.pretend_cuda.runs import RUNS, make_data

FILE = "gpu-check.json"
SECONDS = 120  # the longest that one check may take
AGREES = 1e-6  # largest difference of losses in float64 between a CPU and a GPU
DEVICE = "cuda"
KEYS = (
    "top1", "map", "miou", "loss", "steps", "seconds_prepare", "seconds_warmup", "seconds_train",
    "images_per_second", "peak_memory_mb", "peak_reserved_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a check works; `small` takes seconds on a CPU, and measures nothing."""

    out: Path
    cifar: Path | None
    small: bool = False

    @property
    def data(self) -> dict[str, Path]:
        """Drawn images by the names in `RUNS`."""
        folder = self.out / "drawn"
        if not folder.exists():
            return make_data(folder)
        paths = {name: folder / name for name in ("pixels", "photos", "voc", "masks", "weights")}
        return {**paths, "weights": folder / "weights.safetensors"}

    def words(self, recipe: str) -> list[str]:
        """Overrides for a run of seconds on drawn images."""
        precision = ["train.precision=float32"] if DEVICE == "cpu" else []
        return [*(word.format(**self.data) for word in RUNS[recipe]), *precision]


class LeftOut(Exception):
    """A check that cannot be made here, and why."""


def command(*words: object) -> tuple[int, str, str]:
    """Runs `rescue WORDS...` in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["rescue", *map(str, words)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command()
        except SystemExit as ended:
            return int(ended.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("the command ends with SystemExit")


def result_of(*words: object, device: str | None = None) -> Any:
    """What `rescue WORDS... --json` prints, on the GPU where there is no other device."""
    code, out, err = command(*words, "--device", device or DEVICE, "--json")
    assert code == 0, f"exit code {code}: {err[-1500:]}"
    return json.loads(out)


def train(place: Place, name: str, *words: object) -> dict[str, Any]:
    """Trains on the GPU; what matters of the result."""
    result = result_of("train", *words, "--out", place.out / "runs" / name)
    return {key: result[key] for key in KEYS if key in result}


# --- the checks ---


def describe(_: Place) -> dict[str, Any]:
    """What the figures were measured on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": torch.cuda.get_device_name(),
        "memory_mb": round(properties.total_memory / 2**20),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }


def marked_tests(_: Place) -> dict[str, Any]:
    """The tests marked `gpu`."""
    call = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
    ended = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
    return {"summary": ended.stdout.strip().splitlines()[-1]}


def families(place: Place) -> dict[str, Any]:
    """Two epochs of two steps of each family of recipes, with evaluation and checkpoint."""
    names = ["airbench94"] if place.small else list(RUNS)
    ended: dict[str, Any] = {}
    for name in names:
        try:
            ended[name] = train(place, name, "--recipe", name, *place.words(name), "--workers", 1)
        except Exception as error:
            ended[name] = {"error": str(error)[-1500:]}
    failed = [name for name, result in ended.items() if "error" in result]
    assert not failed, json.dumps({name: ended[name] for name in failed}, indent=1)
    return ended


def agreement(place: Place) -> dict[str, Any]:
    """A2's first losses in float64 on a CPU and on the GPU, and the images that both see."""
    words = ["--recipe", "a2", *place.words("a2"), "train.precision=float64", "train.log_every=1"]
    runs = [RunDirectory(place.out / "runs" / f"a2-{device}") for device in ("cpu", "gpu")]
    losses, pictures = [], []
    for run in runs:
        device = DEVICE if run.path.name == "a2-gpu" else "cpu"
        result_of("train", *words, "--out", run.path, "--workers", 0, device=device)
        lines = read_metrics(run.metrics)
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
        with np.load(run.samples) as file:
            pictures.append(file["images"].tobytes())
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    assert pictures[0] == pictures[1], "the augmented images differ"
    assert difference < AGREES, f"losses differ by {difference}: {losses}"
    return {"losses": len(losses[0]), "largest_difference": difference}


def process_group(place: Place) -> dict[str, Any]:
    """torchrun and NCCL begin and end, with one process."""
    words = ["--recipe", "a2", *place.words("a2"), "--procs", 1, "--workers", 1]
    return train(place, "nccl", *words)


def whole_run(recipe: str, compiles: str) -> Callable[[Place], dict[str, Any]]:
    """A speed record's recipe, whole, on CIFAR-10 as folders."""

    def check(place: Place) -> dict[str, Any]:
        words: Sequence[object] = place.words(recipe)
        if not place.small:
            if place.cifar is None:
                raise LeftOut("needs --data")
            words = ["data.name=cifar10", f"data.root={place.cifar}"]
        if compiles != "false":
            words = [*words, f"train.compile={compiles}"]
        name = f"{recipe}-{compiles}"
        result = train(place, name, "--recipe", recipe, *words)
        note = "CIFAR-10 from class folders; by gpu_check"
        entry = records.make_entry(place.out / "runs" / name, note)
        return {**result, "record": {"recipe": recipe, "entry": entry}}

    return check


def step_of_airbench(place: Place) -> Any:
    """The engine's step beside a bare loop, where the network is small."""
    words = place.words("airbench94")
    if not place.small:
        if place.cifar is None:
            raise LeftOut("needs --data")
        words = ["data.name=cifar10", f"data.root={place.cifar}"]
    rounds = ("--steps", 2, "--rounds", 1) if place.small else ()
    return result_of("bench", "step", "--recipe", "airbench94", *words, *rounds)


def step_of_a2(place: Place) -> Any:
    """The engine's step beside a bare loop: ResNet-50 at 224 px, from files."""
    words: Sequence[object] = place.words("a2")
    rounds: Sequence[object] = ("--steps", 1, "--rounds", 1, "--workers", 0)
    if not place.small:
        photos = place.out / "photographs"
        if not photos.exists():
            draw_photographs(photos, {"train": 100, "test": 5})
        words = ["data.name=folder", f"data.root={photos}", "train.batch_size=256",
                 "train.device_batch_size=256", "optim.lr=6.0e-4", "train.epochs=100"]  # fmt: skip
        rounds = ("--steps", 5, "--rounds", 5)
    return result_of("bench", "step", "--recipe", "a2", *words, *rounds)


def draw_photographs(root: Path, counts: Mapping[str, int]) -> None:
    """Class folders of ten classes, in each so many JPEGs of noise at a photograph's size."""
    draws = np.random.Generator(np.random.Philox(7))
    for split, count in counts.items():
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = draws.integers(0, 256, (45, 60, 3), np.uint8)
                image = Image.fromarray(coarse).resize((480, 360), Image.Resampling.BICUBIC)
                image.save(folder / f"{number}.jpg", quality=90)


def optimizer(place: Place) -> Any:
    """LAMB beside timm's."""
    model = "test_resnet" if place.small else "resnet50"
    return result_of("bench", "optimizer", "--model", model)


def inference(place: Place) -> Any:
    """Images/s of ResNet-50 in float16, which the paper's table has of a V100."""
    model: Sequence[object] = ("resnet50", "--batch-size", 512)
    if place.small:
        model = ("test_resnet", "--size", 32, "--batch-size", 2, "--precision", "float32")
    return result_of("bench", "inference", "--model", *model)


def stop_and_resume(place: Place) -> dict[str, Any]:
    """A run that gets SIGTERM saves and ends with 143, and resumes to the very same weights."""
    epochs = 100 if place.small else 2000
    lengths = ("train.epochs", "eval.every", "train.checkpoint_epochs")
    words = ["--recipe", "myrtle-ghost-norm", *place.words("myrtle-ghost-norm")]
    words += [*(f"{key}={epochs}" for key in lengths), "train.log_every=1"]
    words += ["train.deterministic=true"]
    whole, stopped = (place.out / "runs" / name for name in ("never-stopped", "stopped"))
    train(place, whole.name, *words)
    call = [sys.executable, "-m", "rescue_cli", "train", *map(str, words), "--device", DEVICE]
    process = subprocess.Popen([*call, "--out", str(stopped)])
    metrics = RunDirectory(stopped).metrics
    while process.poll() is None and (not metrics.exists() or metrics.stat().st_size < 2000):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    assert code == 143, f"exit code {code}"
    steps = len(read_metrics(metrics))
    train(place, stopped.name, *words, "--resume")
    weights, resumed = (load_file(RunDirectory(run).weights) for run in (whole, stopped))
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in weights.items())
    return {"lines_before": steps}


def out_of_memory(place: Place) -> dict[str, Any]:
    """With a hundredth of the memory that the run has: exit code 5, and the key to change."""
    recipe = "myrtle-ghost-norm"
    torch.cuda.set_per_process_memory_fraction(1e-4)
    width = f"model.width={4 if place.small else 512}"
    words = ["--recipe", recipe, *place.words(recipe), width, "--device", DEVICE]
    code, _, err = command("train", *words, "--out", place.out / "runs" / "exhausted")
    assert code == 5, f"exit code {code}: {err[-1500:]}"
    return {"message": err.strip().splitlines()[-1]}


def profile(place: Place) -> dict[str, Any]:
    """Where a step's time goes."""
    words = ["--recipe", "airbench94", *place.words("airbench94"), "train.epochs=8", "--profile"]
    train(place, "profiled", *words)
    run = RunDirectory(place.out / "runs" / "profiled")
    table = run.profile_table.read_text().splitlines()
    return {"trace_bytes": run.profile.stat().st_size, "table": table[:40]}


# In this order, until the time is up
CHECKS: Mapping[str, Callable[[Place], Any]] = {
    "device": describe,
    "families": families,
    "agreement": agreement,
    "airbench94": whole_run("airbench94", "false"),
    "airbench94-muon": whole_run("airbench94-muon", "false"),
    "step-airbench94": step_of_airbench,
    "step-a2": step_of_a2,
    "stop-and-resume": stop_and_resume,
    "nccl": process_group,
    "out-of-memory": out_of_memory,
    "tests": marked_tests,
    "optimizer": optimizer,
    "inference": inference,
    "profile": profile,
    "airbench94-compiled": whole_run("airbench94", "true"),
    "airbench94-muon-compiled": whole_run("airbench94-muon", "true"),
}


# --- running them ---


def attempt(name: str, place: Place) -> dict[str, Any]:
    """Makes a check in this process."""
    started = time.perf_counter()
    try:
        outcome: dict[str, Any] = {"ok": True, "result": CHECKS[name](place)}
    except LeftOut as reason:
        outcome = {"ok": None, "left_out": str(reason)}
    except Exception:
        outcome = {"ok": False, "error": traceback.format_exc()[-4000:]}
    return {**outcome, "seconds": round(time.perf_counter() - started, 1)}


def attempt_apart(name: str, place: Place, seconds: float) -> dict[str, Any]:
    """Makes a check in a process of its own, which is killed after so many seconds."""
    answer = place.out / f"{name}.json"
    call = [sys.executable, "-m", "tests.gpu_check", str(place.out), "--only", name]
    call += [] if place.cifar is None else ["--data", str(place.cifar)]
    with (place.out / f"{name}.log").open("w") as log:
        try:
            subprocess.run(call, stdout=log, stderr=log, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return {"ok": False, "error": f"not done after {seconds:.0f} s", "seconds": seconds}
    if not answer.exists():
        return {"ok": False, "error": (place.out / log.name).read_text()[-4000:]}
    outcome: dict[str, Any] = json.loads(answer.read_text())
    return outcome


def check_all(place: Place, seconds: float) -> dict[str, Any]:
    """Makes the checks one after another while there is time, and writes the file after each."""
    place.out.mkdir(parents=True, exist_ok=True)
    if not torch.cuda.is_available():
        report: dict[str, Any] = {"device": None, "checks": {}, "records": []}
        write_json(place.out / FILE, report)
        return report
    end = time.monotonic() + seconds
    report = {"device": torch.cuda.get_device_name(), "checks": {}, "records": []}
    for name in CHECKS:
        left = end - time.monotonic()
        outcome: dict[str, Any] = {"ok": None, "left_out": "no time left"}
        if left > 10:
            outcome = attempt_apart(name, place, min(SECONDS, left))
        if record := (outcome.get("result") or {}).pop("record", None):
            report["records"].append(record)
        report["checks"][name] = outcome
        write_json(place.out / FILE, report)
        print(format_outcome(name, outcome), flush=True)
    return report


def format_outcome(name: str, outcome: Mapping[str, Any]) -> str:
    """`airbench94               ok        12.3 s`, and the last line of an error."""
    state = {True: "ok", False: "FAILED", None: "left out"}[outcome["ok"]]
    reason = outcome.get("left_out") or outcome.get("error", "").strip().split("\n")[-1]
    return f"{name:<25}{state:<9}{outcome.get('seconds', 0.0):>6.1f} s  {reason}".rstrip()


def unpacked(data: Path | None, out: Path) -> Path | None:
    """The folder of class folders that `--data` names, unpacked where it is a tar."""
    if data is None or data.is_dir():
        return data
    folder = out / "cifar"
    if not folder.exists():
        with tarfile.open(data) as archive:
            archive.extractall(folder, filter="data")
    return folder if (folder / "train").is_dir() else next(folder.glob("*/train")).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check")
    parser.add_argument("out", type=Path, nargs="?", help="folder for the file and the runs")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as class folders, or a tar of them")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", choices=CHECKS, help="one check, in this process")
    parser.add_argument("--add", type=Path, help="put the runs of a gpu-check.json on record")
    given = parser.parse_args()
    if given.add is not None:
        for record in json.loads(given.add.read_text())["records"]:
            print(records.add_entries(record["recipe"], [record["entry"]]))
        return
    if given.out is None:
        parser.error("OUT is missing")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    place = Place(out, unpacked(given.data, out))
    if given.only:
        write_json(out / f"{given.only}.json", attempt(given.only, place))
        return
    report = check_all(place, given.minutes * 60)
    if report["device"] is None:
        print("no GPU here: nothing was checked")
    print(out / FILE)
    sys.exit(any(outcome["ok"] is False for outcome in report["checks"].values()))


if __name__ == "__main__":
    main()
