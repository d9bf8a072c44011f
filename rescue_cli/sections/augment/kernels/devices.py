"""What differs between devices: on a CPU types are best converted by themselves.

Elsewhere every operation converts as it reads and writes, so that a conversion of its own would
read and write the images once more. And torch's selections of bytes are slow on a CPU alone.
"""

from torch import Tensor


def on_cpu(images: Tensor) -> bool:
    """Whether the images are in a CPU's memory."""
    return images.device.type == "cpu"
