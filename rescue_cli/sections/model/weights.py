"""Loads weights from a source: a run, a file, a part of a file, or timm's downloads."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rescue_cli.errors import DataError, UsageError, near_path
from rescue_cli.sections.model import weight_files
from rescue_cli.sections.model.state_dict import describe_unread, match_weights

TIMM = "timm:"  # prefix of weights that timm downloads: timm:resnet50.a2_in1k
PART = "#"  # separates a file from a part of it: FILE#state_dict
# Names of the averaged weights in checkpoints, which papers report; and of the other weights below
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
# Inserted into parameter names by torch.compile, FSDP and activation checkpointing
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
    """Tensors by name, the file's metadata, and notes on which tensors were chosen."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def locate_file(source: str | Path) -> tuple[Path, str]:
    """The weight file of a source (in a folder, its weights) and its part or ''.

    Raises `DataError`.
    """
    path, part = Path(source).expanduser(), ""
    if not path.exists() and PART in path.name:
        name, _, part = path.name.rpartition(PART)
        path = path.with_name(name)
    if path.is_dir():
        candidates = [path / name for name in weight_files.IN_FOLDER]
        found = next((file for file in candidates if file.is_file()), None)
        if found is None:
            # A run of a sweep or a transfer lies one or two folders below
            places = (f"{depth}/{weight_files.IN_FOLDER[0]}" for depth in ("*", "*/*"))
            runs = {file.parent for place in places for file in path.glob(place)}
            # `search` holds what a transfer only compared
            listed = sorted(run for run in runs if "search" not in run.relative_to(path).parts)
            cure = " or ".join(map(str, listed[:3])) or "a run directory or a weight file"
            raise DataError(f"{path}: holds no weights. Give {cure}.")
        path = found
    if not path.is_file():
        meant = near_path(path) or " Give a run directory or a weight file."
        raise DataError(f"{path}: no such file.{meant}")
    return path, part


def resolve_source(source: str) -> str:
    """The source with its file's absolute path.

    A link that is the file itself is not followed: in the hub's cache its target lies elsewhere
    than the files that belong to it.
    """
    file, part = locate_file(source)
    whole = file.parent.resolve() / file.name
    return f"{whole}{PART}{part}" if part else str(whole)


def source_label(source: str) -> str:
    """A short name for a source: the file's or timm's name, with the part."""
    name = source.removeprefix(TIMM).rpartition("/")[2]
    if Path(source).expanduser().exists() or PART not in name:
        return weight_files.strip_extension(name)
    file, _, part = name.rpartition(PART)
    return f"{weight_files.strip_extension(file)}-{part}"


def read_weights(source: str | Path) -> Weights:
    """Reads the weights of a run or a file; raises `DataError` and `UsageError`."""
    file, part = locate_file(source)
    content, metadata = weight_files.load_file(file)
    tensors, notes = _select_part(content, str(file), part)
    return Weights(tensors, metadata or _architecture(content), notes)


def read_metadata(source: str | Path) -> dict[str, str]:
    """The metadata of a run's or a file's weights; safetensors files are read without tensors.

    For other files, `architecture` where they name a timm model; for a folder of the hub also how
    images are shown to the network.
    """
    file, _ = locate_file(source)
    header = weight_files.read_header(file)
    if "recipe" in header or "architecture" in header:
        return header
    if hub_config := weight_files.read_hub_config(file.with_name("config.json")):
        return {**header, **hub_config}
    return (
        header if file.suffix == ".safetensors" else _architecture(weight_files.load_file(file)[0])
    )


def _architecture(content: Mapping[str, Any]) -> dict[str, str]:
    """The timm model that `arch` names, which timm's and PyTorch's training scripts write."""
    name = content.get("arch")
    if not isinstance(name, str):
        return {}
    import timm

    return {"architecture": name} if timm.is_model(name) else {}


