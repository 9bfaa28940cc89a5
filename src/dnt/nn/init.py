"""Every initialization rule. A parameter that no rule claims is an error.

Matrices, embeddings, the kernel of patches and the class token are N(0, std), gains what they say (those of norms 1),
biases 0. GPT-2 divides the last matrix of every branch, W_o and W_2, by sqrt(2 depth), so that 2 depth branches add up
to the size of one. A MidNorm undoes that factor and only brings the branch nearer to its eps, hence two rules for the
blocks:

    dnt    divide where no MidNorm follows (the same as gpt2 for every placement without MidNorm)
    gpt2   divide always

The others are those of the methods that prescribe them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dnt.lookup import lookup
from dnt.nn.gains import Affine, Gain
from dnt.nn.layers import ClassToken, Sublayer, SwiGLU
from dnt.nn.norms import Shift
from dnt.nn.placement import BY_DEPTH, placement_named


@torch.no_grad()
def initialize(model: Any, config: Any) -> None:
    """Set every parameter of a GPT or ViT, in place, from torch's global random state."""
    claimed: set[nn.Parameter] = set()
    for module in model.modules():
        match module:
            case nn.Linear() | nn.Embedding() | nn.Conv2d() | nn.Conv3d() | ClassToken():
                if module.weight not in claimed:  # a tied head is the embedding, already drawn
                    nn.init.normal_(module.weight, std=config.init_std)
            case Gain():
                nn.init.constant_(module.weight, module.start)
            case nn.LayerNorm() | nn.RMSNorm() | nn.BatchNorm1d() | Affine():
                nn.init.ones_(module.weight)
            case Shift():
                pass
            case _:
                continue
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
        claimed.update(module.parameters(recurse=False))
    for block in model.blocks:
        lookup(INITS, block.placement.prescribes.init or config.init, "initialization")(block, config.depth)
    if rule := ENDS.get(placement_named(config.placement).prescribes.init):
        rule(model)
    unclaimed = [name for name, parameter in model.named_parameters() if parameter not in claimed]
    if unclaimed:
        raise ValueError(f"no initialization rule for {', '.join(unclaimed)}; add one to dnt.nn.init.initialize.")


def divided(block: nn.Module, depth: int, all_of_them: bool) -> None:
    for sublayer in block.children():
        if isinstance(sublayer, Sublayer) and (all_of_them or not sublayer.slots.mid):
            sublayer.f.out.weight.div_(math.sqrt(2 * depth))


def dnt(block: nn.Module, depth: int) -> None:
    divided(block, depth, all_of_them=False)


def gpt2(block: nn.Module, depth: int) -> None:
    divided(block, depth, all_of_them=True)


def plain(block: nn.Module, depth: int) -> None:
    """N(0, std) throughout."""


def matrices(block: Any) -> dict[str, Tensor]:
    """Views of the matrices of a block of sublayers: q, k, v, o, 1, with swiglu the gate too, 2."""
    attn, mlp = block.attn.f, block.mlp.f
    width = attn.qkv.weight.shape[0] // (attn.heads + 2 * attn.kv_heads)
    q, k, v = attn.qkv.weight.split([attn.heads * width, attn.kv_heads * width, attn.kv_heads * width])
    gated = isinstance(mlp.activation, SwiGLU)
    up = dict(zip(("gate", "1"), mlp.up.weight.chunk(2), strict=True)) if gated else {"1": mlp.up.weight}
    return {"q": q, "k": k, "v": v, "o": attn.out.weight, **up, "2": mlp.out.weight}


def xavier(block: nn.Module, gain: float) -> None:
    """Xavier's normal, sqrt(2 / (in + out)), times a gain for all but W_q and W_k."""
    for name, matrix in matrices(block).items():
        nn.init.xavier_normal_(matrix, gain=1.0 if name in ("q", "k") else gain)


def deepnorm(block: nn.Module, depth: int) -> None:
    """2203.00555, of a model with one stack."""
    xavier(block, BY_DEPTH["(8L)^(-1/4)"](1, depth))


def sub_ln(block: nn.Module, depth: int) -> None:
    """2210.06423, of a model with one stack."""
    xavier(block, BY_DEPTH["sqrt(ln 2L)"](1, depth))


def spectral(block: nn.Module, depth: int) -> None:
    """Xavier's normal over its largest singular value (2304.09856)."""
    xavier(block, 1.0)
    for matrix in matrices(block).values():
        if not matrix.is_meta:
            matrix.div_(torch.linalg.matrix_norm(matrix, 2))


def fixup(block: nn.Module, depth: int) -> None:
    """1901.09321: the last matrix of each branch 0, the others He's over sqrt(2 depth), the number of branches."""
    for name, matrix in matrices(block).items():
        if name in ("o", "2"):
            nn.init.zeros_(matrix)
        else:
            nn.init.normal_(matrix, std=math.sqrt(2 / matrix.shape[1] / (2 * depth)))


def ngpt(block: Any, depth: int) -> None:
    """N(0, 1 / sqrt(D)), whose lengths the unit weights then undo (2410.01131)."""
    for matrix in matrices(block).values():
        nn.init.normal_(matrix, std=block.attn.f.qkv.in_features**-0.5)


def sas(block: Any, depth: int) -> None:
    """2311.01906: no queries, and values that are the features; N(0, std) else."""
    projections = block.attn.f.qkv
    q, _ = projections.qk.weight.chunk(2)
    nn.init.zeros_(q)
    if projections.first:
        nn.init.zeros_(projections.v.matrix.weight)


def unit_ends(model: Any) -> None:
    """2410.01131: embeddings and head as the matrices of blocks."""
    modules = [module for modules in model.ends.values() for module in modules if not isinstance(module, nn.Identity)]
    for weight in dict.fromkeys(module.weight for module in modules):  # a tied head is the embedding
        nn.init.normal_(weight, std=model.config.stream**-0.5)


def without_head(model: Any) -> None:
    """1901.09321: the head 0, but a tied one, which is the embedding."""
    if not getattr(model.config, "tie_embeddings", False):
        nn.init.zeros_(model.head.weight)


INITS: dict[str, Callable[[nn.Module, int], None]] = {  # of a block, and the number of blocks
    "dnt": dnt,
    "gpt2": gpt2,
    "plain": plain,
    "deepnorm": deepnorm,
    "sub-ln": sub_ln,
    "spectral": spectral,
    "fixup": fixup,
    "ngpt": ngpt,
    "sas": sas,
}
ENDS: dict[str, Callable[[Any], None]] = {  # what the same rules do to the rest of a model
    "fixup": without_head,
    "ngpt": unit_ends,
}
