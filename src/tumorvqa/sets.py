"""A set of questions in a folder: what `measure` wrote, questions, split, predictions, scores and the page.

cases/ID.json  measured.json  quarantine.jsonl  salt  lock  questions.jsonl  questions.parquet  PACK.toml  leaks.json
predictions/MODEL.FORMAT.jsonl  scores/MODEL.FORMAT.KEY.json  keys/KEY.json  views/  pages/ID.html  report.html
"""

import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from rich.markup import escape
from rich.table import Table

from dnt.files import atomic_write, exclusive, read_json
from tumorvqa.asking.ask import ask
from tumorvqa.asking.subtypes import SUBTYPES
from tumorvqa.baselines.blind import BLIND
from tumorvqa.formats import read_questions, write_questions
from tumorvqa.measurements import Measurements
from tumorvqa.pages.report import write_report
from tumorvqa.question import GROUPS, Answer, Prediction, Question
from tumorvqa.rules.packs import Pack, load_pack
from tumorvqa.scoring import leaderboard
from tumorvqa.scoring.compare import Comparison, compare
from tumorvqa.scoring.predictions import read_predictions
from tumorvqa.scoring.score import score
from tumorvqa.scoring.scores import Format, Interval, Scores
from tumorvqa.scoring.strata import strata
from tumorvqa.splits import LeakReport, leak_report, split, with_split
from tumorvqa.work import stored


@dataclass(frozen=True)
class Asked:
    """What asking gave: the questions, each with its split, and who sits on both sides of it."""

    questions: list[Question]
    leaks: LeakReport

    def table(self) -> Table:
        splits = sorted({q.split or "" for q in self.questions})
        table = Table("group", "subtypes", "questions", *splits, title="questions")
        for group in GROUPS:
            those = [q for q in self.questions if q.group == group]
            of = [sum(q.split == name for q in those) for name in splits]
            table.add_row(group, str(len({q.subtype for q in those})), str(len(those)), *map(str, of))
        return table


