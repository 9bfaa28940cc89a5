"""Slow, obviously right versions of what the library computes: float64, loops, no shared code."""
# D width, N tokens, K head width; tokens are the columns of X (D x N) in the attention formulas

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """sqrt(d) g x / sqrt(||x||^2 + d eps) of one vector."""
    d = x.numel()
    return math.sqrt(d) * gain * x / torch.sqrt(x.dot(x) + d * eps)


def rms_norm_jacobian(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """sqrt(d)/sqrt(||x||^2 + d eps) diag(g) (I - x x^T / (||x||^2 + d eps)), (D, D)."""
    d, size = x.numel(), x.dot(x) + x.numel() * eps
    return math.sqrt(d) / size.sqrt() * torch.diag(gain) @ (torch.eye(d, dtype=x.dtype) - torch.outer(x, x) / size)


def attention_column(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    """W_v X A of one head, A the column softmax of X^T W_k^T W_q X / sqrt(K)."""
    logits = x.T @ w_k.T @ w_q @ x / math.sqrt(w_q.shape[0])
    return w_v @ x @ logits.softmax(dim=0)


def attention_jacobian(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    """dvec(Y)/dvec(X) of `attention_column`, vec stacking columns (reference/dnt.md section 5)."""
    d, n = x.shape
    eye_n = torch.eye(n, dtype=x.dtype)
    a = (x.T @ w_k.T @ w_q @ x / math.sqrt(w_q.shape[0])).softmax(dim=0)
    softmax_jacobian = torch.block_diag(*(torch.diag(a[:, j]) - torch.outer(a[:, j], a[:, j]) for j in range(n)))
    commutation = torch.zeros(d * n, d * n, dtype=x.dtype)  # vec(X^T) = K vec(X)
    for i in range(d):
        for j in range(n):
            commutation[i * n + j, j * d + i] = 1
    logit_jacobian = torch.kron(eye_n, x.T @ w_k.T @ w_q) + torch.kron(x.T @ w_q.T @ w_k, eye_n) @ commutation
    through_softmax = torch.kron(eye_n, w_v @ x) @ softmax_jacobian @ logit_jacobian / math.sqrt(w_q.shape[0])
    return torch.kron(a.T.contiguous(), w_v) + through_softmax


def causal_attention(x: Tensor, qkv: Tensor, out: Tensor, heads: int, gains: tuple[Tensor, Tensor] | None) -> Tensor:
    """Multi-head causal self-attention of x (N, D), one query, head and key at a time; QKNorm (eps 1e-6) with gains."""
    n, d = x.shape
    k = d // heads
    w_q, w_k, w_v = qkv.split(d)
    rows = []
    for i in range(n):
        joined = []
        for h in range(heads):
            part = slice(h * k, (h + 1) * k)
            q = w_q[part] @ x[i]
            keys = [w_k[part] @ x[j] for j in range(i + 1)]
            if gains:
                q = rms_norm(q, gains[0], 1e-6)
                keys = [rms_norm(key, gains[1], 1e-6) for key in keys]
            weights = torch.stack([q.dot(key) / math.sqrt(k) for key in keys]).softmax(0)
            joined.append(sum(w * (w_v[part] @ x[j]) for j, w in enumerate(weights)))
        rows.append(out @ torch.cat(joined))
    return torch.stack(rows)


def msgdw(w: list[float], grads: list[list[float]], lr: float, momentum: float, decay: float) -> list[float]:
    """w <- (1 - lr wd) w - lr m, m <- mu m + g, one number at a time; grads[step][i]."""
    m = [0.0] * len(w)
    for g in grads:
        m = [momentum * m_i + g_i for m_i, g_i in zip(m, g, strict=True)]
        w = [(1 - lr * decay) * w_i - lr * m_i for w_i, m_i in zip(w, m, strict=True)]
    return w


def sincos(coordinates: tuple[int, ...], d: int) -> Tensor:
    """The position of one patch: d / 2 sines, then as many cosines, an equal share for each axis."""
    share = d // (2 * len(coordinates))
    angles = [c / 10_000 ** (i / share) for c in coordinates for i in range(share)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)
