"""Rotary positions, grouped heads, SwiGLU, dropped branches, padding, and what is computed again instead of kept."""

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3Config, Qwen3ForCausalLM

import dnt
from dnt.nn import gpt as gpt_file
from dnt.nn.layers import DropPath, KeyValueCache, SwiGLU, rotate, rotation
from tests.dnt.test_gpt import build, randomize

MODERN = {"positions": "rope", "kv_heads": 2, "activation": "swiglu", "tie_embeddings": False, "placement": "pre-ln"}
VARIANTS = [
    {"positions": "rope"}, {"kv_heads": 1}, {"kv_heads": 2}, {"activation": "swiglu", "mlp_ratio": 8 / 3},
    MODERN, MODERN | {"placement": "dnt", "bias": True},
]  # fmt: skip
variants = pytest.mark.parametrize("fields", VARIANTS, ids=str)


# --- equal to something independent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("qk", [False, True])
def test_rope_grouped_heads_and_swiglu_equal_llama_and_with_qknorm_qwen3(qk):
    shape = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 8}
    rest = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
    make, config = (Qwen3ForCausalLM, Qwen3Config) if qk else (LlamaForCausalLM, LlamaConfig)
    theirs = randomize(make(config(**shape, **heads, **rest)).eval())
    ours = build(**MODERN | {"placement": "s2" if qk else "pre-ln"}).eval()
    pairs = {"tokens": theirs.model.embed_tokens, "final_norm": theirs.model.norm, "head": theirs.lm_head}
    with torch.no_grad():
        for name, module in pairs.items():
            getattr(ours, name).weight.copy_(module.weight)
        for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
            a, m = layer.self_attn, layer.mlp
            block.attn.f.qkv.weight.copy_(torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]))
            block.attn.f.out.weight.copy_(a.o_proj.weight)
            block.mlp.f.up.weight.copy_(torch.cat([m.gate_proj.weight, m.up_proj.weight]))
            block.mlp.f.out.weight.copy_(m.down_proj.weight)
            block.attn.pre.weight.copy_(layer.input_layernorm.weight)
            block.mlp.pre.weight.copy_(layer.post_attention_layernorm.weight)
            if qk:
                block.attn.f.q_norm.weight.copy_(a.q_norm.weight)
                block.attn.f.k_norm.weight.copy_(a.k_norm.weight)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    tokens = torch.randint(0, 13, (3, 8))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_rotation_equals_transformers():
    x = torch.randn(2, 3, 5, 8)
    positions = torch.tensor([0, 1, 2, 7, 100])
    angles = positions[:, None] * 50.0 ** (-torch.arange(0, 8, 2) / 8)
    cos, sin = (f(torch.cat([angles, angles], -1))[None] for f in (torch.cos, torch.sin))
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rotate(x, rotation(positions, 8, 50.0)), expected)


def test_logits_with_rope_depend_on_distances_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind()

    def product(i: int, j: int) -> torch.Tensor:
        return (rotate(q, rotation(torch.tensor([i]), 8, 1e4)) * rotate(k, rotation(torch.tensor([j]), 8, 1e4))).sum()

    torch.testing.assert_close(product(3, 1), product(103, 101), rtol=1e-5, atol=1e-6)
    assert not torch.isclose(product(3, 1), product(3, 2))


def test_grouped_heads_equal_full_heads_that_repeat_their_keys_and_values():
    grouped, full = build(kv_heads=2).double(), build().double()
    state = grouped.state_dict()
    for name in [name for name in state if "qkv" in name]:
        q, k, v = state[name].split([16, 8, 8])
        repeated = [t.unflatten(0, (2, 4)).repeat_interleave(2, dim=0).flatten(0, 1) for t in (k, v)]
        state[name] = torch.cat([q, *repeated])
    full.load_state_dict(state)
    tokens = torch.randint(0, 13, (2, 8))
    torch.testing.assert_close(grouped(tokens), full(tokens))


def test_swiglu_is_its_formula():
    x = torch.randn(3, 10)
    torch.testing.assert_close(SwiGLU()(x), timm.layers.SwiGLU(5, 5).act(x[:, :5]) * x[:, 5:])
    torch.testing.assert_close(SwiGLU()(x), x[:, :5] * torch.sigmoid(x[:, :5]) * x[:, 5:])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(20_000, 2, 3))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 1 / 0.75]))
    assert torch.equal(out.amax((1, 2)), out.amin((1, 2))) and out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(DropPath(0.25).eval()(out), out)


def test_drop_path_rises_linearly_with_depth_as_in_timm():
    model = build(depth=4, drop_path=0.3)
    expected = timm.layers.calculate_drop_path_rates(0.3, 4)
    assert [block.mlp.drop[1].p for block in model.blocks] == pytest.approx(expected)


def test_a_dropped_branch_is_not_normalized_back():
    model = build(placement="dnt", drop_path=0.999_999).train()
    x = torch.randn(2, 8, 16)
    assert torch.equal(model.blocks[-1](x), x)


# --- every variant --------------------------------------------------------------------------------------------------


