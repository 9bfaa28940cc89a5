"""Which parameters decay, and which have a learning rate of their own.

Matrices and embeddings decay; gains, biases and all other 1-D parameters never.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import SGD


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    lr: float | None = None,
    *,
    embedding_rate: float = 1.0,
    position_rate: float | None = None,
    head_rate: float = 1.0,
    gain_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Optimizer groups that hold every trainable parameter exactly once (a tied one too): what decays, and what not.

    With rates, which are multiples of `lr`, of a GPT or ViT: one more group for each kind that has its own. Positions
    have the embeddings' if none is given; a tied head is the embedding; gains are the norms', and the blocks' biases.
    ValueError for a rate below 0, of a kind that the model has none of, or without lr.
    """
    given = {"embedding": embedding_rate, "position": position_rate, "head": head_rate, "gain": gain_rate}
    usual = {"embedding": 1.0, "position": embedding_rate, "head": 1.0, "gain": 1.0}
    rates = {kind: rate for kind, rate in given.items() if rate is not None and rate != usual[kind]}
    groups = decay_groups(model.parameters(), weight_decay)
    return rated_groups(model, groups, lr, rates) if rates else groups


def decay_groups(members: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups of the trainable ones among the members: those that decay, and those that do not."""
    parameters = [p for p in members if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def rated_groups(
    model: Any, groups: list[dict[str, Any]], lr: float | None, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The same groups, and for each kind in `rates` those of its parameters apart; see param_groups."""
    if lr is None:
        raise ValueError(f"{'_rate, '.join(rates)}_rate: a rate is a multiple of lr; give lr to param_groups too.")
    kinds = kinds_of(model)
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


def sgd_rates(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """The learning rates of the parameters that an SGD steps, by name."""
    parts = [part for part in getattr(optimizer, "parts", [optimizer]) if isinstance(part, SGD)]
    rates = {p: group["lr"] for part in parts for group in part.param_groups for p in group["params"]}
    return {name: rates[p] for name, p in model.named_parameters() if p in rates}


def ends_and_rest(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of embeddings, positions and head (`model.ends`), and all others; a tied one once."""
    ends = dict.fromkeys(p for modules in model.ends.values() for module in modules for p in module.parameters())
    return list(ends), [p for p in model.parameters() if p not in ends]
