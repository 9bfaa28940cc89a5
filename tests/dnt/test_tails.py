"""Estimators of a tail recover known laws, and unequal scales are told from tails."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dnt.analysis.tails import (
    ENOUGH,
    Index,
    alpha_stable,
    hill,
    hill_tail_index,
    levelled,
    power_law,
    scale_shares,
    student_t,
    tail_indices,
    unscaled,
)

SEEDS = range(10)


def draw(law, size, seed: int) -> Tensor:
    return torch.from_numpy(np.asarray(law.rvs(size=size, random_state=np.random.default_rng(seed))))


def covered(found: list[Index], truth: float) -> int:
    return sum(index.low <= truth <= index.high for index in found)


def test_hill_of_the_k_largest_is_the_maximum_likelihood_of_a_pareto_law():
    x = draw(stats.pareto(2.5), 5000, 0)
    top = x.sort(descending=True).values[:400]
    shape, _, _ = stats.pareto.fit(top.numpy(), floc=0, fscale=float(x.sort(descending=True).values[400]))
    assert hill_tail_index(-x, 400).item() == pytest.approx(shape, rel=1e-6)
    assert hill(x, k=400, resamples=2).value == pytest.approx(shape, rel=1e-6)


def test_the_interval_of_hill_with_k_given_is_that_of_its_known_error():
    """alpha (1 ± 1.96 / sqrt(k))."""
    index = hill(draw(stats.pareto(3), 20_000, 0), k=1000, resamples=1000)
    assert (index.high - index.low) / index.value == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.15)


@pytest.mark.parametrize(
    ("law", "alpha"),
    [(stats.pareto(1.5), 1.5), (stats.pareto(3), 3), (stats.t(2), 2), (stats.t(3), 3)],
    ids=["pareto 1.5", "pareto 3", "t 2", "t 3"],
)
def test_hill_recovers_the_index_of_a_law_with_a_power_tail(law, alpha):
    assert covered([hill(draw(law, 100_000, seed), resamples=60) for seed in SEEDS], alpha) >= 9


@pytest.mark.parametrize("alpha", [1.5, 3])
def test_power_law_recovers_pareto_and_finds_no_fault_with_it(alpha):
    found = [power_law(draw(stats.pareto(alpha), 10_000, seed), resamples=60) for seed in SEEDS]
    assert covered(found, alpha) >= 9
    assert np.median([index.p for index in found]) > 0.25


def test_hill_of_student_t_with_5_degrees_of_freedom_nears_it_from_below():
    """Its tail is c t^-5 (1 - ...) with a second term that fades slowly: the known bias of Hill's estimate."""
    few, many = (np.mean([hill(draw(stats.t(5), n, s), resamples=1).value for s in SEEDS]) for n in (5000, 500_000))
    assert 3.5 < few < many - 0.3 < many < 5


def test_power_law_finds_where_a_tail_begins():
    """A body between 0 and 1, and a twentieth that is Pareto from 1."""
    body, tail = torch.rand(19_000, generator=torch.Generator().manual_seed(0)), draw(stats.pareto(2), 1000, 0)
    index = power_law(torch.cat([body, tail]), resamples=50)
    assert index.low <= 2 <= index.high
    assert index.threshold > 0.97, "the largest tenth, where it looks, begins at 0.95"


@pytest.mark.parametrize("law", [stats.uniform(), stats.expon()], ids=["uniform", "exponential"])
def test_power_law_does_not_fit_a_light_tail(law):
    assert power_law(draw(law, 100_000, 0), resamples=50).p < 0.1


@pytest.mark.parametrize("nu", [2, 3, 5])
def test_student_t_recovers_its_degrees_of_freedom(nu):
    assert covered([student_t(draw(stats.t(nu), 5000, seed)) for seed in SEEDS], nu) >= 9


def test_student_t_of_a_normal_sample_reaches_to_infinity():
    found = [student_t(draw(stats.norm(0, 1e-6), 5000, seed)) for seed in SEEDS]
    assert covered(found, math.inf) >= 9
    assert any(index.value == math.inf for index in found) and all(index.low > 10 for index in found)


@pytest.mark.parametrize("law", [stats.t(1.3), stats.t(4), stats.laplace()], ids=["t 1.3", "t 4", "laplace"])
def test_student_t_equals_the_fit_of_scipy(law):
    x = draw(law, 2000, 0)
    assert student_t(x).value == pytest.approx(stats.t.fit(x.numpy(), floc=0)[0], rel=2e-3)


@pytest.mark.parametrize("alpha", [1.2, 1.7, 2])
def test_alpha_stable_recovers_its_index_of_coordinates_of_any_scale_and_mean(alpha):
    found = []
    for seed in SEEDS:
        noise = draw(stats.levy_stable(alpha, 0), (64, 200), seed)
        scales = torch.logspace(-12, 3, 200, dtype=torch.float64)
        found.append(alpha_stable((noise + 1) * scales))
    assert covered(found, alpha) >= 9
    assert all(index.high - index.low < 0.3 for index in found)


