"""The kinds of parameters, whose learning rates and relative steps differ. No torch."""

from collections.abc import Mapping
from math import inf
from statistics import geometric_mean

KINDS = ("embedding", "position", "head", "gain")  # of parameters that are no matrix of a block: each may have a rate


def by_kind(steps: Mapping[str, float]) -> dict[str, float]:
    """Geometric means of relative steps (dnt.nn.calibrate) that are more than none: q, k, ..., tokens, ..., gains."""
    kinds: dict[str, list[float]] = {}
    for name, step in steps.items():
        kind = name.split(".", 2)[2] if name.startswith("blocks.") else name.removesuffix(".weight")
        if kind.endswith((".weight", ".bias", "norm")):
            kind = "gains"
        if 0 < step < inf:
            kinds.setdefault(kind, []).append(step)
    return {kind: geometric_mean(found) for kind, found in kinds.items()}
