"""Process groups: the only module that uses `torch.distributed`."""

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

TIMEOUT = timedelta(minutes=10)
LEAVE_SECONDS = 25.0  # to leave the group of a stopped run; another process may still save


@dataclass
class _Membership:
    """This process's place in a group that was not started by torchrun and may do several runs."""

    store: Store
    rank: int
    size: int
    local_rank: int


_member: _Membership | None = None
_left: dist.ProcessGroup | None = None  # see `_leave`


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


def launched_rank() -> int:
    """The rank that this process was launched with, even before it joins the process group."""
    return _member.rank if _member else int(os.environ.get("RANK", "0"))


def is_launched_in_group() -> bool:
    """Whether this process was launched as one of several."""
    return _member is not None or "RANK" in os.environ


def is_command() -> bool:
    """Whether this process executes the command of a group, and so reports how that ends."""
    return _member is not None and _member.rank == 0


def local_rank() -> int:
    return _member.local_rank if _member else int(os.environ.get("LOCAL_RANK", "0"))


def gpu_index() -> int:
    """The index of this process's GPU among the visible ones."""
    return local_rank() % torch.cuda.device_count() if _member else local_rank()


def create_store(host: str, port: int, *, serves: bool, seconds: float) -> Store:
    """A TCP store for the processes of a group; one of them `serves` it."""
    return TCPStore(
        host, port, is_master=serves, timeout=timedelta(seconds=seconds), wait_for_workers=False
    )


def prefix_store(store: Store, prefix: str) -> Store:
    return PrefixStore(prefix, store)


def set_membership(store: Store, rank: int, size: int, local_rank: int, run: int) -> None:
    """Sets the store and rank that the next `process_group` uses, for run number `run`."""
    global _member
    store.set_timeout(TIMEOUT)
    _member = _Membership(prefix_store(store, f"run/{run}"), rank, size, local_rank)


def clear_membership() -> None:
    global _member, _left
    _member = _left = None


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the process group that `set_membership` or torchrun's environment describes, if any.

    Leaves it at the end of the body, but not where the body fails: the other processes may sit in
    a collective, and leaving would wait for them. The failure is recorded first; then this process
    ends, or calls `leave_failed_group`.
    """
    if not is_launched_in_group():
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
    yield
    _leave()


def leave_failed_group(*, together: bool) -> None:
    """Leaves the group of a failed run, if this process is in one; may wait for the others.

    Args:
        together: Whether all processes failed alike, so that none waits in a collective. Otherwise
            NCCL's collectives are aborted: on this device, some may wait for the others for ever.
    """
    if not dist.is_initialized():
        return
    if not together and dist.get_backend() == "nccl":
        assert dist.group.WORLD is not None
        dist.group.WORLD.abort()
    _leave()


def _leave() -> None:
    """Leaves the group, and keeps the object until the next group is left.

    Else DDP, which an error's traceback holds for longer, would be the last to hold it. In torch
    2.11 DDP ends a gloo group's threads without releasing the GIL, for which one of them may wait.
    """
    global _left
    group = dist.group.WORLD
    dist.destroy_process_group()
    _left = group


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """The model in DistributedDataParallel, or the model itself in a single process.

    Buffers are not broadcast: `engine.batch_norm` keeps batch statistics equal.
    """
    if not dist.is_initialized():
        return model
    wrapper = nn.parallel.DistributedDataParallel
    is_new = "forward_sync_buffers" in inspect.signature(wrapper).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
    return wrapper(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts, a backward pass leaves its gradients in this process."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


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
    maxima: list[float] = tensor.tolist()
    return maxima


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n_rank, k) of all processes, concatenated by rank, on every process."""
    if not dist.is_initialized():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(c) for c in counts)
    padded = torch.zeros((most, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(c)] for p, c in zip(parts, counts, strict=True)])


def merge_over_ranks(count: int, names: list[str]) -> tuple[int, list[str]]:
    """The sum of all processes' counts, and the distinct names of all processes, in order."""
    if not dist.is_initialized():
        return count, names
    gathered: list[tuple[int, list[str]]] = [(0, [])] * world_size()
    dist.all_gather_object(gathered, (count, names))
    return sum(c for c, _ in gathered), list(dict.fromkeys(n for _, ns in gathered for n in ns))


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
