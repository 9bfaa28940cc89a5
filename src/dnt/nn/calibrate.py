"""The initial scale of a matrix that its branch cannot see is its learning rate: set it, and all turn alike.

QKNorm hides the scale of W_q and W_k, MidNorm that of W_v, W_o, W_2 and, under ReLU, W_1. The gradient of such a blind
matrix is orthogonal to it and falls as 1 / ||W||, so that an SGD step turns it by lr ||g|| / ||W|| ~ lr / ||W||^2: a
larger matrix learns more slowly, and computes the same. Any common scale at the start gives each matrix of each layer a
step of its own, by chance; a scale of sqrt(lr ||g|| / (rho ||W||)) gives all of them the step rho.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dnt.nn.config import SCALE_FREE
from dnt.nn.layers import MLP, Attention
from dnt.nn.placement import Placement
from dnt.nn.reparametrized import stored
from dnt.nn.simplified import IdentityValues

ALL = (0, None)  # rows


@dataclass(frozen=True)
class Rows:
    """Some rows of a parameter: q, k and v lie in one."""

    parameter: Tensor
    start: int = 0
    stop: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        return tensor[self.start : self.stop]


@dataclass(frozen=True)
class Matrix:
    """One of the matrices of a block, with the biases that must be scaled like it if its branch is not to notice.

    blind: whether its branch does not see its scale, or, as W_1 under GELU, hardly does.
    """

    name: str
    weight: Rows
    biases: tuple[Rows, ...]
    blind: bool


def matrices(model: Any) -> list[Matrix]:
    """All of a GPT or ViT: blocks.0.attn.q, .k, .v, .o, blocks.0.mlp.1, .2, ...; SwiGLU has an mlp.gate too.

    Those that are stored; one that a weight is computed from is not called blind, since q, k and v share its scale.
    """
    config = model.config
    hidden = config.norm_name in SCALE_FREE and config.parametrization == "plain"
    return [
        Matrix(f"blocks.{i}.{name}", Rows(stored(layer), *rows), tuple(biases(layer, rows, after)), blind and hidden)
        for i, block in enumerate(model.blocks)
        for name, layer, rows, after, blind in of_block(block, model.config)
    ]


def of_block(block: Any, config: Any) -> Iterator[tuple[str, nn.Linear, tuple[int, int | None], Any, bool]]:
    """Name, layer, rows, the layer whose bias is added to what follows from it, and whether its scale goes unseen."""
    mlp, placement = cast(MLP, block.mlp.f), cast(Placement, block.placement)
    yield from of_attention(block.attn.f, placement, config)
    in_mlp, before_2 = placement.mlp.mid, placement.mlp.inner
    if config.activation == "swiglu":  # the value's half is a factor, the gate's is not
        yield "mlp.gate", mlp.up, (0, config.hidden), None, False
        yield "mlp.1", mlp.up, (config.hidden, None), None if before_2 else mlp.out, in_mlp or before_2
    else:
        yield "mlp.1", mlp.up, ALL, None if before_2 else mlp.out, in_mlp or before_2
    yield "mlp.2", mlp.out, ALL, None, in_mlp


def of_attention(
    attn: Attention, placement: Placement, config: Any
) -> Iterator[tuple[str, nn.Linear, tuple[int, int | None], Any, bool]]:
    qk, in_attn, before_o = bool(placement.qk), placement.attn.mid, placement.attn.inner or placement.v
    k, v = attn.heads * config.head_dim, (attn.heads + attn.kv_heads) * config.head_dim  # where their rows begin
    match attn.qkv:
        case IdentityValues() as projections:
            yield "attn.q", projections.qk, (0, k), None, qk
            yield "attn.k", projections.qk, (k, v), None, qk
            if projections.first:
                yield "attn.v", projections.v.matrix, ALL, None, in_attn or before_o
        case projections:
            yield "attn.q", projections, (0, k), None, qk
            yield "attn.k", projections, (k, v), None, qk
            yield "attn.v", projections, (v, None), None if before_o else attn.out, in_attn or before_o
            yield "attn.o", attn.out, ALL, None, in_attn


def biases(layer: nn.Linear, rows: tuple[int, int | None], after: nn.Linear | None) -> Iterator[Rows]:
    if layer.bias is not None:
        yield Rows(layer.bias, *rows)
    if after is not None and after.bias is not None:
        yield Rows(after.bias)


def calibrate(
    model: Any,
    batches: Iterable[Sequence[Tensor]],
    lr: float | Mapping[str, float],
    rho: float = 0.01,
    only: Sequence[str] = (),
) -> dict[str, float]:
    """Scale every blind matrix so that a first step of SGD without momentum moves it by rho of its norm; in place.

    batches: (inputs, targets) as for model.loss, few of them: a backward pass each, where the model is. lr: the peak
    rate of training; or that of each parameter by its name, and no others are scaled. The size of a gradient is the
    root mean square over the batches. only: names that end so, such as "attn.q", and no others. Returns the factors by
    name.

    What the model computes does not change, but for what the norms' eps adds (less than 0.1% of the logits of a GPT of
    normal size at its start), and for W_1 under GELU, whose branch turns: by 45 degrees at most (from linear to ReLU)
    if what enters GELU is as often below 0 as above. ValueError if nothing is blind, or a gradient is zero.
    """
    scales = scales_for(model, batches, lr, rho, only)
    rescale(model, scales)
    return scales


def scales_for(
    model: Any,
    batches: Iterable[Sequence[Tensor]],
    lr: float | Mapping[str, float],
    rho: float,
    only: Sequence[str] = (),
) -> dict[str, float]:
    """What calibrate multiplies by."""
    rate = rates_by_parameter(model, lr)
    if not (rho > 0 and all(each > 0 for each in rate.values())):
        raise ValueError(f"lr is {lr}, rho {rho}; both must be greater than 0.")
    blind = [matrix for matrix in blind_matrices(model, lr) if matrix.name.endswith(tuple(only) or "")]
    if not blind:
        raise ValueError(f"nothing to calibrate: no hidden matrix has a name that ends in {' or '.join(only)}.")
    scales = {}
    for matrix, (norm, gradient) in zip(blind, sizes(model, batches, [m.weight for m in blind]), strict=True):
        if not (norm > 0 and 0 < gradient < math.inf):
            raise ValueError(
                f"{matrix.name} has norm {norm} and a gradient of norm {gradient}; it has no scale to set."
            )
        scales[matrix.name] = math.sqrt(rate[matrix.weight.parameter] * gradient / (rho * norm))
    return scales


def blind_matrices(model: Any, lr: float | Mapping[str, float]) -> list[Matrix]:
    """Of those that train, and have a rate. ValueError if there are none."""
    rate = rates_by_parameter(model, lr)
    if blind := [matrix for matrix in matrices(model) if matrix.blind and matrix.weight.parameter in rate]:
        return blind
    config = model.config
    if config.norm_name not in SCALE_FREE or config.parametrization != "plain":
        what = (
            f"weights is {config.parametrization!r}"
            if config.parametrization != "plain"
            else f"norm is {config.norm_name!r}"
        )
        raise ValueError(f"nothing to calibrate: {what}; it takes plain weights and one of {', '.join(SCALE_FREE)}.")
    raise ValueError(
        "nothing to calibrate: QKNorm and MidNorm hide no matrix that an SGD steps. Use --placement dnt and "
        "--optimizer msgdw, or do not calibrate."
    )


@torch.no_grad()
def rescale(model: Any, scales: Mapping[str, float]) -> None:
    """Multiply matrices by their factors, and the biases that go with them."""
    for matrix in matrices(model):
        if matrix.name in scales:
            for rows in (matrix.weight, *matrix.biases):
                rows.of(rows.parameter).mul_(scales[matrix.name])


def relative_steps(
    model: Any, batches: Iterable[Sequence[Tensor]], lr: float | Mapping[str, float]
) -> dict[str, float]:
    """lr ||g|| / ||w|| of a step of SGD without momentum: of every matrix, q, k and v apart, and every other parameter.

    Of those that train and are not zero. Arguments as for calibrate.
    """
    rate = rates_by_parameter(model, lr)
    parts = {matrix.name: matrix.weight for matrix in matrices(model)}
    split = {rows.parameter for rows in parts.values()}
    parts |= {name: Rows(p) for name, p in model.named_parameters() if p not in split}
    parts = {name: rows for name, rows in parts.items() if rows.parameter in rate}
    found = zip(parts.items(), sizes(model, batches, list(parts.values())), strict=True)
    return {name: rate[rows.parameter] * gradient / norm for (name, rows), (norm, gradient) in found if norm}


def rates_by_parameter(model: Any, lr: float | Mapping[str, float]) -> dict[Tensor, float]:
    """Of those that train, and have one."""
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(trains, lr)
    return {p: rates[name] for name, p in trains.items() if name in rates}


def sizes(model: Any, batches: Iterable[Sequence[Tensor]], parts: Sequence[Rows]) -> list[tuple[float, float]]:
    """Frobenius norm of each part and of its gradient (root mean square over batches), without dropout."""
    parameters = list(dict.fromkeys(rows.parameter for rows in parts))
    squares, count = [0.0] * len(parts), 0
    was_training = model.training
    model.eval()
    for batch in batches:
        loss = model.loss(*batch)
        gradients = dict(zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
        for i, rows in enumerate(parts):
            if (gradient := gradients[rows.parameter]) is not None:
                squares[i] += float(rows.of(gradient).double().square().sum())
        count += 1
    model.train(was_training)
    if not count:
        raise ValueError("no batch to measure gradients on; give at least one.")
    norms = [float(rows.of(rows.parameter.detach()).double().norm()) for rows in parts]
    return [(norm, math.sqrt(square / count)) for norm, square in zip(norms, squares, strict=True)]
