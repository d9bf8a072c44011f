"""ONNX: one file with the graph, the weights, and the preprocessing in `metadata_props`."""

import warnings
from pathlib import Path

import torch

from rescue_cli.export.formats import Exportable, Inputs, Preparation, Probabilities

FILE = "model.onnx"
ONE_FILE = 1_900_000_000  # bytes of weights; protobuf ends at 2 GiB, and they go beside it then


def write(network: Exportable, folder: Path) -> None:
    """Writes the file; raises what torch raises for a network that it cannot trace."""
    interface, traced = network.interface, network.program()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own code
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=[interface.input],
            output_names=[interface.output],
            dynamic_shapes={"images": interface.axes()},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(network.metadata)
    size = sum(weight.nbytes for weight in traced.state_dict.values())
    program.save(folder / FILE, external_data=size > ONE_FILE)


class OnnxRuntime(Preparation):
    """The file in onnxruntime, on the CPU."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(
            folder / FILE, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        metadata = self.session.get_modelmeta().custom_metadata_map
        super().__init__(metadata, takes_pixels=self.input == "pixels")

    def __call__(self, inputs: Inputs) -> Probabilities:
        """Probabilities of a batch of any size."""
        (output,) = self.session.run(None, {self.input: inputs})
        return self.probabilities(output)
