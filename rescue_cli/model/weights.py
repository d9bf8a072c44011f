"""Weights from files, never from pickles that run code."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rescue_cli.errors import DataError, UsageError

TIMM = "timm:"  # before the name of weights that timm downloads: timm:resnet50.a2_in1k


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, or of a run's; raises `DataError`."""
    with _opened(path) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return tensors, dict(opened.metadata() or {})


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, or of a run's, its tensors unread."""
    with _opened(path) as opened:
        return dict(opened.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file. Give a run directory or a .safetensors file.")
    try:
        with safe_open(str(file), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{file}: not a readable safetensors file ({error}). Copy it again."
        ) from None


def load_weights(
    model: nn.Module, source: str, name: str, *, head: bool = False, new_head: bool = False
) -> None:
    """Copies weights into `model`: from a run, a safetensors file, or timm's, downloaded.

    timm's are `timm` (those it has for `name` by default) or `timm:NAME`.

    A classifier of another size begins as torch's linear layer does, unless `head` demands it, and
    one of the same size with `new_head`; anything else that differs is a `UsageError` naming the
    tensors.
    """
    tensors = source_tensors(source, name)
    own = model.state_dict()
    differs = {k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape}
    left = own.keys() if new_head else differs
    heads = set() if head else {k for k in left if _is_head(model, k)}
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if problems := sorted((differs - heads) | missing | extra):
        shown = ", ".join(problems[:5]) + (" ..." if len(problems) > 5 else "")
        raise UsageError(
            f"model.weights: {source} does not fit {name}: {len(missing)} tensors are missing, "
            f"{len(extra)} unknown, {len(differs)} of another shape ({shown}). "
            "Name the architecture that they are of with model.name or --model."
        )
    model.load_state_dict({k: v for k, v in tensors.items() if k not in heads}, strict=False)
    for name in {key.rpartition(".")[0] for key in heads}:
        last = model.get_submodule(name)
        assert isinstance(last, nn.Linear)
        last.reset_parameters()  # as timm's reset_classifier: a net's own start may be far larger


def source_tensors(source: str, name: str) -> dict[str, Tensor]:
    """The tensors that a recipe's `model.weights` names; `name` is the architecture."""
    if source == "timm" or source.startswith(TIMM):
        return _from_timm(source.removeprefix(TIMM) if source != "timm" else name)
    return read(Path(source).expanduser())[0]


def _is_head(model: nn.Module, key: str) -> bool:
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return bool(linears) and key.rpartition(".")[0] == linears[-1]


def _from_timm(name: str) -> dict[str, Tensor]:
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
