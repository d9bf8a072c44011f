"""torch's settings for a run: the same for training and for benchmarks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.backends import cudnn

from rescue_cli.build.backends import configure_backends, use_fast_kernels
from rescue_cli.recipe import load
from rescue_cli.runs import worker


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    kept = cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize(
    ("name", "overrides", "searches"),
    [
        ("quickstart", [], True),
        ("a2", [], True),
        ("detection-voc", [], False),  # every image has its own shape
        ("segmentation-ade20k", [], False),
        ("quickstart", ["train.deterministic=true"], False),
    ],
)
def test_cudnn_searches_where_shapes_repeat_and_nothing_must_be_deterministic(
    name: str, overrides: list[str], searches: bool
) -> None:
    cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    cudnn.benchmark = not searches
    configure_backends(load(name, overrides))
    assert cudnn.benchmark is searches
    assert cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.are_deterministic_algorithms_enabled() is bool(overrides)


def test_a_later_run_need_not_be_deterministic() -> None:
    configure_backends(load("quickstart", ["train.deterministic=true"]))
    configure_backends(load("quickstart"))
    assert not torch.are_deterministic_algorithms_enabled()
    use_fast_kernels(search=False)
    assert not cudnn.benchmark


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_workspace_of_cublas_is_fixed_before_a_device_is_touched(
    deterministic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    recipe = load("quickstart", [f"train.deterministic={str(deterministic).lower()}"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    at_first_use = []

    def touch(_: object) -> None:
        at_first_use.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_machine", touch)
    monkeypatch.setattr(worker, "read_environment", lambda _: {"verb": "train"})
    with pytest.raises(KeyboardInterrupt):
        worker.work(tmp_path)
    assert at_first_use == [":4096:8" if deterministic else None]
