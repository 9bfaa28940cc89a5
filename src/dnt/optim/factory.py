"""Optimizers by name. The signature of a factory holds its defaults; its docstring opens with formula and source.

A factory takes parameters or groups, as torch's optimizers do; a mixture takes the `model`, to divide it by module.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from dnt.lookup import lookup
from dnt.optim.equilibrium import equilibrium_decay
from dnt.optim.groups import decay_groups, ends_and_rest, param_groups
from dnt.optim.kinds import RATES
from dnt.optim.mixed import Mixed
from dnt.optim.msgdw import MSGDW


def adamw(
    params: Any, lr: float = 3e-3, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr m / (sqrt(v) + eps), m and v averages of g and g^2

    1711.05101; torch.optim.AdamW.
    """
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, betas=betas)


def msgdw(
    params: Any,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    bound: float = 0.0,
    momentum_in_grad: bool = False,
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr m, m <- mu m + g

    2507.17501, 1711.05101; dnt.MSGDW.
    """
    return MSGDW(params, lr, momentum, weight_decay, nesterov, bound, momentum_in_grad)


def msgdw_adamw(
    model: nn.Module,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    bound: float = 0.0,
    adamw_lr: float = 3e-3,
    adamw_weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.Optimizer:
    """adamw for embeddings, positions, class token and head, msgdw for all else

    after 2407.07972. The control that tells whether mSGDW lags behind AdamW in the blocks, or at the rare symbols.
    """
    ends, rest = ends_and_rest(model)
    return Mixed(
        msgdw(decay_groups(rest, weight_decay), lr, weight_decay, momentum, nesterov, bound),
        adamw(decay_groups(ends, adamw_weight_decay), adamw_lr, adamw_weight_decay, betas),
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": adamw,
    "msgdw": msgdw,
    "msgdw-adamw": msgdw_adamw,
}


def build_optimizer(name: str, model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer `name` over all parameters of the model, of which matrices and embeddings decay.

    Of `options` it takes those in its signature that are not None; the others have its defaults. "equilibrium", a
    relative step, takes the place of the weight decay of one with momentum (dnt.optim.equilibrium); "embedding_rate",
    "position_rate", "head_rate" and "gain_rate" are learning rates as multiples of lr.
    """
    factory = lookup(OPTIMIZERS, name, "optimizer")
    members, *known = signature(factory).parameters.values()
    defaults = {option.name: option.default for option in known}
    chosen = defaults | {k: v for k, v in options.items() if k in defaults and v is not None}
    step = options.get("equilibrium")
    if step and "momentum" in chosen:
        chosen["weight_decay"] = equilibrium_decay(step, chosen["lr"], chosen["momentum"])
    rates = {rate: options[rate] for rate in RATES if options.get(rate) is not None}
    if members.name == "model":
        if given := [rate for rate, value in rates.items() if value != 1]:
            raise ValueError(f"{name} has rates of its own; drop {', '.join(given)}.")
        optimizer = factory(model, **chosen)
    else:
        optimizer = factory(param_groups(model, chosen["weight_decay"], chosen["lr"], **rates), **chosen)
    for group in optimizer.param_groups if step else ():
        if "momentum" in group:
            group["equilibrium"] = step
    return optimizer
