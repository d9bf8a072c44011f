"""A run that fails: the failure record, and torch's errors in terms of the recipe's keys."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from rescue_cli import distributed
from rescue_cli.engine import evaluate
from rescue_cli.errors import (
    DivergedError,
    InUseError,
    MemoryExhausted,
    RescueError,
    StoppedError,
    UsageError,
    is_out_of_memory,
)
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.own import describe_error, passed_own_code
from rescue_cli.rundir import FailureRecord, RunDirectory, write_failure
from rescue_cli.sections.data import memory

# torch's messages for a layer whose input has no pixels left
TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")


def explain_error(error: BaseException, recipe: Recipe) -> BaseException:
    """The error, or one that names the key where memory runs out or images are too small, and the
    file and line where code of the user's own raised it.
    """
    text = str(error)
    if any(message in text for message in TOO_SMALL):
        sizes = ", ".join(map(str, recipe.eval.sizes))
        return UsageError(
            f"eval.sizes: {sizes} (or data.train_size): images are too small for "
            f"{recipe.model.name} ({text.splitlines()[0]}). Use larger ones."
        )
    if not is_out_of_memory(error):
        return (
            UsageError(f"code of your own: {describe_error(error)}")
            if passed_own_code(error)
            else error
        )
    first_line, *_ = text.splitlines() or [type(error).__name__]
    why = f"the memory of the device ({first_line[:120]})"
    if _passed_through(error, memory.__file__, "__init__"):
        cure = "Use fewer images (data.subset)."
        if recipe.data.resident:
            cure = "Set data.resident=false."
        return MemoryExhausted(
            f"data: the images, all of which are kept on the device, do not fit into {why}. {cure}"
        )
    if _passed_through(error, evaluate.__file__):
        shown = recipe.eval.batch_size
        if recipe.is_annotated or shown == 1:
            sizes = ", ".join(map(str, recipe.eval.sizes))
            return MemoryExhausted(
                f"eval.sizes: {sizes}: a test image does not fit into {why}. Use a smaller size."
            )
        return MemoryExhausted(
            f"eval.batch_size: {shown} images (or the whole test set, if smaller) do not fit "
            f"into {why}. Set a smaller one."
        )
    train = recipe.train
    smaller = [d for d in range(1, train.device_batch_size) if train.batch_size % d == 0]
    fits = [d for d in smaller if d <= train.device_batch_size // 2] or smaller
    cure = "Use a smaller model or size."
    if fits:
        cure = (
            f"Try train.device_batch_size={fits[-1]} (batch norm then sees smaller micro-batches)."
        )
    return MemoryExhausted(
        f"train.device_batch_size: {train.device_batch_size} images do not fit into {why}. {cure}"
    )


def _passed_through(error: BaseException, file: str, function: str | None = None) -> bool:
    """Whether it was raised below a function of that file, or below the one of that name."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(f.filename == file and function in (None, f.name) for f in frames)


def fails_on_all_ranks(error: Exception) -> bool:
    """Whether all processes of a run raise it after the same step, as they have agreed."""
    return isinstance(error, StoppedError | DivergedError)


@contextlib.contextmanager
def record_failure(run: RunDirectory) -> Iterator[None]:
    """Writes a failure record of what the body raises, for whoever waits for the run."""
    _remove_record_of_earlier_attempt(run)
    try:
        yield
    except InUseError:
        raise  # the directory and its record are the other run's
    except RescueError as error:
        write_failure(run, FailureRecord(distributed.launched_rank(), error.exit_code, str(error)))
        raise
    except Exception as error:
        if distributed.is_launched_in_group() and _is_lost_connection(error):
            print(
                f"rank {distributed.launched_rank()}: another process has ended: {error}",
                file=sys.stderr,
            )
            time.sleep(3)  # so that torchrun sees the process that failed first end first
        else:
            write_failure(
                run, FailureRecord(distributed.launched_rank(), 1, traceback.format_exc())
            )
        raise


def _remove_record_of_earlier_attempt(run: RunDirectory) -> None:
    """Where torchrun has restarted all processes, removes the record from before it did."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return
    attempt = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1]  # .../attempt_1/RANK/error
    with contextlib.suppress(FileNotFoundError):
        if run.failure.stat().st_mtime < attempt.stat().st_mtime:
            run.failure.unlink()


def _is_lost_connection(error: Exception) -> bool:
    messages = ("closed by peer", "Connection reset", "Connection refused", "Broken pipe")
    return any(message in str(error) for message in messages)
