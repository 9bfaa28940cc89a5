"""nGPT: a stream of unit vectors, and matrices of unit vectors along the width of the model (2410.01131).

U(x) = x / |x|. Each sublayer turns the stream towards what its branch points at: x <- U(x + |a| (U(f(x)) - x)). The
paper's model has activation="swiglu", positions="rope", tie_embeddings=False and no biases; other fields of the config
are honoured as they are given. Learned positions are unit vectors too, and U follows on their sum.
"""
# B batch, T tokens, D width, H heads, K = D // H

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.layers import MLP, Attention, ClassToken, Unit, dropping
from dnt.nn.norms import Gain, MakeNorm
from dnt.nn.placement import Placement


class ScaledGain(Gain):
    """p (init / scale) x with p learned, from `scale` on, so that it begins as init x.

    An optimizer whose steps have the same size for all parameters, as AdamW's have, takes steps of init / scale as
    large in what multiplies x.
    """

    def __init__(self, *shape: int, init: float, scale: float):
        super().__init__(*shape, start=scale)
        self.factor = init / scale

    def value(self) -> Tensor:
        return self.factor * self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.value() * x


class QueryGain(ScaledGain):
    """s^2 q of each head; s is of width H K. The paper multiplies q and k by s each, which gives the same logits, but
    says nothing of heads that share keys.
    """

    def __init__(self, config: GPTConfig | ViTConfig):
        super().__init__(config.dim, init=1.0, scale=config.dim**-0.5)
        self.heads = config.heads

    def forward(self, q_BHTK: Tensor) -> Tensor:
        return self.value().square().unflatten(0, (self.heads, 1, -1)) * q_BHTK


class UnitAttention(Attention):
    """W_o softmax(sqrt(K) (s U(q)) (s U(k))^T) v; U follows the rotary positions."""

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm, causal: bool):
        super().__init__(config, placement, norm, causal)
        self.after_rotary = True
        self.q_norm = nn.Sequential(Unit(config.head_dim), QueryGain(config))  # attention divides by sqrt(K)
        self.k_norm = Unit()


class UnitMLP(MLP):
    """W_2 act(sqrt(D) s W_1 x), with swiglu W_2 (silu(v) u) with v = sqrt(D) s_v W_v x and u = sqrt(D) s_u W_u x.

    Of the activations the paper has swiglu alone.
    """

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm):
        super().__init__(config, placement, norm)
        self.scale = ScaledGain(self.up.out_features, init=1.0, scale=1.0)
        self.root = sqrt(config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.out(self.inner(self.activation(self.root * self.scale(self.up(x_BTD)))))


class Turn(nn.Module):
    """U(x + |a| (U(f(x)) - x)), a (D,); what is dropped is the turn."""

    def __init__(self, f: Attention | MLP, width: int, drop: nn.Module):
        super().__init__()
        self.f, self.unit, self.drop = f, Unit(), drop
        self.rate = ScaledGain(width, init=0.05, scale=width**-0.5)

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        towards = self.unit(self.f(x_BTD, **context)) - x_BTD
        return self.unit(x_BTD + self.drop(self.rate.value().abs() * towards))


class UnitBlock(nn.Module):
    """Attention, then feed-forward, on the unit sphere."""

    def __init__(self, config: GPTConfig | ViTConfig, placement: Placement, norm: MakeNorm, layer: int, causal: bool):
        super().__init__()
        self.placement = placement
        drop = dropping(config, layer)
        self.attn = Turn(UnitAttention(config, placement, norm, causal), config.stream, drop)
        self.mlp = Turn(UnitMLP(config, placement, norm), config.stream, drop)

    def forward(self, x_BTD: Tensor, **context: Any) -> Tensor:
        return self.mlp(self.attn(x_BTD, **context))


class UnitHead(nn.Linear):
    """s_z (W x), with a learned number for each token or class."""

    def __init__(self, width: int, outputs: int, bias: bool):
        super().__init__(width, outputs, bias=bias)
        self.scale = ScaledGain(outputs, init=1.0, scale=width**-0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.scale(super().forward(x_BTD))


@torch.no_grad()
def unit_weights(model: nn.Module) -> None:
    """Divide every matrix by its norms along the width of the model, in place.

    That is the rows of what reads the stream (q, k, v, W_1, the head) and of embeddings, and the columns of what writes
    to it (W_o, W_2, and the kernel of patches, which has a vector of the stream for every pixel).
    """
    for name, module in model.named_modules():
        match module:
            case nn.Conv2d() | nn.Conv3d() | ClassToken():
                axis = 0
            case nn.Linear():
                axis = 0 if name.endswith(".out") else 1
            case nn.Embedding():
                axis = 1
            case _:
                continue
        module.weight.div_(torch.linalg.vector_norm(module.weight, dim=axis, keepdim=True))
