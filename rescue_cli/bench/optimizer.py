"""LAMB's step over a network's parameters: ours and timm's, in turn in one run."""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from rescue_cli.bench.interleave import in_turn
from rescue_cli.recipe import OptimItem
from rescue_cli.sections.model.zoo import zoo
from rescue_cli.sections.optim import claims
from rescue_cli.sections.optim.lamb import lamb

CLASSES = 1000
LR, WEIGHT_DECAY, MAX_GRAD_NORM = 5e-3, 0.02, 1.0  # ResNet strikes back, A2
GRADIENT = 1e-3  # a deviation that clips a network of more than a million parameters


def against_timm(model: str, device: torch.device, *, calls: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a step of both, the median over rounds of our time by timm's, and how many
    operations each hands to torch's dispatcher.

    Gradients are random and stay the same, float32 as all else. Raises `UsageError` for a network
    that is not known.
    """
    from timm.optim.lamb import Lamb

    network = zoo(model, CLASSES, 3).to(device)
    twin = copy.deepcopy(network)
    _set_gradients(network, twin)
    ours = lamb(_groups(network), lr=LR, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
    theirs: Optimizer = Lamb(_groups(twin), lr=LR, max_grad_norm=MAX_GRAD_NORM)
    found = in_turn(ours.step, theirs.step, calls=calls, rounds=rounds, images=1, device=device)
    return {
        "what": f"LAMB over {model} on {device.type}, float32, threads {torch.get_num_threads()}",
        **found,
        "ours": 1e3 / found["ours"],
        "theirs": 1e3 / found["theirs"],
        "unit": "ms",
        "operations": _operations(ours),
        "operations_theirs": _operations(theirs),
    }


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """The parameters as the recipes split them: norms and biases do not decay."""
    parameters = dict(network.named_parameters())
    item = OptimItem(
        "optim", "lamb", {}, lr=LR, weight_decay=WEIGHT_DECAY, no_decay=["norms", "biases"]
    )
    (claim,) = claims(network, [item])
    return [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in ((claim.decayed, WEIGHT_DECAY), (claim.undecayed, 0.0))
    ]


def _set_gradients(network: nn.Module, twin: nn.Module) -> None:
    """The same random gradients for both networks, each its own copy."""
    torch.manual_seed(0)
    for mine, other in zip(network.parameters(), twin.parameters(), strict=True):
        mine.grad = torch.randn_like(mine) * GRADIENT
        other.grad = mine.grad.clone()


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that reach torch's dispatcher from Python."""

    count: int = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operations(optimizer: Optimizer) -> int:
    counting: Any = _Counting()  # type: ignore[no-untyped-call]
    with counting:
        optimizer.step()
    return int(counting.count)
