"""What the pretend device counts, and where in the source it happened."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[3]
PRODUCT = str(ROOT / "rescue_cli")
HELPER = str(Path(__file__).parent)
TORCH = "/site-packages/torch/"


@dataclass
class Counts:
    """Events on the device; a counter has an event's name and its place in the source as key.

    `kernels`: operations that launch at least one kernel. An operation over a list of tensors
    counts once, and one that CUDA composes of several counts once. `views`: operations that launch
    none. `moved`: bytes that kernels read and write.
    """

    kernels: Counter[str] = field(default_factory=Counter)  # by the operation's name alone
    views: int = 0
    moved: int = 0
    mismatches: Counter[str] = field(default_factory=Counter)
    synchronisations: Counter[str] = field(
        default_factory=Counter
    )  # blocking copies are among them
    to_device: Counter[str] = field(default_factory=Counter)
    to_host: Counter[str] = field(default_factory=Counter)
    bytes_to_device: int = 0
    bytes_to_host: int = 0
    hazards: Counter[str] = field(default_factory=Counter)
    not_deterministic: Counter[str] = field(default_factory=Counter)
    without_kernel: Counter[str] = field(default_factory=Counter)

    @property
    def copies(self) -> int:
        """Copies between host and device, in both directions."""
        return self.to_device.total() + self.to_host.total()


def place() -> str:
    """The line of the product that is running, and the line outside of torch that it called.

    As `engine/step.py:65 __call__`, or `sections/task/detection.py:40 loss < torchvision/ops/
    boxes.py:41 nms`; the second alone where the product is not running.
    """
    caller = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PRODUCT):
            line = _line(frame, PRODUCT)
            return f"{line} < {caller}" if caller else line
        if not caller and TORCH not in file and not file.startswith(HELPER):
            caller = _line(frame, file.rpartition("/site-packages/")[0] or str(ROOT))
        frame = frame.f_back
    return caller


def _line(frame: FrameType, folder: str) -> str:
    code = frame.f_code
    file = code.co_filename.removeprefix(folder).removeprefix("/site-packages").lstrip("/")
    return f"{file}:{frame.f_lineno} {code.co_name}"
