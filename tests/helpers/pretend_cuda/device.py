"""The pretend device: its tensors, the modes that see every operation, and what they replace."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from tests.helpers.pretend_cuda import internals, operations
from tests.helpers.pretend_cuda.operations import map_tensors, tensors_in
from tests.helpers.pretend_cuda.record import Counts, place

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
MEMORY = 80 * 2**30  # bytes that the device says it has
NOT_THERE_YET = 0xA5  # what host memory holds before a copy into it that nobody waited for is done
MISMATCH = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
)


class PretendTensor(Tensor):
    """A tensor on the pretend device; `data_on_cpu` holds its values."""

    data_on_cpu: Tensor
    gpu: "PretendGpu"
    __torch_function__ = internals.no_torch_function  # type: ignore[assignment]

    def __new__(cls, gpu: "PretendGpu", data: Tensor) -> "PretendTensor":
        # In inference mode a view of a weight is none of the tensors that autograd cannot track
        with torch.inference_mode(data.is_inference()):
            tensor = internals.make_wrapper(cls, data)
        assert isinstance(tensor, PretendTensor)
        tensor.data_on_cpu, tensor.gpu = data, gpu
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func}: this tensor's pretend device does not exist any more")

    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    def get_device(self) -> int:
        return 0

    def is_pinned(self, *_: Any) -> bool:
        return False

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """C++ takes the tensor for one on the CPU, and would not copy it there."""
        device, args, kwargs = _split_device(args, kwargs)
        if device is None or device.type == "cuda":
            return super().to(*args, **kwargs)
        non_blocking = kwargs.pop("non_blocking", False)
        return self.gpu.copy_to_host(self, non_blocking=non_blocking).to(*args, **kwargs)

    def cpu(self, *_: Any, **kwargs: Any) -> Tensor:
        return self.to(CPU, **kwargs)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def tolist(self) -> Any:
        self.gpu.wait("tolist")
        return self.data_on_cpu.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    __array__ = numpy

    def record_stream(self, stream: Any) -> None:
        """The allocator would wait for the stream before it gives the memory to another tensor."""

    def data_ptr(self) -> int:
        return self.data_on_cpu.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.data_on_cpu.untyped_storage()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendTensor({self.data_on_cpu})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "PretendTensor":
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        with torch.no_grad():
            twin = self.detach().clone()
        assert isinstance(twin, PretendTensor)
        twin.requires_grad_(self.requires_grad)
        memo[id(self)] = twin
        twin.__dict__.update(  # whether it is a parameter
            copy.deepcopy({k: v for k, v in self.__dict__.items() if k not in OWN}, memo)
        )
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.gpu.wait("save")
        return self.data_on_cpu.detach().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


OWN = ("data_on_cpu", "gpu")


def _split_device(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, tuple[Any, ...], dict[str, Any]]:
    """The device that the arguments of `Tensor.to` name, and the other arguments."""
    others = dict(kwargs)
    asked = others.pop("device", None)
    if args and isinstance(args[0], str | torch.device):
        asked, args = args[0], args[1:]
    elif args and isinstance(args[0], Tensor):  # `to(other)`: its device and its dtype
        asked, args = args[0].device, (args[0].dtype, *args[1:])
    if len(args) > 1 and isinstance(args[1], bool):  # dtype, non_blocking
        others["non_blocking"], args = args[1], args[:1]
    return (None if asked is None else torch.device(asked)), args, others


@dataclass
class _Copy:
    """A copy that the host did not wait for: what it reads, and its content when it was asked."""

    source: Tensor
    content: bytes
    place: str


@dataclass
class PretendGpu:
    """One device and what happens on it.

    `total` counts since it exists; `counting` gives the counts of a part.
    """

    total: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.open = [self.total]
        self.pinned: dict[int, Tensor] = {}  # by address; kept, as CUDA's allocator keeps them
        self.copies_in: list[_Copy] = []
        self.copies_out: list[tuple[Tensor, Tensor]] = []  # destination on the host, content

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counts]:
        """The events until the context ends."""
        counts = Counts()
        self.open.append(counts)
        try:
            yield counts
        finally:
            self.open = [one for one in self.open if one is not counts]

    def count(self, counter: str, event: str) -> None:
        for counts in self.open:
            getattr(counts, counter)[event] += 1

    def add(self, number: str, amount: int) -> None:
        for counts in self.open:
            setattr(counts, number, getattr(counts, number) + amount)

    # --- waiting, and copies that nobody waited for ---

    def wait(self, reason: str) -> None:
        """The host waits until everything is done that it asked for."""
        self.count("synchronisations", f"{reason} at {place()}")
        self.finish_copies()

    def finish_copies(self) -> None:
        """Ends all copies; a source that has another content by now is a hazard."""
        for one in self.copies_in:
            if _content(one.source) != one.content:
                self.count("hazards", f"overwritten before its copy was done: {one.place}")
        for destination, content in self.copies_out:
            destination.copy_(content)
        self.copies_in, self.copies_out = [], []

    def pin(self, tensor: Tensor) -> Tensor:
        self.pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def copy_to_device(self, source: Tensor, *, non_blocking: bool) -> None:
        """Counts a copy that begins now; from memory that is not pinned the host waits for it."""
        where = place()
        self.add("bytes_to_device", source.nbytes)
        self.count("to_device", where)
        if non_blocking and self.is_pinned(source):
            self.copies_in.append(_Copy(source, _content(source), where))
        else:
            reason = "not pinned" if non_blocking else "blocking"
            self.wait(f"copy to the device ({reason})")

    def copy_to_host(self, source: PretendTensor, *, non_blocking: bool) -> Tensor:
        """A new tensor on the host; without waiting its content comes only when the host waits."""
        result = torch.empty_like(source.data_on_cpu)
        self.fill_host(self.pin(result) if non_blocking else result, source, non_blocking)
        return result

    def fill_host(self, destination: Tensor, source: PretendTensor, non_blocking: bool) -> None:
        """Copies into memory of the host, which is waited for unless it is pinned."""
        self.add("bytes_to_host", source.data_on_cpu.nbytes)
        self.count("to_host", place())
        content = source.data_on_cpu.detach()
        if non_blocking and self.is_pinned(destination):
            self.copies_out.append((destination, content.clone()))
            destination.copy_(content.new_zeros(()))
            destination.view(-1).view(torch.uint8).fill_(NOT_THERE_YET)
        else:
            self.wait("copy to the host")
            destination.copy_(content)

    # --- operations ---

    def run(self, operation: OpOverload, args: Any, kwargs: dict[str, Any], on_gpu: bool) -> Any:
        """One operation below autograd.

        `on_gpu`: whether a new tensor without a named device belongs on this one.
        """
        name = operation._schema.name.partition("::")[2]
        tensors = tensors_in((args, kwargs))
        mine = [t for t in tensors if isinstance(t, PretendTensor)]
        asked = kwargs.get("device")
        device = None if asked is None else torch.device(asked)
        if device is not None and device.type not in ("cpu", "cuda"):
            return operation(*args, **kwargs)
        if not mine and (device is None or device.type == "cpu"):
            if tensors or not on_gpu:
                return self._run_on_host(operation, args, kwargs)
        elif name == "_to_copy":
            return self._cast(operation, args[0], kwargs)
        elif name == "copy_":
            return self._copy(operation, *args, **kwargs)
        self._refuse_mixtures(operation, name, args, mine, tensors)
        self._count_waiting(name, args)
        self._check_support(operation, name, args)
        if name == "_local_scalar_dense":
            return args[0].data_on_cpu.item()
        return self._launch(operation, name, args, kwargs, mine)

    def _run_on_host(self, operation: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation of the host alone; only the device can pin memory."""
        if not kwargs.get("pin_memory"):
            return operation(*args, **kwargs)
        return self.pin(operation(*args, **{**kwargs, "pin_memory": False}))

    def _cast(self, operation: OpOverload, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A copy in another dtype or layout, or from the host."""
        on_cpu = {**kwargs, "device": CPU, "pin_memory": None}
        if isinstance(source, PretendTensor):
            self.count("kernels", "_to_copy")
            self.add("moved", source.data_on_cpu.nbytes)
            return self.wrap(operation(source.data_on_cpu, **on_cpu))
        self.copy_to_device(source, non_blocking=bool(kwargs.get("non_blocking")))
        return self.wrap(operation(source, **on_cpu))

    def _copy(
        self, operation: OpOverload, target: Tensor, source: Tensor, non_blocking: bool = False
    ) -> Tensor:
        if isinstance(target, PretendTensor) and isinstance(source, PretendTensor):
            self.count("kernels", "copy_")
            self.add("moved", target.data_on_cpu.nbytes + source.data_on_cpu.nbytes)
            operation(target.data_on_cpu, source.data_on_cpu)
        elif isinstance(target, PretendTensor):
            self.copy_to_device(source, non_blocking=non_blocking)
            operation(target.data_on_cpu, source)
        else:
            assert isinstance(source, PretendTensor)
            self.fill_host(target, source, non_blocking)
        return target

    def _refuse_mixtures(
        self,
        operation: OpOverload,
        name: str,
        args: Any,
        mine: Sequence[PretendTensor],
        tensors: Sequence[Tensor],
    ) -> None:
        """Raises where a kernel would read memory of the host; a number without dimensions is
        passed along with the call, except by operations over lists of tensors.
        """
        if not mine:
            return
        others = [t for t in tensors if not isinstance(t, PretendTensor)]
        if name in operations.INDEXING and isinstance(args[0], PretendTensor):
            indices = [t for t in args[1] if isinstance(t, Tensor)]
            for index in indices:
                if not isinstance(index, PretendTensor):
                    self.copy_to_device(index, non_blocking=False)
            others = [t for t in others if not any(t is index for index in indices)]
        over_lists = name.startswith(("_foreach_", "_fused_")) or name in ("cat", "stack")
        refused = [tuple(t.shape) for t in others if t.dim() or over_lists]
        if refused:
            self.count("mismatches", f"{operation} at {place()}")
            raise RuntimeError(f"{MISMATCH} ({operation}, on the CPU: {refused}, at {place()})")

    def _count_waiting(self, name: str, args: Any) -> None:
        if name == "_local_scalar_dense":
            self.wait("item")
        elif name in operations.WAITING or operations.waits_for_index(name, args):
            self.wait(name)

    def _check_support(self, operation: OpOverload, name: str, args: Any) -> None:
        """Counts what CUDA has no kernel for, and none that is deterministic; raises where it is
        asked to be.
        """
        if name not in operations.CPU_NAMES and not internals.has_cuda_kernel(operation):
            self.count("without_kernel", f"{operation} at {place()}")
        if operations.is_not_deterministic(name, args[0] if args else None):
            self.count("not_deterministic", f"{name} at {place()}")
            if torch.are_deterministic_algorithms_enabled():
                raise RuntimeError(
                    f"{name} does not have a deterministic implementation, but you set "
                    "'torch.use_deterministic_algorithms(True)'."
                )

    def _launch(
        self,
        operation: OpOverload,
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        mine: Sequence[PretendTensor],
    ) -> Any:
        on_cpu = dict(kwargs)
        if "device" in on_cpu:
            on_cpu["device"] = CPU
        data, options = map_tensors(_unwrap, (args, on_cpu))
        result = operations.compute(operation, name, data, options)
        if internals.is_view(operation) or name in operations.WITHOUT_LAUNCH:
            self.add("views", 1)
        else:
            written = sum(t.nbytes for t in tensors_in(result))
            self.count("kernels", name)
            self.add("moved", written + sum(t.data_on_cpu.nbytes for t in mine))
        if torch.Tag.inplace_view in operation.tags:  # the wrapper takes the new shape as well
            with internals.without_dispatch():
                operation(*args, **kwargs)
        for tensor in mine:
            assert tensor.shape == tensor.data_on_cpu.shape, f"{operation} changes a shape in place"
        # What an operation in place returns is dropped: C++ returns its argument
        return map_tensors(self.wrap, result)

    def wrap(self, tensor: Tensor) -> "PretendTensor":
        """The tensor as one of this device."""
        return tensor if isinstance(tensor, PretendTensor) else PretendTensor(self, tensor)


def _unwrap(tensor: Tensor) -> Tensor:
    return tensor.data_on_cpu if isinstance(tensor, PretendTensor) else tensor


def _content(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


class _Operations(internals.DispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation to the device."""

    def __init__(self, gpu: PretendGpu, functions: "_Functions") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gpu = gpu
        self.functions = functions

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # only there composed operations come here whole
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.gpu.run(func, args, kwargs, self.functions.on_gpu)


class _Functions(TorchFunctionMode):
    """Mends calls of torch's Python functions in which C++ asks for the device of a tensor.

    `on_gpu`: whether the function that is running was given a tensor of the device. C++ then makes
    a new tensor where that one is, and names the CPU as its device. Functions that such a function
    calls, as the backward of a custom autograd function, are not seen one by one.
    """

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu
        self.on_gpu = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(_with_index(value) for value in args)
        kwargs = {key: _with_index(value) for key, value in (kwargs or {}).items()}
        name = getattr(func, "__name__", "")
        before, self.on_gpu = self.on_gpu, _has_gpu_tensor(args, kwargs)
        try:
            if name == "to" and len(args) > 1 and isinstance(args[1], PretendTensor):
                return args[0].to(CUDA, args[1].dtype, *args[2:], **kwargs)
            if name in ("tensor", "as_tensor", "asarray") and _is_cuda(kwargs.get("device")):
                return self._from_values(func, args, kwargs)
            if name in operations.IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
                args, kwargs = map_tensors(_raise_half, (args, kwargs))
            return func(*args, **kwargs)
        finally:
            self.on_gpu = before

    def _from_values(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor:
        """`torch.tensor(values, device=...)`: made on the host, then copied with a wait."""
        others = {k: v for k, v in kwargs.items() if k != "device"}
        if args and isinstance(args[0], PretendTensor):
            return func(*args, **others)  # type: ignore[no-any-return]
        made: Tensor = func(*args, **others)
        return made.to(CUDA)


def _has_gpu_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    for value in (*args, *kwargs.values()):
        if isinstance(value, PretendTensor):
            return True
        if isinstance(value, list | tuple) and any(isinstance(v, PretendTensor) for v in value):
            return True
    return False


def _with_index(value: Any) -> Any:
    """A device `cuda` as `cuda:0`: C++ would ask the driver which one is the current one."""
    return CUDA if isinstance(value, str | torch.device) and str(value) == "cuda" else value


def _raise_half(tensor: Tensor) -> Tensor:
    low = isinstance(tensor, PretendTensor) and tensor.dtype in operations.HALF
    return tensor.float() if low else tensor


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


# --- torch's functions that ask the driver ---


class _Autocast(torch.autocast):
    """The CPU's autocast in place of CUDA's, as that is what C++ takes the tensors for."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class _Event:
    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu = gpu

    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.gpu.wait("event")

    def elapsed_time(self, _: Any) -> float:
        return 1.0


class _Stream:
    """All streams are one here: what is asked for is done in that order."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu = gpu

    def wait_stream(self, _: Any) -> None: ...
    def wait_event(self, _: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or _Event(self.gpu)

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def synchronize(self) -> None:
        self.gpu.wait("stream")


def _replacements(gpu: PretendGpu) -> dict[str, Any]:
    """What replaces torch's functions while the device exists, by dotted name."""

    def nothing(*_: Any, **__: Any) -> None: ...

    def constant(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    def group_by_device(group: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """C++ names the CPU as the device of each group."""
        return {
            (CUDA if _has_gpu_tensor(lists[0], {}) else device, dtype): (lists, places)
            for (device, dtype), (lists, places) in group(*args, **kwargs).items()
        }

    load = torch.load

    def load_on(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if not _is_cuda(map_location):
            return load(file, map_location=map_location, **kwargs)
        state = load(file, map_location=CPU, **kwargs)
        return map_tensors(lambda tensor: tensor.to(CUDA), state)

    def pin(tensor: Tensor, *_: Any) -> Tensor:
        return tensor if gpu.is_pinned(tensor) else gpu.pin(tensor.clone())

    stream = _Stream(gpu)
    properties = SimpleNamespace(
        name="pretend", uuid="pretend", total_memory=MEMORY, major=9, minor=0,
        multi_processor_count=132,
    )  # fmt: skip
    seed = torch.default_generator.manual_seed  # one generator draws for host and device
    cuda = {
        "is_available": constant(True),
        "is_initialized": constant(True),
        "device_count": constant(1),
        "current_device": constant(0),
        "set_device": nothing,
        "synchronize": lambda *_: gpu.wait("synchronize"),
        "is_bf16_supported": constant(True),
        "get_device_name": constant(properties.name),
        "get_device_properties": constant(properties),
        "get_device_capability": constant((properties.major, properties.minor)),
        "manual_seed": seed,
        "manual_seed_all": seed,
        "empty_cache": nothing,
        "mem_get_info": constant((MEMORY, MEMORY)),
        "reset_peak_memory_stats": nothing,
        "max_memory_allocated": constant(0),
        "max_memory_reserved": constant(0),
        "memory_allocated": constant(0),
        "memory_reserved": constant(0),
        "is_current_stream_capturing": constant(False),
        "Stream": lambda *_, **__: _Stream(gpu),
        "Event": lambda *_, **__: _Event(gpu),
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": constant(stream),
        "default_stream": constant(stream),
    }
    return {
        **{f"torch.cuda.{name}": value for name, value in cuda.items()},
        "torch.autocast": _Autocast,
        "torch.amp.autocast": _Autocast,
        "torch.load": load_on,
        "torch.Tensor.pin_memory": pin,
        "torch.Tensor.is_pinned": lambda tensor, *_: gpu.is_pinned(tensor),
        "torch.Tensor.cuda": lambda tensor, *_, **kwargs: tensor.to(CUDA, **kwargs),
        **internals.replaced_names(group_by_device, nothing),
    }


@contextlib.contextmanager
def pretend_cuda() -> Iterator[PretendGpu]:
    """A machine with one CUDA device until the context ends, which is as slow as the CPU."""
    gpu = PretendGpu()
    replacements = _replacements(gpu)
    functions = _Functions(gpu)
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, value in replacements.items():
            with contextlib.suppress(AttributeError):  # which this version of torch does not have
                stack.enter_context(mock.patch(name, value))
        # `module.to` cannot put a tensor of another class into a parameter in place
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(functions)
        stack.enter_context(_Operations(gpu, functions))
        yield gpu
        gpu.finish_copies()
