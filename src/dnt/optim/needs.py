"""What an optimizer needs of the loop that steps it, beyond gradients."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# They mix the entries of a tensor, or of all tensors: half a matrix would be stepped otherwise.
WHOLE = ("Adafactor", "AdamW8bit", "ClippedSGD", "LARS", "Lamb", "Muon", "SophiaH")


def parts(optimizer: Optimizer) -> list[Any]:
    """Of a mixture its parts, else itself."""
    return list(getattr(optimizer, "parts", [optimizer]))


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether it trains and evaluates at different weights, between which train() and eval() switch (2405.15682)."""
    return "train_mode" in optimizer.param_groups[0]


def needs_whole_tensors(optimizer: Optimizer) -> bool:
    return type(optimizer).__name__ in WHOLE


def takes_curvature(optimizer: Optimizer) -> bool:
    """Whether some of its steps differentiate the gradient once more (Sophia)."""
    return hasattr(optimizer, "update_period")


def takes_curvature_now(optimizer: Optimizer) -> bool:
    """Whether its next step does: the backward pass before it must leave a graph."""
    return takes_curvature(optimizer) and optimizer.param_groups[0].get("step", 0) % optimizer.update_period == 0  # type: ignore[attr-defined]


def begin_training(optimizer: Optimizer) -> None:
    """What must be said before the first step."""
    for part in parts(optimizer):
        if is_schedule_free(part):
            part.train()


def free_weights(optimizers: list[Any]) -> list[Tensor]:
    """The parameters of schedule-free optimizers."""
    return [p.detach() for part in optimizers for group in part.param_groups for p in group["params"]]
