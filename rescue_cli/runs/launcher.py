"""The group of processes that torchrun, srun or mpirun started this command as.

Read from the environment variables that each of them sets.
"""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

from rescue_cli.errors import UsageError

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
BY_HAND = "WORLD_SIZE"
TASK_LAUNCHERS = ("srun", "mpirun")  # they start any command, not only PyTorch's
LOCALHOST = "127.0.0.1"
DEFAULT_PORT = 29500  # torchrun's
# What torchrun sets for its processes, and the processes that these start must not inherit
TORCHRUN_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
)
# Rank, world size, processes on this machine
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")
RANKS = ("SLURM_PROCID", OPEN_MPI[0], MPICH[0])


@dataclass(frozen=True)
class GroupLaunch:
    """This process's rank in a group of `size` processes, which rendezvous at `host`:`port`."""

    launcher: str  # as messages name it
    variables: tuple[str, ...]  # the environment variables that say so
    rank: int
    size: int
    host: str
    port: int
    attempt: int = 0  # how often torchrun has restarted the group
    hosted: bool = False  # whether torchrun itself serves the store at the address

    @property
    def cure(self) -> str:
        """How to run alone, where the variables are left over from another command."""
        return _cure(self.variables)


def detect(environment: Mapping[str, str]) -> GroupLaunch | None:
    """The group that this process was started in; None where it was started alone.

    Raises `UsageError` where variables are missing or contradict each other.
    """
    if environment.get("WORLD_SIZE") == "1":
        return None
    # Open MPI starts its daemons by srun, whose variables all of its processes then have; and srun
    # sets MPICH's besides its own
    for detect_launcher in (_torchrun, _open_mpi, _slurm, _mpich):
        if (launch := detect_launcher(environment)) is not None:
            others = (name for name in RANKS if name in environment and name != launch.variables[0])
            launch = replace(launch, variables=(*launch.variables, *others))
            return launch if launch.size > 1 else None
    return None


def clear_torchrun_variables(environment: MutableMapping[str, str]) -> None:
    """Removes what a command started by this process would take for a group of its own."""
    for name in [name for name in environment if TORCHRUN_VARIABLES.fullmatch(name)]:
        del environment[name]


def _torchrun(environment: Mapping[str, str]) -> GroupLaunch | None:
    """By torchrun, or by hand with the four variables that `torch.distributed` reads."""
    wanted = ("RANK", "WORLD_SIZE")
    if not any(name in environment for name in wanted):
        return None
    names = (*wanted, *ADDRESS)
    if missing := [name for name in names if not environment.get(name)]:
        present = [name for name in names if name not in missing]
        raise UsageError(
            f"{_pairs(environment, present)} in the environment, without {_join_names(missing)}: a "
            "group of processes needs all four. Set them (torchrun does), or, to run alone: "
            f"unset {' '.join(present)}."
        )
    elastic = "TORCHELASTIC_RUN_ID" in environment
    return GroupLaunch(
        "torchrun" if elastic else BY_HAND,
        names,
        *_rank_of(environment, *wanted),
        environment["MASTER_ADDR"],
        _number(environment, "MASTER_PORT"),
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) if elastic else 0,
        hosted=elastic and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _slurm(environment: Mapping[str, str]) -> GroupLaunch | None:
    """By srun; a batch script has a rank too, but is a single process before its first step."""
    size = "SLURM_STEP_NUM_TASKS"
    if size not in environment:
        if environment.get("ENVIRONMENT") == "BATCH":
            return None
        size = "SLURM_NTASKS"
    if "SLURM_PROCID" not in environment or size not in environment:
        return None
    nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))
    hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", ""))
    step = int(environment.get("SLURM_JOB_ID", "0")) * 31
    step += int(environment.get("SLURM_STEP_ID", "0"))
    return GroupLaunch(
        "srun",
        ("SLURM_PROCID", size),
        *_rank_of(environment, "SLURM_PROCID", size),
        environment.get("MASTER_ADDR") or (LOCALHOST if nodes == "1" else first_host(hosts)),
        # one per job step, below the ports that Linux gives to outgoing connections
        _number(environment, "MASTER_PORT", 20_000 + step % 10_000),
    )


def first_host(nodes: str) -> str:
    """`a01` of SLURM's `a[01-03,07],b2`; raises `UsageError`."""
    match = re.match(r"([^,\[\]]*)(?:\[([^,\]-]+)[^\]]*\]([^,\[]*))?", nodes)
    host = "".join(part or "" for part in match.groups()) if match else ""
    if not host:
        raise UsageError(
            f"SLURM_NODELIST: '{nodes}' names no machine. Set MASTER_ADDR to the first task's."
        )
    return host


def _open_mpi(environment: Mapping[str, str]) -> GroupLaunch | None:
    return _mpirun(environment, *OPEN_MPI)


def _mpich(environment: Mapping[str, str]) -> GroupLaunch | None:
    return _mpirun(environment, *MPICH)


def _mpirun(environment: Mapping[str, str], rank: str, size: str, local: str) -> GroupLaunch | None:
    if rank not in environment or size not in environment:
        return None
    one_machine = environment.get(local) == environment[size]
    host = environment.get("MASTER_ADDR") or (LOCALHOST if one_machine else "")
    if not host and environment[size] != "1":
        raise UsageError(
            f"{rank}: mpirun does not say on which machine its first process runs. "
            "Pass MASTER_ADDR=HOST to all of them."
        )
    port = _number(environment, "MASTER_PORT", DEFAULT_PORT)
    return GroupLaunch("mpirun", (rank, size), *_rank_of(environment, rank, size), host, port)


def _rank_of(environment: Mapping[str, str], rank: str, size: str) -> tuple[int, int]:
    number, count = _number(environment, rank), _number(environment, size)
    if number >= count:
        raise UsageError(
            f"{rank}: {number} must be below {size}, which is {count}. {_cure((rank, size))}"
        )
    return number, count


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise UsageError(f"{name}: '{text}' in the environment is not a number. {_cure((name,))}")
    return int(text)


def _cure(variables: tuple[str, ...]) -> str:
    return (
        f"If they are left over from another command, run alone with: unset {' '.join(variables)}."
    )


def _pairs(environment: Mapping[str, str], names: list[str]) -> str:
    return _join_names([f"{name}={environment[name]}" for name in names])


def _join_names(names: list[str] | tuple[str, ...]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
