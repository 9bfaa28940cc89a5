"""Scores exactly as the authors' public evaluation gives them (arXiv 2605.09679), with what is odd about it.

Odd, and kept: the first character decides a letter, so "Cannot say" chooses C; the first digits decide a number, so
"1,234" is 1; "normal" is no; punctuation is dropped from classes, so "4/8" is "48"; two empty texts are equal;
questions without a prediction do not count; a subtype's score is rounded to 4 digits before it is weighted, by
questions that include those without a readable truth. By other rules: score.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from tumorvqa.question import Prediction, Question
from tumorvqa.scoring.scores import Format, Interval, Judged, Part, Scores

Pair = tuple[str, str]  # what the model said, the truth
Kind = Literal["numeric", "binary", "categorical"]

ANSWER_TYPES: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "organ volume measurement",
            "organ HU measurement",
            "lesion volume measurement",
            "organ HU ratio",
            "tumor burden percentage",
            "lesion counting",
            "lesion count by location",
            "largest lesion diameter",
            "largest lesion slice",
            "tumor organ HU difference",
            "organ aggregation",
        ),
        "numeric",
    ),
    **dict.fromkeys(
        (
            "liver lesion existence",
            "kidney lesion existence",
            "pancreatic lesion existence",
            "colon lesion existence",
            "kidney tumor existence",
            "kidney cyst existence",
            "PDAC existence",
            "PNET existence",
            "splenomegaly detection",
            "lesion outlier",
            "organ enlargement",
            "pancreatic steatosis",
            "portal hypertension assessment",
            "pseudocyst determination",
            "pancreatic cyst resectability",
        ),
        "binary",
    ),
    **dict.fromkeys(
        (
            "largest lesion location",
            "largest lesion attenuation",
            "inter-segment comparison",
            "adjacent organ",
            "kidney volume comparison",
            "bilateral kidney asymmetry",
            "liver lesion clustering",
            "multi-organ lesion burden comparison",
            "fatty liver",
            "hepatic steatosis grading",
            "splenomegaly grading",
            "lesion type classification",
            "renal mass characterization",
            "pancreatic tumor staging",
            "pancreatic lesion resectability",
            "PDAC vs PNET classification",
        ),
        "categorical",
    ),
}
TOLERANCES = {"tol_5%": 0.05, "tol_10%": 0.10, "tol_20%": 0.20, "tol_50%": 0.50}


def without_thinking(text: str) -> str:
    """Finished blocks are cut out in one pass; what then opens a block cuts off the rest."""
    kept, at = "", 0
    while (start := text.find("<think>", at)) >= 0 and (end := text.find("</think>", start)) >= 0:
        kept, at = kept + text[at:start], end + len("</think>")
    return (kept + text[at:]).partition("<think>")[0].strip()


def letter(text: str) -> str:
    """A to D or ""."""
    capitals = without_thinking(text).upper()
    if capitals[:1] in ("A", "B", "C", "D"):
        return capitals[0]
    alone = re.search(r"(?<!\w)[ABCD](?!\w)", capitals)
    return alone[0] if alone else ""


def number(text: str) -> float | None:
    """The first run of digits, with a minus before it and a fraction behind it."""
    digits = re.search(r"-?\d+(?:\.\d*)?", text)
    return float(digits[0]) if digits else None


def yes_or_no(text: str) -> str:
    lowered = text.strip().lower()
    for said in ("yes", "no"):
        if lowered.startswith(said):
            return said
    for said in ("yes", "no"):
        if re.search(rf"(?<!\w){said}(?!\w)", lowered):
            return said
    return ""


def normal(text: str) -> str:
    """Lower case; only word characters, hyphens and single blanks."""
    kept = "".join(re.findall(r"[\w\s-]", text.strip().lower()))
    return re.sub(r"\s+", " ", kept)


def linear_accuracy(said: float, truth: float) -> float:
    """max(0, 1 - |said - truth| / |truth|); of a truth of 0, equality. The authors' "MRA"."""
    if truth == 0:
        return float(said == 0)
    return max(0.0, 1.0 - abs(said - truth) / abs(truth))


