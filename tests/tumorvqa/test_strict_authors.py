"""Scores as the authors' code gives them, and where ours differ."""

import importlib
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tumorvqa.handmade import EXISTENCE, SIDE, VOLUME, question
from tumorvqa.question import Prediction
from tumorvqa.scoring import authors
from tumorvqa.scoring.authors import ANSWER_TYPES, aggregate
from tumorvqa.scoring.leaderboard import _table
from tumorvqa.scoring.parse import parse
from tumorvqa.scoring.score import score

LETTERS = {  # as the authors' function was seen to answer
    "": "",
    "B": "B",
    "b.": "B",
    "(C)": "C",
    "Answer: B": "A",
    "answer is d": "A",
    "Based on the scan: D": "B",
    "Cannot determine": "C",
    "Definitely B": "D",
    "Benign": "B",
    "Both": "B",
    "The answer is a cyst: B": "A",
    "[ERROR] no device a": "A",
    "It is E": "",
    "Option E or F": "",
    "The option B, not C": "B",
    "<think>A</think> The best: D": "D",
    "<think>never ends. B": "",
}
NUMBERS = {
    "1,234": 1.0,
    ".5": 5.0,
    "-.5": 5.0,
    "-3.": -3.0,
    "−4": 4.0,
    "1e3": 1.0,
    "cm^3: 45.6": 3.0,
    "Segment 4 has 12": 4.0,
    "T2": 2.0,
    "2 of 5": 2.0,
    "three": None,
    "": None,
    "[ERROR] status 500": 500.0,
}
BINARY = {
    "Yes": "yes",
    "NO": "no",
    "Normal": "no",
    "not enlarged": "no",
    "None": "no",
    "Noyes": "no",
    "yesterday": "yes",
    "no... actually yes": "no",
    "I say yes": "yes",
    "There is no lesion": "no",
    "Y": "",
    "true": "",
    "1": "",
    "positive": "",
    "": "",
}
NORMAL = {
    "4/8": "48",
    "head/body": "headbody",
    ">50%": "50",
    " Left  Kidney. ": "left kidney",
    "T1-a": "t1-a",
    "(no)  answer": "no answer",
}


@pytest.mark.parametrize(
    "function, expected",
    [
        (authors.letter, LETTERS),
        (authors.number, NUMBERS),
        (authors.yes_or_no, BINARY),
        (authors.normal, NORMAL),
        (
            authors.without_thinking,
            {
                "a <think>b</think> c": "a  c",
                "a<think>b": "a",
                "<th<think>x</think>ink>y": "",
                "</think>y": "</think>y",
            },
        ),
    ],
    ids=["letter", "number", "yes or no", "normal", "without thinking"],
)
def test_texts_are_read_as_the_authors_read_them(function, expected):
    assert {text: function(text) for text in expected} == expected


def test_numeric_score_skips_a_truth_without_number_and_is_exact_at_zero():
    row = authors.score_numeric([("90", "100"), ("0", "0"), ("1", "0"), ("none", "5"), ("5", "unknown")])
    assert row == {
        "metric": "MRA",
        "mean_mra": 0.475,  # (.9 + 1 + 0 + 0) / 4
        "tolerance_acc": {"tol_5%": 0.25, "tol_10%": 0.5, "tol_20%": 0.5, "tol_50%": 0.5},
        "n_total": 5,
        "n_scored": 4,
    }


def test_binary_score_takes_silence_for_no_in_the_specificity_only():
    row = authors.score_binary([("", "no"), ("yes", "yes"), ("", "yes"), ("no", "no"), ("maybe", "perhaps")])
    assert row == {"metric": "exact_match", "accuracy": 0.4, "sensitivity": 0.5, "specificity": 1.0, "n_total": 5}


def test_categorical_score_has_empty_equal_to_empty_and_parts_of_words():
    row = authors.score_categorical([("", ""), ("a", "head"), ("no fatty liver", "fatty liver"), ("48", "4/8")])
    assert row == {"metric": "exact_match", "accuracy": 0.5, "partial_accuracy": 1.0, "n_total": 4}


def test_letter_score_has_empty_equal_to_empty():
    row = authors.score_mc([("", ""), ("It is E", " "), ("B", "b"), ("x", "A")])
    assert row == {"metric": "exact_match", "accuracy": 0.75, "n_parsed": 1, "n_total": 4}


def record(subtype, answer, option="A"):
    return {
        "question_subtype": subtype,
        "question_type": "measurement" if "volume" in subtype else "recognition",
        "correct_option": option,
        "answer": answer,
    }


