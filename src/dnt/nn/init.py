"""Every initialization rule. A parameter that no rule claims is an error.

Matrices, embeddings, the kernel of patches and the class token are N(0, std), gains what they say (those of norms 1),
biases 0. GPT-2 divides the last
matrix of every branch, W_o and W_2, by sqrt(2 depth), so that 2 depth branches add up to the size of one. A MidNorm
undoes that factor and only brings the branch nearer to its eps, hence two rules:

    dnt    divide where no MidNorm follows (the same as gpt2 for every placement without MidNorm)
    gpt2   divide always
"""

import math

import torch
from torch import nn

from dnt.nn.gains import Affine, Gain
from dnt.nn.layers import ClassToken, Sublayer


@torch.no_grad()
def initialize(model: nn.Module, depth: int, std: float, rule: str) -> None:
    """Set every parameter of a model with `depth` blocks, in place, from torch's global random state."""
    claimed: set[nn.Parameter] = set()
    for module in model.modules():
        match module:
            case nn.Linear() | nn.Embedding() | nn.Conv2d() | nn.Conv3d() | ClassToken():
                if module.weight not in claimed:  # a tied head is the embedding, already drawn
                    nn.init.normal_(module.weight, std=std)
            case Gain():
                nn.init.constant_(module.weight, module.start)
            case nn.LayerNorm() | nn.RMSNorm() | nn.BatchNorm1d() | Affine():
                nn.init.ones_(module.weight)
            case _:
                continue
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
        claimed.update(module.parameters(recurse=False))
    for sublayer in model.modules():
        if isinstance(sublayer, Sublayer) and (rule == "gpt2" or not sublayer.slots.mid):
            sublayer.f.out.weight.div_(math.sqrt(2 * depth))
    unclaimed = [name for name, parameter in model.named_parameters() if parameter not in claimed]
    if unclaimed:
        raise ValueError(f"no initialization rule for {', '.join(unclaimed)}; add one to dnt.nn.init.initialize.")
