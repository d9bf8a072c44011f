"""The evaluation that training and `rescue eval` share, and its protocol."""

from typing import Any

from rescue_cli.batch import Measurement
from rescue_cli.build.feeds import Machine, build_input_normalise
from rescue_cli.build.losses import build_loss
from rescue_cli.build.networks import autocast
from rescue_cli.build.weights import PREPROCESSING
from rescue_cli.engine.evaluate import Evaluator
from rescue_cli.recipe import Recipe
from rescue_cli.sections.data import Dataset, normalisation
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.loss import micro_batch_loss
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
        "weights": "last epoch" if recipe.averaging.name == "none" else recipe.averaging.name,
        "precision": recipe.train.precision,
        "mean": mean,
        "std": std,
        "preprocessing": dict.fromkeys(PREPROCESSING, "recipe"),
        **Reading.of(recipe.data).unusual,
        **({"resize": "squash"} if recipe.eval.resize == "squash" else {}),
    }
