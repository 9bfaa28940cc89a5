"""Models that never see the image: what they score above chance is a shortcut of the questions.

A blind model scores the options of each question from its text, its options and the answers of other questions; the
highest score is its answer, ties are drawn.
"""

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnt.lookup import lookup
from tumorvqa.measurements import Measurements
from tumorvqa.question import Prediction, Question, Value
from tumorvqa.splits import folds

FloatArray = NDArray[np.float64]
Headers = Mapping[str, Measurements]  # by case
# (to answer, to learn from, what is known of the scans) -> a score of each option of each question
Blind = Callable[[Sequence[Question], Sequence[Question], Headers], list[FloatArray]]

PRIOR = 20  # questions of all subtypes that one subtype's shares are shrunk with
COLUMNS = 2**18  # of the hashed features; collisions are rare
# Weight of features that only count how often a class was right. In a set of balanced answers what was frequent in
# training is rare in the fold held out, and a model that leans on it falls below chance and hides what else it found
USUAL = 0.1
STRENGTH = 0.03  # inverse of the L2 penalty; it finds most of the shortcuts planted in 600 and in 2,400 questions


def answer(
    name: str,
    questions: Sequence[Question],
    learn: Sequence[Question],
    measurements: Headers | None = None,
    seed: int = 0,
) -> list[Prediction]:
    """The letters that model `name` of BLIND says to `questions`, whose answers it does not read."""
    scores = lookup(BLIND, name, "blind model")(questions, learn, measurements or {})
    return [_highest(question, of, seed) for question, of in zip(questions, scores, strict=True)]


def cross_validated(
    name: str,
    questions: Sequence[Question],
    measurements: Headers | None = None,
    k: int = 5,
    seed: int = 0,
) -> list[Prediction]:
    """In the order of `questions`; each is answered by a model that learned from the other folds' patients."""
    fold_of = folds((question.patient for question in questions), k, seed)
    found: dict[str, Prediction] = {}
    for fold in range(k):
        held = [question for question in questions if fold_of[question.patient] == fold]
        learn = [question for question in questions if fold_of[question.patient] != fold]
        found |= {said.qid: said for said in answer(name, held, learn, measurements, seed)}
    return [found[question.qid] for question in questions]


def _highest(question: Question, scores: FloatArray, seed: int) -> Prediction:
    if not question.options:
        return Prediction(question.qid, None)
    best = np.flatnonzero(scores == scores.max())
    draw = np.random.default_rng([seed, zlib.crc32(question.qid.encode())]).integers(len(best)) if len(best) > 1 else 0
    return Prediction(question.qid, chr(ord("A") + int(best[draw])))


# What is asked, from the finest to the coarsest


def _kinds(question: Question) -> tuple[Hashable, Hashable]:
    return (question.subtype, *sorted(question.arguments.items())), question.subtype


def _numbers(question: Question) -> list[float] | None:
    """The values of the options, if all are numbers."""
    values = [option.value for option in question.options]
    numbers = [float(value) for value in values if not isinstance(value, str)]
    return numbers if len(numbers) == len(values) else None


