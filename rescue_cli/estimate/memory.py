"""Peak memory of a GPU, counted with fake tensors, which have shapes but no data."""

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rescue_cli.batch import Batch
from rescue_cli.build.feeds import build_normalise, train_size
from rescue_cli.build.losses import build_loss
from rescue_cli.build.networks import autocast
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.engine.batch_norm import RunningStatistics
from rescue_cli.engine.step import Step
from rescue_cli.estimate.flops import CLASSES, channels, network_of
from rescue_cli.recipe import Recipe
from rescue_cli.sections.averaging import RunLength
from rescue_cli.sections.data import facts_of
from rescue_cli.sections.loss import micro_batch_loss
from rescue_cli.sections.selection import KeepAll

MEGABYTE = 2**20  # as torch and the papers count memory
BLOCK = 512  # bytes, to a multiple of which torch's CUDA allocator rounds up
CPU = torch.device("cpu")
# Operations of networks that autocast computes in float32 on CUDA, but not on a CPU
IN_FLOAT32 = {
    "layer_norm", "group_norm", "softmax", "log_softmax", "pow", "exp", "log", "norm", "prod",
    "sum", "cumsum", "rsqrt", "reciprocal", "softplus", "logsumexp", "cosine_similarity",
    "nll_loss", "binary_cross_entropy_with_logits", "cross_entropy", "cross_entropy_loss",
    "mse_loss", "kl_div",
}  # fmt: skip


