"""Learning-rate schedules: pure functions of the step, as factors of the learning rate. No torch."""

import math

WSD_DECAY_SHARE = 0.2  # of all steps; 10% to 20% in 2404.06395


def cosine(step: int, steps: int, warmup: int, floor: float) -> float:
    """Linear warm-up, then half a cosine down to `floor` at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def wsd(step: int, steps: int, warmup: int, floor: float) -> float:
    """Warm-up, stable, then linear decay to `floor` over the last fifth (2404.06395)."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - 1 - step) / max(1, int(WSD_DECAY_SHARE * steps))
    return min(1.0, floor + (1 - floor) * left)


def constant(step: int, steps: int, warmup: int, floor: float) -> float:
    """Linear warm-up, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))


SCHEDULES = {"cosine": cosine, "wsd": wsd, "constant": constant}
