"""Attention entropies and residual norms, against what is computed here from queries, keys and hidden states."""

import math

import pytest
import timm
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dnt.analysis.activations import attention_entropies, residual_norms
from dnt.nn import attention as dnt_attention
from tests.conftest import tiny_model

HEADS, WIDTH = 2, 32


def gpt2(implementation: str) -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=WIDTH, n_head=HEADS, vocab_size=9, attn_implementation=implementation)
    return GPT2LMHeadModel(config)


def entropy_rows(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, causal: bool) -> list[tuple[float, float, float]]:
    """Of each head: mean entropy, mean entropy / ln(visible), largest logit; one query at a time."""
    rows = []
    for h in range(q_BHTK.shape[1]):
        entropies, relative, logits = [], [], []
        for q, k in zip(q_BHTK[:, h].double(), k_BHTK[:, h].double(), strict=True):
            for t, query in enumerate(q):
                seen = k[: t + 1] if causal else k
                logit = seen @ query / math.sqrt(len(query))
                entropy = float(torch.distributions.Categorical(logits=logit).entropy())
                entropies.append(entropy)
                relative += [entropy / math.log(len(seen))] if len(seen) > 1 else []
                logits.append(float(logit.max()))
        rows.append((sum(entropies) / len(entropies), sum(relative) / len(relative), max(logits)))
    return rows


def heads(x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)


def inputs_of(modules: list[nn.Module], run) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    hooks = [m.register_forward_pre_hook(lambda _, args: found.append(args[0].detach())) for m in modules]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


def model_and_queries_and_keys(kind: str, monkeypatch):
    """A model, its forward pass, and the queries and keys of every layer from the inputs of its attentions."""
    tokens = torch.randint(0, 9, (3, 7), generator=torch.Generator().manual_seed(0))
    if kind.startswith("gpt2"):
        model = gpt2(kind.removeprefix("gpt2 "))
        projections = [block.attn.c_attn for block in model.transformer.h]
        run = lambda: model(tokens)  # noqa: E731
    elif kind.startswith("timm"):
        torch.manual_seed(0)
        fields = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": WIDTH, "num_heads": HEADS}
        model = timm.create_model("vit_tiny_patch16_224", **fields)
        for block in model.blocks:
            block.attn.fused_attn = kind == "timm fused"
        projections = [block.attn.qkv for block in model.blocks]
        images = torch.randn(3, 3, 8, 8)
        run = lambda: model(images)  # noqa: E731
    else:
        model = tiny_model(vocab_size=9, placement="pre-ln")
        monkeypatch.setattr(dnt_attention, "BLOCKED_UP_TO", {torch.float32: 100} if kind == "dnt blocks" else {})
        monkeypatch.setattr(dnt_attention, "LEAST_ROWS", 2)
        projections = [block.attn.f.qkv for block in model.blocks]
        run = lambda: model(tokens)  # noqa: E731
    model.eval()
    with torch.no_grad():
        for projection in projections:  # sharper than at the start
            projection.weight *= 8
    inputs = inputs_of(projections, run)
    fused = [projection(x).detach() for projection, x in zip(projections, inputs, strict=True)]
    return model, run, [[heads(part) for part in each.split(WIDTH, dim=-1)[:2]] for each in fused]