def peak_memory(recipe: Recipe, micro_batch_size: int | None = None, gpus: int = 1) -> float:
    """The peak of PyTorch's allocator on a GPU during a step, in MB of 2^20 bytes.

    It is the engine's own step over at most two micro-batches: forward, backward, optimizer and the
    optimizer's state. It leaves out CUDA's context, workspaces of convolutions, a data set that is
    on the device, what augmentation needs before the forward pass, what compiling saves, and
    fragmentation.
    """
    if micro_batch_size is not None:
        recipe = recipe.with_overrides(f"train.device_batch_size={micro_batch_size}")
    train, classes = recipe.train, facts_of(recipe.data.name, recipe.data).classes or CLASSES
    size = train_size(recipe)
    shape = (train.device_batch_size, channels(recipe), size, size)
    local = max(1, train.batch_size // shape[0] // gpus)
    network = network_of(recipe)
    with _Fake(), Live() as live, _CudaCasts():
        _materialise(network)
        feed = _Feed(shape, None if recipe.mix.name == "none" else classes, local)
        with warnings.catch_warnings():  # of deepcopy, which an average makes of the network
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            step = _step(recipe, network, feed)
        buckets = [_like(p) for p in _trainable_parameters(network)] if gpus > 1 else None
        _share(network, [_like(p) for p in _trainable_parameters(network)])
        step.optimizers.step()  # which makes its state
        _share(network, buckets)
        live.peak = live.now
        step(0)
        peak: int = live.peak
    return peak / MEGABYTE


def saved_megabytes(recipe: Recipe) -> tuple[float, float]:
    """The sizes of a checkpoint (weights, optimizer, average) and of the weights alone, in MB of
    2^20 bytes; a fit of a head writes no checkpoint.
    """
    network, size = network_of(recipe), train_size(recipe)
    with _Fake():
        _materialise(network)
        weights = _megabytes(network.state_dict())
        if recipe.fits_head:
            return 0.0, weights
        with warnings.catch_warnings():  # of deepcopy, which an average makes of the network
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            step = _step(recipe, network, _Feed((1, channels(recipe), size, size), None, 1))
        _share(network, [_like(p) for p in _trainable_parameters(network)])
        step.optimizers.step()  # which makes its state
        state = [network.state_dict(), step.optimizers.state_dict(), step.average.state_dict()]
        return _megabytes([*state, step.select.state_dict()]), weights


def _megabytes(state: object) -> float:
    """Of the storages of all tensors in it, each counted once."""
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    storages = {s._cdata: s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values()) / MEGABYTE


def largest_micro_batch(recipe: Recipe, peak: float, megabytes: float, gpus: int = 1) -> int | None:
    """The largest micro-batch that fits, divides the batch and is even over GPUs; None without one.

    `peak` is the memory that the recipe's own micro-batches need, which is too much; in MB.
    """
    train = recipe.train
    an_image = peak / train.device_batch_size
    for size in range(train.device_batch_size - 1, 0, -1):
        if train.batch_size % size or train.batch_size // size % gpus:
            continue
        if an_image * size > megabytes:
            continue  # per image, weights and state take more the smaller the micro-batch
        needed = peak_memory(recipe, size, gpus)
        if needed <= megabytes:
            return size
        an_image = needed / size
    return None


def fit_micro_batch(recipe: Recipe, megabytes: float, gpus: int = 1) -> tuple[int, float] | None:
    """The largest micro-batch whose step fits into that memory, in MB, and what it needs.

    At most each GPU's share of the batch; None where not even one image fits.
    """
    most = recipe.train.batch_size // gpus
    whole = recipe.with_overrides(f"train.device_batch_size={most}")
    peak = peak_memory(whole, gpus=gpus)
    if peak <= megabytes:
        return most, peak
    size = largest_micro_batch(whole, peak, megabytes, gpus)
    return None if size is None else (size, peak_memory(whole, size, gpus))


def has_batch_norm(recipe: Recipe) -> bool:
    """Whether the recipe's network normalises over the images of a micro-batch."""
    return any(isinstance(module, _BatchNorm) for module in network_of(recipe).modules())


def _step(recipe: Recipe, network: nn.Module, feed: "_Feed") -> Step:
    """The engine's step on the micro-batches of `feed`, without augmentation and mixing."""
    normalise = build_normalise(recipe, CPU)
    loss = build_loss(recipe)
    scaler = torch.amp.GradScaler("cpu", enabled=False)  # it needs few bytes, and would read values
    return Step(
        feed=feed,
        augment=lambda batch: replace(batch, images=normalise(batch.images)),
        mix=lambda batch: batch,
        select=KeepAll(),
        task=recipe.task(micro_batch_loss(loss), 0),
        model=network,
        optimizers=build_optimizers(recipe, network, 1000, scaler),
        statistics=RunningStatistics(network, recipe.train.micro_batches),
        average=recipe.averaging(network, RunLength(1000, 1000)),
        autocast=autocast(recipe.train.precision, CPU),
        device=CPU,
        seed=0,
        local_micro_batches=feed.count,
        loss_factor=loss.factor,
    )


class _Feed:
    """Micro-batches of fake images, at most two per step: more do not need more memory."""

    waited = 0.0
    replaced = 0

    def __init__(self, shape: Sequence[int], classes: int | None, local: int) -> None:
        self.shape = shape
        self.classes = classes
        self.count = min(2, local)
        self.corrupt: list[str] = []

    def start(self, step: int) -> None:
        """Nothing to prepare."""

    def micro_batches(self, step: int) -> Iterator[Batch]:
        for number in range(self.count):
            images = torch.empty(self.shape, dtype=torch.uint8)
            if self.classes is None:
                targets = torch.empty(self.shape[0], dtype=torch.int64)
            else:
                targets = torch.empty(self.shape[0], self.classes)
            yield Batch(images, targets, step, number, np.arange(len(images)))

    def close(self) -> None:
        """Nothing to end."""


class _Fake(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Is not copied with a network of fake tensors, which averaging of weights copies."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_Fake":
        return self


class Live(TorchDispatchMode):
    """Bytes of all storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.sizes:
            return
        self.sizes[storage._cdata] = -(-storage.nbytes() // BLOCK) * BLOCK
        self.now += self.sizes[storage._cdata]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class _CudaCasts(TorchFunctionMode):
    """Casts to float32 what CUDA's autocast casts and the CPU's does not."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _in_float32, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _in_float32(tensor: Tensor) -> Tensor:
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor


def _materialise(network: nn.Module) -> None:
    """Replaces tensors on the meta device by fake tensors on the CPU with the same strides."""
    for module in network.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(_like(parameter), parameter.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = _like(buffer)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _share(network: nn.Module, gradients: list[Tensor] | None) -> None:
    """Sets the parameters' gradients, which several processes keep from step to step."""
    if gradients is not None:
        for parameter, gradient in zip(_trainable_parameters(network), gradients, strict=True):
            parameter.grad = gradient
