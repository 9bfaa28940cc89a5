"""Jacobians: closed forms against automatic differentiation, Golub-Kahan against the whole matrix."""

import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dnt.analysis import jacobian
from dnt.analysis.jacobian import (
    attention_jacobian,
    evaluating,
    jacobian_spread,
    layernorm_jacobian,
    midnorm_jacobian,
    model_jacobians,
    rmsnorm_jacobian,
    singular_values,
    spread_of,
)
from dnt.experiments.statements import STATED
from tests.conftest import tiny_model

D = 7
same = partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.3])
def test_closed_forms_of_the_norms_equal_automatic_differentiation(eps):
    x, gain = random(D), random(D, seed=1)
    same(rmsnorm_jacobian(x, gain, eps), jacrev(lambda x: F.rms_norm(x, (D,), gain, eps))(x))
    same(layernorm_jacobian(x, gain, eps), jacrev(lambda x: F.layer_norm(x, (D,), gain, None, eps))(x))


@pytest.mark.parametrize("causal", [False, True])
def test_closed_form_of_attention_equals_automatic_differentiation(causal):
    d, n, width = 5, 4, 3
    W_q, W_k, W_v = random(3, width, d, seed=1).unbind()

    def columns(vec):  # of torch's attention, which has tokens as rows: row-major vec of X^T is vec of X
        rows = vec.view(1, n, d)
        out = F.scaled_dot_product_attention(rows @ W_q.T, rows @ W_k.T, rows @ W_v.T, is_causal=causal)
        return out.flatten()

    X = random(d, n)
    found = attention_jacobian(X, W_q, W_k, W_v, causal)
    same(found, torch.autograd.functional.jacobian(columns, X.T.flatten()))


def test_closed_form_of_midnorm_equals_automatic_differentiation_and_does_not_see_the_scale_of_its_weights():
    x, gain, W_1, W_2 = random(D), random(D, seed=1), random(11, D, seed=2), random(D, 11, seed=3)
    branch = jacrev(lambda x: F.rms_norm(W_2 @ (W_1 @ x).relu(), (D,), gain, 1e-6))
    same(midnorm_jacobian(x, W_1, W_2, gain, 1e-6), branch(x))
    same(midnorm_jacobian(x, 3 * W_1, W_2 / 7, gain, 0.0), midnorm_jacobian(x, W_1, W_2, gain, 0.0))


def test_singular_values_of_a_linear_map_are_those_of_its_matrix():
    matrix, x = random(9, 6), random(2, 3)
    expected = torch.linalg.svdvals(matrix)
    same(singular_values(lambda x: matrix @ x.flatten(), x), expected)
    same(singular_values(lambda x: (matrix @ x.flatten()).view(3, 3), x, k=4), expected[:4])


@pytest.mark.parametrize("shape", [(60, 300), (300, 60)])
def test_golub_kahan_finds_the_largest_of_a_linear_map_in_less_than_all_products(shape, monkeypatch):
    matrix = random(*shape)
    monkeypatch.delattr(jacobian.Differential, "dense")
    found = singular_values(lambda x: matrix @ x, random(shape[1]), k=5)
    torch.testing.assert_close(found, torch.linalg.svdvals(matrix)[:5], rtol=1e-3, atol=0)


def test_rmsnorm_stretches_all_directions_across_x_alike_and_that_along_x_hardly():
    """r = sqrt(mean(x^2) + eps): d - 1 values of 1 / r, and one of eps / r^3."""
    d, eps = 40, 1e-4
    x = random(d)
    r = float((x.square().mean() + eps).sqrt())
    s = singular_values(lambda x: F.rms_norm(x, (d,), None, eps), x)
    same(s[:-1], torch.full((d - 1,), 1 / r, dtype=torch.float64))
    assert float(s[-1]) == pytest.approx(eps / r**3)
    spread = spread_of(s)
    assert spread.condition == pytest.approx(r**2 / eps)
    assert spread.stable_rank == pytest.approx(d - 1, rel=1e-6)


