"""A set of questions and the models that answered them -> one self-contained page."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from dnt.files import atomic_write
from tumorvqa.measurements import Measurements
from tumorvqa.pages import words
from tumorvqa.pages.case import template
from tumorvqa.question import GROUPS, Answer, Question, Value
from tumorvqa.scoring.scores import Interval, Part, Scores
from tumorvqa.structures import MEASURED

POINTS = 0.05  # above chance: what a model that never saw the image may reach
DOTS = 500  # of one plot, at most
MOST_FAILURES = 40  # of one model
BARS = 16
FORMATS = {"mc": "multiple choice", "free": "free form"}


def write_report(
    questions: Sequence[Question],
    scores: Sequence[Scores],
    path: Path,
    *,
    measurements: Sequence[Measurements] = (),
    leaks: Mapping[str, object] | None = None,
    shortcuts: Sequence[Scores] = (),
    reference: Sequence[Mapping[str, Any]] = (),
    case_pages: Mapping[str, str] | None = None,
    keys: Mapping[str, Mapping[str, Answer]] | None = None,
    notes: Sequence[str] = (),
    title: str = "Questions about tumors in CT",
) -> Path:
    """Write the page to `path`; the path.

    shortcuts: models that never saw the image. reference: rows that others measured, in percent: "format" ("mc" or
    "free"), "model", "input", "mode", "overall", "groups" (group -> percent). case_pages: case -> address of its page.
    leaks: what was looked for -> what was found. keys: answers by question id of other keys than "masks", which is the
    questions' own; of models scored by a key that is not given neither failures nor agreement are shown.
    """
    groups = [group for group in GROUPS if any(question.group == group for question in questions)]
    by_id = {question.qid: question for question in questions}
    right = {"masks": {question.qid: question.answer for question in questions}} | dict(keys or {})
    known = [of for of in scores if of.key in right]
    blind = {of.model for of in shortcuts}
    seeing = [of for of in known if of.model not in blind and not _guesses(of)]
    page = template("report.html").render(
        title=title,
        tiles=_tiles(questions),
        notes=notes,
        groups=groups,
        splits=_splits(questions, groups),
        boards=[board for format in FORMATS if (board := _board(scores, reference, format, groups))["rows"]],
        shortcuts=[_shortcut(of, groups) for of in shortcuts],
        points=POINTS,
        leaks=[(what, words.said(found) if isinstance(found, int | float) else found)
               for what, found in (leaks or {}).items()],
        subtypes=list(_subtypes(questions, groups)),
        organs=list(_organs(measurements)),
        agreements=[plot for of in known for plot in _agreements(of, by_id, right[of.key])],
        failures=[row for of in seeing for row in _failures(of, by_id, right[of.key], case_pages or {})],
        missed={_labelled(of): _missed(of, by_id) for of in seeing},
        left_out=list(dict.fromkeys(of.model for of in known if of not in seeing)),
        most=MOST_FAILURES,
    )  # fmt: skip
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _tiles(questions: Sequence[Question]) -> list[tuple[int, str]]:
    counts = {"questions": len(questions)}
    counts |= {"cases": len({q.case for q in questions}), "patients": len({q.patient for q in questions})}
    return [(count, what) for what, count in (counts | {"subtypes": len({q.subtype for q in questions})}).items()]


def _splits(questions: Sequence[Question], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Questions by group, cases and patients of each split, and of all."""
    names = list(dict.fromkeys(sorted(question.split or "" for question in questions)))
    parts = [("all", list(questions))]
    if names != [""]:
        parts = [(name or "none", [q for q in questions if (q.split or "") == name]) for name in names] + parts
    return [
        {
            "name": name,
            "cases": len({q.case for q in part}),
            "patients": len({q.patient for q in part}),
            "groups": [sum(q.group == group for q in part) for group in groups],
            "questions": len(part),
        }
        for name, part in parts
    ]


def _board(
    scores: Sequence[Scores], reference: Sequence[Mapping[str, Any]], format: str, groups: Sequence[str]
) -> dict[str, Any]:
    """Rows of one format, the best first; those that others measured apart from ours."""
    ours = sorted((of for of in scores if of.format == format), key=lambda of: -of.overall.accuracy.value)
    theirs = [row for row in reference if row["format"] == format]
    keys = {of.key for of in ours}
    chances = [mean(judged.chance for judged in of.judged) for of in ours[:1] if of.judged]
    return {
        "format": FORMATS[format],
        "keys": sorted(keys),
        "chance": chances[0] if chances else 0.0,
        "rows": [
            {
                "model": of.model,
                "key": of.key,
                "strict": of.strict_authors,
                "overall": _bar(of.overall.accuracy),
                "groups": [_interval(of.groups[group].accuracy) if group in of.groups else "–" for group in groups],
                "macro": _interval(of.macro_subtype),
                "parsed": f"{of.overall.parsed / max(of.overall.questions, 1):.0%}",
                "details": sorted(of.overall.details.items()),
            }
            for of in ours
        ],
        "reference": [
            {
                "model": row["model"],
                "about": ", ".join(str(row[what]) for what in ("input", "mode") if row.get(what)),
                "overall": f"{row['overall']:.1f}%",
                "groups": [f"{row['groups'][group]:.1f}%" if group in row["groups"] else "–" for group in groups],
            }
            for row in sorted(theirs, key=lambda row: -row["overall"])
        ],
    }


