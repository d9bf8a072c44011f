"""How many threads and loader workers a process gets, asked and unasked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rescue_cli import recipe as recipes
from rescue_cli.errors import DataError, UsageError
from rescue_cli.rundir import RunDirectory, read_environment, write_json
from rescue_cli.runs.directory import describe_change, prepare
from rescue_cli.runs.environment import default_workers, describe_environment


def test_a_run_that_resumes_with_other_threads_says_so(tmp_path: Path) -> None:
    run, recipe = RunDirectory(tmp_path / "run"), recipes.load("quickstart")
    facts = describe_environment(
        verb="train", seed=0, device="cpu", procs=1, workers=0, cache=tmp_path
    )
    said = []
    for threads in (2, 2, 1, 2):
        prepare(run.path, recipe, {**facts, "threads": threads}, resume=True)
        said.append(describe_change(read_environment(run)))
        run.last.parent.mkdir(exist_ok=True)
        run.last.touch()
    assert said[:2] == [[], []]
    assert said[2] == [
        "earlier steps ran with threads 2 (now 1): "
        "the weights will differ from an uninterrupted run's in their last bits"
    ]
    assert said[3] == [said[2][0].replace("threads 2 (now 1)", "threads 1 (now 2)")]
    write_json(run.environment, {**facts, "earlier": {"threads": 2}})
    with pytest.raises(DataError, match="earlier"):
        read_environment(run)


@pytest.mark.parametrize(
    ("cores", "cpu", "cuda"), [(1, 1, 1), (2, 2, 1), (8, 8, 7), (26, 8, 25), (192, 8, 32)]
)
def test_workers_follow_the_cores_of_a_process(cores: int, cpu: int, cuda: int) -> None:
    assert (default_workers(cores, "cpu"), default_workers(cores, "cuda")) == (cpu, cuda)


def test_what_is_recorded_is_what_is_given_or_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")

    def recorded(device: str, workers: int | None) -> Any:
        environment = describe_environment(
            verb="train", seed=0, device=device, procs=2, workers=workers, cache=Path("cache")
        )
        return environment["threads"], environment["workers"]

    assert recorded("cuda", None) == (16, 15)
    assert recorded("cpu", None) == (16, 8)
    assert recorded("cuda", 3) == (16, 3)


def test_each_process_takes_the_threads_that_omp_num_threads_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(32)))

    def recorded(given: str) -> Any:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        environment = describe_environment(
            verb="train", seed=0, device="cpu", procs=2, workers=None, cache=Path("cache")
        )
        return environment["threads"], environment["workers"]

    assert recorded("3") == (3, 8), "its workers follow its cores all the same"
    assert recorded("2,1") == (2, 8)
    assert recorded("") == (16, 8), "as unset"
    with pytest.raises(UsageError, match="OMP_NUM_THREADS: '0' must be an integer of at least 1"):
        recorded("0")