def _ranks(values: Sequence[float]) -> list[int]:
    """0 the smallest."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    return [order.index(i) for i in range(len(values))]


# Models


def uniform(questions: Sequence[Question], learn: Sequence[Question], _: Headers) -> list[FloatArray]:
    return [np.zeros(len(question.options)) for question in questions]


def prior(questions: Sequence[Question], learn: Sequence[Question], _: Headers) -> list[FloatArray]:
    """The answer given most often to the same question about other cases; of numbers the option nearest their median.
    What was not asked before is answered as its subtype.
    """
    answers: dict[Hashable, list[Value]] = defaultdict(list)
    for question in learn:
        for kind in _kinds(question):
            answers[kind].append(question.answer.value)
    counts = {kind: Counter(values) for kind, values in answers.items()}
    middle = {kind: _median(values) for kind, values in answers.items()}

    def scores(question: Question) -> FloatArray:
        known = [kind for kind in _kinds(question) if kind in answers]
        values = [option.value for option in question.options]
        numbers = _numbers(question)
        if known and numbers is not None and (center := middle[known[0]]) is not None:
            return np.array([-abs(value - center) for value in numbers])
        return sum((np.array([float(counts[kind][value]) for value in values]) * weight
                    for kind, weight in zip(known, (1, 1e-6), strict=False)), np.zeros(len(values)))  # fmt: skip

    return [scores(question) for question in questions]


def _median(values: Iterable[Value]) -> float | None:
    numbers = [value for value in values if not isinstance(value, str)]
    return median(numbers) if numbers else None


def option_shape(questions: Sequence[Question], learn: Sequence[Question], _: Headers) -> list[FloatArray]:
    """The rank of a numeric option, else the letter, that wins most of questions like this (subtype and arguments), its
    shares shrunk to the subtype's and those to all's.
    """

    def shapes(question: Question) -> tuple[Hashable, list[int]]:
        numbers = _numbers(question)
        places = list(range(len(question.options))) if numbers is None else _ranks(numbers)
        return (len(places), numbers is None), places

    wins: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for question in learn:
        if 0 <= question.answer.index < len(question.options):
            form, places = shapes(question)
            for kind in (form, *((kind, form) for kind in _kinds(question))):
                wins[kind][places[question.answer.index]] += 1

    def scores(question: Question) -> FloatArray:
        form, places = shapes(question)
        shares = np.zeros(len(places))
        for kind in (form, *((kind, form) for kind in reversed(_kinds(question)))):
            counts = np.array([float(wins[kind][place]) for place in places])
            shares = (counts + PRIOR * shares) / (wins[kind].total() + PRIOR)
        return shares

    return [scores(question) for question in questions]


def blind_text(questions: Sequence[Question], learn: Sequence[Question], _: Headers) -> list[FloatArray]:
    """Logistic regression over the words of question and option, and the numeric shape of the options."""
    typical = Typical(learn)
    return _fitted(questions, learn, lambda question: _text_features(question, typical))


def metadata(questions: Sequence[Question], learn: Sequence[Question], measurements: Headers) -> list[FloatArray]:
    """The same learner over what a scan's header tells, crossed with the class or the size of an option."""
    typical = Typical(learn)
    known = _levels(measurements, {question.case for question in learn})
    return _fitted(
        questions, learn, lambda question: _metadata_features(question, typical, known.get(question.case, ()))
    )


BLIND: dict[str, Blind] = {
    "uniform": uniform,
    "prior": prior,
    "option-shape": option_shape,
    "blind-text": blind_text,
    "metadata": metadata,
}

# Features: of a question, for each of its options, names with weights

Features = list[list[tuple[str, float]]]


class Typical:
    """How far a number lies from the median of the answers to the same question, in their median deviation."""

    def __init__(self, learn: Sequence[Question]) -> None:
        answers: dict[Hashable, list[float]] = defaultdict(list)
        for question in learn:
            if not isinstance(question.answer.value, str):
                for kind in _kinds(question):
                    answers[kind].append(float(question.answer.value))
        self.of: dict[Hashable, tuple[float, float]] = {}
        for kind, values in answers.items():
            center = median(values)
            spread = median(abs(value - center) for value in values)
            self.of[kind] = center, spread or abs(center) or 1.0

    def distance(self, question: Question, value: float) -> float:
        for kind in _kinds(question):
            if kind in self.of:
                center, spread = self.of[kind]
                return max(-4.0, min(4.0, (value - center) / spread))
        return 0.0


@lru_cache(maxsize=2**16)
def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z]+", text.lower()))


def _text_features(question: Question, typical: Typical) -> Features:
    subtype = question.subtype
    asked = f"{subtype} {sorted(question.arguments.items())}"
    words = sorted(set(_words(question.text)))
    numbers = _numbers(question)
    shape = [[]] * len(question.options) if numbers is None else list(_shape(question, numbers, typical))
    found: Features = []
    for i, option in enumerate(question.options):
        text = option.text.lower()
        of_option = _words(text)
        overlap = len(set(of_option) & set(words))
        row = [(f"{scope}|place {i} of {len(question.options)}", USUAL) for scope in ("", subtype)]
        row += [(f"overlap {overlap}", 1.0), (f"{subtype}|overlap {overlap}", 1.0), ("length", len(text) / 20)]
        if numbers is None:
            row += [(f"{scope}|says {text}", USUAL) for scope in ("", subtype, asked)]
            row += [(f"{word}|says {text}", USUAL / 2) for word in words]
            row += [(f"{subtype}|word {word}", USUAL / 2) for word in of_option]
        else:
            digits = re.sub(r"\D", "", text)
            written = f"{len(text.partition('.')[2])} decimals", f"{len(digits)} digits", f"ends in {digits[-1:]}"
            row += [(f"{scope}|{what}", 0.5) for scope in ("", subtype) for what in written]
            row += [(f"{scope}|{what}", weight) for scope in ("", subtype) for what, weight in shape[i]]
            row += [(f"{asked}|{what}", weight) for what, weight in shape[i] if what.startswith(("far", "rank"))]
            row += [(f"{word}|{what}", 0.5) for word in words for what, _ in shape[i] if what.startswith("rank")]
        found.append(row)
    return found


