"""The group of processes that a command finds itself in, by the variables of what started it."""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

from rescue_cli.errors import UsageError

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
BY_HAND = "WORLD_SIZE"
TASKS = ("srun", "mpirun")  # which start any command
HERE = "127.0.0.1"
PORT = 29500  # torchrun's
# What torchrun sets for the processes that it starts; those that one of them starts must not see it
OF_TORCHRUN = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
)
# Rank, size, processes on this machine
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")
RANKS = ("SLURM_PROCID", OPEN_MPI[0], MPICH[0])


@dataclass(frozen=True)
class Start:
    """This process's place in a group of `size`, whose first one is met at `host`:`port`."""

    starter: str  # in words
    variables: tuple[str, ...]  # that say so
    rank: int
    size: int
    host: str
    port: int
    attempt: int = 0  # torchrun's restarts so far
    hosted: bool = False  # whether torchrun itself answers at the address

    @property
    def cure(self) -> str:
        """How to go on where the group is not meant."""
        return _cure(self.variables)


def found(environment: Mapping[str, str]) -> Start | None:
    """The group of several processes, if there is one.

    Raises `UsageError` where the variables say half of one, or none that can be.
    """
    if environment.get("WORLD_SIZE") == "1":
        return None
    # Open MPI starts its daemons by srun, whose variables all of its processes then have; and srun
    # sets MPICH's besides its own
    for of in (_by_rank, _by_open_mpi, _by_slurm, _by_mpich):
        if (start := of(environment)) is not None:
            others = (name for name in RANKS if name in environment and name != start.variables[0])
            start = replace(start, variables=(*start.variables, *others))
            return start if start.size > 1 else None
    return None


def clear(environment: MutableMapping[str, str]) -> None:
    """Removes what a command that this process starts would take for a group of its own."""
    for name in [name for name in environment if OF_TORCHRUN.fullmatch(name)]:
        del environment[name]


def _by_rank(environment: Mapping[str, str]) -> Start | None:
    """Of torchrun, and of whoever sets the four variables that `torch.distributed` reads."""
    wanted = ("RANK", "WORLD_SIZE")
    if not any(name in environment for name in wanted):
        return None
    names = (*wanted, *ADDRESS)
    if missing := [name for name in names if not environment.get(name)]:
        there = [name for name in names if name not in missing]
        raise UsageError(
            f"{_pairs(environment, there)} in the environment, without {_listed(missing)}: a group "
            "of processes needs all four. Set them (torchrun does), or, to go on alone: "
            f"unset {' '.join(there)}."
        )
    elastic = "TORCHELASTIC_RUN_ID" in environment
    return Start(
        "torchrun" if elastic else BY_HAND,
        names,
        *_rank_of(environment, *wanted),
        environment["MASTER_ADDR"],
        _number(environment, "MASTER_PORT"),
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) if elastic else 0,
        hosted=elastic and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _by_slurm(environment: Mapping[str, str]) -> Start | None:
    """Of srun; a batch script has a rank too, and stands alone before its first step."""
    size = "SLURM_STEP_NUM_TASKS"
    if size not in environment:
        if environment.get("ENVIRONMENT") == "BATCH":
            return None
        size = "SLURM_NTASKS"
    if "SLURM_PROCID" not in environment or size not in environment:
        return None
    nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))
    listed = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", ""))
    ours = int(environment.get("SLURM_JOB_ID", "0")) * 31
    ours += int(environment.get("SLURM_STEP_ID", "0"))
    return Start(
        "srun",
        ("SLURM_PROCID", size),
        *_rank_of(environment, "SLURM_PROCID", size),
        environment.get("MASTER_ADDR") or (HERE if nodes == "1" else first_host(listed)),
        # each step its own, below the ports that Linux gives to connections
        _number(environment, "MASTER_PORT", 20_000 + ours % 10_000),
    )


def first_host(nodes: str) -> str:
    """`a01` of SLURM's `a[01-03,07],b2`; raises `UsageError`."""
    found = re.match(r"([^,\[\]]*)(?:\[([^,\]-]+)[^\]]*\]([^,\[]*))?", nodes)
    host = "".join(part or "" for part in found.groups()) if found else ""
    if not host:
        raise UsageError(
            f"SLURM_NODELIST: '{nodes}' names no machine. Set MASTER_ADDR to the first task's."
        )
    return host


def _by_open_mpi(environment: Mapping[str, str]) -> Start | None:
    return _by_mpirun(environment, *OPEN_MPI)


def _by_mpich(environment: Mapping[str, str]) -> Start | None:
    return _by_mpirun(environment, *MPICH)


def _by_mpirun(environment: Mapping[str, str], rank: str, size: str, local: str) -> Start | None:
    if rank not in environment or size not in environment:
        return None
    here = environment.get(local) == environment[size]
    host = environment.get("MASTER_ADDR") or (HERE if here else "")
    if not host and environment[size] != "1":
        raise UsageError(
            f"{rank}: mpirun does not say on which machine its first process is. "
            "Pass MASTER_ADDR=HOST on to all of them."
        )
    port = _number(environment, "MASTER_PORT", PORT)
    return Start("mpirun", (rank, size), *_rank_of(environment, rank, size), host, port)


def _rank_of(environment: Mapping[str, str], rank: str, size: str) -> tuple[int, int]:
    found = _number(environment, rank), _number(environment, size)
    if found[0] >= found[1]:
        raise UsageError(
            f"{rank}: {found[0]} must be below {size}, which is {found[1]}. {_cure((rank, size))}"
        )
    return found


def _number(environment: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environment.get(name) or str(otherwise)
    if not text.isdecimal():
        raise UsageError(f"{name}: '{text}' in the environment is no number. {_cure((name,))}")
    return int(text)


def _cure(variables: tuple[str, ...]) -> str:
    return (
        "If they are left over from another command, go on alone with: "
        f"unset {' '.join(variables)}."
    )


def _pairs(environment: Mapping[str, str], names: list[str]) -> str:
    return _listed([f"{name}={environment[name]}" for name in names])


def _listed(names: list[str] | tuple[str, ...]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
