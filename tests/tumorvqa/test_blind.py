"""Models that never see the image: they find what was planted, nothing else, and read no answer they must give."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tumorvqa.baselines.blind import BLIND, answer, cross_validated, folds
from tumorvqa.measurements import Measurements
from tumorvqa.question import Answer, Evidence, Option, Prediction, Question
from tumorvqa.scans import Meta

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
        case = f"case {i // 10}"
        found.append(
            Question(
                f"q{i}", case, f"patient {i // 20}", subtype, "Measurement", kind, {"organ": organ}, text,
                tuple(Option(str(value), value) for value in values), Answer(truth, str(truth), values.index(truth)),
                "", (), Evidence(None, None, ()), None, None, "kb-v2",
            )  # fmt: skip
        )
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
