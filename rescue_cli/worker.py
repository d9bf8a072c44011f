"""One process of a run: `python -m rescue_cli.worker RUN_DIR...`, alone or under torchrun.

Everything it needs to know is in the run directory, and everything it finds is written there.
"""

import contextlib
import fcntl
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rescue_cli import build, distributed
from rescue_cli.batch import View
from rescue_cli.data import Dataset, Images
from rescue_cli.engine.evaluate import Predictions
from rescue_cli.engine.loop import Loop, Plan, Progress
from rescue_cli.engine.recorder import Recorder
from rescue_cli.engine.signals import Stop, leave_with_parent
from rescue_cli.errors import MemoryExhausted, RescueError, StoppedError, UsageError
from rescue_cli.recipe import Recipe, recipe_in, steps_per_epoch, total_steps
from rescue_cli.results import RunDirectory, read_json, write_json, write_whole

SAMPLES = 16


def work(path: Path) -> None:
    """Does what the run directory asks for; raises `RescueError`."""
    started = time.perf_counter()
    run = RunDirectory(path)
    recipe = recipe_in(path)
    environment = read_json(run.environment)
    machine = _machine(environment)
    _prepare_torch(recipe, environment, machine)
    with distributed.group(machine.device), _alone(run):
        try:
            if environment["verb"] == "train":
                _train(run, recipe, machine, started)
            else:
                _evaluate(run, recipe, machine, started)
        except (RuntimeError, MemoryError) as error:
            raise _explained(error, recipe) from error


def main() -> None:
    """Runs the directories on the command line; the exit code is that of the first failure."""
    if "LOCAL_RANK" in os.environ:
        leave_with_parent()
    for argument in sys.argv[1:]:
        run = RunDirectory(Path(argument))
        try:
            work(run.path)
        except RescueError as error:
            tell(run, str(error), error.exit_code)
            sys.exit(error.exit_code)
        except Exception as error:
            if _lost_a_peer(error):
                print(f"rank {_rank()}: another process is gone: {error}", file=sys.stderr)
                time.sleep(3)  # whoever died first is reported first
            else:
                tell(run, traceback.format_exc(), 1)
            sys.exit(1)


def tell(run: RunDirectory, message: str, exit_code: int) -> None:
    """Leaves word for the launcher, unless another process already has."""
    failure = {"rank": _rank(), "exit_code": exit_code, "message": message}
    with contextlib.suppress(OSError), run.failure.open("x") as file:
        json.dump(failure, file)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _lost_a_peer(error: Exception) -> bool:
    signs = ("closed by peer", "Connection reset", "Connection refused", "Broken pipe")
    return any(sign in str(error) for sign in signs)


def _machine(environment: dict[str, Any]) -> build.Machine:
    device = torch.device(environment["device"])
    if device.type == "cuda":
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    return build.Machine(device, environment["workers"], Path(environment["cache"]))


def _prepare_torch(recipe: Recipe, environment: dict[str, Any], machine: build.Machine) -> None:
    torch.set_num_threads(environment["threads"])
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not recipe.train.deterministic
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)


@contextlib.contextmanager
def _alone(run: RunDirectory) -> Iterator[None]:
    """Holds the run directory against a second run, as long as this process lives."""
    if not distributed.is_first():
        yield
        return
    with run.lock.open("a+") as file:
        os.register_at_fork(after_in_child=file.close)  # loader workers outlive a killed run
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{run.path}: another run is using this directory. Wait, or use another --out."
            ) from None
        yield


