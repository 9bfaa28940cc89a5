"""The paper's statements 1 to 5 and the eps condition (arXiv 2507.17501; statement 4 in its corrected form).

Float64 with eps = 0 where a statement is exact; the models are the library's own.
"""

import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

import dnt
from dnt.experiments.statements import (
    SMALL,
    STATED,
    THINGS,
    Change,
    changes,
    example,
    limits,
    rescaled,
    singular_values,
    summary,
)
from dnt.nn.layers import MLP, Attention, Sublayer
from dnt.nn.norms import RMSNorm
from dnt.nn.placement import Placement, Slots
from tests import reference

D, HEADS, N = 16, 2, 6
CONFIG = dnt.GPTConfig(vocab_size=2, context=N, depth=1, dim=D, heads=HEADS)
norm = partial(RMSNorm, eps=0.0)


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def attention(qk: bool = False) -> Attention:
    return Attention(CONFIG, Placement(attn=Slots(), mlp=Slots(), qk=qk), norm, causal=True)


def mlp(activation: str) -> MLP:
    return MLP(replace(CONFIG, activation=activation), dnt.PLACEMENTS["no-norm"], norm)


@torch.no_grad()
def scale_(weight: torch.Tensor, factor: float, rows: slice = slice(None)) -> None:
    weight[rows] *= factor


def test_attention_jacobian_closed_form_equals_autograd():
    x, w_q, w_k, w_v = torch.randn(5, 4), torch.randn(3, 5), torch.randn(3, 5), torch.randn(2, 5)

    def columns(flat):  # vec stacks columns
        return reference.attention_column(flat.view(4, 5).T, w_q, w_k, w_v).T.flatten()

    closed = reference.attention_jacobian(x, w_q, w_k, w_v)
    torch.testing.assert_close(closed, jacobian(columns, x.T.flatten()), rtol=0, atol=1e-12)


def test_statement_1_a_large_x0_shrinks_and_a_small_one_inflates_the_gradient_of_later_norms():
    """x_l = x_0 + sum f with nearly orthogonal terms: dN(x_l)/dx_l scales as 1/sqrt(||x_0||^2 + sum ||f||^2)."""
    d = 256
    wide = RMSNorm(d, eps=0.0)
    x0, branches = torch.randn(d), torch.randn(4, d)
    for size in (0.01, 1.0, 100.0):
        x = size * x0 + branches.sum(0)
        predicted = math.sqrt(d) / torch.sqrt((size * x0).square().sum() + branches.square().sum())
        sigma_1 = torch.linalg.matrix_norm(jacobian(wide, x), 2).item()
        assert sigma_1 == pytest.approx(predicted.item(), rel=0.1)


@pytest.mark.parametrize(("placement", "blind"), [("dnt", True), ("s3", True), ("pre-ln", False), ("peri-ln", False)])
def test_statement_1_inputnorm_makes_the_model_blind_to_the_scale_of_its_embeddings(placement, blind):
    model = small_gpt(placement, norm_eps=0.0)
    tokens = torch.randint(0, 11, (2, N))
    before = model(tokens)
    scale_(model.tokens.weight, 7.0)
    scale_(model.positions.weight, 7.0)
    model.head.weight = torch.nn.Parameter(model.head.weight / 7.0)  # tied: undo it where it is the head
    assert torch.allclose(model(tokens), before, atol=1e-10) == blind


def test_statement_2_prenorm_attention_does_not_see_the_scale_of_a_token_nor_does_its_jacobian():
    branch = Sublayer(attention(), Slots(pre=True), norm, CONFIG, 0, nn.Identity())
    x = torch.randn(1, N, D)
    scaled = x * torch.tensor([0.1, 1.0, 10.0, 3.0, 1e3, 0.5]).view(1, N, 1)
    torch.testing.assert_close(branch.f(branch.pre(scaled)), branch.f(branch.pre(x)))
    torch.testing.assert_close(jacobian(branch.f, branch.pre(scaled)), jacobian(branch.f, branch.pre(x)))
    bare = attention()
    assert not torch.allclose(bare(scaled), bare(x))


