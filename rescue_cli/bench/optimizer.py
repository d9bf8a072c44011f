"""LAMB's step over a network's parameters: ours against timm's, measured alternately."""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from rescue_cli.bench.timing import time_alternately
from rescue_cli.recipe import OptimItem
from rescue_cli.sections.model.timm_models import timm_model
from rescue_cli.sections.optim import assign_parameters
from rescue_cli.sections.optim.lamb import lamb

CLASSES = 1000
LR, WEIGHT_DECAY, MAX_GRAD_NORM = 5e-3, 0.02, 1.0  # ResNet strikes back, A2
GRADIENT_STD = 1e-3  # large enough to be clipped with more than a million parameters


def against_timm(model: str, device: torch.device, *, calls: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per step of both, the ratio of our time to timm's (median over rounds), and the
    number of operations that each dispatches to torch.

    All in float32, with random gradients that stay the same. Raises `UsageError` for an unknown
    network.
    """
    from timm.optim.lamb import Lamb

    network = timm_model(model, CLASSES, 3).to(device)
    twin = copy.deepcopy(network)
    _set_gradients(network, twin)
    ours = lamb(_groups(network), lr=LR, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
    theirs: Optimizer = Lamb(_groups(twin), lr=LR, max_grad_norm=MAX_GRAD_NORM)
    times = time_alternately(
        ours.step, theirs.step, calls=calls, rounds=rounds, images=1, device=device
    )
    return {
        "what": f"LAMB over {model} on {device.type}, float32, threads {torch.get_num_threads()}",
        **times,
        "ours": 1e3 / times["ours"],
        "theirs": 1e3 / times["theirs"],
        "unit": "ms",
        "operations": _count_operations(ours),
        "operations_theirs": _count_operations(theirs),
    }


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """The parameters in the recipes' groups: norms and biases without weight decay."""
    parameters = dict(network.named_parameters())
    item = OptimItem(
        "optim", "lamb", {}, lr=LR, weight_decay=WEIGHT_DECAY, no_decay=["norms", "biases"]
    )
    (claim,) = assign_parameters(network, [item])
    return [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in ((claim.decayed, WEIGHT_DECAY), (claim.undecayed, 0.0))
    ]


def _set_gradients(network: nn.Module, twin: nn.Module) -> None:
    """The same random gradients for both networks, each its own copy."""
    torch.manual_seed(0)
    for parameter, copied in zip(network.parameters(), twin.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter) * GRADIENT_STD
        copied.grad = parameter.grad.clone()


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that reach torch's dispatcher from Python."""

    count: int = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _count_operations(optimizer: Optimizer) -> int:
    counting: Any = _Counting()  # type: ignore[no-untyped-call]
    with counting:
        optimizer.step()
    return int(counting.count)
