"""One process of a run: `python -m rescue_cli.runs.worker RUN_DIR...`, alone or under torchrun.

It reads everything it needs from the run directory, and writes its results there.
"""

import contextlib
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rescue_cli import distributed, lifetime
from rescue_cli.build import identity
from rescue_cli.build.backends import configure_backends, reserve_cublas_workspace
from rescue_cli.build.evaluation import build_evaluator
from rescue_cli.build.feeds import Machine, build_test_sets, load_dataset
from rescue_cli.build.linear_probe import Trainee, build_trainee, describe_fit, fit_head
from rescue_cli.build.losses import describe_balance
from rescue_cli.build.networks import build_network, match_labels, warn_of_old_head, weights_classes
from rescue_cli.build.step import build_step
from rescue_cli.engine.loop import Loop, Timing
from rescue_cli.engine.profiler import profile_steps
from rescue_cli.engine.recorder import Recorder, batch_bar
from rescue_cli.engine.signals import Stop
from rescue_cli.errors import DivergedError, InUseError, RescueError, StoppedError, UsageError
from rescue_cli.recipe import Recipe, recipe_in, steps_per_epoch, total_steps
from rescue_cli.rundir import (
    FailureRecord,
    RunDirectory,
    read_environment,
    read_failure,
    remove_partial_files,
    write_failure,
    write_json,
)
from rescue_cli.runs import allocator, result
from rescue_cli.runs.directory import describe_change
from rescue_cli.runs.failure import explain_error, fails_on_all_ranks, record_failure
from rescue_cli.runs.launcher import detect
from rescue_cli.runs.rendezvous import ENDED_SECONDS, Ties, tie
from rescue_cli.runs.tracking import Trackers


@dataclass(frozen=True)
class _Start:
    """The process's clock and memory when it began a run."""

    clock: float  # seconds
    peak_mb: float


def work(path: Path, *, progress: bool = True, told: set[str] | None = None) -> None:
    """Trains or evaluates as the run directory says, and shows `progress` on stderr.

    `told`: notes on the data that the command has shown; a training adds its own. Raises
    `RescueError`.
    """
    start = _Start(time.perf_counter(), result.process_peak_mb())
    run = RunDirectory(path)
    recipe = recipe_in(path)
    environment = read_environment(run)
    if recipe.train.deterministic:
        reserve_cublas_workspace()
    machine = _machine(environment)
    _prepare_torch(recipe, environment, machine)
    with distributed.process_group(machine.device), _lock(run):
        try:
            if environment["verb"] == "train":
                profiled = "profile" in environment
                told = set() if told is None else told
                _train(run, recipe, machine, start, progress, told, profiled=profiled)
            else:
                _evaluate(run, recipe, machine, start, progress)
        except RescueError:
            raise
        except Exception as error:  # also what code of the user's own raises
            raise explain_error(error, recipe) from error


def main() -> None:
    """Runs the directories on the command line; the exit code is that of the first failure.

    With `-` in their place, runs each directory whose name it reads from stdin.
    """
    lifetime.end_with_parent()
    if sys.argv[1:] == ["-"]:
        _serve()
        return
    runs = [RunDirectory(Path(argument)) for argument in sys.argv[1:]]
    ties = _tie_to_other_machines(runs[0])
    code = next(filter(None, (_attempt(run) for run in runs)), 0)
    if code in (0, DivergedError.exit_code) or code > 128:  # as all ranks have agreed
        ties.release()
    if distributed.is_launched_in_group():
        # All is written. The interpreter's own clean-up can abort in one of torch's threads (seen
        # once on a busy machine), and so fail a finished run; after a failure it would also destroy
        # the process group, and so wait for processes that sit in a collective.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _tie_to_other_machines(run: RunDirectory) -> Ties:
    """Notices the end of processes on other machines: torchrun watches those of its own, and a
    collective waits ten minutes for a machine that does not answer.
    """
    launch = None
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:  # torchrun's word for machines
        launch = detect(os.environ)
    if launch is None:
        return Ties()
    store = distributed.create_store(launch.host, launch.port, serves=False, seconds=300)
    # The store is that of all attempts
    ties = tie(launch, distributed.prefix_store(store, f"rescue/{launch.attempt}"))

    def watch() -> None:
        while not ties.ended:
            time.sleep(ENDED_SECONDS / 10)
        time.sleep(ENDED_SECONDS)  # a process that has failed records why
        lost = ties.ended[0]
        message = ties.describe(lost, f"rank {lost}, on another machine,")
        write_failure(run, FailureRecord(launch.rank, RescueError.exit_code, message))
        print(f"rank {launch.rank}: {message}", file=sys.stderr, flush=True)
        failure = read_failure(run)
        os._exit(RescueError.exit_code if failure is None else failure.exit_code)

    threading.Thread(target=watch, daemon=True).start()
    return ties


