"""Process groups."""

import weakref
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from rescue_cli import distributed


def older_wrapper(_module: nn.Module, *, broadcast_buffers: bool = True, **_options: Any) -> Any:
    return broadcast_buffers


def newer_wrapper(_module: nn.Module, *, forward_sync_buffers: bool = True, **_options: Any) -> Any:
    return forward_sync_buffers


@pytest.mark.parametrize("wrapper", [older_wrapper, newer_wrapper])
def test_buffers_are_not_synchronised_under_either_name_of_the_argument(
    wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", wrapper)
    wrapped: Any = distributed.wrap_ddp(nn.Linear(1, 1), torch.device("cpu"))
    assert wrapped is False


def group_of_run(number: int) -> weakref.ref[Any]:
    """The group of a run on one process, which has left it."""
    distributed.set_membership(dist.HashStore(), 0, 1, 0, number)  # type: ignore[attr-defined]
    with distributed.process_group(torch.device("cpu")):
        return weakref.ref(dist.group.WORLD)


def test_a_group_that_was_left_is_held_until_the_next_is() -> None:
    """Else the wrapped model may be the last to hold it, and in torch 2.11 waits for ever."""
    first = group_of_run(0)
    assert first() is not None

    second = group_of_run(1)
    assert first() is None
    assert second() is not None

    distributed.clear_membership()
    assert second() is None
