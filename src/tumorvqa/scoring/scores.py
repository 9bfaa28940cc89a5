"""What a scoring says. Plain data, JSON in and out."""

from dataclasses import dataclass
from typing import Literal

from tumorvqa.question import Value

Format = Literal["mc", "free"]


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95% interval by bootstrap over cases (None where it was not asked for)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Judged:
    """One question as one model answered it. `score` 0 to 1 is what averages are made of: right or wrong, or mra_linear
    of a number in free form. `parsed` None: no answer, or none that could be read; its score is 0.
    """

    qid: str
    parsed: Value | None
    score: float
    chance: float  # expected score of a uniform choice among the options; 0 in free form


@dataclass(frozen=True)
class Part:
    """The scores of a subtype, a group or all: counts, `accuracy` (the mean score, by questions: micro), `above_chance`
    (accuracy minus chance), and what `details` adds by answer type (mra_linear, sensitivity, macro_f1, ...).
    """

    questions: int
    answered: int
    parsed: int
    accuracy: Interval
    above_chance: Interval
    details: dict[str, float]


@dataclass(frozen=True)
class Scores:
    """A model on a set of questions. Missing answers are wrong."""

    model: str
    format: Format
    key: str  # which answer key: "masks" or "analytic"
    strict_authors: bool
    overall: Part
    groups: dict[str, Part]
    subtypes: dict[str, Part]
    macro_subtype: Interval
    macro_group: Interval
    judged: tuple[Judged, ...]
