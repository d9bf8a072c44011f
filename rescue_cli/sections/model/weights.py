"""Weights by the word that names them: a run, a file, a part of a file, or timm's."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rescue_cli.errors import DataError, UsageError
from rescue_cli.sections.model import weight_files
from rescue_cli.sections.model.state_dict import describe_unread, match_weights

TIMM = "timm:"  # before the name of weights that timm downloads: timm:resnet50.a2_in1k
PART = "#"  # between a file and the part of it that is meant: FILE#state_dict
# What checkpoints call the averaged weights, which their authors report, and the others
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
# What wrappers put into the names of what they wrap, wherever that is
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_PLAIN = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
    "student",
    "module",
    "weights",
    "params",
)
_NAMES = (*_AVERAGED, *_PLAIN)


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file's metadata, and what is to be said of how they were found."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def locate_file(source: str | Path) -> tuple[Path, str]:
    """The file that a word names, of a folder the one in it, and the part that is meant or ''."""
    path, part = Path(source).expanduser(), ""
    if not path.exists() and PART in path.name:
        name, _, part = path.name.rpartition(PART)
        path = path.with_name(name)
    if path.is_dir():
        inside = [path / name for name in weight_files.IN_FOLDER]
        path = next((file for file in inside if file.is_file()), inside[0])
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a run directory or a file of weights.")
    return path, part


def resolve_source(source: str) -> str:
    """The word with its file's whole path.

    The file's own link is not followed: in the hub's cache it leads away from what lies beside it.
    """
    file, part = locate_file(source)
    whole = file.parent.resolve() / file.name
    return f"{whole}{PART}{part}" if part else str(whole)


def source_label(source: str) -> str:
    """A name for what comes of weights: the file's or timm's, with the part that is meant."""
    name = source.removeprefix(TIMM).rpartition("/")[2]
    if Path(source).expanduser().exists() or PART not in name:
        return weight_files.strip_extension(name)
    file, _, part = name.rpartition(PART)
    return f"{weight_files.strip_extension(file)}-{part}"


def read_weights(source: str | Path) -> Weights:
    """The weights of a run or a file; raises `DataError`, `UsageError`."""
    file, part = locate_file(source)
    content, metadata = weight_files.load_file(file)
    tensors, notes = _select_part(content, str(file), part)
    return Weights(tensors, metadata or _architecture(content), notes)


def read_metadata(source: str | Path) -> dict[str, str]:
    """The metadata of a run's or a file's weights, tensors unread where they are safetensors.

    Of other files `architecture`, where they name one of timm's; a folder of the hub's says more.
    """
    file, _ = locate_file(source)
    found = weight_files.read_header(file)
    if "recipe" in found or "architecture" in found:
        return found
    if beside := weight_files.read_hub_config(file.with_name("config.json")):
        return {**found, **beside}
    return (
        found if file.suffix == ".safetensors" else _architecture(weight_files.load_file(file)[0])
    )


def _architecture(content: Mapping[str, Any]) -> dict[str, str]:
    """timm's training, and PyTorch's example, write it beside the weights."""
    name = content.get("arch")
    if not isinstance(name, str):
        return {}
    import timm

    return {"architecture": name} if timm.is_model(name) else {}


def _select_part(
    content: Mapping[str, Any], file: str, part: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the part that is meant: an entry, the beginning of their names, or both.

    Without an entry they are the averaged weights, or else the plain ones. Raises `UsageError`
    where there is no such part, or several and nothing says which.
    """
    inside = dict(_find_entries(content))
    entry = next((n for n in (*reversed(inside), "") if f"{part}.".startswith(f"{n}.")), "")
    tensors, notes = (inside[entry], []) if entry else _select_default(content, inside, file)
    named = _only_tensors(tensors)
    bare = {_strip_wrappers(key): tensor for key, tensor in named.items()}
    if wrapped := [w for w in _WRAPPERS if any(w in key for key in named)]:
        notes = [*notes, f"'{wrapped[0]}' removed from names"]
    if begin := part.removeprefix(entry).removeprefix("."):
        bare = {
            k.removeprefix(f"{begin}."): v for k, v in bare.items() if k.startswith(f"{begin}.")
        }
    if not bare:
        known = f"It has: {', '.join(inside)}." if inside else "Give a file with a state_dict."
        what = f"no part '{part}'" if part else "no weights"
        raise UsageError(f"{file}: holds {what}. {known}")
    return bare, tuple(notes)


