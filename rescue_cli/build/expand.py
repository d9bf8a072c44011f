"""What `--model`, `--epochs`, `--smoke` and `--subset` stand for: overrides, which are printed and
give way to the user's.

A key counted in epochs is recognised by its annotation, so that a new ingredient needs no line
here. Nothing here imports torch before it is needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from rescue_cli.errors import UsageError
from rescue_cli.recipe import SECTIONS, Item, OptimItem, Recipe, architectures, schema
from rescue_cli.recipe.changes import given_keys, is_given, without_lr_rule
from rescue_cli.recipe.own import split_name

SMOKE_MICRO_BATCH = 8
SMOKE_STEPS = 2
SMOKE_IMAGES = 16
Signatures = Sequence[Callable[..., Any]]


def expand_options(
    base: Recipe, overrides: Sequence[str], model: str | None, epochs: float | None
) -> tuple[list[str], list[str]]:
    """The overrides that the options stand for, in addition to the user's, and notes to print.

    Raises `UsageError`.
    """
    if model is None and epochs is None:
        return [], []
    changes, notes = [], []
    if model is not None:
        changes = model_overrides(base, model, overrides)
        notes = [f"--model sets: {' '.join(changes)}", *_note_paper_batch(base, model, overrides)]
    if epochs is not None:
        if not 0 < epochs <= 1_000_000:
            raise UsageError(f"--epochs: {epochs} must be above 0 and at most 1000000.")
        scaled = epochs_overrides(base.with_overrides(*overrides, *changes), epochs, overrides)
        notes.append(f"--epochs sets: {' '.join(scaled)}")
        changes += scaled
    return changes, notes


def _note_paper_batch(base: Recipe, model: str, overrides: Sequence[str]) -> list[str]:
    """A note if the paper used other micro-batches for this network than the recipe."""
    train, size = base.train, base.data.train_size
    row = architectures.row_of(model)
    column = architectures.column_of(base.model.name, size, base.eval.sizes)
    given = is_given("train.device_batch_size", given_keys(overrides))
    if row is None or column is None or train.batch_size != architectures.BATCH or given:
        return []
    gpus = row["cost"]["a3" if column == "a3" else "a2"]["gpus"]
    paper = train.batch_size // gpus
    if paper == train.device_batch_size:
        return []
    return [
        f"the paper trained {row['paper']} on {gpus} GPUs with {paper} images each; "
        f"for the same micro-batches, give train.device_batch_size={paper}"
    ]


def model_overrides(base: Recipe, name: str, overrides: Sequence[str]) -> list[str]:
    """Overrides that put another network into the recipe `base`, beside the user's `overrides`.

    The name; the sizes that the paper's table has for it, where the recipe is one whose own
    network stands there with the recipe's sizes; the image size of a network that is made for one;
    the removal of keys that the network lacks. Raises `UsageError`.
    """
    from rescue_cli.sections.model import MODELS
    from rescue_cli.sections.model.timm_models import has_fixed_size

    given = given_keys(overrides)
    if split_name(name) is not None:
        raise UsageError(
            f"--model: {name} is code of your own, whose keys are others. Set "
            f"model={{name: {name}, KEY: VALUE}}."
        )
    if is_given("model.name", given):
        raise UsageError("--model and model.name set the same thing. Give only one.")
    options = base.with_overrides(*overrides).model.options
    values: dict[str, Any] = {"model.name": name, **_sizes(base, name)}
    values = {key: value for key, value in values.items() if not is_given(key, given)}
    after = base.with_overrides(*overrides, *_format_overrides(values))
    removed = _lacking(name, options)
    if name not in MODELS and has_fixed_size(name):
        values |= _fixed_size_keys(name, after, given)
        removed = [key for key in removed if f"model.{key}" not in values]
    kept = [f"~model.{key}" for key in removed if not is_given(f"model.{key}", given)]
    return [*_format_overrides(values), *kept]


def epochs_overrides(recipe: Recipe, number: float, overrides: Sequence[str]) -> list[str]:
    """Overrides for a training of `number` epochs: each key counted in epochs in proportion.

    `recipe` has the user's `overrides` already, and what they set stays. Raises `UsageError`.
    """
    given = given_keys(overrides)
    if is_given("train.epochs", given):
        raise UsageError("--epochs and train.epochs set the same thing. Give only one.")
    ratio = number / recipe.train.epochs
    values: dict[str, Any] = {"train.epochs": _tidy(number)}
    for prefixes, options, signatures in _sections(recipe):
        for key, value in _scaled_keys(options, signatures, ratio):
            paths = [f"{prefix}.{key}" for prefix in prefixes]
            if not any(is_given(path, given) for path in paths):
                values.setdefault(paths[0], value)
    return _format_overrides(values)


def _sizes(base: Recipe, name: str) -> dict[str, Any]:
    """Training and test size of the table's row, from the column that the recipe belongs to."""
    row = architectures.row_of(name)
    column = architectures.column_of(base.model.name, base.data.train_size, base.eval.sizes)
    if row is None or column is None:
        return {}
    train_size, test_size = row["sizes"][column]
    return {"data.train_size": train_size, "eval.sizes": [test_size]}


