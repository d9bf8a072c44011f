"""A run directory: the paths of its files, checked reading, atomic writing."""

from rescue_cli.rundir.paths import RunDirectory
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
from rescue_cli.rundir.validation import check_keys
from rescue_cli.rundir.writing import (
    remove_partial_files,
    write_atomically,
    write_failure,
    write_json,
    write_text,
)

__all__ = [
    "FailureRecord",
    "RunDirectory",
    "check_keys",
    "last_epoch",
    "read_arrays",
    "read_command",
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
