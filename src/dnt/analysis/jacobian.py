"""How far what a model computes stretches one direction more than another: singular values of its Jacobians.

The gradient of a weight is a product of layer Jacobians with an activation; widely spread singular values give it a
heavy tail. The closed forms are those of the paper (arXiv 2507.17501).
"""
# B batch, T tokens, D width; in the closed forms N tokens are the columns of X, as the paper has them
# a Jacobian is (M, N): y's entries by x's; s are its singular values, K of them

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dnt.analysis.anatomy import blocks, branches, captured, chain

EXACT = 2048  # most inputs of a Jacobian that is written down
CHUNK = 16  # of its rows at a time
TOP = 32  # of a larger one
TOLERANCE = 1e-4  # of the largest singular values, relative: to which the iteration converges
PROBES = 16

Function = Callable[[Tensor], Tensor]


# Closed forms


def rmsnorm_jacobian(x_D: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """Of g x / r, r^2 = mean(x^2) + eps: diag(g) (I - x x^T / (d r^2)) / r; (D, D)."""
    r = (x_D.square().mean() + eps).sqrt()
    return gain_D[:, None] * (identity(x_D) - torch.outer(x_D, x_D) / (len(x_D) * r**2)) / r


def layernorm_jacobian(x_D: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """Of g c / r, c = x - mean(x), r^2 = mean(c^2) + eps: diag(g) (I - 1 1^T / d - c c^T / (d r^2)) / r; (D, D)."""
    c = x_D - x_D.mean()
    r = (c.square().mean() + eps).sqrt()
    return gain_D[:, None] * (identity(x_D) - 1 / len(x_D) - torch.outer(c, c) / (len(x_D) * r**2)) / r


def midnorm_jacobian(x_D: Tensor, W_1: Tensor, W_2: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """Of RMSNorm(W_2 relu(W_1 x)): that of the norm times W_2 diag(1[W_1 x > 0]) W_1; (D, D).

    With eps = 0 it is sqrt(d) diag(g) (I - u u^T) M, u a unit vector and M the paper's W_2 diag(1[W_1 x > 0]) W_1 /
    ||W_2 relu(W_1 x)||, which does not change with the scale of W_1 or W_2.
    """
    hidden = W_1 @ x_D
    return rmsnorm_jacobian(W_2 @ hidden.relu(), gain_D, eps) @ (W_2 * (hidden > 0)) @ W_1


def attention_jacobian(X_DN: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, causal: bool = False) -> Tensor:
    """Of Y = W_v X A, A the column softmax of X^T W_k^T W_q X / sqrt(d_h), one head; (N D_v, N D).

    dvec(Y) / dvec(X) = (A^T (x) W_v) + (I (x) W_v X) J_A [(I (x) X^T W_k^T W_q) + (X^T W_q^T W_k (x) I) K] / sqrt(d_h)
    with vec stacking columns, J_A = blockdiag_j(diag(a_j) - a_j a_j^T) and K vec(X) = vec(X^T). Causal: column j of A
    is zero below row j, and the formula stays.
    """
    X, (d, n), scale = X_DN, X_DN.shape, W_q.shape[0] ** -0.5
    logits = X.T @ W_k.T @ W_q @ X * scale
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).tril(-1), -math.inf)
    A = logits.softmax(dim=0)
    I = torch.eye(n, dtype=X.dtype, device=X.device)  # noqa: E741
    J_A = torch.block_diag(*(a.diag() - a.outer(a) for a in A.T))
    through_keys = torch.kron(X.T @ W_q.T @ W_k, I) @ commutation_matrix(d, n).to(X)
    through_A = torch.kron(I, W_v @ X) @ J_A @ (torch.kron(I, X.T @ W_k.T @ W_q) + through_keys) * scale
    return torch.kron(A.T.contiguous(), W_v) + through_A


def commutation_matrix(d: int, n: int) -> Tensor:
    """K with K vec(X) = vec(X^T) for X (d, n), vec stacking columns; (d n, d n)."""
    return torch.eye(d * n).view(n, d, d * n).transpose(0, 1).reshape(d * n, d * n)


def identity(x_D: Tensor) -> Tensor:
    return torch.eye(len(x_D), dtype=x_D.dtype, device=x_D.device)


# Singular values


@dataclass(frozen=True)
class Spread:
    """How unequal singular values are.

    condition: largest / smallest, infinite if the smallest is zero to rounding. effective_rank: exp of the entropy of
    s / sum(s) (Roy and Vetterli 2007). stable_rank: sum(s^2) / largest^2. log_spread: standard deviation of ln s over
    those that are not zero to rounding. Of a zero matrix the ranks and the spread are 0.

    Only the largest are known if known < of: then what needs the others is None, and the sum of squares in stable_rank
    is an estimate.
    """

    largest: float
    smallest: float | None
    condition: float | None
    effective_rank: float | None
    stable_rank: float
    log_spread: float | None
    known: int
    of: int


def spread_of(s_K: Tensor, of: int | None = None, sum_of_squares: float | None = None) -> Spread:
    """Of singular values, descending: all of them, or the K largest of so many, the squares of all having that sum."""
    known, of = len(s_K), of or len(s_K)
    s = s_K.double()
    largest = float(s[0])
    squares = float(s.square().sum()) if sum_of_squares is None else sum_of_squares
    stable_rank = squares / largest**2 if largest else 0.0
    if known < of:
        return Spread(largest, None, None, None, stable_rank, None, known, of)
    smallest = float(s[-1])
    nonzero = s[s > rounding(s_K, of)]
    condition = largest / smallest if len(nonzero) == of else math.inf
    effective_rank = float(torch.special.entr(s / s.sum()).sum().exp()) if largest else 0.0
    log_spread = float(nonzero.log().std(correction=0)) if len(nonzero) else 0.0
    return Spread(largest, smallest, condition, effective_rank, stable_rank, log_spread, known, of)


def rounding(s_K: Tensor, of: int) -> float:
    """What a singular value of zero may be computed as: rounding errors add up as a random walk does."""
    return float(s_K[0]) * math.sqrt(of) * torch.finfo(s_K.dtype).eps


def singular_values(f: Function, x: Tensor, k: int | None = None, exact: int = EXACT) -> Tensor:
    """Of d f(x).flatten() / d x.flatten(), descending; (K,) on the CPU, at least in float32.

    All of them if k is None and x has at most `exact` entries, else the k largest (TOP if None) by Lanczos iteration on
    J^T J, which is Golub-Kahan bidiagonalization and only multiplies by J and its transpose. f is called once; it may
    be built of any operations that can be differentiated twice.
    """
    return measured(f, x, k, exact)[0]


def jacobian_spread(f: Function, x: Tensor, k: int | None = None, exact: int = EXACT) -> Spread:
    """Of the singular values of d f(x) / d x, arguments as for singular_values.

    If only the largest are found, the squares of the others are estimated: their mean is E ||J z||^2, z a random
    direction orthogonal to the right singular vectors of those found (Hutchinson's estimate, deflated as in Hutch++,
    2010.09649). The mean over PROBES z of a fixed seed is taken.
    """
    return measured(f, x, k, exact)[1]


def measured(f: Function, x: Tensor, k: int | None, exact: int) -> tuple[Tensor, Spread]:
    """Singular values and their spread."""
    J = differential(f, x)
    of = min(J.shape)
    number = k or (of if x.numel() <= exact else min(of, TOP))
    if 4 * number >= of:  # a Krylov space would be nearly everything
        s = torch.linalg.svdvals(J.dense())
        return s[:number], spread_of(s[:number], of, float(s.double().square().sum()))
    s, V = largest_singular_values(J.times, J.transposed_times, J.shape, x, number)
    return s, spread_of(s, of, float(s.double().square().sum()) + rest_of_squares(J, V, x))


def rest_of_squares(J: "Differential", V_KN: Tensor, x: Tensor) -> float:
    """Sum of the squared singular values whose right vectors are orthogonal to V's rows, estimated."""
    generator = torch.Generator().manual_seed(0)
    (known, size), total = V_KN.shape, 0.0
    for _ in range(PROBES):
        z = torch.randn(size, generator=generator, dtype=V_KN.dtype)
        z = z - V_KN.T @ (V_KN @ z)
        total += float(J.times((z / z.norm()).to(x)).double().square().sum())
    return (size - known) * total / PROBES


@dataclass(frozen=True)
class Differential:
    """The Jacobian of f at x as a linear map of flat vectors, from one forward pass.

    J^T u is one backward pass, and linear in u: differentiated by u in the direction v it is J v. So no operation needs
    a forward mode, which torch's attention has not on a CPU, and nothing is computed again.
    """

    x: Tensor
    y: Tensor
    u: Tensor
    pulled: Tensor  # J^T u, of x's shape

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.numel(), self.x.numel()

    def times(self, v: Tensor) -> Tensor:
        return gradient(self.pulled, self.u, v.view_as(self.x)).flatten()

    def transposed_times(self, u: Tensor) -> Tensor:
        return gradient(self.y, self.x, u.view_as(self.y)).flatten()

    def dense(self) -> Tensor:
        """(M, N), CHUNK rows by each backward pass."""
        size, chunks = self.y.numel(), []
        for rows in torch.arange(size, device=self.y.device).split(CHUNK):
            u = F.one_hot(rows, size).to(self.y).view(-1, *self.y.shape)
            chunks.append(gradient(self.y, self.x, u, is_grads_batched=True).flatten(1))
        dense = torch.cat(chunks)
        return dense.to(torch.promote_types(dense.dtype, torch.float32)).cpu()


def differential(f: Function, x: Tensor) -> Differential:
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
        x = x.detach().requires_grad_()
        y = f(x)
        u = torch.zeros_like(y, requires_grad=True)
        return Differential(x, y, u, gradient(y, x, u, create_graph=True))


def gradient(output: Tensor, of: Tensor, weights: Tensor, **options: Any) -> Tensor:
    """Vector-Jacobian product."""
    return torch.autograd.grad(output, of, weights, retain_graph=True, **options)[0]


def largest_singular_values(
    times: Function, transposed_times: Function, shape: tuple[int, int], like: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest of a linear map of flat tensors, descending (k,), and their right vectors (k, N), on the CPU.

    `like` tells the dtype and device of its tensors. Deterministic: the first vector has a fixed seed.
    """
    from scipy.sparse.linalg import LinearOperator, svds  # slow to import

    dtype = torch.promote_types(like.dtype, torch.float32)

    def product(function: Function, v: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(v.ravel()).to(like)).to("cpu", dtype).numpy()

    kind = torch.empty(0, dtype=dtype).numpy().dtype
    start = np.random.default_rng(0).standard_normal(min(shape)).astype(kind)
    forward, backward = partial(product, times), partial(product, transposed_times)
    if not (backward(start) if shape[0] <= shape[1] else forward(start)).any():  # no Krylov space begins in zero
        return torch.zeros(k, dtype=dtype), torch.zeros(k, shape[1], dtype=dtype)
    operator = LinearOperator(shape, matvec=forward, rmatvec=backward, dtype=kind)
    _, s, V = svds(operator, k, tol=math.sqrt(TOLERANCE), v0=start)  # squared there, for the eigenvalues of J^T J
    descending = np.argsort(-s)
    return torch.from_numpy(s[descending].copy()), torch.from_numpy(V[descending].copy())


# Models


@dataclass(frozen=True)
class JacobianRow:
    """Of what a layer computes, by what enters it: "block", "attn", "mlp", or "end to end" of all blocks (layer None).

    singular_values: all, or the largest; descending.
    """

    layer: int | None
    what: str
    spread: Spread
    singular_values: Tensor


def model_jacobians(
    model: nn.Module, run: Callable[[], Any], k: int | None = None, tokens: int | None = None, exact: int = EXACT
) -> list[JacobianRow]:
    """Of every block and its branches, by the residual stream that enters them, and from the first to the last block.

    run() is a forward pass of a batch, of which the first sample is looked at, and of that the first `tokens` if they
    are given: of a causal model the Jacobian of a shorter sequence, of another the corner of it that belongs to them.
    The rest is held fixed, but computed: a batch of one, and of a causal model a short sequence, is the fastest. k,
    exact: as for singular_values; of few tokens all singular values of a wide model can be had. In evaluation mode. []
    if the model has no known blocks.
    """
    layers = [module for _, module in blocks(model)]
    with evaluating(model):
        pieces: list[tuple[int | None, str, list[nn.Module]]] = [
            (layer, what, modules)
            for layer, block in enumerate(layers)
            for what, modules in {"block": [block], **branches(block)}.items()
        ]
        pieces += [(None, "end to end", layers)] if layers else []
        with torch.no_grad():
            calls = captured({module for _, _, modules in pieces for module in modules}, run)
        rows = []
        for layer, what, modules in pieces:
            args, kwargs = calls[modules[0]]
            stream = args[0] if args else next(iter(kwargs.values()))
            f, x = first_sample(chain(modules, calls), stream, tokens)
            s, spread = measured(f, x, k, exact)
            rows.append(JacobianRow(layer, what, spread, s))
    return rows


def first_sample(f: Function, x_BTD: Tensor, tokens: int | None) -> tuple[Function, Tensor]:
    """f of the first sample's first tokens, with all else as it is in x; and their value."""
    tokens = min(tokens or x_BTD.shape[1], x_BTD.shape[1])

    def varied(part: Tensor) -> Tensor:
        sample = torch.cat([part, x_BTD[:1, tokens:]], dim=1)
        return f(torch.cat([sample, x_BTD[1:]]))[:1, :tokens]

    return varied, x_BTD[:1, :tokens]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in evaluation mode, and its parameters need no gradient."""
    training = {module: module.training for module in model.modules()}
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, needs in trains.items():
            parameter.requires_grad_(needs)