@variants
def test_every_variant_overfits_one_batch(fields):
    model = build(**fields, init_std=0.2)
    tokens = torch.randint(0, 13, (4, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4


@variants
def test_parameter_count_in_closed_form(fields):
    model = build(**fields)
    assert dnt.nn.config.gpt_parameters(model.config) == sum(p.numel() for p in model.parameters())


@variants
def test_cached_generation_equals_recomputing_every_token(fields):
    model = randomize(build(**fields)).eval()
    start = torch.randint(0, 13, (2, 3))
    slow = start
    for _ in range(12):
        slow = torch.cat([slow, model(slow[:, -8:])[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(start, 12, temperature=0), slow)


@variants
def test_several_tokens_after_a_cache_see_what_came_before_and_no_later_one(fields):
    model = randomize(build(**fields)).double().eval()
    tokens = torch.randint(0, 13, (2, 8))
    caches = [KeyValueCache() for _ in model.blocks]
    parts = [model(part, caches) for part in tokens.split([3, 4, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fields", [{}, *VARIANTS], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_sequence_has_the_logits_of_the_sequence_itself(fields, side):
    model = randomize(build(**fields)).double().eval()
    tokens = torch.randint(0, 13, (2, 8))
    real = torch.ones(2, 8, dtype=torch.bool)
    where = slice(3, None) if side == "left" else slice(None, 5)
    real[1] = False
    real[1, where] = True
    padded = model(tokens, real_BS=real)
    torch.testing.assert_close(padded[1, where], model(tokens[1:, where])[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(padded[0], model(tokens)[0], rtol=1e-6, atol=1e-6)
    assert padded.isfinite().all()
    caches = [KeyValueCache() for _ in model.blocks]
    parts = [
        model(tokens[:, :6], caches, real[:, :6]),
        *(model(tokens[:, i : i + 1], caches, real[:, : i + 1]) for i in (6, 7)),
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], padded[real], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ({"kv_heads": 0}, "kv_heads=0 does not divide heads=4"),
        ({"positions": "rope", "dim": 12}, "the head width dim / heads = 3 must be even"),
        ({"positions": "rotary"}, "unknown positions 'rotary'. Did you mean"),
        ({"drop_path": 1.0}, "drop_path is 1.0; it must be in [0, 1)."),
    ],
)
def test_bad_configurations_name_what_was_received_and_the_fix(fields, message):
    with pytest.raises(ValueError) as error:
        build(**fields)
    assert message in str(error.value)


# --- what is computed again instead of kept -------------------------------------------------------------------------


def gradients(model: dnt.GPT, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(5)  # of dropout
    loss = model.loss(tokens, targets)
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def saved_elements(model: dnt.GPT, tokens: torch.Tensor) -> list[int]:
    """Elements of each tensor that the forward pass keeps for the backward pass."""
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(tokens, tokens)
    return kept


@pytest.mark.parametrize("tie", [True, False])
def test_a_chunked_loss_equals_cross_entropy_on_all_logits(monkeypatch, tie):
    model = build(tie_embeddings=tie).double()
    tokens, targets = torch.randint(0, 13, (2, 3, 8)).unbind()
    targets[1, 5:] = -1
    whole = gradients(model, tokens, targets)
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(whole[0], expected.detach())
    monkeypatch.setattr(gpt_file, "MOST_LOGITS", 13 * 5)  # chunks of five tokens, the last of four
    torch.testing.assert_close(gradients(model, tokens, targets), whole)


@torch.no_grad()
def test_the_losses_of_targets_are_cross_entropies_in_chunks_too(monkeypatch):
    model, tokens = randomize(build()), torch.randint(0, 13, (3, 8))
    targets = tokens.roll(1, 1)
    targets[1, 5:] = -1
    expected = -model(tokens).log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets >= 0)
    torch.testing.assert_close(model.losses(tokens, targets), expected)
    torch.testing.assert_close(expected.sum() / (targets >= 0).sum(), model.loss(tokens, targets))
    monkeypatch.setattr(gpt_file, "MOST_LOGITS", 13 * 5)
    torch.testing.assert_close(model.losses(tokens, targets), expected)


def test_a_chunked_loss_keeps_no_logits(monkeypatch):
    model, tokens = build(vocab_size=500), torch.randint(0, 13, (8, 8))
    assert max(saved_elements(model, tokens)) >= 64 * 500
    monkeypatch.setattr(gpt_file, "MOST_LOGITS", 500 * 8)
    assert max(saved_elements(model, tokens)) < 500 * 17, "at most the embedding, 500 x 16"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_blocks_changes_no_gradient_and_keeps_less(dropout):
    model, tokens = build(dropout=dropout, drop_path=dropout).train(), torch.randint(0, 13, (4, 8))
    kept = gradients(model, tokens, tokens), sum(saved_elements(model, tokens))
    model.recompute = True
    again = gradients(model, tokens, tokens), sum(saved_elements(model, tokens))
    torch.testing.assert_close(again[0], kept[0], rtol=0, atol=0)
    assert again[1] < 0.5 * kept[1]


def test_symbols_bound_what_generate_draws():
    model = randomize(build()).eval()
    drawn = model.generate(torch.zeros(500, 1, dtype=torch.int64), 3, symbols=4)
    assert set(drawn.unique().tolist()) == {0, 1, 2, 3}
