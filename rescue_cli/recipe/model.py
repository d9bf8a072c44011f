"""The recipe's parts as frozen values, built from the tree that its YAML file holds."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rescue_cli.errors import UsageError, did_you_mean, refuse_url
from rescue_cli.recipe import yaml
from rescue_cli.recipe.library import find
from rescue_cli.recipe.overrides import apply
from rescue_cli.recipe.schema import InEpochs, Positive, PositiveInt, Within, check, convert, show
from rescue_cli.recipe.sources import check_form

NEUTRAL: dict[str, Any] = {
    "sampling": {"name": "shuffled"},
    "augment": [],
    "mix": {"name": "none"},
    "selection": {"name": "none"},
    "teacher": {"name": "none"},
    "averaging": {"name": "none"},
}
REQUIRED = ("task", "data", "model", "loss", "optim", "schedule", "eval", "train")
SECTIONS = (
    "task", "data", "sampling", "augment", "mix", "selection", "model", "teacher", "loss",
    "optim", "schedule", "averaging", "eval", "train",
)  # fmt: skip
BatchSize = Annotated[int, Within(1, 1_000_000)]
HEADER = ("name", "paper", "expect", "unknown", "sources")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LISTS = ("augment", "optim")


@dataclass(frozen=True)
class Item:
    """An ingredient as the recipe names it, with the options given to it."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Train:
    """The section `train`: how long, how much at once, in which numbers; engine switches off."""

    epochs: Annotated[float, Within(0, 1_000_000, above=True), InEpochs()]
    batch_size: BatchSize
    device_batch_size: BatchSize
    precision: Literal["float16", "bfloat16", "float32", "float64"]
    channels_last: bool
    seed: Annotated[int, Within(0, 2**63 - 1)]
    clip_grad_norm: Positive | None = None
    compile: bool = False
    deterministic: bool = False
    stop_above: Positive | None = None  # times the first loss on record: the run has diverged
    steps_per_epoch: PositiveInt | None = None
    log_every: PositiveInt = 50
    checkpoint_epochs: Positive = 1.0
    checkpoint_minutes: Positive = 10.0
    snapshots: list[PositiveInt] = field(default_factory=list)

    @property
    def micro_batches(self) -> int:
        """How many micro-batches of `device_batch_size` images make a step."""
        return self.batch_size // self.device_batch_size


@dataclass(frozen=True, kw_only=True)
class Eval:
    """The section `eval`: when to evaluate, on which sets, at which sizes and crop ratios, by which
    test-time augmentations; the first of each list is the number that the recipe claims.
    """

    sizes: list[PositiveInt]
    crops: list[Positive]
    interpolation: Literal["bilinear", "bicubic"]
    resize: Literal["shorter", "squash"] = "shorter"
    every: Positive = 1.0
    sets: list[str] | None = None
    tta: str | list[str] = "none"
    batch_size: BatchSize = 250

    @property
    def ttas(self) -> tuple[str, ...]:
        """The names in `tta`, which may be one or a list."""
        return (self.tta,) if isinstance(self.tta, str) else tuple(dict.fromkeys(self.tta))


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where the procedure is published."""

    title: str
    url: str
    table: str | None = None


@dataclass(frozen=True, kw_only=True)
class Expect:
    """The published accuracy in percent: its mean, and its standard deviation over `n` runs."""

    top1: Annotated[float, Within(0, 100)]
    std: Positive | None = None
    n: PositiveInt | None = None


@dataclass(frozen=True)
class Recipe:
    """One training procedure; `tree` is the complete mapping that its YAML file holds."""

    name: str
    tree: Mapping[str, Any]
    task: Item
    data: Item
    sampling: Item
    augment: tuple[Item, ...]
    mix: Item
    selection: Item
    model: Item
    teacher: Item
    loss: Item
    optim: tuple[Item, ...]
    schedule: Item
    averaging: Item
    eval: Eval
    train: Train

    @property
    def is_annotated(self) -> bool:
        """Whether images carry boxes or masks in place of one label."""
        return self.task.name != "classification"

    def demand_classification(self, verb: str) -> None:
        """Raises `UsageError` where a verb that reads accuracies of labels can do nothing."""
        if self.is_annotated:
            raise UsageError(
                f"{verb}: knows classification, and {self.name} does {self.task.name}. "
                "Use train, eval, transfer, lr-range-test, seed-sweep, compare or report."
            )

    def to_yaml(self) -> str:
        return yaml.write(self.tree)

    def with_overrides(self, *overrides: str) -> "Recipe":
        return from_tree(apply(self.tree, overrides, SECTIONS))


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or path with the overrides applied; raises `UsageError`."""
    path = find(name)
    tree = yaml.read(yaml.read_text(path), path.name)
    return from_tree(apply(_checked(tree), overrides, SECTIONS))