def test_alpha_stable_keeps_its_interval_honest_where_coordinates_are_copies():
    """A thousand coordinates that are four: the interval is as wide as that of the four."""
    four = draw(stats.levy_stable(1.5, 0), (64, 4), 0)
    few, many = alpha_stable(four), alpha_stable(four.repeat(1, 250))
    assert (few.value, few.low, few.high) == pytest.approx((many.value, many.low, many.high))


def test_alpha_stable_leaves_out_what_does_not_move():
    noise = draw(stats.norm(), (64, 50), 0)
    still = torch.cat([noise, torch.zeros(64, 20)], dim=1)
    assert alpha_stable(still) == alpha_stable(noise)


def test_alpha_stable_takes_a_mixture_of_scales_over_batches_for_a_tail():
    noise = draw(stats.norm(), (64, 200), 0) * draw(stats.lognorm(1.5), (64, 1), 1)
    assert alpha_stable(noise).value < 1.5


@pytest.mark.parametrize("index", [hill, power_law, student_t], ids=["hill", "power law", "student t"])
def test_an_index_does_not_see_scale_signs_and_zeros(index):
    x = draw(stats.t(3), 3000, 0)
    other = torch.cat([torch.zeros(500), -(2.0**-40) * x])
    found, same = index(x), index(other)
    assert (same.value, same.low, same.high) == pytest.approx((found.value, found.low, found.high), rel=1e-4)
    assert same.entries == found.entries


def test_ties_at_the_top_do_not_make_a_bent_tail_straight():
    """As a resample has them: spacings of 0, of which no trend can be told."""
    x = draw(stats.norm(), 50_000, 0).abs()
    assert hill(torch.cat([x.max().expand(5), x]), resamples=2).entries < 1000


