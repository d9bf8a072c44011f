"""Weights held against the network that they are for: prefixes, missing parts, other shapes."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rescue_cli.errors import UsageError
from rescue_cli.sections.heads import find_heads

_COUNT = "num_batches_tracked"  # of a norm that averages by a fixed momentum nobody reads it
_MAX_NAMES = 5


@dataclass(frozen=True)
class MatchedWeights:
    """The tensors by the network's own names, the layers that begin anew, what is to be said."""

    tensors: dict[str, Tensor]
    new: tuple[str, ...]
    notes: tuple[str, ...]


def match_weights(
    model: nn.Module,
    given: Mapping[str, Tensor],
    source: str,
    name: str,
    *,
    whole: bool,
    new_head: bool,
) -> MatchedWeights:
    """Which of the given tensors go where in `model`, the architecture `name`.

    Unless the weights must fit `whole`, a head that they lack or have for other classes is new, and
    any with `new_head`. Where names or shapes are not timm's, its own conversion is tried; weights
    that must fit `whole` it may not resample. Raises `UsageError` for anything else that differs,
    with names, shapes and the cure.
    """
    own = model.state_dict()
    layers = find_heads(model)
    of_head = {key for key in own if _layer_of(key) in layers}
    found, notes = strip_prefix(given, own.keys() - of_head, of_head, source)
    misfits = _Mismatches.of(own, found, of_head)
    if misfits.beyond_head and (converted := _convert_by_timm(model, found)) is not None:
        if whole:
            converted |= _find_resampled(found, converted)
        by_timm = _Mismatches.of(own, converted, of_head)
        if not by_timm.beyond_head:
            found, misfits = converted, by_timm
            notes = [*notes, "names and shapes brought to timm's by timm"]
    if misfits.beyond_head or (whole and misfits.head):
        raise UsageError(misfits.message(source, name, own, found))
    if lacking := sorted({_layer_of(key) for key in misfits.head & misfits.missing}):
        notes = [*notes, f"{', '.join(lacking)} is not there and begins anew"]
    if misfits.spare:
        notes = [*notes, describe_unread(misfits.spare)]
    new = tuple(layers) if new_head else tuple({_layer_of(key) for key in misfits.head})
    kept = {k: v for k, v in found.items() if k in own and _layer_of(k) not in new}
    return MatchedWeights(kept, new, tuple(notes))


def strip_prefix(
    given: Mapping[str, Tensor], wanted: Iterable[str], others: Iterable[str], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without what stands before the names that are `wanted`, and what is said of it.

    A tensor with another beginning stays out unless its name is one of `others`. Raises
    `UsageError` where two beginnings fit equally well.
    """
    names = set(wanted)
    places = Counter(
        ".".join([*parts[:i], ""])
        for parts in (key.split(".") for key in given)
        for i in range(len(parts))
        if ".".join(parts[i:]) in names
    )
    most = max(places.values(), default=0)
    best = sorted(place for place, count in places.items() if count == most)
    if not best or "" in best or 2 * most < len(names):
        return dict(given), []
    if len(best) > 1:
        start = f"{source}." if "#" in source else f"{source}#"
        choices = " or ".join(f"{start}{place[:-1]}" for place in best)
        raise UsageError(f"model.weights: {source} holds the network twice. Give {choices}.")
    (prefix,) = best
    found = {key.removeprefix(prefix): v for key, v in given.items() if key.startswith(prefix)}
    outside = {key: v for key, v in given.items() if not key.startswith(prefix)}
    found |= {key: v for key, v in outside.items() if key in {*others} - found.keys()}
    notes = [f"prefix '{prefix}' removed"]
    if left := [key for key in outside if key not in found]:
        notes.append(describe_unread(left))
    return found, notes


def describe_unread(names: Iterable[str]) -> str:
    """What is said of the parts of a file that nothing was taken from."""
    known = sorted(names)
    return f"{len(known)} not read ({_join_first(known)})"


@dataclass(frozen=True)
class _Mismatches:
    """Names that differ, by how; `head` those of the head, `spare` what belongs to another head."""

    missing: set[str]
    unknown: set[str]
    reshaped: set[str]
    head: set[str]
    spare: set[str]

    @classmethod
    def of(
        cls, own: Mapping[str, Tensor], found: Mapping[str, Tensor], of_head: set[str]
    ) -> "_Mismatches":
        counts = {key for key in own.keys() ^ found.keys() if key.endswith(_COUNT)}
        missing = own.keys() - found.keys() - counts
        reshaped = {k for k in own.keys() & found.keys() if own[k].shape != found[k].shape}
        roots = {key.partition(".")[0] for key in of_head}
        extra = found.keys() - own.keys() - counts
        spare = {key for key in extra if key.partition(".")[0] in roots}
        return cls(missing, extra - spare, reshaped, (missing | reshaped) & of_head, spare)

    @property
    def beyond_head(self) -> set[str]:
        """What no new head mends."""
        return (self.missing | self.unknown | self.reshaped) - self.head

    def message(
        self, source: str, name: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor]
    ) -> str:
        shapes = [f"{k} {tuple(found[k].shape)}, not {tuple(own[k].shape)}" for k in self.reshaped]
        parts = [
            f"{len(names)} tensors are {what} ({_join_first(sorted(names))})"
            for names, what in (
                (self.missing, "missing"),
                (self.unknown | self.spare, "unknown"),
                (shapes, "of another shape"),
            )
            if names
        ]
        said = f"model.weights: {source} does not fit {name}: {', '.join(parts)}. "
        first = {
            key
            for key in self.reshaped
            if own[key].ndim == 4 and _differs_in_input_channels(key, own, found)
        }
        if first and first == self.beyond_head:
            (seen,) = {found[key].shape[1] for key in first}
            return f"{said}They see images of {seen} channel(s): set data.channels={seen}."
        if self.beyond_head:
            return f"{said}Name the architecture that they are of with model.name or --model."
        return (
            f"{said}All but the head fits: name the data of the classes that they know, or train a "
            "new head with rescue transfer."
        )


def _differs_in_input_channels(
    key: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> bool:
    """Whether a filter differs in nothing but its input's channels, as the first one may."""
    ours, theirs = own[key].shape, found[key].shape
    return ours[0] == theirs[0] and ours[2:] == theirs[2:] and {ours[1], theirs[1]} == {1, 3}


def _convert_by_timm(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights as their authors published them in timm's names and sizes; None where it cannot."""
    module = type(model).__module__
    convert = getattr(sys.modules[module], "checkpoint_filter_fn", None)
    if convert is None or not module.startswith("timm."):
        return None
    try:
        return dict(convert(dict(tensors), model))
    except Exception:  # it looks for names of its architecture, and these are of another
        return None


def _find_resampled(
    given: Mapping[str, Tensor], converted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The given tensors whose number of elements a conversion changed."""
    both = given.keys() & converted.keys()
    return {key: given[key] for key in both if given[key].numel() != converted[key].numel()}


def _layer_of(key: str) -> str:
    return key.rpartition(".")[0]


def _join_first(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:_MAX_NAMES]) + (" ..." if len(known) > _MAX_NAMES else "")
