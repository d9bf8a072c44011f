"""Two machines on this one: network namespaces with hostnames of their own, joined by a switch.

Needs root. All processes of a machine can be killed, and its cable pulled: then nothing arrives,
not even that a connection is closed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 180.0  # seconds that anything may take on a busy machine
NETWORK = "10.77.0"
PORT = 29_511


def can_be_made() -> bool:
    """Whether this process may make network namespaces, and has the tools."""
    return os.geteuid() == 0 and all(map(shutil.which, ("ip", "unshare")))


class Machine:
    """A network namespace, and the processes in it."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.address = name, f"{NETWORK}.{number}"
        every = sorted(os.sched_getaffinity(0))
        self.cores = [every[number % len(every)]]  # bits depend on the number of threads
        self.port = f"{name}-s"  # of the switch
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, words: Sequence[object], output: Path, folder: Path, **environment: str
    ) -> "Process":
        """Starts `rescue WORDS...` on this machine, in that folder."""
        inside = ["sh", "-c", f'hostname {self.name} && exec "$@"', "sh"]
        call = ["ip", "netns", "exec", self.name, "unshare", "--uts", *inside]
        call += ["taskset", "--cpu-list", ",".join(map(str, self.cores))]
        call += [sys.executable, "-m", "rescue_cli", *map(str, words)]
        with output.open("w") as stderr:
            process = subprocess.Popen(
                call, cwd=folder, stderr=stderr, stdout=subprocess.DEVNULL,
                env={**os.environ, "RESCUE_ALLOCATOR": "off", "OMP_NUM_THREADS": "1",
                     **environment},
            )  # fmt: skip
        self.processes.append(process)
        return Process(process, output)

    def kill(self) -> None:
        """SIGKILL to all processes of the machine, at once."""
        for pid in _call("ip", "netns", "pids", self.name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.wait()


class Process:
    """A command on a machine."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self.output = process, output

    @property
    def message(self) -> str:
        """What it has written on stderr."""
        return self.output.read_text(errors="replace")

    def ends(self, exit_code: int, seconds: float = PATIENCE) -> str:
        """What it wrote on stderr, once it has ended with this code."""
        code = self.process.wait(seconds)
        assert code == exit_code, (code, self.message[-3000:])
        return self.message


class Machines:
    """Two machines and the switch between them, for the length of the body."""

    def __init__(self) -> None:
        self.switch = f"sw{os.getpid()}"
        self.both = [Machine(f"m{os.getpid()}-{number}", number) for number in (1, 2)]

    @property
    def rendezvous(self) -> str:
        return f"{self.both[0].address}:{PORT}"

    def __enter__(self) -> Self:
        _call("ip", "netns", "add", self.switch)
        self._in_switch("link", "add", "bridge", "type", "bridge")
        self._in_switch("link", "set", "bridge", "up")
        names = [f"{machine.address} {machine.name}" for machine in self.both]
        for machine in self.both:
            hosts = Path("/etc/netns", machine.name, "hosts")
            hosts.parent.mkdir(parents=True)
            hosts.write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
            _call("ip", "netns", "add", machine.name)
            peer = ["peer", "name", machine.port, "netns", self.switch]
            _call("ip", "-n", machine.name, "link", "add", "eth0", "type", "veth", *peer)
            _call("ip", "-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _call("ip", "-n", machine.name, "link", "set", device, "up")
            self._in_switch("link", "set", machine.port, "master", "bridge", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for machine in self.both:
            machine.kill()
            _call("ip", "netns", "delete", machine.name)
            shutil.rmtree(Path("/etc/netns", machine.name))
        _call("ip", "netns", "delete", self.switch)

    def cut_off(self, machine: Machine) -> None:
        """Pulls the machine's cable out of the switch: neither side sees its interface go down."""
        self._in_switch("link", "set", machine.port, "nomaster")

    def connect(self, machine: Machine) -> None:
        self._in_switch("link", "set", machine.port, "master", "bridge")

    def _in_switch(self, *words: str) -> None:
        _call("ip", "-n", self.switch, *words)


def _call(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def wait_until(happened: object, process: Process) -> None:
    """Waits for a moment in the life of a process."""
    end = time.monotonic() + PATIENCE
    assert callable(happened)
    while not happened():
        assert process.process.poll() is None, process.message[-3000:]
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.01)
