"""What we measure on any torch.nn.Module."""

from dnt.analysis.gradients import gradient_histogram
from dnt.analysis.tails import (
    alpha_stable,
    hill,
    hill_tail_index,
    power_law,
    scale_shares,
    student_t,
    tail_indices,
    unscaled,
)

__all__ = [
    "alpha_stable",
    "gradient_histogram",
    "hill",
    "hill_tail_index",
    "power_law",
    "scale_shares",
    "student_t",
    "tail_indices",
    "unscaled",
]