@pytest.mark.parametrize("size", [16, 400])
def test_of_the_identity_all_are_one(size):
    s, spread = jacobian.measured(lambda x: x, torch.zeros(size), None, exact=100)
    assert torch.allclose(s, torch.ones(len(s)), atol=1e-5) and len(s) == min(size, 32)
    assert (spread.known, spread.of, spread.largest) == (len(s), size, pytest.approx(1))
    assert spread.stable_rank == pytest.approx(size)


def test_of_a_branch_that_is_switched_off_all_are_zero_and_so_are_the_ranks():
    whole, largest = (jacobian_spread(lambda x: 0 * x, torch.ones(50), k) for k in (None, 5))
    assert (whole.effective_rank, whole.stable_rank, whole.log_spread, whole.condition) == (0, 0, 0, math.inf)
    assert (largest.known, largest.largest, largest.stable_rank) == (5, 0, 0)


def test_of_a_projector_every_rank_is_its_rank_and_the_condition_is_infinite():
    q = torch.linalg.qr(random(20, 6)).Q
    spread = jacobian_spread(lambda x: q @ (q.T @ x), random(20))
    assert spread.effective_rank == pytest.approx(6) == spread.stable_rank
    assert spread.condition == math.inf
    assert spread.log_spread == pytest.approx(0, abs=1e-8)


def test_in_float32_the_condition_is_that_in_float64_unless_the_rank_is_deficient():
    """Of 600 singular values from 1 to 1e-5, and of a map whose last half is zero."""
    s = torch.logspace(0, -5, 600, dtype=torch.float64)
    left, right = torch.linalg.qr(random(600, 600)).Q, torch.linalg.qr(random(600, 600, seed=1)).Q
    full = (left @ (s[:, None] * right)).float()
    half = (left[:, :300] @ (s[:300, None] * right[:300])).float()
    assert jacobian_spread(lambda x: full @ x, torch.ones(600)).condition == pytest.approx(1e5, rel=0.02)
    assert jacobian_spread(lambda x: half @ x, torch.ones(600)).condition == math.inf


def test_spread_of_known_singular_values():
    spread = spread_of(torch.tensor([math.e**2, math.e, 1.0], dtype=torch.float64))
    assert spread.condition == pytest.approx(math.e**2)
    assert spread.log_spread == pytest.approx(math.sqrt(2 / 3))
    assert spread.stable_rank == pytest.approx(1 + math.e**-2 + math.e**-4)
    one, two, three = (p / (math.e**2 + math.e + 1) for p in (math.e**2, math.e, 1))
    entropy = -sum(p * math.log(p) for p in (one, two, three))
    assert spread.effective_rank == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_stable_rank_from_the_largest_alone_estimates_that_from_all(decay):
    """With all singular values of one size, and with one that outweighs the others."""
    s = torch.arange(1, 301, dtype=torch.float64) ** -decay
    left, right = torch.linalg.qr(random(300, 300)).Q, torch.linalg.qr(random(300, 300, seed=1)).Q
    spread = jacobian_spread(lambda x: left @ (s * (right @ x)), random(300), k=8)
    assert spread.known == 8
    assert spread.stable_rank == pytest.approx(float(s.square().sum()), rel=0.02)


def block_of(model: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    if model == "timm":
        return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2).blocks[0], 32
    if model == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=9)).transformer.h[0], 32
    return tiny_model(depth=1, placement=model).blocks[0], 32


@pytest.mark.parametrize("model", [*STATED, "timm", "gpt2"])
def test_golub_kahan_equals_the_whole_jacobian_by_torch_func_on_a_block(model):
    block, width = block_of(model)
    x = random(1, 9, width).float()

    def f(x):
        out = block(x)
        return out[0] if isinstance(out, tuple) else out

    with evaluating(block), sdpa_kernel(SDPBackend.MATH):  # of which torch.func can batch the backward pass
        expected = torch.linalg.svdvals(jacrev(f, chunk_size=64)(x).view(x.numel(), -1).double()).float()
        whole, spread = jacobian.measured(f, x, None, 2048)
        largest, estimate = jacobian.measured(f, x, None, 100)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(largest, expected[:32], rtol=1e-3, atol=0)
    assert estimate.stable_rank == pytest.approx(spread.stable_rank, rel=0.1)


