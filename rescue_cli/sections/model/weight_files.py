"""Reads weight files by content, not by extension; nothing in them is executed."""

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

INDEX = "model.safetensors.index.json"  # of weights that are split over several files
IN_FOLDER = ("model.safetensors", INDEX, "pytorch_model.bin")  # in a run or a folder of the hub
ENDINGS = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# First bytes of other formats, what they are, and what to do
_OTHER_FORMATS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights", "Run 'git lfs pull'"),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip"),
    (b"\x89HDF", "an HDF5 file, as written by Keras", "Give PyTorch weights"),
)  # fmt: skip
# Preprocessing of images: our metadata key and timm's configuration key
_INPUT_KEYS = {
    "mean": "mean",
    "std": "std",
    "input": "input_size",
    "crop": "crop_pct",
    "interpolation": "interpolation",
}
_HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
# First bytes of files that torch.save wrote before version 1.6
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
# Objects in many checkpoints beside the weights; placeholders are loaded instead
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
    """Replaces objects of a checkpoint that are not tensors."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def load_file(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a weight file by name, tensors on the CPU, and a safetensors file's metadata.

    Reads safetensors, an index of such files, and files of `torch.save` with `weights_only`. Raises
    `DataError` saying what the file is instead.
    """
    file_format = _detect_format(file)
    if file_format == "safetensors":
        return _read_safetensors(file), read_header(file)
    if file_format == "index":
        return _read_shards(file), {}
    content = _read_pickle(file, zipped=file_format == "zip")
    if not isinstance(content, Mapping):
        raise DataError(
            f"{file}: holds one {type(content).__name__}, not weights by name. Save the state_dict."
        )
    return dict(content), {}


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading tensors; empty for other files."""
    if _detect_format(file) != "safetensors":
        return {}
    with _open_safetensors(file) as opened:
        return dict(opened.metadata() or {})


def read_hub_config(file: Path) -> dict[str, str]:
    """Architecture and preprocessing from the config.json of timm's hub folders; else empty."""
    try:
        config = json.loads(file.read_bytes())
        name, pretrained = config["architecture"], config["pretrained_cfg"]
        values = {key: pretrained[timm_key] for key, timm_key in _INPUT_KEYS.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    as_text = {
        k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in values.items()
    }
    return {"architecture": str(name), **as_text}


def strip_extension(name: str) -> str:
    """A file name without the extension of its format."""
    return next((name.removesuffix(e) for e in ENDINGS if name.endswith(e)), name)


def _detect_format(file: Path) -> str:
    """`safetensors`, `index`, `zip` or `pickle`; raises `DataError` for anything else."""
    try:
        with file.open("rb") as opened:
            start_bytes = opened.read(1024)
            size = opened.seek(0, 2)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    if not start_bytes:
        raise DataError(f"{file}: is empty. Copy or download it again.")
    for magic, description, cure in _OTHER_FORMATS:
        if start_bytes.startswith(magic):
            raise DataError(f"{file}: is {description} ({size:,} bytes). {cure}.")
    if _HTML.match(start_bytes):
        raise DataError(
            f"{file}: is a web page, not the weights. Download the file itself (on huggingface.co "
            "its URL has /resolve/ in place of /blob/)."
        )
    if start_bytes[257:262] == b"ustar":
        raise DataError(f"{file}: is a tar archive. Unpack it with tar -xf, and give a file in it.")
    if start_bytes[8:9] == b"{":
        _check_length(file, size)
        return "safetensors"
    if start_bytes.startswith(b"PK\x03\x04"):
        return "zip"
    if start_bytes.lstrip().startswith(b"{"):
        return "index"
    if start_bytes[:1] == b"\x80":
        return "pickle"
    raise DataError(
        f"{file}: is neither a safetensors file nor one of torch.save; it begins with "
        f"{start_bytes[:8]!r}. Copy or download it again."
    )


def _truncated_error(file: Path, file_size: int, expected: int | None = None) -> DataError:
    of_expected = f" of {expected:,}" if expected is not None else ""
    return DataError(f"{file}: is truncated: {file_size:,}{of_expected} bytes. Copy it again.")


def _damaged_error(file: Path, reason: str) -> DataError:
    short = " ".join(reason.split())[:150].rstrip(".")
    return DataError(f"{file}: is truncated or damaged ({short}). Copy it again.")


def _check_length(file: Path, file_size: int) -> None:
    """Compares a safetensors file's size with its header (8 bytes of length, then JSON)."""
    with file.open("rb") as opened:
        data_start = 8 + int.from_bytes(opened.read(8), "little")
        if file_size < data_start:
            raise _truncated_error(file, file_size)
        try:
            entries: dict[str, Any] = json.loads(opened.read(data_start - 8))
            ends = [v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return  # safetensors reports it better
    if file_size < (expected := data_start + max(ends, default=0)):
        raise _truncated_error(file, file_size, expected)


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


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of the same bytes for the same content.

    safetensors itself writes the metadata in another order each time.
    """
    from safetensors.torch import save

    content = save(dict(tensors), dict(metadata))
    start, end = 8, 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[start:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:start] + text.ljust(end - start) + content[end:]


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with _open_safetensors(file) as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _read_shards(file: Path) -> dict[str, Tensor]:
    """The tensors of all files of an index; raises `DataError`."""
    try:
        weight_map: dict[str, str] = json.loads(file.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{file}: is JSON, but not an index of weight files (it has no weight_map). "
            "Give the weight file."
        ) from None
    if missing := [name for name in names if not (file.parent / name).is_file()]:
        raise DataError(
            f"{file}: is an index of {len(names)} weight files, of which {len(missing)} are "
            f"missing beside it ({missing[0]}). Copy them there."
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= _read_safetensors(file.parent / name)
    return tensors


def _read_pickle(file: Path, *, zipped: bool) -> Any:
    """Reads a file of `torch.save`; raises `DataError` for more than tensors and numbers."""
    if zipped:
        _check_archive(file)
    placeholders: list[Any] = [(_Placeholder, name) for name in _PLACEHOLDERS]
    try:
        with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's version
            if file.suffix == ".safetensors":  # torch.load would go by the extension
                with file.open("rb") as opened:
                    return torch.load(opened, map_location="cpu", weights_only=True)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _unsafe_pickle_error(file, str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # what torch raises for a broken file has no common base
        raise _damaged_error(file, str(error)) from None


def _unsafe_pickle_error(file: Path, reason: str) -> DataError:
    """The error for a file that `weights_only` refuses, with a command that converts it."""
    with file.open("rb") as opened:
        start_bytes = opened.read(32)
    if start_bytes[:1] == b"\x80" and _TORCH_MAGIC not in start_bytes:
        content, code = "a pickle that torch.save did not write", _FROM_PICKLE
    elif name := re.search(r"GLOBAL (\S*\w) ", reason):
        content, code = f"more than tensors ({name[1]})", _FROM_TORCH
    else:
        return _damaged_error(file, reason)
    return DataError(
        f"{file}: contains {content}; reading it would run code that the file names. "
        f"{_conversion_command(file, code)}"
    )


def _conversion_command(file: Path, code: str) -> str:
    """A shell command that converts the file."""
    names = {"old": str(file), "new": f"{strip_extension(str(file))}.weights.pth"}
    quoted = {key: json.dumps(name, ensure_ascii=False) for key, name in names.items()}
    line = shlex.quote(code.format(**quoted))
    return f"If you trust its source, convert it once: python -c {line}"


def _check_archive(file: Path) -> None:
    """Raises `DataError` for a zip archive that torch.save did not write."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:  # the table of contents is at the end of the file
        raise _truncated_error(file, file.stat().st_size) from None
    except (ValueError, OSError, NotImplementedError) as error:
        raise _damaged_error(file, str(error)) from None
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts:
        raise DataError(
            f"{file}: is a TorchScript program, which would be executed when it is read. "
            f"{_conversion_command(file, _FROM_JIT)}"
        )
    if "data.pkl" not in parts:
        raise DataError(
            f"{file}: is a zip archive that torch.save did not write ({', '.join(names[:3])}). "
            "Unpack it, and give the weight file."
        )
