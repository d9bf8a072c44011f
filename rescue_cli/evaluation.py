"""The section `eval`: test-time augmentation, and counts from logits."""

from collections.abc import Callable

from torch import Tensor, nn

Tta = Callable[[nn.Module, Tensor], Tensor]


def none(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of the images as they are."""
    logits: Tensor = model(images)
    return logits


def flip(model: nn.Module, images: Tensor) -> Tensor:
    """Mean logits of each image and its mirror image."""
    logits: Tensor = (model(images) + model(images.flip(-1))) / 2
    return logits


TTAS = {"none": none, "flip": flip}
