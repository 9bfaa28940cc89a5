"""Attention, feed-forward, and the one formula that places norms around them."""
# B batch, T tokens, D width, H heads, K = D // H

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnt.nn.norms import MakeNorm
from dnt.nn.placement import Placement, Slots

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {  # the names are those of config.ACTIVATIONS
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


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
    """Causal self-attention W_o softmax(q k^T / sqrt(K)) v; with QKNorm each head's q and k are normalized over K."""

    def __init__(self, dim: int, heads: int, qk_norm: MakeNorm | None, bias: bool, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.q_norm = qk_norm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(dim // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = (t.transpose(-2, -3) for t in (self.q_norm(q), self.k_norm(k), v))
        if cache is not None:
            k, v = cache.extend(k, v)
            assert q.shape[-2] in (1, k.shape[-2]), "after a cache, one token at a time"
        # On CPUs the bfloat16 backward of scaled_dot_product_attention is three times slower than float32's.
        dtype = v.dtype if v.is_cuda else torch.promote_types(v.dtype, torch.float32)
        with torch.autocast(v.device.type, enabled=False):
            heads_BHTK = F.scaled_dot_product_attention(
                q.to(dtype),
                k.to(dtype),
                v.to(dtype),
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=q.shape[-2] == k.shape[-2],  # a single token after a cache sees all that came before
            )
        return self.out(heads_BHTK.transpose(-2, -3).flatten(-2))


class MLP(nn.Module):
    """W_2 act(W_1 x)."""

    def __init__(self, dim: int, hidden: int, activation: str, bias: bool):
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.activation = ACTIVATION_MODULES[activation]()
        self.out = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.out(self.activation(self.up(x_BTD)))


class Sublayer(nn.Module):
    """post(skip x + mid(f(pre(x)))); dropout acts after mid, since a dropped branch must not be normalized back."""

    def __init__(self, f: Attention | MLP, slots: Slots, norm: MakeNorm, dim: int, dropout: float):
        super().__init__()
        self.slots = slots
        self.pre = norm(dim) if slots.pre else nn.Identity()
        self.f = f
        self.mid = norm(dim) if slots.mid else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.post = norm(dim) if slots.post else nn.Identity()

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        branch = self.drop(self.mid(self.f(self.pre(x_BTD), **context)))
        return self.post(torch.add(branch, x_BTD, alpha=self.slots.skip))


class Block(nn.Module):
    """Attention, then feed-forward, each in the norms that the placement gives it."""

    def __init__(self, placement: Placement, norm: MakeNorm, dim: int, attn: Attention, mlp: MLP, dropout: float):
        super().__init__()
        self.attn = Sublayer(attn, placement.attn, norm, dim, dropout)
        self.mlp = Sublayer(mlp, placement.mlp, norm, dim, dropout)

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        return self.mlp(self.attn(x_BTD, **context))
