"""Numeric kernels of augmentations, each image with its own argument."""
