"""Changes of an image's hue through PIL's conversion to and from HSV with 256 levels.

Images are uint8 (k, 3, h, w); the amount is (k,) float64 on their device.
"""

import torch
from torch import Tensor


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shifts the hue by a share of the circle in [-0.5, 0.5], as torchvision's adjust_hue."""
    steps = (255 * turns).to(torch.int64)[:, None, None]
    hue, saturation, value = to_hsv(images)
    return to_rgb((hue + steps) % 256, saturation, value)


def scale_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies the hue by a factor, modulo the circle (Bag of Tricks, 2.1, taken literally)."""
    hue, saturation, value = to_hsv(images)
    scaled = (hue.double() * factor[:, None, None]).to(torch.int64)
    return to_rgb(scaled % 256, saturation, value)


def to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value (k, h, w), int64 of 0 to 255, as PIL's Convert.c."""
    levels = images.to(torch.int64)
    red, green, blue = levels.unbind(1)
    value = levels.amax(1)
    chroma = value - levels.amin(1)
    some = chroma.clamp(min=1).float()
    # Single precision where PIL stores a value, double where C computes with 2.0 and 4.0
    to_red, to_green, to_blue = (((value - c).float() / some).double() for c in (red, green, blue))
    sector = torch.where(
        red == value,
        to_blue - to_green,
        torch.where(green == value, 2.0 + to_red - to_blue, 4.0 + to_green - to_red),
    )
    circle = torch.fmod(sector.float().double() / 6.0 + 1.0, 1.0).float()
    share = some / value.clamp(min=1).float()
    grey = chroma == 0
    hue = (circle.double() * 255.0).to(torch.int64).masked_fill(grey, 0)
    saturation = (share.double() * 255.0).to(torch.int64).masked_fill(grey, 0)
    return hue, saturation, value


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """uint8 (k, 3, h, w) of int64 hue, saturation and value (k, h, w), as PIL's Convert.c."""
    position = hue.double() * 6.0 / 255.0
    sector = position.floor()
    within = (position - sector).float().double()  # PIL stores it in single precision
    share = (saturation.double() / 255.0).float().double()
    full = value.double()
    low = _round(full * (1.0 - share))
    falling = _round(full * (1.0 - share * within))
    rising = _round(full * (1.0 - share * (1.0 - within)))
    columns = (
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    )
    which = (sector.to(torch.int64) % 6)[None]
    channels = [
        torch.stack([column[c] for column in columns]).gather(0, which)[0] for c in range(3)
    ]
    return torch.stack(channels, 1).to(torch.uint8)


def _round(values: Tensor) -> Tensor:
    """Rounds halves away from 0, as C does."""
    return (values + 0.5).floor().to(torch.int64).clamp(0, 255)
