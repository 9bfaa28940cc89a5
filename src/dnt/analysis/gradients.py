"""How the entries of a gradient are spread, and how they vary from batch to batch."""
# N batches, K kept coordinates, C candidates for them, E bins

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnt.analysis.anatomy import ROLES, Part, parts

LOWEST, HIGHEST, PER_DECADE = -14, 4, 8  # decades of |g| in a histogram, and bins in each
EDGES = tuple(10 ** (LOWEST + i / PER_DECADE) for i in range((HIGHEST - LOWEST) * PER_DECADE + 1))
WIDEST, FINER = (-46, 39), 64  # decades of float32, and bins in each bin of a histogram: median and top share need them
TOP = 0.01  # of the entries: those whose share of the squared norm is asked for
CHUNK = 1 << 18  # entries at a time
LEAST_BATCHES = 8  # that noise is told from
CANDIDATES = 64  # for each coordinate: all are found where one entry of so many is ever other than zero

LossFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Entries:
    """How some entries g of a gradient are spread. Exact zeros are counted in `zeros` and left out of all that follows.

    role, layer: of a part; layer is None for a whole role, and both for the total. count: with the zeros. rms, largest,
    median (the lower one of two): of |g|, 0 if there is none. kurtosis: E g^4 / (E g^2)^2, 3 for a normal law.
    top_share: of the squared norm, in the largest 1% of the entries; 0.085 for a normal law. histogram: counts of |g|
    between EDGES; what lies beyond is in the first or last bin. Ratios are nan if there are no entries; nothing but the
    counts is finite if an entry is not.

    median and top_share are read from bins 0.45% wide: the median is as exact as that, and top_share less wrong than 1%
    of what the bin of its smallest entries holds. All else is exact but for rounding in float64.
    """

    role: str | None
    layer: int | None
    count: int
    zeros: int
    rms: float
    largest: float
    median: float
    max_to_median: float
    kurtosis: float
    top_share: float
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class GradientStats:
    """Of the gradient of `loss`: by the names of parts, by role (all layers together), and of all entries.

    blocks: of the matrices of all blocks together.
    """

    loss: float
    parts: dict[str, Entries]
    roles: dict[str, Entries]
    blocks: Entries
    total: Entries


def gradient_stats(model: nn.Module, batches: Iterable[Sequence[Any]], loss_fn: LossFn) -> GradientStats:
    """How the gradient of the mean over batches of loss_fn(model, *batch) -> scalar is spread.

    Uses torch.autograd.grad: .grad is neither read nor written. The model's mode and its buffers are the caller's.
    Beside what the backward pass needs it holds one gradient, a second one if there are several batches, and little
    else. What no loss depends on has a gradient of zeros.
    """
    return stats_of(model, *mean_gradient(model, batches, loss_fn))


def stats_of(model: nn.Module, loss: float, gradients: Mapping[nn.Parameter, Tensor]) -> GradientStats:
    """Of a gradient that is there, by parameter."""
    found, by_role, blocks, total = {}, {role: Sums() for role in ROLES}, Sums(), Sums()
    for part in parts(model):
        sums = sums_of(part.of(gradients[part.parameter]))
        found[part.name] = sums.entries(part.role, part.layer)
        by_role[part.role].add(sums)
        total.add(sums)
        if part.of_block:
            blocks.add(sums)
    roles = {role: sums.entries(role) for role, sums in by_role.items() if sums.count}
    return GradientStats(loss, found, roles, blocks.entries(), total.entries())


def gradient_noise(
    model: nn.Module, batches: Iterable[Sequence[Any]], loss_fn: LossFn, coordinates: int = 256, seed: int = 0
) -> dict[str, Tensor]:
    """By the names of parts: each batch's gradient minus the mean over batches, (N, K <= coordinates) float64.

    The coordinates are drawn from those that are not zero in every batch, all of these equally likely; they are fewer
    if there are not so many, or one was not found among 64 candidates for each. The rest as for gradient_stats, of
    which it holds one gradient at a time.
    """
    samples = [(part, Sample.of(part, coordinates, seed)) for part in parts(model)]
    count = 0
    for _, gradients in losses_and_gradients(model, batches, loss_fn):
        for part, sample in samples:
            sample.add(part.of(gradients[part.parameter]))
        gradients.clear()
        count += 1
    if count < LEAST_BATCHES:
        raise ValueError(f"{count} batches are too few to tell their noise from; give {LEAST_BATCHES} or more.")
    return {part.name: sample.values_NK - sample.values_NK.mean(0) for part, sample in samples}


