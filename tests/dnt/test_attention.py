import pytest
import torch
import torch.nn.functional as F

from dnt.nn.attention import BLOCKED_UP_TO, attention, in_blocks


def qkv(tokens: int, heads: int = 4, kv_heads: int = 4, dtype=torch.float64) -> list[torch.Tensor]:
    """Seen as attention sees them: heads before tokens, in memory after them."""
    torch.manual_seed(0)
    shapes = [(2, tokens, n, 16) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("tokens", [1, 7, 256, 389, 700])
def test_blocks_equal_torchs_attention_forward_and_backward(tokens, kv_heads, causal):
    ours, theirs = qkv(tokens, 4, kv_heads), qkv(tokens, 4, kv_heads)
    a = in_blocks(*ours, causal)
    b = F.scaled_dot_product_attention(*theirs, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(a)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tokens", [64, 512])
def test_in_bfloat16_blocks_are_as_exact_as_the_rounding_of_their_scores(tokens):
    exact = qkv(tokens)
    narrow = [t.detach().bfloat16().requires_grad_() for t in exact]
    a = attention(*(t.bfloat16().double() for t in exact), True)
    b = attention(*narrow, True)
    weights = torch.randn_like(a)
    (a * weights).sum().backward()
    (b * weights.bfloat16()).sum().backward()
    assert b.dtype == torch.bfloat16
    for found, true in [(b, a), *((n.grad, e.grad) for n, e in zip(narrow, exact, strict=True))]:
        assert (found.double() - true).norm() < 0.015 * true.norm(), "bfloat16 has 8 bits: 0.4%"


def test_beyond_the_limit_and_with_a_mask_torchs_attention_is_called(monkeypatch):
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    most = BLOCKED_UP_TO[torch.float32]
    attention(*qkv(most, dtype=torch.float32), True)
    assert not calls
    attention(*qkv(most + 1, dtype=torch.float32), True)
    attention(*qkv(8, dtype=torch.float32), False, torch.ones(8, 8, dtype=torch.bool))
    assert len(calls) == 2


def test_dropout_leaves_the_mean_of_the_output():
    q, k, _ = qkv(32)
    v = torch.ones(2, 4, 32, 16, dtype=torch.float64)
    torch.manual_seed(0)
    found = torch.stack([in_blocks(q, k, v, True, 0.3).detach() for _ in range(300)]).mean()
    assert float(found) == pytest.approx(1, abs=0.02)
    assert not torch.equal(in_blocks(q, k, v, True, 0.3), in_blocks(q, k, v, True, 0.3))