def _fixed_size_keys(name: str, after: Recipe, given: Sequence[str]) -> dict[str, Any]:
    """The keys by which a network made for one image size takes the recipe's."""
    from rescue_cli.sections.model.timm_models import unsupported_keys

    size = after.data.train_size
    if size is None:
        return {}
    keys = {"model.img_size": size}
    if set(after.eval.sizes) != {size}:  # its position embedding follows the image
        keys["model.dynamic_img_size"] = True
    unknown = unsupported_keys(name, [key.removeprefix("model.") for key in keys])
    if "dynamic_img_size" in unknown:
        raise UsageError(
            f"model ({name}): takes images of one size; training has {size} px and eval.sizes is "
            f"{after.eval.sizes}. Set eval.sizes=[{size}]."
        )
    return {k: v for k, v in keys.items() if k[6:] not in unknown and not is_given(k, given)}


def _lacking(name: str, options: Mapping[str, Any]) -> list[str]:
    """The keys of the recipe's network that the network called `name` does not have."""
    from rescue_cli.sections.model import MODELS, timm_model
    from rescue_cli.sections.model.timm_models import unsupported_keys

    known = {**schema.keys(MODELS.get(name, timm_model)), **schema.keys(SECTIONS["model"].keys)}
    unknown = [key for key in options if key not in known]
    shared = [key for key in options if key in schema.keys(timm_model)]
    return unknown if name in MODELS else [*unknown, *unsupported_keys(name, shared)]


def _sections(
    recipe: Recipe,
) -> Iterator[tuple[list[str], Mapping[str, Any], Signatures]]:
    """All that has keys: its possible paths, the best first, its options and signatures."""
    for section, entry in SECTIONS.items():
        items = recipe.items(section)
        listed = isinstance(recipe.tree.get(section), list)
        if entry.ingredients is None:
            yield [section], recipe.tree[section], (entry.keys,)
        for position, item in enumerate(items):
            paths = _addresses(section, items, position) if listed else [section]
            yield paths, item.options, (item.function, entry.keys)
            if isinstance(item, OptimItem) and (own := item.own_schedule) is not None:
                signatures = (own.function, type(own))
                yield [f"{path}.schedule" for path in paths], own.options, signatures


def _addresses(section: str, items: Sequence[Item], position: int) -> list[str]:
    """The paths by which an item of a list can be reached: its group, its name, its position."""
    labels = [[getattr(i, "params", None), i.name] for i in items]
    flat = [label for pair in labels for label in pair]
    unique = (str(label) for label in labels[position] if label and flat.count(label) == 1)
    own = [label for label in unique if "." not in label]  # a parameter's name is no address
    return [f"{section}.{label}" for label in (*own, position)]


def _scaled_keys(
    options: Mapping[str, Any], signatures: Signatures, ratio: float
) -> Iterator[tuple[str, Any]]:
    """The keys counted in epochs with their values times `ratio`, defaults included."""
    for signature in signatures:
        for name, key in schema.keys(signature).items():
            value = options.get(name, None if key.required else key.default)
            if value is not None and _is_marked(key.annotation):
                yield name, _scale(value, key.annotation, ratio)


def _is_marked(annotation: Any) -> bool:
    """Whether an annotation, or a part of it, is counted in epochs."""
    parts = (annotation, *get_args(annotation))
    return any(isinstance(p, schema.InEpochs) for p in parts) or any(map(_is_marked, parts[1:]))


def _scale(value: Any, annotation: Any, ratio: float) -> Any:
    """What `annotation` marks in `value`, times `ratio`; the rest as it is."""
    parts = get_args(annotation)
    if value is None or not _is_marked(annotation):
        return value
    if get_origin(annotation) is Annotated:
        if any(isinstance(part, schema.InEpochs) for part in parts):
            return _tidy(value * ratio)
        return _scale(value, parts[0], ratio)
    if isinstance(value, Mapping):
        return {key: _scale(item, parts[1], ratio) for key, item in value.items()}
    if isinstance(value, list | tuple):
        each = parts if get_origin(annotation) is tuple else parts[:1] * len(value)
        return [_scale(item, part, ratio) for item, part in zip(value, each, strict=True)]
    return _scale(value, next(filter(_is_marked, parts)), ratio)


