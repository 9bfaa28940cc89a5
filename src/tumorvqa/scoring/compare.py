"""Two models on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tumorvqa.question import Question
from tumorvqa.scoring.bootstrap import interval, resampled_means
from tumorvqa.scoring.scores import Interval, Scores


@dataclass(frozen=True)
class Comparison:
    """`differences`: mean score of a minus that of b, "overall" and by group, with paired intervals over cases.
    `p_value` is McNemar's exact one of the questions that only one of the two has right (`only_a`, `only_b`).
    """

    a: str
    b: str
    questions: int
    differences: dict[str, Interval]
    only_a: int
    only_b: int
    p_value: float

    def table(self) -> str:
        rows = [f"{self.a} minus {self.b}, {self.questions} questions, points with 95% intervals over cases"]
        for name, row in self.differences.items():
            spread = "" if row.low is None or row.high is None else f"  [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
            rows.append(f"  {name:<18} {100 * row.value:+6.1f}{spread}")
        rows.append(
            f"  right only in {self.a}: {self.only_a}, only in {self.b}: {self.only_b}; McNemar p = {self.p_value:.3g}"
        )
        return "\n".join(rows)


def compare(a: Scores, b: Scores, questions: Sequence[Question], resamples: int = 2000, seed: int = 0) -> Comparison:
    """Right is a score of 1; of numbers in free form, 0.95 or more (within 5%). ValueError if the two were scored on
    different questions, formats or answer keys.
    """
    for name in ("format", "key", "strict_authors"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(
                f"{a.model!r} was scored with {name} {getattr(a, name)!r}, {b.model!r} with {getattr(b, name)!r}; "
                "score both alike."
            )
    of_a, of_b = ({row.qid: row.score for row in scores.judged} for scores in (a, b))
    differing = set(of_a) ^ set(of_b) or set(of_a) - {question.qid for question in questions}
    if differing:
        raise ValueError(
            f"{len(differing)} questions are not in both, among them {min(differing)!r}; score the same set."
        )
    asked = [question for question in questions if question.qid in of_a]
    first, second = (np.array([scores[question.qid] for question in asked]) for scores in (of_a, of_b))

    names = [name for name in a.groups if name in b.groups]
    members = np.array([[True, *(question.group == name for name in names)] for question in asked])
    cases = [question.case for question in asked]
    samples = resampled_means((first - second)[:, None], cases, members, resamples, seed)
    differences = {
        name: interval(float((first - second)[part].mean()), samples[:, column, 0])
        for column, (name, part) in enumerate(zip(("overall", *names), members.T, strict=True))
    }
    least = np.array([0.95 if a.format == "free" and q.answer_type == "numeric" else 1.0 for q in asked]) - 1e-9
    only_a = int(((first >= least) & (second < least)).sum())
    only_b = int(((first < least) & (second >= least)).sum())
    return Comparison(a.model, b.model, len(asked), differences, only_a, only_b, mcnemar(only_a, only_b))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value: were the models alike, either would get a question they differ on at 1/2."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
