"""What we measure on any torch.nn.Module."""

from dnt.analysis.anatomy import ROLES, Part, blocks, branches, captured, chain, parts
from dnt.analysis.gradients import Entries, GradientStats, gradient_histogram, gradient_noise, gradient_stats

__all__ = [
    "ROLES",
    "Entries",
    "GradientStats",
    "Part",
    "blocks",
    "branches",
    "captured",
    "chain",
    "gradient_histogram",
    "gradient_noise",
    "gradient_stats",
    "parts",
]
