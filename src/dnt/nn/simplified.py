"""Simplified blocks, without skip around attention, W_v and W_o (2311.01906)."""
# B batch, T new tokens, S cached and new ones, D width, H heads, K = D // H

from typing import Any

import torch
from torch import Tensor, nn

from dnt.nn.attention import attention
from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.layers import Attention, Block, HeadGain
from dnt.nn.norms import Gain, MakeNorm
from dnt.nn.placement import Placement


class FirstValues(nn.Module):
    """a x + b W x, of the first block, as in the authors' code; W begins as 0."""

    def __init__(self, width: int):
        super().__init__()
        self.itself, self.gain = Gain(1), Gain(1)
        self.matrix = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.itself(x_BTD) + self.gain(self.matrix(x_BTD))


class IdentityValues(nn.Module):
    """q, k and v in one: W_q x, W_k x, and x itself, or in the first block FirstValues."""

    def __init__(self, config: GPTConfig | ViTConfig, first: bool):
        super().__init__()
        self.qk = nn.Linear(config.dim, 2 * config.dim, bias=config.bias)
        self.v: Any = FirstValues(config.dim) if first else nn.Identity()
        self.first = first

    def forward(self, x_BTD: Tensor) -> Tensor:
        qk = self.qk(x_BTD)
        return torch.cat([qk, self.v(x_BTD).to(qk.dtype)], dim=-1)


class Shaped(nn.Module):
    """(a 1 + b softmax(q k^T / sqrt(K)) - c C) v with C uniform over what a token may see; a, b and c of each head.

    All begin at 1, and queries at 0, so that the sum begins as 1. Arguments as for `attention`; dropout is of the
    softmax, in the authors' code of the sum.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.itself, self.softmax, self.uniform = HeadGain(heads), HeadGain(heads), HeadGain(heads)

    def forward(
        self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, causal: bool, mask: Tensor | None, dropout: float
    ) -> Tensor:
        tokens, seen = q_BHTK.shape[-2], v_BHSK.shape[-2]
        sees = torch.ones(tokens, seen, dtype=torch.bool, device=v_BHSK.device) if mask is None else mask
        sees = sees.tril() if causal else sees
        uniform = (sees / sees.sum(-1, keepdim=True)).to(v_BHSK.dtype)
        return (
            self.itself(v_BHSK[..., seen - tokens :, :])
            + self.softmax(attention(q_BHTK, k_BHSK, v_BHSK, causal, mask, dropout))
            - self.uniform(uniform @ v_BHSK)
        )


class ShapedAttention(Attention):
    """Shaped attention on values that are the features themselves, and without W_o."""

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm, causal: bool, first: bool):
        super().__init__(config, placement, norm, causal)
        self.qkv = IdentityValues(config, first)
        self.attention = Shaped(config.heads)
        self.out = nn.Identity()


class SimplifiedBlock(Block):
    """x <- a A N(x); x <- b x + c mlp(N(x)) with a, b, c learned numbers, c from 0.1 on (SAS)."""

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm, layer: int, causal: bool):
        super().__init__(config, placement, norm, layer, causal)
        self.attn.f = ShapedAttention(config, placement, norm, causal, first=layer == 0)
        self.attn.drop = nn.Dropout(config.dropout)  # without a skip no path can be dropped
        self.mlp.carry = Gain(1)


class ParallelBlock(SimplifiedBlock):
    """x <- a A N(x) + c mlp(N(x)) with one norm and no skip at all (SAS-P)."""

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm, layer: int, causal: bool):
        super().__init__(config, placement, norm, layer, causal)
        self.norm = norm(config.stream)
        self.mlp.carry = nn.Identity()

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        x = self.norm(x_BTD)
        return self.attn.branch(x, **context) + self.mlp.branch(x)
