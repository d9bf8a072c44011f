"""Averages of weights against their formulas written out, over the steps of a run."""

import copy
from pathlib import Path

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rescue_cli import recipe as recipes
from rescue_cli.build import expand
from rescue_cli.build.check import check_ingredients
from rescue_cli.engine import checkpoint
from rescue_cli.errors import UsageError
from rescue_cli.sections.averaging import Average, RunLength, ema, ema_by_epoch, lookahead

STEPS = 33  # no multiple of 5: the last copy is one of its own


class Net(nn.Module):
    """A convolution whose filters are fixed, and batch norm with its buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filters = nn.Conv2d(2, 3, 2, bias=False).requires_grad_(False)
        self.norm = nn.BatchNorm2d(3)


def moved(model: nn.Module, step: int) -> None:
    """One update: every tensor that a step moves goes to a weighted mean with a random one."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "filters" not in name:
                tensor.lerp_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype), 0.3)
            elif not tensor.is_floating_point():
                tensor += 1


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-13, atol=1e-13, msg=name)


def followed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state.items() if v.is_floating_point()}


@pytest.mark.parametrize(("first", "rest"), [(None, 0), (1, 1), (7, 2)])
def test_ema_over_a_run_is_its_formula_and_leaves_the_weights_alone(
    first: int | None, rest: int
) -> None:
    model, twin = Net().double(), Net().double()
    rho = 0.99**5  # Myrtle's 0.99 a step, applied every five
    average = ema(model, RunLength(STEPS, 10), decay=rho, every=5, first=first)
    held = followed(twin.state_dict())
    for step in range(STEPS):
        moved(model, step)
        moved(twin, step)
        average.update(step)
        if (step + 1) % 5 == rest and step + 1 >= (first or 5):
            now = twin.state_dict()
            held = {k: rho * v + (1 - rho) * now[k] for k, v in held.items()}
        close(average.model.state_dict(), held)
        close(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("start", [0, 1, 2])
def test_ema_by_epoch_over_a_run_is_torchs_averaged_model(start: int) -> None:
    """As torchvision's script calls it: at i % 4 == 0 of an epoch's ten updates i.

    What is averaged is counted anew in each warm-up epoch, so that it is a copy.
    """
    model, twin = Net().double(), Net().double()
    average = ema_by_epoch(model, RunLength(STEPS, 10), decay=0.9, every=4, start=float(start))
    theirs = AveragedModel(
        twin, avg_fn=lambda held, now, _: 0.9 * held + 0.1 * now, use_buffers=True
    )
    copies = 0
    for step in range(STEPS):
        epoch, i = divmod(step, 10)
        moved(model, step)
        moved(twin, step)
        average.update(step)
        if i % 4 == 0:
            theirs.update_parameters(twin)
            if epoch < start:
                theirs.n_averaged.fill_(0)
        close(followed(average.model.state_dict()), followed(theirs.module.state_dict()))
        close(model.state_dict(), twin.state_dict())
        copies += torch.equal(average.model.norm.weight, model.norm.weight)  # type: ignore[union-attr,arg-type]
    assert copies == 1 + 3 * start, "the updates of the warm-up, and the first after it"


@pytest.mark.parametrize("after", [0, 7])  # updates that are copied, beside the first
@pytest.mark.parametrize("curve", [None, (1.0, 2 / 3), (9.0, 1.0), (3.0, 0.75)])
def test_an_ema_that_warms_up_is_timms(curve: tuple[float, float] | None, after: int) -> None:
    """timm 1.0.31's ModelEmaV3, called as its train.py does: with the count of updates so far."""
    gamma, power = curve or (1.0, 1.0)
    model = Net().double()
    theirs = ModelEmaV3(
        model, decay=0.7, use_warmup=curve is not None, warmup_gamma=gamma, warmup_power=power,
        update_after_step=after,
    )  # fmt: skip
    ours = ema(model, RunLength(STEPS, 10), decay=0.7, every=1, warmup=curve, start=after / 10)
    for step in range(STEPS):
        moved(model, step)
        ours.update(step)
        theirs.update(model, step=step + 1)
        close(ours.model.state_dict(), followed(theirs.module.state_dict()))


@pytest.mark.parametrize("every", [1, 5])
def test_gamma_9_and_power_1_are_tensorflows_warm_up(every: int) -> None:
    model = Net().double()
    average = ema(model, RunLength(STEPS, 10), decay=0.35, every=every, warmup=(9.0, 1.0))
    held = {}
    times = -1  # num_updates, once the first average is there
    for step in range(STEPS):
        moved(model, step)
        average.update(step)
        if (step + 1) % every:
            continue
        now = followed(model.state_dict())
        if times < 0:
            held = now
        else:
            d = min(0.35, (1 + times) / (10 + times))
            held = {k: d * v + (1 - d) * now[k] for k, v in held.items()}
        times += 1
        close(average.model.state_dict(), held)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_an_ema_that_starts_at_an_epoch_is_torchvisions(epochs: int) -> None:
    """Its references/classification/train.py: while the rate warms up, the count is put back."""
    model = Net().double()
    theirs = AveragedModel(model, avg_fn=lambda a, w, _: 0.9 * a + 0.1 * w, use_buffers=True)
    ours = ema(model, RunLength(STEPS, 10), decay=0.9, every=1, start=float(epochs))
    for step in range(STEPS):
        moved(model, step)
        ours.update(step)
        theirs.update_parameters(model)
        if step // 10 < epochs:
            theirs.n_averaged.fill_(0)
        close(ours.model.state_dict(), followed(theirs.module.state_dict()))


def test_a_warm_up_is_a_pair_of_numbers_above_zero() -> None:
    averaging = "averaging={name: ema, decay: 0.9, every: 2, start: 2, warmup: %s}"
    recipe = recipes.load("quickstart", [averaging % "[1, 0.75]", "train.epochs=12"])
    check_ingredients(recipe)
    assert "averaging.start=4" in expand.epochs_overrides(recipe, 24, [])
    for wrong in ("[0, 1]", "[1]", "true"):
        with pytest.raises(UsageError, match="averaging"):
            check_ingredients(recipes.load("quickstart", [averaging % wrong, "train.epochs=12"]))


@pytest.mark.parametrize(
    ("start", "first"), [(0.0, 0), (0.9, 10), (1.1, 15)], ids=["airbench", "at 9", "at 11"]
)
def test_lookahead_over_a_run_is_its_formula(start: float, first: int) -> None:
    """airbench94.py's counting, and hlb's: the first average after the start is a copy."""
    model, twin = Net().double(), Net().double()
    average = lookahead(model, RunLength(STEPS, 10), decay=0.95, every=5, power=3.0, start=start)
    held = followed(twin.state_dict()) if first == 0 else None
    copies = 0
    for step in range(STEPS):
        moved(model, step)
        moved(twin, step)
        average.update(step)
        t = step + 1  # updates so far
        now = twin.state_dict()
        if t % 5 == 0 and t >= first:
            if held is None:
                held = followed(now)
            else:
                d = 0.95**5 * (t / STEPS) ** 3
                held = {k: d * v + (1 - d) * now[k] for k, v in held.items()}
                copies += 1
        if held is not None and (t % 5 == 0 or t == STEPS):
            with torch.no_grad():
                for name, tensor in held.items():
                    now[name].copy_(tensor)
        close(average.model.state_dict(), now)
    assert average.model is model
    assert held is not None
    close(model.state_dict(), held)
    assert copies == {0: 6, 10: 4, 15: 3}[first]
    assert model.norm.num_batches_tracked is not None
    assert int(model.norm.num_batches_tracked) == STEPS


def test_lookahead_that_never_starts_leaves_the_weights_alone() -> None:
    model, twin = Net(), Net()
    average = lookahead(model, RunLength(10, 10), decay=0.95, every=5, power=3.0, start=2.0)
    for step in range(10):
        moved(model, step)
        moved(twin, step)
        average.update(step)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


@pytest.mark.parametrize(
    "kind",
    ["ema", "ema that warms up", "ema by epoch", "lookahead", "lookahead that starts"],
)
@pytest.mark.parametrize("stopped_after", [1, 14, 15, 31])
def test_a_resumed_average_is_bitwise_that_of_the_run_that_never_stopped(
    kind: str, stopped_after: int, tmp_path: Path
) -> None:
    def averaged(model: nn.Module) -> Average:
        length = RunLength(STEPS, 10)
        if kind == "ema":
            return ema(model, length, decay=0.9, every=5)
        if kind == "ema by epoch":
            return ema_by_epoch(model, length, decay=0.9, every=4, start=1.0)
        if kind == "ema that warms up":
            return ema(model, length, decay=0.9, every=5, warmup=(1.0, 0.75), start=1.0)
        start = 1.2 if "starts" in kind else 0.0
        return lookahead(model, length, decay=0.95, every=5, power=3.0, start=start)

    straight = Net()
    average = averaged(straight)
    killed = copy.deepcopy(straight)
    killed_average = averaged(killed)
    for step in range(STEPS):
        moved(straight, step)
        average.update(step)
        if step < stopped_after:
            moved(killed, step)
            killed_average.update(step)
    state = {"model": killed.state_dict(), "average": killed_average.state_dict()}
    checkpoint.save(tmp_path / "last.pt", state)

    resumed = Net()
    resumed_average = averaged(resumed)
    state = checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))
    resumed.load_state_dict(state["model"])
    resumed_average.load_state_dict(state["average"])
    for step in range(stopped_after, STEPS):
        moved(resumed, step)
        resumed_average.update(step)
    for found, expected in ((resumed, straight), (resumed_average.model, average.model)):
        assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))


def test_the_start_is_counted_in_epochs_which_another_length_scales() -> None:
    averaging = "averaging={name: lookahead, decay: 0.95, every: 5, power: 3, start: 2}"
    recipe = recipes.load("quickstart", [averaging, "train.epochs=12"])
    assert "averaging.start=4" in expand.epochs_overrides(recipe, 24, [])
