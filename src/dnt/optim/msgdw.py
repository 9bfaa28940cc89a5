"""Momentum SGD with decoupled weight decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD


class MSGDW(SGD):
    """m <- mu m + g;  w <- (1 - lr wd) w - lr m;  the first m is g

    The decoupled decay of 1711.05101 with the momentum of torch.optim.SGD (nesterov: along g + mu m). State: one
    buffer, 4 bytes a float32 parameter. `params` as for any torch optimizer; every option may differ between groups.

    bound > 0: no step is longer than this share of the parameter's norm, of those that have rows and columns:
    lr m min(1, bound ||w|| / (lr ||m||)); the momentum stays as it is.

    As in torch, with nesterov the gradients are where the step is put together; with a bound too. Nothing as large as
    the parameters is allocated but the momentum.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        bound: float = 0.0,
    ):
        if bound < 0:
            raise ValueError(f"bound is {bound}; it must be at least 0 (none).")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        for group in self.param_groups:
            group.setdefault("bound", bound)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                steps = self.directions(params, group["momentum"], group["nesterov"], bool(group["bound"]))
                if group["bound"]:
                    torch._foreach_mul_(steps, shares(steps, params, group["lr"], group["bound"]))
                torch._foreach_add_(params, steps, alpha=-group["lr"])
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What load_state_dict ends in; a state of an older version has no bound."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("bound", 0.0)

    def directions(self, params: list[Tensor], momentum: float, nesterov: bool, apart: bool) -> list[Tensor]:
        """m, or g + mu m; apart: not the momentum itself, but where the gradients were."""
        gradients = [p.grad for p in params if p.grad is not None]
        if not momentum:
            return gradients
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        if nesterov:
            torch._foreach_add_(gradients, buffers, alpha=momentum)
        elif apart:
            for gradient, buffer in zip(gradients, buffers, strict=True):  # _foreach_copy_ knows no DTensor
                gradient.copy_(buffer)
        return gradients if nesterov or apart else buffers


def shares(steps: list[Tensor], params: list[Tensor], lr: float, bound: float) -> list[Tensor]:
    """Of each step, with which lr ||step|| <= bound ||p|| if p has rows and columns and is not zero."""
    norms, lengths = torch._foreach_norm(params), torch._foreach_norm(steps)
    return [
        torch.where(norm > 0, (bound * norm / (lr * length)).clamp(max=1), 1.0) if p.ndim >= 2 else norm.new_ones(())
        for p, norm, length in zip(params, norms, lengths, strict=True)
    ]
