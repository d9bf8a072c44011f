"""Decodes only the part of a JPEG file that a crop needs.

`jpeg_region.c` is compiled on first use, where a C compiler is, against the libjpeg-turbo that PIL
has loaded, and is kept in the account's own cache, because it is code: RESCUE_CACHE may be shared.
Without it whole images are decoded: the same pixels.
"""

import contextlib
import ctypes
import functools
import hashlib
import io
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, _imaging

from rescue_cli.sections.data.packed.index import own_cache_folder
from rescue_cli.sections.data.splits import Pixels

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "libjpeg"
ABI = ".so.62"
COMPILE_SECONDS = 60

DecodeRegion = Callable[[bytes, int, int, int, int], Pixels | None]


@functools.cache
def region_decoder() -> DecodeRegion | None:
    """Decodes (file's bytes, top, left, height, width) to (height, width, 3) uint8 RGB, or to None
    where the whole image must be decoded. None where it cannot be compiled here.
    """
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        library = _pil_library()
        file = library and _compiled(library)
        if file:
            decode = _bound(file)
            if _agrees_with_pil(decode):
                return decode
    return None


def _pil_library() -> Path | None:
    """The libjpeg that PIL has loaded; None where its interface is another."""
    assert _imaging is not None
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(LIBRARY) and ABI in path.name:
            return path
    return None


def _compiled(library: Path) -> Path | None:
    """The compiled source, from the cache or made now; None where another account wrote it.

    Raises `OSError` without a compiler, and `SubprocessError`.
    """
    stat, source = library.stat(), SOURCE.read_bytes()
    facts = repr((source, str(library), stat.st_size, stat.st_mtime_ns)).encode()
    digest = hashlib.blake2b(facts, digest_size=16).hexdigest()
    file = own_cache_folder() / "compiled" / f"jpeg-region-{digest}.so"
    if file.is_file():
        return file if file.stat().st_uid == os.getuid() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".partial-") as scratch:
        made = Path(scratch, file.name)
        options = ["-O2", "-shared", "-fPIC", f"-Wl,-rpath,{library.parent}", "-o", str(made)]
        call = [*shlex.split(os.environ.get("CC") or "cc"), str(SOURCE), str(library), *options]
        subprocess.run(call, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        made.replace(file)
    return file


def _bound(file: Path) -> DecodeRegion:
    call = ctypes.CDLL(str(file)).decode_jpeg_region
    call.argtypes = [ctypes.c_char_p, ctypes.c_ulong, *[ctypes.c_uint] * 4, ctypes.c_void_p]

    def decode(data: bytes, top: int, left: int, height: int, width: int) -> Pixels | None:
        pixels = np.empty((height, width, 3), np.uint8)
        failed = call(data, len(data), top, left, height, width, pixels.ctypes.data)
        return None if failed else pixels

    return decode


def _agrees_with_pil(decode: DecodeRegion) -> bool:
    """Whether a region of an image with subsampled colours has PIL's pixels."""
    noise: Any = np.random.default_rng(0).integers(0, 256, (72, 88, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90, subsampling="4:2:0")
    whole = np.asarray(Image.open(file).convert("RGB"))
    part = decode(file.getvalue(), 33, 27, 19, 22)
    return part is not None and np.array_equal(part, whole[33:52, 27:49])
