"""Scores by what a question is about: where a model is weak."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tumorvqa.question import Question
from tumorvqa.scans import Meta
from tumorvqa.scoring.bootstrap import interval, resampled_means
from tumorvqa.scoring.scores import Interval, Scores


@dataclass(frozen=True)
class Stratum:
    questions: int
    accuracy: Interval
    above_chance: Interval


def _band(value: float | None, edges: tuple[float, ...], unit: str) -> str | None:
    """ "under 10 mm", "10 to 20 mm", "20 mm or more"."""
    if value is None:
        return None
    at = sum(value >= edge for edge in edges)
    if at == 0:
        return f"under {edges[0]:g}{unit}"
    return f"{edges[at - 1]:g}{unit} or more" if at == len(edges) else f"{edges[at - 1]:g} to {edges[at]:g}{unit}"


def _order(band: str) -> tuple[float, str]:
    """By the lower edge, words by the alphabet."""
    first = band.split()[0]
    return float(first) if first.isdigit() else -1.0, band


STRATA: dict[str, Callable[[Question, Meta], str | None]] = {
    "contrast": lambda question, meta: meta.contrast,
    "sex": lambda question, meta: meta.sex,
    "age": lambda question, meta: _band(meta.age, (40, 60, 75), " years"),
    "lesion size": lambda question, meta: _band(question.lesion_mm, (10, 20, 40), " mm"),
    "margin": lambda question, meta: _band(question.margin, (2, 5, 20), " uncertainties"),
}


def strata(
    scores: Scores,
    questions: Sequence[Question],
    metas: Mapping[str, Meta] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Stratum]]:
    """Row of STRATA -> band -> scores. `metas` (by case) are needed for contrast, sex and age; questions of which a row
    knows nothing are left out of it.
    """
    metas = metas or {}
    by_qid = {row.qid: row for row in scores.judged}
    asked = [question for question in questions if question.qid in by_qid]
    points = np.array([[by_qid[q.qid].score, by_qid[q.qid].score - by_qid[q.qid].chance] for q in asked]).reshape(-1, 2)
    found: dict[str, dict[str, Stratum]] = {}
    for name, band_of in STRATA.items():
        bands = [band_of(question, metas.get(question.case, Meta())) for question in asked]
        values = sorted({band for band in bands if band is not None}, key=_order)
        if not values:
            continue
        members = np.array([[band == value for value in values] for band in bands])
        samples = resampled_means(points, [question.case for question in asked], members, resamples, seed)
        found[name] = {
            value: Stratum(
                int(part.sum()),
                interval(float(points[part, 0].mean()), samples[:, column, 0]),
                interval(float(points[part, 1].mean()), samples[:, column, 1]),
            )
            for column, (value, part) in enumerate(zip(values, members.T, strict=True))
        }
    return found