def lognormal_rows(sigma: float, rows: int = 300, columns: int = 400, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return entries * (sigma * torch.randn(rows, 1, generator=generator, dtype=torch.float64)).exp()


def test_rows_of_unequal_scale_look_like_a_tail_until_they_are_divided():
    tails = tail_indices([lognormal_rows(1.0, seed=seed) for seed in range(2)], most=60_000, resamples=20)
    for raw, divided in zip(tails.raw, tails.unscaled, strict=True):
        assert raw.value < 3 and divided.value > 2 * raw.value and raw.high < divided.low, raw.name
    assert tails.shares.rows > 0.3


def test_a_real_tail_stays_when_rows_and_columns_are_levelled_and_is_cut_when_they_are_unscaled():
    """Student t with 3 degrees of freedom, as many rows and columns as a small model has."""
    x = torch.from_numpy(stats.t.rvs(3, size=(128, 512), random_state=np.random.default_rng(0)))
    raw = hill(x, resamples=20).value
    assert hill(levelled(x), resamples=20).value == pytest.approx(raw, rel=0.15)
    assert hill(unscaled(x), resamples=20).value > 1.8 * raw


def test_levelled_does_not_see_the_scales_of_rows_and_columns():
    x = torch.randn(40, 60, dtype=torch.float64)
    scales = torch.rand(40, 1, dtype=torch.float64).exp(), torch.rand(60, dtype=torch.float64).exp() * 100
    torch.testing.assert_close(levelled(x * scales[0] * scales[1]), levelled(x))
    assert abs(float(levelled(x).abs().log().mean())) < 1e-12


def test_a_real_tail_stays_in_student_t_when_rows_and_columns_are_divided():
    x = draw(stats.t(3), (300, 1000), 0)
    assert student_t(unscaled(x)).value == pytest.approx(student_t(x).value, rel=0.1)


def test_shares_of_the_variance_of_logs_are_those_of_known_components():
    """log|normal| varies by pi^2 / 8; rows, columns and matrices add theirs, whatever is zero."""
    generator = torch.Generator().manual_seed(0)
    row, column, matrix = 1.0, 0.5, 2.0
    matrices = []
    for _ in range(400):
        x = torch.randn(40, 30, generator=generator, dtype=torch.float64)
        x *= (row * torch.randn(40, 1, generator=generator)).exp()
        x *= (column * torch.randn(1, 30, generator=generator)).exp()
        x *= (matrix * torch.randn(1, generator=generator)).exp()
        x[torch.rand(40, 30, generator=generator) < 0.2] = 0
        matrices.append(x)
    shares = scale_shares(matrices)
    total = matrix**2 + row**2 + column**2 + math.pi**2 / 8
    assert shares.variance == pytest.approx(total, rel=0.1)
    assert shares.parameters == pytest.approx(matrix**2 / total, abs=0.05)
    assert shares.rows == pytest.approx(row**2 / total, abs=0.02)
    assert shares.columns == pytest.approx(column**2 / total, abs=0.02)
    assert shares.parameters + shares.rows + shares.columns + shares.entries == pytest.approx(1)


def test_without_zeros_the_shares_are_those_of_a_two_way_analysis_of_variance():
    x = lognormal_rows(0.7, rows=12, columns=9)
    logs = x.abs().log()
    rows, columns = logs.mean(1, keepdim=True), logs.mean(0, keepdim=True)
    rest = (logs - rows - columns + logs.mean()).square().sum() / (11 * 8)
    of_rows = (9 * rows.var() - rest) / 9
    of_columns = (12 * columns.var() - rest) / 12
    expected = torch.stack([of_rows, of_columns, rest]).clamp(min=0)
    shares = scale_shares(x)
    assert (shares.rows, shares.columns, shares.entries) == pytest.approx(tuple((expected / expected.sum()).tolist()))


def test_shares_of_what_cannot_be_told_apart_count_as_entries():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert scale_shares(x).entries == scale_shares(x[:, None]).entries == 1
    assert math.isnan(scale_shares(torch.ones(3, 4)).entries) and scale_shares(torch.ones(3, 4)).variance == 0


def test_unscaled_rows_and_columns_have_mean_square_1_but_for_those_that_are_zero():
    x = lognormal_rows(2.0, rows=40, columns=60) * torch.logspace(-15, 3, 60)
    x[[3, 7]] = 0
    x[:, 5] = 0
    divided = unscaled(x)
    assert torch.equal(divided == 0, x == 0)
    rest = divided[divided.any(1)][:, divided.any(0)]
    torch.testing.assert_close(rest.square().mean(1), torch.ones(38, dtype=x.dtype), rtol=1e-3, atol=0)
    torch.testing.assert_close(rest.square().mean(0), torch.ones(59, dtype=x.dtype), rtol=1e-3, atol=0)


def test_unscaled_does_not_see_the_scales_of_rows_and_columns():
    x = lognormal_rows(0.0)
    generator = torch.Generator().manual_seed(1)
    scaled = x * torch.rand(300, 1, generator=generator) * torch.rand(400, generator=generator)
    torch.testing.assert_close(unscaled(scaled), unscaled(x), rtol=1e-3, atol=0)


def test_a_vector_is_divided_as_a_whole():
    x = torch.tensor([3.0, 0.0, -4.0])
    torch.testing.assert_close(unscaled(x), torch.tensor([[3.0, 0.0, -4.0]]) / math.sqrt(12.5))


def test_tail_indices_count_zeros_and_take_a_sample_that_the_seed_fixes():
    x = draw(stats.t(3), (400, 100), 0)
    x[:100] = 0
    found, again, other = (tail_indices([x[:200], x[200:]], 10_000, 10, seed) for seed in (0, 0, 1))
    assert (found.entries, found.zeros, found.sampled) == (40_000, 10_000, 10_000)
    assert found == again != other
    assert [index.name for index in found.raw] == ["hill", "power law", "student t"]


def test_tail_indices_of_few_entries_are_none():
    found = tail_indices([torch.ones(ENOUGH - 1)])
    assert found.raw == found.unscaled == ()


def test_hill_of_a_sample_that_bends_takes_less_than_two_thirds_of_the_largest_tenth():
    straight, bent = (hill(draw(law, 50_000, 0), resamples=2).entries for law in (stats.pareto(3), stats.norm()))
    assert bent < 1000 < straight


def test_few_or_broken_samples_are_refused():
    with pytest.raises(ValueError, match=r"got 3 entries that are not zero; a tail is found in 1000 or more"):
        hill([1.0, 0.0, 2.0, -3.0])
    with pytest.raises(ValueError, match=r"k is 3; it must be at least 1 and less than the 3 entries"):
        hill([1.0, 0.0, 2.0, -3.0], k=3)
    with pytest.raises(ValueError, match="inf or nan"):
        student_t([1.0, math.inf, 2.0])
    with pytest.raises(
        ValueError, match=r"got noise of shape \(15, 4\); it must be \(batches, coordinates\), 16 batches"
    ):
        alpha_stable(torch.randn(15, 4))
    with pytest.raises(ValueError, match="the same in all batches"):
        alpha_stable(torch.ones(16, 4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("others", [0.0, 0.5])
def test_a_top_of_equal_entries_has_no_tail_at_all(others):
    """P(|X| > t) falls at once: alpha is infinite."""
    x = torch.cat([torch.full((3000,), 5.0), others * torch.linspace(-1, 1, 3000)])
    found = tail_indices([x], resamples=5)
    for index in found.raw[:2]:
        assert index.value == index.high == math.inf >= index.low, index.name
