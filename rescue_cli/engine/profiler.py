"""A profile of a few training steps: a trace of their operations, and a table of the longest."""

import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from rescue_cli.engine.step import Step
from rescue_cli.formatting import format_count
from rescue_cli.rundir import RunDirectory, write_atomically, write_text

SKIPPED, WARM_UP, RECORDED = 5, 2, 5  # steps
ROWS = 40


@contextmanager
def profile_steps(
    step: Step, run: RunDirectory, steps: int, log: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Profiles some of a run's `steps`; yields what is to be called after each of them.

    Writes `profile.json.gz`, a trace for Perfetto or chrome://tracing, and `profile.txt`, a table.
    The parts of the step are named ranges in both, and NVTX ranges for NVIDIA Nsight. Where a
    resumed run ends before them, `log` receives a warning.
    """
    recorded = max(1, min(RECORDED, steps - 1))
    warm_up = min(WARM_UP, steps - recorded)
    skipped = min(SKIPPED, steps - recorded - warm_up)
    on_gpu = step.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    sort_by = "cuda_time_total" if on_gpu else "cpu_time_total"

    written = []

    def write(profiler: Any) -> None:
        written.append(run.profile)
        table = profiler.key_averages().table(sort_by=sort_by, row_limit=ROWS)
        write_text(run.profile_table, f"of {format_count(recorded, 'step')}\n{table}\n")
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json")
            profiler.export_chrome_trace(str(trace))
            with trace.open("rb") as source:
                write_atomically(run.profile, lambda file: _compress(source, file))

    _name_parts(step, on_gpu)
    with profile(
        activities=activities,
        schedule=schedule(wait=skipped, warmup=warm_up, active=recorded, repeat=1),
        on_trace_ready=write,
        record_shapes=True,
        acc_events=True,
    ) as profiler:
        yield profiler.step
    if not written:
        log("warning: --profile: too few steps were left, so nothing was profiled")


def _compress(source: Any, target: Any) -> None:
    with gzip.GzipFile(fileobj=target, mode="wb", mtime=0) as file:
        shutil.copyfileobj(source, file)


def _name_parts(step: Step, on_gpu: bool) -> None:
    """Encloses each part of the step in a range of its name."""

    def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with ExitStack() as ranges:
                ranges.enter_context(record_function(name))
                if on_gpu:
                    ranges.enter_context(torch.cuda.nvtx.range(name))
                return function(*arguments)

        return call

    step.augment = named("augment", step.augment)
    step.mix = named("mix", step.mix)
    step.task = _NamedTask(named("forward and loss", step.task.loss))
    step.optimizers.step = named("optimizers", step.optimizers.step)  # type: ignore[method-assign]
    step.average.update = named("average", step.average.update)  # type: ignore[method-assign]


class _NamedTask:
    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss = loss
