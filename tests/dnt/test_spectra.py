"""Singular values of weights, against torch.linalg.svdvals."""

import math

import pytest
import timm
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from dnt.analysis.spectra import (
    all_singular_values,
    effective_step,
    largest_singular_value,
    step_sizes,
    weight_spectra,
)
from tests.conftest import tiny_model


@pytest.mark.parametrize("shape", [(200, 70), (70, 200), (90, 90)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_singular_values_and_the_largest_equal_svdvals(shape, dtype, monkeypatch):
    monkeypatch.setattr("dnt.analysis.spectra.ROWS", 32)
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=dtype)
    expected = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(all_singular_values(matrix).double(), expected, rtol=1e-6, atol=0)
    assert largest_singular_value(matrix) == pytest.approx(float(expected[0]), rel=1.5e-4)


def test_a_matrix_of_low_rank_has_an_infinite_condition_and_effective_rank_one_if_it_is_one():
    model = tiny_model(depth=1)
    with torch.no_grad():
        model.blocks[0].mlp.f.out.weight.copy_(torch.outer(torch.arange(1.0, 33), torch.ones(128)))
    row = next(row for row in weight_spectra(model) if row.role == "2")
    assert row.spread.condition == math.inf
    assert row.spread.effective_rank == pytest.approx(1, abs=1e-5)
    assert row.spread.stable_rank == pytest.approx(1)
    assert row.norm == pytest.approx(float(model.blocks[0].mlp.f.out.weight.detach().norm()))


def test_the_rows_of_a_gpt_are_its_matrices_q_k_and_v_apart_and_what_its_logits_are_made_of():
    model = tiny_model(depth=2, tie_embeddings=True)
    rows = weight_spectra(model)
    roles = ["embedding", "position", *("q", "k", "v", "o", "1", "2") * 2, "qk", "qk"]
    assert [row.role for row in rows] == roles
    q = next(row for row in rows if row.role == "q" and row.layer == 1)
    weight = model.blocks[1].attn.f.qkv.weight[:32].detach()
    torch.testing.assert_close(q.singular_values, torch.linalg.svdvals(weight), rtol=1e-5, atol=1e-6)
    assert q.spread.largest == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)))


def model_and_query_key(kind: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model of one layer of four heads, its queries' and its keys' matrices (out, in), one of keys for each query."""
    torch.manual_seed(0)
    if kind == "timm":
        model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=4)
        q, k, _ = model.blocks[0].attn.qkv.weight.detach().split(32)
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=9))
        q, k, _ = model.transformer.h[0].attn.c_attn.weight.detach().T.split(32)
    else:
        model = tiny_model(depth=1, heads=4, kv_heads=2)
        q, k, _ = model.blocks[0].attn.f.qkv.weight.detach().split([32, 16, 16])
        k = torch.cat([k[:8], k[:8], k[8:], k[8:]])
    return model, q, k


@pytest.mark.parametrize("kind", ["dnt", "timm", "gpt2"])
def test_of_queries_and_keys_together_the_product_is_measured_whole_and_by_head(kind):
    model, q, k = model_and_query_key(kind)
    (row,) = (row for row in weight_spectra(model) if row.role == "qk")
    torch.testing.assert_close(row.singular_values, torch.linalg.svdvals(q.T @ k), rtol=1e-3, atol=1e-6)
    by_head = [float(torch.linalg.svdvals(q_h.T @ k_h)[0]) for q_h, k_h in zip(q.split(8), k.split(8), strict=True)]
    assert row.heads == pytest.approx(by_head, rel=1e-4)
    assert row.layer == 0 and row.name.endswith("[qk]")


def test_step_sizes_are_relative_to_what_the_weights_were():
    model = tiny_model(depth=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.blocks[0].attn.f.qkv.weight[32:64] *= 1.25
        change = torch.outer(torch.ones(32), torch.ones(128))
        model.blocks[0].mlp.f.out.weight += change
    rows = {row.role: row for row in step_sizes(before, model)}
    assert (rows["k"].spectral, rows["k"].frobenius) == pytest.approx((0.25, 0.25))
    assert (rows["q"].spectral, rows["q"].frobenius) == (0, 0)
    old = before["blocks.0.mlp.f.out.weight"]
    assert rows["2"].spectral == pytest.approx(64 / float(torch.linalg.matrix_norm(old, 2)), rel=1e-4)
    assert rows["2"].frobenius == pytest.approx(64 / float(old.norm()))
    assert {row.role for row in step_sizes({"head.weight": old}, model)} == set(), "tied: it is the tokens'"


def test_the_step_of_a_zero_matrix_is_infinite():
    model = tiny_model(depth=1)
    before = {"blocks.0.mlp.f.out.weight": torch.zeros(32, 128)}
    assert [row.spectral for row in step_sizes(before, model)] == [math.inf]


def test_a_blind_matrix_turns_by_its_effective_step():
    """W -> W - lr dL/dW where L sees only W / ||W||: the angle is lr ||dL/d(W / ||W||)|| / ||W||^2."""
    torch.manual_seed(0)
    weight, target, lr = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64), 1e-6
    direction = (weight / weight.norm()).requires_grad_()
    (wanted,) = torch.autograd.grad((direction * target).sum() / direction.norm(), direction)
    for scale in (0.5, 3.0):
        scaled = (scale * weight).requires_grad_()
        (g,) = torch.autograd.grad((scaled * target).sum() / scaled.norm(), scaled)
        turned = lr * g.norm() / scaled.detach().norm()
        assert float(turned) == pytest.approx(effective_step(lr, scaled) * float(wanted.norm()))