def salt_of(out: Path) -> str:
    """The set's own salt of patients' hashes: made once, readable by its owner only, in no output."""
    path = out / "salt"
    with exclusive(out / "lock"):
        if not path.exists():
            with atomic_write(path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(secrets.token_hex(16).encode())
    salt = path.read_text()
    if not salt:
        raise ValueError(f"{path} is empty, so that patients could be guessed; delete it, and measure again.")
    return salt


def measured_in(out: Path) -> list[Measurements]:
    """The measurements of a set, in the order of its last `measure`; ValueError if there are none or one is damaged."""
    if not (out / "measured.json").exists():
        raise ValueError(f"{out} has no measured cases; `tumorvqa measure CASES {out}` makes them.")
    found = []
    for case in read_json(out / "measured.json", "a set of measured cases"):
        result = stored(out / "cases" / f"{case}.json")
        if result is None or result.measurements is None:
            raise ValueError(f"{out / 'cases' / case}.json is missing or damaged; measure again, which makes it anew.")
        found.append(result.measurements)
    if not found:
        raise ValueError(f"no case of {out} could be measured; {out / 'quarantine.jsonl'} says why.")
    return found


def pack_of(out: Path, questions: Sequence[Question]) -> Pack:
    """The rule pack that a set's questions were asked with, from the copy beside them."""
    if not questions:
        raise ValueError(f"{out / 'questions.jsonl'} holds no question; `tumorvqa ask {out}` makes some.")
    pack = load_pack(str(out / f"{questions[0].rules.split()[0]}.toml"))
    if f"{pack.name} {pack.version}" != questions[0].rules:
        raise ValueError(f"the questions of {out} were asked with {questions[0].rules}, its copy is {pack.version}.")
    return pack


def ask_into(
    out: Path,
    rules: str = "kb-v2",
    seed: int = 0,
    balanced: bool = True,
    train: float = 0.8,
    test: float = 0.1,
    by_source: bool = False,
) -> Asked:
    """Ask the cases of a set, and split them by patient, or with `by_source` so that no source is on both sides."""
    if not (train >= 0 and test >= 0 and train + test <= 1):
        raise ValueError(f"--train {train} and --test {test} must be shares that add up to at most 1.")
    measured, pack = measured_in(out), load_pack(rules)
    questions = ask(measured, pack, seed, balanced)
    if not questions:
        raise ValueError(
            f"no question can be asked of {out}: with few cases no answer has another to balance it (--no-balanced)."
        )
    shares = {"train": train, "val": round(1 - train - test, 9), "test": test}
    sources = {case.case: case.source for case in measured} if by_source else None
    shares = {name: share for name, share in shares.items() if share > 0}
    questions = with_split(questions, split(questions, shares, seed, sources))
    leaks = leak_report(questions, seed=seed)
    write_questions(out / "questions.jsonl", questions)
    write_questions(out / "questions.parquet", questions)
    with atomic_write(out / f"{pack.name}.toml") as file:
        file.write(pack.content)
    with atomic_write(out / "leaks.json") as file:
        file.write(leaks.json().encode())
    return Asked(questions, leaks)


def score_files(
    questions: Path,
    predictions: Path,
    format: Format = "mc",
    model: str = "",
    split: str = "",
    strict_authors: bool = False,
    resamples: int = 2000,
    key: Path | None = None,
) -> Scores:
    """The scores of a file of answers; with `split` on its questions alone, with `key` by and on the answers of it."""
    asked, said = in_split(read_questions(questions), read_predictions(predictions), split)
    name = model or predictions.name.removesuffix(".jsonl").removesuffix(f".{format}")
    answers = None if key is None else read_key(key)
    return scored(asked, said, format, name, strict_authors, resamples, answers, "masks" if key is None else key.stem)


def scored(
    questions: Sequence[Question],
    said: Sequence[Prediction],
    format: Format,
    model: str,
    strict_authors: bool = False,
    resamples: int = 2000,
    answers: Mapping[str, Answer] | None = None,
    key: str = "masks",
) -> Scores:
    """`score`, with a second key on the questions that it answers."""
    if answers is not None:
        questions = [question for question in questions if question.qid in answers]
        said = [prediction for prediction in said if prediction.qid in answers]
    return score(questions, said, format, model, key, strict_authors, resamples, answers=answers)


def in_split(
    questions: Sequence[Question], predictions: Sequence[Prediction], split: str
) -> tuple[list[Question], list[Prediction]]:
    """Questions of a split with their answers; all of them if it is ""."""
    if not split:
        return list(questions), list(predictions)
    kept = [question for question in questions if question.split == split]
    if not kept:
        there = ", ".join(sorted({question.split or "none" for question in questions}))
        raise ValueError(f"no question is in the split {split!r}; there are: {there}.")
    left_out = {question.qid for question in questions} - {question.qid for question in kept}
    return kept, [prediction for prediction in predictions if prediction.qid not in left_out]


def compare_files(questions: Path, a: Path, b: Path, format: Format = "mc", split: str = "") -> Comparison:
    one, other = (score_files(questions, path, format, split=split, resamples=0) for path in (a, b))
    asked, _ = in_split(read_questions(questions), [], split)
    return compare(one, other, asked)


def report_of(out: Path, notes: Sequence[str] = (), title: str = "Questions about tumors in CT") -> Path:
    """The page of a set: what is asked, what needs no image, how models do, where they fail. Scores of questions that
    are asked no more are left out.
    """
    questions = read_questions(out / "questions.jsonl")
    asked = {question.qid for question in questions}
    scores = [read_scores(path) for path in sorted((out / "scores").glob("*.json"))]
    scores = [one for one in scores if {judged.qid for judged in one.judged} <= asked]
    reference = [asdict(row) | {"format": format} for format in ("mc", "free") for row in leaderboard.reference(format)]
    return write_report(
        questions,
        scores,
        out / "report.html",
        measurements=measured_in(out),
        leaks=leaks_in_words(leak_report(questions)) if any(q.split == "train" for q in questions) else None,
        shortcuts=[one for one in scores if one.model in BLIND and one.format == "mc"],
        reference=reference,
        case_pages={page.stem: page.relative_to(out).as_posix() for page in sorted((out / "pages").glob("*.html"))},
        keys={path.stem: read_key(path) for path in sorted((out / "keys").glob("*.json"))},
        notes=notes,
        title=title,
    )


def leaks_in_words(report: LeakReport) -> dict[str, object]:
    """What was looked for, and what was found."""
    found: dict[str, object] = {"patients": report.patients, "cases": report.cases}
    for how, leaks in (("", report.found), (" if it were drawn by case", report.random)):
        for name, leak in leaks.items():
            rows = f"{leak.rows_beside_train} of {leak.rows} ({leak.share:.1%})"
            found[f"{name}: questions beside a training question of the same patient{how}"] = rows
    return found


def write_key(path: Path, key: Mapping[str, Answer]) -> None:
    """A second answer key: question id -> answer."""
    with atomic_write(path) as file:
        file.write(msgspec.json.encode(dict(key)))


def read_key(path: Path) -> dict[str, Answer]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Answer])
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{path} is no answer key (question id -> value, text, index): {error}") from None


def write_scores(path: Path, scores: Scores) -> None:
    with atomic_write(path) as file:
        file.write(msgspec.json.encode(scores))


def read_scores(path: Path) -> Scores:
    """ValueError naming the file if it is not what `tumorvqa score --to` writes."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scores)
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{path} is not a file of scores (`tumorvqa score --to`): {error}") from None


def scores_table(scores: Scores) -> Table:
    """Groups and all, with counts and intervals."""
    of = f"{scores.model}, {scores.format}{', as the authors score' if scores.strict_authors else ''}"
    table = Table("group", "questions", "answered", "read", "score %", "above chance", title=escape(of))
    for name, part in {**scores.groups, "all (micro)": scores.overall}.items():
        counts = map(str, (part.questions, part.answered, part.parsed))
        table.add_row(name, *counts, percent(part.accuracy), percent(part.above_chance))
    table.add_row("all (macro over subtypes)", "", "", "", percent(scores.macro_subtype), "")
    table.add_row("all (macro over groups)", "", "", "", percent(scores.macro_group), "")
    return table


def strata_table(scores: Scores, questions: Sequence[Question], measured: Sequence[Measurements] = ()) -> Table:
    """By what questions are about: lesion size, margin, and of measured cases contrast, sex and age."""
    table = Table("by", "", "questions", "score %", "above chance", title="where it is right")
    found = strata(scores, questions, {case.case: case.meta for case in measured})
    for name, bands in found.items():
        for band, row in bands.items():
            table.add_row(name, band, str(row.questions), percent(row.accuracy), percent(row.above_chance))
    return table


def percent(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{100 * interval.value:.1f}"
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def subtype_counts(questions: Sequence[Question]) -> dict[str, int]:
    """Of every subtype, also of those with none."""
    counts = Counter(question.subtype for question in questions)
    return {name: counts[name] for name in SUBTYPES}
