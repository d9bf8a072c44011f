"""`run_all`: what it starts, yields and raises; the workers are small scripts in place of torch."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rescue_cli.errors import DataError
from rescue_cli.runs import pool

# Work as `rescue_cli.runs.worker -`: a directory per line on stdin, its exit code on stdout
SUCCEED = "import sys\nfor line in sys.stdin: print(0, flush=True)"
FAIL = """
import json, pathlib, sys
for line in sys.stdin:
    path = pathlib.Path(line.strip())
    (path / "started").touch()
    record = {"rank": 0, "exit_code": 3, "message": "no such folder"}
    (path / "failure.json").write_text(json.dumps(record))
    print(3, flush=True)
"""
SAVE_WHEN_STOPPED = """
import pathlib, signal, sys, time
for line in sys.stdin:
    path = pathlib.Path(line.strip())
    if path.name == "0":
        print(0, flush=True)
        continue
    def save(*_):
        (path / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (path / "started").touch()
    time.sleep(60)
"""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes workers run a script."""

    def use(script: str) -> None:
        call = [sys.executable, "-S", "-c", script]
        pipe = subprocess.PIPE
        monkeypatch.setattr(
            pool,
            "_start_process",
            lambda _: subprocess.Popen(call, stdin=pipe, stdout=pipe, text=True),
        )

    return use


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / str(number) for number in range(3)]
    for path in found:
        path.mkdir()
    return found


def test_each_run_is_yielded_as_it_ends(worker: Callable[[str], None], paths: list[Path]) -> None:
    worker(SUCCEED)
    ended = list(pool.run_all(paths, 2))
    assert sorted(run.path for run in ended) == paths
    assert [run.error for run in ended] == [None] * 3


def test_no_run_is_started_after_the_deadline(
    worker: Callable[[str], None], paths: list[Path]
) -> None:
    worker(SUCCEED)
    assert list(pool.run_all(paths, 1, deadline=time.monotonic())) == []


def test_an_error_that_all_runs_would_make_starts_no_further_run_and_is_raised(
    worker: Callable[[str], None], paths: list[Path]
) -> None:
    worker(FAIL)
    with pytest.raises(DataError, match="no such folder"):
        list(pool.run_all(paths, 1))
    assert [(path / "started").exists() for path in paths] == [True, False, False]


def test_leaving_the_loop_starts_no_further_run_and_stops_the_one_at_work(
    worker: Callable[[str], None], paths: list[Path]
) -> None:
    worker(SAVE_WHEN_STOPPED)
    for ended in pool.run_all(paths, 2):
        assert ended.path == paths[0]
        end = time.monotonic() + 30
        while not (paths[1] / "started").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        break
    assert (paths[1] / "saved").exists()
    assert not (paths[2] / "started").exists()
