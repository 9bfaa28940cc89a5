"""All questions of a set of cases: run the programs, keep what is certain, balance the answers, add options."""

import tomllib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np

from tumorvqa.asking import exchange, options
from tumorvqa.asking.look import Class, Look, NotAsked, Number
from tumorvqa.asking.subtypes import SUBTYPES, Arguments, Subtype
from tumorvqa.measurements import Measurements
from tumorvqa.question import Answer, AnswerType, Evidence, Question, Value
from tumorvqa.rules.packs import Pack

CERTAIN = 2.0  # standard deviations between a class and the next one, at least
Stratum = tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A question without its words: an answer with what led to it."""

    look: Look
    row: Subtype
    arguments: Arguments
    answer: Number | Class

    @property
    def stratum(self) -> Stratum:
        """What somebody who sees no image knows: subtype and arguments, but those that are alike."""
        return (self.row.name, *(v for k, v in self.arguments.items() if k not in self.row.alike))

    @property
    def told(self) -> str:
        """The answer as it is balanced: a class by its role, where arguments name it; a count; nothing of a size."""
        if isinstance(self.answer, Class):
            roles = {value: key for key, value in self.arguments.items() if key in self.row.alike}
            return roles.get(self.answer.value, self.answer.value)
        return str(int(self.answer.value)) if self.answer.unit == "lesions" else ""

    @property
    def unit(self) -> str:
        """Of a number; "" of a class."""
        return self.answer.unit if isinstance(self.answer, Number) else ""

    @property
    def scale(self) -> float:
        """What a number is compared by with those of other cases: slices by how many the scan has."""
        return float(self.look.at.shape[2]) if self.unit == "slice" else 1.0

    @property
    def phase(self) -> str:
        """What tells how dense organs are, to who reads the header: HU are compared within a phase."""
        return self.look.at.meta.contrast or "" if self.unit in ("HU", "ratio") else ""

    @property
    def key(self) -> str:
        """What is asked of what, whatever the options."""
        parts = [self.look.at.case, self.row.name, *(f"{k}={v}" for k, v in sorted(self.arguments.items()))]
        return sha256("\0".join([*parts, self.look.pack.name, self.look.pack.version]).encode()).hexdigest()[:16]


def ask(
    cases: Sequence[Measurements], pack: Pack, seed: int = 0, balanced: bool = True, subtypes: Sequence[str] = ()
) -> list[Question]:
    """Questions of all cases, in their order; the same for the same measurements, pack and seed.

    `balanced`: as many of each answer in each stratum, else whoever knows the usual answer needs no image; a stratum
    with one answer only is not asked, nor a number that has no three others to stand beside it (see exchange.py).
    Without it all certain questions are asked, if need be with invented numbers.
    """
    found = [one for case in cases for one in candidates(case, pack, subtypes)]
    strata: dict[Stratum, list[Candidate]] = defaultdict(list)
    for one in found:
        strata[one.stratum].append(one)
    questions = []
    for stratum, members in strata.items():
        random = Random(f"{seed} {' '.join(stratum)}")
        chosen = choose(members, random, balanced)
        kept = sorted({one.told for one in chosen}) if balanced else None
        wrong = wrong_numbers(members, random) if members[0].unit not in ("", "lesions") else {}
        asked = [worded(one, wrong.get(one.key), kept, seed) for one in chosen]
        questions += [question for question in asked if question is not None]
    place = {case.case: i for i, case in enumerate(cases)}
    rank = {name: i for i, name in enumerate(SUBTYPES)}
    return sorted(questions, key=lambda q: (place[q.case], rank[q.subtype], sorted(q.arguments.items())))


def candidates(case: Measurements, pack: Pack, subtypes: Sequence[str] = ()) -> list[Candidate]:
    """Every question that a case can answer with certainty."""
    found = []
    for row in SUBTYPES.values():
        if subtypes and row.name not in subtypes:
            continue
        for arguments in row.about:
            look = Look(case, pack)
            try:
                answer = row.program(look, **arguments)
            except NotAsked:
                continue
            if isinstance(answer, Number) or answer.margin is None or answer.margin >= CERTAIN:
                found.append(Candidate(look, row, arguments, answer))
    return found


def choose(members: Sequence[Candidate], random: Random, balanced: bool) -> list[Candidate]:
    """As many of each answer, of those answers that give the most questions."""
    waiting: dict[str, list[Candidate]] = defaultdict(list)
    for one in random.sample(list(members), len(members)):
        waiting[one.told].append(one)
    by_answer: dict[str, list[Candidate]] = defaultdict(list)
    taken: Counter[str] = Counter()
    while any(waiting.values()):  # one of each answer in turn, so that none takes all that a case may be asked
        for told in sorted(waiting, key=lambda told: (len(waiting[told]), told)):
            while waiting[told]:
                one = waiting[told].pop()
                if taken[one.look.at.case] < one.row.most or not one.row.alike:
                    taken[one.look.at.case] += 1
                    by_answer[told].append(one)
                    break
    if not balanced or set(by_answer) == {""}:
        return [one for group in by_answer.values() for one in group]
    counts = sorted(map(len, by_answer.values()), reverse=True)
    enough = [(count * (i + 1), count) for i, count in enumerate(counts) if i + 1 >= min(len(counts), options.COUNT)]
    if len(counts) < 2 or not enough:
        return []
    each = max(enough)[1]
    return [one for group in by_answer.values() if len(group) >= each for one in group[:each]]


def wrong_numbers(members: Sequence[Candidate], random: Random) -> dict[str, list[float]]:
    """Key of a question -> three answers of other cases, in units of its scale; nothing where there are too few."""
    draw = np.random.default_rng(random.getrandbits(64))
    found = {}
    for phase in sorted({one.phase for one in members}):
        those = [one for one in members if one.phase == phase]
        row = options.UNITS[those[0].unit]
        scale = float(np.median([one.scale for one in those]))
        numbers = [one.answer for one in those if isinstance(one.answer, Number)]
        pool = exchange.pool(
            [number.value / one.scale for number, one in zip(numbers, those, strict=True)],
            [number.uncertainty / one.scale for number, one in zip(numbers, those, strict=True)],
            [one.look.at.patient for one in those],
            row.differ == "ratio",
            row.least if row.differ == "ratio" else row.least / scale,
            row.widest if row.differ == "ratio" else row.widest / scale,
            draw,
        )
        for i, one in enumerate(those):
            if (others := pool.others(i, draw)) is not None:
                found[one.key] = others.tolist()
    return found


def worded(one: Candidate, others: Sequence[float] | None, kept: Sequence[str] | None, seed: int) -> Question | None:
    """The question in words with its options; None if there is no room for wrong ones."""
    look, answer, unit = one.look, one.answer, one.unit
    random = Random(f"{seed} {one.key}")
    value: Value = options.rounded(answer.value, unit) if isinstance(answer, Number) else answer.value
    values: Sequence[Value] | None
    if isinstance(answer, Class):
        roles = {key: v for key, v in one.arguments.items() if key in one.row.alike}
        domain = answer.domain if kept is None else [roles.get(name, name) for name in kept]
        values = options.classes(answer, domain, random)
    elif unit == "lesions":
        values = options.counts(int(answer.value), None if kept is None else sorted(map(int, kept)), random)
    elif others is None and kept is not None:
        return None
    else:
        values = options.numbers(answer, one.scale, others, random)
    if values is None:
        return None
    shown = tuple(options.option(v, unit) for v in values)
    index = list(values).index(value)
    return Question(
        qid=sha256("\0".join([one.key, *(option.text for option in shown)]).encode()).hexdigest()[:16],
        case=look.at.case,
        patient=look.at.patient,
        subtype=one.row.name,
        group=one.row.group,
        answer_type=answer_type(answer),
        arguments=one.arguments,
        text=phrased(one.row.name, one.arguments, Random(f"{one.key} words")),
        options=shown,
        answer=Answer(value, free_text(value, unit), index),
        unit=unit,
        trace=tuple(look.steps),
        evidence=evidence(look),
        margin=margin(answer, values),
        lesion_mm=round(look.lesion.long_axis.value or 0, 1) if look.lesion else None,
        rules=f"{look.pack.name} {look.pack.version}",
    )


def answer_type(answer: Number | Class) -> AnswerType:
    if isinstance(answer, Number):
        return "numeric"
    return "binary" if set(answer.domain) == {"yes", "no"} else "categorical"


def margin(answer: Number | Class, values: Sequence[Value]) -> float | None:
    """Of a size, half the way to the nearest wrong option, in uncertainties; none of a count."""
    if isinstance(answer, Class):
        return None if answer.margin is None else round(answer.margin, 2)
    if answer.unit == "lesions" or not answer.uncertainty:
        return None
    gaps = sorted(abs(v - answer.value) for v in values if not isinstance(v, str))
    return round(gaps[1] / 2 / answer.uncertainty, 2)


def evidence(look: Look) -> Evidence:
    """The slice and box of the lesion in question, else those of the first organ that was looked at."""
    masks = tuple(dict.fromkeys(look.shown))
    if look.lesion is not None:
        at = look.lesion.slice.value
        return Evidence(None if at is None else round(at), look.lesion.box, masks)
    boxes = [look.at.organs[name].box for name in masks if name in look.at.organs]
    boxes += [lesion.box for lesion in look.at.lesions if f"{lesion.organ}_{lesion.kind}" in masks]
    for box in boxes:
        if box is not None:
            return Evidence((box[2][0] + box[2][1]) // 2, box, masks)
    return Evidence(None, None, masks)


def free_text(value: float | str, unit: str) -> str:
    return f"{options.said(value, unit)} {options.UNITS[unit].said if unit else ''}".strip()


NOUNS = {"kidney": "kidneys"}
ADJECTIVES = {"pancreas": "pancreatic"}


def listed(words: Sequence[str]) -> str:
    """The a, the b and the c, without the first article."""
    return " and the ".join([", the ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@cache
def templates() -> Mapping[str, list[str]]:
    return tomllib.loads((Path(__file__).parent / "templates.toml").read_text())


def phrased(subtype: str, arguments: Arguments, random: Random) -> str:
    """One of the paraphrases; which one does not depend on the answer."""
    words = {key: listed([NOUNS.get(part, options.said(part)) for part in value.split("+")])
             for key, value in arguments.items()}  # fmt: skip
    words["adjective"] = ADJECTIVES.get(arguments.get("organ", ""), arguments.get("organ", ""))
    found = templates()[f"{subtype} of {arguments['what']}" if "what" in arguments else subtype]
    return random.choice(found).format(**words)


def answered(question: Question, measurements: Measurements, pack: Pack) -> Answer:
    """The answer that other measurements of the same case give to a question; NotAsked if they have none.

    Of a size, the option that is nearest; of a count or class, the one that says it (-1 if none does).
    """
    found = SUBTYPES[question.subtype].program(Look(measurements, pack), **question.arguments)
    unit = found.unit if isinstance(found, Number) else ""
    value: Value = options.rounded(found.value, unit) if isinstance(found, Number) else found.value
    if isinstance(found, Number) and unit != "lesions":
        return Answer(value, free_text(value, unit), options.nearest(found.value, question.options, unit))
    values = [option.value for option in question.options]
    return Answer(value, free_text(value, unit), values.index(value) if value in values else -1)
