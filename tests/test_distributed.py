"""Process groups."""

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
