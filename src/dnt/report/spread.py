"""How the entries of a gradient are spread, from their logged histogram. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

TOP = 0.01  # the share of entries whose weight is asked for


@dataclass(frozen=True)
class Spread:
    """Of the entries |g| that are not exactly zero; as exact as a bin is wide, an eighth of a decade.

    median, rms: of |g|. ratio: the 99.9% quantile over the median; 4.9 for a normal distribution. top_share: of the
    squared norm, in the largest 1% of the entries; 0.085 for a normal distribution.
    """

    median: float
    rms: float
    ratio: float
    top_share: float


def spread(histogram: dict[str, Any]) -> Spread:
    """Of a "gradients" row of a log."""
    bins = [(center, count) for center, count in centered(histogram) if count]
    total = sum(count for _, count in bins)
    square = sum(count * center**2 for center, count in bins)
    left, top = TOP * total, 0.0
    for center, count in reversed(bins):
        top += min(count, left) * center**2
        left -= min(count, left)
    median = quantile(bins, 0.5 * total)
    return Spread(median, (square / total) ** 0.5, quantile(bins, 0.999 * total) / median, top / square)


def centered(histogram: dict[str, Any]) -> Iterator[tuple[float, int]]:
    """The middle of each bin, on a logarithmic scale, and its count."""
    for (low, high), count in zip(pairwise(histogram["edges"]), histogram["counts"], strict=True):
        yield (low * high) ** 0.5, count


def quantile(bins: list[tuple[float, int]], rank: float) -> float:
    """The center of the bin that holds the entry of this rank."""
    for center, count in bins:
        rank -= count
        if rank <= 0:
            return center
    return bins[-1][0]
