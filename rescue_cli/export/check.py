"""Runs a written network in a process of its own, and records what was compared."""

import hashlib
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

from rescue_cli import lifetime
from rescue_cli.engine.recorder import batch_bar
from rescue_cli.errors import RescueError
from rescue_cli.export.comparison import ALLOWED, Comparison
from rescue_cli.export.own_process import Job, read_comparison, write_job
from rescue_cli.rundir import read_json, write_json

RECORD = "check.json"
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow")


def run_in_fresh_process(job: Job, batches: int, *, progress: bool) -> Comparison:
    """The comparison of the job's file; raises `RescueError` where its program cannot run it."""
    with tempfile.TemporaryDirectory(prefix="rescue-export-") as scratch, lifetime.export_parent():
        folder = Path(scratch)
        write_job(folder, job)
        call = [sys.executable, "-P", "-m", "rescue_cli.export.own_process", scratch]
        with (
            (folder / "errors").open("w+") as errors,
            subprocess.Popen(call, stdout=subprocess.PIPE, stderr=errors) as process,
            batch_bar(batches, progress=progress) as after_batch,
        ):
            assert process.stdout is not None
            for _ in process.stdout:  # a line for each batch
                after_batch()
        if process.returncode:
            lines = (folder / "errors").read_text(errors="replace").strip().splitlines()
            reason = lines[-1][:500] if lines else f"it ended with {process.returncode}"
            raise RescueError(f"the file does not run: {reason}")
        return read_comparison(folder)


# --- the record beside the file ---


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in the folder but the record and the text for people."""
    files = [f for f in sorted(folder.iterdir()) if f.name not in (RECORD, "README.md")]
    return {file.name: _digest(file) for file in files if file.is_file()}


def write_record(folder: Path, name: str, comparison: Comparison, set_name: str) -> None:
    """Writes what was compared, and with which versions."""
    versions = {name: _version(name) for name in PACKAGES}
    record = {
        "format": name,
        "set": set_name,
        **comparison.as_json(),
        "allowed": ALLOWED,
        "passed": comparison.fault is None,
        "sha256": digests(folder),
        "versions": {name: version for name, version in versions.items() if version},
    }
    write_json(folder / RECORD, record)


def changed_files(folder: Path) -> list[str]:
    """The files that are no longer those of the record; none without a record."""
    if not (folder / RECORD).is_file():
        return []
    before, now = read_json(folder / RECORD).get("sha256", {}), digests(folder)
    return sorted(name for name in before | now if before.get(name) != now.get(name))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
