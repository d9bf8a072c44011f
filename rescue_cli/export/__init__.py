"""Trained networks in the formats of other programs, each checked by its own runtime."""
