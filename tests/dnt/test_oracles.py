"""Rows of PLACEMENTS against what others computed, or against their formula written out in float64.

torch's own layer, GPT-2, Llama, Qwen3 and timm's ViT are in test_gpt, test_blocks and test_vit.
"""
# N tokens, D width, H heads, K = D // H; images C x 8 x 8

import math
from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2Config, Gemma2ForCausalLM
from transformers.models.olmo2.modeling_olmo2 import Olmo2Config, Olmo2ForCausalLM
from x_transformers import Decoder

import dnt
from dnt.nn.layers import rotate, rotation
from tests.dnt import test_gpt, test_vit
from tests.dnt.test_gpt import randomize

SHAPE = {"vocab_size": 13, "context": 8, "depth": 3, "dim": 16, "heads": 4}
SHAPE_OF_IMAGES = {"depth": 1, "dim": 16, "heads": 4}
HF = {
    "vocab_size": 13, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 8,
}  # fmt: skip
MODERN = {"positions": "rope", "kv_heads": 2, "activation": "swiglu", "tie_embeddings": False}
KINDS = ("weight", "bias")


def build(placement: str | dnt.Placement, **fields) -> dnt.GPT:
    return randomize(test_gpt.build(**SHAPE | {"placement": placement} | fields)).double().eval()


def stream(n: int = 8) -> Tensor:
    return torch.randn(n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# --- packages -------------------------------------------------------------------------------------------------------


def fill(ours: nn.Module, attn: nn.Module, up: Tensor, down: Tensor) -> None:
    """The matrices of a block, those of attention by x-transformers' or transformers' names."""
    names = ("to_q", "to_k", "to_v", "to_out") if hasattr(attn, "to_q") else ("q_proj", "k_proj", "v_proj", "o_proj")
    *qkv, out = (getattr(attn, name).weight for name in names)
    with torch.no_grad():
        ours.attn.f.qkv.weight.copy_(torch.cat(qkv))
        ours.attn.f.out.weight.copy_(out)
        ours.mlp.f.up.weight.copy_(up)
        ours.mlp.f.out.weight.copy_(down)


def x_layers(model: dnt.GPT, **flags) -> nn.Module:
    """x-transformers' layers of the same shape, random, their matrices in ours."""
    theirs = Decoder(dim=16, depth=3, heads=4, attn_dim_head=4, ff_no_bias=True, norm_add_unit_offset=False, **flags)
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
    torch.testing.assert_close(through(model, x), theirs(x), rtol=1e-5, atol=1e-5)  # their softmax is in float32


def test_cosine_attention_equals_x_transformers_qk_norm():
    own = dnt.Placement(attn=dnt.Slots(pre=True), mlp=dnt.Slots(pre=True), qk="cosine")
    model = build(own, norm="layernorm", norm_eps=1e-5)
    theirs = x_layers(model, attn_qk_norm=True)
    norms_from(model, theirs, ("pre", None, None))
    x = stream()[None]
    torch.testing.assert_close(through(model, x), theirs(x), rtol=1e-5, atol=1e-5)  # their softmax is in float32


def test_deepnorm_equals_x_transformers_post_norm_with_a_scaled_residual():
    model = build("deepnorm", norm="layernorm", norm_eps=1e-5)
    theirs = x_layers(model, pre_norm=False, scale_residual=True, scale_residual_constant=6**0.25)
    for _, _, residual in theirs.layers:
        nn.init.ones_(residual.residual_scale)
    norms_from(model, theirs, (None, None, "post"))
    x = stream()[None]
    torch.testing.assert_close(through(model, x), theirs(x), rtol=1e-5, atol=1e-5)  # their softmax is in float32


def test_normformer_equals_x_transformers_head_scale_sandwich_and_scaled_residual():
    model = build("normformer", norm="layernorm", norm_eps=1e-5)
    theirs = x_layers(model, sandwich_norm=True, attn_head_scale=True, ff_post_act_ln=True, scale_residual=True)
    for i, block in enumerate(model.blocks):
        (_, attn, attn_skip), (mlp_norms, mlp, mlp_skip) = theirs.layers[2 * i : 2 * i + 2]
        mlp_norms[1] = nn.Identity()  # the paper has no norm after the second matrix
        nn.init.ones_(attn_skip.residual_scale)  # and scales the stream of the feed-forward alone
        with torch.no_grad():
            block.attn.f.head_scale.weight.copy_(attn.head_scale_params.flatten())
            block.mlp.f.inner.weight.copy_(mlp.ff[1].gamma)
            block.mlp.carry.weight.copy_(mlp_skip.residual_scale)
    norms_from(model, theirs, ("pre", "mid", None))
    x = stream()[None]
    torch.testing.assert_close(through(model, x), theirs(x), rtol=1e-5, atol=1e-5)  # their softmax is in float32


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"placement": "sub-ln"}, {"scale_attn_norm": True, "scale_mlp_norm": True}),
        ({"placement": "qknorm-layernorm"}, {"qk_norm": True}),
    ],
)
def test_inner_and_head_norms_equal_timms(ours, theirs):
    model = randomize(test_vit.build(**SHAPE_OF_IMAGES | ours, norm="layernorm", bias=True)).double()
    block, norm = model.blocks[0], partial(nn.LayerNorm, eps=1e-6)
    peer = Block(16, 4, qkv_bias=True, norm_layer=norm, **theirs).double()
    names = {
        "norm1": "attn.pre", "attn.qkv": "attn.f.qkv", "attn.q_norm": "attn.f.q_norm", "attn.k_norm": "attn.f.k_norm",
        "attn.norm": "attn.f.inner", "attn.proj": "attn.f.out", "norm2": "mlp.pre", "mlp.fc1": "mlp.f.up",
        "mlp.norm": "mlp.f.inner", "mlp.fc2": "mlp.f.out",
    }  # fmt: skip
    weights = block.state_dict()
    for name in [name for name in weights if name.startswith(("attn.f.q_norm", "attn.f.k_norm"))]:
        weights.setdefault(name.replace("weight", "bias"), torch.zeros(4, dtype=torch.float64))
    mine = {f"{theirs}.{kind}": weights.pop(f"{ours}.{kind}", None) for theirs, ours in names.items() for kind in KINDS}
    peer.load_state_dict({name: tensor for name, tensor in mine.items() if tensor is not None})
    assert not weights, "every weight of ours has its place in theirs"
    x = stream()[None]
    torch.testing.assert_close(block(x), peer(x))


