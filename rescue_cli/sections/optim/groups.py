"""Names for kinds of parameters, and who owns which parameter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import OptimItem
from rescue_cli.sections.heads import heads

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def _norms(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Weights and biases of normalisation layers, and other vectors that are no bias."""
    return isinstance(module, _NORMS) or (parameter.ndim <= 1 and name != "bias")


def _whitening(module: nn.Module, name: str, _parameter: nn.Parameter) -> bool:
    """The bias of a layer that whitens its input, whose filters are fixed."""
    return name == "bias" and getattr(module, "whitens", False) is True


def _biases(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Biases, but for those of normalisation layers."""
    return name == "bias" and not _norms(module, name, parameter)


def _filters(_module: nn.Module, _name: str, parameter: nn.Parameter) -> bool:
    """Weights of convolutions: (out, in, height, width)."""
    return parameter.ndim == 4


# An item may also name a parameter (`conv1.bias`), or a module for all of its parameters
# (`classifier`), which then leave their groups; `no_decay` knows them by their groups still.
# Disjoint by construction: the first that fits owns the parameter. `head` is the weight of the
# classifier (of each of them, see `heads`), `rest` what no other name fits; both need the whole
# model and are added below.
GROUPS: dict[str, Callable[[nn.Module, str, nn.Parameter], bool] | None] = {
    "norms": _norms,
    "whitening": _whitening,
    "biases": _biases,
    "filters": _filters,
    "head": None,
    "rest": None,
}


@dataclass(frozen=True)
class Claim:
    """One optimizer item's parameters by full name, split by whether weight decay acts on them."""

    decayed: tuple[str, ...]
    undecayed: tuple[str, ...]


def groups_of(model: nn.Module) -> dict[str, str]:
    """The group in `GROUPS` that owns each trainable parameter, by the parameter's full name."""
    of_head = {f"{name}.weight" for name in heads(model)}
    owner: dict[str, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            fits = (g for g, rule in GROUPS.items() if rule and rule(module, name, parameter))
            owner[full] = "head" if full in of_head else next(fits, "rest")
    return {name: owner[name] for name, p in model.named_parameters() if p.requires_grad}


def depths(model: nn.Module, name: str) -> dict[str, int]:
    """Of each parameter, how many layers lie above it; raises `UsageError`.

    Layers are timm's groups of an architecture's parameters, from the stem to the head.
    """
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            f"optim.layer_decay: the layers of {name} have no order that timm knows. "
            "Remove it with ~optim.layer_decay."
        )
    from timm.models import group_parameters

    place: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    top = max(place.values())
    return {parameter: top - layer for parameter, layer in place.items()}


def claims(model: nn.Module, items: Sequence[OptimItem]) -> list[Claim]:
    """Each optimizer item's parameters; raises `UsageError` unless all are claimed exactly once."""
    kinds = groups_of(model)
    named = [_named(i, item, len(items), kinds) for i, item in enumerate(items)]
    paths = {group for groups in named for group in groups if group not in GROUPS}
    # the longest last: a parameter is its own before it is its module's
    owner = kinds | {n: path for path in sorted(paths, key=len) for n in kinds if _in(path, n)}
    claimed: dict[str, int] = {}
    for i, groups in enumerate(named):
        for group in groups:
            if group in claimed:
                raise UsageError(
                    f"optim: the parameters '{group}' are claimed twice, by items "
                    f"{claimed[group]} and {i}. Give them to one."
                )
            claimed[group] = i
    free = sorted({group for group in owner.values() if group not in claimed})
    if free:
        names = [n for n, g in owner.items() if g == free[0]]
        raise UsageError(
            f"optim: {len(names)} parameters ('{free[0]}': {names[0]}, ...) are claimed by none. "
            f"Add an item with params: {free[0]}, or params: all to one."
        )
    return [
        _claim([n for n, group in owner.items() if claimed[group] == i], item, kinds)
        for i, item in enumerate(items)
    ]


def _in(path: str, parameter: str) -> bool:
    """Whether `path` is the parameter's name or that of a module that it is in."""
    return parameter == path or parameter.startswith(f"{path}.")


def _named(i: int, item: OptimItem, count: int, known: Mapping[str, str]) -> list[str]:
    """What an item names: groups, parameters or modules, several joined by '+'; or all groups."""
    params = item.params
    if params is None and count > 1:
        raise UsageError(f"optim[{i}]: missing key 'params' (one of {', '.join(GROUPS)}). Add it.")
    groups = list(GROUPS) if params is None or params == "all" else params.split("+")
    for group in groups:
        if group not in GROUPS and not any(_in(group, name) for name in known):
            hint = did_you_mean(group, known if "." in group else GROUPS)
            raise UsageError(f"optim[{i}].params: '{group}' is not known. {hint}")
    for group in item.no_decay:
        if group not in GROUPS:
            raise UsageError(
                f"optim[{i}].no_decay: '{group}' is not known. {did_you_mean(group, GROUPS)}"
            )
    return groups


def _claim(names: Sequence[str], item: OptimItem, kinds: Mapping[str, str]) -> Claim:
    free_of_decay = item.no_decay
    return Claim(
        decayed=tuple(n for n in names if kinds[n] not in free_of_decay),
        undecayed=tuple(n for n in names if kinds[n] in free_of_decay),
    )