def _serve() -> None:
    """Runs one directory after another and answers each with its exit code on stdout."""
    reserve_cublas_workspace()  # for whichever of them is deterministic
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # anything else that is printed goes to stderr
        for line in sys.stdin:
            code = _attempt(RunDirectory(Path(line.rstrip("\n"))))
            print(code, file=answers, flush=True)
            if code > 128:  # a signal stops all of them
                return


def _attempt(run: RunDirectory) -> int:
    """Works on a directory, and records a failure there; the exit code."""
    try:
        with record_failure(run):
            work(run.path)
    except RescueError as error:
        if fails_on_all_ranks(error):
            _leave_group(error.exit_code)
        return error.exit_code
    except Exception:
        return 1
    return 0


def _leave_group(exit_code: int) -> None:
    """Leaves the process group, if any, so that no other process loses what it still exchanges;
    ends this process where that takes too long.
    """
    end = threading.Timer(distributed.LEAVE_SECONDS, os._exit, [exit_code])
    end.daemon = True
    end.start()
    distributed.leave_failed_group(together=True)
    end.cancel()


def _machine(environment: dict[str, Any]) -> Machine:
    device = torch.device(environment["device"])
    if device.type == "cuda":
        device = torch.device("cuda", distributed.gpu_index())
        torch.cuda.set_device(device)
    return Machine(device, environment["workers"], Path(environment["cache"]))


def _prepare_torch(recipe: Recipe, environment: dict[str, Any], machine: Machine) -> None:
    torch.set_num_threads(environment["threads"])
    configure_backends(recipe)
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)


@contextlib.contextmanager
def _lock(run: RunDirectory) -> Iterator[None]:
    """Locks the run directory against a second run, at most as long as this process lives.

    The other processes wait until the first has locked it: before that it is not theirs.
    """
    if not distributed.is_first():
        distributed.barrier()
        yield
        return
    with run.lock.open("a+") as file:
        os.register_at_fork(after_in_child=file.close)  # loader workers outlive a killed run
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUseError(run.path) from None
        distributed.barrier()
        yield


# --- train ---


def _train(
    run: RunDirectory,
    recipe: Recipe,
    machine: Machine,
    start: _Start,
    progress: bool,
    told: set[str],
    *,
    profiled: bool,
) -> None:
    data = load_dataset(recipe, machine.cache)
    notes = identity.check_or_record(run, recipe, data)
    notes += describe_change(read_environment(run))
    notes += [kept] if (kept := warn_of_old_head(recipe, data.classes)) else []
    steps = total_steps(recipe.train, steps_per_epoch(recipe.train, len(data.train)))
    first = distributed.is_first()
    tracker = Trackers(run, recipe) if first else None
    splits = (data.train, *data.tests.values()) if recipe.model.frozen else ()
    recorder = Recorder(
        run,
        writes=first,
        steps=0 if recipe.fits_head else steps,
        images=sum(map(len, splits)),
        progress=progress,
        tracker=tracker,
    )
    with contextlib.closing(recorder):
        for note in data.notes:
            (recorder.write_log if note in told else recorder.log)(note)
        told.update(data.notes)
        trainee = build_trainee(recipe, data, machine, recorder.log, recorder.count_images)
        loop = None
        if not recipe.fits_head:
            loop = _make_loop(run, recipe, trainee, machine, recorder)
        recorder.open_log()
        if allocator.in_force():
            recorder.write_log(allocator.LOG_LINE)
        for note in (*describe_balance(recipe, data), *notes):
            recorder.log(note)
        if distributed.is_first():
            remove_partial_files(run.path)
        if loop is None:
            _fit(run, recipe, trainee, machine, start, recorder)
            return
        with contextlib.closing(loop.step.feed):
            if trainee.data is data and distributed.is_first() and not run.samples.exists():
                result.write_samples(run, loop.step, loop.evaluator.normalise, data)
            prepared = time.perf_counter() - start.clock
            with contextlib.ExitStack() as stack:
                if profiled and distributed.is_first():
                    profiler = profile_steps(loop.step, run, loop.timing.steps, recorder.log)
                    loop.after_step = stack.enter_context(profiler)
                loop.run()
            _finish(run, recipe, trainee, loop, prepared, start.peak_mb)


def _fit(
    run: RunDirectory,
    recipe: Recipe,
    trainee: Trainee,
    machine: Machine,
    start: _Start,
    recorder: Recorder,
) -> None:
    """Fits the head of a frozen network, evaluates it, and writes what a training writes."""
    prepared = time.perf_counter()
    fitted = fit_head(recipe, trainee)
    trained = time.perf_counter()
    recorder.open_metrics(0, -1)
    chosen, evidence = describe_fit(fitted, trainee.data.train.labels)
    recorder.log(chosen)
    evaluator = build_evaluator(recipe, trainee.data, machine)
    tests = build_test_sets(recipe, trainee.data, machine)
    measured = evaluator(trainee.network, tests, lambda: None)
    clock = result.Clock(
        images=len(trainee.data.train),
        prepare=prepared - start.clock,
        train=trained - prepared,
        evaluate=time.perf_counter() - trained,
    )
    for name, results in measured.items():
        for measurement, one in results.items():
            recorder.add_evaluation(1, 1.0, name, measurement, one, clock.evaluate)
    memory = result.measure_peak_memory(machine.device, start.peak_mb)
    if not distributed.is_first():
        return
    model, data = trainee.whole(trainee.network), trainee.images
    result.write_weights(run, recipe, model, data)
    if fitted.log_probabilities is not None:
        result.write_cross_validation(run, data, fitted.log_probabilities)
    collected = result.collect_result(run, recipe, data, model, measured, clock, memory)
    write_json(run.result, {**collected, "fit": evidence})


