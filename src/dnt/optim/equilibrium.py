"""Weight decay as a choice of the step, for matrices whose scale their branch cannot see. No torch.

The gradient of such a matrix is orthogonal to it, so that steps only lengthen it and decay only shortens it: both meet
where the relative step lr ||g|| / ||w|| no longer depends on the gradient, nor on how the matrix began. Per step the
squared norm grows by (lr ||g|| / (1 - mu))^2, if gradients of different steps are independent (the momentum turns each
g into steps that add up to g / (1 - mu)), and shrinks by 2 lr wd ||w||^2 (2202.00980 for mu = 0; 2006.08419).
"""

from math import sqrt


def equilibrium_step(lr: float, weight_decay: float, momentum: float) -> float:
    """The relative step lr ||g|| / ||w|| that is approached: (1 - mu) sqrt(2 lr wd)."""
    return (1 - momentum) * sqrt(2 * lr * weight_decay)


def equilibrium_decay(step: float, lr: float, momentum: float) -> float:
    """The weight decay with which the relative step approaches `step`: (step / (1 - mu))^2 / (2 lr).

    ValueError for a step that no decay keeps up: one would take all of the weights.
    """
    if not (lr > 0 and 0 <= momentum < 1):
        raise ValueError(f"lr is {lr}, momentum {momentum}; an equilibrium takes lr > 0 and a momentum from 0 to 1.")
    most = (1 - momentum) * sqrt(2)
    if not 0 < step < most:
        raise ValueError(f"equilibrium is {step}; at momentum {momentum:g} it must be between 0 and {most:.3g}.")
    return (step / (1 - momentum)) ** 2 / (2 * lr)


def settling_steps(lr: float, weight_decay: float) -> float:
    """About how many steps it takes: 1 / (lr wd)."""
    return 1 / (lr * weight_decay)
