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


def partial_rms_norm(x: Tensor, gain: Tensor, eps: float, seen: int) -> Tensor:
    """g x / sqrt(mean of the first squares + eps) of one vector."""
    return gain * x / math.sqrt(sum(float(entry) ** 2 for entry in x[:seen]) / seen + eps)


def scale_norm(x: Tensor, g: float) -> Tensor:
    """g x / ||x|| of one vector."""
    return g * x / math.sqrt(float(x.dot(x)))


def center_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """g (I - 1 1^T / d) x d / (d - 1) + b of one vector."""
    d = x.numel()
    return gain * ((torch.eye(d, dtype=x.dtype) - 1 / d) @ x) * d / (d - 1) + bias


def power_norm(batches: list[Tensor], grads: list[Tensor], warm: list[bool], eps: float) -> list[tuple[Tensor, Tensor]]:
    """z and dL/dx of each iteration; batches (N, D) and dL/dz, one feature at a time; 0.9 of what was is kept.

    psi^2 of the iteration before, nu of the one before; in a warm one those of the batch.
    """
    found = [(torch.empty_like(x), torch.empty_like(x)) for x in batches]
    for d in range(batches[0].shape[1]):
        running, nu = 1.0, 0.0
        for x, g, is_warm, (z, gx) in zip(batches, grads, warm, found, strict=True):
            square = float((x[:, d] ** 2).mean())
            psi = math.sqrt((square if is_warm else running) + eps)
            running = 0.9 * running + 0.1 * square
            z[:, d] = x[:, d] / psi
            product = float((g[:, d] * z[:, d]).mean())
            gx[:, d] = (g[:, d] - (product if is_warm else nu) * z[:, d]) / psi
            nu = nu * (1 - 0.1 * float((z[:, d] ** 2).mean())) + 0.1 * product
    return found


def unified_norm(
    batches: list[Tensor], grads: list[Tensor], warm: list[bool], eps: float
) -> tuple[list[tuple[Tensor, Tensor]], list[bool]]:
    """As power_norm with windows of 4 iterations, and which of these had an outlier."""
    features = range(batches[0].shape[1])
    squares = [[1.0] * 4 for _ in features]
    products = [[0.0] * 4 for _ in features]
    running, nu = [1.0 for _ in features], [0.0 for _ in features]
    found, outliers = [], []
    for x, g, is_warm in zip(batches, grads, warm, strict=True):
        z, gx = torch.empty_like(x), torch.empty_like(x)
        roots = torch.tensor([math.sqrt(s) for window in squares for s in window], dtype=torch.float64)
        latest = [float((x[:, d] ** 2).mean()) for d in features]
        windows = [[*squares[d][1:], latest[d]] for d in features]
        means = [math.prod(window) ** 0.25 for window in windows]
        gaps = [sum(window) / 4 - mean for window, mean in zip(windows, means, strict=True)]
        outlier = not is_warm and max(gaps) > 4 * float(roots.var())
        outliers.append(outlier)
        for d in features:
            squares[d] = [*squares[d][1:], running[d] if outlier else latest[d]]
            plain = is_warm or outlier
            sigma2 = latest[d] if plain else means[d]
            running[d] = 0.9 * running[d] + 0.1 * sigma2
            z[:, d] = x[:, d] / math.sqrt(sigma2 + eps)
            product = float((g[:, d] * z[:, d]).mean())
            products[d] = [*products[d][1:], nu[d] if outlier else product]
            nu[d] = 0.9 * nu[d] + 0.1 * (product if plain else sum(products[d]) / 4)
            gx[:, d] = (g[:, d] - (product if plain else nu[d]) * z[:, d]) / math.sqrt(sigma2 + eps)
        found.append((z, gx))
    return found, outliers


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
