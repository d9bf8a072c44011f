"""The section `augment`: data augmentation.

A `FileCrop` runs where files are decoded; an `Operation` runs batched on the device, with its own
random draws for each image. Augmentations of images with boxes or masks have their own table.
"""

from rescue_cli.sections.augment.auto_augment import auto_augment
from rescue_cli.sections.augment.crops import (
    FileCrop,
    random_resized_crop,
    scale_jitter_crop,
    squash_crop,
)
from rescue_cli.sections.augment.erasing import random_erasing
from rescue_cli.sections.augment.jitter import brightness_contrast, colour_jitter, pca_lighting
from rescue_cli.sections.augment.operations import (
    Operation,
    alternating_flip,
    cutout,
    flip,
    pad_crop,
)
from rescue_cli.sections.augment.pipeline import Augment
from rescue_cli.sections.augment.progressive_resize import progressive_resize
from rescue_cli.sections.augment.rand_augment import rand_augment
from rescue_cli.sections.augment.scenes import SCENE_AUGMENTATIONS
from rescue_cli.sections.augment.trivial_augment import trivial_augment

AUGMENTATIONS = {
    "random-resized-crop": random_resized_crop,
    "scale-jitter-crop": scale_jitter_crop,
    "squash-crop": squash_crop,
    "pad-crop": pad_crop,
    "flip": flip,
    "alternating-flip": alternating_flip,
    "cutout": cutout,
    "progressive-resize": progressive_resize,
    "rand-augment": rand_augment,
    "auto-augment": auto_augment,
    "trivial-augment": trivial_augment,
    "colour-jitter": colour_jitter,
    "brightness-contrast": brightness_contrast,
    "pca-lighting": pca_lighting,
    "random-erasing": random_erasing,
}

AUGMENTATIONS_OF = {
    "classification": AUGMENTATIONS,
    "detection": SCENE_AUGMENTATIONS,
    "segmentation": SCENE_AUGMENTATIONS,
}

__all__ = ["AUGMENTATIONS", "AUGMENTATIONS_OF", "Augment", "FileCrop", "Operation"]
