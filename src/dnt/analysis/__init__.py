"""What we measure on any torch.nn.Module."""

from dnt.analysis.gradients import gradient_histogram

__all__ = ["gradient_histogram"]
