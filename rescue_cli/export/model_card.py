"""The model card of a folder for the hub: what was trained, on what, and how sure its accuracy is.

It names no path of this machine.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rescue_cli.analysis.accuracy import add_intervals
from rescue_cli.export.comparison import Comparison
from rescue_cli.export.formats import Exportable
from rescue_cli.recipe import Recipe, recipe_in, yaml
from rescue_cli.recipe.changes import WEIGHTS, flat, is_path
from rescue_cli.rundir import (
    RunDirectory,
    read_environment,
    read_identity,
    read_result,
    write_text,
)

CARD = "README.md"
_HEAD = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
# license: FILL IN, a name from https://huggingface.co/docs/hub/repositories-licenses
---
"""
_USE = """```python
import timm, torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:.", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
settings = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**settings, is_training=False)
with torch.inference_mode():
    image = transform({opened}.convert("{mode}"))
    best = model(image[None]).softmax(1)[0].topk({top})
for probability, label in zip(*best):
    print(model.pretrained_cfg["label_names"][label], float(probability))
```"""
_MACHINE = (
    "rescue", "commit", "python", "torch", "torchvision", "timm", "numpy", "pillow", "device_name",
    "procs", "threads", "platform",
)  # fmt: skip


def write_model_card(
    folder: Path, network: Exportable, comparison: Comparison, run: Path | None, set_name: str
) -> None:
    """Writes `README.md`; of weights without a run it has what the recipe and the check say."""
    recipe, classes, metadata = network.recipe, network.classes, network.metadata
    of_run = None if run is None else RunDirectory(run)
    finished = of_run is not None and of_run.finished
    trained = recipe if of_run is None else recipe_in(of_run.path)
    parts = [
        _HEAD + f"# {recipe.model.name}, trained by the recipe {trained.name}",
        _summary(recipe, classes),
        "## Use\n\n" + _use(metadata, len(classes)),
        f"Preprocessing, in `config.json`: {metadata['preprocessing']}.",
        _reading(metadata),
        "## Accuracy\n\n" + _accuracy(of_run if finished else None, comparison, set_name),
        "## What it was not tested on\n\n" + _untested(recipe, set_name),
        "## Data\n\n" + _data(of_run, recipe),
        "## Training\n\n" + _training(of_run, trained),
        "## Licence\n\nFILL IN. It depends on the licences of the training images"
        + (", and of the weights that training started from." if recipe_weights(trained) else "."),
    ]
    write_text(folder / CARD, "\n\n".join(part for part in parts if part) + "\n")


def recipe_weights(recipe: Recipe) -> dict[str, Any]:
    """The weights that the recipe starts from or learns from, by key."""
    leaves = flat(recipe.tree)
    return {key: leaves[key] for key in WEIGHTS if leaves.get(key)}


