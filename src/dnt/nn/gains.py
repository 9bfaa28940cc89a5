"""What norms learn: factors and shifts, of each feature or of all."""

import torch
from torch import Tensor, nn


class Gain(nn.Module):
    """x * w, where every entry of w begins at `start`; w of the given shape."""

    def __init__(self, *shape: int, start: float = 1.0):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.full(shape, start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Affine(nn.Module):
    """g * z + b of each feature, (dim,) each; without bias there is no b."""

    bias: nn.Parameter | None

    def __init__(self, dim: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim)) if bias else None)

    def affine(self, z: Tensor) -> Tensor:
        return self.weight * z if self.bias is None else torch.addcmul(self.bias, self.weight, z)