def _interval(of: Interval) -> str:
    """As percent, with the ends of the interval where there is one: near 0 and 100% it is not symmetric."""
    ends = "" if of.low is None or of.high is None else f" ({100 * of.low:.1f}–{100 * of.high:.1f})"
    return f"{of.value:.1%}{ends}"


def _bar(of: Interval) -> dict[str, Any]:
    low, high = (of.value if end is None else end for end in (of.low, of.high))
    return {"text": _interval(of), "value": of.value, "low": low, "high": high}


def verdict(above: Interval) -> str:
    """Of accuracy minus chance: "shortcut" if its interval lies above POINTS, "look" if it lies above 0 and reaches
    beyond POINTS, "" if it includes 0 or ends below POINTS.
    """
    if above.low is None or above.high is None or above.low <= 0 or above.high < POINTS:
        return ""
    return "shortcut" if above.low > POINTS else "look"


def _shortcut(of: Scores, groups: Sequence[str]) -> dict[str, Any]:
    def cell(part: Part | None) -> dict[str, Any]:
        if part is None:
            return {"text": "–", "verdict": "", "low": 0.0, "high": 0.0, "value": 0.0, "questions": 0}
        above = part.above_chance
        low, high = (above.value if end is None else end for end in (above.low, above.high))
        text = f"{100 * above.value:+.1f}" + ("" if above.low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})")
        return {"text": text.replace("-", "−"), "verdict": verdict(above), "low": low, "high": high,
                "value": above.value, "questions": part.questions}  # fmt: skip

    subtypes = {name: cell(part) for name, part in of.subtypes.items()}
    return {
        "model": of.model,
        "accuracy": f"{of.overall.accuracy.value:.1%}",
        "overall": cell(of.overall),
        "groups": [cell(of.groups.get(group)) for group in groups],
        "subtypes": sorted(subtypes.items(), key=lambda item: -item[1]["value"]),
        "marked": sum(bool(found["verdict"]) for found in subtypes.values()),
    }


