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

from dnt.nn.layers import MLP, Attention, Block
from dnt.nn.placement import placement_named

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
    """All of a GPT or ViT: blocks.0.attn.q, .k, .v, .o, blocks.0.mlp.1, .2, ...; SwiGLU has an mlp.gate too."""
    config = model.config
    qk = placement_named(config.placement).qk
    return [
        Matrix(f"blocks.{i}.{name}", Rows(layer.weight, *rows), tuple(biases(layer, rows, after)), blind)
        for i, block in enumerate(model.blocks)
        for name, layer, rows, after, blind in of_block(block, qk, config)
    ]


def of_block(block: Block, qk: bool, config: Any) -> Iterator[tuple[str, nn.Linear, tuple[int, int | None], Any, bool]]:
    """Name, layer, rows, the layer whose bias is added to what follows from it, and whether its scale goes unseen."""
    attn, mlp = cast(Attention, block.attn.f), cast(MLP, block.mlp.f)
    in_attn, in_mlp = block.attn.slots.mid, block.mlp.slots.mid
    k, v = attn.heads * config.head_dim, (attn.heads + attn.kv_heads) * config.head_dim  # where their rows begin
    yield "attn.q", attn.qkv, (0, k), None, qk
    yield "attn.k", attn.qkv, (k, v), None, qk
    yield "attn.v", attn.qkv, (v, None), attn.out, in_attn
    yield "attn.o", attn.out, ALL, None, in_attn
    if config.activation == "swiglu":  # the value's half is a factor, the gate's is not
        yield "mlp.gate", mlp.up, (0, config.hidden), None, False
        yield "mlp.1", mlp.up, (config.hidden, None), mlp.out, in_mlp
    else:
        yield "mlp.1", mlp.up, ALL, mlp.out, in_mlp
    yield "mlp.2", mlp.out, ALL, None, in_mlp


def biases(layer: nn.Linear, rows: tuple[int, int | None], after: nn.Linear | None) -> Iterator[Rows]:
    if layer.bias is not None:
        yield Rows(layer.bias, *rows)
    if after is not None and after.bias is not None:
        yield Rows(after.bias)


def calibrate(
    model: Any, batches: Iterable[Sequence[Tensor]], lr: float, rho: float = 0.01, only: Sequence[str] = ()
) -> dict[str, float]:
    """Scale every blind matrix so that a first step of plain SGD moves it by rho of its norm; by how much, by name.

    batches: (inputs, targets) as for model.loss, few of them: a backward pass each. lr: the peak rate of training. The
    size of a gradient is the root mean square over the batches. In place. What the model computes does not change, but
    for W_1 under GELU, whose branch turns by 45 degrees at most (from linear to ReLU). only: names that end so, such as
    "attn.q", and no others. ValueError if nothing is blind, or a gradient is zero.
    """
    if not (lr > 0 and rho > 0):
        raise ValueError(f"lr is {lr}, rho {rho}; both must be greater than 0.")
    blind = [m for m in matrices(model) if m.blind and m.name.endswith(tuple(only) or "")]
    if not blind:
        raise ValueError("nothing to calibrate: without QKNorm and MidNorm no branch is blind to a matrix's scale.")
    scales = {}
    for matrix, (norm, gradient) in zip(blind, sizes(model, batches, [m.weight for m in blind]), strict=True):
        if not (norm > 0 and 0 < gradient < math.inf):
            raise ValueError(
                f"{matrix.name} has norm {norm} and a gradient of norm {gradient}; it has no scale to set."
            )
        scales[matrix.name] = math.sqrt(lr * gradient / (rho * norm))
    with torch.no_grad():
        for matrix in blind:
            for rows in (matrix.weight, *matrix.biases):
                rows.of(rows.parameter).mul_(scales[matrix.name])
    return scales


def relative_steps(
    model: Any, batches: Iterable[Sequence[Tensor]], lr: float, rates: Mapping[str, float] | None = None
) -> dict[str, float]:
    """lr ||g|| / ||w|| of a first step of plain SGD: of every matrix, q, k and v apart, and every other parameter.

    inf where w is zero. rates: of parameters whose rate is not lr, by name. Other arguments as for calibrate.
    """
    parts = {matrix.name: matrix.weight for matrix in matrices(model)}
    split = {rows.parameter for rows in parts.values()}
    parts |= {name: Rows(p) for name, p in model.named_parameters() if p not in split}
    found = sizes(model, batches, list(parts.values()))
    return {
        name: (rates or {}).get(name, lr) * gradient / norm if norm else math.inf
        for name, (norm, gradient) in zip(parts, found, strict=True)
    }


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
