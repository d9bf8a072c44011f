"""Metrics: their names, average precision, intersection over union."""
