"""torch.export: the graph and the weights as a program that torch runs without this package."""

import json
from pathlib import Path

import torch

from rescue_cli.export.formats import Exportable, Inputs, Preparation, Probabilities

FILE = "model.pt2"
METADATA = "metadata.json"  # within the file: torch.export.load(FILE, extra_files={METADATA: ""})


def write(network: Exportable, folder: Path) -> None:
    """Writes the file; raises what torch raises for a network that it cannot trace."""
    metadata = {**network.metadata, "input_name": network.interface.input}
    text = json.dumps(metadata, indent=1)
    torch.export.save(network.program(), folder / FILE, extra_files={METADATA: text})


class TorchProgram(Preparation):
    """The file as `torch.export.load` reads it."""

    def __init__(self, folder: Path) -> None:
        extra = {METADATA: ""}
        self.network = torch.export.load(folder / FILE, extra_files=extra).module()
        metadata = json.loads(extra[METADATA])
        super().__init__(metadata, takes_pixels=metadata["input_name"] == "pixels")

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> Probabilities:
        """Probabilities of a batch of any size."""
        return self.probabilities(self.network(torch.from_numpy(inputs)).numpy())