def _select_part(
    content: Mapping[str, Any], file: str, part: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a part: an entry of the checkpoint, a prefix of names, or both; and notes.

    Without an entry, the averaged weights, or else the plain ones. Raises `UsageError` where there
    is no such part, or where several fit.
    """
    entries = dict(_find_entries(content))
    entry = next((n for n in (*reversed(entries), "") if f"{part}.".startswith(f"{n}.")), "")
    tensors, notes = (entries[entry], []) if entry else _select_default(content, entries, file)
    tensors_by_name = _only_tensors(tensors)
    stripped = {_strip_wrappers(key): tensor for key, tensor in tensors_by_name.items()}
    if wrappers := [w for w in _WRAPPERS if any(w in key for key in tensors_by_name)]:
        notes = [*notes, f"'{wrappers[0]}' removed from names"]
    if prefix := part.removeprefix(entry).removeprefix("."):
        stripped = {
            k.removeprefix(f"{prefix}."): v
            for k, v in stripped.items()
            if k.startswith(f"{prefix}.")
        }
    if not stripped:
        hint = f"It has: {', '.join(entries)}." if entries else "Give a file with a state_dict."
        description = f"no part '{part}'" if part else "no weights"
        raise UsageError(f"{file}: contains {description}. {hint}")
    return stripped, tuple(notes)


def _select_default(
    content: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]], file: str
) -> tuple[Mapping[str, Any], list[str]]:
    """The tensors to use where no part was given, and notes on the choice; raises `UsageError`."""
    flat = _only_tensors(content)
    ranked, partial = _rank_entries(entries, flat)
    notes = [f"'{path}' is not a complete network" for path in partial]
    if not ranked and _has_weights(content):
        unread = content.keys() - flat.keys() - {path.partition(".")[0] for path in partial}
        return flat, [*notes, describe_unread(unread)] if unread else notes
    names = ranked or list(entries)
    if not names:
        return {}, []
    first, *others = names
    teacher = f"{first.removesuffix('student')}teacher"
    distilled = first.endswith("student") and teacher in entries
    if distilled or (others and not ranked):
        choices = [first, teacher] if distilled else names
        raise UsageError(f"{file}: contains several networks. Give {_choices(file, choices)}.")
    note = f"'{first}'{', the average,' if _rank(first) < len(_AVERAGED) else ''} is used"
    notes.append(f"{note} (for the others give {_choices(file, others)})" if others else note)
    if unread_keys := content.keys() - {path.partition(".")[0] for path in (*names, *partial)}:
        notes.append(describe_unread(unread_keys))
    return entries[first], notes


def _rank_entries(
    entries: Mapping[str, Mapping[str, Any]], flat: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """The entries with known names, best first; and those that average only part of a network.

    Such an average has fewer than half as many tensors as the plain weights, or lacks the running
    statistics that these have.
    """
    ranked = sorted((path for path in entries if _rank(path) < len(_NAMES)), key=_rank)
    averaged = [path for path in ranked if _rank(path) < len(_AVERAGED)]
    tensors = {path: _only_tensors(entries[path]) for path in ranked}
    plain = max([flat, *(tensors[path] for path in ranked if path not in averaged)], key=len)
    partial = [
        path
        for path in averaged
        if 2 * len(tensors[path]) < len(plain)
        or (_have_running_statistics(plain) and not _have_running_statistics(tensors[path]))
    ]
    return [path for path in ranked if path not in partial], partial


def _rank(path: str) -> int:
    """The index of an entry's name among the known names, or their number."""
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
    """Yields entries that hold tensors by name, also one level deeper, by dotted path."""
    for name, entry in content.items():
        if isinstance(name, str) and isinstance(entry, Mapping):
            if _has_weights(entry):
                yield f"{path}{name}", entry
            elif not path:
                yield from _find_entries(entry, f"{name}.")


def _has_weights(entry: Mapping[str, Any]) -> bool:
    """Whether an entry has tensors that may be weights; scalars are counters."""
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
    """Loads weights of a run, a file or timm into `model`, the architecture `name`.

    `source` is a run, a file, `timm` (timm's default weights for `name`) or `timm:NAME`. Returns a
    note on how they were read, or None. A classifier that is missing or of another size is
    initialised as torch's layers are, unless `head` requires it; with `new_head` always. Raises
    `UsageError` naming the tensors for any other difference.
    """
    weights = load_source(source, name)
    matched = match_weights(
        model,
        weights.tensors,
        source,
        name,
        strict=head,
        new_head=new_head,
        architecture=weights.metadata.get("architecture"),
    )
    model.load_state_dict(matched.tensors, strict=False)
    for layer in matched.new:
        head_layer: Any = model.get_submodule(layer)
        head_layer.reset_parameters()  # not timm's init, which is far larger for some networks
    return format_notes(source, (*weights.notes, *matched.notes))


def format_notes(source: str, notes: tuple[str, ...]) -> str | None:
    """One line on how weights were read, or None without notes."""
    return f"weights of {source}: {'; '.join(notes)}" if notes else None


def load_source(source: str, name: str) -> Weights:
    """Loads the weights that a recipe's `model.weights` names; `name` is the architecture."""
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
        state_dict: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's errors have no common base class
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(
            f"timm:{name}: the weights could not be downloaded ({reason}). "
            f"On a machine with network access, download https://huggingface.co/{repository}/resolve/"
            "main/model.safetensors and give the file: FILE --model "
            f"{name} in place of timm:{name}, or model.weights=FILE."
        ) from None
    return state_dict


def _refuse_without_network(repository: str) -> None:
    """Raises `OSError` at once where the hub would retry for most of a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set.")
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if host and not urllib.request.getproxies():  # a proxy may resolve names that we cannot
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise OSError(f"no network: {host} cannot be resolved ({error.strerror}).") from None
