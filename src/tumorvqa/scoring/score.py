"""From what a model said to its scores with intervals."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tumorvqa.question import GROUPS, Answer, Prediction, Question
from tumorvqa.scoring.authors import linear_accuracy, strict_scores
from tumorvqa.scoring.bootstrap import interval, resampled_means
from tumorvqa.scoring.parse import agrees, parse
from tumorvqa.scoring.scores import Format, Interval, Judged, Part, Scores

WITHIN = {"within_5%": 1, "within_10%": 2, "within_20%": 4, "within_50%": 10}  # twentieths of the truth
ORDINAL = ("pancreatic tumor staging", "hepatic steatosis grading", "splenomegaly grading")
RANKS = {"normal": 0, "none": 0, "no": 0, "mild": 1, "moderate": 2, "severe": 3}


def score(
    questions: Sequence[Question],
    predictions: Iterable[Prediction],
    format: Format = "mc",
    model: str = "",
    key: str = "masks",
    strict_authors: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    answers: Mapping[str, Answer] | None = None,
) -> Scores:
    """Every question counts: one without a prediction, or without a readable one, is wrong. `answers` (by qid) replace
    the questions' own. ValueError for a qid that occurs twice or that no question has. `strict_authors`: see
    authors.py.
    """
    if not questions:
        raise ValueError("there are no questions to score; is the set or its filter empty?")
    said = _by_qid(questions, predictions)
    if answers:
        questions = [replace(question, answer=answers.get(question.qid, question.answer)) for question in questions]
    if strict_authors:
        return strict_scores(questions, said, format, model, key)
    raws = [said[question.qid].raw if question.qid in said else None for question in questions]
    judged = tuple(judge(question, raw, format) for question, raw in zip(questions, raws, strict=True))

    group_names = sorted({question.group for question in questions}, key=lambda name: (*GROUPS, name).index(name))
    subtype_names = list(dict.fromkeys(question.subtype for question in questions))
    groups, subtypes = (np.array([getattr(row, name) for row in questions]) for name in ("group", "subtype"))
    everything = np.ones(len(questions), bool)
    members = np.stack(
        [everything, *(groups == name for name in group_names), *(subtypes == name for name in subtype_names)], axis=1
    )
    points = np.array([[row.score, row.score - row.chance] for row in judged])
    samples = resampled_means(points, [question.case for question in questions], members, resamples, seed)
    parts = [
        _part(
            [questions[i] for i in chosen],
            [judged[i] for i in chosen],
            sum(raws[i] is not None for i in chosen),
            samples[:, column],
        )
        for column, chosen in enumerate(np.flatnonzero(row).tolist() for row in members.T)
    ]
    subtypes_from = 1 + len(group_names)
    return Scores(
        model=model,
        format=format,
        key=key,
        strict_authors=False,
        overall=parts[0],
        groups=dict(zip(group_names, parts[1:subtypes_from], strict=True)),
        subtypes=dict(zip(subtype_names, parts[subtypes_from:], strict=True)),
        macro_subtype=_macro(parts[subtypes_from:], samples[:, subtypes_from:, 0]),
        macro_group=_macro(parts[1:subtypes_from], samples[:, 1:subtypes_from, 0]),
        judged=judged,
    )


def _by_qid(questions: Sequence[Question], predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    known = _once((question.qid for question in questions), "questions")
    predictions = list(predictions)
    _once((prediction.qid for prediction in predictions), "predictions")
    said = {prediction.qid: prediction for prediction in predictions}
    unknown = [qid for qid in said if qid not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(said)} predictions are to no question, the first with qid {unknown[0]!r}; "
            "were they made for another set?"
        )
    return said


def _once(qids: Iterable[str], what: str) -> set[str]:
    counts = Counter(qids)
    twice = [qid for qid, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} qids occur more than once in the {what}, the first is {twice[0]!r}; keep one of each."
        )
    return set(counts)


def judge(question: Question, raw: str | None, format: Format) -> Judged:
    """Parsed is the value said, in multiple choice that of the option chosen."""
    parsed = parse(question, raw, format)
    if format == "mc":
        chance = 1 / len(question.options) if question.answer.index >= 0 else 0.0
        if parsed is None:
            return Judged(question.qid, None, 0.0, chance)
        index = int(parsed)
        return Judged(question.qid, question.options[index].value, float(index == question.answer.index), chance)
    if parsed is None:
        return Judged(question.qid, None, 0.0, 0.0)
    if question.answer_type == "numeric":
        return Judged(question.qid, parsed, linear_accuracy(float(parsed), float(question.answer.value)), 0.0)
    return Judged(question.qid, parsed, float(agrees(parsed, question.answer.value)), 0.0)


def _part(questions: list[Question], judged: list[Judged], answered: int, samples: NDArray[np.float64]) -> Part:
    parsed = sum(row.parsed is not None for row in judged)
    points = sum(row.score for row in judged)
    accuracy = points / len(judged)
    chance = sum(row.chance for row in judged) / len(judged)
    details = {"coverage": answered / len(judged), "parse_rate": parsed / len(judged)}
    if parsed:
        details["accuracy_on_parsed"] = points / parsed
    for kind, describe in (("numeric", numeric), ("binary", binary), ("categorical", categorical)):
        rows = [(q, j) for q, j in zip(questions, judged, strict=True) if q.answer_type == kind]
        if rows:
            details |= describe([q for q, _ in rows], [j for _, j in rows])
    return Part(
        questions=len(judged),
        answered=answered,
        parsed=parsed,
        accuracy=interval(accuracy, samples[:, 0]),
        above_chance=interval(accuracy - chance, samples[:, 1]),
        details=details,
    )


def _macro(parts: list[Part], samples: NDArray[np.float64]) -> Interval:
    """The mean over parts; in a draw that lacks a part, over those it has."""
    mean = sum(part.accuracy.value for part in parts) / len(parts)
    there = np.isfinite(samples)
    return interval(mean, np.where(there, samples, 0).sum(1) / there.sum(1).clip(1))


# Numbers


@lru_cache(maxsize=1 << 16)
def twentieths(said: float, truth: float) -> Fraction | None:
    """20 |said - truth| / |truth|, exact in the digits that the numbers are shown with: 0.9 is 10% below 1, which it is
    not as a float. None if the truth is 0 and the answer is not.
    """
    a, b = Fraction(repr(float(said))), Fraction(repr(float(truth)))
    if b == 0:
        return Fraction(0) if a == 0 else None
    return 20 * abs(a - b) / abs(b)


def mra_thresholded(said: float, truth: float) -> float:
    """Mean over t in .50, .55, ... .95 of [relative error < 1 - t] (VSI-Bench, Yang et al. 2024)."""
    error = twentieths(said, truth)
    return 0.0 if error is None else max(0, 10 - math.floor(error)) / 10


def numeric(questions: Sequence[Question], judged: Sequence[Judged]) -> dict[str, float]:
    """Shares and mean accuracies over all questions (no answer: 0); errors over those answered, in the unit of the
    answers and only where all have the same and one subtype. `bias`: mean of answer minus truth. `ccc`: Lin (1989).
    """
    truths = [float(question.answer.value) for question in questions]
    pairs = [(float(row.parsed), truth) for row, truth in zip(judged, truths, strict=True) if row.parsed is not None]
    errors = [twentieths(said, truth) for said, truth in pairs]
    details = {
        "mra_linear": sum(linear_accuracy(*pair) for pair in pairs) / len(truths),
        "mra_thresholded": sum(mra_thresholded(*pair) for pair in pairs) / len(truths),
    }
    for name, most in WITHIN.items():
        details[name] = sum(error is not None and error <= most for error in errors) / len(truths)
    if pairs and len({(question.subtype, question.unit) for question in questions}) == 1:
        said, true = np.array(pairs).T
        details["mae"] = float(np.abs(said - true).mean())
        details["bias"] = float((said - true).mean())
        relative = [float(error) / 20 for error in errors if error is not None]
        if relative:
            details["median_relative_error"] = float(np.median(relative))
        spread = said.var() + true.var() + (said.mean() - true.mean()) ** 2
        if spread > 0:
            details["ccc"] = float(2 * ((said - said.mean()) * (true - true.mean())).mean() / spread)
    return details


# Words


def binary(questions: Sequence[Question], judged: Sequence[Judged]) -> dict[str, float]:
    """Abstentions (nothing read) count as wrong in sensitivity, specificity and balanced accuracy, and are left out of
    ppv, npv and mcc. A ratio of nothing is left out.
    """
    counts = Counter(
        (str(q.answer.value), None if j.parsed is None else str(j.parsed))
        for q, j in zip(questions, judged, strict=True)
    )
    tp, fn = counts["yes", "yes"], counts["yes", "no"]
    fp, tn = counts["no", "yes"], counts["no", "no"]
    yes, no = (sum(n for (truth, _), n in counts.items() if truth == side) for side in ("yes", "no"))
    shares = {
        "sensitivity": (tp, yes),
        "specificity": (tn, no),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
        "balanced_accuracy": (tp * no + tn * yes, 2 * yes * no),
        "mcc": (tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }
    details = {name: above / below for name, (above, below) in shares.items() if below}
    return details | {"abstentions": sum(j.parsed is None for j in judged) / len(judged)}


def categorical(questions: Sequence[Question], judged: Sequence[Judged]) -> dict[str, float]:
    """Of one subtype (classes of several have no common mean): `macro_f1`, the mean F1 of the classes that occur as
    truth; `quadratic_kappa` (Cohen 1968) where classes have an order, over the answers that could be read.
    """
    if len({question.subtype for question in questions}) > 1:
        return {}
    pairs = [
        (_folded(q.answer.value), None if j.parsed is None else _folded(j.parsed))
        for q, j in zip(questions, judged, strict=True)
    ]
    true, said = Counter(truth for truth, _ in pairs), Counter(answer for _, answer in pairs)
    right = Counter(truth for truth, answer in pairs if truth == answer)
    details = {"macro_f1": sum(2 * right[name] / (true[name] + said[name]) for name in true) / len(true)}
    if questions[0].subtype in ORDINAL:
        ranks = [(rank(truth), rank(answer)) for truth, answer in pairs if answer is not None]
        kappa = quadratic_kappa([(a, b) for a, b in ranks if a is not None and b is not None])
        if kappa is not None:
            details["quadratic_kappa"] = kappa
    return details


def _folded(value: float | str) -> str:
    return str(value).casefold().strip()


def rank(name: str) -> int | None:
    """Place of a stage or grade in its order: its digit (T1a and T1c are both 1), or normal, mild, moderate, severe."""
    digits = [int(character) for character in name if character in "0123456789"]
    if digits:
        return digits[0]
    return next((place for word, place in RANKS.items() if word in name.casefold().split()), None)


def quadratic_kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """1 - mean (a - b)^2 / the same if a and b were independent; None if both are one constant."""
    if not pairs:
        return None
    a, b = np.array(pairs, float).T
    independent = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return None if independent == 0 else float(1 - ((a - b) ** 2).mean() / independent)
