"""Which parameters decay, and which have a learning rate of their own.

Matrices and embeddings decay; gains, biases and all other 1-D parameters never.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
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


def divide(model: Any, patterns: Sequence[Sequence[str]]) -> list[list[nn.Parameter]]:
    """The trainable parameters of a model, divided: each goes to the first list with a pattern that it matches.

    A pattern is a kind (embedding, position, head, gain, or matrix: of a block) or a name as in fnmatch (blocks.0.*); a
    list without patterns takes all that is left to it. A tied head is head and embedding. ValueError for a pattern of
    nothing, a list that gets nothing, and a parameter that no list takes.
    """
    ends = getattr(model, "ends", {})
    kinds = {kind: {p for module in modules for p in module.parameters()} for kind, modules in ends.items()}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inside = set(named.values()).difference(*kinds.values())
    kinds |= {"gain": {p for p in inside if p.ndim < 2}, "matrix": {p for p in inside if p.ndim >= 2}}
    left, found = dict(named), []
    for members in patterns:
        for pattern in members:
            if not any(matches(name, p, pattern, kinds) for name, p in named.items()):
                known = ", ".join(kind for kind in kinds if kinds[kind])
                raise ValueError(
                    f"{pattern!r} matches no parameter of this model; write a kind it has ({known}), or a name with * "
                    f"for any letters, such as {next(iter(named))}."
                )
        taken = [n for n, p in left.items() if not members or any(matches(n, p, pattern, kinds) for pattern in members)]
        if not taken:
            raise ValueError(
                f"nothing is left for the part of {', '.join(members) or 'the rest'}: the parts before it take it all."
            )
        found.append([left.pop(name) for name in taken])
    if left:
        raise ValueError(
            f"no part takes {next(iter(left))} ({len(left)} of {len(named)} parameters are left over); end with a part "
            "that has no patterns, such as ';msgdw'."
        )
    return found


def matches(name: str, p: nn.Parameter, pattern: str, kinds: Mapping[str, set[nn.Parameter]]) -> bool:
    return p in kinds[pattern] if pattern in kinds else fnmatchcase(name, pattern)


def sgd_rates(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """The learning rates of the parameters that an SGD steps, by name."""
    parts = [part for part in getattr(optimizer, "parts", [optimizer]) if isinstance(part, SGD)]
    rates = {p: group["lr"] for part in parts for group in part.param_groups for p in group["params"]}
    return {name: rates[p] for name, p in model.named_parameters() if p in rates}


def ends_and_rest(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of embeddings, positions and head (`model.ends`), and all others; a tied one once."""
    ends = dict.fromkeys(p for modules in model.ends.values() for module in modules for p in module.parameters())
    return list(ends), [p for p in model.parameters() if p not in ends]
