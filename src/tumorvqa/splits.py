"""Train, validation and test by patient, and how much a split lets a model know beforehand."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tumorvqa.question import Question

Row = tuple[str, str, str]  # case, patient, split
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def split(
    questions: Sequence[Question],
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    by_source: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Split of each case. All cases of a patient (of a source, if `by_source` maps cases to theirs:
    out-of-distribution) go to one split; shares of questions by subtype and answer (numbers: thirds) come near
    `fractions`. Patients, the largest first, go where they lower sum((asked - wanted)^2 / wanted) most.
    """
    if not questions or min(fractions.values(), default=0) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(
            f"a split needs questions and fractions > 0 that add up to 1, not {len(questions)} and {dict(fractions)}."
        )
    wholes = _wholes(questions, by_source)
    names = sorted(set(wholes.values()))
    if len(names) < len(fractions):
        what = "patients" if by_source is None else "sources"
        raise ValueError(f"{len(names)} {what} cannot fill {len(fractions)} splits; use fewer splits or more cases.")
    counts = _strata(questions, [names.index(wholes[question.case]) for question in questions], len(names))
    wanted = np.outer(list(fractions.values()), counts.sum(0))

    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    asked = np.zeros_like(wanted)
    chosen = np.zeros(len(names), int)
    for whole in order:
        change = ((2 * (asked - wanted) * counts[whole] + counts[whole] ** 2) / wanted).sum(1)
        chosen[whole] = int(change.argmin())
        asked[chosen[whole]] += counts[whole]
    for empty in range(len(fractions)):  # of few patients: the smallest of the fullest split
        if not (chosen == empty).any():
            fullest = np.bincount(chosen, minlength=len(fractions)).argmax()
            chosen[order[chosen[order] == fullest][-1]] = empty
    splits = dict(zip(names, (list(fractions)[i] for i in chosen), strict=True))
    return {case: splits[whole] for case, whole in wholes.items()}


def _wholes(questions: Sequence[Question], by_source: Mapping[str, str] | None) -> dict[str, str]:
    """Case -> what must stay together. Sources are joined where a patient has cases of both."""
    if by_source is None:
        return {question.case: question.patient for question in questions}
    missing = {question.case for question in questions} - set(by_source)
    if missing:
        raise ValueError(f"{len(missing)} cases have no source, among them {min(missing)!r}; give each its source.")
    joined = {source: source for source in by_source.values()}

    def root(source: str) -> str:
        while joined[source] != source:
            source = joined[source]
        return source

    first: dict[str, str] = {}
    for question in questions:
        here, there = sorted(
            (root(by_source[question.case]), root(first.setdefault(question.patient, by_source[question.case])))
        )
        joined[there] = here
    return {question.case: root(by_source[question.case]) for question in questions}


def _strata(questions: Sequence[Question], whole: list[int], wholes: int) -> NDArray[np.float64]:
    """(wholes, strata): questions by subtype and answer; the last column counts all."""
    numbers: dict[str, list[float]] = {}
    for question in questions:
        if question.answer_type == "numeric":
            numbers.setdefault(question.subtype, []).append(float(question.answer.value))
    thirds = {subtype: np.quantile(values, [1 / 3, 2 / 3]) for subtype, values in numbers.items()}
    keys = [
        (
            q.subtype,
            str(np.searchsorted(thirds[q.subtype], float(q.answer.value)))
            if q.subtype in thirds
            else str(q.answer.value),
        )
        for q in questions
    ]
    columns = {key: i for i, key in enumerate(sorted(set(keys)))}
    counts = np.zeros((wholes, len(columns) + 1))
    np.add.at(counts, (whole, [columns[key] for key in keys]), 1)
    counts[:, -1] = counts.sum(1)
    return counts


def with_split(questions: Iterable[Question], splits: Mapping[str, str]) -> list[Question]:
    return [replace(question, split=splits[question.case]) for question in questions]


def folds(patients: Iterable[str], k: int, seed: int = 0) -> dict[str, int]:
    """Fold (0 to k - 1) of each patient; one that is named often counts as often, and folds come out about even."""
    names, counts = np.unique(list(patients), return_counts=True)
    if len(names) < k or k < 2:
        raise ValueError(
            f"{len(names)} patients do not make {k} folds; k is at least 2 and at most the number of patients."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    sizes = np.zeros(k, int)
    fold = {}
    for i in order:
        lightest = int(sizes.argmin())
        fold[str(names[i])] = lightest
        sizes[lightest] += counts[i]
    return fold


@dataclass(frozen=True)
class Leak:
    """Of a split that is not train: its rows, its patients and cases that train has too, its rows of such patients."""

    rows: int
    patients_in_train: int
    cases_in_train: int
    rows_beside_train: int

    @property
    def share(self) -> float:
        return self.rows_beside_train / self.rows


@dataclass(frozen=True)
class LeakReport:
    """`found` by split, and the same for a `random` split of the same sizes by case."""

    rows: int
    cases: int
    patients: int
    found: dict[str, Leak]
    random: dict[str, Leak]

    def table(self) -> str:
        lines = [f"{self.rows} rows of {self.cases} cases of {self.patients} patients; also in train:"]
        lines.append(
            f"  {'split':<18}{'rows':>8}{'patients':>10}{'cases':>8}{'rows beside a train row of the patient':>42}"
        )
        for title, leaks in (("", self.found), (" by case", self.random)):
            for name, leak in leaks.items():
                beside = f"{leak.rows_beside_train} ({100 * leak.share:.1f}%)"
                counts = f"{leak.rows:>8}{leak.patients_in_train:>10}{leak.cases_in_train:>8}"
                lines.append(f"  {name + title:<18}{counts}{beside:>42}")
        return "\n".join(lines)

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def leak_report(rows: Sequence[Question] | Sequence[Row], seed: int = 0) -> LeakReport:
    """Rows are questions with their split, or (case, patient, split). ValueError if none is in "train"."""
    table = [(row.case, row.patient, row.split or "none") if isinstance(row, Question) else row for row in rows]
    if not any(name == "train" for _, _, name in table):
        raise ValueError('no row is in split "train"; a leak report needs what was trained on.')
    cases = sorted({case for case, _, _ in table})
    of_case = {case: name for case, _, name in table}
    shuffled = np.random.default_rng(seed).permutation([of_case[case] for case in cases]).tolist()
    by_case = dict(zip(cases, shuffled, strict=True))
    return LeakReport(
        rows=len(table),
        cases=len(cases),
        patients=len({patient for _, patient, _ in table}),
        found=_leaks(table),
        random=_leaks([(case, patient, by_case[case]) for case, patient, _ in table]),
    )


def _leaks(table: Sequence[Row]) -> dict[str, Leak]:
    trained_cases = {case for case, _, name in table if name == "train"}
    trained = {patient for _, patient, name in table if name == "train"}
    leaks = {}
    for split_name in sorted({name for _, _, name in table} - {"train"}):
        there = [(case, patient) for case, patient, name in table if name == split_name]
        leaks[split_name] = Leak(
            rows=len(there),
            patients_in_train=len({patient for _, patient in there} & trained),
            cases_in_train=len({case for case, _ in there} & trained_cases),
            rows_beside_train=sum(patient in trained for _, patient in there),
        )
    return leaks
