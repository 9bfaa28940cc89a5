"""Singular values of the weights, and by how much of them a step moves."""
# M x N a matrix (out x in), D width, H heads, G heads of keys, K width of a head, s singular values

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnt.analysis.anatomy import Part, blocks, parts
from dnt.analysis.jacobian import Spread, largest_singular_values, spread_of

ROWS = 8192  # of a matrix that are converted to float64 at a time
SMALL = 64  # up to this smaller side all singular values are found as soon as the largest


@dataclass(frozen=True)
class Spectrum:
    """Of a matrix: its Frobenius norm and its singular values, all of them, descending.

    role: as of its part, or "qk" of W_q^T W_k, of which heads has the largest singular value of each head.
    """

    name: str
    role: str
    layer: int | None
    norm: float
    spread: Spread
    singular_values: Tensor
    heads: tuple[float, ...] = ()


def weight_spectra(model: nn.Module) -> list[Spectrum]:
    """Of every matrix that trains, q, k and v apart, and of W_q^T W_k of every layer that has them.

    W_q^T W_k (D, D) is what the logits are made of, summed over the heads; rotary positions, norms of q and k and
    biases are left out.
    """
    layers = [block for _, block in blocks(model)]
    matrices = matrix_parts(model)
    found = [spectrum(part.name, part.role, part.layer, part.matrix()) for part in matrices]
    of_role = {(part.layer, part.role): part for part in matrices if part.role in ("q", "k")}
    for layer, block in enumerate(layers):
        if (layer, "q") in of_role and (layer, "k") in of_role:
            q, k = (of_role[layer, role] for role in ("q", "k"))
            found.append(query_key_spectrum(q, k, head_count(block, q)))
    return found


def matrix_parts(model: nn.Module) -> list[Part]:
    """The parts that are matrices of more than one row and column."""
    return [part for part in parts(model) if min(part.matrix().shape) > 1]


def spectrum(name: str, role: str, layer: int | None, matrix_MN: Tensor) -> Spectrum:
    s = all_singular_values(matrix_MN)
    return Spectrum(name, role, layer, float(s.double().norm()), spread_of(s), s)


def all_singular_values(matrix_MN: Tensor) -> Tensor:
    """Descending, (min(M, N),), on the CPU.

    Of float32 and narrower through the eigenvalues of the Gram matrix of the smaller side, whose float64 holds the
    squares of float32 exactly enough: to 1e-8 of the largest.
    """
    if matrix_MN.dtype == torch.float64:
        return torch.linalg.svdvals(matrix_MN).cpu()
    tall = matrix_MN if matrix_MN.shape[0] >= matrix_MN.shape[1] else matrix_MN.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for rows in tall.split(ROWS):
        gram.addmm_(rows.T.double(), rows.double())
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0).float().cpu()


def query_key_spectrum(q: Part, k: Part, heads: int | None) -> Spectrum:
    """Of W_q^T W_k = sum over heads of W_q,h^T W_k,h; without a number of heads, of one as high as W_k."""
    W_q, W_k = q.matrix().double(), k.matrix().double()  # (H K, D), (G K, D)
    width = W_q.shape[0] // heads if heads else W_k.shape[0]
    q_HKD, k_GKD = W_q.unflatten(0, (-1, width)), W_k.unflatten(0, (-1, width))
    k_HKD = k_GKD.repeat_interleave(len(q_HKD) // len(k_GKD), dim=0)
    s = all_singular_values((q_HKD.flatten(0, 1).T @ k_HKD.flatten(0, 1)).float())
    name = q.name.removesuffix("[q]") + "[qk]"
    by_head = product_norms(q_HKD, k_HKD) if heads else []
    return Spectrum(name, "qk", q.layer, float(s.double().norm()), spread_of(s), s, tuple(by_head))


def product_norms(q_HKD: Tensor, k_HKD: Tensor) -> list[float]:
    """Largest singular value of q_h^T k_h: with q_h^T = Q R and k_h^T = Q' R' that of R R'^T, which is small."""
    R_q, R_k = (torch.linalg.qr(each.mT, mode="r").R for each in (q_HKD, k_HKD))
    return torch.linalg.matrix_norm(R_q @ R_k.mT, 2).tolist()


def head_count(block: nn.Module, q: Part) -> int | None:
    """What a module of the block says of its heads, by the names that dnt, timm and transformers give it."""
    heads = [getattr(m, name, None) for m in block.modules() for name in ("heads", "num_heads", "num_attention_heads")]
    widths = [getattr(m, "head_dim", None) for m in block.modules()]
    counts = [n for n in heads if isinstance(n, int)] + [len(q.matrix()) // n for n in widths if isinstance(n, int)]
    return counts[0] if counts else None


def largest_singular_value(matrix_MN: Tensor) -> float:
    """Within 1.5e-4 of it, from some tens of products with vectors: fast enough to be watched in training."""
    W = matrix_MN.detach()
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    if min(W.shape) <= SMALL:
        return float(torch.linalg.matrix_norm(W, 2))
    return float(largest_singular_values(lambda v: W @ v, lambda u: u @ W, (len(W), W.shape[1]), W, 1)[0])


@dataclass(frozen=True)
class StepSize:
    """By how much of a matrix a step has moved it: sigma_1(dW) / sigma_1(W) and ||dW||_F / ||W||_F."""

    name: str
    role: str
    layer: int | None
    spectral: float
    frobenius: float


def step_sizes(before: Mapping[str, Tensor], after: nn.Module) -> list[StepSize]:
    """Of every matrix that trains, q, k and v apart; infinite if it was zero.

    before: copies of the parameters by name, from before one or more steps; W above is what they were. Those that it
    lacks are left out.
    """
    return list(steps_of(before, after))


def steps_of(before: Mapping[str, Tensor], after: nn.Module) -> Iterator[StepSize]:
    names = {parameter: name for name, parameter in after.named_parameters()}
    for part in matrix_parts(after):
        if (name := names[part.parameter]) in before:
            W = part.matrix(before[name].detach())
            dW = part.matrix() - W.to(part.parameter)
            spectral = ratio(largest_singular_value(dW), largest_singular_value(W))
            yield StepSize(part.name, part.role, part.layer, spectral, ratio(float(dW.norm()), float(W.norm())))


def ratio(moved: float, size: float) -> float:
    return moved / size if size else math.inf


def effective_step(lr: float, weight: Tensor) -> float:
    """lr / ||W||_F^2, the learning rate of the direction of a matrix whose scale its branch does not see.

    Its gradient is orthogonal to it and falls as 1 / ||W||, so a step of SGD turns it by lr ||g|| / ||W|| ~ lr /
    ||W||^2.
    """
    return lr / float(weight.detach().double().square().sum())
