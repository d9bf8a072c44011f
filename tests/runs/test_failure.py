"""torch's errors in terms of the recipe's keys."""

import pytest
import torch

from rescue_cli.errors import MemoryExhausted
from rescue_cli.recipe import load
from rescue_cli.runs.failure import explain_error
from rescue_cli.sections.data import Images, memory

EXHAUSTED = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 9 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


@pytest.mark.parametrize("error", EXHAUSTED)
def test_whatever_lacks_memory_in_training_names_the_micro_batch(error: Exception) -> None:
    recipe = load("quickstart", ["train.batch_size=96", "train.device_batch_size=48"])
    explained = explain_error(error, recipe)
    assert isinstance(explained, MemoryExhausted)
    first_line = str(error).split("\n")[0] or "MemoryError"
    assert str(explained) == (
        "train.device_batch_size: 48 images do not fit into the memory of the device "
        f"({first_line}). Try train.device_batch_size=24 (batch norm then sees smaller "
        "micro-batches)."
    )


def test_another_error_of_cudnn_stays_what_it_is() -> None:
    error = RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM")
    assert explain_error(error, load("quickstart")) is error


@pytest.mark.parametrize(
    ("overrides", "cure"),
    [
        (["data.resident=true"], "Set data.resident=false."),
        ([], "Use fewer images (data.subset)."),
    ],
)
def test_images_that_the_device_cannot_keep_are_no_matter_of_the_micro_batch(
    overrides: list[str], cure: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB.")

    def upload(*_: object) -> None:
        raise full

    monkeypatch.setattr(memory, "to_device", upload)
    images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8).numpy(), torch.zeros(4).numpy())
    with pytest.raises(torch.OutOfMemoryError) as raised:
        memory.MemoryEvalFeed(images, [], 2, "bilinear", torch.device("cuda"))
    recipe = load("quickstart", ["data.name=folder", f"data.root={tmp_path}", *overrides])
    assert str(explain_error(raised.value, recipe)) == (
        "data: the images, all of which are kept on the device, do not fit into the memory of the "
        f"device ({full}). {cure}"
    )
