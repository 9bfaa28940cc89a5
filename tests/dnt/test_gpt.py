import pytest
import torch
import transformers
from torch import nn

import dnt
from dnt.experiments.statements import STATED
from dnt.nn.config import ACTIVATIONS, GPT_SIZES, OF_BATCHES, gpt_parameters
from dnt.nn.layers import ACTIVATION_MODULES, KeyValueCache
from tests import reference

SHAPE = {"vocab_size": 13, "context": 8, "depth": 2, "dim": 16, "heads": 4}
USUAL = ("layernorm", "rmsnorm")
OTHERS = [n for n in dnt.NORMS if n not in (*USUAL, *OF_BATCHES, "crmsnorm", "shift")]  # those two are for pre-ln alone
ROWS = [(p, n) for p in STATED for n in USUAL]
rows = pytest.mark.parametrize(("placement", "norm"), ROWS + [("pre-ln", n) for n in (*OTHERS, "crmsnorm", "shift")])
rows_of_slots = pytest.mark.parametrize(("placement", "norm"), ROWS + [("s4", n) for n in OTHERS])
TO_LEARN = {"prmsnorm": {"dim": 64, "heads": 2}}  # of more than one feature


def build(seed: int = 0, **fields) -> dnt.GPT:
    torch.manual_seed(seed)
    return dnt.GPT(dnt.GPTConfig(**SHAPE | fields))


def randomize(model: nn.Module) -> nn.Module:
    """Every parameter random and of order 1/sqrt(fan-in), gains near 1: nothing is hidden by zeros or ones."""
    torch.manual_seed(1)
    for p in model.parameters():
        mean, std = (1.0, 0.1) if p.ndim < 2 else (0.0, p.shape[1] ** -0.5)
        nn.init.normal_(p, mean, std)
    return model


# --- equal to something independent ---------------------------------------------------------------------------------


def test_gpt_as_gpt2_equals_transformers_on_the_same_weights():
    config = transformers.GPT2Config(vocab_size=13, n_positions=8, n_embd=16, n_layer=2, n_head=4)
    theirs = randomize(transformers.GPT2LMHeadModel(config).eval())
    ours = build(placement="pre-ln", norm="layernorm", norm_eps=1e-5, bias=True, activation="gelu-tanh").eval()
    names = {
        "tokens": "wte", "positions": "wpe", "final_norm": "ln_f", "attn.pre": "ln_1", "mlp.pre": "ln_2",
        "attn.f.qkv": "attn.c_attn", "attn.f.out": "attn.c_proj", "mlp.f.up": "mlp.c_fc", "mlp.f.out": "mlp.c_proj",
    }  # fmt: skip
    weights = theirs.transformer.state_dict()
    copied = set()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            path, kind = name.rsplit(".", 1)
            in_block = path.startswith("blocks.")
            block, _, inner = path.removeprefix("blocks.").partition(".") if in_block else ("", "", path)
            source = f"h.{block}.{names[inner]}.{kind}" if block else f"{names[inner]}.{kind}"
            is_linear = inner.startswith(("attn.f", "mlp.f")) and kind == "weight"  # transformers stores Conv1D
            p.copy_(weights[source].T if is_linear else weights[source])
            copied.add(source)
    assert copied == set(weights), "every weight of theirs has its place in ours"
    tokens = torch.randint(0, 13, (3, 8))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    targets = theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(ours.loss(tokens[:, :-1], tokens[:, 1:]), targets, rtol=1e-5, atol=1e-6)
    longer = theirs.generate(tokens[:1, :3], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(ours.generate(tokens[:1, :3], 5, temperature=0), longer)


@pytest.mark.parametrize(("placement", "norm_first"), [("pre-ln", True), ("post-ln", False)])
def test_block_equals_torch_transformer_encoder_layer(placement, norm_first):
    model = randomize(build(placement=placement, norm="layernorm", bias=True, activation="relu")).double()
    ours = model.blocks[0]
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first, layer_norm_eps=1e-6, dtype=torch.float64
    )
    where = "pre" if norm_first else "post"
    attn = theirs.self_attn
    pairs = [
        (attn.in_proj_weight, ours.attn.f.qkv.weight), (attn.in_proj_bias, ours.attn.f.qkv.bias),
        (attn.out_proj.weight, ours.attn.f.out.weight), (attn.out_proj.bias, ours.attn.f.out.bias),
        (theirs.linear1.weight, ours.mlp.f.up.weight), (theirs.linear1.bias, ours.mlp.f.up.bias),
        (theirs.linear2.weight, ours.mlp.f.out.weight), (theirs.linear2.bias, ours.mlp.f.out.bias),
        (theirs.norm1.weight, getattr(ours.attn, where).weight), (theirs.norm1.bias, getattr(ours.attn, where).bias),
        (theirs.norm2.weight, getattr(ours.mlp, where).weight), (theirs.norm2.bias, getattr(ours.mlp, where).bias),
    ]  # fmt: skip
    with torch.no_grad():
        for to, source in pairs:
            to.copy_(source)
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask, is_causal=True))


