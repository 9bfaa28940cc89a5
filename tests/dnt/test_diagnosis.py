"""All measurements of a model together: they are the single ones, whatever the model, and leave it as it was."""

import json
import math
from dataclasses import asdict
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import dnt
from dnt.analysis import (
    attention_entropies,
    diagnose,
    gradient_noise,
    gradient_stats,
    model_jacobians,
    residual_norms,
    tail_indices,
    weight_spectra,
)
from dnt.analysis.diagnosis import FEWEST, LISTS, step_rows
from dnt.analysis.tails import alpha_stable

SIZES = {"depth": 2, "dim": 16, "heads": 2}
QUICK = {"exact": 128, "resamples": 2}
TABLES = ["gradients", "tails", "shares", "noise", "scales", "jacobians", "weights", "stream", "attention"]


def tokens(seed: int, rows: int = 2) -> tuple[torch.Tensor, ...]:
    drawn = torch.randint(19, (rows, 13), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1], drawn[:, 1:]


def images(seed: int, rows: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, 8, 8, generator=generator), torch.randint(5, (rows,), generator=generator)


def vectors(seed: int, rows: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 20, generator=generator), torch.randint(5, (rows,), generator=generator)


def own(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return model.loss(x, y)


def of_scores(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = model(x)
    scores = out if isinstance(out, torch.Tensor) else out.logits
    return F.cross_entropy(scores.flatten(0, -2), y.flatten())


def gpt() -> nn.Module:
    return dnt.GPT(dnt.GPTConfig(vocab_size=19, context=12, dropout=0.3, **SIZES))


def vit() -> nn.Module:
    return dnt.ViT(dnt.ViTConfig(image_size=8, patch_size=2, channels=3, classes=5, placement="pre-ln", **SIZES))


def timm_vit() -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 2, "num_classes": 5, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return timm.models.VisionTransformer(**sizes)


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 19, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 5))


MODELS = {
    "dnt gpt": (gpt, tokens, own),
    "dnt vit": (vit, images, own),
    "timm vit": (timm_vit, images, of_scores),
    "gpt2": (gpt2, tokens, of_scores),
    "plain": (plain, vectors, of_scores),
}


def made(name: str):
    torch.manual_seed(0)
    model, batch, loss = MODELS[name]
    return model().eval(), batch, loss


@pytest.mark.parametrize("name", MODELS)
def test_the_tables_are_those_of_the_single_functions_and_the_model_stays_as_it_was(name):
    model, batch, loss = made(name)
    first, second = batch(0), batch(1)
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, i)
    list(model.modules())[-1].train()  # a linear layer or a norm, to which it makes no difference
    modes = [module.training for module in model.modules()]
    before, state = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    found = diagnose(model, iter([first, second]), loss, tokens=9, singular_values=2, **QUICK)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(bool((p.grad == i).all()) and p.requires_grad for i, p in enumerate(model.parameters()))

    assert list(found) == TABLES and not found["noise"]
    assert json.loads(json.dumps(found, allow_nan=True)).keys() == found.keys()
    stats = gradient_stats(model, [first, second], loss)
    rows = {(row["level"], row["name"]): row for row in found["gradients"]}
    assert rows["all", "all"]["rms"] == stats.total.rms and rows["all", "all"]["count"] == stats.total.count
    for level, singles in (("part", stats.parts), ("role", stats.roles)):
        assert [name for kind, name in rows if kind == level] == list(singles)
        for single, entries in singles.items():
            row, expected = rows[level, single], asdict(entries)
            assert all(row[key] == pytest.approx(expected[key], nan_ok=True) for key in ("kurtosis", "top_share"))
            assert row["zero_share"] == entries.zeros / entries.count
        assert sum(row["norm_share"] for (kind, _), row in rows.items() if kind == level) == pytest.approx(1)
    assert all(sum(row["histogram"]) == row["count"] - row["zeros"] for row in rows.values())
    weights = weight_spectra(model)
    assert [row["largest"] for row in found["weights"]] == [each.spread.largest for each in weights]
    assert [row["singular_values"] for row in found["weights"]] == [each.singular_values.tolist() for each in weights]
    run = partial(loss, model, *first)
    assert found["stream"] == [asdict(row) for row in residual_norms(model, run)]
    assert found["attention"] == [asdict(row) for row in attention_entropies(model, run)]
    blockless = [name for name in ("scales", "jacobians", "stream", "attention") if not found[name]]
    assert blockless == (["scales", "jacobians", "stream", "attention"] if name == "plain" else [])


