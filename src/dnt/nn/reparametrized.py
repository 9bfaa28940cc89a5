"""Linear layers whose weight is computed from what is stored: "weights" of a model that is not "plain".

    weight-norm     W = g_i V_i / ||V_i|| of each row i; g begins at ||V_i|| (1602.07868)
    spectral-norm   W = V / sigma_1(V) (1802.05957; torch.nn.utils.parametrizations.spectral_norm)
    sigma-reparam   W = g V / sigma_1(V), a scalar g that begins at sigma_1(V) (2303.06296)

The scale of V, or of its rows, says nothing to what the layer computes. sigma_1 = u^T V v, whose u and v are buffers:
one step of the power iteration in each forward pass of a training, none in evaluation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm


class WeightNorm(nn.Module):
    """W_i = g_i V_i / ||V_i||

    1602.07868. As torch.nn.utils.parametrizations.weight_norm, whose g is a column: it would be taken for a matrix, and
    decay.
    """

    def forward(self, g: Tensor, V: Tensor) -> Tensor:
        return V * (g / torch.linalg.vector_norm(V, dim=1))[:, None]

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.vector_norm(W, dim=1), W


class SigmaReparam(nn.Module):
    """W = (g / sigma_1) V, sigma_1 = u^T V v

    2303.06296. A kernel of patches is the matrix of its flattened filters. u and v begin as singular vectors, so that
    W is V at first. Gradients pass through sigma_1, not through u and v. The authors' code turns u and v in evaluation
    too, without keeping them.
    """

    u: Tensor
    v: Tensor

    def __init__(self, V: Tensor):
        super().__init__()
        u, sigma, v = torch.linalg.svd(V.detach().flatten(1), full_matrices=False)
        self.g = nn.Parameter(sigma[:1].clone())
        self.register_buffer("u", u[:, 0].clone())
        self.register_buffer("v", v[0].clone())

    def forward(self, V: Tensor) -> Tensor:
        matrix, u, v = V.flatten(1), self.u, self.v
        if self.training:
            with torch.no_grad():
                u = F.normalize(times(matrix, v), dim=0)
                v = F.normalize(times(matrix.T, u), dim=0)
                self.u.copy_(u)
                self.v.copy_(v)
        return self.g / (u * times(matrix, v)).sum() * V


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Their product, which autocast does not narrow."""
    return (matrix * vector).sum(1)


def reparametrize(model: nn.Module, weights: str) -> None:
    """Of every linear layer but a tied head, and under sigma-reparam of the kernel of patches; in place."""
    if weights == "plain":
        return
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d) if weights == "sigma-reparam" else (nn.Linear,)
    for layer in list(model.modules()):
        if not isinstance(layer, kinds) or layer.weight in embeddings:
            continue
        if weights == "spectral-norm":
            spectral_norm(layer)
        else:
            made = WeightNorm() if weights == "weight-norm" else SigmaReparam(layer.weight)
            parametrize.register_parametrization(layer, "weight", made)


def stored(layer: nn.Module) -> nn.Parameter:
    """The matrix that trains: the weight, or what it is computed from."""
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight  # type: ignore[return-value]
    found: Any = layer.parametrizations["weight"]  # type: ignore[index]
    return found.original1 if hasattr(found, "original1") else found.original  # of WeightNorm g is the first
