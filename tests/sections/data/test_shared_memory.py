"""What loader workers hand over needs no room in /dev/shm; workers that fail are told and end."""

import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, _utils

import rescue_cli
from rescue_cli import recipe as recipes
from rescue_cli.engine import signals
from rescue_cli.errors import RescueError, StoppedError
from rescue_cli.rundir import RunDirectory
from rescue_cli.sections.annotations import Objects, Sample
from rescue_cli.sections.data import shared_memory as slots
from rescue_cli.sections.data.shared_memory import ROOM, Parcels
from rescue_cli.sections.data.workers import end_workers, next_of, start_workers
from tests.helpers import rectangles
from tests.helpers.processes import PATIENCE, group_of, may_mount, mount_shared_memory, start

SIZES = ((3, 1100, 1500), (3, 1500, 2700))  # 5 MB, and more than goes through memory


@pytest.fixture(scope="module")
def mounts() -> None:
    if not sys.platform.startswith("linux") or not may_mount():
        pytest.skip("no /dev/shm of a test's own can be mounted here")


class Samples(Dataset[tuple[int, Sample]]):
    """Images as they come from a decoder, channels last, and as a crop leaves them."""

    def __getitem__(self, number: int) -> tuple[int, Sample]:
        channels, height, width = SIZES[number % 2]
        image = torch.full((height, width, channels), number, dtype=torch.uint8).permute(2, 0, 1)
        target = (
            np.full((height, width), number, dtype=np.uint8)
            if number % 3
            else Objects.of([((0, 1, 2, 3.5), 1, False)] * number)
        )
        return number, Sample(image[:, 1:] if number % 5 == 0 else image, target)


def hand_over() -> None:
    """Half as much again as 64 MB at a time, and each as it was made."""
    made = Samples()
    decoded = start_workers(made, iter(range(20)), 2, ahead=5)
    try:
        for number in range(20):
            (output, found), (_, expected) = next_of(decoded), made[number]
            assert output == number
            assert torch.equal(found.image, expected.image)
            if number % 5:  # sums over pixels depend on how they lie
                assert found.image.stride() == expected.image.stride()
            same = zip(found.target, expected.target, strict=True)
            assert all(np.array_equal(a, b) for a, b in same)
            found.image.add_(1)  # its own memory
    finally:
        end_workers(decoded)


