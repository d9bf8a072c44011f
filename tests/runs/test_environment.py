"""How many loader workers a process gets when nobody says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rescue_cli.runs.environment import default_workers, describe_environment


@pytest.mark.parametrize(
    ("cores", "cpu", "cuda"), [(1, 1, 1), (2, 2, 1), (8, 8, 7), (26, 8, 25), (192, 8, 32)]
)
def test_workers_follow_the_cores_of_a_process(cores: int, cpu: int, cuda: int) -> None:
    assert (default_workers(cores, "cpu"), default_workers(cores, "cuda")) == (cpu, cuda)


def test_what_is_recorded_is_what_is_given_or_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")

    def recorded(device: str, workers: int | None) -> Any:
        environment = describe_environment(
            verb="train", seed=0, device=device, procs=2, workers=workers, cache=Path("cache")
        )
        return environment["threads"], environment["workers"]

    assert recorded("cuda", None) == (16, 15)
    assert recorded("cpu", None) == (16, 8)
    assert recorded("cuda", 3) == (16, 3)
