"""What is in a run directory, and how its files are read and written."""

from rescue_cli.metrics.names import METRICS, finite, label, metrics_of, said, score, stem
from rescue_cli.rundir.directory import RunDirectory
from rescue_cli.rundir.reading import (
    FailureRecord,
    last_epoch,
    read_arrays,
    read_command,
    read_environment,
    read_failure,
    read_identity,
    read_json,
    read_metrics,
    read_result,
    read_text,
)
from rescue_cli.rundir.rules import demand
from rescue_cli.rundir.writing import (
    discard_partials,
    write_failure,
    write_json,
    write_text,
    write_whole,
)

__all__ = [
    "METRICS",
    "FailureRecord",
    "RunDirectory",
    "demand",
    "discard_partials",
    "finite",
    "label",
    "last_epoch",
    "metrics_of",
    "read_arrays",
    "read_command",
    "read_environment",
    "read_failure",
    "read_identity",
    "read_json",
    "read_metrics",
    "read_result",
    "read_text",
    "said",
    "score",
    "stem",
    "write_failure",
    "write_json",
    "write_text",
    "write_whole",
]
