"""Means resampled by case: questions of one case share its scan, so cases are what is drawn (cluster bootstrap)."""

import numpy as np
from numpy.typing import NDArray

from tumorvqa.scoring.scores import Interval

ENTRIES = 4_000_000  # weights in memory at a time


def resampled_means(
    values: NDArray[np.float64], cases: list[str], parts: NDArray[np.bool_], resamples: int, seed: int
) -> NDArray[np.float64]:
    """(R, P, V): the mean of each column of `values` (N, V) over each part (N, P), in R draws of as many cases as there
    are; nan where a draw has nothing of a part. Empty with fewer than two cases, which say nothing of their spread.
    """
    names, case = np.unique(cases, return_inverse=True)
    count, columns = len(names), values.shape[1]
    if count < 2 or resamples == 0:
        return np.empty((0, parts.shape[1], columns))
    sums = [
        np.bincount(case[part], weights, minlength=count)
        for part in parts.T
        for weights in (np.ones(int(part.sum())), *values[part].T)
    ]
    per_case = np.stack(sums, axis=1)
    random = np.random.default_rng(seed)
    blocks = []
    for size in _blocks(resamples, max(1, ENTRIES // count)):
        draws = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        total = (weights.astype(np.float64) @ per_case).reshape(size, parts.shape[1], columns + 1)
        with np.errstate(invalid="ignore"):
            blocks.append(total[..., 1:] / total[..., :1])
    return np.concatenate(blocks)


def _blocks(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def interval(value: float, samples: NDArray[np.float64]) -> Interval:
    """`value` with the 2.5% and 97.5% quantiles of `samples` (R,), if there are any."""
    known = samples[np.isfinite(samples)]
    if not known.size:
        return Interval(value)
    low, high = np.percentile(known, [2.5, 97.5]).tolist()
    return Interval(value, low, high)
