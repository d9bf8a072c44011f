"""The section `task`: what a batch's targets mean, and what is measured."""

from rescue_cli.task.classification import Classification, classification

TASKS = {"classification": classification}

__all__ = ["TASKS", "Classification"]
