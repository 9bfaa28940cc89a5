"""The whole benchmark on made-up patients: phantoms, measurements, questions, split, baselines, two keys, a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from rich.table import Table

from dnt.files import atomic_write, read_json
from tumorvqa.asking.ask import answered
from tumorvqa.asking.look import NotAsked
from tumorvqa.baselines.agent import agent
from tumorvqa.baselines.blind import BLIND, cross_validated
from tumorvqa.baselines.views import views
from tumorvqa.measurements import Measurements
from tumorvqa.pages.case import show_case
from tumorvqa.phantoms.draw import case_name, draw
from tumorvqa.phantoms.write import write
from tumorvqa.question import GROUPS, Answer, Prediction, Question
from tumorvqa.readers.cases import read_case
from tumorvqa.readers.folders import CaseFiles, find_cases
from tumorvqa.rules.packs import Pack, load_pack
from tumorvqa.scoring.predictions import write_predictions
from tumorvqa.scoring.scores import Format, Scores
from tumorvqa.sets import (
    Asked,
    ask_into,
    measured_in,
    percent,
    report_of,
    scored,
    subtype_counts,
    write_key,
    write_scores,
)
from tumorvqa.work import Executor, here, in_processes, measure_all, progress_bar

SALT = "demo"  # nobody is to be protected, and every run is to be the same
SHOWN = 4  # cases with a page of their own


@dataclass(frozen=True)
class Demo:
    """What a demo found; `misses` are the oracle's answers that the analytic key calls wrong."""

    asked: Asked
    scores: tuple[Scores, ...]
    misses: tuple[dict[str, object], ...]
    page: Path

    def tables(self) -> list[Table]:
        return [self.asked.table(), scores_of(self.scores)]

    @property
    def summary(self) -> list[str]:
        """In a few lines: how many questions, what the two keys say of the oracle, what sees no image."""
        by = {(one.model, one.format, one.key): one.overall.accuracy.value for one in self.scores}
        counts = subtype_counts(self.asked.questions)
        least = min(counts, key=lambda name: counts[name])
        oracle = [100 * by[name, "mc", key] for name, key in KEYS]
        blind = max((one for one in self.scores if one.model in BLIND), key=lambda one: one.overall.above_chance.value)
        return [
            f"{len(self.asked.questions):,} questions of {len(counts)} subtypes; fewest: {counts[least]} ({least})",
            f"oracle: {oracle[0]:.1f}% by the masks' key, {oracle[1]:.1f}% by the analytic one "
            f"({len(self.misses)} misses, listed in misses.jsonl); with a spacing wrong by 10%: {oracle[2]:.1f}%",
            f"most above chance without an image: {blind.model}, {percent(blind.overall.above_chance)} points",
        ]


KEYS = (("agent-oracle", "masks"), ("agent-oracle", "analytic"), ("agent-stretched", "analytic"))


def demo(out: Path, cases: int = 96, workers: int = 2, seed: int = 0, rules: str = "kb-v2") -> Demo:
    """Everything, into `out`; what is there of the same seed is kept, and the same seed asks the same questions."""
    pack = load_pack(rules)
    write_phantoms(out / "images", cases, seed, workers)
    files = [case for case in find_cases(out / "images") if case.id in {case_name(i) for i in range(cases)}]
    measure_all(files, out, workers, SALT)
    asked = ask_into(out, rules, seed)
    measured = {case.case: case for case in measured_in(out)}
    truths = {case.id: truth_of(case) for case in files}
    analytic, without = analytic_key(asked.questions, truths, pack)
    write_key(out / "keys" / "analytic.json", analytic)
    seen = views(files, out / "views", ("perturbed", "threshold", "stretched"), SALT, workers)
    masks = {
        "agent-oracle": measured,
        "agent-perturbed": seen["perturbed"],
        "hu-threshold": seen["threshold"],
        "agent-none": {},
        "agent-stretched": seen["stretched"],
    }
    scores = []
    for name in BLIND:
        said = cross_validated(name, asked.questions, measured, seed=seed)
        scores.append(judged(out, name, asked.questions, said))
    for name, case_masks in masks.items():
        said = agent(asked.questions, case_masks, pack, seed=seed)
        scores.append(judged(out, name, asked.questions, said))
        scores.append(judged(out, name, asked.questions, agent(asked.questions, case_masks, pack, True), free=True))
        if name in dict(KEYS):
            scores.append(judged(out, name, asked.questions, said, key=analytic))
    misses = differences(asked.questions, analytic)
    with atomic_write(out / "misses.jsonl") as file:
        file.writelines(json.dumps(miss).encode() + b"\n" for miss in misses)
    for case in files[:SHOWN]:
        case_page(case, measured[case.id], asked.questions, out / "pages")
    page = report_of(out, notes(cases, seed, pack, misses, without), "tumorvqa demo")
    return Demo(asked, tuple(scores), tuple(misses), page)