def _select_default(
    content: Mapping[str, Any], inside: Mapping[str, Mapping[str, Any]], file: str
) -> tuple[Mapping[str, Any], list[str]]:
    """The tensors that are meant where nobody says which, and what is to be said of that."""
    flat = _only_tensors(content)
    known, cut = _rank_entries(inside, flat)
    notes = [f"'{path}' is no whole network" for path in cut]
    if not known and _has_weights(content):
        rest = content.keys() - flat.keys() - {path.partition(".")[0] for path in cut}
        return flat, [*notes, describe_unread(rest)] if rest else notes
    names = known or list(inside)
    if not names:
        return {}, []
    first, *others = names
    teacher = f"{first.removesuffix('student')}teacher"
    distilled = first.endswith("student") and teacher in inside
    if distilled or (others and not known):
        several = [first, teacher] if distilled else names
        raise UsageError(f"{file}: holds several weights. Give {_choices(file, several)}.")
    taken = f"'{first}'{', the average,' if _rank(first) < len(_AVERAGED) else ''} is taken"
    notes.append(f"{taken} (for the others give {_choices(file, others)})" if others else taken)
    if left := content.keys() - {path.partition(".")[0] for path in (*names, *cut)}:
        notes.append(describe_unread(left))
    return inside[first], notes


def _rank_entries(
    inside: Mapping[str, Mapping[str, Any]], flat: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """The entries whose names say what they hold, best first; and averages of a network's part.

    Such a part has fewer than half of the tensors that plain weights have, or lacks the statistics
    of their norms.
    """
    known = sorted((path for path in inside if _rank(path) < len(_NAMES)), key=_rank)
    averaged = [path for path in known if _rank(path) < len(_AVERAGED)]
    tensors = {path: _only_tensors(inside[path]) for path in known}
    plain = max([flat, *(tensors[path] for path in known if path not in averaged)], key=len)
    cut = [
        path
        for path in averaged
        if 2 * len(tensors[path]) < len(plain)
        or (_have_running_statistics(plain) and not _have_running_statistics(tensors[path]))
    ]
    return [path for path in known if path not in cut], cut


def _rank(path: str) -> int:
    """The place of an entry's name among those that are known, or behind them all."""
    parts = path.split(".")
    name = next((part for part in parts if part in _AVERAGED), parts[-1])
    return _NAMES.index(name) if name in _NAMES else len(_NAMES)


def _have_running_statistics(names: Iterable[str]) -> bool:
    return any(name.endswith("running_var") for name in names)


def _choices(file: str, names: Iterable[str]) -> str:
    return " or ".join(f"{file}{PART}{name}" for name in names)


def _find_entries(
    content: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries that hold tensors by name, and theirs in turn, by their dotted path."""
    for name, entry in content.items():
        if isinstance(name, str) and isinstance(entry, Mapping):
            if _has_weights(entry):
                yield f"{path}{name}", entry
            elif not path:
                yield from _find_entries(entry, f"{name}.")


def _has_weights(entry: Mapping[str, Any]) -> bool:
    """Whether it has tensors that may be weights; numbers alone are counts."""
    return any(tensor.ndim for tensor in _only_tensors(entry).values())


def _only_tensors(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: value.detach()
        for name, value in entry.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _strip_wrappers(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def load_weights(
    model: nn.Module, source: str, name: str, *, head: bool = False, new_head: bool = False
) -> str | None:
    """Copies weights into `model`, the architecture `name`: of a run, a file, or timm's.

    timm's are `timm` (those it has for `name` by default) or `timm:NAME`. Returns what is to be
    said of it, a line.

    A classifier of another size, or that is not there, begins as torch's own layers do, unless
    `head` demands it, and any with `new_head`; anything else that differs is a `UsageError` naming
    the tensors.
    """
    given = load_source(source, name)
    fitted = match_weights(model, given.tensors, source, name, whole=head, new_head=new_head)
    model.load_state_dict(fitted.tensors, strict=False)
    for layer in fitted.new:
        last: Any = model.get_submodule(layer)
        last.reset_parameters()  # not timm's start: a net's own may be far larger
    return format_notes(source, (*given.notes, *fitted.notes))


def format_notes(source: str, notes: tuple[str, ...]) -> str | None:
    """One line on how weights were read; None where they were as expected."""
    return f"weights of {source}: {'; '.join(notes)}" if notes else None


def load_source(source: str, name: str) -> Weights:
    """The weights that a recipe's `model.weights` names; `name` is the architecture."""
    if source == "timm" or source.startswith(TIMM):
        return Weights(
            _download_from_timm(source.removeprefix(TIMM) if source != "timm" else name), {}
        )
    return read_weights(source)


def _download_from_timm(name: str) -> dict[str, Tensor]:
    import timm

    config = timm.get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None) or f"timm/{name}"
    try:
        _refuse_without_network(repository)
        found: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's errors have no common base
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(
            f"timm:{name}: the weights could not be downloaded ({reason}). "
            f"Where there is a network, fetch https://huggingface.co/{repository}/resolve/main/"
            "model.safetensors; then give the file, wherever it lies: FILE --model "
            f"{name} in place of timm:{name}, or model.weights=FILE."
        ) from None
    return found


def _refuse_without_network(repository: str) -> None:
    """Raises `OSError` at once where the hub would try again for most of a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set.")
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if host and not urllib.request.getproxies():  # a proxy knows names that we do not
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise OSError(f"no network: {host} is not found, {error.strerror}.") from None
