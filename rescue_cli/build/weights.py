"""Weights as a user names them, and the recipe that evaluates them.

A run and its weights file contain their recipe. For other weights one is made: network and
preprocessing are those of the weights, and the shipped recipe `pytorch` fills in the rest, which an
evaluation does not read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rescue_cli import recipe as recipes
from rescue_cli.errors import DataError, UsageError, did_you_mean
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, places
from rescue_cli.recipe.own import offer_weights
from rescue_cli.rundir import RunDirectory
from rescue_cli.sections.annotations import ASPECT
from rescue_cli.sections.data import FACTS, channels_of, normalisation
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.model import MODELS, weights

# What is done to the network's images, and the recipe's section and key of it
PREPROCESSING = {
    "mean": ("data", "mean"),
    "std": ("data", "std"),
    "size": ("eval", "sizes"),
    "crop": ("eval", "crops"),
    "interpolation": ("eval", "interpolation"),
}
_TEMPLATE = "pytorch"
_WORDS = {"given": "as given", "metadata": "by the file's metadata", "timm": "by timm"}


@dataclass(frozen=True)
class Source:
    """The recipe, with the weights in it; `protocol` has what a recipe has no key for."""

    given: str  # as the user names it
    name: str
    recipe: Recipe
    metadata: Mapping[str, str]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trained: Recipe | None = None  # the weights' own, unchanged, where they carry one


def known_classes(metadata: Mapping[str, str]) -> list[str] | None:
    """The class names in the metadata of our weights; None for files of other programs."""
    try:
        names = json.loads(metadata.get("classes", ""))
    except ValueError:
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def describe_preprocessing(recipe: Recipe) -> dict[str, str]:
    """How an image becomes the network's input, as text by key: the metadata of a weights file.

    `find_weights` reads the first five keys in a file without a recipe; `preprocessing` has all of
    them in a sentence. `longest` is of segmentation: its images stay whole, and none is longer.
    Of detection, `mean` and `std` alone.
    """
    mean, std = (", ".join(map(str, v)) for v in normalisation(recipe.data.name, recipe.data))
    if recipe.task.name == "detection":
        return {"mean": mean, "std": std}
    evaluation, reading = recipe.eval, Reading.of(recipe.data)
    size, crop, tta = evaluation.sizes[0], evaluation.crops[0], evaluation.ttas[0]
    colour = "RGB" if channels_of(recipe.data.name, recipe.data) == 3 else "grey"
    side = "both sides" if evaluation.resize == "squash" else "the shorter side"
    interpolation, longest = evaluation.interpolation, {}
    resized = f"{side} resized to {math.floor(size / crop)} px"
    cut = f"the centre {size} x {size} px; "
    if recipe.is_annotated:  # whole
        interpolation, longest = "bilinear", {"longest": str(ASPECT * size)}
        resized, cut = f"{resized}, the longer in proportion, to {ASPECT * size} px at most", ""
    return {
        "mean": mean,
        "std": std,
        "input": str(size),
        "crop": str(crop),
        "interpolation": interpolation,
        "resize": evaluation.resize,
        **longest,
        "colour": colour,
        "tta": tta,
        **{key: str(value) for key, value in asdict(reading).items() if value is not None},
        "preprocessing": (
            f"{colour}; {resized} ({interpolation}, antialiased, 8 bits); {cut}"
            "(value / 255 - mean) / std"
        ),
    }


def check_changes(changes: Sequence[str], source: Source) -> None:
    """Raises `UsageError` for a change that has no effect on an evaluation, or would mislead."""
    for key in given_keys([change for change in changes if not change.startswith("~")]):
        section = recipes.SECTIONS.get(key.partition(".")[0])
        if section is not None and not section.evaluated:
            raise UsageError(f"{key}: has no effect on an evaluation. Remove it.")
    asked, trained = source.recipe, source.trained
    if trained is None:
        return
    keys = asked.data
    unseen = (trained.data.holdout, trained.data.fold)
    if keys.holdout and (keys.holdout, keys.fold) != unseen:
        fold = f", data.fold: {keys.fold}" if (keys.fold, unseen[1]) != (0, 0) else ""
        raise UsageError(
            f"data.holdout: {keys.holdout}{fold}: {source.given} was trained on these images. "
            "Remove data.holdout, or name others with data.test_root=DIR."
        )
    # Of fewer images the run's record says whether it was trained on any: `compare_test_sets`
    recorded = RunDirectory(Path(source.given).expanduser()).listing.is_file()
    fewer = recorded and keys.test_holdout < trained.data.test_holdout
    if keys.test_holdout not in (0, trained.data.test_holdout) and not fewer:
        raise UsageError(
            f"data.test_holdout: {keys.test_holdout}: {source.given} was trained on some of these "
            "images. Remove data.test_holdout, or name others with data.test_holdout=0 "
            "data.test_root=DIR."
        )
    seen: int | None = trained.data.channels
    seen = seen or (FACTS[trained.data.name].channels if trained.data.name in FACTS else None)
    if seen is not None and (now := channels_of(asked.data.name, keys)) != seen:
        raise UsageError(
            f"data.name: {source.given} takes images with {seen} channel(s), and those of "
            f"{asked.data.name} have {now}. Use weights that were trained on such images."
        )


def find_weights(
    given: str, changes: Sequence[str], *, recipe: str | None = None, model: str | None = None
) -> Source:
    """The weights called `given`: a run directory, a file, a part of one or `timm:NAME`.

    `changes` are overrides; `recipe` replaces the one in the file, `model` is the architecture
    where there is none. Raises `DataError`, `UsageError`.
    """
    if given.startswith(weights.TIMM):
        name, path, metadata = given.removeprefix(weights.TIMM), given, {}
        architecture: str | None = name
        if model is not None:
            raise UsageError(
                f"--model: {given} already names the architecture. Remove --model {model}."
            )
    else:
        folder = Path(given).expanduser()
        name = folder.stem if folder.is_dir() else weights.source_label(given)
        path, metadata = weights.resolve_source(given), weights.read_metadata(given)
        architecture = model or metadata.get("architecture")
    if recipe is None and "recipe" not in metadata:
        return _without_recipe(given, name, path, architecture, metadata, changes)
    if model is not None:
        whose = f"--recipe {recipe}" if recipe is not None else f"the recipe in {given}"
        raise UsageError(
            f"--model: {whose} already names the architecture. Remove --model {model}."
        )
    if recipe is not None:
        base, protocol = recipes.load(recipe), {"weights": given}
    else:
        base, protocol = recipes.from_text(metadata["recipe"], path), {}
        base = base.with_overrides(*_places_of_run(Path(path)))
        offer_weights(Path(path), base.code)
    # `frozen` says how the network was trained; an evaluation runs all of it
    whole = ["~model.frozen"] if "frozen" in base.model.options else []
    loaded = base.with_overrides(f"model.weights={json.dumps(path)}", *whole, *changes)
    return Source(given, name, loaded, metadata, protocol, trained=_read_recipe(metadata, path))


def _places_of_run(file: Path) -> list[str]:
    """Where the data of a run lie, as overrides, which its weights do not say; without a run
    around the file none.
    """
    run = RunDirectory(file.parent)
    if file != run.weights or not run.recipe.is_file():
        return []
    known = places(recipes.recipe_in(run.path))
    return [f"{key}={json.dumps(place)}" for key, place in known.items()]


def _read_recipe(metadata: Mapping[str, str], path: str) -> Recipe | None:
    """The recipe in the file, whether or not another replaces it; None where it is unreadable."""
    try:
        return recipes.from_text(metadata["recipe"], path)
    except (KeyError, UsageError):
        return None


def _without_recipe(
    given: str,
    name: str,
    path: str,
    architecture: str | None,
    metadata: Mapping[str, str],
    changes: Sequence[str],
) -> Source:
    template = {k: v for k, v in recipes.load(_TEMPLATE).tree.items() if k in recipes.SECTIONS}
    train = {**template["train"], "precision": "float32"}
    network = {"weights": path} | ({"name": architecture} if architecture else {})
    blank = {"data": {"name": "imagenet"}, "model": network, "eval": {}, "train": train}
    tree = recipes.apply({**template, **blank}, changes)
    known = {"name": "", **(tree["model"] if isinstance(tree["model"], dict) else {})}
    tree["model"] = {"weights": path, **known}
    if not isinstance(known["name"], str) or not known["name"]:
        raise UsageError(
            f"{given}: contains no recipe and names no architecture. "
            "Give the architecture with --model NAME, or a recipe with --recipe NAME."
        )
    data = tree["data"]
    if isinstance(data, dict) and data.get("name") in FACTS and FACTS[data["name"]].images is None:
        data.setdefault("exif", "applied")  # the user's photos, upright as other programs show them
    config = _timm_config(known["name"], downloads=path.startswith(weights.TIMM))
    origins = _fill(tree, given, known["name"], metadata, config)
    tree["model"]["name"] = tree["name"] = known["name"].partition(".")[0]  # less timm's tag
    recipe = recipes.from_tree(tree)
    _check_sizes(recipe, config)
    protocol = {"weights": given, "model": known["name"], "preprocessing": origins}
    notes = (_describe_preprocessing(known["name"], tree, origins), *_compare_with_timm(config))
    return Source(given, name, recipe, metadata, protocol, notes)


def _timm_config(name: str, *, downloads: bool) -> Any:
    """timm's configuration of the architecture with its tag; None for our own networks."""
    if name in MODELS:
        return None
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = did_you_mean(name, timm.list_models())[:200]
        raise UsageError(f"--model: '{name}' is not a model of rescue or timm. {near}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        config = None
    if (config is None and "." in name) or (downloads and not (config and config.has_weights)):
        tags = timm.list_pretrained(f"{architecture}.*")
        near = did_you_mean(name, tags) if tags else "It has no weights of this architecture."
        raise UsageError(f"timm has no weights called '{name}'. {near}")
    return config


def _fill(
    tree: dict[str, Any], given: str, model: str, metadata: Mapping[str, str], config: Any
) -> dict[str, str]:
    """Sets what the user left open; returns where each value comes from."""
    by_file, by_timm = _of_metadata(given, metadata), _of_timm(config)
    origins = {}
    for key, (section, option) in PREPROCESSING.items():
        options = tree[section]
        if not isinstance(options, dict):
            continue  # checking the recipe reports it
        if option in options:
            origins[key] = "given"
        elif key in by_file:
            options[option], origins[key] = by_file[key], "metadata"
        elif key in by_timm:
            options[option], origins[key] = by_timm[key], "timm"
        else:
            raise UsageError(
                f"{given}: neither its metadata nor timm's configuration of {model} says "
                f"{section}.{option}. Give {section}.{option}=VALUE."
            )
    return origins


def _of_metadata(given: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """`mean` and `std` (three numbers), `input` (pixels), `crop`, `interpolation`."""
    values: dict[str, Any] = {}
    for key, name in (("mean", "mean"), ("std", "std"), ("size", "input"), ("crop", "crop")):
        if name in metadata:
            try:
                numbers = [float(word) for word in metadata[name].strip("()[] ").split(",")]
                values[key] = [int(numbers[-1])] if key == "size" else numbers
            except ValueError:
                section, option = PREPROCESSING[key]
                raise DataError(
                    f"{given}: {name} in its metadata is '{metadata[name][:100]}', not numbers. "
                    f"Give {section}.{option}=VALUE."
                ) from None
    if "interpolation" in metadata:
        values["interpolation"] = metadata["interpolation"]
    return values


def _of_timm(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    return {
        "mean": list(config.mean),
        "std": list(config.std),
        "size": [config.input_size[-1]],
        "crop": [config.crop_pct],
        "interpolation": config.interpolation,
    }


def _check_sizes(recipe: Recipe, config: Any) -> None:
    """Raises `UsageError` for a size that the network cannot take (ViT's position embedding)."""
    if config is None or not config.fixed_input_size:
        return
    built = recipe.model.options.get("img_size", config.input_size[-1])
    for size in recipe.eval.sizes:
        if size != built:
            raise UsageError(
                f"eval.sizes: {size}: {recipe.model.name} takes images of {built} px only. "
                f"Use eval.sizes=[{built}]."
            )


def _describe_preprocessing(name: str, tree: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """One line: what is done to the images, and where each value comes from."""
    parts = []
    for origin, words in _WORDS.items():
        values = [
            f"{key} {_join_values(tree[section].get(option))}"
            for key, (section, option) in PREPROCESSING.items()
            if origins.get(key) == origin
        ]
        if values:
            parts.append(f"{', '.join(values)} ({words})")
    return f"preprocessing of {name}: {'; '.join(parts)}"


def _join_values(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _compare_with_timm(config: Any) -> list[str]:
    """Notes on how timm would evaluate these weights differently."""
    if config is None:
        return []
    notes = []
    if config.crop_mode != "center":
        notes.append(
            f"warning: timm crops this network's images in the mode '{config.crop_mode}'; this "
            "evaluation takes their centre."
        )
    if config.test_input_size is not None:
        size, crop = config.test_input_size[-1], config.test_crop_pct or config.crop_pct
        notes.append(f"timm also tests it at a larger size: --sizes {size} --crops {crop:g}")
    return notes
