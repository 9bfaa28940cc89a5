"""How heavy the tail of a sample is: alpha in P(|X| > t) ~ t^-alpha, each estimate with a 95% interval.

An exact zero has no scale: every index is one of the entries that are not zero, whose signs it does not see. Samples
are taken as independent; the entries of one gradient are not quite, so their intervals are too narrow. And an index
proves no tail: a mixture of scales (of rows, layers or steps, each of a light law) looks like one. Hence `scale_shares`
and `unscaled`.
"""
# R rows, C columns, N = R C entries of a matrix; B batches, P = B // 2 pairs of them

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE = 0.1  # of a sample, that may be its tail
LEAST = 50  # entries of a tail (Clauset, Shalizi, Newman 2009, section 3.3: fewer cannot be trusted)
ENOUGH = 1000  # entries of a sample whose tail is to be found
STARTS = 40  # numbers of entries that power_law tries as the tail
BEND = 1.25  # of Guillou and Hall (2001): how far from a straight line the tail may look
LIKELY = 1.96**2 / 2  # how far below the maximum a log-likelihood may be within a 95% interval
NORMAL_FROM = 1000.0  # degrees of freedom from which Student's t is a normal law
LEAST_BATCHES = 16
ROUNDS = 20  # of dividing rows and columns
CHUNK = 1 << 20  # entries that are looked at in float64 at a time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Index:
    """An index with its 95% interval, and the number of entries behind it: those above the threshold, if it has one.

    p: of the test that the tail is of the fitted law; below 0.1 it hardly is.
    """

    name: str
    value: float
    low: float
    high: float
    entries: int
    threshold: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Shares:
    """Of the variance of log|x|: they add up to 1 (nan if it is 0)."""

    parameters: float
    rows: float
    columns: float
    entries: float
    variance: float


@dataclass(frozen=True)
class Tails:
    """Of some matrices together: their entries, how many are exact zeros, the shares of all others, and the indices.

    Those are of a random sample of the entries: as they are, after `levelled`, and after `unscaled`; none if fewer than
    ENOUGH are not 0. The second tells a tail from unequal scales, the third does not: it cuts tails too.
    """

    entries: int
    zeros: int
    sampled: int
    shares: Shares
    raw: tuple[Index, ...]
    levelled: tuple[Index, ...]
    unscaled: tuple[Index, ...]


def tail_indices(matrices: Sequence[Tensor], most: int = 200_000, resamples: int = 100, seed: int = 0) -> Tails:
    """Hill, power law and Student t of matrices of one role, such as the gradients of W_q of all layers.

    most: entries of the sample. resamples: of each bootstrap. A vector is a matrix of one row.
    """
    matrices = [torch.atleast_2d(torch.as_tensor(matrix).detach()) for matrix in matrices]
    total = sum(matrix.numel() for matrix in matrices)
    zeros = total - sum(int(matrix.count_nonzero()) for matrix in matrices)
    rng = np.random.default_rng(seed)
    samples: list[list[Tensor]] = [[], [], []]
    for matrix in matrices:
        drawn = random_entries(matrix.numel(), math.ceil(matrix.numel() * min(1.0, most / total)), rng)
        for sample, made in zip(samples, (torch.Tensor.detach, levelled, unscaled), strict=True):
            sample.append(made(matrix).flatten()[drawn].double())
    found = [indices(torch.cat(sample), resamples, seed) for sample in samples]
    return Tails(total, zeros, sum(map(len, samples[0])), scale_shares(matrices), *found)


def indices(x: Tensor, resamples: int, seed: int) -> tuple[Index, ...]:
    if int(x.count_nonzero()) < ENOUGH:
        return ()
    return hill(x, None, resamples, seed), power_law(x, resamples, seed), student_t(x)


def random_entries(n: int, size: int, rng: np.random.Generator) -> Tensor:
    """Which of n; without replacement."""
    return torch.from_numpy(rng.choice(n, size, replace=False, shuffle=False)) if size < n else torch.arange(n)


def hill_tail_index(x: Tensor, k: int) -> Tensor:
    """Hill (1975) estimate of alpha in P(|X| > t) ~ t^-alpha from the k largest |x|; () tensor."""
    top = x.abs().flatten().topk(k + 1).values
    return 1 / (top[:k] / top[k]).log().mean()


