"""Adaptive gradient clipping: each unit's gradient in proportion to its weights."""
# A unit is what makes one output: a row of a matrix, a filter of a convolution; a vector is one unit.

from collections.abc import Iterable

import torch
from torch import Tensor, nn

EPS = 1e-3  # a unit of zeros can move


@torch.no_grad()
def clip_units(parameters: Iterable[nn.Parameter], share: float, eps: float = EPS) -> None:
    """g_i <- g_i min(1, share max(||w_i||, eps) / ||g_i||) for each unit i, in place

    2102.06171, which leaves out the last linear layer: so must the caller.
    """
    for p in parameters:
        if p.grad is not None:
            bound, length = share * unit_norms(p).clamp(min=eps), unit_norms(p.grad)
            p.grad.mul_(torch.where(length > bound, bound / length, 1.0).to(p.grad.dtype))


def unit_norms(tensor: Tensor) -> Tensor:
    """In float32 or wider, of a shape that multiplies the tensor."""
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return wide.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1)) if tensor.ndim > 1 else wide.norm()
