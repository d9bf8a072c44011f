"""The recipe's parts as frozen values, built from the tree that its YAML file holds."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from rescue_cli.errors import UsageError, did_you_mean, refuse_url
from rescue_cli.recipe import yaml
from rescue_cli.recipe.library import find
from rescue_cli.recipe.overrides import apply
from rescue_cli.recipe.own import (
    FOLDER,
    Code,
    check_code,
    find_code,
    names_code,
    offer_copies,
    without_folders,
)
from rescue_cli.recipe.schema import Positive, PositiveInt, check, convert, show
from rescue_cli.recipe.sections import (
    SECTIONS,
    DataItem,
    Eval,
    Item,
    ModelItem,
    OptimItem,
    ScheduleItem,
    Train,
    as_mapping,
    read_item,
)
from rescue_cli.recipe.sources import check_form

HEADER = ("name", "paper", "expect", "unknown", "sources", "code")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where the procedure is published."""

    title: str
    url: str
    table: str | None = None


@dataclass(frozen=True, kw_only=True)
class Expect:
    """The published accuracy in percent: its mean, and its standard deviation over `n` runs."""

    top1: Annotated[float, Interval(ge=0, le=100)]
    std: Positive | None = None
    n: PositiveInt | None = None


@dataclass(frozen=True)
class Recipe:
    """One training procedure; `tree` is the complete mapping that its YAML file holds.

    `notes` say which keys were read in the place of others that this version no longer has.
    """

    name: str
    tree: Mapping[str, Any]
    task: Item
    data: DataItem
    sampling: Item
    augment: tuple[Item, ...]
    mix: Item
    selection: Item
    model: ModelItem
    teacher: Item
    loss: Item
    optim: tuple[OptimItem, ...]
    schedule: ScheduleItem
    averaging: Item
    eval: Eval
    train: Train
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def code(self) -> Code:
        """The user's code that the recipe was made with: SHA-256 by file, version by package."""
        code: Code = self.tree.get("code", {})
        return code

    def items(self, section: str) -> tuple[Item, ...]:
        """The section's ingredients; none of `eval` and `train`, which have keys alone."""
        value = getattr(self, section)
        if isinstance(value, Item):
            return (value,)
        return value if isinstance(value, tuple) else ()

    @property
    def fits_head(self) -> bool:
        """Whether the head of a frozen network is fitted as a whole, in no steps."""
        return self.model.frozen and self.optim[0].name == "lbfgs"

    @property
    def is_annotated(self) -> bool:
        """Whether images carry boxes or masks in place of one label."""
        return self.task.name != "classification"

    def demand_classification(self, verb: str, *others: str) -> None:
        """Raises `UsageError` where the verb is for classification and these `others`, and the
        recipe's task is another one.
        """
        tasks = ("classification", *others)
        if self.task.name not in tasks:
            raise UsageError(
                f"{verb}: works for {' and '.join(tasks)}, and {self.name} is for "
                f"{self.task.name}. "
                "Use train, eval, transfer, lr-range-test, seed-sweep, compare or report."
            )

    def to_yaml(self) -> str:
        return yaml.write(self.tree)

    def with_overrides(self, *overrides: str) -> "Recipe":
        if not overrides:
            return self
        changed = from_tree(apply(self.tree, overrides))
        return replace(changed, notes=self.notes + changed.notes)

    def with_seed(self, seed: int) -> "Recipe":
        """As `with_overrides("train.seed=...")`, for a thousand seeds of a checked recipe."""
        tree = {**self.tree, "train": {**self.tree["train"], "seed": seed}}
        return replace(self, tree=tree, train=replace(self.train, seed=seed))


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or path with the overrides applied; raises `UsageError`."""
    path = find(name)
    tree = _check_sections(yaml.read(yaml.read_text(path), path.name))
    recipe = from_tree(apply(tree, overrides) if overrides else tree)
    offer_copies(path.parent / FOLDER, recipe.code)  # of a run's recipe.yaml
    return recipe


def from_tree(tree: Any, where: str = "the recipe") -> Recipe:
    """The recipe that a tree describes, its sections checked as far as needs no ingredient.

    `where` is the file that holds it.
    """
    tree, notes = _move_old_keys(_check_sections(tree))
    _check_header(tree)
    tree = _with_code(tree, where)
    for section in SECTIONS:
        _refuse_urls(section, tree.get(section))
    parts = {name: _read_section(name, tree) for name in SECTIONS}
    _check_numbers(parts["train"], parts["eval"])
    name = convert("name", tree["name"], str)
    if not _NAME.fullmatch(name):  # it names the folder of the runs
        raise UsageError(f"name: {show(name)} must be letters, digits, '.', '_' and '-'.")
    return Recipe(name=name, tree=tree, notes=notes, **parts)


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


def _check_sections(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise UsageError("recipe: must be a mapping of sections. See: rescue recipes show NAME")
    known = (*HEADER, *SECTIONS)
    for key in tree:
        if key not in known:
            raise UsageError(f"recipe: unknown section '{key}'. {did_you_mean(str(key), known)}")
    for key in ("name", *(name for name, section in SECTIONS.items() if section.neutral is None)):
        if key not in tree:
            raise UsageError(f"recipe: missing section '{key}'. Add it.")
    return dict(tree)


def _move_old_keys(tree: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tree of an earlier version as this version writes it, and a note on each moved key.

    `train.clip_grad_norm` is `max_grad_norm` of the optimizers. Raises `UsageError` where the two
    disagree.
    """
    train = tree.get("train")
    if not isinstance(train, Mapping) or "clip_grad_norm" not in train:
        return tree, ()
    norm = train["clip_grad_norm"]
    convert("train.clip_grad_norm", norm, Positive | None)
    tree = {**tree, "train": {k: v for k, v in train.items() if k != "clip_grad_norm"}}
    if norm is None:
        return tree, ()
    optim = tree["optim"]
    clipped = [_clip(i, norm) for i in optim] if isinstance(optim, list) else _clip(optim, norm)
    note = f"train.clip_grad_norm is deprecated; it is read as optim.max_grad_norm={show(norm)}"
    return {**tree, "optim": clipped}, (note,)