def hill(x: Any, k: int | None = None, resamples: int = 200, seed: int = 0) -> Index:
    """Hill's estimate from the k largest |x|, or from as many as lie on a straight line.

    That k is by the rule of Guillou and Hall (2001, JRSS B 63, 293): the smallest from which on a trend in the spacings
    of log|x| shows, in at most the largest tenth. The interval is of the percentiles of a bootstrap of the sample, in
    which k is chosen anew: twice as wide as with k given, which has only the chance of the tail in it (consistent if k
    is large, but small beside n, and the bias negligible: Hall 1990, J. Multivariate Analysis 32, 177).

    Of laws that become a power law late the estimate is too low, and the interval does not know: of Student t with 5
    degrees of freedom by 1 in 5000 entries and by 0.5 in 100,000, and 8 of 10 intervals hold the 5 (of 2 and 3 degrees
    9 of 10). A law without a power tail has no alpha: a normal sample gives one that grows with its size, from 5 of
    1000 entries to 12 of 100,000.
    """
    top, n = largest(x, k)
    rng = np.random.default_rng(seed)
    chosen = straight(top[: tail_size(n) + 1]) if k is None else k
    found = []
    for _ in range(resamples):
        again = resample(top, n, rng)
        found.append(alpha(again, straight(again[: tail_size(n) + 1]) if k is None else k))
    value = alpha(top, chosen)
    return Index("hill", value, *interval(found, value), entries=chosen, threshold=math.exp(top[chosen]))


def power_law(x: Any, resamples: int = 100, seed: int = 0) -> Index:
    """alpha of a Pareto law P(|X| > t) = (t / x_min)^-alpha above x_min, by maximum likelihood.

    Clauset, Shalizi and Newman (2009, SIAM Review 51, 661), whose exponent is that of the density, alpha + 1. x_min is
    the entry, of 40 in the largest tenth, above which the Kolmogorov-Smirnov distance is the smallest. The interval is
    that of a bootstrap that chooses x_min anew; p is the share of samples of the fitted law (below x_min, of the sample
    itself) that are further from their own fit: its standard error is 0.5 / sqrt(resamples) at most. A light tail may
    pass as a power law of large alpha: normal samples do, half of them, with 7 and more. The x_min found is low, which
    makes alpha too low for laws that become a power law late (Drees, Janssen, Resnick, Wang 2020, SIAM J. Math. Data
    Science 2, 75), and the interval says nothing of that: 2.8 for 100,000 entries of Student t with 3.
    """
    top, n = largest(x)
    rng = np.random.default_rng(seed)
    k, distance = closest(top[: tail_size(n) + 1])
    value = alpha(top, k)
    found, further = [], 0
    for _ in range(resamples):
        again = resample(top, n, rng)
        found.append(alpha(again, closest(again[: tail_size(n) + 1])[0]))
        made = as_fitted(top, n, k, value, rng)
        further += closest(made[: tail_size(n) + 1])[1] >= distance
    threshold = math.exp(top[k])
    return Index("power law", value, *interval(found, value), entries=k, threshold=threshold, p=further / resamples)


def tail_size(n: int) -> int:
    return int(SHARE * n)


def largest(x: Any, k: int | None = None) -> tuple[Array, int]:
    """log of the largest |x|, descending, half as many again as a tail may have (a resample leaves some out); and N."""
    nonzero = magnitudes(x)
    n = len(nonzero)
    if k is None and n < ENOUGH:
        raise ValueError(f"got {n} entries that are not zero; a tail is found in {ENOUGH} or more. Pool more entries.")
    if k is not None and not 0 < k < n:
        raise ValueError(f"k is {k}; it must be at least 1 and less than the {n} entries that are not zero.")
    held = min(n, int(1.5 * (tail_size(n) if k is None else k)) + LEAST)
    return nonzero.topk(held).values.double().log().cpu().numpy(), n


def magnitudes(x: Any) -> Tensor:
    """|x| where it is not 0, (N,)."""
    x = torch.as_tensor(x).detach().flatten()
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    nonzero = x[x != 0].abs()
    if not bool(nonzero.isfinite().all()):
        raise ValueError("got entries that are inf or nan; leave out what is not finite, or find out where it is from.")
    return nonzero


def alpha(top: Array, k: int) -> float:
    """Hill's, of logs in descending order; infinite if all are alike."""
    mean = float((top[:k] - top[k]).mean())
    return 1 / mean if mean else math.inf


