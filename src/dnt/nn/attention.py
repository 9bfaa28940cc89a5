"""softmax(q k^T / sqrt(K)) v, by the fastest way of each device."""
# B batch, H heads, G heads of keys and values, T queries, S keys, K width of a head

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# On a CPU, in tokens: how far products of whole blocks are faster than scaled_dot_product_attention, whose bfloat16
# backward pass is slower than float32's (bench/kernel_times.py). They keep the probabilities: no further than it pays.
BLOCKED_UP_TO = {torch.bfloat16: 1024, torch.float32: 256}
LEAST_ROWS, MOST_BLOCKS = 128, 4


def attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    causal: bool,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """(B, H, T, K), in the dtype of v. Causal: the T queries are the first of the S keys' tokens.

    mask (T, S) or (B, 1, T, S) bool: which keys each query may see, instead of causal. dropout: of the probabilities.
    """
    dtype = v_BGSK.dtype
    on_cpu = v_BGSK.device.type == "cpu"
    blocked = on_cpu and mask is None and q_BHTK.shape[-2] == k_BGSK.shape[-2] <= BLOCKED_UP_TO.get(dtype, 0)
    inner = dtype if blocked or not on_cpu else torch.promote_types(dtype, torch.float32)
    q, k, v = q_BHTK.to(inner), k_BGSK.to(inner), v_BGSK.to(inner)
    with torch.autocast("cpu" if v.is_meta else v.device.type, enabled=False):  # there is none for meta
        if blocked:
            return in_blocks(q, k, v, causal, dropout)
        grouped = k.shape[-3] < q.shape[-3]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped).to(dtype)


def in_blocks(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, causal: bool, dropout: float = 0.0) -> Tensor:
    """A block of queries at a time, against the keys that some of them may see: of four causal blocks 10 of 16."""
    tokens, width = q_BHTK.shape[-2:]
    groups = q_BHTK.shape[-3] // k_BGTK.shape[-3]
    k, v = (t.repeat_interleave(groups, dim=-3) if groups > 1 else t for t in (k_BGTK, v_BGTK))
    blocks = min(MOST_BLOCKS, max(1, tokens // LEAST_ROWS)) if causal else 1
    outputs = []
    end = 0
    for q in (q_BHTK * width**-0.5).split(-(-tokens // blocks), dim=-2):
        start, end = end, end + q.shape[-2]
        seen = end if causal else tokens
        scores = q @ k[..., :seen, :].transpose(-2, -1)
        if causal:
            scores = scores + torch.full_like(scores[0, 0], -torch.inf).triu(1 + start)
        outputs.append(F.dropout(scores.softmax(-1), dropout) @ v[..., :seen, :])
    return torch.cat(outputs, dim=-2)


def relu_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    causal: bool,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """relu(q k^T / sqrt(K)) v / n over the n keys that a query may see; arguments as for `attention` (2309.08586).

    The paper divides by the length of the sequence, which in a causal model would let the first tokens see little.
    """
    groups = q_BHTK.shape[-3] // k_BGSK.shape[-3]
    k, v = (t.repeat_interleave(groups, dim=-3) if groups > 1 else t for t in (k_BGSK, v_BGSK))
    scores = (q_BHTK * q_BHTK.shape[-1] ** -0.5).to(v.dtype) @ k.to(v.dtype).transpose(-2, -1)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=v.device) if mask is None else mask
    seen = seen.tril() if causal else seen
    seen = seen.to(v.dtype)
    weights = scores.relu() * (seen / seen.sum(-1, keepdim=True))
    return F.dropout(weights, dropout) @ v


ATTENTIONS: dict[str, Callable[..., Tensor]] = {"softmax": attention, "relu": relu_attention}
