"""timm: a folder as its hub has them, with weights, config.json and a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rescue_cli.errors import UsageError
from rescue_cli.export.formats import Exportable, Inputs, Probabilities, softmax
from rescue_cli.export.preprocessing import Pixels
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import write_atomically, write_json
from rescue_cli.sections.data import imagenet_class_names
from rescue_cli.sections.model.weight_files import serialize

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# What an architecture's own configuration says of its layers, which fine-tuning reads
_OF_LAYERS = ("pool_size", "first_conv", "classifier", "fixed_input_size")
_CHANGED_LAYERS = {"stride_in": "3x3", "first_norm": None, "pooling": None}  # and timm's own


def check(recipe: Recipe) -> None:
    """Raises `UsageError` for a network that timm does not have."""
    import timm

    name = recipe.model.name
    if not timm.is_model(name):
        raise UsageError(
            f"--to timm: timm has no network called {name}. Use --to onnx or --to torch-export."
        )
    for key, own in _CHANGED_LAYERS.items():
        if (value := recipe.model.arguments.get(key, own)) != own:
            raise UsageError(
                f"--to timm: model.{key} is {value}, and timm's {name} has no such layers. Use "
                "--to onnx or --to torch-export."
            )


def write(network: Exportable, folder: Path) -> None:
    """Writes weights and configuration; `model_card.py` writes the card."""
    tensors = {k: v.contiguous().clone() for k, v in network.network.state_dict().items()}
    content = serialize(tensors, {"format": "pt", **network.metadata})
    write_atomically(folder / WEIGHTS, lambda file: file.write(content))
    write_json(folder / CONFIG, _configuration(network))


def _configuration(network: Exportable) -> dict[str, Any]:
    """`input_size` is the size of the evaluation, which timm's default transform then has; there is
    no other `test_input_size`.
    """
    own: Any = network.network
    recipe, evaluation = network.recipe, network.recipe.eval
    mean, std = network.normalisation
    channels, size, _ = network.interface.shape
    arguments = {k: recipe.model.arguments.get(k) for k in ("img_size", "dynamic_img_size")}
    arguments["in_chans"] = None if channels == 3 else channels
    arguments = {key: value for key, value in arguments.items() if value is not None}
    layers = {key: own.pretrained_cfg[key] for key in _OF_LAYERS if key in own.pretrained_cfg}
    if size != own.pretrained_cfg["input_size"][-1]:
        layers["pool_size"] = None
    return {
        "architecture": recipe.model.name,
        "num_classes": len(network.classes),
        "num_features": own.num_features,
        "label_names": list(network.classes),
        **_descriptions(network.classes),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            **layers,
            "custom_load": False,
            "input_size": [channels, size, size],
            "interpolation": evaluation.interpolation,
            "crop_pct": evaluation.crops[0],
            "crop_mode": "squash" if evaluation.resize == "squash" else "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(network.classes),
        },
    }


def _descriptions(classes: Sequence[str]) -> dict[str, Any]:
    """ImageNet's words, where all the classes are WordNet ids of its."""
    words = imagenet_class_names()
    if not all(name in words for name in classes):
        return {}
    return {"label_descriptions": {name: words[name] for name in classes}}


class TimmFolder:
    """timm's network of the folder, and its transform of images."""

    def __init__(self, network: torch.nn.Module, transform: Any, settings: Any) -> None:
        self.network, self.transform = network, transform
        self.mean, self.std = (torch.tensor(settings[key]) for key in ("mean", "std"))
        self.levels = 255 * self.std[:, None, None].numpy()

    def prepare(self, images: Sequence[Image.Image]) -> Inputs:
        """By timm's transform."""
        inputs: Inputs = torch.stack([self.transform(image) for image in images]).numpy()
        return inputs

    def from_pixels(self, pixels: Pixels) -> Inputs:
        """By timm's normalisation."""
        shares = torch.from_numpy(pixels).float() / 255
        normalised = (shares - self.mean) / self.std
        inputs: Inputs = normalised.permute(0, 3, 1, 2).contiguous().numpy()
        return inputs

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> Probabilities:
        """Probabilities of a batch of any size."""
        return softmax(self.network(torch.from_numpy(inputs)).double().numpy())


def open_folder(folder: Path) -> TimmFolder:
    """The folder as a user of timm opens it."""
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return TimmFolder(network, create_transform(**settings, is_training=False), settings)