def _make_loop(
    run: RunDirectory,
    recipe: Recipe,
    trainee: Trainee,
    machine: Machine,
    recorder: Recorder,
) -> Loop:
    network, data = trainee.network, trainee.data
    step = build_step(recipe, network, data, machine, recorder.log)
    per_epoch = steps_per_epoch(recipe.train, len(data.train))
    steps = total_steps(recipe.train, per_epoch)
    if beyond := [step for step in recipe.train.snapshots if step > steps]:
        raise UsageError(
            f"train.snapshots: {beyond[0]} is beyond the run, which has {steps} steps."
        )
    timing = Timing(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch_size=recipe.train.batch_size,
        eval_every=recipe.eval.every,
        save_every=recipe.train.checkpoint_epochs,
        log_every=recipe.train.log_every,
        stop_above=recipe.train.stop_above,
        snapshots=frozenset(recipe.train.snapshots),
    )
    return Loop(
        timing=timing,
        step=step,
        model=network,
        evaluator=build_evaluator(recipe, data, machine),
        test_sets=build_test_sets(recipe, data, machine),
        directory=run,
        recorder=recorder,
        save_minutes=recipe.train.checkpoint_minutes,
        warms_up=machine.device.type == "cuda" or recipe.train.compile_mode is not None,
    )


def _finish(
    run: RunDirectory,
    recipe: Recipe,
    trainee: Trainee,
    loop: Loop,
    prepared: float,
    peak_before: float,
) -> None:
    """Writes the weights, the predictions and the result, in this order."""
    step, progress = loop.step, loop.progress
    replaced, corrupt = distributed.merge_over_ranks(step.feed.replaced, step.feed.corrupt)
    memory = result.measure_peak_memory(step.device, peak_before)
    if not distributed.is_first():
        return
    model, data = trainee.whole(step.average.model), trainee.images
    result.write_weights(run, recipe, model, data)
    result.write_examples(run, model, loop.evaluator, loop.test_sets)
    clock = result.Clock(
        images=loop.timing.steps * loop.timing.batch_size,
        prepare=prepared,
        train=progress.seconds_train,
        evaluate=progress.seconds_eval,
    )
    collected = result.collect_result(run, recipe, data, model, loop.latest, clock, memory)
    trained = {
        "epochs": loop.timing.epoch(progress.step),
        "steps": progress.step,
        "best": {**progress.best, "chosen_on": "the test set"},
        "replaced_images": replaced,
        "corrupt_files": corrupt,
        "skipped_steps": int(step.optimizers.skipped.item()),
        **({"seconds_warmup": round(loop.seconds_warmup, 3)} if loop.warms_up else {}),
    }
    write_json(run.result, {**collected, **trained})


def _evaluate(
    run: RunDirectory, recipe: Recipe, machine: Machine, start: _Start, progress: bool
) -> None:
    classes = weights_classes(recipe)
    data = load_dataset(recipe, machine.cache, test_only=True, classes=classes)
    data, order_note = match_labels(recipe, data)

    def print_note(line: str | None) -> None:
        if line and progress and distributed.is_first():
            print(line, file=sys.stderr)

    for line in [*data.notes, order_note, *identity.compare_test_sets(recipe, data)]:
        print_note(line)
    network = build_network(recipe, len(data.classes), machine.device, whole=True, note=print_note)
    evaluator = build_evaluator(recipe, data, machine)
    tests = build_test_sets(recipe, data, machine)
    prepared = time.perf_counter() - start.clock
    feeds = {test.feed for test in tests.values()}
    batches = sum(feed.rounds(distributed.world_size()) for feed in feeds)
    with Stop(run) as stop, batch_bar(batches, progress=progress) as count:

        def between() -> None:
            count()
            (code,) = distributed.max_over_ranks([float(stop.exit_code)], machine.device)
            if code:
                raise StoppedError("evaluation stopped; nothing was written.", int(code))

        measured = evaluator(network, tests, between)
    seconds = time.perf_counter() - start.clock - prepared
    memory = result.measure_peak_memory(machine.device, start.peak_mb)
    if distributed.is_first():
        result.write_examples(run, network, evaluator, tests)
        images = sum(len(feed) for feed in feeds)
        clock = result.Clock(images=images, prepare=prepared, train=0.0, evaluate=seconds)
        collected = result.collect_result(run, recipe, data, network, measured, clock, memory)
        write_json(run.result, collected)


if __name__ == "__main__":
    main()