@torch.no_grad()
def test_reordered_equals_olmo_2():
    config = Olmo2Config(**HF, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, rms_norm_eps=1e-6)
    theirs = randomize(Olmo2ForCausalLM(config).eval())
    ours = test_gpt.build(**SHAPE, **MODERN, placement="reordered").eval()
    ours.tokens.weight.copy_(theirs.model.embed_tokens.weight)
    ours.head.weight.copy_(theirs.lm_head.weight)
    ours.final_norm.weight.copy_(theirs.model.norm.weight)
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        mlp = layer.mlp
        fill(block, layer.self_attn, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight)
        block.attn.f.q_norm.norm.weight.copy_(layer.self_attn.q_norm.weight)
        block.attn.f.k_norm.norm.weight.copy_(layer.self_attn.k_norm.weight)
        block.attn.mid.weight.copy_(layer.post_attention_layernorm.weight)
        block.mlp.mid.weight.copy_(layer.post_feedforward_layernorm.weight)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    tokens = torch.randint(0, 13, (3, 8))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_peri_ln_equals_gemma_2_without_its_caps_and_windows():
    """Its gains are 1 + weight, its embeddings are read times sqrt(D), its head is the embedding."""
    config = Gemma2Config(
        **HF, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, rms_norm_eps=1e-6,
        hidden_activation="silu", query_pre_attn_scalar=4, layer_types=["full_attention"] * 3,
        final_logit_softcapping=None, attn_logit_softcapping=None, attn_implementation="eager",
    )  # fmt: skip
    theirs = randomize(Gemma2ForCausalLM(config).eval())
    ours = test_gpt.build(**SHAPE, **MODERN, placement="peri-ln").eval()
    ours.tokens.weight.copy_(4 * theirs.model.embed_tokens.weight)
    ours.head.weight.copy_(theirs.lm_head.weight)
    ours.final_norm.weight.copy_(1 + theirs.model.norm.weight)
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        mlp = layer.mlp
        fill(block, layer.self_attn, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight)
        block.attn.pre.weight.copy_(1 + layer.input_layernorm.weight)
        block.attn.mid.weight.copy_(1 + layer.post_attention_layernorm.weight)
        block.mlp.pre.weight.copy_(1 + layer.pre_feedforward_layernorm.weight)
        block.mlp.mid.weight.copy_(1 + layer.post_feedforward_layernorm.weight)
    tokens = torch.randint(0, 13, (3, 8))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


