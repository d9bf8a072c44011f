"""The only user of `torch.distributed`: every other module asks here for rank and world."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

TIMEOUT = timedelta(minutes=10)


@dataclass
class _Membership:
    """In a group that did not begin with one run, and may do several."""

    store: Store
    rank: int
    size: int
    local_rank: int


_member: _Membership | None = None


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


def given_rank() -> int:
    """The rank that this process was started with, in a group or before it joins one."""
    return _member.rank if _member else int(os.environ.get("RANK", "0"))


def is_grouped() -> bool:
    """Whether this process was started as one of a group."""
    return _member is not None or "RANK" in os.environ


def local_rank() -> int:
    return _member.local_rank if _member else int(os.environ.get("LOCAL_RANK", "0"))


def gpu() -> int:
    """The number of this process's GPU among those it sees, which may be its own alone."""
    return local_rank() % torch.cuda.device_count() if _member else local_rank()


def store_at(host: str, port: int, *, serves: bool, seconds: float) -> Store:
    """What the processes of a group tell each other through; one of them serves it."""
    return TCPStore(
        host, port, is_master=serves, timeout=timedelta(seconds=seconds), wait_for_workers=False
    )


def prefixed(store: Store, prefix: str) -> Store:
    return PrefixStore(prefix, store)


def become(store: Store, rank: int, size: int, local_rank: int, run: int) -> None:
    """The next `group` meets in this store, for the run of that number."""
    global _member
    store.set_timeout(TIMEOUT)
    _member = _Membership(prefixed(store, f"run/{run}"), rank, size, local_rank)


def leave() -> None:
    global _member
    _member = None


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Joins the process group that this process is a member of, if there is one.

    Else the one that torchrun's environment describes.
    """
    if not is_grouped():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    where: dict[str, Any] = {}
    if _member is not None:
        where = {"store": _member.store, "rank": _member.rank, "world_size": _member.size}
    dist.init_process_group(
        backend,
        timeout=TIMEOUT,
        device_id=device if device.type == "cuda" else None,
        **where,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the processes; itself where there is one.

    Buffers are not broadcast: batch statistics are kept equal by `engine.batch_norm`.
    """
    if not dist.is_initialized():
        return model
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def max_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Each value's maximum over all processes (one small collective)."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    found: list[float] = tensor.tolist()
    return found


def gather(rows: Tensor, device: torch.device) -> Tensor:
    """The rows (n_rank, k) of all processes one after another, on every process."""
    if not dist.is_initialized():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=device))
    most = max(int(c) for c in counts)
    padded = torch.zeros((most, *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows.to(device)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(c)] for p, c in zip(parts, counts, strict=True)]).to(rows.device)


def union(count: int, names: list[str]) -> tuple[int, list[str]]:
    """The sum of all processes' counts and the names that any of them holds, in order."""
    if not dist.is_initialized():
        return count, names
    held: list[tuple[int, list[str]]] = [(0, [])] * world_size()
    dist.all_gather_object(held, (count, names))
    return sum(c for c, _ in held), list(dict.fromkeys(n for _, ns in held for n in ns))


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
