"""The section `task`: what a batch's targets mean, and what is measured."""

from collections.abc import Callable
from typing import Any

from rescue_cli.sections.task.classification import classification
from rescue_cli.sections.task.detection import detection
from rescue_cli.sections.task.segmentation import segmentation

TASKS: dict[str, Callable[..., Any]] = {
    "classification": classification,
    "detection": detection,
    "segmentation": segmentation,
}
