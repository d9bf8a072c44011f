"""Run directories and the processes that work on them; nothing here knows of training."""

from rescue_cli.runs.directory import (
    abandon,
    claim,
    environment,
    is_finished,
    latest,
    next_free,
    prepare,
    spoken,
)
from rescue_cli.runs.group import current, demand_alone, joined, restarted, shared
from rescue_cli.runs.pool import Ended, run_all
from rescue_cli.runs.processes import Nodes, run_directory, wait_for

__all__ = [
    "Ended",
    "Nodes",
    "abandon",
    "claim",
    "current",
    "demand_alone",
    "environment",
    "is_finished",
    "joined",
    "latest",
    "next_free",
    "prepare",
    "restarted",
    "run_all",
    "run_directory",
    "shared",
    "spoken",
    "wait_for",
]
