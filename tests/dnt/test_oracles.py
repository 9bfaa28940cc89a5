"""Rows of PLACEMENTS against what others computed, or against their formula written out in float64.

torch's own layer, GPT-2, Llama, Qwen3 and timm's ViT are in test_gpt, test_blocks and test_vit.
"""
# N tokens, D width, H heads, K = D // H; images C x 8 x 8

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Olmo2Config, Olmo2ForCausalLM
from x_transformers import Decoder, Encoder
from x_transformers.x_transformers import DynamicTanh, ScaleNorm

import dnt
from dnt.nn.layers import rotate, rotation
from tests import reference
from tests.dnt import test_gpt, test_vit
from tests.dnt.test_gpt import randomize

SHAPE = {"vocab_size": 13, "context": 8, "depth": 3, "dim": 16, "heads": 4}


def build(placement: str, **fields) -> dnt.GPT:
    return randomize(test_gpt.build(**SHAPE | {"placement": placement} | fields)).double().eval()


def stream(n: int = 8) -> Tensor:
    return torch.randn(n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# --- packages -------------------------------------------------------------------------------------------------------


def fill(ours: nn.Module, attn: nn.Module, up: Tensor, down: Tensor) -> None:
    """The matrices of a block, from x-transformers' or transformers' names."""
    out = getattr(attn, "to_out", None) or attn.o_proj
    names = ("to_q", "to_k", "to_v") if hasattr(attn, "to_q") else ("q_proj", "k_proj", "v_proj")
    with torch.no_grad():
        ours.attn.f.qkv.weight.copy_(torch.cat([getattr(attn, name).weight for name in names]))
        ours.attn.f.out.weight.copy_(out.weight)
        ours.mlp.f.up.weight.copy_(up)
        ours.mlp.f.out.weight.copy_(down)


def x_layers(model: dnt.GPT | dnt.ViT, kind: type[nn.Module] = Decoder, **flags) -> nn.Module:
    """x-transformers' layers of the same shape, random, their matrices in ours."""
    theirs = kind(dim=16, depth=3, heads=4, attn_dim_head=4, ff_no_bias=True, **flags)
    theirs = randomize(theirs).double().eval()
    for block, attn, mlp in zip(model.blocks, theirs.layers[::2], theirs.layers[1::2], strict=True):
        linears = [m for m in mlp[1].modules() if isinstance(m, nn.Linear)]
        fill(block, attn[1], linears[0].weight, linears[1].weight)
    return theirs


@torch.no_grad()
def norms_from(model: dnt.GPT, theirs: nn.Module, places: tuple[str | None, str | None, str | None]) -> None:
    """Their norms before and after a branch and after the sum, into our slots of these names; and the final one."""
    pairs = []
    for i, block in enumerate(model.blocks):
        for sub, (norms, _, _) in zip((block.attn, block.mlp), theirs.layers[2 * i : 2 * i + 2], strict=True):
            pairs += [(getattr(sub, name), norm) for name, norm in zip(places, norms, strict=True) if name and norm]
    if not isinstance(model.final_norm, nn.Identity):
        pairs.append((model.final_norm, theirs.final_norm))
    for ours, norm in pairs:
        if not isinstance(norm, nn.Identity):
            for mine, parameter in zip(ours.parameters(), norm.parameters(), strict=True):
                mine.copy_(parameter)


def through(model: dnt.GPT, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(x)
    return model.final_norm(x)


def test_peri_ln_equals_x_transformers_sandwich():
    model = build("peri-ln", norm="layernorm", norm_eps=1e-5)
    theirs = x_layers(model, sandwich_norm=True)
    norms_from(model, theirs, ("pre", "mid", None))
    x = stream()[None]
    torch.testing.assert_close(through(model, x), theirs(x))


def test_deepnorm_equals_x_transformers_post_norm_with_a_scaled_residual():
    model = build("deepnorm", norm="layernorm", norm_eps=1e-5)
    theirs = x_layers(model, pre_norm=False, scale_residual=True, scale_residual_constant=6**0.25)
    nn.init.ones_
    for _, _, residual in theirs.layers:
        nn.init.ones_(residual.residual_scale)
    norms_from(model, theirs, (None, None, "post"))
    x = stream()[None]
    torch.testing.assert_close(through(model, x), theirs(x))


def test_normformer_equals_x_transformers_head_scale_sandwich_and_scaled_residual():
    model = build("normformer", norm="layernorm", norm_eps=1e-5)
    theirs = x_layers(model, sandwich_norm=True, attn_head_scale=True, ff_post_act_ln=True, scale_residual=True)
    for i, block in enumerate(model.blocks):
        (attn_norms, attn, attn_skip), (mlp_norms, mlp, mlp_skip) = theirs.layers[2 * i : 2 * i + 2]
        mlp_norms[1] = nn.Identity()  # the paper has no norm after the second matrix
        nn.init.ones_(attn_skip.residual_scale)  # and scales the stream of the feed-forward alone
        with torch.no_grad():
            block.attn.f.head_scale.weight.copy_(attn.head_scale_params.flatten())
            block.mlp.f.inner.weight.copy_(next(m for m in mlp.modules() if isinstance(m, nn.LayerNorm)).weight)
            block.mlp.carry.weight.copy_(mlp_skip.residual_scale)
    norms_from(model, theirs, ("pre", "mid", None))
    x = stream()[None]
    torch.testing.assert_close(through(model, x), theirs(x))


@pytest.mark.parametrize(
    ("placement", "fields", "flags", "places"),
    [
        ("pre-ln", {"norm": "scalenorm", "norm_eps": 0.0}, {"use_scalenorm": True}, ("pre", None, None)),
        ("dyt", {}, {"use_dynamic_tanh": True}, ("pre", None, None)),
    ],
)
def test_scalenorm_and_dyt_equal_x_transformers(placement, fields, flags, places):
    model = build(placement, **fields)
    theirs = x_layers(model, **flags)
    norms_from(model, theirs, places)
    x = stream()[None]
    torch.testing.assert_close(through(model, x), theirs(x))
