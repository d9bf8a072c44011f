"""Trackers, to which a run's metrics go while it trains: `--track NAME`, or RESCUE_TRACK.

Each is a package of its own, and gets the recipe, then every line of metrics as numbers by name:
`train/loss`, `test 28px@1/top1`. A resumed run goes on in the same record.
"""

import csv
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from rescue_cli.batch import Measurement
from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import flat
from rescue_cli.rundir import RunDirectory, write_text

VARIABLE = "RESCUE_TRACK"  # names, separated by commas
PROJECT = "rescue"
NO_NUMBERS = {"step", "epoch", "set", "size", "crop", "tta", "count"}
CSV_HEAD = ["step", "name", "value"]


class Tracker(Protocol):
    """Where metrics go; made with the run, its recipe and the step at which it begins."""

    def __init__(self, run: RunDirectory, recipe: Recipe, step: int) -> None: ...
    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class Csv:
    """`metrics.csv` in the run directory: step, name, value."""

    def __init__(self, run: RunDirectory, _recipe: Recipe, step: int) -> None:
        path = run.path / "metrics.csv"
        kept = [CSV_HEAD]
        if step and path.exists():
            with path.open(newline="") as file:
                kept += [row for row in [*csv.reader(file)][1:] if int(row[0]) <= step]
        write_text(path, "".join(",".join(row) + "\n" for row in kept))
        self.file = path.open("a")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.file.writelines(f"{step},{name},{value!r}\n" for name, value in values.items())
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Event files in the run directory, in `tensorboard/`."""

    def __init__(self, run: RunDirectory, recipe: Recipe, step: int) -> None:
        self.writer = _event_writer(run, step)
        self.writer.add_text("recipe", f"```yaml\n{recipe.to_yaml()}```", step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases, as WANDB_MODE and its other variables say."""

    def __init__(self, run: RunDirectory, recipe: Recipe, _step: int) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=str(run.path),
            id=_identifier(run),
            resume="allow",
            dir=str(run.path),
            config=dict(recipe.tree),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """MLflow, as MLFLOW_TRACKING_URI says."""

    def __init__(self, run: RunDirectory, recipe: Recipe, _step: int) -> None:
        import mlflow

        self.client = mlflow.MlflowClient()
        name, tag = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), _identifier(run)
        experiment = mlflow.set_experiment(name).experiment_id
        found = self.client.search_runs([experiment], f"tags.rescue_run = '{tag}'", max_results=1)
        if not found:
            tags = {"rescue_run": tag, "mlflow.runName": str(run.path)}
            found = [self.client.create_run(experiment, tags=tags)]
            for key, value in flat(recipe.tree).items():
                self.client.log_param(found[0].info.run_id, key, str(value)[:500])
        self.run_id = found[0].info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            # It takes no `@`
            self.client.log_metric(self.run_id, name.replace("@", " "), value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class Trackio:
    """trackio, in its own local store."""

    def __init__(self, run: RunDirectory, recipe: Recipe, _step: int) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(
            project=PROJECT,
            name=_identifier(run),
            resume="allow",
            config={**flat(recipe.tree), "run": str(run.path)},
            embed=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.trackio.log(dict(values), step=step)

    def close(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "csv": Csv,
    "mlflow": Mlflow,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def check_trackers(names: Iterable[str]) -> list[str]:
    """The names, each once, also of lists with commas; raises `UsageError` for unknown ones and
    missing packages.
    """
    parts = (part for name in names for part in name.split(","))
    checked = list(dict.fromkeys(filter(None, parts)))
    for name in checked:
        if name not in TRACKERS:
            raise UsageError(f"--track: '{name}' is not known. {did_you_mean(name, TRACKERS)}")
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise UsageError(f"--track: {name} is not installed. Install it: pip install {name}")
    return checked


def names_in_environment() -> list[str]:
    """What RESCUE_TRACK names; raises `UsageError`."""
    return check_trackers([os.environ.get(VARIABLE, "")])


class Trackers:
    """The trackers of RESCUE_TRACK as one; from `begin` on, at the step at which the run is."""

    def __init__(self, run: RunDirectory, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self.names = names_in_environment()  # wrong ones are told before anything is trained
        self.trackers: list[Tracker] = []

    def begin(self, step: int) -> None:
        for name in self.names:
            self.trackers.append(TRACKERS[name](self.run, self.recipe, step))

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """A line of metrics."""
        numbers = name_numbers(kind, values)
        for tracker in self.trackers:
            tracker.log(numbers, step)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def name_numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """A line's numbers by the names that a tracker groups them by."""
    group = "train"
    if kind == "eval":
        group = f"{values['set']} {Measurement(values['size'], values['crop'], values['tta'])}"
    numbers = {key: v for key, v in values.items() if key not in NO_NUMBERS}
    return {f"{group}/{key}": float(v) for key, v in numbers.items() if v is not None}


def _event_writer(run: RunDirectory, step: int) -> Any:
    """Drops what an earlier process wrote after the step."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)


def _identifier(run: RunDirectory) -> str:
    """What a run keeps when it is resumed: of letters and digits."""
    path = str(run.path.resolve())
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
