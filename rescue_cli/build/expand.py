"""What `--model` and `--epochs` stand for: overrides, which are printed and give way to the user's.

A key counted in epochs is known by its annotation, so that a new ingredient needs no line here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Eval, Item, Recipe, Train, architectures, schema
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.sections.augment import AUGMENTATIONS, AUGMENTATIONS_OF
from rescue_cli.sections.averaging import AVERAGES
from rescue_cli.sections.data import Keys
from rescue_cli.sections.loss import LOSSES
from rescue_cli.sections.mix import MIXES
from rescue_cli.sections.model import MODELS, timm_model
from rescue_cli.sections.model import common as model_keys
from rescue_cli.sections.model.timm_models import has_fixed_size, unsupported_keys
from rescue_cli.sections.optim import OPTIMIZERS
from rescue_cli.sections.optim import common as optim_keys
from rescue_cli.sections.sampling import SAMPLERS
from rescue_cli.sections.schedule import SCHEDULES
from rescue_cli.sections.schedule import common as schedule_keys
from rescue_cli.sections.selection import SELECTIONS
from rescue_cli.sections.task import TASKS
from rescue_cli.sections.teacher import TEACHERS

Signatures = Sequence[Callable[..., Any]]
INGREDIENTS: dict[str, tuple[dict[str, Any], Signatures]] = {
    "task": (TASKS, ()),
    "sampling": (SAMPLERS, ()),
    "augment": (AUGMENTATIONS, ()),
    "mix": (MIXES, ()),
    "selection": (SELECTIONS, ()),
    "teacher": (TEACHERS, ()),
    "loss": (LOSSES, ()),
    "optim": (OPTIMIZERS, (optim_keys,)),
    "schedule": (SCHEDULES, (schedule_keys,)),
    "averaging": (AVERAGES, ()),
}
PLAIN: dict[str, Signatures] = {"data": (Keys,), "eval": (Eval,), "train": (Train,)}


def model(base: Recipe, name: str, overrides: Sequence[str]) -> list[str]:
    """Overrides that put another network into the recipe `base`, beside the user's `overrides`.

    The name; the sizes that the paper's table has for it, where the recipe is one whose own
    network stands there with the recipe's sizes; the image size of a network that is made for one;
    the removal of keys that the network lacks. Raises `UsageError`.
    """
    given = given_keys(overrides)
    if is_given("model.name", given):
        raise UsageError("--model and model.name say the same thing. Give one of them.")
    options = base.with_overrides(*overrides).model.options
    values: dict[str, Any] = {"model.name": name, **_sizes(base, name)}
    values = {key: value for key, value in values.items() if not is_given(key, given)}
    after = base.with_overrides(*overrides, *_written(values))
    removed = _lacking(name, options)
    if name not in MODELS and has_fixed_size(name):
        values |= _fixed(name, after, given)
        removed = [key for key in removed if f"model.{key}" not in values]
    kept = [f"~model.{key}" for key in removed if not is_given(f"model.{key}", given)]
    return [*_written(values), *kept]


def epochs(recipe: Recipe, number: float, overrides: Sequence[str]) -> list[str]:
    """Overrides for a training of `number` epochs: each key counted in epochs in proportion.

    `recipe` has the user's `overrides` already, and what they set stays. Raises `UsageError`.
    """
    given = given_keys(overrides)
    if is_given("train.epochs", given):
        raise UsageError("--epochs and train.epochs say the same thing. Give one of them.")
    ratio = number / recipe.train.epochs
    values: dict[str, Any] = {"train.epochs": _tidy(number)}
    for prefixes, options, signatures in _sections(recipe):
        for key, value in _scaled_keys(options, signatures, ratio):
            paths = [f"{prefix}.{key}" for prefix in prefixes]
            if not any(is_given(path, given) for path in paths):
                values.setdefault(paths[0], value)
    return _written(values)


def _sizes(base: Recipe, name: str) -> dict[str, Any]:
    """Training and test size of the table's row, from the column that the recipe itself is of."""
    row = architectures.row_of(name)
    own = base.data.options.get("train_size"), base.eval.sizes
    column = architectures.column_of(base.model.name, *own)
    if row is None or column is None:
        return {}
    train_size, test_size = row["sizes"][column]
    return {"data.train_size": train_size, "eval.sizes": [test_size]}


