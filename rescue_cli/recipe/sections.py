"""The sections of a recipe: one table of them, and what an item of each is once it has been read.

A key that every ingredient of a section has is a typed attribute here (`recipe.optim[0].lr`), read
with the recipe. The keys of one ingredient are the parameters of its function, which is imported
(and torch with it) when they are first needed.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Interval

from rescue_cli.errors import UsageError
from rescue_cli.recipe import own
from rescue_cli.recipe.own import Code, split_name
from rescue_cli.recipe.schema import (
    Epochs,
    InEpochs,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    check,
    convert,
    keys,
    lookup,
    show,
)

BatchSize = Annotated[int, Interval(ge=1, le=1_000_000)]
Decoder = Literal["fast", "pil"]
Interpolation = Literal["bilinear", "bicubic"]
Exif = Literal["applied", "ignored"]
Background = Literal["white", "black", "grey", "ignored"]
UnknownClasses = Literal["refuse", "skip"]
MAX_MASK_VALUE = 2**16 - 1  # of a 16-bit mask
MaskValue = Annotated[int, Interval(ge=0, le=MAX_MASK_VALUE)]
InitMethod = Literal["xavier", "msra", "glorot", "msra-prelu"]


@dataclass(frozen=True)
class Item:
    """An ingredient as the recipe names it, with the options given to it.

    Called with the ingredient's runtime objects, it makes the ingredient: `recipe.mix(mixing)`.
    `task` is the recipe's, by which some ingredients of one name differ; `code` says which files
    and packages of the user's the recipe was made with.
    """

    section: str
    name: str
    options: Mapping[str, Any]
    task: str = "classification"
    code: Code = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Any]:
        """The ingredient's function; raises `UsageError` for an unknown name."""
        return find_function(self.section, self.name, self.task, self.code)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The function's own keys, in its types, checked at the first call; raises `UsageError`."""
        where = f"{self.section} ({self.name})"
        try:
            options = check(where, self.options, self.function, type(self))
        except UsageError:
            self._check_other_name()
            raise
        own = keys(self.function)
        return {name: value for name, value in options.items() if name in own}

    def _check_other_name(self) -> None:
        """Raises `UsageError` where `otherwise` does not know the name, whatever its keys.

        It takes seconds to import what knows it, so only a wrong recipe is worth that.
        """
        otherwise, known_by = SECTIONS[self.section].otherwise, SECTIONS[self.section].names
        if otherwise and known_by and getattr(self.function, "func", None) is _import(otherwise):
            _import(known_by)(self.name)

    def check(self) -> None:
        """Raises `UsageError` for an unknown name or key, a missing key, a value out of range."""
        _ = self.arguments

    def __call__(self, *runtime: Any) -> Any:
        return self.function(*runtime, **self.arguments)


@dataclass(frozen=True, kw_only=True)
class DataKeys:
    """The keys of `data`, which every data set has."""

    root: str | None = None
    train_root: str | None = None
    test_root: str | None = None
    sets: dict[str, str] = field(default_factory=dict)
    holdout: NotNegativeInt = 0
    fold: NotNegativeInt = 0  # which of the disjoint sets of `holdout` images
    test_holdout: NotNegativeInt = 0  # the test set, held out before `holdout`
    subset: tuple[PositiveInt, PositiveInt] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    channels: Literal[3] | None = None  # grey images in memory are repeated to three
    resident: bool | None = None
    train_size: PositiveInt | None = None
    train_interpolation: Interpolation = "bicubic"
    decoder: Decoder = "fast"
    eval_decoder: Decoder = "pil"
    max_corrupt: NotNegativeInt = 100
    exif: Exif = "ignored"  # which a recipe without the key has always done
    background: Background = "white"
    range: tuple[float, float] | None = None
    mask_values: dict[str, MaskValue | list[MaskValue]] | None = None  # by class, or `ignored`
    label_field: str | None = None  # of shards: the column or JSON entry that holds the class
    unknown_classes: UnknownClasses = "refuse"  # of test sets: classes that training does not have

    @property
    def holds_out(self) -> bool:
        """Whether training images stand in for the data set's own test images."""
        return self.holdout > 0 or self.test_holdout > 0


@dataclass(frozen=True, kw_only=True)
class DataItem(Item, DataKeys):
    """The section `data`."""


@dataclass(frozen=True, kw_only=True)
class ModelItem(Item):
    """The section `model`, with the keys that every network has.

    `weights`: a run, a file (FILE#PART is the weights of that name in it), or `timm` to download. A
    classifier of another size is reinitialised; with `new_head` always. `init`:
    initial weights in place of the network's own, see `init_weights`. `frozen`: only the classifier
    is trained, on features that are computed once per image (linear probing).
    """

    weights: str | None = None
    new_head: bool = False
    init: InitMethod | None = None
    frozen: bool = False