def test_the_same_numbers_every_time():
    block, width = block_of("dnt")
    x = random(1, 9, width).float()
    assert torch.equal(*(singular_values(block, x, k=12) for _ in range(2)))


def run_of(kind: str):
    """A model of two layers, its forward pass on a batch of two, and on the first sample alone."""
    torch.manual_seed(0)
    if kind == "timm":
        images = torch.randn(2, 3, 8, 8)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, depth=2, embed_dim=32, num_heads=2, init_values=0.5
        )
        return model, lambda: model(images), lambda: model(images[:1])
    tokens = torch.randint(0, 9, (2, 6))
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=9, resid_pdrop=0.5))
    elif kind == "llama":
        fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 9}
        model = LlamaForCausalLM(LlamaConfig(**fields, num_attention_heads=2, attention_dropout=0.5))
    else:
        model = tiny_model(vocab_size=9, positions="rope", placement="dnt", dropout=0.5)
    return model, lambda: model(tokens), lambda: model(tokens[:1])


@pytest.mark.parametrize("kind", ["dnt", "timm", "gpt2", "llama"])
def test_the_rows_of_a_model_are_those_of_its_first_sample_and_leave_it_as_it_was(kind):
    model, both, first = run_of(kind)
    model.train()
    rows, alone = model_jacobians(model, both), model_jacobians(model, first)
    assert [(r.layer, r.what) for r in rows] == [
        *((layer, what) for layer in (0, 1) for what in ("block", "attn", "mlp")),
        (None, "end to end"),
    ]
    for row, other in zip(rows, alone, strict=True):
        torch.testing.assert_close(row.singular_values, other.singular_values, rtol=1e-3, atol=1e-5)
        assert row.spread.known == row.spread.of == len(row.singular_values)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_end_to_end_is_the_jacobian_of_all_blocks_and_a_block_that_of_its_branches():
    """I + J_attn of a block whose feed-forward is nothing; and the product of the blocks at their own inputs."""
    model, _, first = run_of("gpt2")
    layers = model.transformer.h
    with torch.no_grad():
        for block in layers:
            block.mlp.c_proj.weight.zero_()
    embedded = []
    layers[0].register_forward_pre_hook(lambda _, args: embedded.append(args[0].detach()))
    rows = {(row.layer, row.what): row for row in model_jacobians(model, first)}
    x = embedded[0]
    model.eval()

    def step(block, x):
        return x + block.attn(block.ln_1(x))[0]

    with sdpa_kernel(SDPBackend.MATH):
        J_0 = jacrev(lambda x: step(layers[0], x))(x).view(x.numel(), -1).detach()
        J_1 = jacrev(lambda x: step(layers[1], x))(step(layers[0], x)).view(x.numel(), -1).detach()
    for key, J in {(0, "block"): J_0, (1, "block"): J_1, (None, "end to end"): J_1 @ J_0}.items():
        torch.testing.assert_close(rows[key].singular_values, torch.linalg.svdvals(J), rtol=1e-3, atol=1e-5)
    J_attn = J_0 - torch.eye(x.numel())
    torch.testing.assert_close(rows[0, "attn"].singular_values, torch.linalg.svdvals(J_attn), rtol=1e-3, atol=1e-5)
    assert rows[0, "mlp"].spread.largest == 0


def test_of_a_causal_model_the_first_tokens_have_the_jacobian_of_a_shorter_sequence():
    model = tiny_model(vocab_size=9)
    tokens = torch.randint(0, 9, (1, 6))
    rows = model_jacobians(model, lambda: model(tokens), tokens=2)
    shorter = model_jacobians(model, lambda: model(tokens[:, :2]))
    for row, other in zip(rows, shorter, strict=True):
        torch.testing.assert_close(row.singular_values, other.singular_values, rtol=1e-3, atol=1e-5)


def test_a_model_without_known_blocks_has_no_rows():
    model = nn.Linear(3, 3)
    assert model_jacobians(model, lambda: model(torch.ones(1, 3))) == []
