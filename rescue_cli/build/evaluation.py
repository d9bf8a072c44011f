"""The evaluation that training and `rescue eval` share, and its protocol."""

from typing import Any

from rescue_cli.batch import Measurement
from rescue_cli.build.feeds import Machine, build_input_normalise
from rescue_cli.build.identity import count_trained_images
from rescue_cli.build.losses import build_loss
from rescue_cli.build.networks import autocast
from rescue_cli.build.weights import PREPROCESSING
from rescue_cli.engine.evaluate import Evaluator
from rescue_cli.recipe import Recipe
from rescue_cli.sections.data import Dataset, Files, Split, normalisation
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.splits import HELD_OUT
from rescue_cli.sections.loss import micro_batch_loss
from rescue_cli.sections.optim import LBFGS
from rescue_cli.sections.tta import TTAS


def build_evaluator(recipe: Recipe, data: Dataset, machine: Machine) -> Evaluator:
    """The evaluation that training and `rescue eval` share."""
    return Evaluator(
        task=recipe.task(micro_batch_loss(build_loss(recipe)), len(data.classes)),
        ttas={name: TTAS[name] for name in recipe.eval.ttas},
        while_training=recipe.eval.tta_while_training,
        normalise=build_input_normalise(recipe, data, machine.device),
        autocast=autocast(recipe.train.precision, machine.device),
        device=machine.device,
    )


def describe_protocol(
    recipe: Recipe, data_name: str, measurement: Measurement, resident: bool
) -> dict[str, Any]:
    """How a result was measured, from the recipe's keys."""
    mean, std = normalisation(recipe.data.name, recipe.data)
    return {
        "data": recipe.data.name,
        "set": data_name,
        "size": measurement.size,
        "crop": measurement.crop,
        "interpolation": recipe.eval.interpolation,
        "decoder": "resident" if resident else recipe.data.eval_decoder,
        "tta": measurement.tta,
        "weights": _weights(recipe),
        "precision": recipe.train.precision,
        "mean": mean,
        "std": std,
        "preprocessing": dict.fromkeys(PREPROCESSING, "recipe"),
        **Reading.of(recipe.data).unusual,
        **_held_out(recipe, data_name),
        **({"resize": "squash"} if recipe.eval.resize == "squash" else {}),
    }


def _held_out(recipe: Recipe, data_name: str) -> dict[str, str]:
    """How the test set came about, where the data set has none of its own."""
    if data_name != HELD_OUT["test_holdout"]:
        return {}
    count = recipe.data.test_holdout
    return {"held_out": f"{count:,} of the training images, equally many per class, fixed seed"}


def _weights(recipe: Recipe) -> str:
    if recipe.optim[0].name == LBFGS:  # not `fits_head`: an evaluation has no `model.frozen`
        return "fitted classifier"
    return "last epoch" if recipe.averaging.name == "none" else recipe.averaging.name


def describe_images(recipe: Recipe, test: Split, train: Split) -> dict[str, Any]:
    """For the protocol: what was done to images before they were packed; an order by shards; on
    how many of the test images the weights were trained before.
    """
    facts = {"images": _resized(test), "training_images": _resized(train)}
    if recipe.sampling.name == "shard-shuffled":
        facts["sampling"] = f"shard-shuffled, buffer {recipe.sampling.arguments['buffer']}"
    found = {**facts, "trained_on": count_trained_images(recipe, test)}
    return {key: value for key, value in found.items() if value}


def _resized(split: Split) -> str:
    """What was done to a split's images before they were packed; empty for the originals."""
    files = split if isinstance(split, Files) else split.files
    return "" if files is None else files.names.resized