def _fixed(name: str, after: Recipe, given: Sequence[str]) -> dict[str, Any]:
    """The keys that let a network made for one size see the recipe's."""
    size = after.data.options.get("train_size")
    if size is None:
        return {}
    found = {"model.img_size": size}
    if set(after.eval.sizes) != {size}:  # its position embedding follows the image
        found["model.dynamic_img_size"] = True
    unknown = unsupported_keys(name, [key.removeprefix("model.") for key in found])
    if "dynamic_img_size" in unknown:
        raise UsageError(
            f"model ({name}): sees images of one size; training has {size} px and eval.sizes is "
            f"{after.eval.sizes}. Set eval.sizes=[{size}]."
        )
    return {k: v for k, v in found.items() if k[6:] not in unknown and not is_given(k, given)}


def _lacking(name: str, options: Mapping[str, Any]) -> list[str]:
    """The keys of the recipe's network that the network called `name` does not have."""
    function = MODELS.get(name, timm_model)
    known = {**schema.keys(function), **schema.keys(model_keys)}
    unknown = [key for key in options if key not in known]
    shared = [key for key in options if key in schema.keys(timm_model)]
    return unknown if name in MODELS else [*unknown, *unsupported_keys(name, shared)]


def _sections(
    recipe: Recipe,
) -> Iterator[tuple[list[str], Mapping[str, Any], Signatures]]:
    """All that carries keys: its possible paths, the best first, its options and signatures."""
    for section, signatures in PLAIN.items():
        part = recipe.tree.get(section, {})
        yield [section], part, signatures
    for section, (ingredients, shared) in INGREDIENTS.items():
        if section == "augment":
            ingredients = AUGMENTATIONS_OF[recipe.task.name]
        tree = recipe.tree.get(section)
        items: Sequence[Item] | Item = getattr(recipe, section)
        listed = (items,) if isinstance(items, Item) else items
        for place, item in enumerate(listed):
            paths = [section] if not isinstance(tree, list) else _addresses(section, listed, place)
            function = schema.lookup(f"{section}.name", item.name, ingredients)
            yield paths, item.options, (function, *shared)
            own = item.options.get("schedule")
            if section == "optim" and isinstance(own, Mapping):
                function = schema.lookup("schedule.name", own.get("name"), SCHEDULES)
                yield [f"{path}.schedule" for path in paths], own, (function, schedule_keys)


def _addresses(section: str, items: Sequence[Item], place: int) -> list[str]:
    """The paths by which an item of a list can be reached: its group, its name, its position."""
    labels = [[i.options.get("params"), i.name] for i in items]
    flat = [label for pair in labels for label in pair]
    unique = (str(label) for label in labels[place] if label and flat.count(label) == 1)
    mine = [label for label in unique if "." not in label]  # a parameter's name is no address
    return [f"{section}.{label}" for label in (*mine, place)]


def _scaled_keys(
    options: Mapping[str, Any], signatures: Signatures, ratio: float
) -> Iterator[tuple[str, Any]]:
    """The keys counted in epochs with their values times `ratio`, defaults included."""
    for signature in signatures:
        for name, key in schema.keys(signature).items():
            value = options.get(name, None if key.required else key.default)
            if value is not None and _is_marked(key.annotation):
                yield name, _scaled(value, key.annotation, ratio)


def _is_marked(annotation: Any) -> bool:
    """Whether an annotation, or a part of it, is counted in epochs."""
    parts = (annotation, *get_args(annotation))
    return any(isinstance(p, schema.InEpochs) for p in parts) or any(map(_is_marked, parts[1:]))


def _scaled(value: Any, annotation: Any, ratio: float) -> Any:
    """What `annotation` marks in `value`, times `ratio`; the rest as it is."""
    parts = get_args(annotation)
    if value is None or not _is_marked(annotation):
        return value
    if get_origin(annotation) is Annotated:
        if any(isinstance(part, schema.InEpochs) for part in parts):
            return _tidy(value * ratio)
        return _scaled(value, parts[0], ratio)
    if isinstance(value, Mapping):
        return {key: _scaled(item, parts[1], ratio) for key, item in value.items()}
    if isinstance(value, list | tuple):
        each = parts if get_origin(annotation) is tuple else parts[:1] * len(value)
        return [_scaled(item, part, ratio) for item, part in zip(value, each, strict=True)]
    return _scaled(value, next(filter(_is_marked, parts)), ratio)


def _tidy(number: float) -> float:
    """Without the last digits, which a product leaves behind; whole numbers as integers."""
    rounded = round(number, 9)
    return int(rounded) if rounded == int(rounded) else rounded


def _written(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{k}={schema.show(v) if isinstance(v, bool) else v}".replace(" ", "")
        for k, v in values.items()
    ]
