"""Optimizers by name. The signature of a factory holds its defaults; its docstring opens with formula and source."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from dnt.lookup import lookup
from dnt.optim.groups import param_groups
from dnt.optim.msgdw import MSGDW


def adamw(
    params: Any, lr: float = 3e-3, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr m / (sqrt(v) + eps), m and v averages of g and g^2

    1711.05101; torch.optim.AdamW.
    """
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, betas=betas)


def msgdw(
    params: Any, lr: float = 0.1, weight_decay: float = 1e-4, momentum: float = 0.9, nesterov: bool = False
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr m, m <- mu m + g

    2507.17501, 1711.05101; dnt.MSGDW on torch.optim.SGD.
    """
    return MSGDW(params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": adamw,
    "msgdw": msgdw,
}


def build_optimizer(name: str, model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer `name` over the model's decay groups.

    Of `options` it takes those in its signature that are not None; the others have its defaults.
    """
    factory = lookup(OPTIMIZERS, name, "optimizer")
    known = {k: p.default for k, p in signature(factory).parameters.items() if k != "params"}
    chosen = known | {k: v for k, v in options.items() if k in known and v is not None}
    return factory(param_groups(model, chosen["weight_decay"]), **chosen)
