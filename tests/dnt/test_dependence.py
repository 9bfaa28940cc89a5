"""What a norm hides, the loss does not see, in float64 and with hardly any eps; what no norm hides it sees."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import dnt
from dnt.analysis import scale_dependence

X_0, TOKENS, QK, VO, FFN = "x_0", "tokens of the stream", "W_q, W_k", "W_v, W_o", "W_1, W_2"
NORM_OF = {X_0: "InputNorm", TOKENS: "PreNorm before attention", QK: "QKNorm"}
NORM_OF |= {VO: "MidNorm after attention", FFN: "MidNorm after the feed-forward"}
HIDDEN = {  # by the norms at each position; relu lets a scale pass
    "dnt": {X_0, TOKENS, QK, VO, FFN},
    "s4": {X_0, TOKENS, QK, VO, FFN},
    "s3": {X_0, TOKENS, QK},
    "s2": {TOKENS, QK},
    "pre-ln": {TOKENS},
    "input-only": {X_0},
    "qk-only": {QK, X_0},  # all that follows is homogeneous then, and the norm before the head hides it
    "mid-only": {VO, FFN},
    "no-norm": set(),
    "dnt-no-mid": {X_0, TOKENS, QK},
    "dnt-no-pre": {X_0, QK, VO, FFN},
    "dnt-no-qk": {X_0, TOKENS, VO, FFN},
    "dnt-no-input": {TOKENS, QK, VO, FFN},
    "peri-ln": {TOKENS, VO, FFN},
}


def gpt(placement: str, **fields) -> dnt.GPT:
    """With matrices of the size that a wide model's have, so that what is seen is seen clearly."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "context": 12, "depth": 2, "dim": 16, "heads": 2, "init_std": 0.3, "init": "gpt2"}
    config = dnt.GPTConfig(placement=placement, norm_eps=1e-14, **{"activation": "relu"} | sizes | fields)
    return dnt.GPT(config).double().eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(19, (3, 13), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return model.loss(x, y)


def found(placement: str, **fields) -> dict[str, float]:
    return {row["what"]: row["change"] for row in scale_dependence(gpt(placement, **fields), batch(), loss_of)}


@pytest.mark.parametrize("placement", HIDDEN)
def test_each_position_hides_what_its_norm_hides_and_nothing_else(placement):
    changes = found(placement)
    assert {what for what, change in changes.items() if change < 1e-9} == HIDDEN[placement], changes
    assert all(change > 1e-4 for what, change in changes.items() if what not in HIDDEN[placement]), changes


def test_without_a_homogeneous_activation_midnorm_hides_w_2_alone():
    changes = found("dnt", activation="gelu")
    assert changes[FFN] > 1e-4 and max(change for what, change in changes.items() if what != FFN) < 1e-9


def test_without_a_homogeneous_activation_qknorm_hides_w_q_and_w_k_alone():
    assert {what for what, change in found("qk-only", activation="gelu").items() if change < 1e-9} == {QK}


def test_biases_show_a_scale_that_midnorm_would_hide():
    model = gpt("dnt", bias=True)
    model.blocks[0].mlp.f.up.bias.data.fill_(1.0)
    changes = {row["what"]: row["change"] for row in scale_dependence(model, batch(), loss_of)}
    assert changes[FFN] > 1e-4 and changes[X_0] < 1e-9


def test_a_row_says_by_how_much_the_loss_changes_each_way():
    model = gpt("pre-ln")
    rows = {row["what"]: row for row in scale_dependence(model, batch(), loss_of, factor=3.0)}
    assert {what: row["norm"] for what, row in rows.items()} == NORM_OF
    for block in model.blocks:
        for linear in (block.mlp.f.up, block.mlp.f.out):
            linear.weight.data.mul_(3)
    with torch.no_grad():
        larger = float(loss_of(model, *batch()))
    row = rows[FFN]
    assert row["loss"] + row["times"] == pytest.approx(larger, abs=1e-12) and row["factor"] == 3
    assert row["change"] == max(abs(row["times"]), abs(row["over"]))


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_weights_are_bitwise_what_they_were(factor):
    """Also those that are too small to be halved, and if the loss cannot be computed."""
    model = gpt("dnt").float()
    model.blocks[0].mlp.f.up.weight.data[0, 0] = 1e-45
    before = {name: p.clone() for name, p in model.named_parameters()}
    scale_dependence(model, batch(), loss_of, factor)

    def failing(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not torch.equal(model.blocks[0].attn.f.qkv.weight, before["blocks.0.attn.f.qkv.weight"]):
            raise RuntimeError("no loss")
        return loss_of(model, x, y)

    with pytest.raises(RuntimeError, match="no loss"):
        scale_dependence(model, batch(), failing, factor)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks]
    assert not hooks


def test_shared_entries_are_scaled_once():
    """Half of a fused projection is W_q and W_k: W_v stays."""
    model = gpt("pre-ln")
    scaled = gpt("pre-ln")
    for block in scaled.blocks:
        block.attn.f.qkv.weight.data[: 2 * 16].mul_(2)
    with torch.no_grad():
        expected = float(loss_of(scaled, *batch())) - float(loss_of(model, *batch()))
    [row] = [row for row in scale_dependence(model, batch(), loss_of) if row["what"] == QK]
    assert row["times"] == pytest.approx(expected, abs=1e-12)


def test_a_timm_vit_hides_tokens_and_with_norms_of_q_and_k_their_scale():
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 8, 8).double(), torch.tensor([1, 3])
    sizes = {"img_size": 8, "patch_size": 4, "num_classes": 5, "depth": 2, "embed_dim": 16, "num_heads": 4}
    for fields, hidden in (({}, {TOKENS}), ({"qk_norm": True}, {TOKENS, QK}), ({"pre_norm": True}, {TOKENS, X_0})):
        model = timm.models.VisionTransformer(**sizes, **fields).double().eval()
        for name, p in model.named_parameters():
            if name.endswith("weight") and p.ndim > 1:
                p.data.normal_(std=0.3)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-14
        rows = scale_dependence(model, (images, labels), lambda m, x, y: F.cross_entropy(m(x), y))
        assert {row["what"] for row in rows} == set(NORM_OF)
        assert {row["what"] for row in rows if row["change"] < 1e-9} == hidden, rows


def test_gpt2_of_transformers_hides_tokens_alone():
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.3, layer_norm_epsilon=1e-14, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double().eval()

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())

    rows = scale_dependence(model, batch(), loss)
    assert {row["what"]: row["norm"] for row in rows} == NORM_OF
    assert {row["what"] for row in rows if row["change"] < 1e-9} == {TOKENS}


def test_what_a_model_has_not_is_left_out():
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    assert scale_dependence(plain, (x, y), lambda m, x, y: F.cross_entropy(m(x), y)) == []
    torch_blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2).eval()
    rows = scale_dependence(torch_blocks, (torch.randn(2, 3, 16),), lambda m, x: m(x).square().mean())
    assert {row["what"] for row in rows} == set(NORM_OF) - {TOKENS}, "its branches are not known"
