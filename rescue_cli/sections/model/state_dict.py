"""Matches a state dict to a network: prefixes, missing or unknown names, other shapes."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rescue_cli.errors import UsageError
from rescue_cli.sections.heads import find_heads

_COUNT = "num_batches_tracked"  # not needed: with a fixed momentum batch norm never reads it
_MAX_NAMES = 5


@dataclass(frozen=True)
class MatchedWeights:
    """Tensors by the network's names, the layers to reinitialise, and notes for the user."""

    tensors: dict[str, Tensor]
    new: tuple[str, ...]
    notes: tuple[str, ...]


def match_weights(
    model: nn.Module,
    given: Mapping[str, Tensor],
    source: str,
    name: str,
    *,
    strict: bool,
    new_head: bool,
    architecture: str | None = None,
) -> MatchedWeights:
    """Matches the `given` tensors to `model`, the architecture `name`; `source` names them.

    `architecture`: the one that their file names.

    A head that is missing or has other classes is reinitialised, unless `strict`; with `new_head`
    any head is. Where names or shapes are not timm's, timm's own conversion is tried, which with
    `strict` must not resample tensors. Raises `UsageError` for any other difference.
    """
    own = model.state_dict()
    head_layers = find_heads(model)
    head_keys = {key for key in own if _layer_of(key) in head_layers}
    tensors, notes = strip_prefix(given, own.keys() - head_keys, head_keys, source)
    mismatches = _Mismatches.of(own, tensors, head_keys)
    if mismatches.beyond_head and (converted := _convert_by_timm(model, tensors)) is not None:
        if strict:
            converted |= _find_resampled(tensors, converted)
        after_conversion = _Mismatches.of(own, converted, head_keys)
        if not after_conversion.beyond_head:
            tensors, mismatches = converted, after_conversion
            notes = [*notes, "names and shapes converted by timm"]
    if mismatches.beyond_head or (strict and mismatches.head):
        raise UsageError(mismatches.message(source, name, own, tensors, architecture))
    if missing_layers := sorted({_layer_of(key) for key in mismatches.head & mismatches.missing}):
        notes = [*notes, f"{', '.join(missing_layers)} missing, reinitialised"]
    if mismatches.spare:
        notes = [*notes, describe_unread(mismatches.spare)]
    new = tuple(head_layers) if new_head else tuple({_layer_of(key) for key in mismatches.head})
    kept = {k: v for k, v in tensors.items() if k in own and _layer_of(k) not in new}
    return MatchedWeights(kept, new, tuple(notes))