@pytest.mark.parametrize("placement", ["pre-ln", "dnt"])
def test_attention_equals_one_query_head_and_key_at_a_time(placement):
    model = randomize(build(placement=placement)).double()
    f = model.blocks[0].attn.f
    gains = (f.q_norm.weight, f.k_norm.weight) if placement == "dnt" else None
    x = torch.randn(8, 16, dtype=torch.float64)
    slow = reference.causal_attention(x, f.qkv.weight, f.out.weight, 4, gains)
    torch.testing.assert_close(f(x[None])[0], slow)


def test_dnt_is_the_forward_pass_of_the_paper():
    """x = N(e); x += N(attn(N(x))); x += N(mlp(x)); head(N(x)), written out with the modules' own weights."""
    model = randomize(build(placement="dnt")).double()
    tokens = torch.randint(0, 13, (1, 8))

    def norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([reference.rms_norm(row, module.weight, 1e-6) for row in x])

    x = norm(model.input_norm, model.tokens.weight[tokens[0]] + model.positions.weight)
    for b in model.blocks:
        f = b.attn.f
        gains = (f.q_norm.weight, f.k_norm.weight)
        x = x + norm(b.attn.mid, reference.causal_attention(norm(b.attn.pre, x), f.qkv.weight, f.out.weight, 4, gains))
        hidden = x @ b.mlp.f.up.weight.T
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + norm(b.mlp.mid, hidden @ b.mlp.f.out.weight.T)
    logits = norm(model.final_norm, x) @ model.tokens.weight.T
    torch.testing.assert_close(model(tokens)[0], logits)


# --- every row of the table -----------------------------------------------------------------------------------------


