"""A run directory: the paths of its files, checked reading, atomic writing."""

from rescue_cli.rundir.files import (
    FailureRecord,
    RunDirectory,
    remove_partial_files,
    write_atomically,
    write_failure,
    write_json,
    write_text,
)
from rescue_cli.rundir.reading import (
    Reached,
    check_keys,
    read_arrays,
    read_command,
    read_curve,
    read_environment,
    read_failure,
    read_identity,
    read_json,
    read_metrics,
    read_reached,
    read_result,
    read_text,
)

__all__ = [
    "FailureRecord",
    "Reached",
    "RunDirectory",
    "check_keys",
    "read_arrays",
    "read_command",
    "read_curve",
    "read_environment",
    "read_failure",
    "read_identity",
    "read_json",
    "read_metrics",
    "read_reached",
    "read_result",
    "read_text",
    "remove_partial_files",
    "write_atomically",
    "write_failure",
    "write_json",
    "write_text",
]
