"""A processor's peak FLOP/s, measured by products of large square matrices."""

import torch

from rescue_cli.bench.timing import time_calls

SMALLEST, LARGEST = 256, 8192  # rows of a matrix
LONG_SECONDS = 0.1  # a product that takes longer is not made larger


def matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the fastest product of two square matrices; a multiply-add counts as two.

    Matrices grow until a product takes `LONG_SECONDS`, which an emulated precision soon does.
    """
    best, rows = 0.0, SMALLEST
    while True:
        seconds = _time_product(rows, dtype, device)
        best = max(best, 2 * rows**3 / seconds)
        if seconds > LONG_SECONDS or rows == LARGEST:
            return best
        rows *= 2


def _time_product(rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of the fastest of three products, after one to warm up."""
    a = torch.randn(rows, rows, device=device).to(dtype)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, a, out=out)

    time_calls(product, 1, device)
    return min(time_calls(product, 1, device) for _ in range(3))