def _subtypes(questions: Sequence[Question], groups: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Of each group its subtypes: counts, where the right option stands, and how the answers spread."""
    for group in groups:
        found: dict[str, list[Question]] = defaultdict(list)
        units = {(question.subtype, question.unit) for question in questions}
        several = {name for name, number in Counter(name for name, _ in units).items() if number > 1}
        for question in questions:
            if question.group == group:
                of_unit = f" ({words.unit(question.unit)})" if question.subtype in several else ""
                found[question.subtype + of_unit].append(question)
        yield group, [_subtype(name, part) for name, part in sorted(found.items(), key=lambda item: -len(item[1]))]


def _subtype(name: str, questions: Sequence[Question]) -> dict[str, Any]:
    most = max(len(question.options) for question in questions)
    places = Counter(question.answer.index for question in questions if question.answer.index >= 0)
    ranks = Counter(rank for question in questions if (rank := _rank(question)) is not None)
    numbers = [q.answer.value for q in questions if isinstance(q.answer.value, float | int)]
    numeric = len(numbers) == len(questions)
    classes = Counter(words.said(question.answer.value) for question in questions)
    return {
        "name": name,
        "questions": len(questions),
        "cases": len({question.case for question in questions}),
        "places": _shares([places[i] for i in range(most)], [chr(ord("A") + i) for i in range(most)]),
        "ranks": _shares([ranks[i] for i in range(most)], [f"#{i + 1} from below" for i in range(most)]) * bool(ranks),
        "bars": _histogram(numbers) if numeric else [(label, count) for label, count in classes.most_common(BARS)],
        "numeric": numeric,
        "unit": words.unit(questions[0].unit) if numeric else "",
        "range": f"{words.said(min(numbers))} to {words.said(max(numbers))}" if numeric else "",
        "more": max(0, len(classes) - BARS) if not numeric else 0,
    }  # fmt: skip


def _rank(question: Question) -> int | None:
    """Of the right option among numeric ones, 0 the smallest."""
    values = [option.value for option in question.options]
    if question.answer.index < 0 or not all(isinstance(value, float | int) for value in values):
        return None
    return sorted(range(len(values)), key=lambda i: float(values[i])).index(question.answer.index)


def _shares(counts: Sequence[int], labels: Sequence[str]) -> list[tuple[str, float, int]]:
    total = max(sum(counts), 1)
    return [(label, count / total, count) for label, count in zip(labels, counts, strict=True)]


def _histogram(values: Sequence[float]) -> list[tuple[str, int]]:
    """Counts in equal steps; in equal ratios if the values span more than 1 : 50."""
    low, high = min(values), max(values)
    if low == high:
        return [(words.said(low), len(values))]
    if all(float(value).is_integer() for value in values) and high - low < BARS:
        counts = Counter(values)
        return [(words.said(value), counts[value]) for value in range(int(low), int(high) + 1)]
    if low > 0 and high / low > 50:
        edges = [low * (high / low) ** (i / BARS) for i in range(BARS + 1)]
    else:
        edges = [low + (high - low) * i / BARS for i in range(BARS + 1)]
    edges[-1] = high
    where = [sum(value >= edge for edge in edges[1:-1]) for value in values]
    counts = Counter(where)
    return [(f"{words.said(a)} to {words.said(b)}", counts[i]) for i, (a, b) in enumerate(pairwise(edges))]


def _organs(measurements: Sequence[Measurements]) -> Iterator[dict[str, Any]]:
    """How often each organ was measured, and its middle value with the middle nine tenths."""
    for name in MEASURED:
        organs = [of.organs[name] for of in measurements if name in of.organs]
        if not organs:
            continue
        volumes = sorted(
            organ.volume.value for organ in organs if organ.volume.value is not None and organ.volume.status == "ok"
        )
        hus = sorted(organ.hu.value for organ in organs if organ.hu.value is not None)
        other = Counter(words.STATUS[organ.volume.status] for organ in organs if organ.volume.status != "ok")
        yield {
            "name": words.title(name),
            "measured": len(volumes),
            "volume": _middle(volumes, 0),
            "hu": _middle(hus, 1),
            "missing": "; ".join(f"{count} {why}" for why, count in other.most_common()),
        }


def _middle(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    low, high = values[int(0.05 * (len(values) - 1))], values[round(0.95 * (len(values) - 1))]
    return f"{words.number(median(values), digits)} ({words.number(low, digits)} to {words.number(high, digits)})"


def _agreements(of: Scores, by_id: Mapping[str, Question], right_of: Mapping[str, Answer]) -> Iterator[dict[str, Any]]:
    """Bland and Altman (1986), by unit: mean of said and right against said minus right, with the mean difference and
    1.96 standard deviations around it.
    """
    if of.format != "free":
        return
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for judged in of.judged:
        question = by_id.get(judged.qid)
        if question is None or question.answer_type != "numeric" or not isinstance(judged.parsed, float | int):
            continue
        pairs[question.unit].append((float(judged.parsed), float(right_of.get(judged.qid, question.answer).value)))
    for unit, found in sorted(pairs.items(), key=lambda item: -len(item[1])):
        differences = [said - right for said, right in found]
        if len(found) < 3 or not any(differences):
            continue
        bias, spread = mean(differences), 1.96 * stdev(differences)
        middles = [(said + right) / 2 for said, right in found]
        reach = _rounded_up(max(*(abs(difference) for difference in differences), abs(bias) + spread))
        step = -(-len(found) // DOTS)  # dots that a page draws fast
        low, high = min(middles), max(middles)
        yield {
            "model": of.model,
            "key": of.key,
            "unit": words.unit(unit),
            "count": len(found),
            "bias": _signed(bias),
            "low": _signed(bias - spread),
            "high": _signed(bias + spread),
            "lines": [(value + reach) / (2 * reach) for value in (bias - spread, 0.0, bias, bias + spread)],
            "dots": [((x - low) / ((high - low) or 1), (y + reach) / (2 * reach), words.said(said), words.said(right))
                     for x, y, (said, right) in zip(middles, differences, found, strict=True)][::step],
            "ends": (words.said(low), words.said(high)),
            "reach": words.said(reach),
        }  # fmt: skip


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + words.said(value)


def _rounded_up(value: float) -> float:
    """To two digits."""
    step = 10.0 ** (floor(log10(value)) - 1)
    return ceil(value / step) * step


def _guesses(of: Scores) -> bool:
    """Whether the interval of accuracy minus chance includes 0."""
    above = of.overall.above_chance
    return above.low is not None and above.high is not None and above.low <= 0 <= above.high


def _labelled(of: Scores) -> str:
    return f"{of.model}, {FORMATS[of.format]}, {of.key}"


def _missed(of: Scores, by_id: Mapping[str, Question]) -> int:
    return sum(judged.score < 0.5 for judged in of.judged if judged.qid in by_id)


def _failures(
    of: Scores, by_id: Mapping[str, Question], right_of: Mapping[str, Answer], pages: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The clearest first: by how many uncertainties lie between the truth and another answer, exact ones last."""
    wrong = [(judged, by_id[judged.qid]) for judged in of.judged if judged.score < 0.5 and judged.qid in by_id]
    wrong.sort(key=lambda found: (found[1].margin is None, -(found[1].margin or 0), found[1].qid))
    return [
        {
            "model": _labelled(of),
            "subtype": question.subtype,
            "case": question.case,
            "text": question.text,
            "right": right_of.get(question.qid, question.answer).text,
            "said": _said(question, judged.parsed),
            "margin": words.margin(question),
            "page": f"{pages[question.case]}#q-{question.qid}" if question.case in pages else None,
        }
        for judged, question in wrong[:MOST_FAILURES]
    ]


def _said(question: Question, parsed: Value | None) -> str:
    """As the option that says it, if one does."""
    if parsed is None:
        return "no answer that could be read"
    return next((option.text for option in question.options if option.value == parsed), words.said(parsed))
