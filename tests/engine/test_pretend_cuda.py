"""The engine's CUDA lines on a pretend device: no devices are mixed, no step waits, runs resume."""

import contextlib
import json
import operator
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.batch import Batch
from rescue_cli.build import feeds
from rescue_cli.build.feeds import Machine
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.engine.step import Step
from rescue_cli.sections.augment import pipeline
from rescue_cli.sections.data import memory
from tests.conftest import Rescue
from tests.helpers.pretend_cuda import device, internals
from tests.helpers.pretend_cuda.device import CUDA, PretendGpu, PretendTensor
from tests.helpers.pretend_cuda.record import Counts
from tests.helpers.pretend_cuda.runs import (
    RUNS,
    TABLE,
    make_data,
    recipe_of,
    train,
    train_from_middle,
)
from tests.helpers.processes import metrics_of, random_dataset

EXPECTED = json.loads(TABLE.read_text())
TINY = (
    "train.batch_size=8", "train.device_batch_size=8", "model.widths=[4,4,4]",
    "model.whitening_images=64",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("drawn"))


# --- recipes ---


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_trains_evaluates_saves_and_resumes_and_no_step_waits_for_the_device(
    name: str, pretend_cuda: PretendGpu, data: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(name, data)
    whole = train(pretend_cuda, recipe, tmp_path / "whole")
    resumed = train_from_middle(pretend_cuda, recipe, whole, tmp_path / "resumed")
    total = pretend_cuda.total
    assert (total.mismatches, total.hazards, total.without_kernel) == ({}, {}, {})
    assert [waits_of_ours(step) for step in (*whole.steps, *resumed.steps)] == [[]] * (
        len(whole.steps) * 3 // 2
    )
    # After a change that is meant: python -m tests.helpers.pretend_cuda --write
    found = {
        "kernels": [step.kernels.total() for step in whole.steps],
        "copies": [step.copies for step in whole.steps],
    }
    for what, counts in found.items():
        assert counts == pytest.approx(EXPECTED[name][what], rel=0.05), what

    weights = [load_file(run.path / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert metrics_of(whole.path) == metrics_of(resumed.path)


def waits_of_ours(step: Counts) -> list[str]:
    """What a step waited for, but for torchvision's detector: it chooses boxes by their values."""
    return [wait for wait in step.synchronisations if "< torchvision/" not in wait]


@pytest.mark.parametrize("name", ["airbench94", "myrtle-ghost-norm", "segmentation-ade20k"])
def test_a_deterministic_run_asks_for_nothing_that_cuda_refuses(
    name: str, pretend_cuda: PretendGpu, data: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(name, data, "train.deterministic=true", "train.epochs=1")
    try:
        train(pretend_cuda, recipe, tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert pretend_cuda.total.not_deterministic == {}


def test_the_command_trains_evaluates_and_predicts(
    rescue: Rescue,
    pretend_cuda: PretendGpu,
    data: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # so that runs take one thread
    words = [*(word.format(**data) for word in RUNS["a2"]), "train.epochs=1"]
    photo = next(data["photos"].glob("test/*/*.jpg"))
    trained = rescue("train", "--recipe", "a2", *words, "--out", "run", "--workers", "1", "--json")
    assert trained.code == 0, trained.err
    assert "on cuda, 1 process" in trained.err
    measured = rescue("eval", "run", "--device", "cuda", "--workers", "0", "--json")
    assert measured.code == 0, measured.err
    for key in ("top1", "loss"):
        assert json.loads(measured.out)[key] == json.loads(trained.out)[key]
    assert rescue("predict", "run", photo, "--device", "cuda").code == 0
    assert (pretend_cuda.total.mismatches, pretend_cuda.total.hazards) == ({}, {})


# --- planted faults ---


def tiny_step(recipe: str = "airbench94", *others: str, where: torch.device = CUDA) -> Step:
    loaded = recipes.load(recipe, [*TINY, *others])
    network = build_network(loaded, 10, where)
    machine = Machine(where, 0, Path("unused"))
    return build_step(loaded, network, random_dataset(3, 32, 64), machine, print)


def three_steps(gpu: PretendGpu, step: Step) -> Counts:
    with gpu.counting() as counts:
        for number in range(3):
            step(number)
        gpu.finish_copies()
    return counts


def test_without_a_fault_nothing_is_reported(pretend_cuda: PretendGpu) -> None:
    counts = three_steps(pretend_cuda, tiny_step())
    assert (counts.mismatches, counts.synchronisations, counts.hazards) == ({}, {}, {})
    assert list(counts.to_device) == [place_of_copy(counts)], "indices and draws, by one line"
    assert counts.to_device.total() == 2, "for all steps of an epoch at once"


def place_of_copy(counts: Counts) -> str:
    return next(place for place in counts.to_device if place.endswith(" to_device"))


def test_draws_that_stay_on_the_cpu_are_named(
    pretend_cuda: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "to_device", lambda array, _: torch.from_numpy(array))
    step = tiny_step()
    with pytest.raises(RuntimeError, match=r"found at least two devices.*sections/augment/"):
        step(0)
    assert pretend_cuda.total.mismatches.total() == 1


def test_a_buffer_of_the_network_on_the_cpu_is_named(pretend_cuda: PretendGpu) -> None:
    step = tiny_step()
    step.model.register_buffer("scale", torch.ones(10))
    step.model.register_forward_hook(lambda model, _, logits: logits * model.scale)
    with pytest.raises(RuntimeError, match=r"found at least two devices.*test_pretend_cuda\.py"):
        step(0)
    assert pretend_cuda.total.mismatches.total() == 1


def test_a_value_that_the_host_asks_for_is_named(pretend_cuda: PretendGpu) -> None:
    step = tiny_step()
    augment = step.augment

    def ask(batch: Batch) -> Batch:
        batch.images.float().mean().item()
        return augment(batch)

    step.augment = ask
    counts = three_steps(pretend_cuda, step)
    (wait,) = counts.synchronisations
    assert wait.startswith("item at engine/step.py:")
    assert wait.endswith(" ask")
    assert "tests/engine/test_pretend_cuda.py" in wait
    assert counts.synchronisations[wait] == 3


def test_a_copy_from_memory_that_is_not_pinned_is_named(
    pretend_cuda: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        memory, "to_device", lambda array, to: torch.from_numpy(array).to(to, non_blocking=True)
    )
    counts = three_steps(pretend_cuda, tiny_step())
    (wait,) = counts.synchronisations
    assert wait.startswith("copy to the device (not pinned) at sections/data/memory.py:")


def test_a_pinned_buffer_that_is_filled_again_too_early_is_named(
    pretend_cuda: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "AHEAD_BYTES", 1)  # each step has its own copies
    step = tiny_step()
    buffer = torch.empty(8, dtype=torch.int64, pin_memory=True)

    def reuse(indices: np.ndarray, to: torch.device) -> Tensor:
        return buffer.copy_(torch.from_numpy(indices)).to(to, non_blocking=True)

    monkeypatch.setattr(memory, "to_device", reuse)
    counts = three_steps(pretend_cuda, step)
    (hazard,) = counts.hazards
    assert hazard.startswith("overwritten before its copy was done: sections/data/memory.py:")
    assert counts.hazards[hazard] == 2, "of three copies the last one is whole"
    assert counts.synchronisations == {}


# --- the device itself ---


@pytest.mark.parametrize("recipe", ["airbench94", "hiverge94"])
def test_a_step_computes_what_it_does_on_a_cpu(recipe: str) -> None:
    """In float64: a CPU may compute Muon's float16 otherwise than a GPU does."""
    weights = []
    for where in (torch.device("cpu"), CUDA):
        with device.pretend_cuda() if where == CUDA else contextlib.nullcontext():
            step = tiny_step(recipe, "train.precision=float64", where=where)
            for number in range(3):
                step(number)
            weights.append([p.detach().cpu() for p in step.model.parameters()])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=1e-12)


def test_a_step_whose_gradients_overflow_is_skipped_without_waiting(
    pretend_cuda: PretendGpu,
) -> None:
    step = tiny_step("airbench94-muon")
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    scaler = step.optimizers.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1e30})
    with pretend_cuda.counting() as counts:
        step(0)
    assert counts.synchronisations == {}
    assert step.optimizers.skipped.item() == 1
    pairs = zip(before, step.model.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs)


def test_every_function_of_torch_is_its_own_again_afterwards() -> None:
    names = device._replacements(PretendGpu())
    functions = {name: function_at(name) for name in names}
    with contextlib.suppress(ZeroDivisionError), device.pretend_cuda():
        assert torch.cuda.is_available()
        raise ZeroDivisionError
    assert {name: function_at(name) for name in names} == functions
    assert not isinstance(torch.ones(2).add(1), PretendTensor)


def function_at(name: str) -> object:
    """None where this version of torch does not have it."""
    try:
        return operator.attrgetter(name.removeprefix("torch."))(torch)
    except AttributeError:
        return None


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda x: x.tolist(), "tolist"),
        (lambda x: bool(x.sum() > 0), "item"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: x[torch.tensor([0, 1])], "copy to the device (blocking)"),
        (lambda _: torch.tensor([1.0], device="cuda"), "copy to the device (blocking)"),
        (lambda _: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_what_the_host_waits_for_is_counted(
    ask: Callable[[Tensor], object], reason: str, pretend_cuda: PretendGpu
) -> None:
    values = torch.ones(4, device="cuda")
    assert pretend_cuda.total.synchronisations == {}
    ask(values)
    assert [wait.partition(" at ")[0] for wait in pretend_cuda.total.synchronisations] == [reason]


def test_what_the_host_does_not_wait_for_is_not_counted(pretend_cuda: PretendGpu) -> None:
    values = torch.ones(4, device="cuda")
    values[values > 0] = 2.0  # a fill
    assert values.device == CUDA
    other = values * torch.tensor(3.0)  # a number is passed along with the call
    other = torch.where(other > 0, other, functional.one_hot(torch.arange(4, device="cuda"), 4))
    assert isinstance(other, PretendTensor)
    assert other.shape == (4, 4)
    assert pretend_cuda.total.synchronisations == {}


def test_memory_of_the_host_is_filled_only_once_it_is_waited_for(pretend_cuda: PretendGpu) -> None:
    values = torch.arange(4, device="cuda")
    copied = values.to("cpu", non_blocking=True)
    assert copied.tolist() != [0, 1, 2, 3]
    torch.cuda.synchronize()
    assert copied.tolist() == [0, 1, 2, 3]
    assert pretend_cuda.total.to_host.total() == 1


def test_devices_are_not_mixed(pretend_cuda: PretendGpu) -> None:
    mine, other = torch.ones(4, device="cuda"), torch.ones(4)
    mixtures: list[Callable[[], object]] = [
        lambda: mine + other,
        lambda: torch.cat([mine, other]),
        lambda: torch.stack([mine.sum(), torch.tensor(1.0)]),
        lambda: other[mine.long()],
        lambda: nn.functional.linear(mine[None], other[None]),
    ]
    for mix in mixtures:
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
            mix()
    assert pretend_cuda.total.mismatches.total() == len(mixtures)
    with pytest.raises(TypeError, match="to numpy"):
        mine.numpy()


def test_deterministic_mode_refuses_what_cuda_refuses(pretend_cuda: PretendGpu) -> None:
    images = torch.ones(1, 2, 4, 4, device="cuda", requires_grad=True)
    functional.adaptive_max_pool2d(images, 1).sum().backward()  # type: ignore[no-untyped-call]
    (name,) = pretend_cuda.total.not_deterministic
    assert name.startswith("adaptive_max_pool2d_backward at ")
    torch.use_deterministic_algorithms(True)
    try:
        functional.max_pool2d(images, 4).sum().backward()  # type: ignore[no-untyped-call]
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            functional.adaptive_max_pool2d(images, 1).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no kernels of CUDA")
def test_an_operation_of_the_cpu_alone_is_counted(pretend_cuda: PretendGpu) -> None:
    images, filters = (torch.ones(1, 1, 3, 3, 3, device="cuda") for _ in range(2))
    torch.ops.aten.slow_conv3d_forward(images, filters, [3] * 3, None, [1] * 3, [0] * 3)
    (name,) = pretend_cuda.total.without_kernel
    assert name.startswith("aten.slow_conv3d_forward.default at ")
    assert internals.has_cuda_kernel(torch.ops.aten.mul.Tensor)


def test_autocast_computes_in_the_precisions_of_cuda(pretend_cuda: PretendGpu) -> None:  # noqa: ARG001
    values = torch.ones(4, 4, device="cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        product = values @ values
        assert product.dtype == torch.float16
        assert functional.conv2d(values[None, None], values[None, None]).dtype == torch.float16
        for function in (torch.sum, torch.exp, lambda x: functional.layer_norm(x, (4,))):
            assert function(product).dtype == torch.float32
        assert (product * 2).dtype == torch.float16
    assert (values @ values).dtype == torch.float32
