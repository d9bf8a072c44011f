"""What the size of a data set costs: names and labels once for all workers, orders nothing."""

import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from rescue_cli.sections.data.splits import FileNames, Files
from rescue_cli.sections.data.workers import end_workers, start_workers
from rescue_cli.sections.sampling import SAMPLERS, SamplingContext

IMAGENET = 1_281_167
ROLLUP = Path("/proc/self/smaps_rollup")


@pytest.fixture(scope="module")
def files() -> Files:
    """As many names as ImageNet has, made up in its manner."""
    names = (f"n{i // 1300:08}/n{i // 1300:08}_{i % 1300 * 37}.JPEG" for i in range(IMAGENET))
    labels = np.arange(IMAGENET, dtype=np.int64) // 1300
    return Files(FileNames.of(Path("/data/imagenet/train"), names), labels)


def held(files: Files) -> int:
    """Bytes."""
    names = files.names
    return names.block.nbytes + names.ends.nbytes + files.labels.nbytes


def test_imagenets_names_and_labels_take_59_megabytes(files: Files) -> None:
    assert len(files) == IMAGENET
    assert files.names.name(0) == "n00000000/n00000000_0.JPEG"
    assert files.names.name(IMAGENET - 1) == "n00000985/n00000985_24642.JPEG"
    assert held(files) < 60e6


class Walk(Dataset[int]):
    """Reads names as loader workers do, then says what its process has in memory for itself."""

    def __init__(self, names: Any, labels: Any) -> None:
        self.names = names
        self.labels = labels

    def __getitem__(self, indices: Any) -> int:
        for index in indices:
            assert self.names(index)
            assert self.labels[index] >= 0
        (kilobytes,) = re.findall(r"Private_Dirty: +(\d+) kB", ROLLUP.read_text())
        return int(kilobytes) * 1024


def own_memory(walk: Walk, count: int) -> list[int]:
    """Bytes that each of two workers has alone after both have read the names of all images."""
    order = np.random.default_rng(0).permutation(count)
    halves = iter([order[::2].tolist(), order[1::2].tolist()])

    def handed_out() -> Iterator[Any]:
        yield from halves

    decoded = start_workers(walk, handed_out(), 2)
    try:
        return list(decoded)
    finally:
        end_workers(decoded)


@pytest.mark.skipif(not ROLLUP.exists(), reason="needs Linux's account of memory")
def test_imagenets_names_cost_all_workers_together_less_than_300_megabytes(files: Files) -> None:
    own = own_memory(Walk(files.names.name, files.labels), IMAGENET)
    assert len(own) == 2
    print(f"held {held(files) / 1e6:.0f} MB, workers' own {[round(o / 1e6) for o in own]} MB")
    assert held(files) + sum(own) < 300e6


@pytest.mark.skipif(not ROLLUP.exists(), reason="needs Linux's account of memory")
def test_the_account_would_notice_a_list_of_names(files: Files) -> None:
    names = [files.names.name(i) for i in range(0, IMAGENET, 4)]
    count = len(names)
    shared = own_memory(Walk(files.names.name, files.labels), count)
    listed = own_memory(Walk(names.__getitem__, files.labels), count)
    # Every name that a worker looks at gets its references counted there, so its page is copied
    assert sum(listed) - sum(shared) > 2 * count * 50


@pytest.mark.parametrize(
    ("name", "options"),
    [("shuffled", {}), ("repeated", {"views": 3, "placement": "spread"})],
)
def test_an_order_of_100_million_images_is_never_in_memory(
    name: str, options: dict[str, Any]
) -> None:
    steps = SamplingContext(100_000_000, 2048, 512, 100_000_000 // 2048, seed=4)
    sampler = SAMPLERS[name](steps, **options)  # type: ignore[operator]
    sampler(0, 0)
    tracemalloc.start()
    seen = [sampler(step, s) for step in (0, 1, 48_827, 48_828, 10**7) for s in range(4)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6, "blocks of 4,096 indices, and what is computed on the way"
    assert max(indices.max() for indices in seen) < steps.samples
    assert max(indices.max() for indices in seen) > 0.99 * steps.samples
