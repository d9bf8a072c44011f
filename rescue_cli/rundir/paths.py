"""The paths of a run directory's files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run's files."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def listing(self) -> Path:
        return self.path / "data.npz"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def samples(self) -> Path:
        return self.path / "samples.npz"

    @property
    def examples(self) -> Path:
        return self.path / "examples.npz"

    def snapshot(self, step: int) -> Path:
        return self.path / "snapshots" / f"{step}.pt"

    def predictions(self, name: str) -> Path:
        return self.path / "predictions" / f"{name}.npz"
