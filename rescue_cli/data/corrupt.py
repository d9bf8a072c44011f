"""Training images that cannot be decoded: named once, and too many of them an error."""

from collections.abc import Callable, Iterable

from rescue_cli.errors import DataError


def tally(
    files: list[str],
    found: Iterable[tuple[str, str]],
    most: int,
    log: Callable[[str], None],
) -> None:
    """Adds the (file, reason) pairs that are new to `files`, naming each in the log.

    Raises `DataError` with the list where there are more than `most`.
    """
    for path, reason in found:
        if path not in files:
            files.append(path)
            log(f"corrupt image replaced by another: {path}: {reason}")
    if len(files) > most:
        listed = "\n  ".join(files)
        raise DataError(
            f"data.max_corrupt: {len(files)} images are corrupt, more than {most}. "
            f"Repair or remove them, or raise the number:\n  {listed}"
        )