@dataclass(frozen=True, kw_only=True)
class ScheduleItem(Item):
    """The section `schedule`, with the keys that every schedule has.

    `first_step` 1 reads update 0 at step 1, as Myrtle does. From epoch `until` on the rate is 0,
    and the parameters are frozen.
    """

    first_step: NotNegativeInt = 0
    until: Epochs | None = None


@dataclass(frozen=True, kw_only=True)
class OptimItem(Item):
    """An item of `optim`, with the keys that every optimizer has.

    `params`: the groups of parameters that the item has, joined by '+' (all where it is the only
    one). `no_decay`: groups of them without weight decay. `schedule`: in place of the recipe's.
    `max_grad_norm`: gradients are clipped to this norm over all parameters of the network.
    `layer_decay`: a layer's rate is that of the layer above it times this number, the head's is the
    recipe's (Clark et al. 2020; layers as timm orders them, see `layer_depths`). `lr_per_256`: the
    linear scaling rule (Goyal et al. 2017), lr = lr_per_256 * batch / 256, which is checked and
    changes nothing.
    """

    lr: Positive
    weight_decay: NotNegative
    params: str | None = None
    no_decay: list[str] = field(default_factory=list)
    schedule: dict[str, Any] | None = None
    max_grad_norm: Positive | None = None
    lr_per_256: Positive | None = None
    layer_decay: Annotated[float, Interval(gt=0, le=1)] | None = None

    @cached_property
    def own_schedule(self) -> ScheduleItem | None:
        """The schedule that the item has for itself; raises `UsageError`."""
        if self.schedule is None:
            return None
        if not isinstance(self.schedule.get("name"), str):
            raise UsageError(f"optim ({self.name}).schedule: must be a mapping with a name.")
        item = read_item("schedule", self.schedule, code=self.code)
        assert isinstance(item, ScheduleItem)
        return item


@dataclass(frozen=True, kw_only=True)
class Train:
    """The section `train`: length, batch sizes, precision; engine options are off by default."""

    epochs: Annotated[float, Interval(gt=0, le=1_000_000), InEpochs()]
    batch_size: BatchSize
    device_batch_size: BatchSize
    precision: Literal["float16", "bfloat16", "float32", "float64"]
    channels_last: bool
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)]
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
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

    @property
    def compile_mode(self) -> str | None:
        """torch.compile's mode, `default` where `compile` is true; None: not compiled."""
        return (
            ("default" if self.compile else None)
            if isinstance(self.compile, bool)
            else self.compile
        )

    @property
    def uses_graphs(self) -> bool:
        """Whether torch.compile records CUDA graphs of the network, on a GPU.

        A graph holds forward and backward of a micro-batch. That has always `device_batch_size`
        images, in each of few sizes (`progressive-resize`), and nothing in it asks the device; what
        changes from step to step is outside: images are copied to the graph's own memory, the
        device's generator is seeded between replays, and the gradient scaler and the optimizers,
        whose rates are numbers of the host, follow eagerly, in a few kernels.
        """
        return self.compile_mode in ("reduce-overhead", "max-autotune")


@dataclass(frozen=True, kw_only=True)
class Eval:
    """The section `eval`: when to evaluate, on which sets, at which sizes and crop ratios, by which
    test-time augmentations; the first of each list is the number that the recipe claims.

    Before the last step only one of `tta` is measured: `none` where it is listed, else the first.
    """

    sizes: list[PositiveInt]
    crops: list[Positive]
    interpolation: Interpolation
    resize: Literal["shorter", "squash"] = "shorter"
    every: Positive = 1.0
    sets: list[str] | None = None
    tta: str | list[str] = "none"
    batch_size: BatchSize = 250

    @property
    def ttas(self) -> tuple[str, ...]:
        """The names in `tta`, which may be one or a list."""
        return (self.tta,) if isinstance(self.tta, str) else tuple(dict.fromkeys(self.tta))

    @property
    def tta_while_training(self) -> str:
        """What the evaluations before the last step measure."""
        return "none" if "none" in self.ttas else self.ttas[0]


@dataclass(frozen=True)
class Section:
    """How one section of a recipe is read, by everything that walks over the sections."""

    keys: type  # what an item of the section is once it has been read
    ingredients: str | None = None  # module and dictionary of the functions by name
    otherwise: str | None = None  # the function for all other names, which takes the name first
    names: str | None = None  # raises `UsageError` for a name that `otherwise` does not know
    own: str | None = None  # makes an ingredient of a class or function of the user's
    neutral: Any = None  # what a recipe without the section stands for; None: it must have it
    many: bool = False  # a list of items; `optim` may be one item too
    evaluated: bool = False  # whether an evaluation of weights reads it
    labels_only: bool = False  # whether it acts on images with one label, and on no others