# --- formulas, one query, head and key at a time --------------------------------------------------------------------


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def heads(x: Tensor, block: nn.Module) -> list[Tensor]:
    """Queries, keys and values, each (H, N, K)."""
    return [(x @ w.T).unflatten(-1, (4, 4)).transpose(0, 1) for w in block.attn.f.qkv.weight.split(16)]


def attend(
    q: Tensor, k: Tensor, v: Tensor, block: nn.Module, scale: float | Tensor = 0.5, relu: bool = False
) -> Tensor:
    """W_o of each head's weighted values, causal; scale 1 / sqrt(K) if not given."""
    rows = []
    for i in range(q.shape[1]):
        joined = []
        for h in range(4):
            scores = torch.stack([scale * q[h, i].dot(k[h, j]) for j in range(i + 1)])
            weights = scores.clamp(min=0) / (i + 1) if relu else scores.exp() / scores.exp().sum()
            joined.append(sum(weights[j] * v[h, j] for j in range(i + 1)))
        rows.append(torch.cat(joined))
    return torch.stack(rows) @ block.attn.f.out.weight.T


def mlp(x: Tensor, block: nn.Module) -> Tensor:
    hidden = x @ block.mlp.f.up.weight.T
    return hidden * (1 + torch.erf(hidden / 2**0.5)) / 2 @ block.mlp.f.out.weight.T


def test_ln_scaling_is_pre_ln_with_norms_over_the_root_of_the_block():
    model, x = build("ln-scaling"), stream()
    out = through(model, x[None])[0]
    for i, b in enumerate(model.blocks, start=1):
        x = x + attend(*heads(rms(x, b.attn.pre.weight) / i**0.5, b), b)
        x = x + mlp(rms(x, b.mlp.pre.weight) / i**0.5, b)
    torch.testing.assert_close(out, rms(x, model.final_norm.weight))


@pytest.mark.parametrize("star", [False, True])
def test_hybridnorm_is_the_papers_formula(star):
    """y = x + attn(N q, N k, N v); out = N(y) + mlp(N(y)): our block normalizes y, then adds mlp to that. The first
    block of HybridNorm* is y = x + attn(N(x)) and y + mlp(N(y)) instead.
    """
    model, x = build("hybridnorm-star" if star else "hybridnorm"), stream()
    out = through(model, x[None])[0]
    for i, b in enumerate(model.blocks):
        pre = star and i == 0
        q, k, v = heads(rms(x, b.attn.pre.weight) if pre else x, b)
        f = b.attn.f
        y = x + attend(rms(q, f.q_norm.weight), rms(k, f.k_norm.weight), rms(v, f.v_norm.weight), b)
        if pre:
            x = y + mlp(rms(y, b.mlp.pre.weight), b)
        else:
            x = rms(y, b.attn.post.weight) + mlp(rms(y, b.attn.post.weight), b)
    torch.testing.assert_close(out, rms(x, model.final_norm.weight))


