"""The kinds of parameters, whose learning rates and relative steps differ. No torch."""

from collections.abc import Mapping
from math import inf
from statistics import geometric_mean

RATES = ("embedding_rate", "position_rate", "head_rate", "gain_rate")  # of what is no matrix of a block


def by_kind(steps: Mapping[str, float]) -> dict[str, float]:
    """Geometric means of relative steps (dnt.nn.calibrate) that are more than none: q, k, ..., tokens, ..., gains."""
    kinds: dict[str, list[float]] = {}
    for name, step in steps.items():
        in_block = name.startswith("blocks.")
        kind = name.split(".", 2)[2] if in_block else name.split(".")[0]
        if kind.endswith((".weight", ".bias", ".g", ".original0") if in_block else "norm"):
            kind = "gains"
        if 0 < step < inf:
            kinds.setdefault(kind, []).append(step)
    return {kind: geometric_mean(found) for kind, found in kinds.items()}
