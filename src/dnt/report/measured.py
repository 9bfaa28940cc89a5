"""What was timed side by side, round by round. No torch."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Measured:
    """What one of the things did: a value by name for every round, and what it says at its end."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return median(found[name] for found in self.rounds)


def paired_ratio(a: Measured, b: Measured, name: str) -> float:
    """Median over the rounds of a / b, each of the same round."""
    return median(mine[name] / other[name] for mine, other in zip(a.rounds, b.rounds, strict=True))
