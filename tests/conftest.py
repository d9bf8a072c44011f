"""What tests of several rooms share: real images, unpacked once a session to a scratch folder."""

import os
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch

from rescue_cli.__main__ import main
from rescue_cli.recipe import own
from rescue_cli.runs import pool
from tests.helpers.processes import ForkedWorker

if TYPE_CHECKING:
    from tests.helpers.pretend_cuda.device import PretendGpu

LONGEST = ("test_readme.py", "test_error_rates.py", "test_processes.py")


class Ended(NamedTuple):
    """What a call of the command left."""

    code: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        return self.err.splitlines()


Rescue = Callable[..., Ended]


def pytest_configure() -> None:
    """Of several workers of xdist each keeps to its own cores; more of them than cores share some.

    It has no more threads than those, unless OMP_NUM_THREADS says how many.
    """
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if number:
        every = sorted(os.sched_getaffinity(0))
        mine = every[int(number) % len(every) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
        os.sched_setaffinity(0, mine)
        if "OMP_NUM_THREADS" not in os.environ:  # else torch chose by the cores there were before
            torch.set_num_threads(len(mine))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first, so that at the end no processor waits for one of them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def alike() -> Iterator[None]:
    """Draws and threads do not depend on the tests before, of which there are others at each load.

    A run in this process takes as many threads as there are cores.
    """
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tests that were skipped: a line for each reason."""
    reasons = Counter(_reason(report) for report in terminalreporter.getreports("skipped"))
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:5}  {reason}")


def _reason(report: pytest.TestReport) -> str:
    """Of a report of a skipped test, which has file, line and reason; also where xdist sent it."""
    found = report.longrepr
    return str(found[2] if isinstance(found, tuple | list) else found).removeprefix("Skipped: ")


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a command starts workers, they are forked from a process that has imported torch."""
    monkeypatch.setattr(pool, "_start_process", ForkedWorker)


@pytest.fixture
def pretend_cuda() -> "Iterator[PretendGpu]":
    """A machine with a CUDA device, which computes on the CPU and knows CUDA's rules."""
    from tests.helpers.pretend_cuda import device  # imports torch's compiler, which takes seconds

    with device.pretend_cuda() as gpu:
        yield gpu


@pytest.fixture
def rescue(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    forked_workers: None,  # noqa: ARG001
) -> Rescue:
    """Runs the command in an empty folder, in this process, on a terminal 80 columns wide.

    Of the user's own code each call knows what a new process would.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("RESCUE_DATA", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(own, "REGISTRY", own.Registry())
        monkeypatch.delenv(own.TRUSTED, raising=False)
        monkeypatch.setattr(sys, "argv", ["rescue", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert Path.cwd() == tmp_path
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of archives of real data that RESCUE_TEST_DATA names."""
    folder = os.environ.get("RESCUE_TEST_DATA")
    if not folder:
        pytest.skip("RESCUE_TEST_DATA is unset: no real data here")
    return Path(folder)


@pytest.fixture(scope="session")
def imagenet_sample(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 ImageNet training photographs, WNID/*.JPEG."""
    scratch = tmp_path_factory.mktemp("imagenet")
    _unpack(real_data / "imagenet-sample-256.tar", scratch, lambda _: True)
    return scratch / "imagenet-sample-256"


@pytest.fixture(scope="session")
def cifar_folders(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 re-encoded as JPEG: the first 20 training and 10 test images of each class."""
    scratch = tmp_path_factory.mktemp("cifar")

    def wanted(name: str) -> bool:
        split, _, file = name.partition("/")
        return int(Path(file).stem) < {"train": 20, "test": 10}[split]

    _unpack(real_data / "cifar10-imagefolder.tar.xz", scratch, wanted)
    return scratch


@pytest.fixture(scope="session")
def imagenette_folders(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imagenette, squashed to 160 px: train/WNID/*.JPEG and val/, every 40th image."""
    scratch = tmp_path_factory.mktemp("imagenette")
    places = iter(range(10**6))
    _unpack(real_data / "imagenette-160.tar.xz", scratch, lambda _: next(places) % 40 == 0)
    return scratch / "imagenette-160"


def _unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """The files of the archive whose names are wanted."""
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if member.isfile() and wanted(member.name):
                tar.extract(member, folder, filter="data")