@pytest.mark.parametrize(("exact", "known", "of"), [(128, 128, 128), (64, 3, 144), (10_000, 144, 144)])
def test_jacobians_are_all_singular_values_where_few_tokens_give_them(exact, known, of):
    """Of a causal model those of a shorter sequence: 128 / 16 tokens; fewer than FEWEST say little of attention."""
    model, batch, loss = made("dnt gpt")
    x, y = batch(0)
    rows = diagnose(model, [(x, y)], loss, tokens=9, singular_values=3, exact=exact, resamples=2)["jacobians"]
    length = of // 16
    assert length >= FEWEST
    how = {"k": 3} if known == 3 else {"exact": exact}
    expected = model_jacobians(model, partial(model, x[:1, :length]), **how)
    assert [(row["layer"], row["what"]) for row in rows] == [(each.layer, each.what) for each in expected]
    for row, each in zip(rows, expected, strict=True):
        assert (row["known"], row["of"]) == (known, of)
        assert row["singular_values"] == pytest.approx(each.singular_values.tolist(), rel=1e-3)
        assert row["largest"] == pytest.approx(each.spread.largest, rel=1e-3)


def test_tails_are_those_of_the_gradients_of_a_role_in_all_layers():
    model, batch, loss = made("dnt gpt")
    found = diagnose(model, [batch(0)], loss, jacobians=False, resamples=3)
    assert found["jacobians"] == []
    gradients = dict(
        zip((name for name, _ in model.named_parameters()),
            torch.autograd.grad(loss(model, *batch(0)), list(model.parameters())), strict=True)
    )  # fmt: skip
    of_w_2 = tail_indices([gradients[f"blocks.{i}.mlp.f.out.weight"] for i in range(2)], resamples=3)
    rows = [row for row in found["tails"] if row["name"] == "2"]
    assert [(row["index"], row["how"]) for row in rows] == [
        (index, how) for how in ("raw", "levelled", "unscaled") for index in ("hill", "power law", "student t")
    ]
    for row, index in zip(rows, (*of_w_2.raw, *of_w_2.levelled, *of_w_2.unscaled), strict=True):
        assert (row["value"], row["low"], row["high"]) == (index.value, index.low, index.high)
    [shares] = [row for row in found["shares"] if row["name"] == "2"]
    assert shares["variance"] == of_w_2.shares.variance
    names = {row["name"] for row in found["tails"]}
    assert "blocks" in names and "gain" not in names, "80 entries have no tail to speak of"


def test_noise_that_never_moves_says_so_and_too_few_batches_are_refused():
    """Of a parameter with the same gradient in every batch, and of one that moves."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.still, self.moving = nn.Linear(3, 3, bias=False), nn.LayerNorm(40)

    def loss(model, x):
        return model.still.weight.sum() + (model.moving.weight * x).sum()

    batches = [(torch.randn(40),) for _ in range(16)]
    found = {row["role"]: row for row in diagnose(Two(), batches[:1], loss, noise=batches, **QUICK)["noise"]}
    assert found["other"]["value"] is None and "the same in all batches" in found["other"]["why"]
    assert found["gain"]["value"] > 1 and found["gain"]["why"] is None
    assert found["gain"].keys() == found["other"].keys()
    with pytest.raises(ValueError, match="noise is of 9 batches; its index needs 16 or more"):
        diagnose(Two(), batches[:1], loss, noise=batches[:9], **QUICK)


@pytest.mark.parametrize("name", ["dnt gpt", "plain"])
def test_noise_has_a_row_for_each_role(name):
    model, batch, loss = made(name)
    batches = [batch(seed) for seed in range(64)]
    found = diagnose(model, batches[:1], loss, noise=batches, jacobians=False, resamples=2)["noise"]
    samples = gradient_noise(model, batches, loss)
    by_role = {role: [samples[part.name] for part in dnt.analysis.parts(model) if part.role == role] for role in
               dict.fromkeys(part.role for part in dnt.analysis.parts(model))}  # fmt: skip
    assert [row["role"] for row in found] == list(by_role)
    for row, noises in zip(found, by_role.values(), strict=True):
        assert row["value"] == alpha_stable(torch.cat(noises, dim=1)).value
        assert 0 < row["low"] <= row["value"] <= row["high"] <= 2.5


def test_brief_tables_hold_no_lists_of_singular_values():
    model, batch, loss = made("dnt gpt")
    whole, brief = (diagnose(model, [batch(0)], loss, brief=brief, **QUICK) for brief in (False, True))
    for name, rows in whole.items():
        for row, short in zip(rows, brief[name], strict=True):
            left_out = (*LISTS, "histogram") if row.get("level") == "part" else LISTS
            assert set(row) - set(short) == set(row) & set(left_out)
            assert all(row[key] == short[key] or math.isnan(row[key]) for key in short), name
    assert not set(LISTS) & {key for rows in brief.values() for row in rows for key in row}


def test_steps_are_what_a_step_moved():
    model, *_ = made("dnt gpt")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.blocks[1].mlp.f.out.weight.data.mul_(1.25)
    moved = {row["name"]: (row["spectral"], row["frobenius"]) for row in step_rows(model, before)}
    assert moved.pop("blocks.1.mlp.f.out.weight") == pytest.approx((0.25, 0.25), rel=1e-3)
    assert set(moved.values()) == {(0.0, 0.0)}


def test_no_batch_is_named():
    model, _, loss = made("plain")
    with pytest.raises(ValueError, match="no batch to diagnose a model on; give at least one"):
        diagnose(model, [], loss)
