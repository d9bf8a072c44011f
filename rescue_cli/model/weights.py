"""Weights from files, never from pickles that run code."""

from pathlib import Path

from torch import Tensor, nn

from rescue_cli.errors import DataError, UsageError


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, or of a run's; raises `DataError`."""
    from safetensors import SafetensorError, safe_open

    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file. Give a run directory or a .safetensors file.")
    try:
        with safe_open(str(file), framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: not a readable safetensors file: {error}") from None


def load_weights(model: nn.Module, source: str, name: str, *, head: bool = False) -> None:
    """Copies weights into `model`: from a run, a safetensors file, or `timm` (downloaded).

    A classifier of another size is left at its random start, unless `head` demands it; anything
    else that differs is a `UsageError` naming the tensors.
    """
    tensors = _from_timm(name) if source == "timm" else read(Path(source).expanduser())[0]
    own = model.state_dict()
    differs = {k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape}
    heads = set() if head else {k for k in differs if _is_head(model, k)}
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if problems := sorted((differs - heads) | missing | extra):
        shown = ", ".join(problems[:5]) + (" ..." if len(problems) > 5 else "")
        raise UsageError(
            f"model.weights: {source} does not fit {name}: {len(missing)} tensors are missing, "
            f"{len(extra)} unknown, {len(differs)} of another shape ({shown})."
        )
    model.load_state_dict({k: v for k, v in tensors.items() if k not in heads}, strict=False)


def _is_head(model: nn.Module, key: str) -> bool:
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return bool(linears) and key.rpartition(".")[0] == linears[-1]


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        found: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's errors have no common base
        raise DataError(
            f"model.weights: timm's weights of '{name}' could not be downloaded "
            f"({type(error).__name__}: {error}). Fetch the file and give model.weights=FILE."
        ) from None
    return found
