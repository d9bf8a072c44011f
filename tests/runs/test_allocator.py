"""The allocator's settings: which commands begin anew with them, and that glibc heeds them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rescue_cli.runs import allocator
from tests.conftest import Rescue

pytestmark = pytest.mark.skipif(not allocator.available(), reason="needs glibc 2.35 or newer")
NEVER_STARTED = "no=such"  # a usage error of every verb that computes

# Written down by every interpreter that starts: its process, and the settings that it starts with
DIARY = """
import os
with open(os.environ["DIARY"], "a") as file:
    print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), file=file)
"""
# A block is written, freed, and asked for again: whether it was mapped, and the page faults of its
# second use
PROBE = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = 2**28
for turn in range(2):
    before = faults()
    block = libc.malloc(size)
    mapped = libc.mallinfo2().hblkhd >= size
    ctypes.memset(block, 1, size)
    libc.free(ctypes.c_void_p(block))
print(int(mapped), faults() - before)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in (allocator.VARIABLE, allocator.SWITCH)}
    return {**kept, **more}


def starts(folder: Path, line: str, **more: str) -> tuple[int, list[list[str]], str]:
    """The exit code; process and settings at each start of the interpreter; standard error."""
    (folder / "sitecustomize.py").write_text(DIARY)
    diary = folder / "diary"
    call = [sys.executable, "-m", "rescue_cli", *line.split()]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    given = environment(PYTHONPATH=path, DIARY=str(diary), **more)
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder, env=given)
    return (
        done.returncode,
        [row.split(" ", 1) for row in diary.read_text().splitlines()],
        done.stderr,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "exit_code"), [("train", 2), ("eval runs/0", 3), ("bench step", 2)]
)
def test_what_computes_on_a_cpu_begins_anew_once_in_the_same_process(
    tmp_path: Path, verb: str, exit_code: int
) -> None:
    code, begun, message = starts(tmp_path, f"{verb} --device cpu {NEVER_STARTED}")
    assert code == exit_code
    assert message.count("error: ") == 1
    (first, without), (second, settings) = begun
    assert (without, settings) == ("None", allocator.SETTINGS)
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "recipes",
        "train --help",
        f"train --dry-run {NEVER_STARTED}",
        "study nosuch --plan",
        "train --procs none",
        f"train --device cuda {NEVER_STARTED}",
        f"train --device=cuda {NEVER_STARTED}",
        f"train --gpus 1 {NEVER_STARTED}",
        "bench optimizer --steps none",
        "plan --gpus none",
    ],
)
def test_what_does_not_compute_on_a_cpu_starts_once(tmp_path: Path, line: str) -> None:
    _, begun, _ = starts(tmp_path, line)
    assert [settings for _, settings in begun] == ["None"]


def test_the_users_own_settings_and_the_switch_are_heeded(tmp_path: Path) -> None:
    own = "glibc.malloc.arena_max=2"
    _, begun, _ = starts(tmp_path, f"train {NEVER_STARTED}", GLIBC_TUNABLES=own)
    assert [settings for _, settings in begun] == [own]
    (tmp_path / "diary").unlink()
    _, begun, _ = starts(tmp_path, f"train {NEVER_STARTED}", RESCUE_ALLOCATOR="off")
    assert [settings for _, settings in begun] == ["None"]
    code, _, message = starts(tmp_path, f"train {NEVER_STARTED}", RESCUE_ALLOCATOR="no")
    assert (code, message) == (2, "error: RESCUE_ALLOCATOR: 'no' is not known. Use on or off.\n")


def probe(settings: str | None) -> tuple[bool, int]:
    """Whether a block of 256 MiB was mapped of its own, and the faults of its second use."""
    given = environment(**({} if settings is None else {allocator.VARIABLE: settings}))
    call = [sys.executable, "-c", PROBE]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=given)
    mapped, faults = map(int, done.stdout.split())
    return bool(mapped), faults


def test_glibc_takes_large_blocks_from_the_heap_and_keeps_them() -> None:
    pages = 2**28 // os.sysconf("SC_PAGE_SIZE")
    mapped, faults = probe(None)
    assert mapped
    assert faults >= pages // 512  # of 2 MB, should the system hand out huge ones by itself
    mapped, faults = probe(allocator.SETTINGS)
    assert not mapped
    assert faults < pages // 1024


def test_a_run_logs_and_records_the_settings_and_learns_the_same(
    rescue: Rescue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the settings in a process of its own, without them in this one."""
    line = ["train", "-r", "quickstart", "--smoke", "--device", "cpu", "model.width=4", "--out"]
    done = subprocess.run(
        [sys.executable, "-m", "rescue_cli", *line, str(tmp_path / "on")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(RESCUE_ALLOCATOR="on", COLUMNS="80"),
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    monkeypatch.setenv(allocator.SWITCH, "off")
    ended = rescue(*line, tmp_path / "off")
    assert ended.code == 0, ended.err
    message = {"on": done.stderr.splitlines(), "off": ended.notes}
    recorded, weights = {}, {}
    for switch, lines in message.items():
        run = tmp_path / switch
        recorded[switch] = json.loads((run / "environment.json").read_text())["allocator"]
        weights[switch] = load_file(run / "model.safetensors")
        assert lines[0] == lines[-1] == str(run)
        assert (run / "command.txt").read_text().startswith("rescue train -r quickstart --smoke")
    for switch in ("on", "off"):
        assert allocator.LOG_LINE not in message[switch]
        log = (tmp_path / switch / "log.txt").read_text()
        assert log.count(allocator.LOG_LINE) == (switch == "on")
    assert recorded == {"on": allocator.SETTINGS, "off": None}
    assert all(torch.equal(w, weights["off"][name]) for name, w in weights["on"].items())
