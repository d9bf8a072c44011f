"""The section `augment`: data augmentation.

An `Operation` says what it acts on: a file as it is decoded, an image with its boxes or mask, or a
micro-batch on the device. Each task has its own table of them.
"""

from collections.abc import Callable

from rescue_cli.sections.augment import annotated
from rescue_cli.sections.augment.auto_augment import auto_augment
from rescue_cli.sections.augment.crops import (
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
from rescue_cli.sections.augment.own import own_augmentation
from rescue_cli.sections.augment.pipeline import Augment
from rescue_cli.sections.augment.progressive_resize import progressive_resize
from rescue_cli.sections.augment.rand_augment import rand_augment
from rescue_cli.sections.augment.trivial_augment import trivial_augment

AUGMENTATIONS: dict[str, Callable[..., Operation]] = {
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

AUGMENTATIONS_OF: dict[str, dict[str, Callable[..., Operation]]] = {
    "classification": AUGMENTATIONS,
    "detection": {"flip": annotated.flip},
    "segmentation": {"flip": annotated.flip, "scale-crop": annotated.scale_crop},
}

__all__ = ["AUGMENTATIONS", "AUGMENTATIONS_OF", "Augment", "Operation", "own_augmentation"]