def straight(top: Array) -> int:
    """The k of Guillou and Hall (2001), of at least LEAST and two thirds of the entries at most.

    The spacings Z_i = i (log x_(i) - log x_(i+1)) of a power law are alike; with the weights w_i = k + 1 - 2 i,
    T_k = sum w_i Z_i / (mean(Z) sqrt(sum w_i^2)) is about normal, and Q_k the root mean square of T from k/2 to 3k/2.
    """
    i = np.arange(1.0, len(top))
    spacings = i * -np.diff(top)
    total, weighted = spacings.cumsum(), (i * spacings).cumsum()
    i, total, weighted = i[1:], total[1:], weighted[1:]  # T_1 = 0
    size = total / i * np.sqrt(i * (i**2 - 1) / 3)  # 0 of nothing but ties, which the top of a resample may be
    trend = np.divide((i + 1) * total - 2 * weighted, size, out=np.zeros_like(size), where=size > 0)
    squares = np.concatenate([[0.0, 0.0], (trend**2).cumsum()])  # of T_1 to T_k
    k = np.arange(LEAST, int(len(spacings) / 1.5))
    half = k // 2
    bends = np.sqrt((squares[k + half] - squares[k - half - 1]) / (2 * half + 1)) > BEND
    return int(k[~bends][-1]) if not bends.all() else LEAST


def closest(top: Array) -> tuple[int, float]:
    """The k whose tail is the closest to its Pareto law, and the Kolmogorov-Smirnov distance."""
    distances = {}
    for k in np.unique(np.geomspace(LEAST, len(top) - 1, STARTS).astype(int)).tolist():
        found = alpha(top, k)
        law = np.exp((top[k] - top[:k]) * found) if found < math.inf else np.ones(k)
        steps = np.arange(k + 1) / k
        distances[k] = float(max((law - steps[:-1]).max(), (steps[1:] - law).max()))
    best = min(distances, key=distances.__getitem__)
    return best, distances[best]


def resample(top: Array, n: int, rng: np.random.Generator) -> Array:
    """The largest of n draws with replacement from the n entries whose largest are given."""
    return top[np.sort(rng.integers(len(top), size=rng.binomial(n, len(top) / n)))]


def as_fitted(top: Array, n: int, k: int, alpha: float, rng: np.random.Generator) -> Array:
    """The largest of n draws, each with probability k / n from the Pareto law, else from the entries below it."""
    above = rng.binomial(n, k / n)
    below = rng.binomial(n - above, (len(top) - k) / (n - k))
    law = np.sort(top[k] + rng.exponential(1 / alpha, above))[::-1]
    return np.concatenate([law, top[np.sort(rng.integers(k, len(top), size=below))]])


def interval(found: Sequence[float], value: float) -> tuple[float, float]:
    """The percentiles of a bootstrap; wide enough for the estimate itself, which they may miss where k is uncertain."""
    if not np.isfinite(found).all():  # of ties
        return min(*found, value), math.inf
    low, high = np.percentile(found, [2.5, 97.5])
    return min(float(low), value), max(float(high), value)


def student_t(x: Any) -> Index:
    """Degrees of freedom nu of a Student t law around 0, by maximum likelihood, its scale free.

    The tail of that law is of alpha = nu, but the likelihood is of all entries: where they are not of the law, nu tells
    of their middle. The interval is that of the profile likelihood; it reaches to infinity if a normal law fits nearly
    as well, and the estimate is infinity if it fits no worse. Cauchy's law has nu = 1.
    """
    from scipy.optimize import brentq, minimize_scalar  # a third of a second to import

    nonzero = magnitudes(x).double()
    if len(nonzero) < 2:
        raise ValueError(f"got {len(nonzero)} entries that are not zero; Student t needs at least 2.")
    squares = (nonzero / nonzero.square().mean().sqrt()).square().cpu().numpy()
    n = len(squares)
    normal = -0.5 * (1 + math.log(2 * math.pi))

    def likelihood(log_nu: float) -> float:
        return student_likelihood(squares, math.exp(log_nu))

    ends = math.log(0.01), math.log(NORMAL_FROM)
    best = minimize_scalar(lambda log_nu: -likelihood(log_nu), bounds=ends, method="bounded", options={"xatol": 1e-4})
    at, most = (math.inf, normal) if normal >= -best.fun else (float(best.x), -float(best.fun))

    def excess(log_nu: float) -> float:
        return n * (likelihood(log_nu) - most) + LIKELY

    middle = min(at, ends[1])
    if excess(middle) <= 0:  # an infinity that even nu = NORMAL_FROM is worse than
        low = NORMAL_FROM
    else:
        low = math.exp(brentq(excess, ends[0], middle, xtol=1e-3)) if excess(ends[0]) < 0 else math.exp(ends[0])
    above = at < ends[1] and excess(ends[1]) < 0
    high = math.exp(brentq(excess, at, ends[1], xtol=1e-3)) if above else math.inf
    return Index("student t", math.exp(at) if at < math.inf else at, low, high, entries=n)