def branch_and_jacobian(sublayer: Sublayer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    def branch(x: torch.Tensor) -> torch.Tensor:
        return sublayer.mid(sublayer.f(sublayer.pre(x)))

    return branch(x), jacobian(branch, x)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu-tanh"])
@pytest.mark.parametrize("matrix", ["up", "out"])
def test_statement_3_midnorm_makes_a_branch_blind_to_its_weight_scale(activation, matrix):
    """Exact for ReLU; with GELU only W_2 is blind, and W_1 x 3 changes the normalized branch by some percent."""
    sublayer = Sublayer(mlp(activation), Slots(mid=True), norm, CONFIG, 0, nn.Identity())
    x = torch.randn(1, N, D)
    before, jacobian_before = branch_and_jacobian(sublayer, x)
    scale_(getattr(sublayer.f, matrix).weight, 3.0)
    after, jacobian_after = branch_and_jacobian(sublayer, x)
    change = (after - before).norm() / before.norm()
    if activation == "relu" or matrix == "out":
        torch.testing.assert_close(after, before)
        torch.testing.assert_close(jacobian_after, jacobian_before)
    else:
        assert 0.01 < change < 0.3


@pytest.mark.parametrize("matrix", ["v", "out"])
def test_statement_3_midnorm_makes_attention_blind_to_the_scale_of_values_and_output(matrix):
    with_mid = Sublayer(attention(), Slots(pre=True, mid=True), norm, CONFIG, 0, nn.Identity())
    without = Sublayer(with_mid.f, Slots(pre=True), norm, CONFIG, 0, nn.Identity())
    x = torch.randn(1, N, D)
    before, jacobian_before = branch_and_jacobian(with_mid, x)
    bare = without(x)
    if matrix == "v":
        scale_(with_mid.f.qkv.weight, 5.0, slice(2 * D, 3 * D))
    else:
        scale_(with_mid.f.out.weight, 5.0)
    after, jacobian_after = branch_and_jacobian(with_mid, x)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(jacobian_after, jacobian_before)
    assert not torch.allclose(without(x), bare), "without MidNorm the scale is seen"


def test_statement_4_postnorm_forgets_its_input_as_the_branch_grows():
    """J = J_N(z)(I + J_f): the skip's share falls and J tends to the Jacobian of N(f(x)), not to 0."""
    sublayer = Sublayer(mlp("relu"), Slots(post=True), norm, CONFIG, 0, nn.Identity())
    x = torch.randn(D)
    distance, share, size = [], [], []
    for _ in range(4):
        z = x + sublayer.f(x)
        j_norm = reference.rms_norm_jacobian(z, torch.ones(D), 0.0)
        full = jacobian(sublayer, x)
        torch.testing.assert_close(full, j_norm @ (torch.eye(D) + jacobian(sublayer.f, x)))
        forgetful = jacobian(lambda x: sublayer.post(sublayer.f(x)), x)
        distance.append(((full - forgetful).norm() / forgetful.norm()).item())
        share.append(j_norm.norm().item())
        size.append(full.norm().item())
        scale_(sublayer.f.out.weight, 10.0)
    assert share[-1] == pytest.approx(0.1 * share[-2], rel=0.05), "the skip's share falls as 1/||z||"
    assert distance[-1] < 1e-2 * distance[0], "what is left is N(f(x))"
    assert size[-1] > 0.1 * size[0], "the whole Jacobian settles instead of vanishing"


@pytest.mark.parametrize("qk", [True, False])
def test_statement_5_qknorm_makes_the_logits_jacobian_blind_to_the_scale_of_queries_and_keys(qk):
    f = attention(qk=qk)

    def logit(x: torch.Tensor) -> torch.Tensor:
        q, k, _ = f.qkv(x).view(2, 3, HEADS, D // HEADS).unbind(1)
        return (f.q_norm(q)[0] * f.k_norm(k)[1]).sum(-1)

    x = torch.randn(2, D)
    before = jacobian(logit, x)
    scale_(f.qkv.weight, 4.0, slice(0, D))
    scale_(f.qkv.weight, 0.3, slice(D, 2 * D))
    assert torch.allclose(jacobian(logit, x), before) == qk


def small_gpt(placement: str, **fields) -> dnt.GPT:
    return dnt.GPT(dnt.GPTConfig(vocab_size=11, context=N, depth=2, dim=D, heads=HEADS, placement=placement, **fields))


def branch_mean_squares(model: dnt.GPT, tokens: torch.Tensor) -> torch.Tensor:
    """mean(f^2) of every branch at every token, as MidNorm sees it."""
    seen: list[torch.Tensor] = []
    hooks = [
        sublayer.f.register_forward_hook(lambda _module, _inputs, out: seen.append(out.square().mean(-1).flatten()))
        for block in model.blocks
        for sublayer in (block.attn, block.mlp)
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def test_eps_shrinks_no_branch_of_dnt_by_more_than_one_percent_at_initialization():
    """GPT-2 small's width and context. With GPT-2's own init the same eps would break the bound."""
    torch.set_default_dtype(torch.float32)
    eps = dnt.GPTConfig.norm_eps
    shape = {"depth": 4, "vocab_size": 500}
    tokens = torch.randint(0, 500, (1, 1024))
    shrink = {}
    for init in ("dnt", "gpt2"):
        torch.manual_seed(0)
        model = dnt.gpt("gpt2-small", placement="dnt", init=init, **shape)
        if init == "gpt2":  # as at depth 12
            for block in model.blocks:
                for sublayer in (block.attn, block.mlp):
                    sublayer.f.out.weight *= math.sqrt(4 / 12)
        squares = branch_mean_squares(model, tokens)
        shrink[init] = float((1 - (squares / (squares + eps)).sqrt()).max())
    assert shrink["dnt"] < 0.01 < shrink["gpt2"]


TINY = replace(SMALL, dim=16, heads=2, context=6, activation="relu")
HIDDEN, SEEN = 1e-9, 5e-4  # largest |ln ratio| of a singular value


@cache
def measured(placement: str, activation: str = "relu") -> tuple[Change, ...]:
    return tuple(changes(placement, (0.125, 0.5, 2.0, 8.0), replace(TINY, activation=activation), seed=0))


def hides(placement: dnt.Placement, thing: str) -> bool:
    return {
        "x_0": placement.input,
        "columns of X": placement.attn.pre,
        "W_1, W_2": placement.mlp.mid,
        "W_v, W_o": placement.attn.mid,
        "W_q, W_k": placement.qk,
    }[thing]


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("placement", STATED)
def test_a_scale_is_hidden_from_every_singular_value_exactly_where_its_norm_is(placement, thing):
    largest = max(row.change for row in measured(placement) if row.thing == thing)
    assert largest < HIDDEN if hides(dnt.PLACEMENTS[placement], thing) else largest > SEEN


def test_without_midnorm_relu_makes_the_jacobian_the_product_of_both_factors():
    for row in measured("pre-ln"):
        if row.thing in ("W_1, W_2", "W_v, W_o"):
            assert row.largest == pytest.approx(row.factor**2)
            assert row.change == pytest.approx(2 * abs(math.log(row.factor)))


def test_with_gelu_midnorm_hides_the_scale_of_w1_only_in_part():
    gelu = {row.factor: row.change for row in measured("dnt", "gelu") if row.thing == "W_1, W_2"}
    bare = {row.factor: row.change for row in measured("dnt-no-mid", "gelu") if row.thing == "W_1, W_2"}
    for factor, change in gelu.items():
        assert SEEN < change < bare[factor] / 2


def test_the_scale_of_x0_is_seen_at_the_point_that_was_not_rescaled():
    """d blocks(s e) / d e = s J(s e), with J of torch.autograd."""
    model, tokens = example(replace(TINY, placement="pre-ln"), seed=1)
    f, x_0 = rescaled(model, tokens, "x_0", 4.0)
    expected = 4 * jacobian(lambda x: model.blocks[1](model.blocks[0](x)), 4 * x_0).view(x_0.numel(), -1)
    torch.testing.assert_close(singular_values(f, x_0), torch.linalg.svdvals(expected))


def test_limits_are_where_the_largest_singular_value_doubles_or_halves():
    """sigma_1 = s^2 doubles at sqrt 2, whatever the factors; s^0.1 never does in 1/8 to 8."""

    def rows(power: float) -> list[Change]:
        return [Change("", "", s, s**power, 0.0, 1.0, 0.0) for s in (4.0, 0.3, 1.0, 8.0, 0.125)]

    assert limits(rows(2.0)) == pytest.approx((2**-0.5, 2**0.5))
    assert limits(rows(-2.0)) == pytest.approx((2**-0.5, 2**0.5))
    assert limits(rows(0.1)) == (None, None)


def test_the_summary_of_changes_has_a_row_of_each_placement_and_says_what_is_hidden():
    pre_ln, dnt_row = summary([*measured("pre-ln"), *measured("dnt")])
    assert dnt_row == {"placement": "dnt"} | dict.fromkeys(THINGS, "0")
    assert pre_ln["columns of X"] == "0" and pre_ln["W_1, W_2"] == "4.2 (0.71, 1.4)"
