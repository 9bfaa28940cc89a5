"""Normalizations over the last axis. The first docstring line is the formula, the second its source."""

from typing import Protocol

from torch import Tensor, nn


class MakeNorm(Protocol):
    """What a model needs of a norm: the module that normalizes the last axis, `dim` wide."""

    def __call__(self, dim: int) -> nn.Module: ...


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


NORMS: dict[str, type[nn.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
}