@pytest.mark.parametrize("kind", ["dnt", "dnt blocks", "timm", "timm fused", "gpt2 sdpa", "gpt2 eager"])
def test_entropies_equal_those_of_explicit_queries_and_keys(kind, monkeypatch):
    model, run, expected = model_and_queries_and_keys(kind, monkeypatch)
    rows = attention_entropies(model, run)
    assert [(row.layer, row.head) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    wanted = [numbers for q, k in expected for numbers in entropy_rows(q, k, causal="timm" not in kind)]
    found = [(row.entropy, row.uniformity, row.largest_logit) for row in rows]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    assert all(row.uniformity < 0.95 for row in rows), "the test would not see a wrong logit"


def test_several_queries_may_share_their_keys_as_in_llama():
    """Of a model whose heads of keys are two, and one that has them twice."""
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 9}
    grouped = LlamaForCausalLM(LlamaConfig(**fields, num_attention_heads=4, num_key_value_heads=2))
    full = LlamaForCausalLM(LlamaConfig(**fields, num_attention_heads=4, num_key_value_heads=4))
    state = grouped.state_dict()
    for name in ("k_proj", "v_proj"):
        key = f"model.layers.0.self_attn.{name}.weight"
        state[key] = state[key].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    tokens = torch.randint(0, 9, (2, 6))
    ours, theirs = (attention_entropies(model, lambda m=model: m(tokens)) for model in (grouped, full))
    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert (a.entropy, a.largest_logit) == pytest.approx((b.entropy, b.largest_logit), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_uniform_attention_has_the_entropy_of_the_number_of_visible_keys(implementation):
    """Queries of zero. With padding the first two tokens of the second sample are not seen, and see nothing."""
    model = gpt2(implementation)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight.zero_()
    tokens, real = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    real[1, :2] = 0
    visible = [1, 2, 3, 4, 5, 1, 2, 3]
    for row in attention_entropies(model, lambda: model(tokens, attention_mask=real)):
        assert row.entropy == pytest.approx(sum(map(math.log, visible)) / len(visible), rel=1e-5)
        assert row.uniformity == pytest.approx(1)
        assert row.largest_logit == 0


def test_a_query_that_sees_itself_alone_has_no_entropy_and_no_uniformity():
    model = tiny_model(vocab_size=9)
    row = attention_entropies(model, lambda: model(torch.ones(1, 1, dtype=torch.long)))[0]
    assert row.entropy == 0
    assert math.isnan(row.uniformity)


def test_a_model_without_blocks_has_no_rows():
    model = nn.Linear(2, 2)
    assert attention_entropies(model, lambda: model(torch.ones(1, 2))) == []
    assert residual_norms(model, lambda: model(torch.ones(1, 2))) == []


@pytest.mark.parametrize("kind", ["dnt", "gpt2"])
def test_residual_norms_equal_those_of_hidden_states_summed_by_hand(kind):
    tokens = torch.randint(0, 9, (3, 7), generator=torch.Generator().manual_seed(0))
    if kind == "dnt":
        model = tiny_model(vocab_size=9, placement="dnt", dropout=0.5)
        layers = model.blocks
        branch = {"attn": lambda b, x: b.attn.mid(b.attn.f(b.attn.pre(x))), "mlp": lambda b, x: b.mlp.mid(b.mlp.f(x))}
    else:
        model = gpt2("sdpa")
        layers = model.transformer.h
        branch = {"attn": lambda b, x: b.attn(b.ln_1(x))[0], "mlp": lambda b, x: b.mlp(b.ln_2(x))}
    model.train()
    rows = residual_norms(model, lambda: model(tokens))
    assert all(module.training for module in model.modules())
    model.eval()
    (x_0,) = inputs_of([layers[0]], lambda: model(tokens))
    expected, x = [], x_0
    with torch.no_grad():
        for layer, block in enumerate(layers):
            expected.append((layer, "stream", x))
            for what in ("attn", "mlp"):
                y = branch[what](block, x)
                expected.append((layer, what, y))
                x = x + y
    expected.append((len(layers), "stream", x))
    assert len(rows) == len(expected)
    for row, (layer, what, y) in zip(rows, expected, strict=True):
        rms = y.double().pow(2).sum(-1).div(WIDTH).sqrt()
        assert (row.layer, row.what) == (layer, what)
        assert (row.mean, row.largest) == pytest.approx((float(rms.mean()), float(rms.max())), rel=1e-4)
        cosine = (y * x_0).sum(-1) / (y.norm(dim=-1) * x_0.norm(dim=-1))
        wanted = None if what != "stream" else pytest.approx(float(cosine.mean()), rel=1e-4)
        assert row.of_x_0 == wanted
    assert rows[0].of_x_0 == pytest.approx(1) and rows[-1].of_x_0 < 0.999


def test_what_is_orthogonal_to_x_0_takes_its_share_away():
    """Two blocks add a vector of x_0's length each, orthogonal to all before: cosines 1, 1 / sqrt 2, 1 / sqrt 3."""

    class Adds(nn.Module):
        def __init__(self, i: int):
            super().__init__()
            self.i, self.inner = i, nn.Identity()

        def forward(self, x):
            return x + torch.eye(4)[self.i]

    model = nn.Sequential(Adds(1), Adds(2))
    rows = residual_norms(model, lambda: model(torch.eye(4)[:1].view(1, 1, 4)))
    assert [row.of_x_0 for row in rows] == pytest.approx([1, 2**-0.5, 3**-0.5])
    assert [row.mean for row in rows] == pytest.approx([0.5, 2**0.5 / 2, 3**0.5 / 2])
