"""LaPE: positions that have norms of their own, and join the stream in each attention alone (2212.05262)."""
# B batch, T tokens, D width, E = 2 D

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.layers import Block
from dnt.nn.norms import MakeNorm
from dnt.nn.placement import Placement


def beside(x_BTD: Tensor, position_TD: Tensor) -> Tensor:
    """(x | p)."""
    return torch.cat([x_BTD, position_TD.expand_as(x_BTD)], dim=-1)


class LaPEBlock(Block):
    """p <- N(p); x <- x + attn(N(x) + p); x <- x + mlp(N(x)), of both in one tensor (x | p).

    Each block normalizes the positions of the block before, as in the authors' code; the paper's first version writes
    the norm of the model's own positions in every block.
    """

    streams: ClassVar[int] = 2

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm, layer: int, causal: bool):
        super().__init__(config, placement, norm, layer, causal)
        self.position_norm = norm(config.stream)

    def forward(self, xp_BTE: Tensor, **context: Any) -> Tensor:
        x, p = xp_BTE.chunk(2, dim=-1)
        p = self.position_norm(p)
        branch = self.attn.of(self.attn.normed(x) + p, **context)
        return torch.cat([self.mlp(self.attn.joined(branch, x)), p], dim=-1)


class First(nn.Module):
    """(x | p) -> x."""

    def forward(self, xp_BTE: Tensor) -> Tensor:
        return xp_BTE.chunk(2, dim=-1)[0]


class OfFirst(nn.Module):
    """(x | p) -> (f(x) | p)."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, xp_BTE: Tensor) -> Tensor:
        x, p = xp_BTE.chunk(2, dim=-1)
        return torch.cat([self.f(x), p], dim=-1)
