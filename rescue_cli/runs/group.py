"""A command that torchrun, srun or mpirun started several times: one run, on all of them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rescue_cli.errors import RescueError, UsageError
from rescue_cli.runs.launcher import Start
from rescue_cli.runs.members import Group, leave
from rescue_cli.runs.rendezvous import meet, tie

_current: Group | None = None


def current() -> Group | None:
    """The group that this command is the first process of; None where it is alone."""
    return _current


def restarted() -> bool:
    """Whether torchrun has started this command anew, after it failed."""
    return _current is not None and _current.start.attempt > 0


def shared(asked: int | None, option: str = "--procs") -> tuple[int | None, str]:
    """How many processes share a run, as asked or as the group has, and what says so.

    Raises `UsageError` where they differ.
    """
    if _current is None:
        return asked, option
    start = _current.start
    if asked not in (None, start.size):
        raise UsageError(
            f"{option}: {asked}, and this command runs as {start.size} processes "
            f"({start.starter}). Drop it, or start the command once."
        )
    return start.size, start.starter


def demand_alone(options: dict[str, bool]) -> None:
    """Raises `UsageError` for the first option that is given where the group decides."""
    given = [option for option, is_given in options.items() if is_given]
    if given and _current is not None:
        start = _current.start
        raise UsageError(
            f"{given[0]}: this command runs as {start.size} processes already ({start.starter}). "
            "Drop it, or start the command once."
        )


@contextlib.contextmanager
def joined(start: Start, words: Sequence[str], note: Callable[[str], None]) -> Iterator[None]:
    """The command between these is the first process's; the others follow it and exit here.

    Raises `UsageError` where the others do not come, or are told something else.
    """
    from rescue_cli import distributed

    global _current
    store, members = meet(start, words, note)
    group = Group(start, store, members, tie(start, store))
    if start.rank:
        leave(group.follow())
    _current, code = group, 1
    try:
        group.demand_same_words()
        yield
        code = 0
    except RescueError as error:
        code = error.exit_code
        raise
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        _current = None
        group.dismiss(code)
        distributed.clear_membership()
    leave(code)
