"""Every private name of torch that the pretend device uses, each with the reason."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # the first operation under a mode imports it, when functions are replaced
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

# It sees each operation below autograd and autocast; torch documents it under this name
DispatchMode = TorchDispatchMode

# Under it an operation reaches the C++ of a wrapper, whose shape `squeeze_` and its like change
without_dispatch = no_dispatch

# A subclass with it is not passed through __torch_function__; documented with that protocol
no_torch_function = torch._C._disabled_torch_function_impl

# Autocast casts the arguments of an operation by their dispatch keys. For torch's C++ the tensors
# are on the CPU, since autograd would start a thread for each CUDA device that it saw
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

# An operation runs on CUDA if it has a kernel for it, or is composed of others
_CUDA_KEYS = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
_NOT_FUNCTIONAL = "CompositeExplicitAutogradNonFunctional"


def make_wrapper(kind: type[Tensor], data: Tensor) -> Tensor:
    """A tensor of a subclass without storage, with the shape, strides and dtype of `data`."""
    # the documented way to a subclass that wraps another tensor
    return Tensor._make_wrapper_subclass(
        kind,
        data.size(),
        strides=data.stride(),
        storage_offset=data.storage_offset(),
        dtype=data.dtype,
        layout=data.layout,
        device=torch.device("cpu"),
        requires_grad=False,
        _extra_dispatch_keys=_AUTOCAST,
    )


@functools.cache
def has_cuda_kernel(operation: OpOverload) -> bool:
    """Whether torch has the operation for CUDA; True where torch was built without CUDA."""
    if torch.version.cuda is None or operation.namespace != "aten":
        return True
    # the only table of kernels that Python can ask
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    name: str = operation.name()  # type: ignore[no-untyped-call]
    return any(registered(name, key) for key in (*_CUDA_KEYS, _NOT_FUNCTIONAL))


def is_view(operation: OpOverload) -> bool:
    """Whether the result shares its argument's memory."""
    # operators have no other description of what they return
    returns = operation._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def changes_arguments(operation: OpOverload) -> bool:
    return bool(operation._schema.is_mutable)


def replaced_names(group: Callable[..., Any], nothing: Callable[..., Any]) -> dict[str, Any]:
    """What is replaced by its dotted name while the pretend device exists.

    `group` receives torch's own function before its arguments.
    """
    grouping = torch._C._group_tensors_by_device_and_dtype
    return {
        # torch's start of CUDA, which every factory with a CUDA device calls first
        "torch.cuda._lazy_init": nothing,
        # fused optimizers, gradient clipping and the scaler ask C++ on which device tensors are
        "torch._C._group_tensors_by_device_and_dtype": lambda *a, **k: group(grouping, *a, **k),
        # optimizers ask the driver whether a CUDA graph is being captured; the old and the new name
        "torch.optim.Optimizer._accelerator_graph_capture_health_check": nothing,
        "torch.optim.Optimizer._cuda_graph_capture_health_check": nothing,
    }
