"""A question, its answer and how it comes about. Plain data, JSON in and out."""

from dataclasses import dataclass
from typing import Literal

from tumorvqa.scans import Box

GROUPS = ("Recognition", "Measurement", "Visual Reasoning", "Medical Reasoning")
AnswerType = Literal["numeric", "binary", "categorical"]
Value = float | str  # numbers; "yes" and "no"; the name of a class


@dataclass(frozen=True)
class Option:
    text: str
    value: Value


@dataclass(frozen=True)
class Answer:
    """`index` is that of the option, -1 if no option says it; `text` says it in free form, with its unit."""

    value: Value
    text: str
    index: int


@dataclass(frozen=True)
class Step:
    """One tool call of a trace: what was looked at, measured or looked up, and what came out."""

    tool: Literal["segment", "measure", "knowledge"]
    what: str  # e.g. "volume of the spleen", "kb-v2: spleen.enlarged > 314.5 cm^3"
    result: Value
    unit: str = ""


@dataclass(frozen=True)
class Evidence:
    """Where to look: an axial slice (0 is the lowest), a box, and the structures to show."""

    slice: int | None
    box: Box | None
    masks: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """`arguments` is what the row of its subtype is asked about, e.g. {"organ": "liver"}. `margin`: how many
    uncertainties the truth lies from where the answer would change (None: an exact count or a class of a mask).
    """

    qid: str
    case: str
    patient: str
    subtype: str  # a key of subtypes.SUBTYPES
    group: str  # one of GROUPS
    answer_type: AnswerType
    arguments: dict[str, str]
    text: str
    options: tuple[Option, ...]
    answer: Answer
    unit: str
    trace: tuple[Step, ...]
    evidence: Evidence
    margin: float | None
    lesion_mm: float | None  # long axis of the largest lesion concerned
    rules: str  # name of the rule pack
    split: str | None = None


@dataclass(frozen=True)
class Prediction:
    """A model's answer as it said it; `raw` None is no answer (an error), which counts as wrong."""

    qid: str
    raw: str | None
    latency: float | None = None  # seconds
    tokens: int | None = None