def write_phantoms(out: Path, count: int, seed: int = 0, workers: int = 1) -> list[Path]:
    """`count` phantoms as AbdomenAtlas cases; those that are there are kept, if they are of the same seed."""
    if count < 1 or workers < 1:
        raise ValueError(f"{count} phantoms by {workers} processes: both must be at least 1.")
    stamp, mark = out / "seed.json", {"seed": seed}
    if stamp.exists() and read_json(stamp, "a folder of phantoms") != mark:
        raise ValueError(f"{out} holds phantoms of another seed; choose another folder, or delete it.")
    with atomic_write(stamp) as file:
        file.write(json.dumps(mark).encode())
    run: Executor = in_processes(workers) if workers > 1 else here
    paths = []
    with progress_bar("phantoms", count) as step:
        for path in run(partial(write_phantom, out=out, seed=seed), range(count), no_phantom):
            paths.append(path)
            step()
    return sorted(paths)


def write_phantom(index: int, out: Path, seed: int) -> Path:
    path = out / case_name(index)
    return path if path.is_dir() else write(draw(index, seed), out)


def no_phantom(index: int) -> Path:
    raise ValueError(
        f"phantom {index} could not be written: its process died twice, perhaps for want of memory; use --workers 1."
    )


def truth_of(case: CaseFiles) -> Measurements:
    """What a phantom is known to be."""
    return msgspec.json.decode((case.ct.parent / "truth.json").read_bytes(), type=Measurements)


def analytic_key(
    questions: Sequence[Question], truths: Mapping[str, Measurements], pack: Pack
) -> tuple[dict[str, Answer], dict[str, str]]:
    """The second key: answers from the analytic truth, and why there is none where there is none."""
    key, without = {}, {}
    for question in questions:
        try:
            key[question.qid] = answered(question, truths[question.case], pack)
        except NotAsked as reason:
            without[question.qid] = str(reason)
    return key, without


def judged(
    out: Path,
    model: str,
    questions: Sequence[Question],
    said: Sequence[Prediction],
    free: bool = False,
    key: Mapping[str, Answer] | None = None,
) -> Scores:
    """Scores of a model, kept beside its answers; with a second key of what that key answers."""
    format: Format = "free" if free else "mc"
    write_predictions(out / "predictions" / f"{model}.{format}.jsonl", said)
    name = "masks" if key is None else "analytic"
    scores = scored(questions, said, format, model, answers=key, key=name)
    write_scores(out / "scores" / f"{model}.{format}.{name}.json", scores)
    return scores


def differences(questions: Sequence[Question], key: Mapping[str, Answer]) -> list[dict[str, object]]:
    """Where masks and analytic truth choose another option: by how much the measurement is off."""
    found: list[dict[str, object]] = []
    for question in questions:
        truth = key.get(question.qid)
        if truth is None or truth.index == question.answer.index:
            continue
        found.append(
            {
                "qid": question.qid,
                "case": question.case,
                "subtype": question.subtype,
                "arguments": question.arguments,
                "masks": question.answer.text,
                "analytic": truth.text,
                "margin": question.margin,
                "measured": [step.what + f": {step.result} {step.unit}" for step in question.trace if step.unit],
            }
        )
    return found


def case_page(case: CaseFiles, measurements: Measurements, questions: Sequence[Question], folder: Path) -> Path:
    own = [question for question in questions if question.case == case.id]
    return show_case(read_case(case, SALT), measurements, own, folder / f"{case.id}.html")


def notes(
    cases: int, seed: int, pack: Pack, misses: Sequence[Mapping[str, object]], without: Mapping[str, str]
) -> list[str]:
    """What the page says of how it was made."""
    return [
        f"{cases} phantoms of seed {seed}, rules {pack.name} {pack.version}.",
        f"{len(misses)} answers differ between masks and analytic truth; {len(without)} have no analytic one.",
        "agent-stretched sees every spacing 10% too large.",
    ]


def scores_of(scores: Sequence[Scores]) -> Table:
    """Every model by group."""
    table = Table("model", "format", "key", *GROUPS, "all [95%]", "above chance", title="scores, percent")
    for one in scores:
        groups = [f"{100 * one.groups[group].accuracy.value:.1f}" if group in one.groups else "" for group in GROUPS]
        table.add_row(
            one.model, one.format, one.key, *groups, percent(one.overall.accuracy), percent(one.overall.above_chance)
        )
    return table