def test_aggregate_counts_what_was_answered_and_rounds_before_it_weighs():
    index = {f"v{i}": record("organ volume measurement", "3") for i in range(3)}
    index |= {"e": record("liver lesion existence", "Yes"), "u": record("liver lesion existence", "No")}
    said = [{"qid": "v0", "pred_answer": "3"}, {"qid": "v1", "pred_answer": "2"}, {"qid": "v2", "raw_output": "2"}]
    said += [{"qid": "e", "pred_answer": "", "raw_output": "yes"}, {"qid": "e", "pred_answer": "no"}]
    said += [{"qid": "not asked", "pred_answer": "A"}]
    assert aggregate(said, index, "freeform") == {
        "overall": {"accuracy": 0.6667, "n_total": 5, "n_subtypes": 2},  # (.7778 * 3 + .5 * 2) / 5 = .66668
        "by_super_type": {
            "measurement": {"accuracy": 0.7778, "n_total": 3},
            "recognition": {"accuracy": 0.5, "n_total": 2},
        },
        "by_subtype": {
            "organ volume measurement": {
                "metric": "MRA",
                "mean_mra": 0.7778,
                "tolerance_acc": {"tol_5%": 0.3333, "tol_10%": 0.3333, "tol_20%": 0.3333, "tol_50%": 1.0},
                "n_total": 3,
                "n_scored": 3,
            },
            "liver lesion existence": {
                "metric": "exact_match",
                "accuracy": 0.5,
                "sensitivity": 0.5,
                "specificity": 0.0,
                "n_total": 2,
            },
        },
    }


def test_an_unscorable_truth_weighs_as_much_as_a_scored_one():
    index = {"a": record("organ volume measurement", "3"), "b": record("organ volume measurement", "large")}
    said = [{"qid": "a", "pred_answer": "3"}, {"qid": "b", "pred_answer": "7"}]
    assert aggregate(said, index, "freeform")["overall"]["accuracy"] == 1.0


def test_answer_types_are_those_of_the_42_subtypes_of_the_schema():
    assert set(ANSWER_TYPES) == {row["subtype_name"] for row in _table("subtype_schema.csv")}
    assert len(ANSWER_TYPES) == 42


# Where a reading of ours is not theirs: (question, format, text) -> ours
DIFFERENT = [
    (VOLUME, "mc", "Answer: B", 1),
    (VOLUME, "mc", "answer is d", 3),
    (VOLUME, "mc", "Cannot determine", None),
    (VOLUME, "mc", "Definitely B", 1),
    (VOLUME, "mc", "Benign", None),
    (VOLUME, "mc", "151", 1),
    (VOLUME, "mc", "[ERROR] no device a", None),
    (VOLUME, "mc", "<think>Hm. Answer: D", 3),
    (VOLUME, "free", "1,234", 1234.0),
    (VOLUME, "free", ".5", 0.5),
    (VOLUME, "free", "−4", -4.0),
    (VOLUME, "free", "1e3", 1000.0),
    (VOLUME, "free", "cm^3: 45.6", 45.6),
    (VOLUME, "free", "Segment 4 has 12 ml", 12.0),
    (VOLUME, "free", "T2", None),
    (VOLUME, "free", "2 l", 2000.0),
    (VOLUME, "free", "20 mm", None),
    (VOLUME, "free", "three", 3.0),
    (EXISTENCE, "free", "Normal", None),
    (EXISTENCE, "free", "Noyes", None),
    (EXISTENCE, "free", "yesterday", None),
    (EXISTENCE, "free", "no... actually yes", "yes"),
    (EXISTENCE, "free", "true", "yes"),
    (EXISTENCE, "free", "Y", "yes"),
    (SIDE, "free", "equal", "same"),
    (SIDE, "free", "The left kidney.", "left kidney"),
    (SIDE, "free", "purple", None),
]
ALIKE = [
    (VOLUME, "mc", ("B", "b.", "(C)", "D) 240.0", "It is B.", "")),
    (VOLUME, "free", ("45.6", "-3", "120 cm3", "about 7 ml", "0", "none at all", "2 of 5")),
    (EXISTENCE, "free", ("Yes", "no.", "No, none", "There is no lesion", "I say yes", "?")),
    (SIDE, "free", ("left kidney", "same", "right kidney.")),
]


def theirs(asked, form, text):
    if form == "mc":
        letter = authors.letter(text)
        return "ABCD".index(letter) if letter else None
    text = authors.without_thinking(text)
    if asked.answer_type == "numeric":
        return authors.number(text)
    if asked.answer_type == "binary":
        return authors.yes_or_no(text) or None
    return authors.normal(text) or None


@pytest.mark.parametrize("asked, form, text, ours", DIFFERENT, ids=[f"{row[1]} {row[2]}" for row in DIFFERENT])
def test_readings_that_differ_from_the_authors(asked, form, text, ours):
    assert parse(asked, text, form) == ours != theirs(asked, form, text)


