"""Which parameters decay: matrices and embeddings do; gains, biases and all other 1-D parameters never."""

from typing import Any

from torch import nn


def param_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Two optimizer groups that hold every trainable parameter exactly once (a tied one too)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
