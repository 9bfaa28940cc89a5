"""Every entry of a model has one role, and a branch taken out of its block computes what it does inside."""

from collections import Counter

import pytest
import timm
import torch
import transformers
from torch import nn

import dnt
from dnt.analysis.anatomy import ROLES, blocks, branches, captured, chain, parts
from dnt.nn.attention import ATTENTIONS

TEXT = {"vocab_size": 11, "context": 8, "depth": 3, "dim": 16, "heads": 4}
HF = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
LLAMA = {**HF, "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0}


def gpt(**fields) -> nn.Module:
    return dnt.GPT(dnt.GPTConfig(**TEXT, **fields))


def vit() -> nn.Module:
    return dnt.ViT(
        dnt.ViTConfig(image_size=8, patch_size=4, channels=3, classes=5, depth=3, dim=16, heads=4, bias=True)
    )


def timm_vit(**fields) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "num_classes": 5, "depth": 3, "embed_dim": 16, "num_heads": 4}
    return timm.models.VisionTransformer(**sizes, **fields)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=3, n_head=4)
    )


def hf_vit() -> nn.Module:
    config = {name: value for name, value in HF.items() if name != "vocab_size"}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**config, image_size=8, patch_size=4))


LANGUAGE = {
    "dnt gpt": gpt,
    "dnt gpt, swiglu": lambda: gpt(activation="swiglu"),
    "dnt gpt, kv heads": lambda: gpt(kv_heads=2, bias=True),
    "dnt gpt, untied": lambda: gpt(tie_embeddings=False, placement="pre-ln"),
    "gpt2": gpt2,
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**LLAMA)),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**LLAMA)),
}
VISION = {
    "dnt vit": vit,
    "timm vit": lambda: timm_vit(init_values=0.1, reg_tokens=2, qk_norm=True),
    "hf vit": hf_vit,
}
WITHOUT_BRANCHES = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**HF)),
    "torch encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 3),
    "plain": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
}
MODELS = LANGUAGE | VISION | WITHOUT_BRANCHES
GATED = {"dnt gpt, swiglu", "llama", "gemma2", "olmo2"}


def entries(name: str) -> Counter:
    """Of a model, by role."""
    counted: Counter = Counter()
    for part in parts(MODELS[name]()):
        counted[part.role] += part.of(part.parameter).numel()
    return counted


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_entry_belongs_to_exactly_one_part(name):
    model = MODELS[name]()
    frozen = next(iter(model.parameters())).requires_grad_(False)
    seen = {p: torch.zeros_like(p, dtype=torch.int64) for p in model.parameters() if p is not frozen}
    found = parts(model)
    for part in found:
        part.of(seen[part.parameter]).add_(1)
    assert all((count == 1).all() for count in seen.values())
    assert len({part.name for part in found}) == len(found) and {part.role for part in found} <= set(ROLES)
    order = {p: i for i, p in enumerate(model.parameters())}
    assert [order[part.parameter] for part in found] == sorted(order[part.parameter] for part in found)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "plain"])
def test_every_block_has_the_six_matrices_and_a_third_of_the_feed_forward_if_it_is_gated(name):
    model = MODELS[name]()
    expected = {"q", "k", "v", "o", "1", "2"} | ({"gate"} if name in GATED else set())
    for layer in range(3):
        matrices = [part for part in parts(model) if part.layer == layer and part.parameter.ndim > 1]
        assert Counter(part.role for part in matrices) == Counter(expected)
        shapes = {part.role: tuple(part.matrix().shape) for part in matrices}
        assert shapes["q"] == shapes["o"] == (16, 16) and shapes["1"] == shapes["2"][::-1]
        assert shapes["k"] == shapes["v"] == (shapes["k"][0], 16) and shapes["1"][1] == 16
        vectors = {part.role for part in parts(model) if part.layer == layer and part.parameter.ndim == 1}
        assert vectors <= {"gain", "bias"}


def test_the_ends_of_a_model_have_the_sizes_of_its_vocabulary_and_context():
    tied, untied, llama = (entries(name) for name in ("dnt gpt", "dnt gpt, untied", "llama"))
    assert (tied["embedding"], tied["position"], tied["head"]) == (11 * 16, 8 * 16, 0)
    assert (untied["embedding"], untied["position"], untied["head"]) == (11 * 16, 8 * 16, 11 * 16)
    assert (llama["embedding"], llama["position"], llama["head"]) == (11 * 16, 0, 11 * 16)
    for name, tokens in (("dnt vit", 1), ("timm vit", 3), ("hf vit", 1)):
        found = entries(name)
        assert found["embedding"] == 16 * (3 * 4 * 4 + tokens) and found["position"] in {16 * 5, 16 * 7}
    assert not any(entries(name)["other"] for name in LANGUAGE | VISION)


def test_what_no_row_knows_is_other():
    assert entries("plain") == {"other": 3 * 4 + 4 * 2, "bias": 4 + 2}