def gradient_histogram(model: nn.Module, batch: Sequence[Any], loss_fn: LossFn) -> dict[str, Any]:
    """Histogram of |entries| of d loss / d parameters, all trainable parameters together, on one batch.

    loss_fn(model, *batch) -> scalar. Uses torch.autograd.grad: .grad is neither read nor written.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_fn(model, *batch), parameters, allow_unused=True)
    return histogram(gradient for gradient in gradients if gradient is not None)


def histogram(gradients: Iterable[Tensor]) -> dict[str, Any]:
    """Of the |entries| of all gradients together.

    `edges` (n + 1) are powers of ten, evenly spaced; `counts` (n); entries outside the edges fall in the first or last
    bin; exact zeros are counted apart in `zeros`.
    """
    sums = Sums()
    for gradient in gradients:
        sums.add(sums_of(gradient))
    return {"edges": list(EDGES), "counts": list(sums.histogram()), "zeros": sums.zeros}


def losses_and_gradients(
    model: nn.Module, batches: Iterable[Sequence[Any]], loss_fn: LossFn
) -> Iterator[tuple[float, dict[nn.Parameter, Tensor]]]:
    """Of each batch, for every trainable parameter; zeros that take no memory where the loss does not depend on it.

    The caller alone holds the gradients if it empties their dict.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for batch in batches:
        loss = loss_fn(model, *batch)
        gradients = {
            p: p.new_zeros(()).expand_as(p) if gradient is None else gradient
            for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
        }
        yield float(loss.detach()), gradients


def mean_gradient(
    model: nn.Module, batches: Iterable[Sequence[Any]], loss_fn: LossFn
) -> tuple[float, dict[nn.Parameter, Tensor]]:
    """Mean loss and mean gradient over batches, in float32 or wider."""
    losses: list[float] = []
    sums: dict[nn.Parameter, Tensor] = {}
    for loss, gradients in losses_and_gradients(model, batches, loss_fn):
        for parameter in list(gradients):
            gradient = gradients.pop(parameter)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            sums[parameter] = sums[parameter] + gradient if losses else gradient
        losses.append(loss)
    if not losses:
        raise ValueError("no batch to measure gradients on; give at least one.")
    if len(losses) > 1:
        for parameter in sums:
            sums[parameter] = sums[parameter] / len(losses)
    return math.fsum(losses) / len(losses), sums


def no_counts() -> Tensor:
    return torch.zeros((WIDEST[1] - WIDEST[0]) * PER_DECADE * FINER, dtype=torch.int64)


def no_squares() -> Tensor:
    return torch.zeros((WIDEST[1] - WIDEST[0]) * PER_DECADE * FINER, dtype=torch.float64)


