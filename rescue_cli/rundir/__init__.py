"""A run directory: the paths of its files, checked reading, atomic writing."""

from rescue_cli.rundir.files import (
    CROSS_VALIDATED,
    FailureRecord,
    RunDirectory,
    remove_partial_files,
    write_atomically,
    write_failure,
    write_json,
    write_text,
)
from rescue_cli.rundir.reading import (
    check_keys,
    last_epoch,
    read_arrays,
    read_command,
    read_curve,
    read_environment,
    read_failure,
    read_identity,
    read_json,
    read_metrics,
    read_result,
    read_text,
)

__all__ = [
    "CROSS_VALIDATED",
    "FailureRecord",
    "RunDirectory",
    "check_keys",
    "last_epoch",
    "read_arrays",
    "read_command",
    "read_curve",
    "read_environment",
    "read_failure",
    "read_identity",
    "read_json",
    "read_metrics",
    "read_result",
    "read_text",
    "remove_partial_files",
    "write_atomically",
    "write_failure",
    "write_json",
    "write_text",
]