def test_qknorm_of_henry_is_the_softmax_of_g_times_the_cosine():
    model, x = build("qknorm-henry"), stream()
    b = model.blocks[0]
    q, k, v = heads(rms(x, b.attn.pre.weight), b)
    unit = [t / t.square().sum(-1, keepdim=True).sqrt() for t in (q, k)]
    expected = x + attend(*unit, v, b, scale=b.attn.f.q_norm[1].weight[0])
    torch.testing.assert_close(b.attn(x[None])[0], expected)


def test_the_gain_of_henry_begins_at_log2_of_the_pairs_of_tokens():
    block = test_gpt.build(placement="qknorm-henry", context=8).blocks[0]
    assert block.attn.f.q_norm[1].weight.item() == pytest.approx(math.log2(8**2 - 8))


def test_qknorm_after_the_rotary_positions_normalizes_what_they_turned():
    model, x = build("qknorm-rotary", positions="rope"), stream()
    b, turns = model.blocks[0], rotation(torch.arange(8), 4, 1e4)
    q, k, v = heads(rms(x, b.attn.pre.weight), b)
    q, k = rms(rotate(q, turns), b.attn.f.q_norm.weight), rms(rotate(k, turns), b.attn.f.k_norm.weight)
    torch.testing.assert_close(b.attn(x[None], rotation=turns)[0], x + attend(q, k, v, b))


def test_lipsformer_is_its_formula():
    model, x = build("lipsformer", bias=False), stream()
    out = through(model, x[None])[0]

    def center(x: Tensor, norm: nn.Module) -> Tensor:
        return norm.weight * 16 / 15 * (x - x.mean(-1, keepdim=True))

    for b in model.blocks:
        q, k, v = heads(x, b)
        unit = [t / t.square().sum(-1, keepdim=True).sqrt() for t in (q, k)]
        x = center(x + b.attn.gain.weight * attend(*unit, v, b, scale=10.0), b.attn.post)
        x = center(x + b.mlp.gain.weight * mlp(x, b), b.mlp.post)
    torch.testing.assert_close(out, x)


def test_relu_attention_is_its_formula():
    model, x = build("relu-attention"), stream()
    b = model.blocks[0]
    expected = x + attend(*heads(rms(x, b.attn.pre.weight), b), b, relu=True)
    torch.testing.assert_close(b.attn(x[None])[0], expected)


@pytest.mark.parametrize("in_dims", [2, 3])
def test_dual_patchnorm_normalizes_each_patch_before_and_after_it_is_embedded(in_dims):
    fields = SHAPE_OF_IMAGES | {"in_dims": in_dims, "pool": "mean", "bias": True}
    model = randomize(test_vit.build(**fields, placement="dual-patchnorm", norm="layernorm")).double()
    image, read = test_vit.images_for(model, 1, torch.float64), []
    model.blocks[0].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(image)
    before, after = model.pixel_norm.norm, model.patch_norm
    tokens = []
    for corner in np.ndindex(*[2] * in_dims):
        where = tuple(slice(4 * c, 4 * c + 4) for c in corner)
        pixels = image[0][(slice(None), *where)].flatten()
        pixels = before.weight * (pixels - pixels.mean()) / (pixels.var(correction=0) + 1e-6).sqrt() + before.bias
        token = model.patches.weight.flatten(1) @ pixels + model.patches.bias
        tokens.append(after.weight * (token - token.mean()) / (token.var(correction=0) + 1e-6).sqrt() + after.bias)
    torch.testing.assert_close(read[0][0], torch.stack(tokens) + model.positions.weight)


# --- initializations ------------------------------------------------------------------------------------------------