@pytest.mark.parametrize("name", ["dnt gpt, kv heads", "timm vit", "gpt2", "torch encoder"])
def test_q_k_and_v_of_a_fused_projection_are_what_it_gives_the_attention(name, monkeypatch):
    """Setting a part to zero makes that operand of the attention zero (there are no biases), and no other."""
    operands: list[torch.Tensor] = []

    def noted(*args, **kwargs):
        operands.extend(args[:3])
        return computed(*args, **kwargs)

    if name.startswith("dnt"):
        computed = ATTENTIONS["softmax"]
        monkeypatch.setitem(ATTENTIONS, "softmax", noted)
    else:
        computed = nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noted)
    model = MODELS[name]().eval()

    for part in parts(model):
        if part.role == "bias":
            part.parameter.data.zero_()
    for i, role in enumerate("qkv"):
        part = next(part for part in parts(model) if part.role == role and part.layer == 0)
        kept = part.of(part.parameter).detach().clone()
        part.of(part.parameter.data).zero_()
        operands.clear()
        run(model)
        assert [bool((x == 0).all()) for x in operands[:3]] == [j == i for j in range(3)]
        part.of(part.parameter.data).copy_(kept)


def run(model: nn.Module):
    torch.manual_seed(0)
    if isinstance(model, nn.TransformerEncoder):
        return model.train()(torch.randn(2, 4, 16))
    names = {type(m).__name__ for m in model.modules()}
    return model(torch.randn(2, 3, 8, 8) if "Conv2d" in names else torch.randint(11, (2, 8)))


def test_the_matrix_of_a_part_maps_inputs_to_outputs_however_it_is_stored():
    for model in (gpt2(), gpt(bias=True)):
        first = next(part for part in parts(model) if part.role == "1")
        layer = model.get_submodule(first.name.removesuffix(".weight"))
        x = torch.randn(5, 16)
        torch.testing.assert_close(layer(x), x @ first.matrix().T + layer.bias)
        assert torch.equal(first.matrix(2 * first.parameter), 2 * first.matrix())
    found = {part.name: part.matrix() for part in parts(timm_vit(reg_tokens=2))}
    assert {found[name].shape for name in ("cls_token", "reg_token", "pos_embed")} == {(1, 16), (2, 16), (7, 16)}
    assert found["patch_embed.proj.weight"].shape == (16, 3 * 4 * 4) and found["norm.weight"].shape == (1, 16)


def test_a_timm_gate_is_the_half_that_goes_through_the_activation():
    for gate_last in (False, True):
        mlp = timm.layers.GluMlp(16, 32, act_layer=nn.ReLU, gate_last=gate_last, bias=False)
        model = nn.ModuleDict({"mlp": mlp})
        gate = next(part for part in parts(model) if part.role == "gate")
        x = torch.randn(7, 16)
        before = mlp(x)
        gate.of(gate.parameter.data).mul_(-1)
        other_sign = mlp(x)
        gate.of(gate.parameter.data).mul_(-1)
        value = next(part for part in parts(model) if part.role == "1")
        value.of(value.parameter.data).mul_(-1)
        torch.testing.assert_close(mlp(x), -before)
        assert not torch.allclose(other_sign, -before)


@pytest.mark.parametrize("name", LANGUAGE | VISION)
def test_a_branch_by_itself_adds_up_to_its_block(name):
    model = (LANGUAGE | VISION)[name]().eval()
    [(_, first), (path, block), *_] = blocks(model)
    found = branches(block)
    outputs = []
    hook = block.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))
    modules = [module for chained in found.values() for module in chained]
    with torch.no_grad():
        calls = captured(modules, lambda: run(model))
        hook.remove()
        [(x, output)] = outputs
        for _ in range(2):  # a second time gives the same: nothing is cached
            y = x + chain(found["attn"], calls)(x)
            y = y + chain(found["mlp"], calls)(y)
            torch.testing.assert_close(y, output[0] if isinstance(output, tuple) else output)
    assert type(first) is type(block) and model.get_submodule(path) is block and len(blocks(model)) == 3


@pytest.mark.parametrize("name", WITHOUT_BRANCHES)
def test_blocks_whose_branches_are_not_known_have_none(name):
    assert all(not branches(block) for _, block in blocks(WITHOUT_BRANCHES[name]()))
    assert len(blocks(WITHOUT_BRANCHES[name]())) == (0 if name == "plain" else 3)


def test_what_is_captured_is_the_first_call_detached():
    layer = nn.Linear(2, 2)
    first, second = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2)
    calls = captured([layer, nn.Linear(2, 2)], lambda: (layer(first), layer(second)))
    [((x,), kwargs)] = calls.values()
    assert torch.equal(x, first) and not x.requires_grad and not kwargs
    assert not layer._forward_pre_hooks


def test_a_parameter_without_axes_is_a_part():
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(2.0))
    [part] = parts(model)
    assert part.of(model.scale) is model.scale and part.matrix().shape == (1, 1) and part.role == "other"