def _clip(item: Any, norm: float) -> Any:
    """An optimizer item with the norm; of two that LAMB had, the smaller one decided."""
    if not isinstance(item, Mapping):
        return item  # whoever reads the item says what is wrong with it
    own = item.get("max_grad_norm")
    if item.get("name") == "lamb" and isinstance(own, int | float):
        norm = min(norm, own)
    elif own is not None and own != norm:
        raise UsageError(
            f"train.clip_grad_norm: {show(norm)}, and optim.max_grad_norm is {show(own)}. They are "
            "one key: remove the first with ~train.clip_grad_norm."
        )
    return {**item, "max_grad_norm": norm}


def _with_code(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """The tree with the hashes of the user's files that it names, and the names without folders.

    A recipe of ours has none.
    """
    sections = {name: tree[name] for name in SECTIONS if name in tree}
    code = find_code(sections, tree.get("code", {}), where)
    if not code and "code" not in tree and not names_code(sections):
        return tree
    rest = {key: value for key, value in tree.items() if key != "code"}
    return {**rest, **without_folders(sections), **({"code": code} if code else {})}


def _check_header(tree: Mapping[str, Any]) -> None:
    """The claim: what may stand in `paper`, `expect`, `unknown` and `sources`."""
    for key, kind in (("paper", Paper), ("expect", Expect)):
        if key in tree:
            check(key, as_mapping(key, tree[key]), kind)
    convert("unknown", tree.get("unknown", []), list[str])
    check_form(tree.get("sources", {}))
    check_code(tree.get("code", {}))


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


def _read_section(name: str, tree: Mapping[str, Any]) -> Any:
    """A section's keys, its item, or its items as a tuple."""
    section, value = SECTIONS[name], tree.get(name, SECTIONS[name].neutral)
    if section.ingredients is None:
        return section.keys(**check(name, as_mapping(name, value), section.keys))
    task = tree["task"].get("name") if name == "augment" else "classification"
    code = tree.get("code", {})
    if not section.many:
        return read_item(name, value, code=code)
    if isinstance(value, list):
        if not value and section.neutral is None:
            raise UsageError(f"{name}: an empty list. Give at least one optimizer.")
        return tuple(read_item(name, v, f"{name}[{i}]", task, code) for i, v in enumerate(value))
    if name == "optim":
        return (read_item(name, value, code=code),)
    raise UsageError(f"{name}: {show(value)} is not a list. Write {name}: [{{name: ...}}].")


def _check_numbers(train: Train, evaluation: Eval) -> None:
    size, micro_batch_size = train.batch_size, train.device_batch_size
    if size % micro_batch_size:
        nearest = max(micro_batch_size, round(size / micro_batch_size) * micro_batch_size)
        fits = max(d for d in range(1, micro_batch_size + 1) if size % d == 0)
        # Batch norm, and the speed, would be others with far smaller micro-batches
        is_near = 2 * fits >= min(size, micro_batch_size)
        other = f" or set train.device_batch_size={fits}" if is_near else ""
        raise UsageError(
            f"train.batch_size: {size} does not divide into micro-batches of {micro_batch_size}. "
            f"Use {nearest}{other}."
        )
    if not evaluation.sizes or not evaluation.crops:
        raise UsageError("eval.sizes, eval.crops: an empty list. Give at least one of each.")
    if not evaluation.ttas:
        raise UsageError("eval.tta: an empty list. Give at least one, or none by its name.")
    if any(crop > 1 for crop in evaluation.crops):
        raise UsageError(f"eval.crops: {evaluation.crops}: a crop ratio is at most 1.")


def from_text(text: str, where: str) -> Recipe:
    """The recipe that a YAML text holds; `where` begins every message."""
    return from_tree(yaml.read(text, where), where)


def recipe_in(run: Path) -> Recipe:
    """The resolved recipe of a run directory; its code is the run's copy."""
    file = run / "recipe.yaml"
    recipe = from_text(yaml.read_text(file), str(file))
    offer_copies(run / FOLDER, recipe.code)
    return recipe
