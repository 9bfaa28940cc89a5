"""A bound on every step's largest singular value, for any optimizer."""
# R rows, C columns

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dnt.optim.msgdw import share

FIRST, LATER = 50, 10  # power iterations: from a random vector, and from where the last step ended


def bound_steps(optimizer: Optimizer, tau: float) -> None:
    """From now on a step D of a matrix W is W <- W + D min(1, tau sigma_1(W) / sigma_1(D))

    2505.21910 (AdamW^2): with D = -lr U, U "the updating quantity", the learning rate of a matrix is brought down to
    tau sigma_1(W) / sigma_1(U) where it is larger; no warm-up is needed then. So lr is inside the test. D is all that
    the optimizer did to the matrix, decay included. What tau was there is not public: tau has no default here.

    Parameters with rows and columns alone (q, k and v of a block are one matrix here, three in the paper); one of zeros
    steps freely. sigma_1 is found by power iteration, from below: to a thousandth where it stands out, to a twentieth
    where many singular values are nearly as large (Muon's). Its vectors are in the optimizer's state, so that a resumed
    run goes on with them. Within a step the matrices are held twice.
    """
    before: dict[Tensor, Tensor] = {}

    def keep(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            before.update((p, p.detach().clone()) for p in group["params"] if p.ndim >= 2 and p.grad is not None)

    @torch.no_grad()
    def shorten(optimizer: Optimizer, *_: Any) -> None:
        for p, old in before.items():
            step, slot = p.detach() - old, optimizer.state[p]
            of_weight, slot["spectral_weight"] = top_singular_value(old, slot.get("spectral_weight"))
            of_step, slot["spectral_step"] = top_singular_value(step, slot.get("spectral_step"))
            part = share(of_step, of_weight, 1.0, tau)
            p.copy_(torch.where(part < 1, old + part * step, p))
        before.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(shorten)


def top_singular_value(matrix: Tensor, v_C: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """||A v|| for v <- A'A v / ||A'A v||, a few times: the value from below, () tensor, and v (C,) to go on with."""
    a_RC, iterations = matrix.flatten(1), LATER
    if v_C is None:
        generator = torch.Generator().manual_seed(0)
        v_C = torch.randn(a_RC.shape[1], generator=generator, dtype=torch.float64).to(a_RC)
        iterations = FIRST
    for _ in range(iterations):
        image = a_RC.T @ (a_RC @ v_C)
        norm = image.norm()
        v_C = torch.where(norm > 0, image / norm, v_C / v_C.norm())
    return (a_RC @ v_C).norm(), v_C
