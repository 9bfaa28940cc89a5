"""Norms whose statistics are those of all tokens of a batch, for a ViT: a causal model would see later tokens.

They keep running statistics in buffers, which evaluation uses. The first docstring line is the formula, the second its
source. What changes while a training goes on reads `progress`, the share of its steps that are done, which the loop
sets (progress_of); it is 0 until then.
"""
# N tokens of a batch, D width, M iterations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dnt.nn.gains import Affine, Gain

WARM_UP = 0.1  # of a training, in which statistics are not smoothed
MOMENTUM = 0.9  # of what is smoothed
WINDOW = 4  # iterations, M


def progress_of(model: nn.Module) -> list[Tensor]:
    """The buffers that say how far a training is, to be filled in place."""
    return [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] == "progress"]


class BatchNorm(nn.BatchNorm1d):
    """y = g * (x - mean(x)) / sqrt(var(x) + eps) + b, mean and var of each feature over the tokens of a batch

    1502.03167. x (..., dim). torch's, with its running statistics.
    """

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, eps=eps)
        if not bias:
            self.register_parameter("bias", None)

    def forward(self, input: Tensor) -> Tensor:
        x = input.to(self.weight.dtype)
        return super().forward(x.reshape(-1, x.shape[-1])).view_as(x)


class PRepBN(nn.LayerNorm):
    """y = lambda LN(x) + (1 - lambda) (BN(x) + eta x), a scalar eta that begins at 1

    2405.11582. x (..., dim). lambda falls linearly from 1 to 0 over the training. Evaluation takes the lambda of the
    moment, which is 0 at the end; the authors' code always takes 0, where a model in training is not yet.
    """

    progress: Tensor

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, eps=eps, bias=bias)
        self.batch = nn.BatchNorm1d(dim, eps=eps)
        if not bias:
            self.batch.register_parameter("bias", None)
        self.eta = Gain(1)
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        x = input.to(self.weight.dtype)
        batch = self.batch(x.reshape(-1, x.shape[-1])).view_as(x) + self.eta(x)
        return torch.lerp(super().forward(x), batch, self.progress.to(x.dtype))


class Divided(torch.autograd.Function):
    """z = x / psi, and backward (g - c * z) / psi with c = statistic(mean(g * z), mean(z^2)); x (N, D), psi (D,).

    With psi^2 = mean(x^2) + eps and c = mean(g * z) these are the gradients. Running statistics in their places make
    neither psi nor c depend on this batch alone. `statistic` may keep what it is given.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, psi_D: Tensor, statistic: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        z_ND = x_ND / psi_D
        ctx.save_for_backward(z_ND, psi_D)
        ctx.statistic = statistic
        return z_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor, None, None]:
        z_ND, psi_D = ctx.saved_tensors
        c_D = ctx.statistic((g_ND * z_ND).mean(0), z_ND.square().mean(0))
        return (g_ND - c_D * z_ND) / psi_D, None, None


class RunningSquare(Affine, ABC):
    """What PowerNorm and Unified Normalization share: a running mean square forward, a running mean nu backward."""

    running_square: Tensor
    nu: Tensor
    progress: Tensor

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, bias)
        self.eps = eps
        self.register_buffer("running_square", torch.ones(dim))
        self.register_buffer("nu", torch.zeros(dim))
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        tokens_ND = self.tokens(x).reshape(-1, x.shape[-1])
        if self.training:
            return self.affine(self.divided(tokens_ND)).view_as(x)
        return self.affine(tokens_ND * torch.rsqrt(self.running_square + self.eps)).view_as(x)

    def tokens(self, x: Tensor) -> Tensor:
        """What is divided."""
        return x

    @abstractmethod
    def divided(self, x_ND: Tensor) -> Tensor:
        """By the square root of the mean square, in training; its statistics are kept."""


class PowerNorm(RunningSquare):
    """y = g * z / sqrt(psi^2 + eps) + b, z = x / rms(x), psi^2 the running mean of mean(z^2) over the tokens of batches

    2003.07845. x (..., dim). Backward takes nu, a running mean of mean(dL/dy' y') with y' = z / psi, for that of the
    batch (its algorithm 2). The first tenth of a training has the statistics of its batches, with their gradients. In
    the authors' code z is divided by the root mean square of each of several groups of features (one here), the plain
    steps are 10,000 or those in which the learning rate rises, nu stands in the backward pass from the first step, and
    that is divided by the batch's psi.
    """

    def tokens(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    @torch.compiler.disable  # what a backward pass keeps is not traced
    def divided(self, x_ND: Tensor) -> Tensor:
        square_D = x_ND.detach().square().mean(0)
        psi_D = (torch.where(self.progress < WARM_UP, square_D, self.running_square) + self.eps).sqrt()
        self.running_square.lerp_(square_D, 1 - MOMENTUM)
        return Divided.apply(x_ND, psi_D, self.statistic)

    def statistic(self, product_D: Tensor, square_D: Tensor) -> Tensor:
        nu_D = self.nu.clone()
        self.nu.add_(product_D - nu_D * square_D, alpha=1 - MOMENTUM)
        return torch.where(self.progress < WARM_UP, product_D, nu_D)


class UnifiedNorm(RunningSquare):
    """y = g * x / sqrt(sigma^2 + eps) + b, sigma^2 the geometric mean over 4 batches of mean(x^2) over their tokens

    2208.01313. x (..., dim). Backward takes nu, a running mean of the mean over 4 batches of mean(dL/dz z), z being
    x / sigma, for that of the batch. A batch of an outlier has its own statistics in both: for some feature arithmetic
    less geometric mean exceeds 4 var(sqrt(mean(x^2))), of the 4 batches before it and all features. So has the first
    tenth of a training; the authors' code counts 4,000 steps, in which it has nu. That code also multiplies gradients
    by the batch's sigma over the running one, from 1/5 to 5, of which the paper says nothing.
    """

    squares: Tensor
    products: Tensor

    def __init__(self, dim: int, eps: float = 1e-6, bias: bool = False):
        super().__init__(dim, eps, bias)
        self.register_buffer("squares", torch.ones(WINDOW, dim))
        self.register_buffer("products", torch.zeros(WINDOW, dim))

    @torch.compiler.disable  # what a backward pass keeps is not traced
    def divided(self, x_ND: Tensor) -> Tensor:
        square_D = x_ND.detach().square().mean(0)
        squares_MD = pushed(self.squares, square_D)
        geometric_D = squares_MD.log().mean(0).exp()
        smooth = self.progress >= WARM_UP
        outlier = smooth & (squares_MD.mean(0) - geometric_D > WINDOW * self.squares.sqrt().var()).any()
        plain = ~smooth | outlier
        sigma2_D = torch.where(plain, square_D, geometric_D)
        self.squares.copy_(pushed(self.squares, torch.where(outlier, self.running_square, square_D)))
        self.running_square.lerp_(sigma2_D, 1 - MOMENTUM)

        def statistic(product_D: Tensor, square_D: Tensor) -> Tensor:
            self.products.copy_(pushed(self.products, torch.where(outlier, self.nu, product_D)))
            self.nu.lerp_(torch.where(plain, product_D, self.products.mean(0)), 1 - MOMENTUM)
            return torch.where(plain, product_D, self.nu)

        return Divided.apply(x_ND, (sigma2_D + self.eps).sqrt(), statistic)


def pushed(window_MD: Tensor, latest_D: Tensor) -> Tensor:
    """The window one iteration later."""
    return torch.cat([window_MD[1:], latest_D[None]])
