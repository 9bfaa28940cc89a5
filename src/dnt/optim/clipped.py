"""Momentum SGD whose largest gradient entries are cut to a quantile."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SAMPLED = 1 << 20  # entries that a quantile is taken of, at most about


class ClippedSGD(Optimizer):
    """t = the (1 - q) quantile of |g|;  m <- mu m + clip(g, -t, t);  w <- (1 - lr wd) w - lr m

    Coordinate-wise clipping of 2306.00204; q is clip_fraction, a tenth there for SGD. t is one number for all
    parameters, or with per_tensor each has its own (0 where more than 1 - q of a gradient is: of an embedding whose
    symbols did not occur). With on_momentum the momentum is kept whole and what is stepped along is cut:
    m <- mu m + g; w <- (1 - lr wd) w - lr clip(m). Decay and momentum are those of MSGDW, so that with q = 0 it is
    MSGDW. State: one buffer, 4 bytes a float32 parameter.

    Of many entries the quantile is that of a sample, every so-manieth entry, the same ones each time.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        clip_fraction: float = 0.1,
        per_tensor: bool = False,
        on_momentum: bool = False,
    ):
        if not 0 <= clip_fraction < 1:
            raise ValueError(f"clip_fraction is {clip_fraction}; it must be at least 0 (none) and less than 1.")
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "clip_fraction": clip_fraction}
        super().__init__(params, options | {"per_tensor": per_tensor, "on_momentum": on_momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stepped = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not stepped:
            return loss
        fraction, per_tensor, on_momentum = (
            self.defaults[name] for name in ("clip_fraction", "per_tensor", "on_momentum")
        )
        cut = [self.heavy(p, p.grad, group) if on_momentum else p.grad for p, group in stepped]
        if not per_tensor:
            bounds = [quantile(cut, fraction)] * len(cut)
        else:
            bounds = [quantile([tensor], fraction) for tensor in cut]
        for (p, group), tensor, bound in zip(stepped, cut, bounds, strict=True):
            step = tensor.clamp(-bound, bound)
            if not on_momentum:
                step = self.heavy(p, step, group)
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])
        return loss

    def heavy(self, p: Tensor, step: Tensor, group: dict[str, Any]) -> Tensor:
        """mu m + step, which is m then; the step itself without momentum."""
        if not group["momentum"]:
            return step
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"].mul_(group["momentum"]).add_(step)


def quantile(tensors: Sequence[Tensor], fraction: float) -> Tensor:
    """The number that this fraction of all |entries|, rounded down, exceeds or equals from above; () tensor."""
    stride = -(-sum(t.numel() for t in tensors) // SAMPLED)
    entries = torch.cat([sampled(t, stride) for t in tensors]).abs()
    return entries.kthvalue(len(entries) - int(len(entries) * fraction)).values


def sampled(tensor: Tensor, stride: int) -> Tensor:
    """About one entry in `stride`, of all columns: the distance has no factor in common with a row's length."""
    while math.gcd(stride, tensor.shape[-1] if tensor.ndim else 1) > 1:
        stride += 1
    return tensor.flatten()[::stride]
