"""Names, values and reasons as people read them."""

from math import floor, log10

from tumorvqa.measurements import Measurement
from tumorvqa.question import Question, Value
from tumorvqa.scoring.parse import agrees, parse
from tumorvqa.structures import STRUCTURES

UNITS = {"cm^3": "cm³", "degrees": "°"}
PROVENANCE = {
    "human": "masks drawn by people",
    "ai": "masks drawn by a model",
    "phantom": "masks of a phantom",
    "unknown": "masks of unknown origin",
}
DIGITS = {"cm^3": 1, "HU": 1, "mm": 1, "degrees": 0, "slice": 0}
STATUS = {
    "ok": "measured",
    "truncated": "cut off by the edge of the scan",
    "empty": "looked for, none there",
    "not_annotated": "nobody marked it",
    "too_small": "too small to measure",
    "frame_mismatch": "its mask belongs to another frame",
}


def title(name: str) -> str:
    """Of a structure, with a capital."""
    text = STRUCTURES[name].title
    return text[:1].upper() + text[1:]


def place(name: str) -> str:
    """Short for a part of an organ that is named beside it: segment 7, head, left kidney."""
    text = title(name).lower()
    return text.removeprefix("liver ").removesuffix(" of the pancreas")


def unit(name: str) -> str:
    return UNITS.get(name, name)


def number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def significant(value: float, digits: int) -> str:
    """To that many significant digits and at most 6 decimals, without trailing zeros and never with an exponent."""
    decimals = min(max(0, digits - 1 - floor(log10(abs(value)))), 6) if value else 0
    text = number(round(value, decimals) + 0.0, decimals)  # + 0.0: no minus before a 0
    return text.rstrip("0").rstrip(".") if decimals else text


def measured(measurement: Measurement) -> str:
    """Value and uncertainty to the first digit of the uncertainty, the unit stands elsewhere; the status in words where
    there is no value.
    """
    if measurement.value is None:
        return STATUS[measurement.status]
    digits = DIGITS[measurement.unit]
    if not measurement.uncertainty or measurement.unit == "slice":
        return number(measurement.value, digits)
    digits = min(max(0, -floor(log10(measurement.uncertainty))), 3)
    return f"{number(measurement.value, digits)} ± {number(measurement.uncertainty, digits)}"


def axes(long: Measurement, short: Measurement) -> str:
    """Of a lesion, long x short."""
    if long.value is None or short.value is None:
        return measured(long)
    return f"{measured(long).partition(' ')[0]} × {measured(short)}"


def said(value: Value) -> str:
    """An answer or the result of a step."""
    if isinstance(value, str):
        return STRUCTURES[value].title if value in STRUCTURES else value
    return significant(value, 4)


def margin(of: Question) -> str:
    """How many uncertainties the truth lies from another answer."""
    if of.margin is None:
        return "exact"
    return significant(of.margin, 3) if of.margin < 1000 else "over 1,000"


def mark(question: Question, words: str) -> tuple[bool | None, str]:
    """Whether what a model said chooses or states the right option, and that in words; None where it does neither, then
    the words say how far a number is off.
    """
    chosen = parse(question, words, "mc")
    if chosen is not None:
        return chosen == question.answer.index, "right" if chosen == question.answer.index else "wrong"
    value, truth = parse(question, words, "free"), question.answer.value
    if value is None:
        return None, "cannot be read"
    if isinstance(value, str) or isinstance(truth, str):
        return agrees(value, truth), "right" if agrees(value, truth) else "wrong"
    if agrees(value, truth):
        return True, "right"
    return None, f"{abs(value - truth) / abs(truth):.1%} off" if truth else f"{said(value - truth)} off"