def strip_prefix(
    given: Mapping[str, Tensor], wanted: Iterable[str], also_wanted: Iterable[str], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Removes the common prefix of the tensors whose names end in `wanted` names.

    Tensors without the prefix are dropped unless `also_wanted`. Returns the tensors and notes.
    Raises `UsageError` where two prefixes fit equally well.
    """
    names = set(wanted)
    counts = Counter(
        ".".join([*parts[:i], ""])
        for parts in (key.split(".") for key in given)
        for i in range(len(parts))
        if ".".join(parts[i:]) in names
    )
    highest = max(counts.values(), default=0)
    best = sorted(prefix_ for prefix_, count in counts.items() if count == highest)
    if not best or "" in best or 2 * highest < len(names):
        return dict(given), []
    if len(best) > 1:
        start = f"{source}." if "#" in source else f"{source}#"
        choices = " or ".join(f"{start}{prefix_[:-1]}" for prefix_ in best)
        raise UsageError(f"model.weights: {source} contains the network twice. Give {choices}.")
    (prefix,) = best
    stripped = {key.removeprefix(prefix): v for key, v in given.items() if key.startswith(prefix)}
    outside = {key: v for key, v in given.items() if not key.startswith(prefix)}
    stripped |= {key: v for key, v in outside.items() if key in {*also_wanted} - stripped.keys()}
    notes = [f"prefix '{prefix}' removed"]
    if unread := [key for key in outside if key not in stripped]:
        notes.append(describe_unread(unread))
    return stripped, notes


def describe_unread(names: Iterable[str]) -> str:
    """A note on the entries of a file that were not used."""
    listed = sorted(names)
    return f"{len(listed)} not used ({_join_first(listed)})"


@dataclass(frozen=True)
class _Mismatches:
    """Names that differ, by kind; `head`: those of the head, `spare`: those of another head."""

    missing: set[str]
    unknown: set[str]
    reshaped: set[str]
    head: set[str]
    spare: set[str]

    @classmethod
    def of(
        cls, own: Mapping[str, Tensor], given: Mapping[str, Tensor], head_keys: set[str]
    ) -> "_Mismatches":
        counters = {key for key in own.keys() ^ given.keys() if key.endswith(_COUNT)}
        missing = own.keys() - given.keys() - counters
        reshaped = {k for k in own.keys() & given.keys() if own[k].shape != given[k].shape}
        roots = {key.partition(".")[0] for key in head_keys}
        extra = given.keys() - own.keys() - counters
        spare = {key for key in extra if key.partition(".")[0] in roots}
        return cls(missing, extra - spare, reshaped, (missing | reshaped) & head_keys, spare)

    @property
    def beyond_head(self) -> set[str]:
        """The differences that a new head would not resolve."""
        return (self.missing | self.unknown | self.reshaped) - self.head

    def message(
        self,
        source: str,
        name: str,
        own: Mapping[str, Tensor],
        given: Mapping[str, Tensor],
        architecture: str | None,
    ) -> str:
        shapes = [f"{k} {tuple(given[k].shape)}, not {tuple(own[k].shape)}" for k in self.reshaped]
        parts = [
            f"{len(names)} tensors are {what} ({_join_first(sorted(names))})"
            for names, what in (
                (self.missing, "missing"),
                (self.unknown | self.spare, "unknown"),
                (shapes, "of another shape"),
            )
            if names
        ]
        message = f"model.weights: {source} does not fit {name}: {', '.join(parts)}. "
        first_filters = {
            key for key in self.reshaped if _differs_in_input_channels(key, own, given)
        }
        if first_filters and first_filters == self.beyond_head:
            (channels,) = {given[key].shape[1] for key in first_filters}
            return (
                f"{message}They take images with {channels} channel(s): "
                f"set data.channels={channels}."
            )
        its = (architecture or name).partition(".")[0]  # less timm's tag
        if self.beyond_head and its != name:
            return f"{message}They are of {its}: give model.name={its}, or --model {its}."
        if self.beyond_head:
            return f"{message}Give their architecture with model.name or --model."
        return (
            f"{message}Everything but the head fits: name the data set of their classes, or "
            "train a new head with rescue transfer."
        )


def _differs_in_input_channels(
    key: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> bool:
    """Whether a filter differs only in its input channels, 1 or 3, as the first layer's may."""
    own_shape, given_shape = own[key].shape, given[key].shape
    return (
        len(own_shape) == len(given_shape) == 4
        and own_shape[0] == given_shape[0]
        and own_shape[2:] == given_shape[2:]
        and {own_shape[1], given_shape[1]} == {1, 3}
    )


def _convert_by_timm(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Converts weights with the published names to timm's by timm; None where it cannot."""
    module = type(model).__module__
    convert = getattr(sys.modules[module], "checkpoint_filter_fn", None)
    if convert is None or not module.startswith("timm."):
        return None
    try:
        return dict(convert(dict(tensors), model))
    except Exception:  # the conversion fails on weights of another architecture
        return None


def _find_resampled(
    given: Mapping[str, Tensor], converted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The given tensors whose number of elements the conversion changed."""
    both = given.keys() & converted.keys()
    return {key: given[key] for key in both if given[key].numel() != converted[key].numel()}


def _layer_of(key: str) -> str:
    return key.rpartition(".")[0]


def _join_first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MAX_NAMES]) + (" ..." if len(listed) > _MAX_NAMES else "")
