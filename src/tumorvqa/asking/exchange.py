"""Wrong options that tell nothing: of a question's four, each is as likely the right one to who sees no image.

The wrong options of a question are answers to the same question in other cases. A set of four answers that can be told
apart is drawn with a weight w = a_1 a_2 a_3 a_4, where the a of all answers are such that the sets in which an answer
is have the same total weight for every answer. Whichever of the four was asked for, the set then came out with the same
probability, so the set says nothing about which it was. Equal a would put the truth in the middle too often: an answer
among many has more sets than one at an end. Where no a make the totals equal (answers in clusters), an answer is asked
for as often as its total is of the largest, which makes up for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BATCH, BATCHES = 1000, 20  # sets of three that are drawn, of which few can stand beside each other
KEPT = 400  # of those that can, from which total weights are estimated
LOTS = 1 << 15
FEW = 20  # too few to tell weights from
ROUNDS = 20
AGAIN = 5  # times KEPT sets for the last estimate


@dataclass(frozen=True)
class Pool:
    """The answers of a stratum; `told` (N, N): which can stand beside each other; `weight` (N,): a, with sum 1; `asked`
    (N,): how often each is asked for.
    """

    values: NDArray[np.float64]
    told: NDArray[np.bool_]
    weight: NDArray[np.float64]
    asked: NDArray[np.float64]

    def others(self, of: int, random: np.random.Generator) -> NDArray[np.float64] | None:
        """Three answers that can stand beside answer `of`; None if none were found, or it is not to be asked for."""
        beside = np.flatnonzero(self.told[of])
        if not len(beside) or random.random() >= self.asked[of]:
            return None
        lots = beside[lots_of(self.weight[beside])]
        for count in (30, 1000, 20_000):
            sets = lots[random.integers(len(lots), size=(count, 3))]
            sets = sets[among(sets, self.told)]
            if len(sets):
                return self.values[sets[0]]
        return None


def pool(
    values: Sequence[float],
    errors: Sequence[float],
    patients: Sequence[str],
    ratio: bool,
    least: float,
    widest: float,
    random: np.random.Generator,
) -> Pool:
    """Answers can stand beside each other if they are of different patients and differ by `least` (a share with
    `ratio`), by four standard deviations, and by no more than `widest`. Nobody has others if hardly any three can.
    """
    v, u = np.asarray(values, float), np.asarray(errors, float)
    gap, error = np.abs(v[:, None] - v), np.maximum(u[:, None], u)
    if ratio:
        size = np.maximum(np.abs(v[:, None]), np.abs(v))
        told = (gap >= least * size) & (np.minimum(v[:, None], v) * widest >= size)
    else:
        told = (gap >= least) & (gap <= widest)
    told &= (gap >= 4 * error) & (np.asarray(patients)[:, None] != np.asarray(patients))
    weight = np.full(len(v), 1 / max(len(v), 1))
    for _ in range(ROUNDS):
        sets = standing(weight, told, random)
        if len(sets) < FEW:
            return Pool(v, np.zeros_like(told), weight, np.zeros(len(v)))
        has = np.maximum(told[:, sets].all(2).mean(1), 1 / len(sets))
        weight = weight**0.75 / has**0.25  # a = 1 / has, damped: has goes with the third power of the others' a
        weight /= weight.sum()
    many = np.concatenate([standing(weight, told, random) for _ in range(AGAIN)])
    total = weight * told[:, many].all(2).mean(1)
    if not total.any():
        return Pool(v, np.zeros_like(told), weight, total)
    return Pool(v, told, weight, np.minimum(total / np.quantile(total[total > 0], 0.9), 1))


def standing(weight: NDArray[np.float64], told: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.intp]:
    """(up to KEPT, 3) answers, drawn by their weights, that can stand beside each other."""
    found, lots = np.empty((0, 3), np.intp), lots_of(weight)
    for _ in range(BATCHES):
        sets = lots[random.integers(len(lots), size=(BATCH, 3))]
        found = np.concatenate([found, sets[among(sets, told)]])
        if len(found) >= KEPT:
            break
    return found[:KEPT]


def lots_of(weight: NDArray[np.float64]) -> NDArray[np.intp]:
    """Each answer as often as it weighs, and once at least: a draw from these is a draw by weight."""
    return np.repeat(np.arange(len(weight)), np.maximum(1, np.rint(LOTS * weight / weight.sum()).astype(int)))


def among(sets: NDArray[np.intp], told: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which sets of three can stand beside each other."""
    a, b, c = sets.T
    return told[a, b] & told[a, c] & told[b, c]
