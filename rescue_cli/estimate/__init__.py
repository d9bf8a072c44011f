"""What a training costs before it is paid for; takes neither a GPU nor memory."""

from rescue_cli.build.feeds import train_size
from rescue_cli.estimate.flops import Flops, channels, flops, network_of, parameters, petaflop
from rescue_cli.estimate.memory import largest_micro_batch, peak_memory

__all__ = [
    "Flops",
    "channels",
    "flops",
    "largest_micro_batch",
    "network_of",
    "parameters",
    "peak_memory",
    "petaflop",
    "train_size",
]
