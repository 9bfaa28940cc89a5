"""Attention, feed-forward, and the one formula that places norms around them."""
# B batch, T new tokens, S cached and new ones, D width, H heads, G heads of keys and values, K = D // H

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnt.nn.attention import attention
from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.norms import MakeNorm
from dnt.nn.placement import Placement, Slots, placement_named


class SwiGLU(nn.Module):
    """silu(a) * b of the two halves of W_1 x (2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {  # the names are those of config.ACTIVATIONS
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "swiglu": SwiGLU,
}


class DropPath(nn.Module):
    """Drop a sample's whole branch with probability p, divide the kept ones by 1 - p (1603.09382)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x_BTD
        keep = torch.rand(x_BTD.shape[0], 1, 1, device=x_BTD.device) >= self.p
        return x_BTD * (keep / (1 - self.p)).to(x_BTD.dtype)


def rotation(positions: Tensor, width: int, base: float) -> Tensor:
    """cos and sin (2, ..., T, K / 2) of the angles position * base^(-2i / K) (2104.09864); positions (..., T)."""
    frequencies = base ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions[..., None].float() * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x_BHTK: Tensor, rotation: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + K/2}) turned by its angle; computes in float32 or wider."""
    cos, sin = rotation.unsqueeze(-3)  # the same for all heads
    a, b = x_BHTK.to(torch.promote_types(x_BHTK.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class ClassToken(nn.Module):
    """One learned token before the others."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.cat([self.weight.expand(len(x_BTD), 1, -1), x_BTD], dim=1)


class KeyValueCache:
    """The keys and values of the tokens one attention layer has seen, each (B, H, t, K)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; all so far."""
        if self.keys is not None and self.values is not None:
            k, v = torch.cat([self.keys, k], dim=-2), torch.cat([self.values, v], dim=-2)
        self.keys, self.values = k, v
        return k, v


class Attention(nn.Module):
    """Self-attention W_o softmax(q k^T / sqrt(K)) v; if causal, no token sees a later one.

    With QKNorm each head's q and k are normalized over K, then turned by their rotary positions if there are any.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        qk_norm: MakeNorm | None,
        bias: bool,
        dropout: float,
        causal: bool = True,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.dropout, self.causal = heads, kv_heads, dropout, causal
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * (dim // heads), bias=bias)
        self.q_norm = qk_norm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(dim // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x_BTD: Tensor,
        cache: KeyValueCache | None = None,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """rotation: of the new tokens. mask (T, S) or (B, 1, T, S): which keys each may see, causal or not."""
        qkv = self.qkv(x_BTD).unflatten(-1, (self.heads + 2 * self.kv_heads, -1))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=-2)
        q, k, v = (t.transpose(-2, -3) for t in (self.q_norm(q), self.k_norm(k), v))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        causal = self.causal and mask is None and q.shape[-2] > 1  # a single token sees all that came before
        heads_BHTK = attention(q, k, v, causal, mask, self.dropout if self.training else 0.0)
        return self.out(heads_BHTK.transpose(-2, -3).flatten(-2))


class MLP(nn.Module):
    """W_2 act(W_1 x); W_1 is twice as high for SwiGLU."""

    def __init__(self, dim: int, hidden: int, activation: str, bias: bool):
        super().__init__()
        self.up = nn.Linear(dim, hidden * (2 if activation == "swiglu" else 1), bias=bias)
        self.activation = ACTIVATION_MODULES[activation]()
        self.out = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.out(self.activation(self.up(x_BTD)))


class Sublayer(nn.Module):
    """post(skip x + mid(f(pre(x)))); dropout acts after mid, since a dropped branch must not be normalized back."""

    def __init__(self, f: Attention | MLP, slots: Slots, norm: MakeNorm, dim: int, drop: nn.Module):
        super().__init__()
        self.slots = slots
        self.pre = norm(dim) if slots.pre else nn.Identity()
        self.f = f
        self.mid = norm(dim) if slots.mid else nn.Identity()
        self.drop = drop
        self.post = norm(dim) if slots.post else nn.Identity()

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        branch = self.drop(self.mid(self.f(self.pre(x_BTD), **context)))
        return self.post(torch.add(branch, x_BTD, alpha=self.slots.skip))


class Block(nn.Module):
    """Attention, then feed-forward, each in the norms that the placement gives it."""

    def __init__(self, placement: Placement, norm: MakeNorm, dim: int, attn: Attention, mlp: MLP, drop: nn.Module):
        super().__init__()
        self.attn = Sublayer(attn, placement.attn, norm, dim, drop)
        self.mlp = Sublayer(mlp, placement.mlp, norm, dim, drop)

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        return self.mlp(self.attn(x_BTD, **context))


def stack(config: GPTConfig | ViTConfig, norm: MakeNorm, causal: bool) -> nn.ModuleList:
    """The blocks of a model."""
    placement = placement_named(config.placement)
    return nn.ModuleList(
        Block(
            placement,
            norm,
            config.dim,
            Attention(
                config.dim,
                config.heads,
                config.kv_heads or config.heads,
                norm if placement.qk else None,
                config.bias,
                config.dropout,
                causal,
            ),
            MLP(config.dim, config.hidden, config.activation, config.bias),
            nn.Sequential(nn.Dropout(config.dropout), DropPath(config.drop_path * i / max(1, config.depth - 1))),
        )
        for i in range(config.depth)
    )