def _shape(question: Question, numbers: Sequence[float], typical: Typical) -> Iterator[list[tuple[str, float]]]:
    """Of each number its rank, its log ratio to the mean of all, how alone it stands, and how usual it is."""
    size = [math.log(max(abs(number), 1e-3)) for number in numbers]
    positive = min(numbers) > 0
    scale = max(numbers) - min(numbers) or 1.0
    at = size if positive else [4 * number / scale for number in numbers]
    center = sum(at) / len(at)
    for i, (rank, number) in enumerate(zip(_ranks(numbers), numbers, strict=True)):
        ratio = at[i] - center
        gaps = sorted(abs(at[i] - other) for j, other in enumerate(at) if j != i) or [0.0]
        far = typical.distance(question, number)
        yield [
            (f"rank {rank} of {len(numbers)}", 1.0),
            ("ratio", ratio),
            ("off the mean", abs(ratio)),
            ("to the next", min(gaps[0], 2.0)),
            ("to the farthest", min(gaps[-1], 2.0)),
            ("far", far / 2),
            ("far off", abs(far) / 2),
            ("whole", float(number % 1 == 0)),
            ("round", float(number % 5 == 0)),
        ]


def _levels(measurements: Headers, learn: set[str]) -> dict[str, tuple[str, ...]]:
    """Of each case what its header tells, numbers as the fifth they fall in among the cases to learn from."""
    facts = {case: _header(of) for case, of in measurements.items()}
    cuts: dict[str, FloatArray] = {}
    for what in {name for of in facts.values() for name in of}:
        seen = [value for case in learn if isinstance(value := facts.get(case, {}).get(what), float)]
        if seen:
            cuts[what] = np.quantile(seen, (0.2, 0.4, 0.6, 0.8))

    def level(what: str, value: Any) -> str:
        if isinstance(value, float) and what in cuts:
            return f"{what} in fifth {int(np.searchsorted(cuts[what], value))}"
        return f"{what} is {value}"

    return {case: tuple(level(what, value) for what, value in sorted(of.items())) for case, of in facts.items()}


def _header(of: Measurements) -> dict[str, Any]:
    sizes = dict(zip("xyz", of.shape, strict=True))
    spacing = dict(zip("xyz", of.spacing, strict=True))
    facts: dict[str, Any] = {f"voxels along {axis}": float(size) for axis, size in sizes.items()}
    facts |= {f"spacing along {axis}": mm for axis, mm in spacing.items()}
    facts |= {f"extent along {axis}": sizes[axis] * spacing[axis] for axis in "xyz"}
    meta = asdict(of.meta)
    facts |= {what: float(value) if what == "age" and value is not None else value for what, value in meta.items()}
    return facts | {"source": of.source}


def _metadata_features(question: Question, typical: Typical, levels: Sequence[str]) -> Features:
    subtype = question.subtype
    asked = f"{subtype} {sorted(question.arguments.items())}"
    scopes = [scope for kind in (subtype, asked) for scope in (kind, *(f"{kind}|{level}" for level in levels))]
    numbers = _numbers(question)
    found: Features = []
    for i, option in enumerate(question.options):
        if numbers is None:
            said = [(f"says {option.value}", 1.0)]
        else:
            far = typical.distance(question, numbers[i])
            said = [("far", far / 2), ("far off", abs(far) / 2), (f"rank {_ranks(numbers)[i]} of {len(numbers)}", 1.0)]
        row = [(f"{scope}|{what}", weight) for scope in scopes for what, weight in said]
        found.append(row)
    return found


def _fitted(
    questions: Sequence[Question], learn: Sequence[Question], features: Callable[[Question], Features]
) -> list[FloatArray]:
    """Scores of a logistic regression of "this option is right" on `features`."""
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import LogisticRegression

    taught = [q for q in learn if len(q.options) > 1 and 0 <= q.answer.index < len(q.options)]
    if not taught:
        return [np.zeros(len(question.options)) for question in questions]
    hasher = FeatureHasher(COLUMNS, input_type="pair")
    right = np.concatenate([np.arange(len(question.options)) == question.answer.index for question in taught])
    model = LogisticRegression(C=STRENGTH, solver="liblinear", tol=1e-3, random_state=0)
    model.fit(hasher.transform(row for question in taught for row in features(question)), right)
    rows = [row for question in questions for row in features(question)]
    scores = model.decision_function(hasher.transform(rows)) if rows else np.zeros(0)
    ends = np.cumsum([len(question.options) for question in questions])
    return np.split(scores, ends[:-1])