_NONE = {"name": "none"}
_ROOM = "rescue_cli.sections"
SECTIONS: Mapping[str, Section] = {
    "task": Section(Item, f"{_ROOM}.task:TASKS", evaluated=True),
    "data": Section(
        DataItem, f"{_ROOM}.data:DATASETS", own=f"{_ROOM}.data:own_data", evaluated=True
    ),
    "sampling": Section(
        Item, f"{_ROOM}.sampling:SAMPLERS", neutral={"name": "shuffled"}, labels_only=True
    ),
    "augment": Section(
        Item,
        f"{_ROOM}.augment:AUGMENTATIONS_OF",
        own=f"{_ROOM}.augment:own_augmentation",
        neutral=[],
        many=True,
    ),
    "mix": Section(Item, f"{_ROOM}.mix:MIXES", neutral=_NONE, labels_only=True),
    "selection": Section(Item, f"{_ROOM}.selection:SELECTIONS", neutral=_NONE, labels_only=True),
    "model": Section(
        ModelItem,
        f"{_ROOM}.model:MODELS",
        otherwise=f"{_ROOM}.model:timm_model",
        names=f"{_ROOM}.model.timm_models:check_name",
        own=f"{_ROOM}.model:own_model",
        evaluated=True,
    ),
    "teacher": Section(Item, f"{_ROOM}.teacher:TEACHERS", neutral=_NONE, labels_only=True),
    "loss": Section(Item, f"{_ROOM}.loss:LOSSES", own=f"{_ROOM}.loss:own_loss"),
    "optim": Section(
        OptimItem, f"{_ROOM}.optim:OPTIMIZERS", own=f"{_ROOM}.optim:own_optimizer", many=True
    ),
    "schedule": Section(
        ScheduleItem, f"{_ROOM}.schedule:SCHEDULES", own=f"{_ROOM}.schedule:own_schedule"
    ),
    "averaging": Section(Item, f"{_ROOM}.averaging:AVERAGES", neutral=_NONE),
    "eval": Section(Eval, evaluated=True),
    "train": Section(Train, evaluated=True),
}


def find_function(section: str, name: str, task: str, code: Code) -> Callable[..., Any]:
    """The function behind a name, ours or the user's; raises `UsageError` for an unknown one."""
    parts = split_name(name) if ":" in name else None
    if parts is None:
        return find_ingredient(section, name, task)
    key = section, name, code.get(parts[0])
    if key not in own.REGISTRY.functions:
        own.REGISTRY.functions[key] = _find_own(*key)
    return own.REGISTRY.functions[key]


def _find_own(section: str, name: str, recorded: str | None) -> Callable[..., Any]:
    """The user's function with the parameters that the section's functions have."""
    adapt = SECTIONS[section].own
    if adapt is None:
        sections = ", ".join(name for name, entry in SECTIONS.items() if entry.own)
        raise UsageError(
            f"{section}.name: {name}: code of your own can stand in {sections}. "
            "Use one of the names known here."
        )
    loaded = own.load_own(section, name, recorded)
    function: Callable[..., Any] = _import(adapt)(loaded)
    # An optimizer takes `lr` and `weight_decay`, which all of them have
    shared = set() if section == "optim" else set(keys(SECTIONS[section].keys))
    if taken := shared.intersection(keys(function)):
        raise loaded.error(
            f"its parameter '{min(taken)}' has the name of a key that {section} has. Rename it."
        )
    return function


@cache
def find_ingredient(section: str, name: str, task: str) -> Callable[..., Any]:
    """The function behind a name of ours; raises `UsageError` for an unknown one."""
    entry = SECTIONS[section]
    assert entry.ingredients is not None
    known = _import(entry.ingredients)
    if section == "augment":  # which acts on boxes and masks too, or on the images alone
        known = known[task]
    if entry.otherwise is not None and name not in known:
        return partial(_import(entry.otherwise), name)
    function: Callable[..., Any] = lookup(f"{section}.name", name, known)
    return function


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def read_item(
    section: str,
    value: Any,
    where: str = "",
    task: str = "classification",
    code: Code = MappingProxyType({}),
) -> Item:
    """An item of a section, its shared keys in their types; raises `UsageError`.

    `where` is what messages call it where that is not the section; `code` is the recipe's.
    """
    options = dict(as_mapping(where or section, value))
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"{where or section}: missing key 'name' (a string). Name an ingredient.")
    kind: Callable[..., Item] = SECTIONS[section].keys
    shared = keys(kind)
    if any(key.required and name not in options for name, key in shared.items()):
        # Most likely the key is misspelt, which only the ingredient's signature can say
        check(f"{section} ({name})", options, find_function(section, name, task, code), kind)
    given = {
        key: convert(f"{section} ({name}).{key}", options[key], shared[key].annotation)
        for key in shared
        if key in options
    }
    return kind(section, name, options, task, code, **given)


def as_mapping(where: str, value: Any) -> Mapping[str, Any]:
    """The value, which has to be a mapping; raises `UsageError`."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: {show(value)} is not a mapping. Write {where}: {{key: value}}.")
    return value
