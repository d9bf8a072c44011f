"""A first convolution that whitens the patches of the training images."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.sections.model.init import DataDependentInit


class Whitening(DataDependentInit, nn.Conv2d):
    """Frozen filters: the principal components of image patches, each scaled to unit variance.

    Images (n, channels, h, w) -> (n, channels * size^2, ...), or twice as many channels where
    `mirrored` adds each filter's negation. Filters are random until `init_from` is called with
    `images` images. A `bias` is trained, initialised by torch or to zero.
    """

    whitens = True  # the mark of the parameter group `whitening`

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        padding: int,
        mirrored: bool,
        bias: Literal["uniform", "zeros"] | None,
        images: int,
        eps: float,
        centred: bool,
    ) -> None:
        outputs = channels * size**2 * (2 if mirrored else 1)
        super().__init__(channels, outputs, size, padding=padding, bias=bias is not None)
        self.weight.requires_grad_(False)
        if self.bias is not None and bias == "zeros":
            nn.init.zeros_(self.bias)
        self.mirrored = mirrored
        self.images = images
        self.eps = eps
        self.centred = centred

    @torch.no_grad()
    def init_from(self, batches: Iterable[Tensor]) -> None:
        """Computes the filters from normalised images in batches (n, channels, h, w)."""
        covariance = patch_covariance(batches, self.kernel_size[0], centred=self.centred)
        filters = whitening_filters(covariance, self.eps)
        if self.mirrored:
            filters = torch.cat([filters, -filters])
        self.weight.copy_(filters.view_as(self.weight))


def patch_covariance(batches: Iterable[Tensor], size: int, *, centred: bool) -> Tensor:
    """The covariance of all size x size patches inside the images, in float64.

    A patch is flattened in the order (channel, row, column). Without `centred` it is the mean of
    the products, as in Myrtle's code and airbench; with it that of torch.cov, as in hlb-CIFAR10.
    """
    moments = [_patch_moments(images, size) for images in batches]
    products = torch.stack([product for product, _, _ in moments]).sum(0)
    sums = torch.stack([total for _, total, _ in moments]).sum(0)
    count = sum(patches for _, _, patches in moments)
    if not centred:
        return products / count
    return (products - torch.outer(sums, sums) / count) / (count - 1)


def _patch_moments(images: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    """Sums of the patches' products and of the patches, in float64, and the number of patches."""
    patches = functional.unfold(images.double(), size).transpose(0, 1).flatten(1)
    return patches @ patches.T, patches.sum(1), patches.shape[1]


def whitening_filters(covariance: Tensor, eps: float) -> Tensor:
    """Whitening filters as rows: eigenvectors by descending eigenvalue, over sqrt(value + eps).

    An eigenvector's sign is arbitrary; it is chosen such that the product with (sqrt 1, sqrt 2,
    ...) is positive, because no symmetry of a patch makes that product zero.
    """
    values, vectors = torch.linalg.eigh(covariance)
    positions = torch.arange(1, len(values) + 1, dtype=vectors.dtype, device=vectors.device)
    vectors = vectors * (positions.sqrt() @ vectors).sign()
    scaled: Tensor = (vectors / (values + eps).sqrt()).T.flip(0)
    return scaled