@rows
def test_every_row_overfits_one_batch(placement, norm):
    model = build(placement=placement, norm=norm, init_std=0.2, **TO_LEARN.get(norm, {}))
    tokens = torch.randint(0, 13, (4, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if norm == "prmsnorm" else 1e-2)
    for _ in range(50):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4  # 2.6 or more at the start; what the first token cannot tell stays


@rows_of_slots
def test_every_norm_that_is_built_is_called_and_moves_the_output(placement, norm):
    model = build(placement=placement, norm=norm).double()
    norms = {name: m for name, m in model.named_modules() if isinstance(m, tuple(dnt.NORMS.values()))}
    p = dnt.PLACEMENTS[placement]
    slots = [s for sub in (p.attn, p.mlp) for s in (sub.pre, sub.mid, sub.post)]
    assert len(norms) == 2 * (sum(slots) + 2 * p.qk) + p.input + p.final
    tokens = torch.randint(0, 13, (2, 8))
    model.loss(tokens, tokens).backward()
    for name, module in norms.items():
        assert module.weight.grad.abs().max() > 0, name


def test_no_two_placements_compute_the_same():
    tokens = torch.randint(0, 13, (2, 8))
    outputs = [randomize(build(placement=p))(tokens) for p in STATED]
    for i, a in enumerate(outputs):
        assert not any(torch.allclose(a, b, atol=1e-3) for b in outputs[:i])


@rows
def test_logits_never_depend_on_later_tokens(placement, norm):
    model = randomize(build(placement=placement, norm=norm)).eval()
    tokens = torch.randint(0, 13, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 13
    torch.testing.assert_close(model(tokens)[:, :5], model(changed)[:, :5])
    assert not torch.allclose(model(tokens)[:, 5:], model(changed)[:, 5:])


# --- generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", STATED)
def test_cached_generation_equals_recomputing_every_token_beyond_the_context_too(placement):
    model = randomize(build(placement=placement)).eval()
    start = torch.randint(0, 13, (2, 3))
    slow = start
    for _ in range(12):  # 15 tokens, the context is 8
        slow = torch.cat([slow, model(slow[:, -8:])[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(start, 12, temperature=0), slow)


def test_cached_logits_equal_those_of_the_whole_sequence():
    model = randomize(build()).double().eval()
    tokens = torch.randint(0, 13, (2, 8))
    caches = [KeyValueCache() for _ in model.blocks]
    parts = [model(tokens[:, :4], caches), *(model(tokens[:, i : i + 1], caches) for i in range(4, 8))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens))


def test_generate_draws_from_the_tempered_softmax_of_the_top_k():
    model = randomize(build()).eval()
    prompt = torch.zeros(4000, 1, dtype=torch.int64)
    logits = model(prompt[:1])[0, -1] / 0.7
    top = logits.topk(3)
    drawn = model.generate(prompt, 1, temperature=0.7, top_k=3, generator=torch.Generator().manual_seed(0))[:, 1]
    frequency = torch.bincount(drawn, minlength=13) / 4000
    assert set(drawn.tolist()) == set(top.indices.tolist())
    torch.testing.assert_close(frequency[top.indices], top.values.softmax(-1), atol=0.04, rtol=0)


def test_generate_leaves_the_training_mode_as_it_was_and_is_reproducible():
    model = build(dropout=0.5).train()
    draws = [model.generate(torch.tensor([[1]]), 6, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert model.training and torch.equal(*draws) and draws[0].shape == (1, 7)


# --- sizes, options and errors --------------------------------------------------------------------------------------

GPT2 = {"placement": "pre-ln", "norm": "layernorm", "norm_eps": 1e-5, "bias": True, "activation": "gelu-tanh"}


@pytest.mark.parametrize(
    ("size", "parameters"), [("gpt2-small", 124_439_808), ("gpt2-large", 774_030_080), ("gpt2-1.4b", 1_438_683_648)]
)
def test_named_sizes_as_gpt2_have_its_parameter_counts(size, parameters):
    with torch.device("meta"):
        model = dnt.gpt(size, **GPT2)
    assert sum(p.numel() for p in model.parameters()) == parameters == gpt_parameters(model.config)


@rows_of_slots
@pytest.mark.parametrize("fields", [{}, {"bias": True}, {"tie_embeddings": False}, {"mlp_ratio": 2.5}])
def test_parameter_count_in_closed_form(placement, norm, fields):
    model = build(placement=placement, norm=norm, **fields)
    assert gpt_parameters(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", GPT_SIZES)
def test_sizes_fix_only_their_shape(size):
    fixed = {"vocab_size", "context", "depth", "dim", "heads"}
    default = dnt.GPTConfig(**{name: getattr(GPT_SIZES[size], name) for name in fixed})
    assert GPT_SIZES[size] == default


def test_loss_ignores_targets_of_minus_one():
    model = build()
    tokens = torch.randint(0, 13, (2, 8))
    targets = tokens.clone()
    targets[:, 4:] = -1
    torch.testing.assert_close(model.loss(tokens, targets), model.loss(tokens[:, :4], tokens[:, :4]))


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = build(dropout=0.3)
    tokens = torch.randint(0, 13, (2, 8))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_tied_head_is_the_embedding():
    tied, untied = build(), build(tie_embeddings=False)
    assert tied.head.weight is tied.tokens.weight
    assert not torch.equal(untied.head.weight, untied.tokens.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "heads=3 does not divide dim=16. Nearest that does: heads=2."),
        ({"placement": "ddnt"}, "unknown placement 'ddnt'. Did you mean 'dnt'?"),
        ({"norm": "rms"}, "unknown norm 'rms'. Did you mean 'rmsnorm'?"),
        ({"activation": "gelu_tanh"}, "unknown activation 'gelu_tanh'. Did you mean 'gelu-tanh'?"),
        ({"depth": 0}, "depth is 0; it must be at least 1."),
        ({"dropout": 1.0}, "dropout is 1.0; it must be in [0, 1)."),
    ],
)
def test_bad_configurations_name_what_was_received_and_the_fix(fields, message):
    with pytest.raises(ValueError) as error:
        build(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize("field", ["mlp_ratio", "init_std", "norm_eps"])
def test_numbers_out_of_range_are_named(field):
    with pytest.raises(ValueError, match=f"{field} (is )?-1"):
        build(**{field: -1})


def test_every_known_activation_is_built_and_its_module_is_the_models_own():
    assert set(ACTIVATIONS) == set(ACTIVATION_MODULES)
    model = build()
    assert model.blocks[0].mlp.f.activation is not model.blocks[1].mlp.f.activation


def test_too_many_tokens_and_an_empty_prompt_are_named():
    with pytest.raises(ValueError, match="got 9 tokens, but the model's context is 8"):
        build()(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="the prompt is empty"):
        build().generate(torch.zeros(1, 0, dtype=torch.int64), 3)
