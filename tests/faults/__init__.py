"""Faults by the thousand, each from a seed; run by `make test-faults`."""