def _share(count: float, of: int) -> float:
    return round(count / max(of, 1), 4)


def score_mc(pairs: Sequence[Pair]) -> dict[str, Any]:
    letters = [(letter(said), truth.strip().upper()) for said, truth in pairs]
    right = sum(said == truth for said, truth in letters)
    return {
        "metric": "exact_match",
        "accuracy": _share(right, len(letters)),
        "n_parsed": sum(said != "" for said, _ in letters),
        "n_total": len(letters),
    }


def score_numeric(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Pairs whose truth has no number are left out of the mean, and of nothing else."""
    read = [(number(without_thinking(said)), truth) for said, text in pairs if (truth := number(text)) is not None]
    within = dict.fromkeys(TOLERANCES, 0)
    for said, truth in read:
        if said is None:
            continue
        error = abs(said - truth) / abs(truth) if truth else (0.0 if said == 0 else float("inf"))
        for name, most in TOLERANCES.items():
            within[name] += error <= most
    accuracies = [0.0 if said is None else linear_accuracy(said, truth) for said, truth in read]
    return {
        "metric": "MRA",
        "mean_mra": _share(sum(accuracies), len(read)),
        "tolerance_acc": {name: _share(hits, len(read)) for name, hits in within.items()},
        "n_total": len(pairs),
        "n_scored": len(read),
    }


def score_binary(pairs: Sequence[Pair]) -> dict[str, Any]:
    """No answer counts as no in the specificity, and as wrong in the accuracy."""
    read = [(yes_or_no(without_thinking(said)), yes_or_no(truth)) for said, truth in pairs]
    yes = [said == "yes" for said, truth in read if truth == "yes"]
    no = [said != "yes" for said, truth in read if truth == "no"]
    return {
        "metric": "exact_match",
        "accuracy": _share(sum(said == truth != "" for said, truth in read), len(read)),
        "sensitivity": _share(sum(yes), len(yes)),
        "specificity": _share(sum(no), len(no)),
        "n_total": len(read),
    }


def score_categorical(pairs: Sequence[Pair]) -> dict[str, Any]:
    read = [(normal(without_thinking(said)), normal(truth)) for said, truth in pairs]
    part = sum(said == truth or bool(said and truth and (said in truth or truth in said)) for said, truth in read)
    return {
        "metric": "exact_match",
        "accuracy": _share(sum(said == truth for said, truth in read), len(read)),
        "partial_accuracy": _share(part, len(read)),
        "n_total": len(read),
    }


SCORERS: dict[str, Callable[[Sequence[Pair]], dict[str, Any]]] = {
    "mc": score_mc,
    "numeric": score_numeric,
    "binary": score_binary,
    "categorical": score_categorical,
}


def aggregate(
    predictions: Iterable[Mapping[str, Any]], index: Mapping[str, Mapping[str, Any]], form: Literal["mc", "freeform"]
) -> dict[str, Any]:
    """Predictions are records with qid and pred_answer or raw_output; `index` holds the authors' v2 records by qid."""
    pairs: dict[str, list[Pair]] = {}
    for record in predictions:
        question = index.get(record["qid"])
        if question is not None:
            said = record.get("pred_answer") or record.get("raw_output") or ""
            truth = question["correct_option" if form == "mc" else "answer"]
            pairs.setdefault(question["question_subtype"], []).append((str(said), str(truth)))
    group_of: dict[str, str] = {}
    for question in index.values():
        group_of.setdefault(question["question_subtype"], question["question_type"])
    subtypes = {}
    every: list[tuple[float, int]] = []
    by_group: dict[str, list[tuple[float, int]]] = {}
    for subtype, said_and_true in pairs.items():
        kind = "mc" if form == "mc" else ANSWER_TYPES.get(subtype, "categorical")
        subtypes[subtype] = row = SCORERS[kind](said_and_true)
        mean = row["mean_mra"] if kind == "numeric" else row["accuracy"]
        every.append((mean, row["n_total"]))
        if group_of[subtype]:
            by_group.setdefault(group_of[subtype], []).append((mean, row["n_total"]))

    def micro(rows: list[tuple[float, int]]) -> dict[str, Any]:
        total = sum(n for _, n in rows)
        return {"accuracy": _share(sum(mean * n for mean, n in rows), total), "n_total": total}

    return {
        "overall": micro(every) | {"n_subtypes": len(subtypes)},
        "by_super_type": {group: micro(rows) for group, rows in by_group.items()},
        "by_subtype": subtypes,
    }


def strict_scores(
    questions: Sequence[Question], predictions: Mapping[str, Prediction], format: Format, model: str, key: str
) -> Scores:
    """The authors' figures as our Scores: only questions with a prediction are in it, and there are no intervals. An
    answer of None is an empty one.
    """
    index = {
        question.qid: {
            "question_subtype": question.subtype,
            "question_type": question.group,
            "correct_option": ascii_uppercase[question.answer.index] if question.answer.index >= 0 else "",
            "answer": question.answer.text,
        }
        for question in questions
    }
    told = [question for question in questions if question.qid in predictions]
    records = [{"qid": question.qid, "raw_output": predictions[question.qid].raw} for question in told]
    figures = aggregate(records, index, "mc" if format == "mc" else "freeform")
    judged = tuple(
        _judged(question, predictions[question.qid].raw or "", index[question.qid], format) for question in told
    )

    def part(accuracy: float, chosen: list[int], row: Mapping[str, Any]) -> Part:
        chance = sum(judged[i].chance for i in chosen) / max(len(chosen), 1)
        details = {name: float(row[name]) for name in ("sensitivity", "specificity", "partial_accuracy") if name in row}
        return Part(
            questions=len(chosen),
            answered=sum(predictions[told[i].qid].raw is not None for i in chosen),
            parsed=sum(judged[i].parsed is not None for i in chosen),
            accuracy=Interval(accuracy),
            above_chance=Interval(accuracy - chance),
            details=details | dict(row.get("tolerance_acc", {})),
        )

    def where(name: str, value: str) -> list[int]:
        return [i for i, question in enumerate(told) if getattr(question, name) == value]

    groups = {name: part(row["accuracy"], where("group", name), {}) for name, row in figures["by_super_type"].items()}
    subtypes = {
        name: part(row["mean_mra"] if "mean_mra" in row else row["accuracy"], where("subtype", name), row)
        for name, row in figures["by_subtype"].items()
    }

    def macro(parts: Mapping[str, Part]) -> Interval:
        return Interval(sum(part.accuracy.value for part in parts.values()) / max(len(parts), 1))

    return Scores(
        model=model,
        format=format,
        key=key,
        strict_authors=True,
        overall=part(figures["overall"]["accuracy"], list(range(len(told))), {}),
        groups=groups,
        subtypes=subtypes,
        macro_subtype=macro(subtypes),
        macro_group=macro(groups),
        judged=judged,
    )


def _judged(question: Question, raw: str, record: Mapping[str, str], format: Format) -> Judged:
    """One pair by the same scorers; the mean of one is its score."""
    if format == "mc":
        said: float | str | None = letter(raw)
        chance = 1 / len(question.options) if question.options else 0.0
        right = score_mc([(raw, record["correct_option"])])["accuracy"]
        return Judged(question.qid, said or None, right, chance)
    kind = ANSWER_TYPES.get(question.subtype, "categorical")
    text = without_thinking(raw)
    said = number(text) if kind == "numeric" else (yes_or_no(text) if kind == "binary" else normal(text))
    row = SCORERS[kind]([(raw, record["answer"])])
    return Judged(question.qid, None if said == "" else said, row["mean_mra" if kind == "numeric" else "accuracy"], 0.0)
