"""What we measure on any torch.nn.Module."""

from dnt.analysis.activations import attention_entropies, residual_norms
from dnt.analysis.gradients import gradient_histogram
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

__all__ = ["gradient_histogram"]
__all__ += ["Spread", "jacobian_spread", "model_jacobians", "singular_values"]
__all__ += ["attention_jacobian", "layernorm_jacobian", "midnorm_jacobian", "rmsnorm_jacobian"]
__all__ += ["effective_step", "largest_singular_value", "step_sizes", "weight_spectra"]
__all__ += ["attention_entropies", "residual_norms"]
