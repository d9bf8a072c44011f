"""The way of a batch to a GPU, with streams that only note what they are asked for."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rescue_cli.batch import SideStream, joined, to_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Stream:
    def __init__(self, name: str, notes: list[Any]) -> None:
        self.name, self.notes = name, notes

    def record_event(self) -> int:
        events = sum(1 for note in self.notes if note[0] == "event")
        self.notes.append(("event", self.name, events))
        return events

    def wait_event(self, event: int) -> None:
        self.notes.append(("wait", self.name, event))


class OnGpu(Tensor):
    notes: list[Any]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def record_stream(self, stream: Any) -> None:
        self.notes.append(("keep", stream.name, int(self.sum())))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    notes: list[Any] = []
    OnGpu.notes = notes

    @contextlib.contextmanager
    def within(stream: Stream) -> Iterator[None]:
        notes.append(("enter", stream.name))
        yield
        notes.append(("leave", stream.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side", notes))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("computing", notes))
    monkeypatch.setattr(torch.cuda, "stream", within)
    return notes


def copy(number: int, notes: list[Any]) -> dict[str, Any]:
    notes.append(("copy", number))
    return {"images": [torch.full((1,), number).as_subclass(OnGpu)], "host": torch.zeros(1)}


ENTER, LEAVE = ("enter", "side"), ("leave", "side")


def test_a_micro_batch_is_copied_while_the_one_before_is_computed(notes: list[Any]) -> None:
    side = SideStream(GPU)
    given = [partial(copy, number, notes) for number in range(3)]
    batches: Iterator[dict[str, Any]] = side.ahead(given)
    for batch in batches:
        notes.append(("compute", int(batch["images"][0].sum())))
    started = [[ENTER, ("copy", n), ("event", "side", n), LEAVE] for n in range(3)]
    used = [[("wait", "computing", n), ("keep", "computing", n), ("compute", n)] for n in range(3)]
    order: list[list[Any]] = [started[0], started[1], used[0], started[2], used[1], used[2]]
    assert notes == [note for part in order for note in part]


def test_one_copy_is_waited_for_by_what_is_computed_and_not_by_the_host(notes: list[Any]) -> None:
    SideStream(GPU)(partial(copy, 7, notes))
    assert notes == [
        *(ENTER, ("copy", 7), ("event", "side", 0), LEAVE),
        *(("wait", "computing", 0), ("keep", "computing", 7)),
    ]


def test_on_a_cpu_nothing_is_copied_before_it_is_asked_for(notes: list[Any]) -> None:
    side = SideStream(CPU)
    for number, _ in enumerate(side.ahead(partial(copy, n, notes) for n in range(2))):
        assert notes == [("copy", n) for n in range(number + 1)]
    assert side(partial(copy, 2, notes))["host"].tolist() == [0]


def test_parts_are_joined_in_pinned_memory_by_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.arange(6).view(2, 3), torch.arange(3).view(1, 3)]
    assert torch.equal(joined(parts, CPU), torch.cat(parts))
    pinned: list[tuple[int, ...]] = []
    empty = torch.empty

    def pinning(shape: tuple[int, ...], *, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory
        pinned.append(shape)
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", pinning)
    assert torch.equal(joined(parts, GPU), torch.cat(parts))
    assert pinned == [(3, 3)]


def test_what_cannot_be_written_to_is_copied_and_all_else_is_shared() -> None:
    mapped, own = np.arange(3), np.arange(3)
    mapped.flags.writeable = False
    for array, seen in ((mapped, 0), (own, 7)):
        to_device(array, torch.device("cpu"))[0] = 7
        assert array[0] == seen
