"""The evaluation that training and `rescue eval` share, and its protocol."""

from typing import Any

from rescue_cli.batch import Measurement
from rescue_cli.build.feeds import Machine, build_input_normalise
from rescue_cli.build.losses import build_loss
from rescue_cli.build.networks import autocast
from rescue_cli.build.weights import PREPROCESSING
from rescue_cli.engine.evaluate import Evaluator
from rescue_cli.engine.scenes import SceneEvaluator
from rescue_cli.recipe import Recipe
from rescue_cli.sections.data import Dataset, normalisation
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.loss import of_micro_batches
from rescue_cli.sections.task import Classification
from rescue_cli.sections.tta import TTAS


def build_evaluator(recipe: Recipe, data: Dataset, machine: Machine) -> Evaluator | SceneEvaluator:
    """The evaluation that training and `rescue eval` share."""
    task = recipe.task(of_micro_batches(build_loss(recipe)), len(data.classes))
    normalise = build_input_normalise(recipe, data, machine.device)
    cast = autocast(recipe.train.precision, machine.device)
    if not isinstance(task, Classification):
        return SceneEvaluator(task, normalise, cast, machine.device)
    return Evaluator(
        rows=task.rows,
        ttas={name: TTAS[name] for name in recipe.eval.ttas},
        normalise=normalise,
        autocast=cast,
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
