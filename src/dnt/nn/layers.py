"""Attention, feed-forward, and the one formula that places norms around them."""
# B batch, T new tokens, S cached and new ones, D width, H heads, G heads of keys and values, K = D // H

from collections.abc import Callable
from functools import partial
from math import log2, sqrt
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnt.lookup import lookup
from dnt.nn.attention import ATTENTIONS
from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.gains import Gain
from dnt.nn.norms import LayerNorm, MakeNorm, RMSNorm
from dnt.nn.placement import QK_NORMS, Placement, Slots, factor


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


class Unit(nn.Module):
    """scale * x / |x| over the last axis; computes in float32 or wider."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


class AllHeads(nn.Module):
    """A norm over the features of all heads together; x (..., H, K)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(-2)).unflatten(-1, x.shape[-2:])


class HeadGain(Gain):
    """x (..., H, T, K) times a learned number of each head."""

    def forward(self, x_BHTK: Tensor) -> Tensor:
        return self.weight[:, None, None] * x_BHTK


class Times(nn.Module):
    """By a number that is not learned."""

    def __init__(self, number: float):
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return self.number * x


COSINE_SCALE = 10.0  # of 2304.09856's code, and of x-transformers


def qk_norms(kind: bool | str, config: GPTConfig | ViTConfig, norm: MakeNorm) -> tuple[nn.Module, nn.Module]:
    """Those of queries and keys (..., H, K), which attention multiplies and divides by sqrt(K).

    True: the model's norm, of each head. layernorm, rmsnorm: these, of each head. all-heads: the model's norm over all
    heads. unit: g cos(q, k) with one learned g that begins at log2(T^2 - T) (2010.04245). cosine: 10 cos(q, k).
    """
    width = config.head_dim
    if isinstance(kind, str):
        lookup(dict.fromkeys(QK_NORMS), kind, "QKNorm")
    match kind:
        case True:
            return norm(width), norm(width)
        case "layernorm":
            return LayerNorm(width, config.norm_eps, config.bias), LayerNorm(width, config.norm_eps, config.bias)
        case "rmsnorm":
            return RMSNorm(width, config.norm_eps), RMSNorm(width, config.norm_eps)
        case "all-heads":
            return AllHeads(norm(config.dim)), AllHeads(norm((config.kv_heads or config.heads) * width))
        case "unit":
            tokens = max(2, config.tokens)
            return nn.Sequential(Unit(sqrt(width)), Gain(1, start=log2(tokens**2 - tokens))), Unit()
        case "cosine":
            return Unit(COSINE_SCALE * sqrt(width)), Unit()
        case _:
            return nn.Identity(), nn.Identity()


class Attention(nn.Module):
    """Self-attention W_o softmax(q k^T / sqrt(K)) v; if causal, no token sees a later one.

    With QKNorm q and k are normalized, then turned by their rotary positions if there are any, or the other way round.
    inner: a norm before W_o.
    """

    def __init__(
        self,
        config: GPTConfig | ViTConfig,
        placement: Placement,
        norm: MakeNorm,
        causal: bool,
    ):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.dropout, self.causal, self.after_rotary = config.dropout, causal, placement.after_rotary
        width = config.head_dim
        self.qkv = nn.Linear(config.stream, (self.heads + 2 * self.kv_heads) * width, bias=config.bias)
        self.q_norm, self.k_norm = qk_norms(placement.qk, config, norm)
        self.v_norm = norm(width) if placement.v else nn.Identity()
        self.attention = lookup(ATTENTIONS, placement.attention, "attention")
        self.head_scale = HeadGain(self.heads) if placement.head_scale else nn.Identity()
        self.inner = norm(config.dim) if placement.attn.inner else nn.Identity()
        self.out = nn.Linear(config.dim, config.stream, bias=config.bias)

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
        if not self.after_rotary:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.transpose(-2, -3) for t in (q, k, self.v_norm(v).to(v.dtype)))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if self.after_rotary:
            q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.extend(k, v)
        causal = self.causal and mask is None and q.shape[-2] > 1  # a single token sees all that came before
        heads_BHTK = self.attention(q, k, v, causal, mask, self.dropout if self.training else 0.0)
        return self.out(self.inner(self.head_scale(heads_BHTK).transpose(-2, -3).flatten(-2)))


class MLP(nn.Module):
    """W_2 inner(act(W_1 x)); W_1 is twice as high for SwiGLU. inner: a norm, or nothing."""

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm):
        super().__init__()
        high = config.hidden * (2 if config.activation == "swiglu" else 1)
        self.up = nn.Linear(config.stream, high, bias=config.bias)
        self.activation = ACTIVATION_MODULES[config.activation]()
        self.inner = norm(config.hidden) if placement.mlp.inner else nn.Identity()
        self.out = nn.Linear(config.hidden, config.stream, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.out(self.inner(self.activation(self.up(x_BTD))))


class Sublayer(nn.Module):
    """post(skip x + gain mid(f(scale pre(x)))); dropout acts last on the branch, since a dropped one must not be
    normalized back.
    """

    def __init__(self, f: Attention | MLP, slots: Slots, norm: MakeNorm, config: Any, layer: int, drop: nn.Module):
        super().__init__()
        self.slots = slots
        skip, scale = (factor(value, layer, config.depth) for value in (slots.skip, slots.scale))
        gain: nn.Module = nn.Identity()
        if slots.multiplier is not None:
            gain = Gain(1, start=factor(slots.multiplier, layer, config.depth))
        if slots.gain is not None:
            gain = Gain(config.stream, start=factor(slots.gain, layer, config.depth))
        self.pre = norm(config.stream) if slots.pre else nn.Identity()
        self.scale = Times(scale) if scale != 1 else nn.Identity()
        self.f = f
        self.mid = norm(config.stream) if slots.mid else nn.Identity()
        self.gain = gain
        self.drop = drop
        self.carry = Gain(config.stream) if slots.skip_gain else nn.Identity()
        self.skip = skip
        self.post = norm(config.stream) if slots.post else nn.Identity()

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        return self.joined(self.branch(x_BTD, **context), x_BTD)

    def branch(self, x_BTD: Tensor, **context: Any) -> Tensor:
        """What is added to the stream."""
        return self.of(self.normed(x_BTD), **context)

    def normed(self, x_BTD: Tensor) -> Tensor:
        return self.scale(self.pre(x_BTD))

    def of(self, normed_BTD: Tensor, **context: Any) -> Tensor:
        return self.drop(self.gain(self.mid(self.f(normed_BTD, **context))))

    def joined(self, branch_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        return self.post(torch.add(branch_BTD, self.carry(x_BTD), alpha=self.skip))


def dropping(config: GPTConfig | ViTConfig, layer: int) -> nn.Module:
    """Dropout and drop-path of the branches of a block."""
    return nn.Sequential(nn.Dropout(config.dropout), DropPath(config.drop_path * layer / max(1, config.depth - 1)))


class Block(nn.Module):
    """Attention, then feed-forward, each in the norms that the placement gives it; `layer` counts from 0."""

    streams: ClassVar[int] = 1  # of width D, side by side in what the block maps
    sublayer: ClassVar[type[Sublayer]] = Sublayer

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm, layer: int, causal: bool):
        super().__init__()
        self.placement = placement
        drop = dropping(config, layer)
        attn, mlp = Attention(config, placement, norm, causal), MLP(config, placement, norm)
        self.attn = self.sublayer(attn, placement.attn, norm, config, layer, drop)
        self.mlp = self.sublayer(mlp, placement.mlp, norm, config, layer, drop)

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        return self.mlp(self.attn(x_BTD, **context))