@dataclass
class Sums:
    """What the statistics of some entries follow from; those of two sets of entries add."""

    count: int = 0
    zeros: int = 0
    largest: float = 0.0
    fourths: float = 0.0  # of g^4
    counts_E: Tensor = field(default_factory=no_counts)  # of the entries that are not zero, by log |g|
    squares_E: Tensor = field(default_factory=no_squares)  # their sums of g^2

    def add(self, other: "Sums") -> None:
        self.count += other.count
        self.zeros += other.zeros
        self.largest = max(self.largest, other.largest)
        self.fourths += other.fourths
        self.counts_E += other.counts_E
        self.squares_E += other.squares_E

    def histogram(self) -> tuple[int, ...]:
        counts = self.counts_E.view(-1, FINER).sum(1)
        first, last = ((end - WIDEST[0]) * PER_DECADE for end in (LOWEST, HIGHEST))
        inside = counts[first:last].clone()
        inside[0] += counts[:first].sum()
        inside[-1] += counts[last:].sum()
        return tuple(inside.tolist())

    def entries(self, role: str | None = None, layer: int | None = None) -> Entries:
        n, square = self.count - self.zeros, float(self.squares_E.sum())
        largest = self.largest if math.isfinite(square) else math.nan
        median = self.median() if n and math.isfinite(square) else largest
        return Entries(
            role=role,
            layer=layer,
            count=self.count,
            zeros=self.zeros,
            rms=math.sqrt(square / n) if n else 0.0,
            largest=largest,
            median=median,
            max_to_median=largest / median if median else math.nan,
            kurtosis=n * (self.fourths / square) / square if square else math.nan,
            top_share=self.top(TOP * n) / square if square else math.nan,
            histogram=self.histogram(),
        )

    def filled(self) -> tuple[Tensor, Tensor]:
        """Counts and squares of the bins that hold entries, in their order."""
        bins = self.counts_E.nonzero().flatten()
        return self.counts_E[bins], self.squares_E[bins]

    def median(self) -> float:
        """The root mean square of the bin that holds it."""
        counts, squares = self.filled()
        rank = (self.count - self.zeros - 1) // 2
        bin = torch.searchsorted(counts.cumsum(0), rank, right=True)
        return float((squares[bin] / counts[bin]).sqrt())

    def top(self, n: float) -> float:
        """Sum of squares of the n largest; of the bin in which they end, a share."""
        counts, squares = self.filled()
        larger = counts.flip(0).cumsum(0).flip(0) - counts
        return float((squares * ((n - larger) / counts).clamp(0, 1)).sum())


def sums_of(gradient: Tensor) -> Sums:
    """Of all entries, a chunk at a time."""
    sums = Sums()
    lowest, bins = WIDEST[0], len(sums.counts_E)
    for chunk in gradient.detach().reshape(-1).split(CHUNK):
        sizes = chunk.double().abs_()
        squares = sizes.square()
        zeros = chunk.numel() - int(sizes.count_nonzero())
        largest = float(sizes.max())
        index = sizes.log10_().sub_(lowest).mul_(PER_DECADE * FINER).nan_to_num_().clamp_(0, bins - 1).long()
        counts_E = index.bincount(minlength=bins)
        counts_E[0] -= zeros  # log 0 is below all
        squares_E = index.bincount(squares, minlength=bins)
        sums.add(Sums(chunk.numel(), zeros, largest, float(squares @ squares), counts_E.cpu(), squares_E.cpu()))
    return sums


@dataclass
class Sample:
    """Of entries in a random order the first K that were not zero in every batch, with their values in all of them.

    An entry that comes in late was zero in the batches before.
    """

    order_C: Tensor  # flat indices
    coordinates: int
    kept_K: Tensor  # indices into the order, ascending
    values_NK: Tensor

    @staticmethod
    def of(part: Part, coordinates: int, seed: int) -> "Sample":
        count = part.of(part.parameter).numel()
        drawn = random.Random(f"{seed} {part.name}").sample(range(count), min(count, CANDIDATES * coordinates))
        return Sample(torch.tensor(drawn), coordinates, torch.tensor([]).long(), torch.zeros(0, 0).double())

    def add(self, gradient: Tensor) -> None:
        values_C = gradient.reshape(-1)[self.order_C.to(gradient.device)].double().cpu()
        ever_C = values_C != 0
        ever_C[self.kept_K] = True
        kept_K = ever_C.nonzero().flatten()[: self.coordinates]
        values_NK = torch.zeros(len(self.values_NK) + 1, len(kept_K), dtype=torch.float64)
        values_NK[:-1, torch.isin(kept_K, self.kept_K)] = self.values_NK[:, torch.isin(self.kept_K, kept_K)]
        values_NK[-1] = values_C[kept_K]
        self.kept_K, self.values_NK = kept_K, values_NK
