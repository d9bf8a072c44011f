"""The section `task`: what a batch's targets mean, and what is measured."""

from collections.abc import Callable
from typing import Any

from rescue_cli.sections.task.classification import Classification, classification
from rescue_cli.sections.task.detection import Detection, detection
from rescue_cli.sections.task.segmentation import Segmentation, segmentation

TASKS: dict[str, Callable[..., Any]] = {
    "classification": classification,
    "detection": detection,
    "segmentation": segmentation,
}

__all__ = ["TASKS", "Classification", "Detection", "Segmentation"]
