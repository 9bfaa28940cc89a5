"""Which parameters decay: matrices and embeddings do; gains, biases and all other 1-D parameters never."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def param_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Two optimizer groups that hold every trainable parameter exactly once (a tied one too)."""
    return decay_groups(model.parameters(), weight_decay)


def decay_groups(members: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups of the trainable ones among the members: those that decay, and those that do not."""
    parameters = [p for p in members if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def ends_and_rest(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of embeddings and head (`model.ends`), and all others; a tied one once."""
    ends = dict.fromkeys(p for module in model.ends for p in module.parameters())
    return list(ends), [p for p in model.parameters() if p not in ends]
