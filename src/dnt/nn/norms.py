"""Normalizations over the last axis. The first docstring line is the formula, the second its source."""

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dnt.lookup import lookup


class MakeNorm(Protocol):
    """What a model needs of a norm: the module that normalizes the last axis, `dim` wide."""

    def __call__(self, dim: int) -> nn.Module: ...


class Gain(nn.Module):
    """x times learned numbers, of any shape that goes with that of x, which all begin at `start`."""

    def __init__(self, *shape: int, start: float = 1.0):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.full(shape, start))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class LayerNorm(nn.LayerNorm):
    """y = g * (x - mean(x)) / sqrt(var(x) + eps) + b

    1607.06450. x (..., dim). Computes in the dtype of its gain, which mixed precision keeps in float32.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, eps=eps, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class RMSNorm(nn.RMSNorm):
    """y = g * x / sqrt(mean(x^2) + eps)

    1910.07467. x (..., dim). Computes in the dtype of its gain, which mixed precision keeps in float32.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, eps=eps)  # no bias: RMSNorm has none

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Shift(nn.Module):
    """y = x + b

    1901.09321 (Fixup), one learned number where others have a norm.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


NORMS: dict[str, type[nn.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "shift": Shift,
}


def norm_of(config: Any, prescribed: str = "") -> MakeNorm:
    """What makes the norms of a model, of its config's norm or of the one that its placement prescribes."""
    return partial(lookup(NORMS, prescribed or config.norm, "norm"), eps=config.norm_eps, bias=config.bias)