def refuse(_: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm")


def with_less(limit: str, action: Callable[[], None]) -> None:
    """In a process of its own; with no limit torch's way of sending tensors is refused."""
    if limit:
        assert mount_shared_memory(limit)
    else:
        ForkingPickler.register(torch.Tensor, refuse)
    action()


def ends_well(limit: str, action: Callable[[], None]) -> None:
    process = multiprocessing.get_context("forkserver").Process(
        target=with_less, args=(limit, action)
    )
    process.start()
    process.join(PATIENCE)
    ended = process.exitcode
    process.kill()
    assert ended == 0, f"{limit}: {ended}"


@pytest.mark.parametrize("limit", ["64m", "1m"])
@pytest.mark.usefixtures("mounts")
def test_workers_hand_over_images_in_a_container(limit: str) -> None:
    ends_well(limit, hand_over)


def test_workers_hand_over_images_where_torch_can_send_no_tensor() -> None:
    ends_well("", hand_over)


def test_nothing_else_starts_loaders() -> None:
    """All of classification, evaluation, detection and segmentation goes through `workers`."""
    package = Path(rescue_cli.__file__).parent
    used = [file.name for file in package.rglob("*.py") if "DataLoader(" in file.read_text()]
    assert used == ["workers.py"]


def test_what_is_larger_than_a_slot_goes_with_the_rest() -> None:
    parcels = Parcels(3)
    arrays = [np.arange(ROOM // 16), np.zeros(0), np.arange(ROOM // 8), np.arange(5)[::2]]
    packed = parcels.pack(2, arrays)
    assert packed.ends[-1] == ROOM // 2
    assert len(packed.content) > ROOM
    parcels.pack(1, arrays)  # another slot
    for found, expected in zip(parcels.unpack(packed), arrays, strict=True):
        np.testing.assert_array_equal(found, expected)


# --- workers that do not start, do not answer, or cannot ---


def start_four_in_too_little() -> None:
    """Room for the semaphores of two."""
    with pytest.raises(RescueError) as error:
        start_workers(Samples(), iter(range(9)), 4)
    assert str(error.value) == (
        "/dev/shm: no room for the semaphores of 4 loader workers (No space left on device). "
        "Give it some MB (docker run --shm-size=64m), or use --workers 0."
    )
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("mounts")
def test_too_little_for_semaphores_is_told_and_leaves_no_worker() -> None:
    ends_well("64k", start_four_in_too_little)


def test_a_fork_that_is_refused_is_told_and_leaves_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = multiprocessing.active_children()
    started: list[int] = []
    fork = os.fork

    def second_fails() -> int:
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(1)
        return fork()

    monkeypatch.setattr(os, "fork", second_fails)
    with pytest.raises(RescueError) as error:
        start_workers(Samples(), iter(range(9)), 2)
    assert str(error.value) == (
        "--workers: 2 loader workers could not be started (Resource temporarily unavailable). "
        "Use fewer."
    )
    assert started
    assert multiprocessing.active_children() == before


def test_a_worker_that_cannot_hand_over_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots.Parcels, "pack", lambda *_: lambda: None)  # cannot be pickled
    decoded = start_workers(Samples(), iter(range(9)), 1)
    with pytest.raises(RescueError, match="could not send what it had loaded") as error:
        next_of(decoded)
    assert "If memory or /dev/shm is full" in str(error.value)
    end_workers(decoded)


class Never(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        time.sleep(PATIENCE if number else 0)
        return number


def test_a_signal_is_heard_while_images_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    before = multiprocessing.active_children()
    with signals.Stop(RunDirectory(tmp_path)) as stop:
        decoded = start_workers(Never(), iter(range(9)), 1)
        assert next_of(decoded) == 0
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(StoppedError) as error:
            next_of(decoded)
        assert error.value.exit_code == stop.exit_code == 143
        assert "stopped while waiting for images that did not come" in str(error.value)
        end_workers(decoded)
    for process in multiprocessing.active_children():
        process.join(10)  # which torch 2.11 does not do after it has killed one
    assert multiprocessing.active_children() == before, "a worker that ignores SIGTERM too"


class Slow(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        time.sleep(1.7 if number else 0)  # longer than a look
        return number


def test_a_long_step_after_a_signal_leaves_time_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "WAIT_SECONDS", 0.9)
    with signals.Stop(RunDirectory(tmp_path)) as stop:
        decoded = start_workers(Slow(), iter(range(9)), 1, ahead=1)
        assert next_of(decoded) == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143
        time.sleep(1.0)  # a step, longer than a wait may take
        for number in (1, 2, 3):  # together longer too
            assert next_of(decoded) == number
        end_workers(decoded)


def test_an_order_that_cannot_be_sent_is_an_error() -> None:
    decoded = start_workers(Samples(), iter([0, lambda: None]), 1)  # cannot be pickled
    assert next_of(decoded)[0] == 0
    with pytest.raises(
        RescueError, match=r"could not be sent to a loader worker .*(pickle|local object)"
    ) as error:
        next_of(decoded)
    assert "use fewer workers (--workers), then --resume." in str(error.value)
    end_workers(decoded)


# --- through the command ---

NETWORK = ["model.name=test_resnet", "train.batch_size=8", "train.device_batch_size=4"]


def classify(root: Path) -> list[str]:
    """64 photographs, seen at 448 pixels."""
    draws = np.random.default_rng(0)
    for number in range(64):
        for split in ("train", "val"):
            path = root / split / "ab"[number % 2] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((400, 400)).save(path)
    data = f"data={{name: folder, train_root: {root}/train, test_root: {root}/val}}"
    sizes = ["data.train_size=64", "eval.sizes=[448]"]
    return ["--recipe", "pytorch", data, *sizes, *NETWORK, "train.epochs=0.125"]


@pytest.mark.usefixtures("mounts")
def test_two_processes_train_and_evaluate_in_a_megabyte(tmp_path: Path) -> None:
    _, name, *changes = classify(tmp_path / "photos")
    output = tmp_path / "told"
    made = recipes.load(name, changes)
    for worker in group_of(2, tmp_path / "run", made, output, workers=1, shared_memory="1m"):
        worker.ends(0)
    assert (tmp_path / "run" / "result.json").exists()


def detect(root: Path) -> list[str]:
    large(rectangles.voc(root, 12, 12) / "JPEGImages")
    for file in (root / "Annotations").iterdir():  # boxes stay, in a corner of what is large now
        message = file.read_text()
        message = re.sub("<width>.*</height>", "<width>1600</width><height>1200</height>", message)
        file.write_text(message)
    return [
        *("--recipe", "detection-voc", "model.backbone=test_resnet", "model.min_size=48"),
        *("model.max_size=64", "model.strides=[8,16]", "model.anchors=[16,32,48]"),
        *("model.norms=trained", "eval.sizes=[48]", "train.batch_size=4", "model.proposals=8"),
        *("train.device_batch_size=2", "train.epochs=1", "schedule.milestones=[1]"),
        *("data.name=voc-folder", f"data.root={root}"),
    ]


def segment(root: Path) -> list[str]:
    for folder in rectangles.masks(root, 12, 12).glob("*/*"):
        if folder.is_dir():
            large(folder)
    return [
        *("--recipe", "segmentation-ade20k", "model.backbone=test_resnet", "eval.sizes=[48]"),
        "augment=[{name: scale-crop, short_side: 600, scale: [1.0, 1.0], size: 600}]",
        *("train.batch_size=4", "train.device_batch_size=2", "train.epochs=1"),
        *("train.precision=float32", "data.name=mask-folder", f"data.root={root}"),
    ]


def large(folder: Path) -> None:
    """Brings the pictures of a folder to 6 MB each."""
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.resize((1600, 1200), Image.Resampling.NEAREST).save(path)


@pytest.mark.long
@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("procs", [1, 2])
@pytest.mark.parametrize("limit", ["64m", "1m"])
@pytest.mark.parametrize("task", [classify, detect, segment])
def test_the_command_in_a_container(
    task: Callable[[Path], list[str]], limit: str, procs: int, tmp_path: Path
) -> None:
    words = task(tmp_path / "data")
    run, output = tmp_path / "run", tmp_path / "told"
    given = ["--device", "cpu", "--workers", "2", *(["--procs", "2"] if procs == 2 else [])]
    start(["train", *given, "--out", run, *words], output, shared_memory=limit, cores=procs).ends(0)
    out = ["--out", tmp_path / "eval"]
    start(["eval", *given, *out, run], output, shared_memory=limit, cores=procs).ends(0)
    if task is classify and procs == 1:
        image = next((tmp_path / "data" / "val").rglob("*.jpg"))
        start(["predict", run, image], output, shared_memory=limit).ends(0)
