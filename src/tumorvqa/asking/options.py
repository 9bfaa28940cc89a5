"""Wrong options that do not give the right one away by their shape, and how numbers are shown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Literal

from tumorvqa.asking.look import Class, Number
from tumorvqa.question import Option, Value
from tumorvqa.structures import STRUCTURES


@dataclass(frozen=True)
class Shown:
    """How numbers of a unit are written, and what keeps two options of it apart: a share of them, or an amount."""

    decimals: int
    differ: Literal["ratio", "amount", "count"]
    least: float  # share or amount
    widest: float  # largest ratio, or difference, of two options
    said: str = ""  # the unit in an answer
    signed: bool = False


UNITS = {
    "cm^3": Shown(1, "ratio", 0.1, 4, "cm^3"),
    "cm": Shown(1, "ratio", 0.1, 4, "cm"),
    "%": Shown(1, "ratio", 0.1, 4, "%"),
    "ratio": Shown(2, "ratio", 0.1, 4),
    "HU": Shown(1, "amount", 5, 120, "HU", signed=True),
    "slice": Shown(0, "amount", 2, 60),
    "lesions": Shown(0, "count", 1, math.inf),
}
COUNT = 4  # of options, where there are as many classes
TRIES = 200  # values tried as wrong options
CHANGES = 20  # times that the same three are changed until they can be told apart


def said(value: Value, unit: str = "") -> str:
    """A number with the digits of its unit, or a class in words."""
    if isinstance(value, str):
        return STRUCTURES[value].title if value in STRUCTURES else value
    return f"{value:.{UNITS[unit].decimals}f}"


def rounded(value: float, unit: str) -> float:
    return round(value, UNITS[unit].decimals) + 0.0  # no -0.0


def apart(unit: str, uncertainty: float) -> Callable[[float, float], bool]:
    """Whether two options can be told apart (four standard deviations) and are not absurdly far from each other."""
    row = UNITS[unit]

    def told(a: float, b: float) -> bool:
        gap, size = abs(a - b), max(abs(a), abs(b))
        if row.differ == "ratio":
            far = min(a, b) <= 0 or size > row.widest * min(a, b)
            return not far and gap >= max(row.least * size, 4 * uncertainty, 10**-row.decimals)
        return max(row.least, 4 * uncertainty) <= gap <= row.widest

    return told


def numbers(truth: Number, scale: float, others: Sequence[float] | None, random: Random) -> list[float] | None:
    """The truth and three other values, in random order; None if there is no room for them.

    The others are three answers of an exchange.Pool, each a little changed (else who has seen the other questions knows
    them), in units of `scale`. Without any, they lie at random ratios or distances, with a random number of them below
    the truth, so that the truth is as often the least as a middle one.
    """
    row, told = UNITS[truth.unit], apart(truth.unit, truth.uncertainty)
    right = rounded(truth.value, truth.unit)
    chosen = [right] if others is not None else invented_beside(right, truth.unit, told, random)
    for _ in range(CHANGES if others is not None else 0):
        changed = [right, *(changed_little(other * scale, truth.unit, random) for other in others or ())]
        if all(told(a, b) for a, b in combinations(changed, 2)) and (min(changed) >= 0 or row.signed):
            chosen = changed
            break
    random.shuffle(chosen)
    return chosen if len(chosen) == COUNT else None


def changed_little(value: float, unit: str, random: Random) -> float:
    """By at most 3%, or a third of the least distance of two options."""
    row, step = UNITS[unit], random.uniform(-1, 1)
    return rounded(value * (1 + 0.03 * step) if row.differ == "ratio" else value + step * row.least / 3, unit)


def counts(truth: int, kept: Sequence[int] | None, random: Random) -> list[float]:
    """A number of lesions and up to three others: of those `kept`, or of those near it."""
    others = [n for n in (range(truth + COUNT + 1) if kept is None else kept) if n != truth]
    chosen = [float(n) for n in [truth, *random.sample(others, min(COUNT - 1, len(others)))]]
    random.shuffle(chosen)
    return chosen


def invented_beside(truth: float, unit: str, told: Callable[[float, float], bool], random: Random) -> list[float]:
    """The truth and up to three values that nobody measured."""
    row = UNITS[unit]
    below = random.randrange(COUNT)
    chosen = [truth]
    for _ in range(TRIES):
        sign = -1 if len(chosen) <= below else 1
        if row.differ == "ratio":
            other = rounded(truth * math.exp(sign * random.uniform(0, math.log(2.5))), unit)
        else:
            other = rounded(truth + sign * random.uniform(row.least, row.widest / 2), unit)
        if all(told(other, kept) for kept in chosen) and (other >= 0 or row.signed):
            chosen.append(other)
        if len(chosen) == COUNT:
            break
    return chosen


def classes(truth: Class, kept: Sequence[str], random: Random) -> list[str]:
    """The class and up to three others of those `kept`, in random order."""
    others = [name for name in kept if name != truth.value]
    chosen = [truth.value, *random.sample(others, min(COUNT - 1, len(others)))]
    random.shuffle(chosen)
    return chosen


def option(value: Value, unit: str) -> Option:
    return Option(said(value, unit), value)


def nearest(value: float, options: Sequence[Option], unit: str) -> int:
    """The option that a number is closest to: by ratio where options differ by ratios."""

    def off(other: Value) -> float:
        assert not isinstance(other, str)
        if UNITS[unit].differ == "ratio" and value > 0 and other > 0:
            return abs(math.log(value / other))
        return abs(value - other)

    return min(range(len(options)), key=lambda i: off(options[i].value))
