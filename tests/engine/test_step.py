"""The step: what it computes, and that nothing in it waits for the device."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.batch import Batch, Transfers
from rescue_cli.build.feeds import Machine
from rescue_cli.build.networks import build_network
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.build.step import build_step
from rescue_cli.engine.batch_norm import RunningStatistics
from rescue_cli.engine.step import Step, seed_device
from rescue_cli.errors import UsageError
from rescue_cli.sections import averaging
from rescue_cli.sections.data import Images
from rescue_cli.sections.optim import OPTIMIZERS
from rescue_cli.sections.sampling import SamplingContext, shuffled
from tests.helpers.processes import random_dataset

CPU = torch.device("cpu")
SMALL = ["model.width=4", "train.batch_size=16", "train.device_batch_size=8"]
AVERAGED = ["averaging={name: ema, decay: 0.9, every: 1}", "optim.max_grad_norm=1.0"]
STRIKES_BACK = [
    "sampling={name: repeated, views: 3, placement: spread}",
    "mix={name: mixup-or-cutmix, mixup: 0.1, cutmix: 1.0, switch: 0.5}",
    "model={name: test_resnet, drop_path: 0.05}",
    "loss={name: binary-cross-entropy, targets: present, label_smoothing: 0.1}",
    "optim={name: lamb, lr: 5.0e-3, weight_decay: 0.02, no_decay: [norms, biases], "
    "max_grad_norm: 1.0}",
    "schedule={name: cosine, warmup_epochs: 5, warmup_lr: 0, min_lr: 0, per: epoch}",
]


# --- seeds ---


def test_the_devices_generator_alone_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers that `torch.manual_seed` gives, which would also seed every other device."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    number = ((3 * 1_000_003 + 17) * 4_099 + 2) % 2**63
    seed_device(CPU, 3, 17, 2)
    drawn = torch.rand(5)
    assert not seeds
    torch.default_generator.manual_seed(number)
    assert torch.equal(torch.rand(5), drawn)
    state = torch.get_rng_state()
    seed_device(torch.device("cuda", 0), 3, 17, 2)
    assert seeds == [number]
    assert torch.equal(torch.get_rng_state(), state)


def step_of(recipe: recipes.Recipe, network: nn.Module, device: torch.device = CPU) -> Step:
    pixels, channels = (28, 1) if recipe.name == "quickstart" else (32, 3)
    machine = Machine(device, 0, Path("unused"))
    return build_step(recipe, network, random_dataset(channels, pixels, 64), machine, print)


# --- no host synchronisation ---


def on_fake_tensors(
    name: str, extra: list[str], change: Callable[[Step], Step] = lambda step: step
) -> tuple[int, int]:
    """Two real steps on tensors without content; returns the copies to the device and back."""
    recipe = recipes.load(name, [*SMALL, *extra])
    network = build_network(recipe, 10, CPU)
    twin = copy.deepcopy(network)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (*network.modules(), *twin.modules()):
            for key, parameter in module.named_parameters(recurse=False):
                module._parameters[key] = nn.Parameter(mode.from_tensor(parameter.detach()))
            for key, buffer in module.named_buffers(recurse=False):
                module._buffers[key] = mode.from_tensor(buffer)
        # torch 2.14 copies a tensor without content through its data pointer, and may crash
        network.__dict__["__deepcopy__"] = lambda _memo: twin
        step = change(step_of(recipe, network))
        step.feed.start(0)
        to_device, to_host = Transfers.to_device, Transfers.to_host
        step(0)
        step(1)
        assert type(step.loss_sum).__name__ == "FakeTensor"
        return Transfers.to_device - to_device, Transfers.to_host - to_host


@pytest.mark.parametrize(
    "extra", [[], AVERAGED, STRIKES_BACK], ids=["as shipped", "averaged and clipped", "as in A2"]
)
@pytest.mark.parametrize("name", ["quickstart", "myrtle-baseline"])
def test_a_step_never_asks_the_device_for_a_value(name: str, extra: list[str]) -> None:
    to_device, to_host = on_fake_tensors(name, extra)
    micro_batches = 2
    assert to_device == 2 * micro_batches * 2, (
        "for each micro-batch of each step its indices and its draws"
    )
    assert to_host == 0


def test_the_scaler_of_float16_is_part_of_the_step_that_never_asks() -> None:
    recipe = recipes.load("myrtle-baseline", SMALL)
    assert step_of(recipe, build_network(recipe, 10, CPU)).optimizers.scaler.is_enabled()


@pytest.mark.parametrize(
    "ask",
    [
        lambda loss: loss.item(),
        lambda loss: loss.tolist(),
        lambda loss: bool(loss > 0),
        lambda loss: loss[loss > 0],
    ],
    ids=["item", "tolist", "bool", "boolean indexing"],
)
def test_a_step_that_asks_the_device_for_a_value_is_caught(
    ask: Callable[[Tensor], object],
) -> None:
    class Asking:
        """The recipe's task with one question more."""

        def __init__(self, step: Step) -> None:
            self.task = step.task

        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            loss = self.task.loss(model, batch)
            ask(loss.detach())
            return loss

    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        on_fake_tensors("quickstart", [], lambda step: replace(step, task=Asking(step)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("extra", [AVERAGED, STRIKES_BACK], ids=["averaged", "as in A2"])
@pytest.mark.parametrize("name", ["quickstart", "myrtle-baseline"])
def test_a_step_never_waits_for_a_gpu(name: str, extra: list[str]) -> None:
    device = torch.device("cuda", 0)
    recipe = recipes.load(name, [*SMALL, *extra])
    step = step_of(recipe, build_network(recipe, 10, device), device)
    step.feed.start(0)
    step(0)  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(step.loss_sum) > 0, "three steps were taken"


# --- the arithmetic ---


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_engine_trains_what_a_loop_written_by_hand_trains(micro_batches: int) -> None:
    plain = ["model.width=4", "train.precision=float64", "augment=[]", "train.epochs=10"]
    plain += ["schedule={name: piecewise, epochs: [0, 2, 10], factors: [0, 1, 0], first_step: 1}"]
    plain += [
        "optim.lr=0.4",
        "train.batch_size=16",
        f"train.device_batch_size={16 // micro_batches}",
    ]
    recipe = recipes.load("quickstart", plain)
    network = build_network(recipe, 10, CPU)
    twin = copy.deepcopy(network)
    step = step_of(recipe, network)
    for number in range(10):
        step(number)

    data = random_dataset(1, 28, 64).train
    assert isinstance(data, Images)
    norms = [p for m in twin.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in twin.parameters() if all(p is not n for n in norms)]
    optimizer = torch.optim.SGD(
        [{"params": others, "weight_decay": 5e-4}, {"params": norms, "weight_decay": 0.0}],
        lr=0.4,
        momentum=0.9,
        nesterov=True,
    )
    order = shuffled(SamplingContext(64, 16, 16 // micro_batches, 4, 0))
    for number in range(10):
        epoch = (number + 1) / 4  # the ramp is read at the step's end: update 0 at 1
        for group in optimizer.param_groups:
            group["lr"] = 0.4 * (epoch / 2 if epoch <= 2 else 1 - (epoch - 2) / 8)
        for micro_batch in range(micro_batches):
            chosen = order(number, micro_batch)
            pixels = torch.from_numpy(data.pixels[chosen]).double() / 255
            labels = torch.from_numpy(data.labels[chosen])
            images = (pixels - 0.2860) / 0.3530
            loss = functional.cross_entropy(twin(images), labels, label_smoothing=0.1)
            (loss / micro_batches).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    for (name, mine), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        differs = (mine - other).abs().max() / other.abs().max()
        assert differs < 1e-12, (name, differs)


def test_running_statistics_of_a_step_are_the_mean_over_its_micro_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).double()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    micro_batches = list(torch.randn(2, 3, 4, 1, 8, 8, dtype=torch.float64))
    statistics = RunningStatistics(model, 3)
    for images in micro_batches:
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        updates = []
        for image in images:
            filtered = model[0](image).detach()
            batch_mean = filtered.mean((0, 2, 3))
            batch_var = filtered.var((0, 2, 3), unbiased=True)
            updates.append((0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var))
            with statistics.micro_batch():
                model(image).sum().backward()
        statistics.settle()
        for place, buffer in enumerate((norm.running_mean, norm.running_var)):
            torch.testing.assert_close(buffer, sum(u[place] for u in updates) / 3)
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 2, "one batch a step"


def test_ema_follows_its_formula_on_weights_and_buffers() -> None:
    model = nn.BatchNorm1d(3).double()
    average = averaging.ema(model, averaging.RunLength(6, 6), decay=0.75, every=2)
    held = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(6):
        with torch.no_grad():
            for tensor in (model.weight, model.bias, model.running_mean):
                assert tensor is not None
                tensor.copy_(torch.randn(3, dtype=torch.float64))
            assert model.num_batches_tracked is not None
            model.num_batches_tracked += 1
        average.update(step)
        if step % 2:  # after the second, fourth and sixth update
            now = model.state_dict()
            held = {k: 0.75 * v + 0.25 * now[k] for k, v in held.items()}
            held["num_batches_tracked"] = now["num_batches_tracked"].clone()
        for name, tensor in average.model.state_dict().items():
            torch.testing.assert_close(tensor, held[name], rtol=1e-14, atol=1e-14, msg=name)


# --- sgd-velocity ---


def weights_after(name: str, rates: list[float], nesterov: bool) -> Tensor:
    """A vector after one update for each rate, its gradients a function of the update alone."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
    options: dict[str, Any] = {
        "lr": rates[0],
        "momentum": 0.9,
        "nesterov": nesterov,
        "weight_decay": 0.05,
    }
    optimizer = OPTIMIZERS[name]([{"params": [parameter]}], **options)
    for number, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = gradient(number)
        optimizer.step()
    return parameter.detach()


def gradient(number: int) -> Tensor:
    return torch.sin(torch.arange(7, dtype=torch.float64) + 3 * number)


CHANGING = [0.1, 0.2, 0.4, 0.2, 0.1, 0.0]


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_velocity_is_its_formula_over_a_changing_rate(nesterov: bool) -> None:
    w = torch.linspace(-1, 1, 7, dtype=torch.float64)
    v = torch.zeros_like(w)
    for number, lr in enumerate(CHANGING):
        moved = lr * (gradient(number) + 0.05 * w)
        v = 0.9 * v - moved
        w = w + (0.9 * v - moved if nesterov else v)
    found = weights_after("sgd-velocity", CHANGING, nesterov)
    torch.testing.assert_close(found, w, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_velocity_is_torchs_sgd_while_the_rate_is_constant_and_only_then(
    nesterov: bool,
) -> None:
    def ours_and_torchs(rates: list[float]) -> tuple[Tensor, Tensor]:
        return weights_after("sgd-velocity", rates, nesterov), weights_after("sgd", rates, nesterov)

    ours, torchs = ours_and_torchs([0.1] * 6)
    torch.testing.assert_close(ours, torchs, rtol=1e-13, atol=1e-13)
    ours, torchs = ours_and_torchs(CHANGING)
    assert (ours - torchs).abs().max() > 0.01


# --- torch.compile ---


def test_the_key_names_torch_compiles_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []

    def compiled(network: nn.Module, *, dynamic: bool, mode: str) -> nn.Module:
        modes.append((dynamic, mode))
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    kept = []
    for value in ("false", "true", "default", "reduce-overhead", "max-autotune"):
        recipe = recipes.load("quickstart", [*SMALL, f"train.compile={value}"])
        step = step_of(recipe, build_network(recipe, 10, CPU))
        step(0)
        kept.append(all(p.grad is not None for p in step.optimizers.parameters))
    assert modes == [(False, m) for m in ("default", "default", "reduce-overhead", "max-autotune")]
    assert kept == [False, False, False, True, True]
    whole = recipes.load(
        "quickstart", [*SMALL, "train.device_batch_size=16", "train.compile=max-autotune"]
    )
    step = step_of(whole, build_network(whole, 10, CPU))
    step(0)
    assert all(p.grad is None for p in step.optimizers.parameters), "one micro-batch: freed"


def test_a_mode_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        recipes.load("quickstart", ["train.compile=fastest"])
    assert str(refused.value) == (
        "train.compile: 'fastest' is not true or false or one of default, reduce-overhead, "
        "max-autotune."
    )


def test_gradients_that_are_kept_stay_in_their_memory_and_train_the_same() -> None:
    """As a graph needs it, whose own memory is written anew for every micro-batch."""
    finals = []
    for value in ("false", "reduce-overhead"):
        recipe = recipes.load("quickstart", [*SMALL, "train.precision=float64", *AVERAGED])
        network = build_network(recipe, 10, CPU)
        step = step_of(recipe, network)
        graphs = recipe.with_overrides(f"train.compile={value}")
        step.optimizers = build_optimizers(graphs, network, 4, step.optimizers.scaler)
        places = {p.grad.data_ptr() for p in step.optimizers.parameters if p.grad is not None}
        for number in range(3):
            step(number)
            now = {p.grad.data_ptr() for p in step.optimizers.parameters if p.grad is not None}
            assert now == places
        finals.append([p.detach() for p in network.parameters()])
        assert len(places) == (len(step.optimizers.parameters) if value != "false" else 0)
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_compiled_step_computes_what_an_eager_one_does(mode: str) -> None:
    """In float64: in float32 a maximum of a pool changes its place within few steps."""
    finals = []
    for value in ("false", mode):
        recipe = recipes.load(
            "quickstart", [*SMALL, "train.precision=float64", f"train.compile={value}"]
        )
        network = build_network(recipe, 10, CPU)
        step = step_of(recipe, network)
        for number in range(3):
            step(number)
        finals.append([p.detach() for p in network.parameters()])
    for eager, compiled in zip(*finals, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-12)
