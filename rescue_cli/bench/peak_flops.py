"""What a processor computes at most: products of large square matrices, timed here and now."""

import torch

from rescue_cli.bench.interleave import seconds

SMALLEST, LARGEST = 256, 8192  # rows of a matrix
LONG = 0.1  # seconds that make a product long enough to time


def matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the fastest product of two square matrices, a multiply-add counted as two.

    Matrices grow until a product takes long, which an emulated precision soon does.
    """
    best, rows = 0.0, SMALLEST
    while True:
        took = _seconds_of_product(rows, dtype, device)
        best = max(best, 2 * rows**3 / took)
        if took > LONG or rows == LARGEST:
            return best
        rows *= 2


def _seconds_of_product(rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Of the fastest of three, after one that warms up."""
    a = torch.randn(rows, rows, device=device).to(dtype)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, a, out=out)

    seconds(product, 1, device)
    return min(seconds(product, 1, device) for _ in range(3))
