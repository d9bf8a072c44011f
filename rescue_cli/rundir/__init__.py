"""A run directory: the paths of its files, checked reading, atomic writing."""

from rescue_cli.rundir.paths import RunDirectory
from rescue_cli.rundir.reading import (
    Word,
    last_epoch,
    read_arrays,
    read_command,
    read_environment,
    read_identity,
    read_json,
    read_metrics,
    read_result,
    read_text,
    word_of,
)
from rescue_cli.rundir.validation import check_keys
from rescue_cli.rundir.writing import (
    leave_word,
    remove_partial_files,
    write_atomically,
    write_json,
    write_text,
)

__all__ = [
    "RunDirectory",
    "Word",
    "check_keys",
    "last_epoch",
    "leave_word",
    "read_arrays",
    "read_command",
    "read_environment",
    "read_identity",
    "read_json",
    "read_metrics",
    "read_result",
    "read_text",
    "remove_partial_files",
    "word_of",
    "write_atomically",
    "write_json",
    "write_text",
]