def matrices(model: dnt.GPT, name: str) -> Tensor:
    """One of q, k, v, o, 1, 2 of all blocks, (L, rows, columns)."""
    if name in "qkv":
        return torch.stack([b.attn.f.qkv.weight.chunk(3)["qkv".index(name)] for b in model.blocks]).detach()
    where = {"o": "attn.f.out", "1": "mlp.f.up", "2": "mlp.f.out"}[name]
    return torch.stack([b.get_submodule(where).weight for b in model.blocks]).detach()


def assert_normal(matrix: Tensor, std: float) -> None:
    """Within four standard errors."""
    n = matrix.numel()
    assert matrix.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))
    assert abs(matrix.mean().item()) < 4 * std / math.sqrt(n)


@pytest.mark.parametrize(
    ("depth", "alpha", "beta"), [(1, 1.1892, 0.5946), (6, 1.8612, 0.3799), (24, 2.6321, 0.2686), (100, 3.7606, 0.1880)]
)
def test_deepnorms_alpha_beta_and_matrices(depth, alpha, beta):
    """(2M)^(1/4) and (8M)^(-1/4) of 2203.00555, to four digits; Xavier's normal times beta for v, o, 1, 2."""
    model = test_gpt.build(placement="deepnorm", depth=depth, dim=32)
    for block in model.blocks:
        assert [block.attn.skip, block.mlp.skip] == pytest.approx([alpha] * 2, abs=5e-5)
    for name, gain in {"q": 1, "k": 1, "v": beta, "o": beta, "1": beta, "2": beta}.items():
        assert_normal(matrices(model, name), gain * math.sqrt(2 / (32 + 128 if name in "12" else 64)))


@pytest.mark.parametrize(("depth", "gamma"), [(1, 0.8326), (6, 1.5764), (24, 1.9675), (100, 2.3018)])
def test_sub_lns_gamma(depth, gamma):
    """sqrt(ln 2L) of 2210.06423, to four digits."""
    model = test_gpt.build(placement="sub-ln", depth=depth, dim=32)
    for name, gain in {"q": 1, "k": 1, "v": gamma, "o": gamma, "1": gamma, "2": gamma}.items():
        assert_normal(matrices(model, name), gain * math.sqrt(2 / (32 + 128 if name in "12" else 64)))


def test_lipsformer_begins_with_matrices_of_largest_singular_value_one_and_branches_over_the_depth():
    model = test_gpt.build(placement="lipsformer", depth=4)
    for name in "qkvo12":
        for matrix in matrices(model, name).numpy():
            assert np.linalg.norm(matrix, 2) == pytest.approx(1, abs=1e-5)
    for block in model.blocks:
        for gain in (block.attn.gain.weight, block.mlp.gain.weight):
            assert torch.equal(gain, torch.full((16,), 0.25))


def test_every_branch_of_fixup_begins_as_zero_and_no_logit_depends_on_the_depth():
    tokens = torch.arange(8)[None]
    shallow, deep = (test_gpt.build(placement="fixup", depth=depth) for depth in (1, 6))
    deep.tokens, deep.positions, deep.head = shallow.tokens, shallow.positions, shallow.head
    assert torch.equal(shallow(tokens), deep(tokens)) and shallow(tokens).abs().max() > 0
    for block in deep.blocks:
        assert not block(stream()[None].float()).sub(stream().float()).any()
    assert not test_gpt.build(placement="fixup", tie_embeddings=False)(tokens).any()
    wide = test_gpt.build(placement="fixup", depth=6, dim=64)
    for name in "qkv1":
        assert_normal(matrices(wide, name), math.sqrt(2 / 64) / math.sqrt(12))


@pytest.mark.parametrize(
    ("placement", "divided"), [("ln-scaling", 1), ("sigma-reparam", 1), ("hybridnorm", math.sqrt(8))]
)
def test_ln_scaling_begins_plain_and_hybridnorm_as_gpt2(placement, divided):
    model = test_gpt.build(placement=placement, depth=4, dim=64)
    for name in "qkvo12":
        assert_normal(matrices(model, name), 0.02 / (divided if name in "o2" else 1))
