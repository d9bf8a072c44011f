"""The section `augment`: what happens to an image before the network sees it.

A `FileCrop` runs where files are decoded; every `Operation` runs batched on the device, each image
with its own draws.
"""

from rescue_cli.augment.crops import FileCrop, random_resized_crop, scale_jitter_crop
from rescue_cli.augment.operations import Operation, cutout, flip, pad_crop
from rescue_cli.augment.pipeline import Augment

AUGMENTATIONS = {
    "random-resized-crop": random_resized_crop,
    "scale-jitter-crop": scale_jitter_crop,
    "pad-crop": pad_crop,
    "flip": flip,
    "cutout": cutout,
}

__all__ = ["AUGMENTATIONS", "Augment", "FileCrop", "Operation"]
