"""Files of weights by what they hold, not by what they are called; nothing in them is executed."""

import json
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rescue_cli.errors import DataError

INDEX = "model.safetensors.index.json"  # of weights in several files
IN_FOLDER = ("model.safetensors", INDEX, "pytorch_model.bin")  # of a run, or as the hub has them
ENDINGS = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# How files begin that are no weights, what they are, and the cure
_OTHER_FORMATS = (
    (b"version https://git-lfs", "a git-lfs pointer in place of the weights", "Run 'git lfs pull'"),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", "Give weights of PyTorch"),
)  # fmt: skip
# How images come to the network, in a file's metadata and in timm's configuration
_INPUT_KEYS = {
    "mean": "mean",
    "std": "std",
    "input": "input_size",
    "crop": "crop_pct",
    "interpolation": "interpolation",
}
_HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
# Begins what torch.save wrote before its version 1.6
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
# Found in many checkpoints beside the weights; blanks stand in for them
_SYSTEMS = ("Posix", "Windows")
_PLACEHOLDERS = (
    "argparse.Namespace",
    *(f"{numpy}.multiarray.scalar" for numpy in ("numpy.core", "numpy._core")),
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    *(f"{home}.{kind}Path" for home in ("pathlib", "pathlib._local") for kind in _SYSTEMS),
)  # fmt: skip
_FROM_TORCH = (
    "import torch; s = lambda v: v.state_dict() if isinstance(v, torch.nn.Module) else v; "
    "t = lambda v: isinstance(v, torch.Tensor); "
    'c = s(torch.load({old}, map_location="cpu", weights_only=False)); '
    "torch.save({{k: v if t(v) else dict(s(v)) for k, v in c.items() if t(v) or "
    "(isinstance(s(v), dict) and all(map(t, s(v).values())))}}, {new})"
)
_FROM_PICKLE = (
    "import pathlib, pickle, torch; c = pickle.loads(pathlib.Path({old}).read_bytes()); "
    'torch.save({{k: torch.as_tensor(v) for k, v in c.get("model", c).items()}}, {new})'
)
_FROM_JIT = (
    'import torch; torch.save(torch.jit.load({old}, map_location="cpu").state_dict(), {new})'
)