def without_paths(recipe: Recipe) -> dict[str, Any]:
    """The recipe's tree without the keys whose values are paths."""

    def kept(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
        return {
            key: kept(value, f"{path}{key}.") if isinstance(value, Mapping) else value
            for key, value in tree.items()
            if isinstance(value, Mapping) or not is_path(f"{path}{key}", value)
        }

    return kept(recipe.tree)


def _summary(recipe: Recipe, classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return (
        f"An image classifier with {len(classes)} classes ({shown}): timm's "
        f"`{recipe.model.name}`, trained with `rescue`."
    )


def _use(metadata: Mapping[str, str], classes: int) -> str:
    """Code that reads a file as the run did, but for transparent pixels and more than 8 bits."""
    opened = 'Image.open("IMAGE")'
    return _USE.format(
        opened=f"ImageOps.exif_transpose({opened})" if metadata["exif"] == "applied" else opened,
        mode="L" if metadata["colour"] == "grey" else "RGB",
        top=min(5, classes),
    )


def _reading(metadata: Mapping[str, str]) -> str:
    """How files were read, which `config.json` has no key for."""
    return f"Files were read with EXIF orientation {metadata['exif']}, transparent pixels " + (
        "without their alpha channel."
        if metadata["background"] == "ignored"
        else f"on {metadata['background']}."
    )


def _accuracy(run: RunDirectory | None, comparison: Comparison, set_name: str) -> str:
    lines = []
    if run is not None:
        result = read_result(run)
        lines += _measured({**result, **add_intervals(result)}, _siblings(run.path))
    agreed = "; ".join(comparison.sentences())
    lines.append(
        f"This folder, loaded by timm: top-1 {comparison.score:.2f} % on {comparison.images:,} "
        f"images of `{set_name}`. Against the run's own evaluation in float32: {agreed}."
    )
    return "\n\n".join(lines)


def _measured(result: Mapping[str, Any], siblings: Sequence[float]) -> list[str]:
    low, high = result["interval"]
    protocol = result["protocol"]
    lines = [
        f"Top-1 {result['top1']:.2f} % on the {result['count']:,} images of `{protocol['set']}` "
        f"({protocol['data']}); 95 % interval {low:.1f} to {high:.1f}, for this network over new "
        f"images of the same kind. Seed {result['seed']}.",
        f"Protocol: {protocol['size']} px, crop {protocol['crop']:g}, {protocol['interpolation']}, "
        f"decoder {protocol['decoder']}, test-time augmentation {protocol['tta']}, weights "
        f"{protocol['weights']}, {protocol['precision']}.",
    ]
    if len(siblings) > 1:
        mean = sum(siblings) / len(siblings)
        variance = sum((value - mean) ** 2 for value in siblings) / (len(siblings) - 1)
        lines.append(
            f"One of {len(siblings)} runs with different seeds: mean {mean:.2f} %, standard "
            f"deviation {variance**0.5:.2f}."
        )
    else:
        lines.append("One run; how much accuracy varies with the seed was not measured here.")
    return lines


def _siblings(run: Path) -> list[float]:
    """Top-1 of the runs of the same sweep, this one included; none outside of one."""
    run = run.resolve()
    if not re.fullmatch(r"seed-\d+", run.name):
        return []
    runs = [RunDirectory(path) for path in sorted(run.parent.glob("seed-*"))]
    return [read_result(each)["top1"] for each in runs if each.finished]


def _untested(recipe: Recipe, set_name: str) -> str:
    evaluation = recipe.eval
    sizes = f"{evaluation.sizes[0]} px and crop {evaluation.crops[0]:g}"
    return _list(
        [
            f"Images of other origin than `{set_name}`: other cameras, places, times, styles.",
            "Images of none of its classes, to which it gives a class all the same.",
            "Noise, blur, compression, rotation, and images made to mislead it.",
            f"Sizes and crops other than {sizes}, unless listed above.",
            "Whether its probabilities are calibrated, and whether groups of people or things "
            "are treated alike.",
            f"Images that nobody looked at before: `{set_name}` may have guided choices of the "
            "recipe."
            if "holdout" not in set_name
            else f"The test set: `{set_name}` was held out of the training images.",
        ]
    )


def _data(run: RunDirectory | None, recipe: Recipe) -> str:
    lines = [f"Data set `{recipe.data.name}`."]
    identity = None if run is None else read_identity(run)
    if identity is not None:
        lines.append(f"Fingerprint of file names, labels and sizes: `{identity['digest']}`.")
        rows = [
            f"{name}: {split['images']:,} images, `{split['digest']}`"
            for name, split in identity["splits"].items()
        ]
        return "\n".join(lines) + "\n\n" + _list(rows)
    return "\n".join(lines)


def _training(run: RunDirectory | None, recipe: Recipe) -> str:
    lines = []
    if run is not None:
        environment = read_environment(run)
        identity = read_identity(run) or {}
        rows = [f"{key}: {environment[key]}" for key in _MACHINE if environment.get(key)]
        for key, value in recipe_weights(recipe).items():
            digest = identity.get("weights", {}).get(key)
            name = "a file" if is_path(key, value) else value
            rows.append(f"{key}: {name}" + (f", SHA-256 `{digest}`" if digest else ""))
        lines.append(_list(rows))
    text = yaml.write(without_paths(recipe)).strip()
    lines.append(f"The recipe, as run:\n\n```yaml\n{text}\n```")
    return "\n\n".join(lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