def _tidy(number: float) -> float:
    """Without the last digits, which a product leaves behind; whole numbers as integers."""
    rounded = round(number, 9)
    return int(rounded) if rounded == int(rounded) else rounded


def _format_overrides(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{k}={schema.show(v) if isinstance(v, bool) else v}".replace(" ", "")
        for k, v in values.items()
    ]


def cut_short(
    recipe: Recipe, given: Sequence[str], *, subset: str | None, smoke: bool, cuda: bool
) -> tuple[list[str], list[str]]:
    """What `--subset` and `--smoke` stand for, in addition to the user's overrides, and notes.

    `recipe` has the user's overrides already. Raises `UsageError`.
    """
    changes = [] if subset is None else [subset_override(subset, given)]
    if not smoke:
        return changes, []
    changed = recipe.with_overrides(*changes)
    implied = smoke_overrides(changed, [*given, *changes], cuda=cuda)
    return [*changes, *implied], [f"--smoke sets: {' '.join(implied)}"]


def smoke_overrides(recipe: Recipe, overrides: Sequence[str], *, cuda: bool) -> list[str]:
    """Overrides for a run of seconds: as many micro-batches, of 8 images; one epoch of two steps.

    `recipe` has the user's `overrides` already, and what they set stays.
    """
    given = given_keys(overrides)
    micro_batch_size = SMOKE_MICRO_BATCH
    if is_given("train.device_batch_size", given):
        micro_batch_size = recipe.train.device_batch_size
    values = {
        "train.batch_size": recipe.train.micro_batches * micro_batch_size,
        "train.device_batch_size": micro_batch_size,
        "train.epochs": 1,
        "train.steps_per_epoch": SMOKE_STEPS,
        "data.subset": [SMOKE_IMAGES, SMOKE_IMAGES],
        "data.holdout": 0,
        **({"data.fold": 0} if recipe.data.fold else {}),
        **({} if cuda else {"train.precision": "float32"}),
    }
    implied = [f"{key}={value}" for key, value in values.items() if not is_given(key, given)]
    return [*implied, *without_lr_rule(recipe)]


def subset_override(text: str, overrides: Sequence[str] = ()) -> str:
    """The override that `--subset N` or `--subset TRAIN:TEST` stands for, beside the user's."""
    if is_given("data.subset", [k for k in given_keys(overrides) if k != "data"]):
        raise UsageError("--subset and data.subset set the same thing. Give only one.")
    parts = text.split(":")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise UsageError(f"--subset: '{text}' must be N or TRAIN:TEST, whole numbers above 0.")
    return f"data.subset=[{int(parts[0])}, {int(parts[-1])}]"


def count_processes(
    micro_batches: int, asked: int | None, visible: int, *, option: str = "--procs"
) -> int:
    """How many processes share the micro-batches: as asked, else as many as are visible and divide
    them.

    Raises `UsageError` where the number asked for does not divide them.
    """
    fitting = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    if asked is None:
        return max(n for n in fitting if n <= max(1, visible))
    if asked not in fitting:
        raise UsageError(
            f"{option}: {asked} processes do not divide the {micro_batches} micro-batches of a "
            f"step. Use {', '.join(map(str, fitting))}, or another train.device_batch_size."
        )
    return asked


def warn_of_batch(before: Recipe, after: Recipe, overrides: Sequence[str]) -> list[str]:
    """Warnings of a batch size changed without its learning rate, and of smaller micro-batches."""
    keys = given_keys(overrides)
    warnings = []
    ratio = after.train.batch_size / before.train.batch_size
    same_rate = not any(key == "optim" or key.endswith(".lr") for key in keys)
    if is_given("train.batch_size", keys) and ratio != 1 and same_rate:
        name = after.optim[0].name
        rule, factor = ("square-root", ratio**0.5) if name == "lamb" else ("linear", ratio)
        warnings.append(
            f"train.batch_size is {after.train.batch_size} in place of {before.train.batch_size}, "
            f"and optim.lr is unchanged. Its {rule} rule gives "
            f"optim.lr={factor * after.optim[0].lr:.4g}."
        )
    if after.train.device_batch_size < before.train.device_batch_size:
        warnings.append(
            f"micro-batches of {after.train.device_batch_size} in place of "
            f"{before.train.device_batch_size}: batch norm normalises over fewer images."
        )
    return warnings
