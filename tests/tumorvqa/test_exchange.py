"""Four options of which each is as likely the right one."""

from itertools import combinations

import numpy as np

from tumorvqa.asking import exchange
from tumorvqa.asking.exchange import pool


def volumes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(3, 0.5, count)


def made(values, patients=None, seed=0):
    names = patients or [str(i) for i in range(len(values))]
    return pool(values, 0.005 * np.abs(values), names, True, 0.1, 4.0, np.random.default_rng(seed))


def test_every_answer_is_in_sets_of_the_same_total_weight():
    values = volumes(40)
    found = made(values)
    total, plain = np.zeros(40), np.zeros(40)
    for four in combinations(range(40), 4):  # all of them, counted out
        if all(found.told[i, j] for i, j in combinations(four, 2)):
            total[list(four)] += found.weight[list(four)].prod()
            plain[list(four)] += 1
    assert (total > 0).all()
    assert total.std() / total.mean() < 0.15
    assert plain.std() / plain.mean() > 2 * total.std() / total.mean()  # equal weights favour the middle


def nearest_to_usual(rounds: int, monkeypatch) -> float:
    """How many standard errors more often than one in four the right option is the one nearest the median."""
    monkeypatch.setattr(exchange, "ROUNDS", rounds)
    values = np.random.default_rng(0).lognormal(3, 0.3, 300)
    found, random, usual = made(values), np.random.default_rng(1), np.median(values)
    hits = []
    for i in [*range(300)] * 5:
        others = found.others(i, random)
        assert others is not None
        hits.append(abs(np.log(values[i] / usual)) < np.abs(np.log(others / usual)).min())
    return float((np.mean(hits) - 0.25) / (0.25 * 0.75 / len(hits)) ** 0.5)


def test_the_option_nearest_the_usual_answer_is_not_the_right_one_more_often(monkeypatch):
    assert abs(nearest_to_usual(exchange.ROUNDS, monkeypatch)) < 3
    assert nearest_to_usual(0, monkeypatch) > 3  # as it is if every set weighs the same


def test_options_are_told_apart_and_of_other_patients():
    values = volumes(60)
    names = [str(i // 2) for i in range(60)]
    found, random = made(values, names), np.random.default_rng(2)
    of = dict(zip(values.tolist(), names, strict=True))
    for i in range(60):
        four = [values[i], *found.others(i, random)]
        assert len({of[float(v)] for v in four}) == 4
        for a, b in combinations(four, 2):
            assert abs(a - b) >= max(0.1 * max(a, b), 4 * 0.005 * max(a, b)) and max(a, b) <= 4 * min(a, b)


def test_too_few_answers_have_no_options():
    found, random = made(np.array([10.0, 11.5, 13.0])), np.random.default_rng(0)
    assert all(found.others(i, random) is None for i in range(3))
    alone = made(np.array([10.0, 11.5, 13.0, 16.0, 1000.0]))
    assert alone.others(4, random) is None and alone.others(0, random) is not None
