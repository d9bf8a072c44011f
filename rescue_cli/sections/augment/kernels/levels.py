"""Operations on levels 0 to 255, each image with its own argument, exactly as PIL's.

Images are uint8 (k, 3, h, w); `argument` is (k,) float64 on their device.
"""

import torch
from torch import Tensor

LEVELS = 256


def invert(images: Tensor, _argument: Tensor) -> Tensor:
    """Every level v as 255 - v (PIL's ImageOps.invert)."""
    return images.bitwise_not()


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the upper `bits` of each level; 0 bits give black, which Pillow 13 refuses."""
    mask = 0xFF << (8 - bits.to(torch.int16))  # a power of 2.0 may be rounded on a GPU
    return images & _column((mask & 0xFF).to(torch.uint8))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts levels from `threshold` on (PIL's ImageOps.solarize); 256 inverts none."""
    above = images >= _column(threshold.to(torch.int16))
    return images ^ above.to(torch.uint8).neg_()


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Adds `amount`, at most 128, to levels below 128 (timm's solarize_add)."""
    below = images < LEVELS // 2
    return images + below.to(torch.uint8).mul_(_column(amount.to(torch.uint8)))


def auto_contrast(images: Tensor, _argument: Tensor) -> Tensor:
    """Stretches each channel linearly to 0..255 (PIL's ImageOps.autocontrast without cutoff)."""
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    # For PIL's rounding: 255.0 / tensor is computed as reciprocal times 255, which differs
    scale = torch.full_like(low, 255.0) / (high - low)
    ramp = _ramp(images).double()
    stretched = (ramp * scale + (-low * scale)).clamp(0, 255).floor()
    return lookup(flat.long(), torch.where(high > low, stretched, ramp)).view(images.shape)


def equalize(images: Tensor, _argument: Tensor) -> Tensor:
    """Equalises each channel's histogram (PIL's ImageOps.equalize)."""
    indices = images.flatten(2).long()
    counts = histogram(indices)
    occurs = counts > 0
    # The count of the highest level that occurs: where the cumulative sum first reaches the total
    total = counts.sum(2, keepdim=True)
    sums = counts.cumsum(2)
    last = torch.where(occurs & (sums == total), counts, 0).sum(2, keepdim=True)
    step = (total - last) // (LEVELS - 1)
    before = sums - counts + step // 2
    flattened = (before // step.clamp(min=1)).clamp(max=255)
    return lookup(indices, torch.where(step > 0, flattened, _ramp(images))).view(images.shape)


def histogram(indices: Tensor) -> Tensor:
    """Counts of the levels (k, channels, pixels) int64: (k, channels, 256)."""
    # Integers, so that the order of additions on a GPU does not matter
    ones = torch.ones((), dtype=torch.int32, device=indices.device).expand_as(indices)
    counts = torch.zeros((*indices.shape[:2], LEVELS), dtype=torch.int32, device=indices.device)
    return counts.scatter_add_(2, indices, ones)


def lookup(indices: Tensor, tables: Tensor) -> Tensor:
    """Replaces each level (k, channels, pixels) by its entry in the table (k, channels, 256)."""
    return tables.to(torch.uint8).gather(2, indices)


def _ramp(images: Tensor) -> Tensor:
    return torch.arange(LEVELS, device=images.device)


def _column(values: Tensor) -> Tensor:
    """(k,) as (k, 1, 1, 1)."""
    return values[:, None, None, None]
