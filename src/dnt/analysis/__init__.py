"""What we measure on any torch.nn.Module."""

from dnt.analysis.activations import attention_entropies, residual_norms
from dnt.analysis.anatomy import ROLES, Part, blocks, branches, captured, chain, parts
from dnt.analysis.dependence import scale_dependence
from dnt.analysis.diagnosis import diagnose
from dnt.analysis.gradients import Entries, GradientStats, gradient_histogram, gradient_noise, gradient_stats
from dnt.analysis.jacobian import (
    Spread,
    attention_jacobian,
    jacobian_spread,
    layernorm_jacobian,
    midnorm_jacobian,
    model_jacobians,
    rmsnorm_jacobian,
    singular_values,
)
from dnt.analysis.spectra import effective_step, largest_singular_value, step_sizes, weight_spectra
from dnt.analysis.tails import (
    alpha_stable,
    hill,
    hill_tail_index,
    levelled,
    power_law,
    scale_shares,
    student_t,
    tail_indices,
    unscaled,
)

__all__ = ["ROLES", "Part", "blocks", "branches", "captured", "chain", "parts"]
__all__ += ["diagnose", "scale_dependence"]
__all__ += ["Entries", "GradientStats", "gradient_histogram", "gradient_noise", "gradient_stats"]
__all__ += [
    "alpha_stable",
    "hill",
    "hill_tail_index",
    "levelled",
    "power_law",
    "scale_shares",
    "student_t",
    "tail_indices",
    "unscaled",
]
__all__ += ["Spread", "jacobian_spread", "model_jacobians", "singular_values"]
__all__ += ["attention_jacobian", "layernorm_jacobian", "midnorm_jacobian", "rmsnorm_jacobian"]
__all__ += ["effective_step", "largest_singular_value", "step_sizes", "weight_spectra"]
__all__ += ["attention_entropies", "residual_norms"]
