"""torch's optimizers without what imports torch's compiler."""

from inspect import unwrap

import torch
from torch import optim


class Uncompiled:
    """A base beside torch's Optimizer, whose methods it takes without their decorators.

    The decorators, which only matter where an optimizer is compiled itself, import torch._dynamo
    at the first call: 1.3 s, half of what a short run spends before its first step.
    """

    add_param_group = unwrap(optim.Optimizer.add_param_group)
    load_state_dict = unwrap(optim.Optimizer.load_state_dict)
    state_dict = unwrap(optim.Optimizer.state_dict)
    zero_grad = unwrap(optim.Optimizer.zero_grad)


class SGD(Uncompiled, optim.SGD):
    step = torch.no_grad()(unwrap(optim.SGD.step))


class Adam(Uncompiled, optim.Adam):
    step = torch.no_grad()(unwrap(optim.Adam.step))


class AdamW(Uncompiled, optim.AdamW):
    step = torch.no_grad()(unwrap(optim.AdamW.step))


class Adagrad(Uncompiled, optim.Adagrad):
    step = torch.no_grad()(unwrap(optim.Adagrad.step))


class Adadelta(Uncompiled, optim.Adadelta):
    step = torch.no_grad()(unwrap(optim.Adadelta.step))