def _explained(error: BaseException, recipe: Recipe) -> BaseException:
    """Out of memory, on any device, as an error that says which slice to try."""
    text = str(error)
    exhausted = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not exhausted and "can't allocate memory" not in text and "out of memory" not in text:
        return error
    train = recipe.train
    smaller = [d for d in range(1, train.device_batch_size) if train.batch_size % d == 0]
    fits = [d for d in smaller if d <= train.device_batch_size // 2] or smaller
    cure = f"Try train.device_batch_size={fits[-1]}" if fits else "Use a smaller model or size"
    return MemoryExhausted(
        f"train.device_batch_size: {train.device_batch_size} images do not fit into the memory of "
        f"the device ({text.splitlines()[0][:120]}). {cure} (batch norm then sees smaller slices)."
    )


# --- train ---


def _train(run: RunDirectory, recipe: Recipe, machine: build.Machine, started: float) -> None:
    data = build.dataset(recipe, machine.cache)
    steps = total_steps(recipe.train, steps_per_epoch(recipe.train, len(data.train)))
    recorder = Recorder(run, writes=distributed.is_first(), steps=steps)
    with contextlib.closing(recorder):
        loop = _loop(run, recipe, data, machine, recorder)
        recorder.open_log()
        with contextlib.closing(loop.step.feed):
            if distributed.is_first() and not run.samples.exists():
                _write_samples(run, loop, data)
            prepared = time.perf_counter() - started
            progress = loop.run()
            _finish(run, recipe, data, loop, progress, prepared)


def _loop(
    run: RunDirectory, recipe: Recipe, data: Dataset, machine: build.Machine, recorder: Recorder
) -> Loop:
    network = build.model(recipe, len(data.classes), machine.device)
    step = build.step(recipe, network, data, machine, recorder.say)
    per_epoch = steps_per_epoch(recipe.train, len(data.train))
    plan = Plan(
        steps=total_steps(recipe.train, per_epoch),
        steps_per_epoch=per_epoch,
        batch_size=recipe.train.batch_size,
        eval_every=recipe.eval.every,
        save_every=recipe.train.checkpoint_epochs,
        log_every=recipe.train.log_every,
        snapshots=frozenset(recipe.train.snapshots),
    )
    return Loop(
        plan=plan,
        step=step,
        model=network,
        evaluator=build.evaluator(recipe, machine),
        test_sets=build.test_feeds(recipe, data, machine),
        directory=run,
        recorder=recorder,
        save_minutes=recipe.train.checkpoint_minutes,
    )


def _finish(
    run: RunDirectory,
    recipe: Recipe,
    data: Dataset,
    loop: Loop,
    progress: Progress,
    prepared: float,
) -> None:
    """Writes the weights, the predictions and the result, in this order."""
    replaced, corrupt = distributed.union(loop.step.feed.replaced, loop.step.feed.corrupt)
    memory = distributed.max_over_ranks([_peak_memory_mb(loop.step.device)], loop.step.device)[0]
    if not distributed.is_first():
        return
    model = loop.step.average.model
    _write_weights(run, recipe, model, data)
    entries = _write_predictions(run, recipe, data, loop.latest)
    images = loop.plan.steps * loop.plan.batch_size
    result = {
        "run": str(run.path),
        "recipe": recipe.name,
        "seed": recipe.train.seed,
        **_main_entry(entries),
        "epochs": loop.plan.epoch(progress.step),
        "steps": progress.step,
        "seconds_train": round(progress.seconds_train, 3),
        "seconds_prepare": round(prepared, 3),
        "seconds_eval": round(progress.seconds_eval, 3),
        "images_per_second": round(images / max(progress.seconds_train, 1e-9), 1),
        "peak_memory_mb": memory,
        "parameters": sum(p.numel() for p in model.parameters()),
        "best": {**progress.best, "chosen_on": "the test set"},
        "replaced_images": replaced,
        "corrupt_files": corrupt,
        "skipped_steps": int(loop.step.optimizers.skipped.item()),
        "sets": entries,
    }
    write_json(run.result, result)


def _main_entry(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {k: entries[0][k] for k in ("top1", "top5", "loss", "count", "protocol")}


def _peak_memory_mb(device: torch.device) -> float:
    """Of the device where it counts, else of this process, in megabytes of 2^20 bytes."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def _write_weights(run: RunDirectory, recipe: Recipe, model: nn.Module, data: Dataset) -> None:
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "architecture": recipe.model.name,
        "classes": json.dumps(data.classes),
        "recipe": recipe.to_yaml(),
    }
    content = save(tensors, metadata)
    write_whole(run.weights, lambda file: file.write(content))


def _write_predictions(
    run: RunDirectory, recipe: Recipe, data: Dataset, found: dict[str, dict[View, Predictions]]
) -> list[dict[str, Any]]:
    """Stores each set's predictions and returns its entry in the result."""
    entries = []
    for name, views in found.items():
        for view, predictions in views.items():
            stem = name if len(views) == 1 else f"{name}-{view}"
            confusion = predictions.confusion(len(data.classes))
            arrays = {
                "labels": predictions.labels,
                "top": predictions.top,
                "probabilities": predictions.probabilities,
                "losses": predictions.losses,
                "confusion": confusion,
                "per_class": 100 * np.diag(confusion) / np.maximum(confusion.sum(1), 1),
                "classes": np.array(data.classes),
            }
            write_whole(run.predictions(stem), lambda file, a=arrays: np.savez(file, **a))  # type: ignore[misc]
            entries.append(
                {
                    "set": name,
                    "size": view.size,
                    "crop": view.crop,
                    "top1": predictions.accuracy(1),
                    "top5": predictions.accuracy(5),
                    "loss": predictions.loss,
                    "count": predictions.count,
                    "protocol": build.protocol(
                        recipe, name, view, isinstance(data.tests[name], Images)
                    ),
                }
            )
    return entries


def _write_samples(run: RunDirectory, loop: Loop, data: Dataset) -> None:
    """The first images of step 0 as the network sees them, back in pixels, with their labels."""
    loop.step.feed.start(0)
    batch = loop.step.augment(next(iter(loop.step.feed.slices(0))))
    normalise = loop.evaluator.normalise
    images = normalise.undo(batch.images[:SAMPLES]).cpu().numpy()
    labels = batch.targets[:SAMPLES].cpu().numpy()
    arrays: dict[str, Any] = {
        "images": images,
        "labels": np.array([data.classes[int(label)] for label in labels]),
    }
    write_whole(run.samples, lambda file: np.savez(file, **arrays))
    loop.step.feed.waited = 0.0


# --- evaluate ---


def _evaluate(run: RunDirectory, recipe: Recipe, machine: build.Machine, started: float) -> None:
    data = build.dataset(recipe, machine.cache)
    network = build.model(recipe, len(data.classes), machine.device)
    evaluator = build.evaluator(recipe, machine)
    prepared = time.perf_counter() - started
    with Stop() as stop:

        def between() -> None:
            (code,) = distributed.max_over_ranks([float(stop.exit_code)], machine.device)
            if code:
                raise StoppedError("evaluation stopped; nothing was written.", int(code))

        feeds = build.test_feeds(recipe, data, machine)
        found = {name: evaluator(network, feed, between) for name, feed in feeds.items()}
    memory = distributed.max_over_ranks([_peak_memory_mb(machine.device)], machine.device)[0]
    if not distributed.is_first():
        return
    entries = _write_predictions(run, recipe, data, found)
    seconds = time.perf_counter() - started - prepared
    count = sum(len(feed) for feed in feeds.values())
    result = {
        "run": str(run.path),
        "recipe": recipe.name,
        "seed": recipe.train.seed,
        **_main_entry(entries),
        "epochs": None,
        "steps": None,
        "seconds_train": 0.0,
        "seconds_prepare": round(prepared, 3),
        "seconds_eval": round(seconds, 3),
        "images_per_second": round(count / max(seconds, 1e-9), 1),
        "peak_memory_mb": memory,
        "parameters": sum(p.numel() for p in network.parameters()),
        "sets": entries,
    }
    write_json(run.result, result)


if __name__ == "__main__":
    main()
