"""How the entries of a gradient are spread."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LOWEST, HIGHEST, PER_DECADE = -14, 4, 8  # decades of |g|, and bins in each


def gradient_histogram(model: nn.Module, batch: Sequence[Any], loss_fn: Callable[..., Tensor]) -> dict[str, Any]:
    """Histogram of |entries| of d loss / d parameters, all trainable parameters together, on one batch.

    loss_fn(model, *batch) -> scalar. Uses torch.autograd.grad: .grad is neither read nor written.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_fn(model, *batch), parameters, allow_unused=True)
    return histogram(gradient for gradient in gradients if gradient is not None)


def histogram(gradients: Iterable[Tensor]) -> dict[str, Any]:
    """Of the |entries| of all gradients together.

    `edges` (n + 1) are powers of ten, evenly spaced; `counts` (n); entries outside the edges fall in the first or last
    bin; exact zeros are counted apart in `zeros`.
    """
    bins = (HIGHEST - LOWEST) * PER_DECADE
    counts, zeros = torch.zeros(bins, dtype=torch.int64), 0
    for gradient in gradients:
        nonzero = gradient[gradient != 0].abs()
        zeros += gradient.numel() - nonzero.numel()
        index = ((nonzero.double().log10() - LOWEST) * PER_DECADE).floor().long().clamp(0, bins - 1)
        counts += torch.bincount(index, minlength=bins).cpu()
    edges = [10 ** (LOWEST + i / PER_DECADE) for i in range(bins + 1)]
    return {"edges": edges, "counts": counts.tolist(), "zeros": zeros}
