"""Momentum SGD with decoupled weight decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.sgd import SGD, sgd


class MSGDW(SGD):
    """m <- mu m + g;  w <- (1 - lr wd) w - lr m;  the first m is g

    The decoupled decay of 1711.05101 with the momentum of torch.optim.SGD, which does the step (nesterov: along
    g + mu m). State: one buffer, 4 bytes a float32 parameter. `params` as for any torch optimizer; `weight_decay` (wd)
    may differ between groups.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            buffers = [self.state[p].get("momentum_buffer") for p in params]
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            sgd(
                params,
                grads,
                buffers,
                weight_decay=0.0,  # decayed above, decoupled from the gradient
                momentum=momentum,
                lr=lr,
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
            )
            if momentum:
                for p, buffer in zip(params, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer
        return loss
