"""FLOPs, memory and parameters of a training, estimated without a GPU and without weights."""

from rescue_cli.build.feeds import train_size
from rescue_cli.estimate.flops import Flops, channels, flops, network_of, parameters, petaflop
from rescue_cli.estimate.memory import (
    fit_micro_batch,
    has_batch_norm,
    largest_micro_batch,
    peak_memory,
    saved_megabytes,
)

__all__ = [
    "Flops",
    "channels",
    "fit_micro_batch",
    "flops",
    "has_batch_norm",
    "largest_micro_batch",
    "network_of",
    "parameters",
    "peak_memory",
    "petaflop",
    "saved_megabytes",
    "train_size",
]
