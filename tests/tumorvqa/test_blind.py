"""Models that never see the image: they find what was planted, nothing else, and read no answer they must give."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tumorvqa.baselines.blind import BLIND, answer, cross_validated
from tumorvqa.measurements import Measurements
from tumorvqa.question import Answer, Evidence, Option, Prediction, Question
from tumorvqa.scans import Meta
from tumorvqa.splits import folds

ORGANS = ("liver", "spleen", "pancreas", "left kidney")
CLASSES = ("cyst", "tumor", "PDAC")


def questions(count: int, middle: bool = False, seed: int = 0) -> list[Question]:
    """A third each: a number of four that were drawn alike, yes or no, one of three classes; ten of each case.

    middle: of the four numbers the right one is the second smallest.
    """
    draw = np.random.default_rng(seed)
    found = []
    for i in range(count):
        organ = ORGANS[draw.integers(4)]
        kind = ("numeric", "binary", "categorical")[i % 3]
        if kind == "numeric":
            values = sorted(np.round(np.exp(draw.normal(4, 0.4, 4)), 1).tolist())
            truth = values[1] if middle else values[draw.integers(4)]
            subtype, text = "organ volume", f"What is the volume of the {organ}?"
        elif kind == "binary":
            values = ["yes", "no"]
            truth = values[draw.integers(2)]
            subtype, text = "lesion existence", f"Does the {organ} have a lesion?"
        else:
            values = list(CLASSES)
            truth = values[draw.integers(3)]
            subtype, text = "lesion type", f"What is the largest lesion of the {organ}?"
        order = draw.permutation(len(values))
        values = [values[j] for j in order]
        options = tuple(Option(str(value), value) for value in values)
        right = Answer(truth, str(truth), values.index(truth))
        asked = Question(
            f"q{i}", f"case {i // 10}", f"patient {i // 20}", subtype, "Measurement", kind, {"organ": organ}, text,
            options, right, "", (), Evidence(None, None, ()), None, None, "kb-v2",
        )  # fmt: skip
        found.append(asked)
    return found


def with_truth(question: Question, index: int) -> Question:
    option = question.options[index]
    return replace(question, answer=Answer(option.value, option.text, index))


def headers(of: Sequence[Question], seed: int = 1) -> dict[str, Measurements]:
    draw = np.random.default_rng(seed)
    found = {}
    for case in dict.fromkeys(question.case for question in of):
        contrast = ("plain", "venous")[draw.integers(2)]
        meta = Meta(("female", "male")[draw.integers(2)], int(draw.integers(20, 90)), contrast, "scanner")
        spacing = tuple(draw.uniform(0.5, 5, 3).tolist())
        found[case] = Measurements(case, "p", "phantom", "masks", (99, 99, 50), spacing, meta, {}, (), (), {})
    return found


def accuracy(of: Sequence[Question], said: Sequence[Prediction]) -> float:
    assert [question.qid for question in of] == [prediction.qid for prediction in said]
    right = [chr(ord("A") + question.answer.index) for question in of]
    return float(np.mean([prediction.raw == letter for prediction, letter in zip(said, right, strict=True)]))


def chance(of: Sequence[Question]) -> float:
    return float(np.mean([1 / len(question.options) for question in of]))


def close_to_chance(of: Sequence[Question], said: Sequence[Prediction]) -> bool:
    """Within four standard errors."""
    error = np.sqrt(sum((1 / len(q.options)) * (1 - 1 / len(q.options)) for q in of)) / len(of)
    return abs(accuracy(of, said) - chance(of)) < 4 * error


def numeric(of: Sequence[Question]) -> list[Question]:
    return [question for question in of if question.answer_type == "numeric"]


def of_kind(said: Sequence[Prediction], of: Sequence[Question]) -> list[Prediction]:
    by_id = {prediction.qid: prediction for prediction in said}
    return [by_id[question.qid] for question in of]


@pytest.mark.parametrize("name", BLIND)
def test_options_drawn_alike_leave_every_model_at_chance(name):
    asked = questions(900)
    assert close_to_chance(asked, cross_validated(name, asked, headers(asked)))


def test_uniform_says_every_option_as_often():
    asked = [question for question in questions(3000) if len(question.options) == 4]
    said = [prediction.raw for prediction in answer("uniform", asked, [])]
    assert all(abs(said.count(letter) - 250) < 4 * np.sqrt(1000 * 0.25 * 0.75) for letter in "ABCD")


def test_prior_is_right_as_often_as_the_most_frequent_answer():
    asked = [question for question in questions(1500, seed=3) if question.answer_type == "binary"]
    draw = np.random.default_rng(0)
    usual = {"liver": "yes", "spleen": "no", "pancreas": "yes", "left kidney": "no"}
    planted = []
    for question in asked:
        value = usual[question.arguments["organ"]]
        index = [option.value for option in question.options].index(value)
        planted.append(with_truth(question, index if draw.random() < 0.8 else 1 - index))
    share = np.mean([question.answer.value == usual[question.arguments["organ"]] for question in planted])
    assert accuracy(planted, cross_validated("prior", planted)) == pytest.approx(share)


def test_prior_says_the_number_nearest_the_median_of_the_same_question():
    learn = [with_truth(question, 0) for question in numeric(questions(300))]
    asked = numeric(questions(60, seed=5))
    said = answer("prior", asked, learn)
    for question, prediction in zip(asked, said, strict=True):
        center = np.median([q.answer.value for q in learn if q.arguments == question.arguments])
        nearest = int(np.argmin([abs(option.value - center) for option in question.options]))
        assert prediction.raw == "ABCD"[nearest]


@pytest.mark.parametrize("name", ["option-shape", "blind-text"])
def test_a_truth_that_is_always_the_second_smallest_is_found(name):
    asked = questions(900, middle=True)
    numbers = numeric(asked)
    assert accuracy(numbers, of_kind(cross_validated(name, asked), numbers)) > 0.97


def test_blind_text_finds_a_truth_that_is_written_otherwise():
    asked = numeric(questions(600))
    marked = []
    for question in asked:
        options = tuple(
            Option(f"{option.value:.1f}" if i == question.answer.index else f"{option.value:.0f}", option.value)
            for i, option in enumerate(question.options)
        )
        marked.append(replace(question, options=options))
    assert accuracy(marked, cross_validated("blind-text", marked)) > 0.97


def test_metadata_finds_answers_that_follow_the_phase_and_blind_text_does_not():
    asked = [question for question in questions(1200) if question.answer_type == "binary"]
    known = headers(asked)
    planted = []
    for question in asked:
        value = "yes" if known[question.case].meta.contrast == "venous" else "no"
        planted.append(with_truth(question, [option.value for option in question.options].index(value)))
    assert accuracy(planted, cross_validated("metadata", planted, known)) > 0.95
    assert accuracy(planted, cross_validated("blind-text", planted, known)) < 0.65


@pytest.mark.parametrize("name", BLIND)
def test_no_model_reads_what_it_must_answer(name):
    asked = questions(300, middle=True)
    known = headers(asked)
    fold_of = folds({question.patient for question in asked}, 5, 0)
    held = [fold_of[question.patient] == 2 for question in asked]
    draw = np.random.default_rng(0)
    shown = {"margin": 1.0, "lesion_mm": 9.0, "evidence": Evidence(7, ((0, 1), (0, 1), (0, 1)), ("liver",))}
    other = [
        replace(with_truth(question, int(draw.integers(len(question.options)))), **shown) if hidden else question
        for question, hidden in zip(asked, held, strict=True)
    ]
    assert any(a.answer != b.answer for a, b in zip(asked, other, strict=True))
    before, after = cross_validated(name, asked, known), cross_validated(name, other, known)
    assert [p for p, hidden in zip(before, held, strict=True) if hidden] == [
        p for p, hidden in zip(after, held, strict=True) if hidden
    ]


def test_folds_are_of_equal_size():
    of = folds({f"patient {i}" for i in range(23)}, 5, seed=1)
    sizes = [list(of.values()).count(fold) for fold in range(5)]
    assert len(of) == 23 and max(sizes) - min(sizes) <= 1
    assert of == folds([f"patient {i}" for i in reversed(range(23))], 5, seed=1) != folds(of, 5, seed=2)


@pytest.mark.parametrize("name", BLIND)
def test_without_anything_to_learn_from_an_option_is_said_and_the_seed_decides(name):
    asked = questions(120)
    said = answer(name, asked, [], seed=1)
    assert all(ord(p.raw) - ord("A") < len(q.options) for p, q in zip(said, asked, strict=True))
    assert said == answer(name, asked, [], seed=1) != answer(name, asked, [], seed=2)


def test_errors_say_what_is_wrong():
    asked = questions(30)
    with pytest.raises(ValueError, match="2 patients do not make 5 folds"):
        cross_validated("prior", asked)
    with pytest.raises(ValueError, match=r"unknown blind model 'priors'\. Did you mean 'prior'"):
        answer("priors", asked, [])
