"""Inference speed in images/s, as in the throughput column of the paper's tables."""

from statistics import median
from typing import Any

import torch

from rescue_cli.bench.timing import show_rounds, time_calls
from rescue_cli.build.backends import use_fast_kernels
from rescue_cli.errors import UsageError
from rescue_cli.recipe.architectures import row_of
from rescue_cli.sections.model.timm_models import has_fixed_size, timm_model

CLASSES = 1000
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def inference(
    model: str,
    device: torch.device,
    *,
    size: int | None,
    batch_size: int,
    precision: str,
    channels_last: bool,
    batches: int,
    rounds: int,
) -> dict[str, Any]:
    """Images/s, the median over rounds, and the paper's on a V100 if its table has the network.

    Weights are random; weights and images have the dtype `precision`. Raises `UsageError` for an
    unknown name or precision.
    """
    if precision not in DTYPES:
        raise UsageError(f"--precision: '{precision}' is not known. Use {', '.join(DTYPES)}.")
    row = row_of(model)
    paper_size = row["sizes"]["a1-a2"][1] if row else None
    size = size or paper_size or _test_size(model)
    network = timm_model(model, CLASSES, 3, **_size_option(model, size)).eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device=device, dtype=DTYPES[precision], memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, size, size).to(
        device=device, dtype=DTYPES[precision], memory_format=layout
    )

    use_fast_kernels()

    def run() -> None:
        network(images)

    with torch.inference_mode():
        time_calls(run, 2, device)
        rates = [
            batch_size * batches / time_calls(run, batches, device) for _ in show_rounds(rounds)
        ]
    paper = row["images_per_second"] if row and size == paper_size else None
    return {
        "what": f"inference of {model} on {device.type}, {size} px, batch {batch_size}, "
        f"{precision}, {'channels last' if channels_last else 'channels first'}",
        "ours": median(rates),
        "theirs": None,
        "ratio": None,
        "low": min(rates),
        "high": max(rates),
        "paper_v100_float16": paper,
        "unit": "images/s",
    }


def _test_size(model: str) -> int:
    """The side in pixels of timm's test images for the network."""
    import timm

    config = timm.get_pretrained_cfg(model)
    shape = (config.test_input_size or config.input_size) if config else (3, 224, 224)
    return int(shape[-1])


def _size_option(model: str, size: int) -> dict[str, Any]:
    """The option `img_size` of a network that is built for one size of images."""
    return {"img_size": size} if has_fixed_size(model) else {}