def from_tree(tree: Any) -> Recipe:
    """The recipe that a tree describes, its sections checked as far as needs no ingredient."""
    tree = _checked(tree)
    _check_header(tree)
    for section in SECTIONS:
        _refuse_urls(section, tree.get(section))
    full = {**{k: v for k, v in NEUTRAL.items() if k not in tree}, **tree}
    parts: dict[str, Any] = {
        section: _items(section, full[section])
        if section in LISTS
        else _item(section, full[section])
        for section in SECTIONS
        if section not in ("eval", "train")
    }
    train = Train(**check("train", _mapping("train", full["train"]), Train))
    evaluation = Eval(**check("eval", _mapping("eval", full["eval"]), Eval))
    _check_numbers(train, evaluation)
    name = convert("name", full["name"], str)
    if not _NAME.fullmatch(name):  # it names the folder of the runs
        raise UsageError(f"name: {show(name)} must be letters, digits, '.', '_' and '-'.")
    return Recipe(name=name, tree=tree, train=train, eval=evaluation, **parts)


def steps_per_epoch(train: Train, samples: int) -> int:
    """Full steps in an epoch of `samples` images; raises `UsageError` where there is none."""
    steps = train.steps_per_epoch or samples // train.batch_size
    if steps == 0:
        raise UsageError(
            f"train.batch_size: {train.batch_size} is more than the {samples} training images. "
            f"Set train.batch_size and train.device_batch_size to at most {samples}."
        )
    return steps


def total_steps(train: Train, steps: int) -> int:
    """Updates in the whole run: ceil(epochs x steps an epoch)."""
    return math.ceil(round(train.epochs * steps, 6))


def _checked(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise UsageError("recipe: must be a mapping of sections. See: rescue recipes show NAME")
    known = (*HEADER, *SECTIONS)
    for key in tree:
        if key not in known:
            raise UsageError(f"recipe: unknown section '{key}'. {did_you_mean(str(key), known)}")
    for key in ("name", *REQUIRED):
        if key not in tree:
            raise UsageError(f"recipe: missing section '{key}'. Add it.")
    return dict(tree)


def _check_header(tree: Mapping[str, Any]) -> None:
    """The claim: what may stand in `paper`, `expect`, `unknown` and `sources`."""
    for key, kind in (("paper", Paper), ("expect", Expect)):
        if key in tree:
            check(key, _mapping(key, tree[key]), kind)
    convert("unknown", tree.get("unknown", []), list[str])
    check_form(tree.get("sources", {}), SECTIONS)


def _refuse_urls(key: str, value: Any) -> None:
    """Whatever a section names that is not in the recipe is a file or a folder."""
    if isinstance(value, str):
        refuse_url(key, value)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            _refuse_urls(f"{key}.{name}", each)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            _refuse_urls(f"{key}[{place}]", each)


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: {show(value)} is not a mapping. Write {where}: {{key: value}}.")
    return value


def _item(where: str, value: Any) -> Item:
    options = dict(_mapping(where, value))
    if not isinstance(options.get("name"), str):
        raise UsageError(f"{where}: missing key 'name' (a string). Name an ingredient.")
    return Item(options.pop("name"), options)


def _items(where: str, value: Any) -> tuple[Item, ...]:
    if where == "optim" and value == []:
        raise UsageError("optim: an empty list. Give at least one optimizer.")
    if isinstance(value, list):
        return tuple(_item(f"{where}[{i}]", v) for i, v in enumerate(value))
    if where == "optim":
        return (_item(where, value),)
    raise UsageError(f"{where}: {show(value)} is not a list. Write {where}: [{{name: ...}}].")


def _check_numbers(train: Train, evaluation: Eval) -> None:
    size, micro_batch_size = train.batch_size, train.device_batch_size
    if size % micro_batch_size:
        nearest = max(micro_batch_size, round(size / micro_batch_size) * micro_batch_size)
        fits = max(d for d in range(1, micro_batch_size + 1) if size % d == 0)
        raise UsageError(
            f"train.batch_size: {size} does not divide into micro-batches of {micro_batch_size}. "
            f"Use {nearest} or set train.device_batch_size={fits}."
        )
    if not evaluation.sizes or not evaluation.crops:
        raise UsageError("eval.sizes, eval.crops: an empty list. Give at least one of each.")
    if not evaluation.ttas:
        raise UsageError("eval.tta: an empty list. Give at least one, or none by its name.")
    if any(crop > 1 for crop in evaluation.crops):
        raise UsageError(f"eval.crops: {evaluation.crops}: a crop ratio is at most 1.")


def from_text(text: str, where: str) -> Recipe:
    """The recipe that a YAML text holds; `where` begins every message."""
    return from_tree(yaml.read(text, where))


def recipe_in(run: Path) -> Recipe:
    """The resolved recipe of a run directory."""
    file = run / "recipe.yaml"
    return from_text(yaml.read_text(file), str(file))
