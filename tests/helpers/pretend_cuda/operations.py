"""What is known of single operations on CUDA that torch itself cannot be asked without a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.helpers.pretend_cuda.internals import changes_arguments

HALF = (torch.float16, torch.bfloat16)

# Launch no kernel although their result is new memory
WITHOUT_LAUNCH = {
    "_unsafe_view", "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty",
    "new_empty_strided", "resize_", "set_", "lift_fresh", "_local_scalar_dense",
}  # fmt: skip

# Their result's shape depends on values, which the host has to wait for
WAITING = {
    "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "bincount", "repeat_interleave",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

# Raise on CUDA under torch.use_deterministic_algorithms(True), as its documentation lists. Not
# there, as its backward is deterministic: max_pool2d
NOT_DETERMINISTIC = {
    "adaptive_avg_pool3d_backward", "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward",
    "avg_pool3d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward",
    "max_pool3d_with_indices_backward", "max_unpool2d", "max_unpool3d", "nll_loss2d_forward",
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "_ctc_loss_backward", "histc",
    "kthvalue", "put_", "_roi_align_backward", "_roi_pool_backward",
}  # fmt: skip
NOT_DETERMINISTIC_FOR_FLOATS = {"cumsum", "cumsum_"}

# What the CPU has under another name than CUDA
CPU_NAMES = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
}

# Functions that CUDA's autocast computes in float32 and the CPU's does not
IN_FLOAT32 = {
    "layer_norm", "group_norm", "softmax", "log_softmax", "pow", "exp", "log", "norm", "prod",
    "sum", "cumsum", "cumprod", "rsqrt", "reciprocal", "softplus", "logsumexp",
    "cosine_similarity", "__pow__", "__rpow__",
}  # fmt: skip

# In half precision processors have none of these, or take a hundred times as long
SLOW_IN_HALF = {
    "convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "gelu", "gelu_backward",
}  # fmt: skip


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The value with `function` applied to each tensor in its tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(map_tensors(function, part) for part in value)
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value's tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for part in value for tensor in tensors_in(part)]


def is_not_deterministic(name: str, first: object) -> bool:
    """Whether the operation, with this first argument, raises in deterministic mode on CUDA."""
    if name in NOT_DETERMINISTIC_FOR_FLOATS:
        return isinstance(first, Tensor) and first.is_floating_point()
    return name in NOT_DETERMINISTIC


def waits_for_index(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether the host waits for an indexing operation, because an index is a mask.

    It does not where one number of the host is assigned: that is a fill.
    """
    if name not in INDEXING:
        return False
    is_fill = len(arguments) > 2 and arguments[2].dim() == 0 and not arguments[2].is_cuda
    return not is_fill and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
        for index in arguments[1]
    )


def compute(operation: OpOverload, name: str, args: Any, kwargs: Any) -> Any:
    """The operation on CPU tensors; in float32 and rounded where the CPU has no half precision."""
    low = next((t.dtype for t in tensors_in((args, kwargs)) if t.dtype in HALF), None)
    if low is None or name not in SLOW_IN_HALF:
        try:
            return operation(*args, **kwargs)
        except RuntimeError as error:
            if "not implemented for" not in str(error) or changes_arguments(operation):
                raise
    assert low is not None, "only half precision is missing"
    args, kwargs = map_tensors(lambda t: t.float() if t.dtype == low else t, (args, kwargs))
    result = operation(*args, **kwargs)
    return map_tensors(lambda t: t.to(low) if t.dtype == torch.float32 else t, result)
