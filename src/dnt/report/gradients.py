"""How the entries of gradients are spread, from their logged histograms. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import geometric_mean, mean
from typing import Any

from rich.table import Table

from dnt.report.cells import Cell
from dnt.report.summary import Comparison
from dnt.runs import Run

COLUMNS = ("median |g|", "RMS", "99.9% / median", "norm² in the top 1%")
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


def spread(histogram: dict[str, Any]) -> Spread | None:
    """Of a "gradients" row of a log; None if all entries are zero."""
    bins = [(center, count) for center, count in centered(histogram) if count]
    if not bins:
        return None
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


def histogram_at(run: Run, step: int | None) -> dict[str, Any] | None:
    """Of a run's gradient at a step, or at the end; None if it was not logged."""
    rows = run.rows("gradients")
    if step is None:
        return rows[-1] if rows and rows[-1]["step"] > 0 else None
    return next((row for row in rows if row["step"] == step), None)


def statistics(cells: tuple[Cell, ...]) -> list[list[str]]:
    """Of each cell at its best setting: test loss, how the entries are spread at the start, and at the end."""
    rows = []
    for cell in cells:
        logged = [[histogram_at(run, step) for run in cell.best.runs] for step in (0, None)]
        found = [[s for h in histograms if h and (s := spread(h))] for histograms in logged]
        if any(found):
            test = "diverged" if cell.best.diverged else f"{cell.best.test:.3f}"
            rows.append([cell.name, test, *(text for spreads in found for text in averages(spreads))])
    return rows


def averages(spreads: list[Spread]) -> list[str]:
    """Geometric means over seeds of sizes, the mean of shares; nothing of runs that did not come so far."""
    if not spreads:
        return [""] * len(COLUMNS)
    return [
        f"{geometric_mean([s.median for s in spreads]):.1e}",
        f"{geometric_mean([s.rms for s in spreads]):.1e}",
        f"{geometric_mean([s.ratio for s in spreads]):.0f}",
        f"{mean(s.top_share for s in spreads):.0%}",
    ]


def table(comparison: Comparison) -> Table:
    """The statistics, for a terminal."""
    found = Table(
        "gradient entries", "test loss", *(f"{when}: {name}" for when in ("start", "end") for name in COLUMNS)
    )
    for row in statistics(comparison.cells):
        found.add_row(*row)
    return found
