"""One question in the authors' words: the record that their v1 CSV and v2 JSON have in common."""

import re
from collections.abc import Mapping
from hashlib import sha256
from string import ascii_uppercase
from typing import Any, Literal

from dnt.lookup import lookup
from tumorvqa.measurements import Measurements
from tumorvqa.question import GROUPS, Answer, Evidence, Option, Question, Value
from tumorvqa.scoring.authors import ANSWER_TYPES
from tumorvqa.scoring.parse import number

TOOLS = {"segment": "segment_organ", "measure": "measure", "knowledge": "lookup_medical_knowledge"}
LESION_WORDS = ("lesion", "tumor", "cyst", "pdac", "pnet")
UNITS = {  # that their answers, which name none, are in
    "organ volume measurement": "cm^3",
    "lesion volume measurement": "cm^3",
    "organ HU measurement": "HU",
    "tumor organ HU difference": "HU",
    "tumor burden percentage": "%",
    "largest lesion diameter": "cm",
    "largest lesion slice": "slice",
}
SUBTYPES = {name.lower(): name for name in ANSWER_TYPES}
GROUP_NAMES = {name.lower(): name for name in GROUPS}
LETTERED = r"(?:^|\s)\(?{letter}[:.)]\s+"


def mc_text(question: Question) -> str:
    """The question with its options inline: "... A: 12.3 B: 14.1"."""
    options = " ".join(f"{ascii_uppercase[i]}: {option.text}" for i, option in enumerate(question.options))
    return f"{question.text} {options}" if options else question.text


def options_of(mc_question: str, text: str) -> list[str]:
    """Texts of the inline options: A, B, ... as far as they go on in order, behind the question's own text."""
    rest = mc_question[len(text) :] if mc_question.startswith(text) else mc_question
    first = re.search(LETTERED.format(letter="A"), rest)
    if first is None:
        return []
    rest, found = rest[first.end() :], []
    for letter in ascii_uppercase[1:]:
        following = re.search(LETTERED.format(letter=letter), rest)
        if following is None:
            break
        found.append(rest[: following.start()].strip())
        rest = rest[following.end() :]
    return [*found, rest.strip()]


def record_of(question: Question, measurements: Mapping[str, Measurements]) -> dict[str, Any]:
    """v2 names. ValueError if the inline options could not be read again."""
    texts = [option.text for option in question.options]
    if len(texts) > len(ascii_uppercase) or options_of(mc_text(question), question.text) != texts:
        raise ValueError(
            f"the options of question {question.qid} cannot be written inline: {texts}; "
            'none may have blanks around it or hold " B: ".'
        )
    of_case = measurements.get(question.case)
    meta = of_case.meta if of_case else None
    return {
        "qid": question.qid,
        "image_id": question.case,
        "spacing": f"[{' '.join(f'{mm:g}' for mm in of_case.spacing)}]" if of_case else None,
        "shape": f"({', '.join(map(str, of_case.shape))})" if of_case else None,
        "sex": meta.sex if meta else None,
        "age": meta.age if meta else None,
        "contrast": meta.contrast if meta else None,
        "question": question.text,
        "answer": question.answer.text,
        "mc_question": mc_text(question),
        "correct_option": ascii_uppercase[question.answer.index] if question.answer.index >= 0 else "",
        "organ": question.arguments.get("organ", ""),
        "lesion": any(word in question.subtype.lower() for word in LESION_WORDS),
        "question_type": question.group.lower(),
        "question_subtype": question.subtype,
        "requires_tools": [name for tool, name in TOOLS.items() if any(step.tool == tool for step in question.trace)],
    }


def question_of(record: Mapping[str, Any], patients: Mapping[str, str]) -> Question:
    """From a record with v2 names. What that lacks is empty (trace, margin, ...), a missing qid a hash of the text."""
    case, text, answer = (str(_needed(record, name)) for name in ("image_id", "question", "answer"))
    mc_question = str(record.get("mc_question") or "")
    subtype = str(_needed(record, "question_subtype")).replace("_", " ").strip()
    subtype = SUBTYPES.get(subtype.lower(), subtype)
    letter = str(record.get("correct_option") or "").strip().upper()
    texts = options_of(mc_question, text)
    index = ascii_uppercase.index(letter) if len(letter) == 1 and letter in ascii_uppercase else -1
    if index >= len(texts):
        raise ValueError(f"a question of {case} has correct option {letter!r} of {len(texts)} options")
    kind = _answer_type(subtype, answer)
    unit = UNITS.get(subtype, "") if kind == "numeric" else ""
    group = lookup(
        GROUP_NAMES, str(_needed(record, "question_type")).replace("_", " ").strip().lower(), "question type"
    )
    organ = str(record.get("organ") or "")
    return Question(
        qid=str(record.get("qid") or sha256("\n".join((case, subtype, text, mc_question)).encode()).hexdigest()[:16]),
        case=case,
        patient=patients.get(case, case),
        subtype=subtype,
        group=group,
        answer_type=kind,
        arguments={"organ": organ} if organ else {},
        text=text,
        options=tuple(Option(option, _value(kind, option, unit)) for option in texts),
        answer=Answer(_value(kind, answer, unit), answer, index),
        unit=unit,
        trace=(),
        evidence=Evidence(None, None, ()),
        margin=None,
        lesion_mm=None,
        rules="",
        split=str(record["split"]) if record.get("split") else None,
    )


def _needed(record: Mapping[str, Any], name: str) -> Any:
    value = record.get(name)
    if value is None or value == "":
        raise ValueError(f"a question lacks {name!r}; it has {', '.join(key for key in record if record[key])}")
    return value


def _answer_type(subtype: str, answer: str) -> Literal["numeric", "binary", "categorical"]:
    """As the authors have it; an answer that is no such thing, or of a subtype they lack, is taken for what it is."""
    kind = ANSWER_TYPES.get(subtype)
    if kind == "categorical":
        return kind
    if answer.strip().lower() in ("yes", "no"):
        return "binary"
    plain = re.fullmatch(r"[-−]?[0-9][0-9,.]*\s*%?", answer.strip()) is not None
    return (
        "numeric"
        if plain or (kind == "numeric" and number(answer, UNITS.get(subtype, "")) is not None)
        else "categorical"
    )


def _value(kind: str, text: str, unit: str) -> Value:
    if kind == "binary":
        return text.strip().lower()
    said = number(text, unit) if kind == "numeric" else None
    return text.strip() if said is None else said
