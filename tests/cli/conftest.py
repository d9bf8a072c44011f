"""What several verbs' tests begin with."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small network of timm's with weights that anyone can make again."""
    torch.manual_seed(1)
    file = tmp_path / "small.safetensors"
    network = timm.create_model("test_resnet", num_classes=10)
    save_file(network.state_dict(), file, metadata={"architecture": "test_resnet"})
    return file
