"""Splits by patient and what they leak."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tumorvqa.handmade import EXISTENCE, SIDE, question
from tumorvqa.question import Answer
from tumorvqa.splits import FRACTIONS, folds, leak_report, split, with_split


def crowd(patients=120, seed=0):
    """Patients with one to three cases, each with a few questions; yes is rare."""
    random = np.random.default_rng(seed)
    asked = []
    for p in range(patients):
        for c in range(random.integers(1, 4)):
            case = {"case": f"{p}-{c}", "patient": f"p{p}"}
            answer = Answer("yes", "Yes", 0) if random.random() < 0.2 else Answer("no", "No", 1)
            side = SIDE.options[random.integers(3)]
            number = float(random.integers(1000))
            asked += [
                replace(EXISTENCE, qid=f"e{p}-{c}", answer=answer, **case),
                replace(SIDE, qid=f"s{p}-{c}", answer=Answer(side.value, side.text, 0), **case),
                question(f"v{p}-{c}", options=(number,), **case),
            ]
    return asked


CROWD = crowd()


def splits_of(asked, splits, what):
    where = {}
    for row in asked:
        where.setdefault(getattr(row, what), set()).add(splits[row.case])
    return where


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_is_in_one_split(seed):
    splits = split(CROWD, seed=seed)
    assert set(splits) == {row.case for row in CROWD}
    assert all(len(names) == 1 for names in splits_of(CROWD, splits, "patient").values())


@pytest.mark.parametrize("seed", range(3))
def test_subtypes_and_answers_have_nearly_the_fractions_asked_for(seed):
    splits = split(CROWD, seed=seed)
    strata = Counter((row.subtype, row.answer.value) for row in CROWD if row.answer_type != "numeric")
    there = Counter((row.subtype, row.answer.value, splits[row.case]) for row in CROWD if row.answer_type != "numeric")
    for (subtype, value), total in strata.items():
        for name, fraction in FRACTIONS.items():
            assert abs(there[subtype, value, name] - fraction * total) <= 3, (subtype, value, name)
    cases = Counter(splits.values())
    assert cases["train"] / len(splits) == pytest.approx(0.8, abs=0.02)


def test_numbers_small_and_large_are_in_every_split():
    splits = split(CROWD)
    means = {name: [] for name in FRACTIONS}
    for row in CROWD:
        if row.answer_type == "numeric":
            means[splits[row.case]].append(row.answer.value)
    assert all(abs(np.mean(values) - 500) < 120 for values in means.values())


def test_the_seed_decides_and_the_order_of_questions_does_not():
    assert split(CROWD, seed=1) == split(CROWD[::-1], seed=1)
    assert split(CROWD, seed=1) != split(CROWD, seed=2)


@given(st.integers(3, 12), st.integers(0, 5))
def test_no_split_is_empty_however_few_the_patients(patients, seed):
    assert set(split(crowd(patients, seed), seed=seed).values()) == set(FRACTIONS)


def test_whole_sources_are_held_out():
    sources = {row.case: f"hospital {int(row.patient[1:]) % 5}" for row in CROWD}
    splits = split(CROWD, {"train": 0.6, "test": 0.4}, by_source=sources)
    where = {}
    for case, name in splits.items():
        where.setdefault(sources[case], set()).add(name)
    assert sorted(map(len, where.values())) == [1] * 5
    assert Counter(name for (name,) in where.values()) == {"train": 3, "test": 2}


def test_sources_that_share_a_patient_stay_together():
    asked = [replace(EXISTENCE, qid=str(i), case=f"c{i}", patient=p) for i, p in enumerate(("a", "a", "b", "c"))]
    splits = split(asked, {"train": 0.5, "test": 0.5}, by_source={"c0": "x", "c1": "y", "c2": "y", "c3": "z"})
    assert splits["c0"] == splits["c1"] == splits["c2"] != splits["c3"]


@pytest.mark.parametrize(
    "asked, options, message",
    [
        ([], {}, "a split needs questions and fractions > 0 that add up to 1"),
        (CROWD, {"fractions": {"train": 0.8, "test": 0.1}}, "add up to 1"),
        (CROWD, {"fractions": {"train": 1.1, "test": -0.1}}, "fractions > 0"),
        (crowd(2), {}, "2 patients cannot fill 3 splits"),
        (CROWD, {"by_source": {}}, "cases have no source, among them '0-0'"),
    ],
    ids=["nothing", "sum", "negative", "few", "source"],
)
def test_a_split_that_cannot_be_is_an_error(asked, options, message):
    with pytest.raises(ValueError, match=message):
        split(asked, **options)


def test_a_split_by_patient_leaks_nothing_and_one_by_case_does():
    report = leak_report(with_split(CROWD, split(CROWD)))
    assert all((leak.patients_in_train, leak.cases_in_train, leak.share) == (0, 0, 0) for leak in report.found.values())
    assert report.random["test"].share > 0.3
    assert report.random["test"].cases_in_train == 0
    assert (report.rows, report.cases, report.patients) == (len(CROWD), len({row.case for row in CROWD}), 120)


def test_leaks_by_hand():
    rows = [("a1", "a", "train"), ("a2", "a", "test"), ("a2", "a", "test"), ("b1", "b", "test"), ("c1", "c", "test")]
    rows += [("c1", "c", "train"), ("d1", "d", "val")]
    report = leak_report(rows)
    test, val = report.found["test"], report.found["val"]
    assert (test.rows, test.patients_in_train, test.cases_in_train, test.rows_beside_train) == (4, 2, 1, 3)
    assert (val.rows, val.rows_beside_train, test.share) == (1, 0, 0.75)
    assert json.loads(report.json())["found"]["test"]["rows_beside_train"] == 3
    assert "3 (75.0%)" in report.table()


def test_a_random_split_leaks_as_often_as_chance_has_it():
    """Patients of two cases, half of the cases in train: a test case's other one is there with probability 1/2."""
    rows = [(f"{i}-{k}", str(i), ("train", "test")[k]) for i in range(2000) for k in range(2)]
    report = leak_report(rows)
    assert report.found["test"].share == 1
    assert report.random["test"].share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2000))


def test_a_leak_report_needs_a_training_set():
    with pytest.raises(ValueError, match='no row is in split "train"'):
        leak_report([("a", "a", "test")])


@pytest.mark.parametrize("k", [2, 5, 10])
def test_folds_hold_whole_patients_evenly(k):
    patients = [row.patient for row in CROWD]
    fold = folds(patients, k, seed=3)
    assert set(fold) == set(patients)
    sizes = Counter(fold[patient] for patient in patients)
    assert set(sizes) == set(range(k))
    assert max(sizes.values()) - min(sizes.values()) <= 9  # rows of the largest patient
    assert fold == folds(patients[::-1], k, seed=3)
    assert fold != folds(patients, k, seed=4)


def test_too_many_folds_are_an_error():
    with pytest.raises(ValueError, match="2 patients do not make 3 folds"):
        folds(["a", "b", "a"], 3)
