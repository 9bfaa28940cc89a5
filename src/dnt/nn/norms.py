"""Normalizations over the last axis. The first docstring line is the formula, the second its source.

Each computes in the dtype of its gain, which mixed precision keeps in float32.
"""

import math
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnt.lookup import lookup
from dnt.nn.batch_norms import BatchNorm, PowerNorm, PRepBN, UnifiedNorm
from dnt.nn.gains import Affine, Gain

PARTIAL = 0.0625  # of the features: those of which pRMSNorm takes the mean square


class MakeNorm(Protocol):
    """What a model needs of a norm: the module that normalizes the last axis, `dim` wide."""

    def __call__(self, dim: int) -> nn.Module: ...


class LayerNorm(nn.LayerNorm):
    """y = g * (x - mean(x)) / sqrt(var(x) + eps) + b

    1607.06450. x (..., dim).
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, eps=eps, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class RMSNorm(nn.RMSNorm):
    """y = g * x / sqrt(mean(x^2) + eps)

    1910.07467. x (..., dim).
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


class PRMSNorm(RMSNorm):
    """y = g * x / sqrt(mean(x_1^2, ..., x_k^2) + eps), k = 6.25% of the features

    1910.07467. x (..., dim). At least one feature. eps stands in the root, as in RMSNorm; the authors' code divides by
    root + eps.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, eps)
        self.seen = max(1, int(PARTIAL * dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        square = x[..., : self.seen].square().mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(square + self.eps))  # type: ignore[operator]  # eps is given


class ScaleNorm(Gain):
    """y = g * x / ||x||, a scalar g that begins at sqrt(d)

    1910.05895. x (..., dim). ||x|| is at least eps.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(1, start=math.sqrt(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.normalize(x.to(self.weight.dtype), dim=-1, eps=self.eps))


class CRMSNorm(RMSNorm):
    """y = g * x / sqrt((sum(x^2) + sum(x)^2) / d + eps), d = features + 1

    2305.14858. x (..., dim): all but the last of d features of mean zero, so that the last is -sum(x); it is neither
    stored nor computed. `dim` is the number of those stored.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        squares = x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()
        d = x.shape[-1] + 1
        return self.weight * (x * torch.rsqrt(squares / d + self.eps))  # type: ignore[operator]  # eps is given


class DyT(Affine):
    """y = g * tanh(alpha x) + b, a scalar alpha that begins at 0.5

    2503.10622. x (..., dim). Divides by nothing, so eps says nothing. The authors begin large language models with
    other alphas.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, bias)
        self.alpha = Gain(1, start=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(torch.tanh(self.alpha(x.to(self.weight.dtype))))


class CenterNorm(Affine):
    """y = g * d / (d - 1) * (x - mean(x)) + b

    2304.09856. x (..., dim). Divides by nothing that depends on x, so eps says nothing.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        x, d = x.to(self.weight.dtype), x.shape[-1]
        return self.affine(d / (d - 1) * (x - x.mean(-1, keepdim=True)))


NORMS: dict[str, type[nn.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "shift": Shift,
    "prmsnorm": PRMSNorm,
    "scalenorm": ScaleNorm,
    "crmsnorm": CRMSNorm,
    "dyt": DyT,
    "centernorm": CenterNorm,
    # of a ViT alone (dnt.nn.config.OF_BATCHES)
    "batchnorm": BatchNorm,
    "powernorm": PowerNorm,
    "unifiednorm": UnifiedNorm,
    "prepbn": PRepBN,
}


def norm_of(config: Any, prescribed: str = "") -> MakeNorm:
    """What makes the norms of a model, of its config's norm or of the one that its placement prescribes."""
    return partial(lookup(NORMS, prescribed or config.norm, "norm"), eps=config.norm_eps, bias=config.bias)