@pytest.mark.parametrize("asked, form, texts", ALIKE, ids=["letters", "numbers", "yes or no", "classes"])
def test_plain_answers_are_read_alike(asked, form, texts):
    assert [parse(asked, text, form) for text in texts] == [theirs(asked, form, text) for text in texts]


@given(st.floats(-1e5, 1e5).map(lambda x: f"{x:.2f}"), st.sampled_from(["yes", "No"]), st.integers(0, 2))
def test_bare_answers_are_read_alike(shown, word, index):
    assert parse(VOLUME, shown, "free") == theirs(VOLUME, "free", shown)
    assert parse(EXISTENCE, word, "free") == theirs(EXISTENCE, "free", word)
    for form, text in (("mc", "ABC"[index]), ("free", SIDE.options[index].text)):
        assert parse(SIDE, text, form) == theirs(SIDE, form, text)


def test_scores_are_the_same_where_all_is_answered_plainly_and_differ_for_what_is_missing():
    asked = [question(f"q{i}", right=i % 4) for i in range(8)]
    said = [Prediction(f"q{i}", "ABCD"[i % 2]) for i in range(8)]
    ours, strict = (score(asked, said, strict_authors=flag, resamples=0) for flag in (False, True))
    assert ours.overall.accuracy == strict.overall.accuracy
    assert {row.qid: row.score for row in ours.judged} == {row.qid: row.score for row in strict.judged}
    fewer = [row for row in said if row.qid in ("q0", "q1", "q4", "q5")]  # those that are right
    assert score(asked, fewer, resamples=0).overall.accuracy.value == 0.5
    answered = score(asked, fewer, strict_authors=True).overall
    assert (answered.accuracy.value, answered.questions) == (1.0, 4)


def test_strict_scores_are_the_figures_of_aggregate():
    asked = [question(f"q{i}", right=i % 4) for i in range(3)] + [EXISTENCE, SIDE]
    said = [Prediction(row.qid, text) for row, text in zip(asked, ("120", "x", "100", "no", "same"), strict=True)]
    scores = score(asked, said, "free", strict_authors=True)
    assert scores.subtypes["organ volume measurement"].accuracy.value == 0.6592  # (120 / 120.5 + 0 + 96.4 / 98.2) / 3
    assert scores.overall.accuracy.value == 0.7955  # (.6592 * 3 + 1 + 1) / 5
    assert scores.subtypes["organ volume measurement"].details["tol_5%"] == 0.6667
    assert scores.groups["Measurement"].parsed == 2


@pytest.fixture(scope="module")
def original():
    """The authors' module, out of the checkout that DEEPTUMORVQA_SRC names."""
    checkout = os.environ.get("DEEPTUMORVQA_SRC")
    if not checkout:
        pytest.skip("DEEPTUMORVQA_SRC names no checkout of the authors' code")
    sys.path.insert(0, os.path.join(checkout, "src"))
    yield importlib.import_module("deeptumorvqa.eval.metrics")
    sys.path.pop(0)


PIECES = [*LETTERS, *NUMBERS, *BINARY, *NORMAL, "<think>", "</think>", " ", "\n", "\0", "ß", "İ", "٣", "²", "_", "-"]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=8)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"qid": st.sampled_from([f"q{i}" for i in range(12)])},
        optional={"pred_answer": st.one_of(st.none(), TEXTS), "raw_output": st.one_of(st.none(), TEXTS)},
    ),
    max_size=20,
)
INDICES = st.lists(
    st.fixed_dictionaries(
        {
            "question_subtype": st.sampled_from([*ANSWER_TYPES, "another subtype"]),
            "question_type": st.sampled_from(["recognition", "measurement", "", None]),
            "correct_option": st.sampled_from(["A", "B", "C", "D", " d", ""]),
            "answer": TEXTS,
        }
    ),
    max_size=10,
).map(lambda rows: {f"q{i}": row for i, row in enumerate(rows)})


@given(TEXTS, PAIRS, RECORDS, INDICES)
def test_equals_the_authors_code(original, text, pairs, said, index):
    assert authors.without_thinking(text) == original.strip_think(text)
    assert authors.letter(text) == original.extract_letter(text)
    assert authors.number(text) == original.extract_number(text)
    assert authors.yes_or_no(text) == original.extract_binary(text)
    assert authors.normal(text) == original.normalize_text(text)
    assert ANSWER_TYPES == original.SUBTYPE_ANSWER_TYPE
    for name in ("mc", "numeric", "binary", "categorical"):
        assert authors.SCORERS[name](pairs) == getattr(original, f"score_{name}")(pairs)
    for form in ("mc", "freeform"):
        assert aggregate(said, index, form) == original.aggregate(said, index, form)
