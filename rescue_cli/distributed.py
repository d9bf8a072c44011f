"""The only user of `torch.distributed`: every other module asks here for rank and world."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Joins the process group that torchrun's environment describes, if there is one."""
    if "RANK" not in os.environ:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=timedelta(minutes=10),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the processes; itself where there is one.

    Buffers are not broadcast: batch statistics are kept equal by `engine.norms`.
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
