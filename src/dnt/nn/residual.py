"""ResiDual: a stream that is normalized after every branch, and beside it one that never is (2304.14802)."""
# B batch, T tokens, D width, E = 2 D

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dnt.nn.layers import Block, Sublayer


class Doubled(nn.Module):
    """x -> (x | x): both streams begin as the embedding."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.cat([x_BTD, x_BTD], dim=-1)


class DualSublayer(Sublayer):
    """(x | d) -> (N(x + u) | d + u) with u = f(x)."""

    def forward(self, xd_BTE: Tensor, **context: Any) -> Tensor:
        x, d = xd_BTE.chunk(2, dim=-1)
        u = self.branch(x, **context)
        return torch.cat([self.joined(u, x), d + u], dim=-1)


class ResiDualBlock(Block):
    """Attention, then feed-forward, of both streams in one tensor (x | d).

    The authors' code has two factors more: x starts at, and d adds up, s times what it does here, so that float16 holds
    the sum (s = 1, or 0.05 with 12 layers). N(d) does not see s but for its eps, so that it is left out, as is
    alpha = 1 of the x that is added to N(d) in the end.
    """

    streams: ClassVar[int] = 2
    sublayer: ClassVar[type[Sublayer]] = DualSublayer


class Joined(nn.Module):
    """(x | d) -> x + N(d)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, xd_BTE: Tensor) -> Tensor:
        x, d = xd_BTE.chunk(2, dim=-1)
        return x + self.norm(d)
