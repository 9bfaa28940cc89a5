"""Which parameters decay, and which have a learning rate of their own.

Matrices and embeddings decay; gains, biases and all other 1-D parameters never.
"""

from collections.abc import Iterable, Mapping
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


def rated_groups(
    model: Any, groups: list[dict[str, Any]], lr: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The same groups, and for each kind in `rates` those of its parameters apart, with lr times its rate.

    Positions are embeddings too, unless they have a rate. ValueError for a rate below 0, or of a kind that the model
    has none of.
    """
    kinds = kinds_of(model) if rates else {}
    if "position" not in rates:
        kinds = {p: kind.replace("position", "embedding") for p, kind in kinds.items()}
    for kind, rate in rates.items():
        if not rate >= 0:
            raise ValueError(f"{kind}_rate is {rate}; it must be at least 0.")
        if kind not in kinds.values():
            why = "the head is the token embedding" if kind == "head" else "none is learned"
            raise ValueError(f"{kind}_rate is {rate}, but this model has no {kind} parameters ({why}); drop it.")
    divided = []
    for group in groups:
        rest = [p for p in group["params"] if kinds.get(p) not in rates]
        divided.append(group | {"params": rest})
        for kind, rate in rates.items():
            if own := [p for p in group["params"] if kinds.get(p) == kind]:
                divided.append(group | {"params": own, "lr": lr * rate, f"{kind}_rate": rate})
    return [group for group in divided if group["params"]]


def kinds_of(model: Any) -> dict[nn.Parameter, str]:
    """Of every parameter that is no matrix of a block: its kind. A tied head is the embedding."""
    kinds: dict[nn.Parameter, str] = {}
    for kind, modules in model.ends.items():
        for module in modules:
            for p in module.parameters():
                kinds.setdefault(p, kind)
    return kinds | {p: "gain" for p in model.parameters() if p.ndim < 2 and p not in kinds}


def ends_and_rest(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of embeddings, positions and head (`model.ends`), and all others; a tied one once."""
    ends = dict.fromkeys(p for modules in model.ends.values() for module in modules for p in module.parameters())
    return list(ends), [p for p in model.parameters() if p not in ends]
