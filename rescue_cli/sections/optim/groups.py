"""Named groups of parameters, and which optimizer updates which parameter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import OptimItem
from rescue_cli.sections.heads import find_heads

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def _norms(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Weights and biases of normalisation layers, and other vectors that are not biases."""
    return isinstance(module, _NORMS) or (parameter.ndim <= 1 and name != "bias")


def _whitening(module: nn.Module, name: str, _parameter: nn.Parameter) -> bool:
    """The bias of a whitening layer, whose filters are fixed."""
    return name == "bias" and getattr(module, "whitens", False) is True


def _biases(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Biases, except those of normalisation layers."""
    return name == "bias" and not _norms(module, name, parameter)


def _filters(_module: nn.Module, _name: str, parameter: nn.Parameter) -> bool:
    """Weights of convolutions: (out, in, height, width)."""
    return parameter.ndim == 4


# The groups are disjoint: a parameter belongs to the first one that fits. `head` is the weight of
# each classifier (see `find_heads`), `rest` all other parameters; both need the whole model and are
# assigned in `parameter_groups`. An optimizer item may also name a parameter (`conv1.bias`) or a
# module (`classifier`, for all of its parameters), which then leave their groups; `no_decay` still
# refers to the groups.
GROUPS: dict[str, Callable[[nn.Module, str, nn.Parameter], bool] | None] = {
    "norms": _norms,
    "whitening": _whitening,
    "biases": _biases,
    "filters": _filters,
    "head": None,
    "rest": None,
}


@dataclass(frozen=True)
class ParameterAssignment:
    """One optimizer item's parameters by full name, split by whether weight decay acts on them."""

    decayed: tuple[str, ...]
    undecayed: tuple[str, ...]


def parameter_groups(model: nn.Module) -> dict[str, str]:
    """Maps each trainable parameter's full name to its group in `GROUPS`."""
    of_head = {f"{name}.weight" for name in find_heads(model)}
    owner: dict[str, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            fits = (g for g, rule in GROUPS.items() if rule and rule(module, name, parameter))
            owner[full] = "head" if full in of_head else next(fits, "rest")
    return {name: owner[name] for name, p in model.named_parameters() if p.requires_grad}


def layer_depths(model: nn.Module, name: str) -> dict[str, int]:
    """Maps each parameter to the number of layers above it; raises `UsageError`.

    Layers are timm's groups of an architecture's parameters, from the stem to the head.
    """
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            f"optim.layer_decay: timm defines no layer order for {name}. "
            "Remove it with ~optim.layer_decay."
        )
    from timm.models import group_parameters

    depth_of: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    top = max(depth_of.values())
    return {parameter: top - layer for parameter, layer in depth_of.items()}


def assign_parameters(model: nn.Module, items: Sequence[OptimItem]) -> list[ParameterAssignment]:
    """Each optimizer item's parameters; raises `UsageError` unless each parameter has one item."""
    group_of = parameter_groups(model)
    requested = [_requested_groups(i, item, len(items), group_of) for i, item in enumerate(items)]
    paths = {group for groups in requested for group in groups if group not in GROUPS}
    # Longest path last: a parameter's own name overrides its module's
    owner_of = group_of | {
        n: path for path in sorted(paths, key=len) for n in group_of if _is_part_of(path, n)
    }
    item_of: dict[str, int] = {}
    for i, groups in enumerate(requested):
        for group in groups:
            if group in item_of:
                raise UsageError(
                    f"optim: the parameters '{group}' are in two items, {item_of[group]} and {i}. "
                    "Remove them from one."
                )
            item_of[group] = i
    unassigned = sorted({group for group in owner_of.values() if group not in item_of})
    if unassigned:
        first = next(n for n, g in owner_of.items() if g in unassigned)
        missing = "+".join(unassigned)
        raise UsageError(
            f"optim: the parameters '{missing}' ({first}, ...) are in no item. Add an item with "
            f"params: {missing}, or give one item params: all."
        )
    return [
        _split_by_decay([n for n, group in owner_of.items() if item_of[group] == i], item, group_of)
        for i, item in enumerate(items)
    ]


def _is_part_of(path: str, parameter: str) -> bool:
    """Whether `path` is the parameter's name or the name of a module that contains it."""
    return parameter == path or parameter.startswith(f"{path}.")


def _requested_groups(
    i: int, item: OptimItem, count: int, parameters: Mapping[str, str]
) -> list[str]:
    """The groups, parameters or modules that an item's `params` names, joined by '+'; or all."""
    params = item.params
    if params is None and count > 1:
        raise UsageError(f"optim[{i}]: missing key 'params' (one of {', '.join(GROUPS)}). Add it.")
    groups = list(GROUPS) if params is None or params == "all" else params.split("+")
    for group in groups:
        if group not in GROUPS and not any(_is_part_of(group, name) for name in parameters):
            hint = did_you_mean(group, parameters if "." in group else GROUPS)
            raise UsageError(f"optim[{i}].params: '{group}' is not a group or parameter. {hint}")
    for group in item.no_decay:
        if group not in GROUPS:
            raise UsageError(
                f"optim[{i}].no_decay: '{group}' is not a group. {did_you_mean(group, GROUPS)}"
            )
    return groups


def _split_by_decay(
    names: Sequence[str], item: OptimItem, group_of: Mapping[str, str]
) -> ParameterAssignment:
    undecayed_groups = item.no_decay
    return ParameterAssignment(
        decayed=tuple(n for n in names if group_of[n] not in undecayed_groups),
        undecayed=tuple(n for n in names if group_of[n] in undecayed_groups),
    )