def student_likelihood(squares: Array, nu: float) -> float:
    """Mean log-likelihood of nu with its likeliest scale s: mean((nu + 1) y / (nu + y)) = 1 for y = x^2 / s^2."""
    log_scale = 0.0  # of s^2
    for _ in range(100):
        y = squares * math.exp(-log_scale)
        weight = 1 / (nu + y)
        step = ((nu + 1) * float(y @ weight) / len(y) - 1) / ((nu + 1) * nu * float((y * weight) @ weight) / len(y))
        log_scale += min(max(step, -2.0), 2.0)  # Newton's, of a monotone function
        if abs(step) < 1e-6:
            break
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
    return float(constant - log_scale / 2 - (nu + 1) / 2 * np.log1p(squares * math.exp(-log_scale) / nu).mean())


def alpha_stable(noise: Any) -> Index:
    """Index of a symmetric alpha-stable law, at most 2 (normal), of noise (batches, coordinates of different scales).

    Var log|X| = pi^2 / 6 (1 / alpha^2 + 1/2) (Ma and Nikias 1995, IEEE Trans. Signal Processing 43, 2669), for any
    scale: the variances over batches are pooled over coordinates. They are taken of the differences of batches 1 and 2,
    3 and 4, ...: of the same alpha, symmetric, and free of the mean, which one large entry would shift for all. Normal
    noise gives 2 (or 1.9 with few entries); a scale that changes from batch to batch looks like a tail.

    The interval is a jackknife over the pairs of batches, since the coordinates of one batch depend on each other.
    ValueError below 16 batches; 64 or more give a useful interval.
    """
    from scipy.special import stdtrit

    noise = torch.as_tensor(noise).detach()
    if noise.ndim != 2 or len(noise) < LEAST_BATCHES:
        raise ValueError(
            f"got noise of shape {tuple(noise.shape)}; it must be (batches, coordinates), {LEAST_BATCHES} batches or "
            "more (better 64)."
        )
    pairs = len(noise) // 2
    differences = noise[: 2 * pairs : 2].double() - noise[1 : 2 * pairs : 2].double()
    there = differences != 0
    logs = torch.where(there, differences, 1.0).abs().log()
    enough = there.sum(0) > 2  # so that a variance is left when one is left out
    logs, there = logs[:, enough], there[:, enough].double()
    count, total, square = there.sum(0), logs.sum(0), logs.square().sum(0)
    if not count.numel():
        raise ValueError("got noise that is the same in all batches; there is no index of it.")

    def variance(count: Tensor, total: Tensor, square: Tensor) -> float:
        return float((square - total.square() / count).sum() / (count - 1).sum())

    pooled = variance(count, total, square)
    left_out = [variance(count - there[i], total - logs[i], square - logs[i].square()) for i in range(pairs)]
    error = math.sqrt((pairs - 1) / pairs * sum((each - np.mean(left_out)) ** 2 for each in left_out))
    reach = float(stdtrit(pairs - 1, 0.975)) * error
    value, low, high = (stable_index(each) for each in (pooled, pooled + reach, pooled - reach))
    return Index("alpha-stable", value, low, high, entries=int(count.sum()))


def stable_index(variance: float) -> float:
    """Of log|X|."""
    inverse_square = 6 * variance / math.pi**2 - 0.5
    return 2.0 if inverse_square <= 0.25 else inverse_square**-0.5


