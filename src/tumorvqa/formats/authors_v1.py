"""The authors' v1 CSV. Headers are read with blanks, hyphens or underscores, in any case."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dnt.files import atomic_write
from tumorvqa.formats.records import question_of, record_of
from tumorvqa.measurements import Measurements
from tumorvqa.question import Question

COLUMNS = {  # header: the name in v2
    "Question ID": "qid",
    "Image ID": "image_id",
    "spacing": "spacing",
    "shape": "shape",
    "sex": "sex",
    "age": "age",
    "scanner": "scanner",
    "contrast": "contrast",
    "question": "question",
    "answer": "answer",
    "multiple-choice question": "mc_question",
    "correct option": "correct_option",
    "organ": "organ",
    "lesion": "lesion",
    "question type": "question_type",
    "question subtype": "question_subtype",
    "split": "split",
}


def _plain(header: str) -> str:
    return header.strip().lower().replace(" ", "_").replace("-", "_")


NAMES = {_plain(header): name for header, name in COLUMNS.items()} | {"mc_question": "mc_question", "qid": "qid"}


def write_authors_v1(path: Path, questions: Sequence[Question], measurements: Mapping[str, Measurements]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for question in questions:
        record = record_of(question, measurements) | {"split": question.split}
        writer.writerow(["" if record.get(name) is None else record.get(name) for name in COLUMNS.values()])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_authors_v1(path: Path, patients: Mapping[str, str]) -> list[Question]:
    """Questions without an id that are alike in all but it get "-2", "-3" behind it."""
    questions = []
    made: Counter[str] = Counter()
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            record = {NAMES.get(_plain(header), _plain(header)): cell for header, cell in row.items() if header}
            try:
                question = question_of(record, patients)
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
            if not record.get("qid"):
                made[question.qid] += 1
                if made[question.qid] > 1:
                    question = replace(question, qid=f"{question.qid}-{made[question.qid]}")
            questions.append(question)
    return questions