class _Placeholder:
    """Stands in for an object of a checkpoint that is no tensor, and is nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def load_file(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a file holds, by name, its tensors on the CPU; and a safetensors file's metadata.

    Reads safetensors, an index of such files, and what `torch.save` wrote, with `weights_only`.
    Raises `DataError` with what the file is instead.
    """
    kind = _detect_format(file)
    if kind == "safetensors":
        return _read_safetensors(file), read_header(file)
    if kind == "index":
        return _read_shards(file), {}
    found = _read_pickle(file, zipped=kind == "zip")
    if not isinstance(found, Mapping):
        raise DataError(
            f"{file}: holds one {type(found).__name__}, not weights by name. Save the state_dict."
        )
    return dict(found), {}


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file, its tensors unread; other files have none."""
    if _detect_format(file) != "safetensors":
        return {}
    with _open_safetensors(file) as opened:
        return dict(opened.metadata() or {})


def read_hub_config(file: Path) -> dict[str, str]:
    """What timm writes beside weights that it puts on the hub; nothing of another's file."""
    try:
        told = json.loads(file.read_bytes())
        name, shown = told["architecture"], told["pretrained_cfg"]
        values = {key: shown[theirs] for key, theirs in _INPUT_KEYS.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    listed = {
        k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in values.items()
    }
    return {"architecture": str(name), **listed}


def strip_extension(name: str) -> str:
    """A file's name without what says its format."""
    return next((name.removesuffix(e) for e in ENDINGS if name.endswith(e)), name)


def _detect_format(file: Path) -> str:
    """`safetensors`, `index`, `zip` or `pickle`; raises `DataError` for anything else."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(1024)
            size = opened.seek(0, 2)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    if not begin:
        raise DataError(f"{file}: is empty. Copy or download it again.")
    for start, what, cure in _OTHER_FORMATS:
        if begin.startswith(start):
            raise DataError(f"{file}: is {what} ({size:,} bytes). {cure}.")
    if _HTML.match(begin):
        raise DataError(
            f"{file}: is a web page that was saved in place of the weights. Download the file "
            "itself (on huggingface.co the address has /resolve/ and not /blob/)."
        )
    if begin[257:262] == b"ustar":
        raise DataError(
            f"{file}: is a tar archive. Unpack it with tar -xf, and give what is in it."
        )
    if begin[8:9] == b"{":
        _check_length(file, size)
        return "safetensors"
    if begin.startswith(b"PK\x03\x04"):
        return "zip"
    if begin.lstrip().startswith(b"{"):
        return "index"
    if begin[:1] == b"\x80":
        return "pickle"
    raise DataError(
        f"{file}: is neither safetensors nor what torch.save writes; it begins with "
        f"{begin[:8]!r}. Copy or download it again."
    )


def _truncated_error(file: Path, there: int, whole: int | None = None) -> DataError:
    of = f" of {whole:,}" if whole is not None else ""
    return DataError(f"{file}: is cut off, {there:,}{of} bytes are there. Copy it again.")


def _damaged_error(file: Path, reason: str) -> DataError:
    short = " ".join(reason.split())[:150].rstrip(".")
    return DataError(f"{file}: is cut off or damaged ({short}). Copy it again.")


def _check_length(file: Path, there: int) -> None:
    """Holds a safetensors file's size against its header: its length in 8 bytes, then JSON."""
    with file.open("rb") as opened:
        begin = 8 + int.from_bytes(opened.read(8), "little")
        if there < begin:
            raise _truncated_error(file, there)
        try:
            entries: dict[str, Any] = json.loads(opened.read(begin - 8))
            ends = [v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return  # which safetensors says better
    if there < (whole := begin + max(ends, default=0)):
        raise _truncated_error(file, there, whole)


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{file}: not a readable safetensors file ({error}). Copy it again."
        ) from None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with _open_safetensors(file) as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _read_shards(file: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    try:
        place: dict[str, str] = json.loads(file.read_bytes())["weight_map"]
        names = sorted(set(place.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{file}: is JSON and no index of weights in several files (it has no weight_map). "
            "Give the file of the weights."
        ) from None
    if away := [name for name in names if not (file.parent / name).is_file()]:
        raise DataError(
            f"{file}: is an index of weights in {len(names)} files, and {len(away)} are not beside "
            f"it ({away[0]}). Copy them there."
        )
    found: dict[str, Tensor] = {}
    for name in names:
        found |= _read_safetensors(file.parent / name)
    return found


def _read_pickle(file: Path, *, zipped: bool) -> Any:
    """What `torch.save` wrote; raises `DataError` where that is more than tensors and numbers."""
    if zipped:
        _check_archive(file)
    blanks: list[Any] = [(_Placeholder, name) for name in _PLACEHOLDERS]
    try:
        with torch.serialization.safe_globals(blanks), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's version
            if file.suffix == ".safetensors":  # by which torch.load would go
                with file.open("rb") as opened:
                    return torch.load(opened, map_location="cpu", weights_only=True)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _unsafe_pickle_error(file, str(error)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        raise _damaged_error(file, str(error)) from None


def _unsafe_pickle_error(file: Path, reason: str) -> DataError:
    """Why torch does not read the file with `weights_only`, and the line that converts it."""
    with file.open("rb") as opened:
        begin = opened.read(32)
    if begin[:1] == b"\x80" and _TORCH_MAGIC not in begin:
        what, code = "a pickle that torch.save did not write", _FROM_PICKLE
    elif name := re.search(r"GLOBAL (\S*\w) ", reason):
        what, code = f"more than tensors ({name[1]})", _FROM_TORCH
    else:
        return _damaged_error(file, reason)
    return DataError(
        f"{file}: holds {what}, and to read that is to run code that the file names. "
        f"{_conversion_command(file, code)}"
    )


def _conversion_command(file: Path, code: str) -> str:
    """The line that converts a file, for a shell."""
    names = {"old": str(file), "new": f"{strip_extension(str(file))}.weights.pth"}
    quoted = {key: json.dumps(name, ensure_ascii=False) for key, name in names.items()}
    line = shlex.quote(code.format(**quoted))
    return f"If you trust its origin, convert it once: python -c {line}"


def _check_archive(file: Path) -> None:
    """Raises `DataError` for a zip archive that is not one of tensors alone."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:  # its table lies at its end
        raise _truncated_error(file, file.stat().st_size) from None
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts:
        raise DataError(
            f"{file}: is a TorchScript program, which runs when it is read. "
            f"{_conversion_command(file, _FROM_JIT)}"
        )
    if "data.pkl" not in parts:
        raise DataError(
            f"{file}: is a zip archive that torch.save did not write ({', '.join(names[:3])}). "
            "Unpack it, and give the file of the weights."
        )