def scale_shares(x: Tensor | Sequence[Tensor]) -> Shares:
    """How much of the variance of log|x| lies between matrices, between rows and columns of one, and between entries.

    Components of log|x_aij| = m_a + r_ai + c_aj + e_aij, zeros left out, from half the mean squared difference of two
    entries of one row, of one column, of neither, and of two matrices (Koch 1968, Technometrics 10, 551: unbiased,
    whatever is left out); below 0 they count as 0. e is what no scale of a row or column explains: pi^2 / 8 for normal
    entries, more with a tail. What cannot be told apart, such as the columns of a single row, counts as entries.
    """
    rows, columns, wholes, pooled = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(3)
    for matrix in [x] if isinstance(x, Tensor) else x:
        by_row, by_column = log_sums(torch.atleast_2d(matrix.detach()))
        rows += differences(by_row)
        columns += differences(by_column)
        wholes += differences(by_row.sum(1))
        pooled += by_row.sum(1)
    neither = half_mean(wholes - rows - columns, half_mean(rows, half_mean(columns, 0.0)))
    row, column = half_mean(rows, neither), half_mean(columns, neither)
    two_matrices = half_mean(differences(pooled) - wholes, neither)
    parts = [max(0.0, e) for e in (two_matrices - neither, neither - row, neither - column, row + column - neither)]
    variance = sum(parts)
    of_matrices, of_rows, of_columns, of_entries = (part / variance if variance else math.nan for part in parts)
    return Shares(of_matrices, of_rows, of_columns, of_entries, variance)


def log_sums(matrix_RC: Tensor) -> tuple[Array, Array]:
    """Number, sum and sum of squares of log|x| where x is not 0: of each row (3, R) and column (3, C)."""
    of_rows, of_columns = [], np.zeros((3, matrix_RC.shape[1]))
    for part in matrix_RC.split(max(1, CHUNK // matrix_RC.shape[1])):
        logs = torch.where(part != 0, part.double(), 1.0).abs().log()
        sums = torch.stack([(part != 0).double(), logs, logs.square()])
        of_rows.append(sums.sum(2).cpu().numpy())
        of_columns += sums.sum(1).cpu().numpy()
    return np.concatenate(of_rows, axis=1), of_columns


def differences(sums: Array) -> Array:
    """Sum of the squared differences of all pairs within each group, and the number of pairs; (2,)."""
    n, total, square = sums
    return np.array([np.sum(n * square - total**2), np.sum(n * (n - 1) / 2)])


def half_mean(differences: Array, otherwise: float) -> float:
    """Half the mean squared difference; of no pairs, what is said instead."""
    return float(differences[0] / differences[1] / 2) if differences[1] else otherwise


def levelled(matrix: Tensor) -> Tensor:
    """The matrix after dividing its rows and columns by their geometric means, of the entries that are not 0; (R, C).

    By exp(a) where a is the mean log|x| of the row, less that of all, plus that of the column. What remains is e of
    `scale_shares`; of a matrix with zeros nearly. Unlike a mean square, a mean of logarithms hardly notices a tail. A
    line of one entry has no mean of its own.
    """
    x_RC = torch.atleast_2d(matrix.detach())
    x_RC = x_RC.float() if x_RC.dtype in (torch.bfloat16, torch.float16) else x_RC
    (n_R, row_R, _), (n_C, column_C, _) = (torch.from_numpy(sums).to(x_RC.device) for sums in log_sums(x_RC))
    mean = row_R.sum() / n_R.sum().clamp(min=1)
    row_R = torch.where(n_R > 1, row_R / n_R.clamp(min=1), mean)
    column_C = torch.where(n_C > 1, column_C / n_C.clamp(min=1), mean)
    return x_RC * (mean - row_R).exp().to(x_RC)[:, None] * (-column_C).exp().to(x_RC)


def unscaled(matrix: Tensor) -> Tensor:
    """The matrix after dividing rows and columns by their root mean squares in turn, until both are 1; (R, C).

    Lines that are all zero stay and are left out of the mean squares; a line of one entry is divided by nothing. No
    entry comes out above sqrt(R) or sqrt(C), and a line's largest entries are in what it is divided by: much of a tail
    goes with the scales, at these sizes up to an alpha of 3 or more.
    """
    x_RC = torch.atleast_2d(matrix.detach())
    x_RC = x_RC.float() if x_RC.dtype in (torch.bfloat16, torch.float16) else x_RC
    x_RC = x_RC / x_RC.abs().max().clamp(min=torch.finfo(x_RC.dtype).tiny)  # so that no large square underflows
    squares = x_RC.square()
    rows, columns = int(squares.any(1).sum()), int(squares.any(0).sum())  # not all zero
    row, column = torch.ones_like(squares[:, 0]), torch.ones_like(squares[0])  # mean squares, divided by
    for _ in range(ROUNDS):
        before = column
        if columns > 1:
            row = (squares @ (1 / column) / columns).where(squares.any(1), row)
        if rows > 1:
            column = ((1 / row) @ squares / rows).where(squares.any(0), column)
        if torch.allclose(column, before, rtol=1e-4, atol=0.0):
            break
    return x_RC / row.sqrt()[:, None] / column.sqrt()
