"""Four options of which each is as likely the right one."""

from dataclasses import replace
from itertools import combinations

import numpy as np

from tumorvqa.asking import exchange
from tumorvqa.asking.exchange import Pool, pool


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


def asked(found: Pool, times: int = 5) -> list[tuple[float, np.ndarray]]:
    """Every answer several times, where it is asked for, and its wrong options."""
    random = np.random.default_rng(1)
    drawn = ((value, found.others(i, random)) for _ in range(times) for i, value in enumerate(found.values))
    return [(float(value), others) for value, others in drawn if others is not None]


def excess(hits: list[bool]) -> float:
    """By how many standard errors more often than one in four."""
    return float((np.mean(hits) - 0.25) / (0.25 * 0.75 / len(hits)) ** 0.5)


def nearest_to_usual(found: Pool) -> float:
    usual = np.median(found.values)
    return excess([abs(np.log(v / usual)) < np.abs(np.log(others / usual)).min() for v, others in asked(found)])


def test_the_option_nearest_the_usual_answer_is_not_the_right_one_more_often(monkeypatch):
    values = np.random.default_rng(0).lognormal(3, 0.3, 300)
    assert abs(nearest_to_usual(made(values))) < 3
    monkeypatch.setattr(exchange, "ROUNDS", 0)  # every set weighs the same, and every answer is asked for
    assert nearest_to_usual(replace(made(values), asked=np.ones(300))) > 3


def test_in_clusters_of_answers_too_each_rank_is_right_as_often():
    random = np.random.default_rng(3)
    values = np.concatenate(
        [random.uniform(*ends, 40) for ends in ((600, 1050), (1050, 1680), (2000, 2800), (3130, 3430))]
    )
    found = asked(made(values))
    assert len(found) > 300
    for rank in range(4):
        assert abs(excess([(others < value).sum() == rank for value, others in found])) < 3.5


def test_options_are_told_apart_and_of_other_patients():
    values = volumes(60)
    names = [str(i // 2) for i in range(60)]
    of = dict(zip(values.tolist(), names, strict=True))
    found = asked(made(values, names))
    assert len(found) > 200
    for value, others in found:
        four = [value, *others.tolist()]
        assert len({of[v] for v in four}) == 4
        for a, b in combinations(four, 2):
            assert abs(a - b) >= max(0.1 * max(a, b), 4 * 0.005 * max(a, b)) and max(a, b) <= 4 * min(a, b)


def test_too_few_answers_have_no_options():
    found, random = made(np.array([10.0, 11.5, 13.0])), np.random.default_rng(0)
    assert all(found.others(i, random) is None for i in range(3))
    alone = made(np.array([10.0, 11.5, 13.0, 16.0, 1000.0]))
    drawn = [[alone.others(i, random) is not None for _ in range(20)] for i in range(5)]
    assert not any(drawn[4]) and any(drawn[0])
